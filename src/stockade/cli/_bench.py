"""`stockade bench`: what a run costs on this machine, from end to end."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import click

from stockade.cli._complete import ModuleFile
from stockade.cli._policy_option import policy_option
from stockade.cli._streams import say_document
from stockade.cli._terminal import progress, show_table
from stockade.compilation import forget_programs
from stockade.engine import wasmtime_version
from stockade.modules import Module
from stockade.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.policy import Policy

__all__ = ["bench"]

_HELLO = rb"""
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\08\00\00\00\0c\00\00\00hello world\n")
  (func (export "_start")
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))))
"""
_TARGETS_MS = {"cold": 5.0, "hot": 1.0}
"""What a median of the hello world may be at most: the figures that a sandbox of this kind is usually held to."""

_SECONDS = 20.0
"""How long all runs together should take."""

_LEAST_SECONDS = 1.0
"""What is left for the other jobs after a first run that took all of it."""

_JOBS = 4
_JOBS_LEFT = {"cold": 3, "cached": 2, "hot": 1}
"""How many jobs share the time that is left, from each on."""

_MOST_COLD = 50
_MOST_HOT = 2_000
"""How many runs are enough."""

_TELL_SECONDS = 0.1


class _Figures(NamedTuple):
    """Times of one job, in milliseconds."""

    job: str
    runs: int
    min: float
    p50: float
    p95: float
    p99: float
    mean: float
    max: float

    @classmethod
    def of(cls, job: str, times: list[float]) -> _Figures:
        ordered = sorted(times)

        def at(share: float) -> float:
            return ordered[min(len(ordered) - 1, int(len(ordered) * share))]

        mean = sum(ordered) / len(ordered)
        return cls(job, len(ordered), ordered[0], at(0.5), at(0.95), at(0.99), mean, ordered[-1])


@click.command(short_help="Measure how long runs take on this machine.")
@click.argument("path", metavar="[MODULE]", required=False, type=ModuleFile())
@policy_option
@click.option("--cold", type=click.IntRange(1, 10_000), help="Number of cold and of cached runs.")
@click.option("--hot", type=click.IntRange(1, 1_000_000), help="Number of hot runs.")
@click.option("--json", "wants_json", is_flag=True, help="Print JSON.")
def bench(path: str | None, base: Policy, cold: int | None, hot: int | None, wants_json: bool) -> int:
    """Measure how long runs of MODULE take on this machine, or of a built-in hello world.

    first: load the library, build the engine, compile and run, once. cold: load, compile and run with empty caches.
    cached: the same with the machine code on disk. hot: run a module that is in memory. Each time is that of a whole
    run, report included. Without --cold and --hot, the runs are as many as fit into about 20 seconds.

    Exit status: 0; 1 if a median of the hello world is above 5 ms (cold) or 1 ms (hot).
    """
    begun = time.perf_counter()
    with progress("" if path is None else Path(path).name) as tell, TemporaryDirectory() as folder:
        os.environ["STOCKADE_STATE"] = f"{folder}/state"
        kept = f"{folder}/cache"
        # The first run leaves its machine code for the cached ones: compiling it once more may take as long again.
        os.environ["STOCKADE_CACHE"] = kept
        tell("measuring: first run of")
        first = _timed(lambda: _once(path, base))
        figures = [_Figures.of("first", [first])]

        def measure(job: str, run: Callable[[], float], asked: int | None, most: int) -> None:
            left = max(_LEAST_SECONDS, _SECONDS - (time.perf_counter() - begun))
            times = _repeated(
                run, asked, most, left / _JOBS_LEFT[job], lambda n: tell(f"measuring: {job} run {n:,} of")
            )
            figures.append(_Figures.of(job, times))

        os.environ["STOCKADE_CACHE"] = "off"
        if cold is not None or time.perf_counter() - begun + first / 1e3 < _SECONDS:
            measure("cold", lambda: _forgetful(path, base), cold, _MOST_COLD)
        os.environ["STOCKADE_CACHE"] = kept
        _forgetful(path, base)
        measure("cached", lambda: _forgetful(path, base), cold, _MOST_COLD)
        with Sandbox(base) as sandbox:
            module = sandbox.prepare(_load(path))
            sandbox.run(module).check()
            measure("hot", lambda: _timed(lambda: sandbox.run(module)), hot, _MOST_HOT)
    # What a run may take is a matter of the module: only of the hello world it is known.
    targets = _TARGETS_MS if path is None else {}
    verdicts = {line.job: line.p50 <= targets[line.job] for line in figures if line.job in targets}
    machine = f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    if wants_json:
        told = {
            "machine": machine,
            "wasmtime": wasmtime_version(),
            "unit": "ms",
            "figures": [line._asdict() for line in figures],
            "targets": targets,
            "passed": verdicts,
        }
        say_document(json.dumps(told, indent=2))
    else:
        name = "hello world" if path is None else module.name
        click.echo(f"{name} on {machine}, wasmtime {wasmtime_version()}; times in milliseconds")
        show_table([_heading(judged=path is None), *(_row(line, targets, verdicts.get(line.job)) for line in figures)])
        if len(figures) < _JOBS:
            click.echo(f"no cold runs: the first one took {first / 1e3:.1f} s; --cold 1 measures one all the same")
    return int(not all(verdicts.values()))


def _repeated(
    run: Callable[[], float], asked: int | None, most: int, seconds: float, tell: Callable[[int], None]
) -> list[float]:
    """Times runs: as many as were asked for, else as fit into some seconds, at least one."""
    times: list[float] = []
    begun = told = time.perf_counter()
    while len(times) < (most if asked is None else asked):
        now = time.perf_counter()
        if asked is None and times and now - begun + times[-1] / 1e3 > seconds:
            break
        # To tell it more often would take longer than some runs.
        if not times or now - told > _TELL_SECONDS:
            told = now
            tell(len(times) + 1)
        times.append(run())
    return times


def _load(path: str | None) -> Module:
    return Module.load(_HELLO, text=True) if path is None else Module.load(path)


def _once(path: str | None, policy: Policy) -> None:
    with Sandbox(policy) as sandbox:
        sandbox.run(_load(path)).check()


def _forgetful(path: str | None, policy: Policy) -> float:
    """Times a run that finds nothing in memory."""
    forget_programs()
    return _timed(lambda: _once(path, policy))


def _timed(job: Callable[[], object]) -> float:
    begun = time.perf_counter()
    job()
    return (time.perf_counter() - begun) * 1e3


def _heading(*, judged: bool) -> tuple[tuple[str, str], ...]:
    return tuple((name, "dim") for name in (*_Figures._fields, *(("target", "") if judged else ())))


def _row(line: _Figures, targets: dict[str, float], passed: bool | None) -> tuple[tuple[str, str], ...]:
    times = [(f"{value:,.3f}", "") for value in line[2:]]
    row = ((line.job, "bold"), (f"{line.runs:,}", ""), *times)
    if not targets:
        return row
    target = f"p50 ≤ {targets[line.job]:g}" if line.job in targets else ""
    verdict = ("", "") if passed is None else ("PASS", "green") if passed else ("FAIL", "red")
    return (*row, (target, ""), verdict)
