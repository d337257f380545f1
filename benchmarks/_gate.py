"""How much of what leaves a run is looked at in a second of processor time."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from rich.table import Table

from benchmarks._measure import Promise
from stockade.gate import Gate, GateRules

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

__all__ = ["gate"]

_BYTES = 4 << 20
_ROUNDS = 5


def _log(made: random.Random) -> bytes:
    lines = (
        f"2026-11-30T14:{made.randrange(60):02}:{made.randrange(60):02}.{made.randrange(10**6):06}Z INFO "
        f"[worker-{made.randrange(8)}] GET /api/v1/items/{made.randrange(10**6)} 200 {made.randrange(900)} ms "
        f"id={made.getrandbits(64):016x}\n"
        for _ in range(_BYTES // 100)
    )
    return "".join(lines).encode()


def _megabytes_a_second(do: Callable[[bytes], object], data: bytes) -> float:
    best = float("inf")
    for _ in range(_ROUNDS):
        begun = time.process_time()
        do(data)
        best = min(best, time.process_time() - begun)
    return len(data) / 1e6 / best


def gate(console: Console) -> list[Promise]:
    """A log of megabytes, in pieces of 64 KiB: for one registered secret, for a thousand, and for keys and the like."""
    made = random.Random(7)
    data = _log(made)
    many = {f"secret{number}": f"{made.getrandbits(128):032x}" for number in range(1_000)}
    alike = {f"secret{number}": f"acme_prod_sk_{made.getrandbits(128):032x}" for number in range(1_000)}
    # Full of how they begin, as the output of what uses them may be.
    begun = (b"acme_prod_sk_ " * (_BYTES // 14))[: len(data)]
    gates = {
        "one registered secret": Gate(secrets={"one": many["secret7"]}),
        "a thousand of them": Gate(secrets=many),
        "keys": Gate(GateRules(keys="redact")),
        "personal data": Gate(GateRules(personal="redact")),
        "random text": Gate(GateRules(entropy="redact")),
    }
    figures = {name: _megabytes_a_second(each.scan, data) for name, each in gates.items()}
    of_one, of_many = (
        _megabytes_a_second(Gate(secrets=each).scan, begun) for each in ({"one": alike["secret7"]}, alike)
    )
    figures |= {"one of those that begin alike": of_one, "a thousand that begin alike": of_many}
    table = Table(title="what a gate looks at, MB in a second of processor time")
    for heading in ("", "MB/s"):
        table.add_column(heading, justify="right")
    for name, figure in figures.items():
        table.add_row(name, f"{figure:,.0f}")
    console.print(table)
    one, thousand = figures["one registered secret"], figures["a thousand of them"]
    return [
        Promise("gate: MB/s for one registered secret", one, 50.0, least=True),
        Promise("gate: one registered secret over a thousand, as fast", one / thousand, 2.5),
        Promise("gate: the same of secrets that begin alike", of_one / of_many, 2.5),
        Promise("gate: MB/s for keys", figures["keys"], 8.0, least=True),
    ]
