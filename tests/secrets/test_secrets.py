"""Secrets that guests are given: those that their policy names, and redacted from all that leaves.

Holds P-SECRET-1.
"""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from stockade import JavaScript, Outcome, Policy, PolicyError, Python, Sandbox, Secret, SnapshotError, UsageError
from stockade.audit import AuditLog
from tests._small_guests import ECHO, ENVIRONMENT, wat

if TYPE_CHECKING:
    from pathlib import Path

    from stockade.execution import Isolation

VALUE = "v4lue-of-a-secret-97531"
NAMED = Policy().replace(custom={"secrets": ["api", "token"]}, wall_time="1min", idle_time="1min")
UNNAMED = Policy().replace(wall_time="1min", idle_time="1min")


def box(policy: Policy = NAMED, isolation: Isolation = "inprocess", **more: Any) -> Sandbox:
    return Sandbox(policy, isolation, **{"secrets": {"api": Secret(VALUE, env="API_KEY")}, **more})


def test_a_guest_has_the_variable_that_its_policy_names(isolation: Isolation) -> None:
    """And what it writes of it is redacted: the value is there, and does not leave."""
    with box(isolation=isolation) as sandbox:
        report = sandbox.run(wat(ENVIRONMENT))

    assert report.outcome is Outcome.OK
    assert report.stdout.startswith(b"API_KEY=")
    assert b"[redacted:api]" in report.stdout
    assert VALUE.encode() not in report.stdout


def test_a_guest_reads_it_from_its_standard_input(isolation: Isolation) -> None:
    with box(isolation=isolation, secrets={"token": Secret(VALUE.encode(), stdin=True)}) as sandbox:
        report = sandbox.run(wat(ECHO))
        with pytest.raises(UsageError, match="the standard input of this guest is a secret that its policy names"):
            sandbox.run(wat(ECHO), stdin=b"other")

    assert report.stdout == b"[redacted:token]"


@pytest.mark.parametrize("secret", [Secret(VALUE, env="API_KEY"), Secret(VALUE, stdin=True)], ids=repr)
def test_a_guest_whose_policy_names_none_is_given_none(secret: Secret, isolation: Isolation) -> None:
    """The attack: a guest of a sandbox that has secrets for others; also one whose own run is narrowed."""
    for own, narrower in ((UNNAMED, None), (NAMED, UNNAMED), (NAMED.replace(custom={"secrets": ["other"]}), None)):
        with box(own, isolation, secrets={"api": secret}) as sandbox:
            assert sandbox.run(wat(ENVIRONMENT), policy=narrower).stdout == b""
            assert sandbox.run(wat(ECHO), policy=narrower).stdout == b""


def test_nothing_that_is_told_has_it(tmp_path: Path) -> None:
    """The attack: a report, an audit log, an error or a `repr` that comes to have the value."""
    with AuditLog(tmp_path / "log") as log, box(audit=log) as sandbox:
        report = sandbox.run(wat(ENVIRONMENT))
        told = [repr(sandbox), repr(report), report.to_json(), report.render(), report.to_html()]
        with pytest.raises(UsageError) as problem:
            sandbox.run(wat(ENVIRONMENT), env={"A": "\0"})
        told.append(str(problem.value))

    assert not any(VALUE in text for text in told)
    assert VALUE.encode() not in (tmp_path / "log").read_bytes()


GIVEN = """
(module
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "count") (result i32)
    (drop (call $sizes (i32.const 0) (i32.const 4)))
    (i32.load (i32.const 0))))
"""


def test_a_guest_that_has_one_leaves_no_snapshot(isolation: Isolation) -> None:
    """The attack: a snapshot of a guest's memory, saved to a file or opened under another policy."""
    with box(isolation=isolation) as sandbox:
        with sandbox.open(wat(GIVEN)) as session:
            assert session.call("count").value == 1
            for take in (session.snapshot, session.fork):
                with pytest.raises(SnapshotError, match="the guest was given secrets, which a snapshot would hold"):
                    take()
        with sandbox.open(wat(GIVEN), policy=UNNAMED) as session:
            assert session.call("count").value == 0
            session.snapshot()


@pytest.mark.parametrize("session", [False, True], ids=["run", "session"])
def test_code_in_javascript_has_it_in_its_environment(*, session: bool) -> None:
    """Its interpreter is a copy of one that was made under no environment."""
    code = "console.log(std.getenv('API_KEY')); [std.getenv('API_KEY').length, std.getenv('API_KEY')]"
    unnamed = "String(std.getenv('API_KEY'))"
    with JavaScript(NAMED, secrets={"api": Secret(VALUE, env="API_KEY")}) as javascript:
        if session:
            with javascript.session() as opened:
                results = [opened.run(code), opened.run(code)]
            with javascript.session(policy=UNNAMED) as opened:
                without = opened.run(unnamed)
        else:
            results = [javascript.run(code), javascript.run(code, env={"OTHER": "1"})]
            without = javascript.run(unnamed, policy=UNNAMED)

    for result in results:
        assert (result.error, result.value) == (None, [len(VALUE), "[redacted:api]"])
        assert result.stdout == "[redacted:api]\n"
    assert without.value == "undefined"


