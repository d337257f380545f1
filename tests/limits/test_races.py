"""Others change files while a guest uses them: what counts is what is there when a call is made, not what was seen."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from stockade.execution import _run
from tests.limits._guests import APPEND, CREAT, EDQUOT, EFBIG, EPERM, SUCCESS, Script, files_policy, kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_TRIES = 3_000


@contextmanager
def again_and_again(do: Callable[[], object]) -> Iterator[None]:
    """Has something done over and over on another thread."""
    over = threading.Event()
    problems: list[BaseException] = []

    def work() -> None:
        try:
            while not over.is_set():
                do()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not problems


@pytest.mark.parametrize("call", ["fd_read", "fd_pread"])
def test_a_file_that_grows_is_read_up_to_the_limit_only(tmp_path: Path, call: str) -> None:
    """The attack: the file is at its end when that is looked at, and longer when it is read."""
    path = tmp_path / "log"
    path.write_bytes(b"12345")
    script = Script()
    fd = script.open("log")
    script.read(fd, 5)
    taken, iovec = script.cell(), script.iovec((script.room(4096), 4096))
    for _ in range(_TRIES):
        script.call(call, fd, iovec, 1, *(() if call == "fd_read" else (5,)), taken.address)

    with path.open("r+b") as file:

        def grow() -> None:
            file.truncate(5)
            file.truncate(1 << 20)

        with again_and_again(grow):
            played = script.play(files_policy(tmp_path, read_bytes=5))

    assert played.report.usage.read_bytes == 5
    assert set(played.errnos) == {SUCCESS, EDQUOT}
    (violation,) = played.report.violations
    assert (violation.kind, violation.action, violation.limit) == ("read_bytes", "deny", 5)


class Neighbour:
    """Makes and removes a file under a name, and counts those that somebody else has made there.

    Args:
        folder: Where.
    """

    def __init__(self, folder: Path) -> None:
        self._mine, self._name = folder / "mine", folder / "name"
        self._mine.write_bytes(b"mine")
        self.found = 0

    def turn(self) -> None:
        """Once."""
        try:
            self._name.hardlink_to(self._mine)
        except FileExistsError:
            self.found += 1
        self._name.unlink()


def opens_again_and_again() -> Script:
    """Opens a file, to be made where it is missing, and closes it."""
    script = Script()
    for _ in range(_TRIES):
        script.close(script.open("name", CREAT))
    return script


def test_no_file_is_created_where_that_is_off(tmp_path: Path) -> None:
    """The attack: the file is there when that is looked at, and gone when it is opened."""
    neighbour = Neighbour(tmp_path)
    with again_and_again(neighbour.turn):
        played = opens_again_and_again().play(files_policy(tmp_path, create=False))

    assert not neighbour.found
    assert not (tmp_path / "name").exists()
    assert played.report.usage.files_created == 0
    # How often the two meet is a matter of the machine.
    assert set(kinds(played.report.violations)) == ({"create"} if EPERM in played.errnos else set())


def test_files_that_are_created_are_counted(tmp_path: Path) -> None:
    """The same where so many may be made: no more are, and all of them are in the report."""
    neighbour = Neighbour(tmp_path)
    with again_and_again(neighbour.turn):
        played = opens_again_and_again().play(files_policy(tmp_path, files_created=20))

    left = int((tmp_path / "name").exists())
    assert neighbour.found + left <= played.report.usage.files_created <= 20
    assert EDQUOT not in played.errnos or played.report.usage.files_created == 20


@pytest.mark.parametrize("others", [90, 40], ids=["up to the limit", "within it"])
def test_the_size_of_a_file_is_looked_at_after_a_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """The attack: while a write waits for its rate, another one makes the file longer, so that both pass the limit."""
    path = tmp_path / "log"
    wait = _run.Guest._wait
    left = [b"x" * others]

    def meanwhile(guest: _run.Guest) -> object:
        state = guest._state
        assert state is not None
        if left and state.wait().tokens is not None:
            with path.open("ab") as file:
                file.write(left.pop())
        return wait(guest)

    monkeypatch.setattr(_run.Guest, "_wait", meanwhile)
    script = Script()
    fd = script.open("log", CREAT, fdflags=APPEND)
    script.write(fd, b"0123456789")
    written = script.write(fd, b"0123456789")
    played = script.play(files_policy(tmp_path, file_size=100, write_rate=10))

    assert not left
    assert played.errnos == [SUCCESS, SUCCESS, EFBIG if others == 90 else SUCCESS]
    assert path.stat().st_size == 10 + others + played.number(written) <= 100
    assert kinds(played.report.violations) == ["write_rate", *(["file_size"] if others == 90 else [])]
