"""The worst that a module or a text can do to the process that it is compiled in, because it counts as cheap there."""

from __future__ import annotations

import os
import resource
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

from rich.table import Table

from benchmarks._guests import HELLO
from benchmarks._hostile import SHAPES, build
from benchmarks._measure import Promise
from stockade import Module, Policy, Sandbox
from stockade.engine import Engine, EngineConfig, assemble, compile_to_bytes
from stockade.errors import InvalidModule, StockadeError
from stockade.modules._module import _TEXT_BYTES_HERE
from stockade.policy import Features, ModuleLimits
from stockade.wasm import compile_cost, parse
from stockade.worker._prepare import CHEAP_COST, prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.console import Console

    from benchmarks._hostile import Shape

__all__ = ["aside", "worst"]

_MOST_SECONDS = 0.3
_MOST_MEGABYTES = 200.0
_MOST_MORE_MILLISECONDS = 5.0
_WIDTHS = (1, 4, 32, 256, 1000)
_SIZES = (1, 10, 100, 1000)
_SHOWN = 12
_NUMBERS = struct.Struct("<dd")


class _Taken(NamedTuple):
    """What something took of a process: processor time, and memory at its peak; and why it was refused, if it was."""

    seconds: float
    megabytes: float
    refusal: str

    @property
    def share(self) -> float:
        """Of what it may take."""
        return max(self.seconds / _MOST_SECONDS, self.megabytes / _MOST_MEGABYTES)


def worst(console: Console) -> list[Promise]:
    """The worst modules that are compiled in the host's process, and texts that are translated there."""
    # Everything is loaded beforehand, as in a host that has run something.
    _prepared(build(SHAPES["nothing"](1, 1), 1))
    found = [(taken, name) for name, make in SHAPES.items() for taken in (_worst_of(name, make),) if taken]
    table = Table(title=f"the worst modules of a cost up to {CHEAP_COST:,}")
    for heading in ("", "seconds", "MB"):
        table.add_column(heading, justify="right")
    for taken, name in sorted(found, key=lambda row: row[0].share, reverse=True)[:_SHOWN]:
        table.add_row(name, f"{taken.seconds:.3f}", f"{taken.megabytes:.1f}")
    console.print(table)
    texts = [_alone(lambda text=text: assemble(text)) for text in _texts()]
    return [
        Promise("worst module compiled in the host: seconds", max(taken.seconds for taken, _ in found), _MOST_SECONDS),
        Promise("worst module compiled in the host: MB", max(taken.megabytes for taken, _ in found), _MOST_MEGABYTES),
        Promise("worst text translated in the host: seconds", max(taken.seconds for taken in texts), _MOST_SECONDS),
        Promise("worst text translated in the host: MB", max(taken.megabytes for taken in texts), _MOST_MEGABYTES),
    ]


def _worst_of(name: str, make: Callable[[int, int], Shape]) -> _Taken | None:
    """The worst of a shape among all sizes, with as many functions of it as are still cheap."""
    seen: set[bytes] = set()
    taken: list[_Taken] = []
    for wide in _WIDTHS:
        top = _most(lambda size, wide=wide: _is_cheap(make(size, wide), 1))
        for size in sorted({*(size for size in _SIZES if size < top), top // 2, top} - {0}):
            shape = make(size, wide)
            module = build(shape, _most(lambda copies, shape=shape: _is_cheap(shape, copies)))
            if module in seen:
                continue
            seen.add(module)
            taken.append(_alone(lambda module=module: _prepared(module)))
    # Some sizes are refused, which takes its time as well; but a shape that always is shows nothing.
    refusals = {used.refusal for used in taken}
    assert not taken or "" in refusals, f"{name}: {refusals.pop()}"
    return max(taken, key=lambda used: used.share) if taken else None


def _is_cheap(shape: Shape, copies: int) -> bool:
    try:
        return compile_cost(parse(build(shape, copies)), CHEAP_COST) <= CHEAP_COST
    except InvalidModule:
        # More of something than the reader takes: never compiled anywhere.
        return False


def _most(good: Callable[[int], bool]) -> int:
    """The greatest number that is good, where all that are smaller are."""
    low, high = 0, 1
    while good(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


# With all that makes the compiler do more.
_CONFIG = EngineConfig(fuel=True, stack_bytes=512 << 10, canonical_nans=True, pooled=False)
_FEATURES = Features(simd=True, relaxed_simd=True, tail_call=True, multi_memory=True)


def _prepared(module: bytes) -> None:
    woven, _ = prepare("worst", parse(module), _CONFIG, _FEATURES, ModuleLimits(), lambda _: None)
    compile_to_bytes(Engine.shared(_CONFIG), woven.wasm)


def _alone(job: Callable[[], object]) -> _Taken:
    """Does something in a process forked for it: what it takes is its own, and does not stay."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            before, begun = _peak(), time.process_time()
            refusal = ""
            try:
                job()
            except StockadeError as problem:
                refusal = str(problem)
            os.write(write, _NUMBERS.pack(time.process_time() - begun, _peak() - before) + refusal.encode()[:500])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        told = answer.read()
    os.waitpid(child, 0)
    assert told, "it ended without a word"
    return _Taken(*_NUMBERS.unpack_from(told), told[_NUMBERS.size :].decode(errors="replace"))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _texts() -> Iterable[str]:
    """Texts of the greatest size that is translated in the host's process."""
    for piece in ("(func)", "(type(func))", "(rec)", "(memory 1)", "(func(param i32))", '(func(export""))'):
        yield "(module" + piece * ((_TEXT_BYTES_HERE - 8) // len(piece)) + ")"
    for piece in ("nop ", "i64.const 0 drop ", "(drop(i32.const 1))", "(block)", "(local i32)"):
        yield "(module(func " + piece * ((_TEXT_BYTES_HERE - 20) // len(piece)) + "))"
    # Each branch is looked up among all the blocks around it.
    for share in (0.3, 0.5, 0.7):
        blocks = int(_TEXT_BYTES_HERE * share) // 9
        branches = _TEXT_BYTES_HERE - blocks * 9 - 40
        yield "(module(func block $z " + "block $a " * blocks + "br $z " * (branches // 6) + "))"
        yield "(module(func block $z " + "block $a " * blocks + "br_table " + "$z " * (branches // 3 - 4) + "))"


def aside(_: Console) -> list[Promise]:
    """Compiling a small module in the warm compiling process, over compiling it here."""
    boxes = {where: Sandbox(Policy().replace(compile_process=where)) for where in ("always", "never")}
    times: dict[str, list[float]] = {where: [] for where in boxes}
    kept = os.environ.get("STOCKADE_CACHE")
    os.environ["STOCKADE_CACHE"] = "off"
    try:
        for number in range(100):
            for where, box in boxes.items():
                module = Module.load(HELLO.replace("hello", f"{where[0]}{number:04}").encode(), text=True)
                begun = time.perf_counter()
                box.prepare(module)
                times[where].append(time.perf_counter() - begun)
    finally:
        os.environ.pop("STOCKADE_CACHE")
        if kept is not None:
            os.environ["STOCKADE_CACHE"] = kept
    # The least: whatever else the machine does hits two processes harder than one.
    always, never = (min(times[where]) for where in ("always", "never"))
    return [
        Promise("compiling a small module aside: ms more than here", (always - never) * 1e3, _MOST_MORE_MILLISECONDS)
    ]
