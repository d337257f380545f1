"""`stockade bench`: what a run costs on this machine, from end to end."""

from __future__ import annotations

import json
import os
import platform
import time
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import click

from stockade.cli._policy import PolicyName
from stockade.cli._streams import say_document
from stockade.cli._terminal import progress, show_table
from stockade.compilation import forget_programs
from stockade.engine import wasmtime_version
from stockade.modules import Module
from stockade.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
"""What a median may be at most: the figures that a sandbox of this kind is usually held to."""


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


@click.command()
@click.argument("path", metavar="[MODULE]", required=False, type=click.Path())
@click.option("--policy", "policy", type=PolicyName(), default="default", show_default=True, help="The policy.")
@click.option("--cold", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Runs of the cold kind.")
@click.option(
    "--hot", type=click.IntRange(1, 1_000_000), default=2_000, show_default=True, help="Runs of the hot kind."
)
@click.option("--json", "wants_json", is_flag=True, help="Print it as JSON.")
def bench(path: Path | None, policy: Policy, cold: int, hot: int, wants_json: bool) -> int:
    """Measure what running MODULE costs here, or a hello world where none is given.

    First: loading the library, building the engine, compiling and running, once. Cold: loading, compiling and running,
    with nothing kept in memory or on disk. Cached: the same with the machine code on disk. Hot: running a module that
    is at hand. Every time is of a whole run, its report included.

    Exit status: 0 the medians are within their targets (5 ms cold, 1 ms hot); 1 one is not.
    """
    os.environ["STOCKADE_CACHE"] = "off"
    with progress("measuring") as tell:
        tell("first")
        first = _Figures.of("first", [_timed(lambda: _once(path, policy))])
        tell("cold")
        colds = _forgetful(cold, path, policy)
        tell("cached")
        with TemporaryDirectory() as folder:
            os.environ["STOCKADE_CACHE"] = f"{folder}/cache"
            os.environ["STOCKADE_STATE"] = f"{folder}/state"
            cached = _forgetful(cold + 1, path, policy)[1:]
        tell("hot")
        with Sandbox(policy) as sandbox:
            module = sandbox.prepare(_load(path))
            sandbox.run(module).check()
            hots = [_timed(lambda: sandbox.run(module)) for _ in range(hot)]
    figures = [first, _Figures.of("cold", colds), _Figures.of("cached", cached), _Figures.of("hot", hots)]
    verdicts = {line.job: line.p50 <= _TARGETS_MS[line.job] for line in figures if line.job in _TARGETS_MS}
    machine = f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    if wants_json:
        told = {
            "machine": machine,
            "wasmtime": wasmtime_version(),
            "unit": "ms",
            "figures": [line._asdict() for line in figures],
            "targets": _TARGETS_MS,
            "passed": verdicts,
        }
        say_document(json.dumps(told, indent=2))
    else:
        click.echo(f"{module.name} on {machine}, wasmtime {wasmtime_version()}; milliseconds")
        show_table([_heading(), *(_row(line, verdicts.get(line.job)) for line in figures)])
    return int(not all(verdicts.values()))


def _load(path: Path | None) -> Module:
    return Module.load(_HELLO, text=True) if path is None else Module.load(path)


def _once(path: Path | None, policy: Policy) -> None:
    with Sandbox(policy) as sandbox:
        sandbox.run(_load(path)).check()


def _forgetful(runs: int, path: Path | None, policy: Policy) -> list[float]:
    """Times runs that find nothing in memory."""
    times = []
    for _ in range(runs):
        forget_programs()
        times.append(_timed(lambda: _once(path, policy)))
    return times


def _timed(job: Callable[[], object]) -> float:
    begun = time.perf_counter()
    job()
    return (time.perf_counter() - begun) * 1e3


def _heading() -> tuple[tuple[str, str], ...]:
    return tuple((name, "dim") for name in (*_Figures._fields, "target", ""))


def _row(line: _Figures, passed: bool | None) -> tuple[tuple[str, str], ...]:
    times = [(f"{value:,.3f}", "") for value in line[2:]]
    target = f"p50 ≤ {_TARGETS_MS[line.job]:g}" if line.job in _TARGETS_MS else ""
    verdict = ("", "") if passed is None else ("PASS", "green") if passed else ("FAIL", "red")
    return ((line.job, "bold"), (f"{line.runs:,}", ""), *times, (target, ""), verdict)
