"""A snapshot's file is believed only where it is whole, unchanged, ours, and of this module and release.

Holds P-SNAP-5.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from stockade import Sandbox, Snapshot, SnapshotError
from stockade.sandbox import _snapshot_file
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("everywhere")

COUNTER = wat("""
(module
  (memory (export "memory") 4)
  (global $count (mut i32) (i32.const 0))
  (data (i32.const 0) "as it began")
  (func (export "count") (result i32)
    (global.set $count (i32.add (global.get $count) (i32.const 1)))
    (i32.store (i32.const 200000) (global.get $count))
    (i32.load (i32.const 200000))))
""")


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox() as made:
        yield made


@pytest.fixture
def saved(box: Sandbox, tmp_path: Path) -> Path:
    with box.open(COUNTER) as session:
        for _ in range(5):
            session.call("count").check()
        session.write_memory(70_000, b"a secret of the guest")
        session.snapshot().save(tmp_path / "counter.snapshot")
    return tmp_path / "counter.snapshot"


def test_a_snapshot_comes_back_from_its_file(box: Sandbox, saved: Path) -> None:
    snapshot = Snapshot.load(saved)
    assert snapshot.module.data == COUNTER.data
    assert snapshot.module.sha256 == COUNTER.sha256
    assert snapshot.memory_bytes == 4 * 65_536
    assert box.call(snapshot, "count").value == 6
    with box.open(snapshot) as session:
        assert session.read_memory(0, 11) == b"as it began"
        assert session.read_memory(70_000, 21) == b"a secret of the guest"
        assert session.call("count").value == 6
        # What was loaded, and what has changed since.
        session.snapshot().save(saved)
    assert box.call(Snapshot.load(str(saved), COUNTER), "count").value == 7
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_another_process_of_the_user_opens_it(saved: Path) -> None:
    code = "import stockade, sys; print(stockade.Sandbox().call(stockade.Snapshot.load(sys.argv[1]), 'count').value)"
    done = subprocess.run([sys.executable, "-c", code, saved], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "6\n"


def test_any_byte_that_is_changed_is_noticed(saved: Path) -> None:
    """The attack: a file that makes a guest begin with what its writer chose."""
    whole = saved.read_bytes()
    size = len(whole)
    places = {*range(0, 200, 7), *range(200, size, size // 60), size - 1}
    for place in sorted(places):
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(SnapshotError):
            Snapshot.load(saved)
    saved.write_bytes(whole)
    Snapshot.load(saved)


def test_a_forged_file_is_refused(saved: Path) -> None:
    """The attack: a file with another memory, signed with another key."""
    whole = saved.read_bytes()
    assert b"a secret of the guest" in whole
    saved.write_bytes(whole.replace(b"a secret of the guest", b"a secret of somebody."))
    with pytest.raises(SnapshotError, match="is not believed: it was changed, or written by another user"):
        Snapshot.load(saved)


@pytest.mark.parametrize("sizes", [(0, 1 << 36, 0), (0, 0, 1 << 32), (1 << 20, 1 << 36, 1 << 32)])
def test_a_forged_file_costs_no_memory(
    tmp_path: Path, sizes: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: a sparse file, of a guest that may write where snapshots are read, that says it holds 64 GB.

    None of it is copied before it is known who has written that.
    """

    def copied(*_: object) -> None:
        raise AssertionError("it was copied")

    monkeypatch.setattr(_snapshot_file, "_copied", copied)
    path = tmp_path / "forged"
    head = _snapshot_file._MAGIC + bytes(64) + _snapshot_file._SIZES.pack(*sizes)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + sum(sizes))
    with pytest.raises(SnapshotError, match="is not believed: it was changed, or written by another user"):
        Snapshot.load(path)


@pytest.mark.parametrize("size", [0, 5, 30, 75, 100, 5_000, -1])
def test_a_file_that_was_cut_short_is_refused(saved: Path, size: int) -> None:
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(
        SnapshotError, match="is not whole: it was cut short" if size not in (0, 5) else "is not a snap"
    ):
        Snapshot.load(saved)


def test_a_file_that_was_added_to_is_refused(saved: Path) -> None:
    with saved.open("ab") as file:
        file.write(b"x")
    with pytest.raises(SnapshotError, match="is not whole: it was cut short, or added to"):
        Snapshot.load(saved)


