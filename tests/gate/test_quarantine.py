"""P-GATE-6: what is kept aside can be released whatever a guest calls it, and is there whole or not at all."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from stockade.gate import _quarantine, quarantined, quarantined_as, remove_leftovers
from stockade.gate._quarantine import keep_aside

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("state")


def _kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "quarantine").iterdir())


def test_names_that_are_too_long_for_a_file_are_numbers(tmp_path: Path) -> None:
    """The attack: a guest names a file so that nothing of what was kept can be released."""
    names = ["files/" + "/".join(["d" * 250] * 20), "files/" + "ä" * 128, "files/a/b"]
    name = keep_aside("m", "p", (), {"stdout": b"wanted", **{each: each.encode() for each in names}})

    written = quarantined_as(name).release(tmp_path / "out")

    assert [str(path.relative_to(tmp_path / "out")) for path in written] == [
        *("stdout", "long-names/1", "long-names/2", "files/a/b")
    ]
    assert [path.read_bytes() for path in written[1:]] == [each.encode() for each in names]
    assert quarantined() == []


def test_what_cannot_be_released_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: the disk is full in the middle. Nothing is left of it, so the same folder can be named again."""
    name = keep_aside("m", "p", (), {"stdout": b"1", "stderr": b"2"})
    write = _quarantine._write

    def failing(descriptor: int, data: bytes) -> None:
        write(descriptor, data)
        if data == b"2":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(_quarantine, "_write", failing)
    with pytest.raises(OSError, match="No space left"):
        quarantined_as(name).release(tmp_path / "out")
    assert not (tmp_path / "out").exists()

    monkeypatch.setattr(_quarantine, "_write", write)
    assert len(quarantined_as(name).release(tmp_path / "out")) == 2


def _killed_in(monkeypatch: pytest.MonkeyPatch, place: object, function: str, do: object) -> None:
    """Does something in a process that is killed when it has called a function."""
    child = os.fork()
    if not child:
        try:
            before = getattr(place, function)

            def last(*given: object, **named: object) -> None:
                before(*given, **named)
                os.kill(os.getpid(), signal.SIGKILL)

            monkeypatch.setattr(place, function, last)
            do()  # type: ignore[operator]
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_what_a_killed_process_had_begun_to_keep_is_removed(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: the host is killed while it keeps a secret aside, which nobody finds again, and stays on the disk."""
    keep_aside("m", "p", (), {"stdout": b"0"})
    _killed_in(monkeypatch, _quarantine, "_write", lambda: keep_aside("m", "p", (), {"stdout": b"1", "stderr": b"2"}))
    assert [name for name in _kept(state) if name.startswith(".new-")]

    assert remove_leftovers() == 1
    assert [each.read("stdout") for each in quarantined()] == [b"0"]
    assert remove_leftovers() == 0

    _killed_in(monkeypatch, _quarantine, "_write", lambda: keep_aside("m", "p", (), {"stdout": b"1"}))
    keep_aside("m", "p", (), {"stdout": b"3"})
    assert len(_kept(state)) == 2


def test_what_a_killed_process_had_begun_to_delete_is_removed(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = keep_aside("m", "p", (), {"stdout": b"1"})
    _killed_in(monkeypatch, os, "rename", quarantined_as(name).delete)
    assert [each for each in _kept(state) if each.startswith(".gone-")]

    assert quarantined() == []
    assert _kept(state) == []


def test_what_another_process_is_keeping_is_no_leftover(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: whoever looks meanwhile removes nothing."""
    write, found = _quarantine._write, []

    def looking(descriptor: int, data: bytes) -> None:
        child = os.fork()
        if not child:
            os._exit(remove_leftovers())
        found.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        write(descriptor, data)

    monkeypatch.setattr(_quarantine, "_write", looking)
    name = keep_aside("m", "p", (), {"stdout": b"1"})

    assert found == [0, 0]
    assert quarantined_as(name).read("stdout") == b"1"


def test_a_folder_that_was_taken_for_a_leftover_is_made_anew(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its making and its lock, another process may see it."""
    make, tries = os.mkdir, []

    def mkdir(path: str | Path, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        make(path, mode, dir_fd=dir_fd)
        if str(path).startswith(".new-") and not tries:
            tries.append(str(path))
            os.rmdir(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", mkdir)
    name = keep_aside("m", "p", (), {"stdout": b"1"})

    assert tries
    assert _kept(state) == [name]
