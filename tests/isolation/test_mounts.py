"""What guests may do with names in folders, and between folders of different rights, is the same in both walls.

The guard refuses first; what native code in a worker comes to is shown in `tests/jail`. Holds P-ISO-3.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest

from stockade.isolation import backend
from stockade.policy import Filesystem, Mount, Policy
from tests.limits._guests import EPERM, MOUNT, SUCCESS, Script, tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stockade.execution import Isolation

EIO = 29
"""What native WASI says where a name would go to another file system."""

FIRST, SECOND = MOUNT, MOUNT + 1

BETWEEN: dict[str, Callable[[Script], object]] = {
    "rename out": lambda script: script.call("path_rename", FIRST, "one", SECOND, "new"),
    "rename in": lambda script: script.call("path_rename", SECOND, "mine", FIRST, "new"),
    "rename over": lambda script: script.call("path_rename", SECOND, "mine", FIRST, "one"),
    "link out": lambda script: script.call("path_link", FIRST, 0, "one", SECOND, "new"),
    "link in": lambda script: script.call("path_link", SECOND, 0, "mine", FIRST, "new"),
}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of one file system, with a file each."""
    for folder, file in (("first", "one"), ("second", "mine")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text(file)
    return tmp_path / "first", tmp_path / "second"


def both(folders: tuple[Path, Path], mode: str, **rights: bool) -> Policy:
    """The first as told, the second writable."""
    mounts = (Mount(folders[0], "/first", mode), Mount(folders[1], "/second", "rw"))  # type: ignore[arg-type]
    return Policy(filesystem=Filesystem(mounts=mounts, **{"delete": True, "symlinks": True, **rights}))  # type: ignore[arg-type]


@pytest.mark.parametrize("way", BETWEEN)
def test_nothing_goes_between_folders_of_different_rights(
    folders: tuple[Path, Path], way: str, isolation: Isolation
) -> None:
    """Attack: a file that may be read gets a name where it may be written, or one that is written replaces it."""
    before = [tree(folder) for folder in folders]
    script = Script()
    BETWEEN[way](script)

    played = script.play(both(folders, "ro"), isolation)

    assert played.errnos == [EPERM]
    assert [tree(folder) for folder in folders] == before
    assert (played.only_violation().kind, played.only_violation().action) == ("path", "deny")


@pytest.mark.parametrize("way", BETWEEN)
def test_between_folders_of_the_same_rights(folders: tuple[Path, Path], way: str, isolation: Isolation) -> None:
    """The twin: it works, but where each is a mount of its own, as between disks; then nothing has changed."""
    before = [tree(folder) for folder in folders]
    script = Script()
    BETWEEN[way](script)

    played = script.play(both(folders, "rw"), isolation)

    assert played.report.violations == ()
    if isolation == "process" and "mount" in backend("process").check():
        assert played.errnos == [EIO]
        assert [tree(folder) for folder in folders] == before
    else:
        assert played.errnos == [SUCCESS]
        assert [tree(folder) for folder in folders] != before


@pytest.mark.parametrize(("create", "delete"), [*product([False, True], repeat=2)])
def test_to_rename_takes_both_rights(
    folders: tuple[Path, Path], create: bool, delete: bool, isolation: Isolation
) -> None:
    """One name is made, and another is removed: in the same folder, too."""
    script = Script()
    script.call("path_rename", SECOND, "mine", SECOND, "new")

    played = script.play(both(folders, "rw", create=create, delete=delete, symlinks=False), isolation)

    allowed = create and delete
    assert played.errnos == [SUCCESS if allowed else EPERM]
    assert [path.name for path in folders[1].iterdir()] == ["new" if allowed else "mine"]
    assert bool(played.report.violations) is not allowed