def test_code_in_javascript_reads_it_from_its_standard_input() -> None:
    code = "const it = std.in.readAsString(); [it.length, it]"
    with JavaScript(NAMED, secrets={"api": Secret(VALUE, stdin=True)}) as javascript:
        result = javascript.run(code)
        with pytest.raises(UsageError, match="the standard input of this code is a secret that its policy names"):
            javascript.run(code, stdin="other")
        unnamed = javascript.run(code, policy=UNNAMED, stdin="other")

    assert (result.error, result.value) == (None, [len(VALUE), "[redacted:api]"])
    assert unnamed.value == [5, "other"]


def test_a_session_of_code_that_has_one_is_not_forked() -> None:
    """The attack: a fork, which holds the secret as a snapshot would."""
    with JavaScript(NAMED, secrets={"api": Secret(VALUE, env="API_KEY")}) as javascript:
        with javascript.session() as session:
            session.run("var one = 1")
            with pytest.raises(SnapshotError, match="the code was given secrets, which a fork would hold"):
                session.fork()
            assert session.run("one").value == 1
        with javascript.session(policy=UNNAMED) as session, session.fork() as fork:
            assert fork.run("2").value == 2


@pytest.mark.parametrize("language", [Python, JavaScript])
def test_a_language_whose_gate_is_open_is_refused(language: type[Python | JavaScript]) -> None:
    """As a sandbox is, before there is an interpreter."""
    with pytest.raises(PolicyError, match=r'gate\.registered is "allow"'):
        language(NAMED.replace(registered="allow"), secrets={"api": Secret(VALUE, env="API_KEY")})


@pytest.mark.slow
def test_code_in_python_reads_it_from_its_standard_input() -> None:
    policy = NAMED.replace(wall_time="5min", idle_time="5min", memory="512MiB")
    code = "import sys; it = sys.stdin.read(); [len(it), it]"
    secrets = {"api": Secret(VALUE, stdin=True)}
    with Python(policy, runtime="cpython-3.12", secrets=secrets) as python:
        result = python.run(code)
        with pytest.raises(UsageError, match="the standard input of this code is a secret that its policy names"):
            python.run(code, stdin=b"other")
        unnamed = python.run(code, policy=UNNAMED.replace(memory="512MiB"), stdin=b"other")
        with python.session() as session:
            turns = [session.run(code), session.run(code)]

    for given in (result, *turns):
        assert (given.error, given.value) == (None, [len(VALUE), "[redacted:api]"])
    assert unnamed.value == [5, "other"]


@pytest.mark.slow
def test_code_has_it_in_its_environment() -> None:
    """As what the policy passes on; also in a session. What it prints and returns of it is redacted."""
    policy = NAMED.replace(wall_time="5min", idle_time="5min", memory="512MiB")
    code = "import os; print(os.environ['API_KEY']); [len(os.environ['API_KEY']), os.environ['API_KEY']]"
    secrets = {"api": Secret(VALUE, env="API_KEY")}
    with Python(policy, runtime="cpython-3.12", secrets=secrets) as python:
        result = python.run(code)
        unnamed = python.run("import os; os.environ.get('API_KEY')", policy=UNNAMED)

    assert result.error is None, result.error.traceback
    assert result.value == [len(VALUE), "[redacted:api]"]
    assert result.stdout == "[redacted:api]\n"
    assert unnamed.value is None


def test_a_gate_that_is_open_gives_none() -> None:
    """The attack: a policy that has guests given secrets, and does not look whether they leave."""
    with pytest.raises(PolicyError, match=r'gate\.registered is "allow"'):
        box(NAMED.replace(registered="allow"))


def test_a_secret_shows_nothing() -> None:
    secret = Secret(VALUE, env="API_KEY")

    assert repr(secret) == str(secret) == "Secret(env='API_KEY')"
    assert repr(Secret(VALUE, stdin=True)) == "Secret(stdin=True)"
    assert copy.copy(secret) is copy.deepcopy(secret) is secret
    assert not hasattr(secret, "__dict__")
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(secret)


@pytest.mark.parametrize(
    "given",
    [
        {"value": "short"},
        {"value": 12345678},
        {"value": "x" * 70_000},
        {"value": "with\0nul-in-it"},
        {"value": b"\xff" * 20},
        {"env": "A=B"},
        {"env": ""},
        {"env": None},
        {"stdin": True},
    ],
    ids=str,
)
def test_what_is_no_secret_is_refused(given: dict[str, Any]) -> None:
    """No message has the value."""
    with pytest.raises(UsageError) as problem:
        Secret(**{"value": VALUE, "env": "API_KEY", **given})

    assert str(given.get("value", VALUE)) not in str(problem.value)


def test_two_are_not_in_one_place() -> None:
    secrets = {name: Secret(VALUE + name, env="API_KEY") for name in ("api", "token")}
    with pytest.raises(UsageError, match="the secret token is in the same variable as another one, API_KEY"):
        box(secrets=secrets)


def test_files_are_those_of_the_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a file that others may read or exchange, or a link that leads elsewhere."""
    path, link = tmp_path / "key", tmp_path / "link"
    path.write_text(f"{VALUE}\n")
    path.chmod(0o600)
    link.symlink_to(path)
    monkeypatch.setenv("KEY_OF_THE_HOST", VALUE)

    assert Secret.from_file(path, env="A").value() == VALUE.encode()
    assert Secret.from_environment("KEY_OF_THE_HOST", env="A").value() == VALUE.encode()
    with pytest.raises(UsageError, match="there is no environment variable NO_KEY"):
        Secret.from_environment("NO_KEY", env="A")
    path.chmod(0o640)
    for wrong in (path, link, tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError):
            Secret.from_file(wrong, env="A")