def test_a_file_of_another_key_is_refused(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another user's, or another machine's."""
    monkeypatch.setenv("STOCKADE_STATE", str(tmp_path / "other"))
    with pytest.raises(SnapshotError, match="written by another user or on another machine"):
        Snapshot.load(saved)


def test_an_entry_of_the_cache_is_no_snapshot(box: Sandbox, tmp_path: Path) -> None:
    """The attack: what was signed by the same key for something else."""
    path = tmp_path / "entry"
    path.write_bytes(b"stockade machine code 2\n" + bytes(100))
    with pytest.raises(SnapshotError, match="is not a snapshot of Stockade's"):
        Snapshot.load(path)


def test_a_file_of_another_format_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes().replace(b"stockade snapshot 2\n", b"stockade snapshot 0\n", 1))
    with pytest.raises(SnapshotError, match="is in a format that this release does not read: take it anew"):
        Snapshot.load(saved)


@pytest.mark.parametrize("what", ["guard", "weaver", "engine"])
def test_a_file_of_another_release_is_refused(
    box: Sandbox, saved: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by = _snapshot_file._made_by()
    other = {
        "guard": re.sub("guard [0-9a-f]{4}", "guard 0000", made_by),
        "weaver": made_by.replace("weaver ", "weaver 9"),
        "engine": made_by.replace("wasmtime ", "wasmtime 1"),
    }[what]
    assert other != made_by
    with monkeypatch.context() as patch:
        patch.setattr(_snapshot_file, "_made_by", lambda: other)
        with box.open(COUNTER) as session:
            session.snapshot().save(saved)
        Snapshot.load(saved)
    with pytest.raises(SnapshotError, match="was taken by another release"):
        Snapshot.load(saved)


def test_a_file_of_another_module_is_refused(saved: Path) -> None:
    other = wat('(module (func (export "f")))')
    with pytest.raises(SnapshotError, match="is of another module") as refused:
        Snapshot.load(saved, other)
    assert str(refused.value).endswith("take one of this module")


@pytest.mark.parametrize("make", ["folder", "fifo", "link", "nothing"])
def test_what_is_no_regular_file_is_refused(saved: Path, tmp_path: Path, make: str) -> None:
    """The attack: something that waits for ever, or leads elsewhere."""
    path = tmp_path / make
    if make == "folder":
        path.mkdir()
    elif make == "fifo":
        os.mkfifo(path)
    elif make == "link":
        path.symlink_to(saved)
    with pytest.raises(SnapshotError, match="cannot be read"):
        Snapshot.load(path)


def test_a_file_that_cannot_be_written_is_told(box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with box.open(COUNTER) as session:
        snapshot = session.snapshot()
    with pytest.raises(SnapshotError, match=r"cannot be written to .*: No such file or directory"):
        snapshot.save(tmp_path / "missing" / "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SnapshotError, match=r"cannot be written to .*: Is a directory"):
        snapshot.save(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    (tmp_path / "open").mkdir(mode=0o755)
    monkeypatch.setenv("STOCKADE_STATE", str(tmp_path / "open"))
    with pytest.raises(SnapshotError, match=r"signed by a secret, and there is none: .* is not private"):
        snapshot.save(tmp_path / "x")


def test_writing_over_a_file_leaves_the_old_one_or_the_new_one(
    box: Sandbox, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    with box.open(COUNTER) as session:
        snapshot = session.snapshot()
    monkeypatch.setattr(_snapshot_file.os, "pread", full)
    with pytest.raises(SnapshotError, match="No space left on device"):
        snapshot.save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize(
    "extent",
    [(0, 8_192, 0), (4_096, 4_096, 100), (262_144, 4_096, 0), (-4_096, 4_096, 0), (0, 4_096, 1 << 40), (0, 0, 0)],
)
def test_what_does_not_fit_is_never_mapped(
    box: Sandbox, saved: Path, extent: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were something wrong with what we have written ourselves, it would not be mapped over other memory."""
    real = _snapshot_file._Memory
    small = wat('(module (memory (export "memory") 4) (data (i32.const 0) "x"))')
    with box.open(small) as session:
        snapshot = session.snapshot()
    with monkeypatch.context() as changed:
        changed.setattr(_snapshot_file, "_Memory", lambda size, _: real(size, [extent]))
        snapshot.save(saved)
    with pytest.raises(SnapshotError, match="does not fit"):
        Snapshot.load(saved)
