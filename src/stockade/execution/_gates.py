"""What leaves runs under one policy is looked at, where there is something to be looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stockade.execution._streams import Streams
    from stockade.gate import Gate, SecretFinder
    from stockade.policy import Policy
    from stockade.runner import RunControl

__all__ = ["RunGates", "gates_of"]


class RunGates:
    """Has what leaves runs looked at.

    Args:
        gate: What is looked for.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def begin(self, control: RunControl, streams: Streams | None) -> None:
        """Has what leaves a run looked at.

        Args:
            control: The control of the run.
            streams: What its output is passed on by; None where nobody listens.
        """
        from stockade.gate import GateRun

        control.gate = GateRun(self._gate, frames=control.frames)
        if streams is not None:
            streams.gate = control.gate
            control.gate.joins = streams.listening_to_both


def gates_of(policy: Policy, secrets: SecretFinder | None) -> RunGates | None:
    """Returns what looks at what leaves runs; None where nothing is looked for.

    Args:
        policy: The policy.
        secrets: What looks for secrets that were registered; None where none were.
    """
    if secrets is None and not policy.gate.looks:
        return None
    # Most policies look for nothing, and load nothing for it.
    from stockade.gate import Gate

    gate = Gate.of(policy.gate, secrets)
    return None if gate is None else RunGates(gate)
