"""What happens to a module before it runs: reading and weaving over compiling, and a second process over none."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.conftest import program_path

from stockade.engine import Engine, EngineConfig, compile_to_bytes
from stockade.guard import guard, prove, weave
from stockade.wasm import ParsedModule, SectionId, code_figures, outline_figures, parse, scan, uleb

__all__ = ["Share", "cached_start_milliseconds", "shares_of_compiling"]

_LARGE_BYTES = 90_000_000
_SECOND_PROCESS = """
import sys, time
from stockade import Sandbox
imported = time.perf_counter()
with Sandbox() as sandbox:
    module = sandbox.prepare(sys.argv[1])
    ready = time.perf_counter()
    report = sandbox.run(module, ["-c", "print(1)"])
assert report.stdout == b"1\\n", report
print(ready - imported, report.timings.cache_hit)
"""


def enlarged(wasm: bytes, least_bytes: int) -> bytes:
    """Returns a module with all its own functions several times over, until it is large enough."""
    module = parse(wasm)
    times = 1
    code = module.section(SectionId.CODE)
    assert code is not None
    kept = sum(section.end - section.start for section in module.sections if section.id != SectionId.CUSTOM)
    while kept + (times - 1) * (code.end - code.start) < least_bytes:
        times += 1
    out = [wasm[:8]]
    for section in module.sections:
        content = wasm[section.start : section.end]
        if section.id in (SectionId.FUNCTION, SectionId.CODE):
            content = _repeated(content, times)
        if section.id != SectionId.CUSTOM:
            out += [bytes([section.id]), uleb(len(content)), content]
    return b"".join(out)


def _repeated(vector: bytes, times: int) -> bytes:
    count = shift = position = 0
    while True:
        byte = vector[position]
        count |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return uleb(count * times) + vector[position:] * times


class Share(NamedTuple):
    """What of the time of compiling something takes.

    Attributes:
        what: What was measured.
        share: Its time over that of compiling.
        bound: What it may be at most.
    """

    what: str
    share: float
    bound: float


class _Taken(NamedTuple):
    """Seconds that it takes to make a module ready to be compiled, of these, those of the proof; and processor time."""

    all: float
    proof: float
    processor: float


def shares_of_compiling(program: str, *, large: bool = False) -> tuple[list[Share], str]:
    """Measures reading, checking figures, weaving and proving, over compiling the woven module.

    Args:
        program: A real program.
        large: Whether it is enlarged to more than 90 MB.

    Returns:
        The shares, and the figures behind them.
    """
    wasm = program_path(program).read_bytes()
    if large:
        wasm = enlarged(wasm, _LARGE_BYTES)
    guard()
    best = min(_prepare(wasm) for _ in range(3))
    woven = weave(wasm, guard()).wasm
    engine = Engine.shared(EngineConfig(fuel=True, stack_bytes=512 << 10, parallel=True, pooled=False))
    begun, used = time.perf_counter(), time.process_time()
    compile_to_bytes(engine, woven)
    compiling, used = time.perf_counter() - begun, time.process_time() - used
    name = f"{program}, {len(wasm) / 1e6:,.0f} MB"
    told = f"{name}: made ready in {best.all:.2f} s, {best.proof:.2f} s of it the proof; compiled in {compiling:.1f} s"
    # On a busy machine this is what can be compared: the compiler's is that of all its threads.
    told += f" (processor time: {best.processor:.2f} s and {used:.1f} s)"
    return [
        Share(f"{name}: reading, weaving and proving over compiling", best.all / compiling, 0.08),
        Share(f"{name}: the proof over compiling", best.proof / compiling, 0.03),
    ], told


def _prepare(wasm: bytes) -> _Taken:
    begun, used = time.perf_counter(), time.process_time()
    module: ParsedModule = parse(wasm)
    found = scan(module)
    outline_figures(module)
    code_figures(module, found)
    woven = weave(module, guard(), found)
    before = time.perf_counter()
    prove(module, woven)
    now = time.perf_counter()
    return _Taken(now - begun, now - before, time.process_time() - used)


def cached_start_milliseconds(program: str) -> float:
    """Measures a second process that finds the machine code on disk: until the program is ready to run."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "STOCKADE_CACHE": str(Path(folder) / "cache"),
            "STOCKADE_STATE": str(Path(folder) / "state"),
        }
        taken = []
        for number in range(6):
            done = subprocess.run(
                [sys.executable, "-c", _SECOND_PROCESS, str(program_path(program))],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            seconds, hit = done.stdout.split()
            assert (hit == "True") == (number > 0), done.stdout
            if number:
                taken.append(float(seconds) * 1e3)
    return sorted(taken)[len(taken) // 2]
