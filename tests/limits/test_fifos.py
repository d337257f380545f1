"""Opening a FIFO, which takes until somebody opens its other end: no run, thread or deadline is held up by it.

Holds P-FS-3.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import Outcome
from stockade.engine import _ticker
from stockade.system import _fifo
from tests._processes import until
from tests.conftest import HELLO, wat
from tests.limits._guests import (
    APPEND,
    EACCES,
    ENOENT,
    READ_RIGHTS,
    SUCCESS,
    Script,
    files_policy,
    kinds,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.limits._guests import Played

READ, WRITE = READ_RIGHTS, 1 << 6

OPENS_AGAIN_AND_AGAIN = """
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "fifo")
  (func (export "_start")
    (loop $again
      (drop (call $open (i32.const 3) (i32.const 1) (i32.const 0) (i32.const 4) (i32.const 0) (i64.const 2)
        (i64.const 0) (i32.const 0) (i32.const 8)))
      (drop (call $close (i32.load (i32.const 8))))
      (br $again))))
"""
"""A guest that does not take no for an answer."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a FIFO that nobody has open, a link to it, and a file."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "file").write_bytes(b"hello")
    return tmp_path


@pytest.fixture
def signals() -> Iterator[None]:
    """What a test does to the signals that are used is undone."""
    before = [(number, signal.getsignal(number)) for number in _fifo._SIGNALS]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number, handler in before:
        signal.signal(number, handler)


def opens(name: str = "fifo", rights: int = READ) -> Script:
    """A script that opens a path."""
    script = Script()
    script.open(name, rights=rights)
    return script


