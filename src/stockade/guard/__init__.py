"""The guard: the policy as WebAssembly, and the weaver that puts it into a guest's module."""

from stockade.guard._proof import PROOF_VERSION, proof_copy, prove
from stockade.guard._source import Guard, Layout, StateFormat, guard
from stockade.guard._state import (
    HOST_CALLS,
    PROGRAM_NAME,
    STDIN_PIECE_BYTES,
    Counters,
    GuardEvent,
    GuardViolation,
    State,
    StateImage,
    StateReading,
    Wait,
    place_inputs,
)
from stockade.guard._weave import ELEMENT_BYTES, Woven, check_imports, weave

__all__ = [
    "ELEMENT_BYTES",
    "HOST_CALLS",
    "PROGRAM_NAME",
    "PROOF_VERSION",
    "STDIN_PIECE_BYTES",
    "Counters",
    "Guard",
    "GuardEvent",
    "GuardViolation",
    "Layout",
    "State",
    "StateFormat",
    "StateImage",
    "StateReading",
    "Wait",
    "Woven",
    "check_imports",
    "guard",
    "place_inputs",
    "proof_copy",
    "prove",
    "weave",
]
