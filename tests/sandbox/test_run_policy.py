"""A policy for a single run: what both it and the sandbox's own permit.

Holds P-POLICY-3.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from stockade import Environment, Mount, Outcome, Policy, PolicyError, Sandbox, UsageError
from tests.conftest import HELLO, wat

pytestmark = pytest.mark.usefixtures("everywhere")


SPIN = '(module (func (export "_start") (loop br 0)) (func (export "spin") (loop br 0)))'
ADD = '(module (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))'


def test_stricter_policy_of_a_run_is_enforced() -> None:
    """The attack: the policy of the run is accepted and passed over."""
    sandbox = Sandbox(Policy().replace(fuel=1_000_000))

    own = sandbox.run(wat(SPIN))
    stricter = sandbox.run(wat(SPIN), policy=Policy(name="tight").replace(fuel=1_000))

    assert (own.outcome, own.usage.fuel) == (Outcome.FUEL, 1_000_000)
    assert (stricter.outcome, stricter.usage.fuel) == (Outcome.FUEL, 1_000)
    assert stricter.policy.name == "default & tight"


def test_laxer_policy_of_a_run_changes_nothing() -> None:
    """The attack: whoever may name the run's policy gets more than the sandbox gives."""
    sandbox = Sandbox(Policy().replace(fuel=1_000))

    report = sandbox.run(wat(SPIN), policy="permissive")

    assert (report.outcome, report.usage.fuel) == (Outcome.FUEL, 1_000)


def test_every_way_to_run_takes_a_policy() -> None:
    """One way to say it."""
    tight = Policy().replace(fuel=1_000)
    with Sandbox(Policy().replace(fuel=1_000_000)) as sandbox:
        reports = [
            sandbox.call(wat(SPIN), "spin", policy=tight),
            asyncio.run(sandbox.run_async(wat(SPIN), policy=tight)),
            asyncio.run(sandbox.call_async(wat(SPIN), "spin", policy=tight)),
        ]
        with sandbox.open(wat(SPIN), policy=tight) as session:
            reports.append(session.call("spin"))

    assert [(report.outcome, report.usage.fuel) for report in reports] == [(Outcome.FUEL, 1_000)] * 4


def test_mounts_of_a_run_are_those_of_both(tmp_path: Path) -> None:
    """The attack: a run brings a mount of its own, or makes a read-only one writable."""
    host = str(tmp_path)
    sandbox = Sandbox(Policy().replace(mounts=[Mount(host, "/data", "ro")]))
    wider = Policy().replace(mounts=[Mount(host, "/data", "rw"), Mount("/etc", "/etc")])

    assert sandbox.policy.narrow(wider).filesystem.mounts == (Mount(host, "/data", "ro"),)
    assert sandbox.run(wat(HELLO), policy=wider).ok


def test_presets_can_be_named() -> None:
    """And one that there is not is refused."""
    sandbox = Sandbox()

    assert sandbox.run(wat(HELLO), policy="strict").policy.name == "default & strict"
    with pytest.raises(PolicyError) as caught:
        sandbox.run(wat(HELLO), policy="strct")
    assert str(caught.value).startswith("there is no preset 'strct'")


def test_closed_sandbox_runs_nothing_under_any_policy() -> None:
    """Closed sandbox runs nothing under any policy."""
    sandbox = Sandbox()
    sandbox.run(wat(HELLO), policy="strict")
    sandbox.close()

    for policy in (None, "strict"):
        with pytest.raises(UsageError) as caught:
            sandbox.run(wat(HELLO), policy=policy)
        assert str(caught.value) == "the sandbox is closed: make a new one"


def test_folders_stay_open_for_a_session_when_the_sandbox_is_closed(tmp_path: Path) -> None:
    """The attack: a sandbox is closed under a run, and the number of its folder goes to another one."""
    (tmp_path / "data").mkdir()
    sandbox = Sandbox(Policy().replace(mounts=[Mount(str(tmp_path / "data"), "/data")]))
    session = sandbox.open(wat(ADD))
    before = _open_folders(tmp_path)
    sandbox.close()

    assert before == _open_folders(tmp_path) == [str(tmp_path / "data")]
    assert session.call("add", 1, 2).value == 3
    session.close()
    del session, sandbox
    assert _open_folders(tmp_path) == []


def _open_folders(below: Path) -> list[str]:
    links = {str(link.resolve()) for link in Path("/proc/self/fd").iterdir() if link.exists()}
    return [link for link in sorted(links) if link.startswith(str(below))]


def test_many_policies_at_once() -> None:
    """From several threads, more of them than are kept ready."""
    sandbox = Sandbox()
    policies = [Policy(name=f"p{number}").replace(fuel=1_000 + number) for number in range(40)]
    fuel: dict[int, int | None] = {}

    def work(start: int) -> None:
        for number in range(start, 40, 4):
            fuel[number] = sandbox.run(wat(SPIN), policy=policies[number]).usage.fuel

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert fuel == {number: 1_000 + number for number in range(40)}


def test_policy_that_was_handed_over_cannot_be_changed_behind_the_sandbox() -> None:
    """The attack: a dict in a policy is changed after it was checked."""
    given = {"LANG": "C"}
    environment = Environment(set=given)  # type: ignore[arg-type]
    given["SECRET"] = "x"

    assert dict(environment.set) == {"LANG": "C"}
    with pytest.raises(TypeError, match="a policy cannot be changed"):
        environment.set["SECRET"] = "x"