def meanwhile(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Has something done once, when a guest has been opening something for so long that this is to be interrupted."""
    left = [do]

    def interrupt() -> None:
        if left:
            left.pop()()
        _fifo.interrupt_opens()

    monkeypatch.setattr(_ticker, "interrupt_opens", interrupt)


def refused(played: Played) -> bool:
    """Whether the first call was refused, and that was written down."""
    return played.errnos[0] == EACCES and kinds(played.report.violations) == ["path"]


@pytest.mark.parametrize("name", ["fifo", "link", "./fifo"])
@pytest.mark.parametrize("rights", [READ, WRITE], ids=["to read", "to write"])
def test_a_fifo_that_nobody_has_open_is_refused(folder: Path, name: str, rights: int) -> None:
    """The attack: a FIFO with nobody at its other end, which native WASI would wait for."""
    played = opens(name, rights).play(files_policy(folder))
    assert refused(played)
    (violation,) = played.report.violations
    assert (violation.subject, violation.call) == (name, "path_open")
    assert played.report.usage.files_opened == 0


def test_the_times_of_a_fifo_are_not_set(folder: Path) -> None:
    """The attack: native WASI opens what it is to change the times of, too."""
    script = Script()
    script.call("path_filestat_set_times", 3, 1, "fifo", 0, 0, 2 | 8)
    played = script.play(files_policy(folder))
    assert refused(played)
    assert played.report.violations[0].call == "path_filestat_set_times"


def test_a_fifo_is_not_appended_to(folder: Path) -> None:
    """The attack: it opens where somebody reads from it, and takes what is written until it is full: then never."""
    reader = os.open(folder / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    script = Script()
    script.open("fifo", rights=WRITE, fdflags=APPEND)
    played = script.play(files_policy(folder))
    os.close(reader)
    assert refused(played)


def test_files_are_opened_and_what_somebody_has_open(folder: Path) -> None:
    """The positive twin: neither a file nor a FIFO with somebody at its other end is waited for, or refused."""
    script = Script()
    for name, rights in (("file", READ), ("file", WRITE), ("fifo", READ)):
        script.open(name, rights=rights)
    script.call("path_filestat_set_times", 3, 1, "fifo", 0, 0, 2 | 8)
    writer = os.open(folder / "fifo", os.O_RDWR)
    played = script.play(files_policy(folder))
    os.close(writer)
    assert played.errnos == [SUCCESS] * 4
    assert not played.report.violations


def test_a_fifo_that_is_moved_away_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: another guest moves it, so that whoever would open its other end does not find it any more."""
    meanwhile(monkeypatch, lambda: (folder / "fifo").rename(folder / "elsewhere"))
    played = opens().play(files_policy(folder))
    assert played.errnos == [ENOENT]
    assert not played.report.violations


def test_a_fifo_that_is_removed_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: nothing leads to it any more but the open that waits for it."""
    meanwhile(monkeypatch, lambda: (folder / "fifo").unlink())
    played = opens("link").play(files_policy(folder))
    assert played.errnos == [ENOENT]


def test_a_folder_on_the_way_that_is_removed_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where not the FIFO is moved, but the folder that it stands in."""
    (folder / "inside").mkdir()
    (folder / "fifo").rename(folder / "inside" / "fifo")
    meanwhile(monkeypatch, lambda: (folder / "inside").rename(folder / "elsewhere"))
    played = opens("inside/fifo").play(files_policy(folder))
    assert played.errnos == [ENOENT]


def test_a_fifo_that_is_replaced_by_a_file_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands there then is opened: nothing else was asked for."""
    meanwhile(monkeypatch, lambda: (folder / "file").replace(folder / "fifo"))
    script = opens()
    _, buffer = script.read(4, 5)
    played = script.play(files_policy(folder))
    assert played.errnos == [SUCCESS, SUCCESS]
    assert played.memory[buffer : buffer + 5] == b"hello"
    assert not played.report.violations
    assert (played.report.usage.files_opened, played.report.usage.files_open_peak) == (1, 1)


def test_a_deadline_holds_where_a_fifo_looks_like_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: whenever the guard looks, a file stands there, and whenever it opens that, a FIFO."""
    (folder / "fifo").rename(folder / "kept")
    ended = threading.Event()
    turns = 0

    def swap() -> None:
        while not ended.is_set():
            for name in ("file", "kept"):
                os.link(folder / name, folder / "new")
                (folder / "new").replace(folder / "fifo")

    def interrupt() -> None:
        nonlocal turns
        turns += 1
        _fifo.interrupt_opens()

    os.link(folder / "kept", folder / "fifo")
    monkeypatch.setattr(_ticker, "interrupt_opens", interrupt)
    attacker = threading.Thread(target=swap)
    attacker.start()
    try:
        with stockade.Sandbox(files_policy(folder, wall_time=1.0)) as sandbox:
            report = sandbox.run(wat(OPENS_AGAIN_AND_AGAIN))
    finally:
        ended.set()
        attacker.join()
    assert report.outcome in (Outcome.TIMEOUT, Outcome.TRAP)
    assert turns


def test_guests_that_open_fifos_hold_up_no_other(folder: Path) -> None:
    """The attack: twenty guests that open a FIFO whenever they may, more than there are threads to run guests."""

    async def all_together() -> tuple[list[stockade.Report], list[bool], list[stockade.Report]]:
        policy = files_policy(folder, wall_time=100.0)
        async with asyncio.timeout(100):
            with stockade.Sandbox(policy) as sandbox:
                module, hello = wat(OPENS_AGAIN_AND_AGAIN), wat(HELLO)
                hostile = [asyncio.create_task(sandbox.run_async(module, run_id=f"hostile {at}")) for at in range(20)]
                while len(sandbox.monitor()) < len(hostile):
                    await asyncio.sleep(0)
                served = [await sandbox.run_async(hello) for _ in range(3)]
                still = [not task.done() for task in hostile]
                for at in range(20):
                    sandbox.cancel(f"hostile {at}")
                return served, still, await asyncio.gather(*hostile)

    served, still, ended = asyncio.run(all_together())
    assert [report.outcome for report in served] == [Outcome.OK] * 3
    assert all(still)
    assert {report.outcome for report in ended} == {Outcome.CANCELLED}


def test_what_the_program_itself_opens_is_left_alone(folder: Path) -> None:
    """The attack: a guest that opens a FIFO wakes up a thread of the program that waits for another one."""
    os.mkfifo(folder / "programs")
    opened: list[int] = []
    inside = os.open(folder, os.O_RDONLY)
    waiting = threading.Thread(target=lambda: opened.append(os.open("programs", os.O_RDONLY, dir_fd=inside)))
    waiting.start()
    assert until(lambda: _is_opening(waiting))
    assert refused(opens().play(files_policy(folder)))
    assert _is_opening(waiting)
    assert not opened
    writer = os.open(folder / "programs", os.O_WRONLY)
    waiting.join(30)
    for number in (writer, opened[0], inside):
        os.close(number)


def _is_opening(thread: threading.Thread) -> bool:
    try:
        return Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()[0] in ("257", "56")
    except OSError:
        return False


@pytest.mark.usefixtures("signals")
def test_a_programs_own_handler_is_never_called(folder: Path) -> None:
    """A signal that the program uses is left to it; the next one is used."""
    seen: list[int] = []
    first = _fifo._SIGNALS[0]
    signal.signal(first, lambda number, _: seen.append(number))
    assert refused(opens().play(files_policy(folder)))
    assert not seen
    assert signal.getsignal(first) not in (signal.SIG_DFL, None)
    os.kill(os.getpid(), first)
    assert until(lambda: seen == [first])


@pytest.mark.usefixtures("signals")
def test_without_a_signal_a_path_is_looked_at_first(folder: Path) -> None:
    """Where the program uses all of them, a FIFO is refused before it is opened; a file is opened."""
    seen: list[int] = []
    for number in _fifo._SIGNALS:
        signal.signal(number, lambda number, _: seen.append(number))
    script = opens()
    script.open("file", rights=READ)
    played = script.play(files_policy(folder))
    assert refused(played)
    assert played.errnos[1] == SUCCESS
    assert not seen


@pytest.mark.usefixtures("signals")
def test_signals_that_are_held_up_are_let_in(folder: Path) -> None:
    """A program that holds all signals up, in a thread in which it runs guests, has them interrupted all the same."""
    played: list[Played] = []
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    thread = threading.Thread(target=lambda: played.append(opens().play(files_policy(folder))))
    thread.start()
    thread.join(60)
    assert refused(played[0])


@pytest.mark.usefixtures("signals")
def test_handlers_may_be_reset_at_any_time(folder: Path) -> None:
    """What the program does with the signals after they were used: they are taken anew, or left to it."""
    for handler in (signal.SIG_DFL, signal.SIG_IGN):
        for number in _fifo._SIGNALS:
            signal.signal(number, handler)
        assert refused(opens().play(files_policy(folder)))


def test_a_signal_without_a_handler_does_nothing() -> None:
    """The attack: the program resets the handler just before the signal comes. It must not end the process."""
    code = "\n".join(
        (
            "import os, signal",
            "from stockade.system import _fifo",
            "for number in _fifo._SIGNALS:",
            "    assert _fifo._is_ours(number)",
            "    signal.signal(number, signal.SIG_DFL)",
            "    os.kill(os.getpid(), number)",
            "    signal.signal(number, signal.SIG_IGN)",
            "    os.kill(os.getpid(), number)",
            "print('alive')",
        )
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
