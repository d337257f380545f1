"""The guard: the policy as WebAssembly, and the weaver that puts it into a guest's module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade._later import found_later
from stockade.guard._imports import check_imports
from stockade.guard._inputs import PROGRAM_NAME, STDIN_PIECE_BYTES, StateImage, place_inputs
from stockade.guard._mailbox import MOST_VALUES, Mailbox, mailbox_words, values_format
from stockade.guard._policy_block import heap_bytes, memories_bytes, policy_block, rates_of
from stockade.guard._records import HOST_CALLS, GuardEvent, GuardViolation
from stockade.guard._source import Guard, Layout, StateFormat, guard
from stockade.guard._state import Counters, Glance, State, StateReading, Wait, fields_kept, state_format, stop_reasons
from stockade.guard._woven import ELEMENT_BYTES, PROOF_VERSION, WEAVER_VERSION, Exposed, Woven

if TYPE_CHECKING:
    from stockade.guard._exposed import types_of_globals
    from stockade.guard._proof import proof_copy, prove
    from stockade.guard._trace import (
        MOST_STRING_BYTES,
        TraceEntry,
        TraceRing,
        entries_in,
        lost_entries,
        take_entries,
        take_slots,
        traced_numbers,
    )
    from stockade.guard._weave import weave
else:
    __getattr__ = found_later(
        __name__,
        {
            "_exposed": ("types_of_globals",),
            "_proof": ("proof_copy", "prove"),
            "_trace": (
                "MOST_STRING_BYTES",
                "TraceEntry",
                "TraceRing",
                "entries_in",
                "lost_entries",
                "take_entries",
                "take_slots",
                "traced_numbers",
            ),
            "_weave": ("weave",),
        },
    )

__all__ = [
    "ELEMENT_BYTES",
    "HOST_CALLS",
    "MOST_STRING_BYTES",
    "MOST_VALUES",
    "PROGRAM_NAME",
    "PROOF_VERSION",
    "STDIN_PIECE_BYTES",
    "WEAVER_VERSION",
    "Counters",
    "Exposed",
    "Glance",
    "Guard",
    "GuardEvent",
    "GuardViolation",
    "Layout",
    "Mailbox",
    "State",
    "StateFormat",
    "StateImage",
    "StateReading",
    "TraceEntry",
    "TraceRing",
    "Wait",
    "Woven",
    "check_imports",
    "entries_in",
    "fields_kept",
    "guard",
    "heap_bytes",
    "lost_entries",
    "mailbox_words",
    "memories_bytes",
    "place_inputs",
    "policy_block",
    "proof_copy",
    "prove",
    "rates_of",
    "state_format",
    "stop_reasons",
    "take_entries",
    "take_slots",
    "traced_numbers",
    "types_of_globals",
    "values_format",
    "weave",
]
