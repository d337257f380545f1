"""A policy demands where its runs happen; whoever calls can ask for more, and never for less. Holds P-ISO-11."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stockade import IsolationError, Policy, Sandbox
from stockade.execution import NO_INPUTS, PolicyContext
from stockade.host import HostFunctions
from stockade.runner import RunControl, run_blocking
from stockade.sandbox._runs import run_steps
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from stockade.policy import Isolation

APART = Policy(name="apart", isolation="process")


def walls(box: Sandbox, policy: Policy | None = None) -> tuple[str, ...]:
    """Runs a guest as the sandbox does; the walls that stood around it: none where it ran in this process."""
    control = RunControl()
    context = box._contexts.under(policy)
    report = run_blocking(run_steps(context, control, wat(HELLO), NO_INPUTS), control)
    assert report.ok
    return control.walls


def test_runs_happen_where_the_policy_demands() -> None:
    assert "seccomp" in walls(Sandbox(APART))
    assert "seccomp" in walls(Sandbox(APART, isolation="process"))
    assert not walls(Sandbox(Policy()))


def test_who_calls_can_ask_for_more() -> None:
    """The twin of the next."""
    assert "seccomp" in walls(Sandbox(Policy(), isolation="process"))


def test_who_calls_cannot_ask_for_less() -> None:
    """Attack: a caller, or its configuration, that takes away the second wall which an operator demands."""
    with pytest.raises(IsolationError) as caught:
        Sandbox(APART, isolation="inprocess")
    assert str(caught.value) == (
        'the policy \'apart\' demands isolation "process", and "inprocess" is weaker: leave isolation out, or give '
        '"process"'
    )
    with pytest.raises(IsolationError, match="is weaker"):
        PolicyContext(APART, HostFunctions())


def test_the_policy_of_a_run_can_demand_more() -> None:
    """It narrows the sandbox's: what either demands is done."""
    box = Sandbox(Policy())
    assert "seccomp" in walls(box, APART)
    assert not walls(box)
    assert "seccomp" in walls(Sandbox(APART), Policy())


@pytest.mark.parametrize("isolation", [None, "process"])
def test_reports_tell_the_policy_that_demands(isolation: Isolation | None) -> None:
    """A worker is told nothing of it, and the report tells it all the same."""
    report = Sandbox(APART, isolation=isolation).run(wat(HELLO))
    assert report.policy is not None
    assert report.policy.digest == APART.digest


def test_a_document_says_it() -> None:
    assert Policy.loads('isolation = "process"').isolation == "process"
    assert Policy.loads(APART.to_toml()) == APART
    assert Policy(name="apart").digest != APART.digest
