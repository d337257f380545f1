"""Which environment variables a guest sees."""

from __future__ import annotations

import pytest

import stockade
from stockade import Environment, Policy, PolicyError
from tests._small_guests import ENVIRONMENT
from tests.conftest import wat

pytestmark = pytest.mark.usefixtures("everywhere")

HOST = {"HOME": "/home/me", "LANG": "C", "Lang": "x", "DB_SECRET": "s", "LD_PRELOAD": "l", "AWS_REGION": "r"}


@pytest.mark.parametrize(
    ("environment", "seen"),
    [
        (Environment(), {}),
        (Environment(set={"A": "1"}), {"A": "1"}),
        (Environment(mode="allow", names=("LANG", "MISSING")), {"LANG": "C"}),
        (Environment(mode="allow", names=("DB_SECRET",)), {"DB_SECRET": "s"}),
        (Environment(mode="deny", names=("HOME",)), {"LANG": "C", "Lang": "x"}),
        (Environment(mode="full"), {"HOME": "/home/me", "LANG": "C", "Lang": "x"}),
        (Environment(mode="full", set={"LANG": "de"}), {"HOME": "/home/me", "LANG": "de", "Lang": "x"}),
    ],
)
def test_what_the_policy_passes_on(environment: Environment, seen: dict[str, str]) -> None:
    """Names are matched exactly; secrets pass only where each is named."""
    assert environment.of(HOST) == seen


def test_guest_sees_what_the_policy_passes_on_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: a secret of the host is read from the environment."""
    monkeypatch.setattr("os.environ", dict(HOST))
    full = stockade.Sandbox(Policy(environment=Environment(mode="full"))).run(wat(ENVIRONMENT)).stdout
    assert b"HOME=/home/me" in full
    assert b"SECRET" not in full
    assert stockade.Sandbox(Policy()).run(wat(ENVIRONMENT)).stdout == b""


def test_variables_of_the_caller_come_on_top(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given to a run outweighs what the policy passes on."""
    monkeypatch.setattr("os.environ", HOST)
    policy = Policy(environment=Environment(mode="allow", names=("LANG", "HOME")))
    report = stockade.Sandbox(policy).run(wat(ENVIRONMENT), env={"LANG": "fr"})
    assert sorted(report.stdout.decode().split("\0")) == ["", "HOME=/home/me", "LANG=fr"]


def test_environment_is_read_from_files() -> None:
    """The same tree in TOML."""
    text = '[environment]\nmode = "allow"\nnames = ["LANG"]\nset = { A = "1" }'
    assert Policy.loads(text).environment == Environment(mode="allow", names=("LANG",), set={"A": "1"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'mode = "all"',
            'environment.mode is \'all\': it must be "none", "allow", "deny" or "full"; did you mean "allow"?',
        ),
        ('names = "LANG"', "environment.names is 'LANG': it must be a list of names of variables"),
        (
            'mode = "allow"\nnames = ["A=B"]',
            "environment.names[0] is 'A=B': it must be the name of a variable, such as \"LANG\"",
        ),
        ('names = ["A"]', 'environment.names has no effect where the mode is "none": leave it out'),
        ("set = 3", "environment.set is 3: it must be a table of variables"),
        ("set = { A = 3 }", "environment.set.A is 3: it must be text"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    """Nothing is skipped silently."""
    with pytest.raises(PolicyError) as caught:
        Policy.loads(f"[environment]\n{text}")
    assert str(caught.value) == message
