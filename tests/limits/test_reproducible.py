"""With a virtual clock and seeded randomness, equal runs are equal to the last bit.

Holds P-RUN-4.
"""

from __future__ import annotations

import pytest

import stockade
from stockade.policy import Clock, Limits, Policy, Random

pytestmark = pytest.mark.usefixtures("everywhere")

RUNS = 20

WORK = """
import hashlib, json, math, random, struct, sys, time, uuid

print(sys.version_info[:2], sys.argv)
started = time.time(), time.monotonic()
print(started)
print(hash("text"), hash(b"bytes"), {"a", "b", "c", "d", "e"})
print(random.random(), random.sample(range(1000), 10), uuid.uuid4())
print(json.dumps({"names": sorted({"x", "y"}), "number": 1 / 3}), json.loads("[1.5, null]"))
print(hashlib.sha256(b"work" * 10_000).hexdigest())
nan = float("inf") - float("inf")
print(nan, struct.pack("<dd", nan, -nan).hex(), struct.pack("<f", nan).hex(), math.sin(1e22), math.fsum([0.1] * 10))
print(struct.pack("<d", math.nan * 0.0 + float("nan")).hex())
time.sleep(2.5)
print(time.time() - started[0], time.monotonic() - started[1], time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()))
print(id(object()) % 4096, sorted(random.Random(7).choices(range(100), k=5)))
"""


def policy(*, seed: int = 0, start: float = 946_684_800.0) -> Policy:
    """A reproducible policy."""
    return Policy(
        limits=Limits(fuel=1 << 60, wall_time=60.0, memory=256 << 20, stack=1 << 20),
        clock=Clock(mode="virtual", start=start),
        random=Random(mode="seeded", seed=seed),
    )


@pytest.mark.slow
def test_runs_of_python_are_equal_to_the_last_bit(python: stockade.Module) -> None:
    """Real work, the same output and the same fuel in every run."""
    box = stockade.Sandbox(policy())
    reports = [box.run(python, ["-c", WORK]) for _ in range(RUNS)]

    assert [report.outcome for report in reports] == [stockade.Outcome.OK] * RUNS, reports[0].stderr[-500:]
    assert len({report.stdout for report in reports}) == 1
    assert len({report.usage.fuel for report in reports}) == 1
    first = reports[0]
    assert first.usage.fuel is not None
    assert first.usage.fuel > 1_000_000
    assert first.stdout.count(b"\n") == WORK.count("\nprint(")
    assert all(report.usage.calls == first.usage.calls for report in reports)
    assert first.usage.random_bytes > 0
    assert b"2000-01-01 00:00:02" in first.stdout
    assert all(report.usage.wall_seconds < 20 for report in reports)


@pytest.mark.slow
def test_another_seed_or_start_gives_another_run(python: stockade.Module) -> None:
    """The positive twin: what makes runs equal is the policy, not that the guest ignores time and randomness."""
    code = "import random, time; print(random.random(), hash('text'), time.time())"
    seen = {
        stockade.Sandbox(policy(seed=seed, start=start)).run(python, ["-c", code]).check().stdout
        for seed, start in ((1, 1e9), (1, 1e9), (2, 1e9), (1, 1.1e9))
    }

    assert len(seen) == 3


@pytest.mark.parametrize("rate", ["read_rate", "write_rate", "call_rate"])
def test_a_rate_makes_runs_differ(rate: str) -> None:
    """Attack: a guest without a clock reads off how much goes at once how much time has passed."""
    assert policy().reproducible
    assert not policy().replace(**{rate: 1_000_000}).reproducible
