"""Takes out what reads long types, and shows what finds it: `python -m tests.fuzz.undone MINUTES [SEED]`.

The engine takes a reference type in two encodings, of one byte and of two. A reader that knows the short one only may
lose step, and miss a call of native WASI. Here ours are made to be such readers, in one place at a time. Said is how
long it took the fuzzer to find a module that goes wrong, and to find one that reaches what is hidden though no reader
noticed; of these, each must be refused by the proof. (Behind the types of `select` and of blocks no step is lost: the
second byte is an instruction without operands.)
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import stockade
from stockade.engine import validate_with
from stockade.guard import _sections, guard, prove, weave
from stockade.wasm import _scan, _types, parse
from tests._decoder import Code, decode
from tests.fuzz._differential import PROPOSALS, check
from tests.fuzz._generator import Choices, generate
from tests.guard._checks import check_woven
from tests.guard._modules import FUNC

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stockade.guard import Woven
    from stockade.wasm import Reader

__all__ = ["LIVE", "PLACES", "fate", "losing_step"]

LIVE: Final = "reaches what is hidden"
"""What is told of a woven module whose code, where it can run, calls or refers to what it must not."""

_GOES_ON: Final = frozenset(
    {
        "unreachable",
        "br",
        "br_table",
        "return",
        "return_call",
        "return_call_indirect",
        "return_call_ref",
        "throw",
        "throw_ref",
    }
)
"""Instructions behind which nothing runs up to the end of their block."""


def _short(reader: Reader) -> str:
    """Reads a value type in the only encoding that it knows."""
    return _types._SHORT.get(reader.byte(), "i32")


PLACES: Final = {
    "locals": (_scan, "guest_value_type"),
    "segments and globals": (_sections, "guest_value_type"),
}
"""Where a reader of ours can lose step: the module, and the name in it of what reads a type."""


@contextmanager
def losing_step(place: str) -> Iterator[None]:
    """Has our reader know one encoding of each type in one place."""
    module, name = PLACES[place]
    with patch.object(module, name, _short):
        yield


def fate(data: bytes) -> tuple[str, bool]:
    """What becomes of a module that is valid by its making, and whether the proof refuses it.

    Told is `refused` where our readers or the engine notice by themselves; LIVE where the guest reaches what it must
    not; `differs` where it does not do what it did, `right` else.
    """
    try:
        module = parse(data)
        woven = weave(module, guard())
        validate_with(woven.wasm, PROPOSALS)
    except stockade.InvalidModule:
        return "refused", False
    try:
        prove(module, woven)
        proven = True
    except stockade.InvalidModule:
        proven = False
    if _reaches(data, woven):
        return LIVE, not proven
    try:
        check_woven(data, woven)
    except AssertionError:
        return "differs", not proven
    return "right", not proven


def _reaches(data: bytes, woven: Woven) -> bool:
    """Whether the guest's code names a hidden function, or anything of the guard's, where it can run."""
    before, after = decode(data), decode(woven.wasm)
    imported, functions = before.imported_functions, len(before.functions)
    beyond = imported + functions
    hidden = {*range(imported), *range(beyond, beyond + len(woven.guard_functions))} - {*woven.entries}
    outside = [*(item for segment in after.elements for item in segment.items), *(value for *_, value in after.globals)]
    outside += [value for *_, value in after.tables]
    named = {index for _, kind, index in after.exports if kind == FUNC}
    named |= {args[0] for expression in outside for op, args in expression if op == "ref.func"}
    for body in after.code[:functions]:
        named |= {args[0] for op, args in _alive(body) if op in ("call", "return_call", "ref.func")}
    return not hidden.isdisjoint(named)


def _alive(body: Code) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The instructions of a body, but for those behind a branch that is always taken."""
    dead = 0
    for instr in body.instrs:
        if dead:
            dead += (instr.op in ("block", "loop", "if", "try_table")) - (instr.op == "end")
            if dead == 1 and instr.op == "else":
                dead = 0
            continue
        yield instr.op, instr.args
        dead = int(instr.op in _GOES_ON)


def _module(seed: int) -> bytes:
    return generate(Choices(random.Random(seed).randrange))


def _first(place: str, seed: int, seconds: float) -> str:
    """How long it takes the fuzzer to find that something is wrong."""
    begun = time.monotonic()
    count = 0
    while time.monotonic() - begun < seconds:
        with losing_step(place), patch("tests.fuzz._differential.prove", lambda original, woven: None):
            try:
                check(_module(seed + count))
            except (AssertionError, stockade.InvalidModule) as problem:
                return f"after {time.monotonic() - begun:.2f} s and {count:,} modules ({type(problem).__name__})"
        count += 1
    return f"not in {count:,} modules"


def main(minutes: float, seed: int) -> int:
    """Tells what is found of each place in its share of the time; returns 1 where the proof was wrong."""
    passed = 0
    seconds = minutes * 60 / len(PLACES)
    for place in PLACES:
        print(f"{place}: the fuzzer, without the proof, finds something {_first(place, seed, seconds)}")
        begun = time.monotonic()
        told: Counter[tuple[str, bool]] = Counter()
        found = ""
        for number in range(1 << 60):
            if (taken := time.monotonic() - begun) > seconds:
                break
            data = _module(seed + number)
            with losing_step(place):
                one = fate(data)
            told[one] += 1
            found = found or (f", the first after {taken:.1f} s and {number:,} modules" * (one[0] == LIVE))
            if one == (LIVE, False):
                print(f"  the proof lets the module of seed {seed + number} through")
        refused, through = told[LIVE, True], told[LIVE, False]
        passed += through + told["right", True]
        print(f"  {sum(told.values()):,} modules, {told['refused', False]:,} of them refused by readers and engine")
        print(f"  {told['right', True]:,} are as they should be, and refused by the proof")
        print(f"  {refused + through:,} reach what is hidden{found}; of these the proof refuses {refused:,}")
        differ = told["differs", True] + told["differs", False]
        print(f"  {differ:,} differ, and reach nothing (growth is for the limiter)")
    return 1 if passed else 0


if __name__ == "__main__":
    given = [float(argument) for argument in sys.argv[1:]]
    sys.exit(main(given[0] if given else 1, int(given[1]) if len(given) > 1 else 1))
