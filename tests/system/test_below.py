"""Folders below an open one, by names that a guest may have chosen."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from stockade.system import folder_below
from tests._processes import open_descriptors

if TYPE_CHECKING:
    from pathlib import Path


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    top = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(2):
            with folder_below(top, ["a", "b"], 0o700) as here:
                assert (tmp_path / "a" / "b").stat().st_ino == os.fstat(here).st_ino
        with folder_below(top, []) as here:
            assert tmp_path.stat().st_ino == os.fstat(here).st_ino
        assert os.fstat(top)
    finally:
        os.close(top)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("what", ["a link", "a file"])
def test_nothing_is_reached_through_a_link(what: str, tmp_path: Path) -> None:
    """The attack: a guest leaves a link to a folder of the host's where one of its own is expected."""
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    if what == "a link":
        (inside / "a").symlink_to(outside)
    else:
        (inside / "a").write_bytes(b"")
    top = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
    before = open_descriptors()
    try:
        with pytest.raises(NotADirectoryError), folder_below(top, ["a", "b"]):
            pytest.fail("it was reached")
        assert open_descriptors() == before
    finally:
        os.close(top)
    assert list(outside.iterdir()) == []
