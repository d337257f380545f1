"""What is done with guests before their run: nothing of them runs in it, and nothing of it is left."""

from __future__ import annotations

import msgspec
import pytest

from stockade import Policy, Report
from stockade.execution import NO_INPUTS, Call, PolicyContext, hold_still, make_stack
from stockade.host import HostFunctions
from stockade.runner import RunControl
from tests.conftest import HELLO, wat

TRAPS = '(module (memory (export "memory") 1) (func (export "_start") unreachable))'


def run(context: PolicyContext, module: str, *, prepared: bool = False, still: bool = False) -> Report:
    """Runs a command, with what may be done before it done or not."""
    loaded = wat(module)
    context.plan(loaded)
    guest = context.guest(loaded, RunControl(), NO_INPUTS)
    try:
        if prepared:
            make_stack(guest)
            assert not guest.ended
        if still:
            hold_still(guest)
        report = guest.attempt(Call(loaded.command_entry), command=True)
        assert report is not None
        return report
    finally:
        guest.close()


@pytest.fixture
def context() -> PolicyContext:
    return PolicyContext(Policy().replace(fuel=10**6), HostFunctions())


def steady(report: Report) -> object:
    used = {name: value for name, value in msgspec.structs.asdict(report.usage).items() if "seconds" not in name}
    return report.outcome, report.stdout, used, report.fuel and report.fuel.consumed, report.trap


@pytest.mark.parametrize("module", [HELLO, TRAPS])
def test_a_stack_that_was_made_before_changes_nothing(context: PolicyContext, module: str) -> None:
    assert steady(run(context, module, prepared=True)) == steady(run(context, module))


@pytest.mark.parametrize("module", [HELLO, TRAPS])
def test_of_what_is_held_still_nothing_runs(context: PolicyContext, module: str) -> None:
    """Attack: a guest that runs before anybody has asked for it: neither what it writes nor its trap is seen."""
    report = run(context, module, still=True)
    assert report.ok
    assert report.stdout == b""
    assert report.fuel is not None
    # What the engine counts for making the instance.
    assert report.fuel.consumed <= 1
    assert report.usage.calls == {}
