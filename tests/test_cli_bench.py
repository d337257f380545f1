"""`stockade bench`: figures that anyone can take again, with a verdict."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from stockade.cli import _bench, stockade

if TYPE_CHECKING:
    from pathlib import Path

JOBS = ["first", "cold", "cached", "hot"]


def test_bench_prints_all_figures_with_a_verdict() -> None:
    """Minimum, median, 95th and 99th percentile, mean and maximum, and PASS or FAIL by the median."""
    done = subprocess.run(
        [sys.executable, "-m", "stockade", "bench", "--cold", "3", "--hot", "20", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    told = json.loads(done.stdout)
    assert [line["job"] for line in told["figures"]] == JOBS
    assert [line["runs"] for line in told["figures"]] == [1, 3, 3, 20]
    for line in told["figures"]:
        assert 0 < line["min"] <= line["p50"] <= line["p95"] <= line["p99"] <= line["max"]
        assert line["min"] <= line["mean"] <= line["max"]
    medians = {line["job"]: line["p50"] for line in told["figures"]}
    assert told["targets"] == {"cold": 5.0, "hot": 1.0}
    assert told["passed"] == {job: medians[job] <= target for job, target in told["targets"].items()}
    assert done.returncode == int(not all(told["passed"].values()))


def _keep_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has what the command does to its own process undone."""
    for name in ("STOCKADE_CACHE", "STOCKADE_STATE"):
        monkeypatch.setenv(name, "off")


@pytest.mark.parametrize(("target", "verdict", "status"), [(1e9, "PASS", 0), (0.0, "FAIL", 1)])
def test_verdict_is_the_exit_status(monkeypatch: pytest.MonkeyPatch, target: float, verdict: str, status: int) -> None:
    """Scripts see a miss; people see a row for each job, and the machine."""
    monkeypatch.setattr(_bench, "_TARGETS_MS", {"cold": target, "hot": target})
    _keep_folders(monkeypatch)

    result = CliRunner().invoke(stockade, ["bench", "--cold", "2", "--hot", "5"], standalone_mode=False)

    heading, columns, *rows = result.stdout.splitlines()
    assert result.return_value == status
    assert heading.startswith("<bytes> on ")
    assert columns.split()[:8] == ["job", "runs", "min", "p50", "p95", "p99", "mean", "max"]
    assert [row.split()[0] for row in rows] == JOBS
    assert [row.split()[-1] for row in (rows[1], rows[3])] == [verdict, verdict]


def test_bench_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any command; one that fails is told as such."""
    _keep_folders(monkeypatch)
    good, bad = tmp_path / "good.wat", tmp_path / "bad.wat"
    good.write_text('(module (func (export "_start")))')
    bad.write_text('(module (func (export "_start") unreachable))')

    result = CliRunner().invoke(stockade, ["bench", str(good), "--cold", "1", "--hot", "1"], standalone_mode=False)
    failed = CliRunner().invoke(stockade, ["bench", str(bad), "--cold", "1", "--hot", "1"], standalone_mode=False)

    assert result.stdout.startswith("good.wat on ")
    assert str(failed.exception).startswith("bad.wat: trap")
