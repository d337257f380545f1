"""`stockade bench`: figures that anyone can take again, with a verdict."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from stockade.cli import _bench
from stockade.cli._commands import stockade
from tests._commands import ran
from tests.cli.test_run import in_terminal, save

if TYPE_CHECKING:
    from pathlib import Path

JOBS = ["first", "cold", "cached", "hot"]


def test_bench_prints_all_figures_with_a_verdict() -> None:
    """Minimum, median, 95th and 99th percentile, mean and maximum, and PASS or FAIL by the median."""
    done = ran(["bench", "--cold", "3", "--hot", "20", "--json"])

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
    assert heading.startswith("hello world on ")
    assert columns.split()[:9] == ["job", "runs", "min", "p50", "p95", "p99", "mean", "max", "target"]
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


def test_bench_of_a_module_only_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hello world may take is no measure of another module: there is no verdict, and no failure."""
    monkeypatch.setattr(_bench, "_TARGETS_MS", {"cold": 0.0, "hot": 0.0})
    _keep_folders(monkeypatch)
    guest = tmp_path / "good.wat"
    guest.write_text('(module (func (export "_start")))')

    shown = CliRunner().invoke(stockade, ["bench", str(guest), "--cold", "1", "--hot", "1"], standalone_mode=False)
    told = CliRunner().invoke(
        stockade, ["bench", str(guest), "--cold", "1", "--hot", "1", "--json"], standalone_mode=False
    )

    assert (shown.return_value, told.return_value) == (0, 0)
    assert "target" not in shown.stdout
    assert "FAIL" not in shown.stdout
    assert json.loads(told.stdout)["targets"] == json.loads(told.stdout)["passed"] == {}


def test_runs_are_as_many_as_fit_into_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the test's: runs of 3 s fit three times into 10 s, one that takes longer is made once."""
    now = 0.0

    def run(seconds: float) -> float:
        nonlocal now
        now += seconds
        return seconds * 1e3

    monkeypatch.setattr(_bench.time, "perf_counter", lambda: now)
    told: list[int] = []

    assert _bench._repeated(lambda: run(3.0), None, 50, 10.0, told.append) == [3000.0] * 3
    assert told == [1, 2, 3]
    assert _bench._repeated(lambda: run(30.0), None, 50, 10.0, told.append) == [30_000.0]
    assert _bench._repeated(lambda: run(0.001), None, 50, 10.0, told.append) == [1.0] * 50
    assert _bench._repeated(lambda: run(30.0), 2, 50, 10.0, told.append) == [30_000.0] * 2


def test_nothing_has_to_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is quickly made is measured in all ways, as often as is enough."""
    _keep_folders(monkeypatch)
    monkeypatch.setattr(_bench, "_SECONDS", 5.0)
    monkeypatch.setattr(_bench, "_MOST_COLD", 3)
    monkeypatch.setattr(_bench, "_MOST_HOT", 4)
    guest = tmp_path / "good.wat"
    guest.write_text('(module (func (export "_start")))')

    result = CliRunner().invoke(stockade, ["bench", str(guest)], standalone_mode=False)

    rows = [row.split()[:2] for row in result.stdout.splitlines()[2:]]
    assert rows == [["first", "1"], ["cold", "3"], ["cached", "3"], ["hot", "4"]]


def test_a_slow_first_run_leaves_the_cold_ones_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that takes longer to compile than all should take is not compiled again, unless that is asked for."""
    monkeypatch.setattr(_bench, "_SECONDS", 0.0)
    _keep_folders(monkeypatch)
    guest = tmp_path / "good.wat"
    guest.write_text('(module (func (export "_start")))')

    left_out = CliRunner().invoke(stockade, ["bench", str(guest)], standalone_mode=False)
    asked_for = CliRunner().invoke(stockade, ["bench", str(guest), "--cold", "1"], standalone_mode=False)

    assert [row.split()[0] for row in left_out.stdout.splitlines()[2:]] == ["first", "cached", "hot", "no"]
    assert [row.split()[0] for row in asked_for.stdout.splitlines()[2:]] == JOBS


def test_progress_is_told_on_a_terminal(tmp_path: Path) -> None:
    """Whoever waits sees what is measured, and how often it has been."""
    guest = save(tmp_path, '(module (func (export "_start")))', "good.wat")

    status, shown, others = in_terminal(["stderr"], "bench", "--cold", "2", "--hot", "5", guest)

    assert status == 0
    assert re.search(rb"measuring: [a-z]+ run [0-9]* ?of good\.wat", shown)
    assert others["stdout"].startswith(b"good.wat on ")
