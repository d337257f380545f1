"""Which files a run has used, by its trace: where its descriptors lead, and what was read and written there."""

from __future__ import annotations

import posixpath
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stockade.policy import Mount
    from stockade.report import TracedCall

__all__ = ["Access", "FilesUsed", "paths_used", "size_below", "smallest_mount", "used_below"]

_UPWARDS: Final = "its paths lead upwards"
_LINKS: Final = "it makes links there"
_MOVES: Final = "it moves folders there"
"""Why a program cannot be held to a list of paths."""

_FIRST_MOUNT: Final = 3
_RIGHT_WRITE: Final = 0x40

_PATHS: Final = {
    "path_create_directory": (("fd", "path", True),),
    "path_filestat_get": (("fd", "path", False),),
    "path_filestat_set_times": (("fd", "path", True),),
    "path_link": (("old_fd", "old_path", True), ("new_fd", "new_path", True)),
    "path_open": (("fd", "path", False),),
    "path_readlink": (("fd", "path", False),),
    "path_remove_directory": (("fd", "path", True),),
    "path_rename": (("fd", "old_path", True), ("new_fd", "new_path", True)),
    "path_symlink": (("fd", "new_path", True),),
    "path_unlink_file": (("fd", "path", True),),
}
"""Calls about paths: for each path, the descriptor that it begins at, its name, and whether the call writes."""

_REMOVES: Final = frozenset({("path_unlink_file", "path"), ("path_rename", "old_path")})
"""Calls by which a file goes, or gets another name, with what names it."""

_REFUSED: Final = frozenset({"EPERM", "ENOTCAPABLE", "EACCES"})
"""How a path is refused that leads out of its mount."""

_CHANGES: Final = frozenset({"fd_write", "fd_pwrite", "fd_filestat_set_size", "fd_filestat_set_times", "fd_allocate"})


class Access(NamedTuple):
    """What was done with a path below a mount.

    Attributes:
        exists: Whether a call about it went well.
        wrote: Whether it was written, made, changed or removed.
        is_folder: Whether it is known to be a folder, which was not made or removed.
        opened: Whether it was opened, or is to be, or listed.
        made: Whether it was opened to be made where it was not there.
        passing: Whether it was made, and removed again.
    """

    exists: bool = False
    wrote: bool = False
    is_folder: bool = False
    opened: bool = False
    made: bool = False
    passing: bool = False

    @property
    def what(self) -> str:
        """What was done with it, in a word or two."""
        if self.passing:
            return "made and removed"
        if self.wrote:
            return "written"
        if not self.exists:
            return "looked for"
        return "looked at" if not self.opened else "listed" if self.is_folder else "read"


class FilesUsed:
    """Follows the descriptors of one guest.

    Args:
        mounts: The folders that it was granted, in their order.
    """

    def __init__(self, mounts: Sequence[Mount]) -> None:
        self._mounts = mounts
        self._open = {_FIRST_MOUNT + place: mount.guest for place, mount in enumerate(mounts)}
        # By the guest's paths.
        self.accesses: dict[str, Access] = {}
        # Folders below which something was done that is not done where there is a list of paths, and what.
        self.unlistable: dict[str, str] = {}
        self._moved: list[str] = []
        self._folders: set[str] = set()

    def follow(self, calls: Iterable[TracedCall]) -> None:
        """Takes calls in, in the order in which they were made.

        Args:
            calls: The calls.
        """
        for call in calls:
            went_well = call.has_returned and call.errno is None
            self._check_names(call, went_well=went_well)
            for descriptor, name, writes in _PATHS.get(call.call, ()):
                path = self._path(call, descriptor, name)
                if path is not None:
                    gone = went_well and (call.call, name) in _REMOVES
                    self._note(call, path, went_well=went_well, writes=writes, gone=gone)
            if went_well:
                self._follow_descriptor(call, _number(call, "fd"))

    def _check_names(self, call: TracedCall, *, went_well: bool) -> None:
        """Notes what a list of paths would not permit."""
        if call.errno in _REFUSED:
            return
        for descriptor, name, _ in _PATHS.get(call.call, ()):
            base, path = self._open.get(_number(call, descriptor)), call.arguments.get(name)
            if base is None or not isinstance(path, str):
                continue
            if ".." in path.split("/"):
                self.unlistable[base] = _UPWARDS
            if call.call in ("path_symlink", "path_link") and went_well:
                self.unlistable[base] = _LINKS
            if call.call == "path_rename" and went_well and (whole := self._path(call, descriptor, name)) is not None:
                self._moved.append(whole)

    def why_unlistable(self, root: str) -> str:
        """Says why a program cannot be held to a list of the paths below a folder; "" where it can be.

        Args:
            root: The folder, by the guest's path.
        """
        for path in self._moved:
            if path in self._folders or any(_is_below(other, path) for other in self.accesses):
                self.unlistable[path] = _MOVES
        found = (why for path, why in self.unlistable.items() if path == root or _is_below(path, root))
        return next(found, "")

    def _path(self, call: TracedCall, descriptor: str, name: str) -> str | None:
        """The path that a call is about, as the guest sees it; None where it is not known."""
        base, path = self._open.get(_number(call, descriptor)), call.arguments.get(name)
        if base is None or not isinstance(path, str) or name in call.cut or call.errno == "EILSEQ":
            return None
        return posixpath.normpath(posixpath.join(base, path.lstrip("/")))

    def _note(self, call: TracedCall, path: str, *, went_well: bool, writes: bool, gone: bool) -> None:
        is_folder = opened = made = False
        flags = call.arguments.get("oflags", ())
        if call.call == "path_open" and isinstance(flags, tuple):
            rights = _number(call, "fs_rights_base")
            writes = bool({"CREAT", "TRUNC"} & {*flags} or rights & _RIGHT_WRITE)
            is_folder = "DIRECTORY" in flags and not writes
            opened, made = True, "CREAT" in flags
            if went_well:
                self._open[_result(call, "opened_fd")] = path
        elif call.call == "path_filestat_get":
            answer = call.results.get("buf")
            is_folder = isinstance(answer, tuple) and answer[:1] == ("DIRECTORY",)
        if is_folder or (went_well and call.call == "path_create_directory"):
            self._folders.add(path)
        before = self.accesses.get(path, Access())
        self.accesses[path] = Access(
            before.exists or went_well,
            before.wrote or (writes and went_well),
            (before.is_folder or is_folder) and not (writes and went_well),
            before.opened or opened,
            before.made or made,
            before.passing or (before.made and gone),
        )

    def _follow_descriptor(self, call: TracedCall, descriptor: int) -> None:
        if call.call == "fd_close":
            self._open.pop(descriptor, None)
        elif call.call == "fd_renumber":
            path = self._open.pop(descriptor, None)
            if path is not None:
                self._open[_number(call, "to")] = path
        elif (path := self._open.get(descriptor)) is not None:
            if call.call in _CHANGES:
                self.accesses[path] = self.accesses.get(path, Access())._replace(exists=True, wrote=True)
            elif call.call == "fd_readdir":
                self.accesses[path] = self.accesses.get(path, Access())._replace(
                    exists=True, is_folder=True, opened=True
                )


def _number(call: TracedCall, name: str) -> int:
    value = call.arguments.get(name)
    return value if isinstance(value, int) else -1


def _result(call: TracedCall, name: str) -> int:
    value = call.results.get(name)
    return value if isinstance(value, int) else -1


def used_below(mount: Mount, accesses: dict[str, Access]) -> dict[str, Access]:
    """Returns what was used of a mount, by the guest's paths.

    Args:
        mount: The mount.
        accesses: What was used, of all mounts.
    """
    root = posixpath.normpath(mount.guest)
    return {path: access for path, access in accesses.items() if path == root or _is_below(path, root)}


def smallest_mount(mount: Mount, accesses: dict[str, Access]) -> tuple[Mount, dict[str, Access]] | None:
    """Returns the smallest folder of a mount in which all lies that was used of it, and what that was.

    Args:
        mount: The mount.
        accesses: What was used, of all mounts, by the guest's paths.

    Returns:
        A mount, read-only where nothing was written; None where nothing of it was used.
    """
    root, used = posixpath.normpath(mount.guest), used_below(mount, accesses)
    if not used:
        return None
    host = Path(mount.host).resolve()
    folders = []
    for path, access in used.items():
        below = posixpath.relpath(path, root)
        folders.append(below if access.is_folder or below == "." else posixpath.dirname(below) or ".")
        # Where links lead, as far as that is below the mount, too.
        target = _resolved(host / below)
        if target is not None and target != host / below and target.is_relative_to(host):
            folders.append(str(target.relative_to(host).parent))
    common = posixpath.commonpath([folder if folder != "." else "" for folder in folders]) if folders else ""
    # What a path leads through has to be there when the mount is opened.
    while common and not (host / common).is_dir():
        common = posixpath.dirname(common)
    mode: Literal["ro", "rw"] = "rw" if any(access.wrote for access in used.values()) else "ro"
    guest = posixpath.join(root, common) if common else mount.guest
    return type(mount)(str(host / common), guest, mode), used


def paths_used(root: str, accesses: dict[str, Access], *, names_vary: bool) -> dict[str, str] | None:
    """Returns the paths of a folder that a program has to be allowed to name, each with what was done with it.

    Args:
        root: The folder, by the guest's path.
        accesses: What was used of it.
        names_vary: Whether names that the program makes up can be others the next time. Then a folder is granted in
            which it has made and removed a file.

    Returns:
        None where that is all of the folder.
    """
    found: dict[str, str] = {}
    for path, access in sorted(accesses.items()):
        below = posixpath.relpath(path, root)
        if below == ".":
            if access.opened:
                found["."] = "the folder itself was listed"
        elif access.passing and names_vary:
            folder = posixpath.dirname(below)
            if not folder:
                return None
            found[f"{folder}/"] = "for files that it makes and removes again"
        else:
            found[below] = access.what
    folders = [path for path in found if path.endswith("/")]
    for path in [*found]:
        if any(f"{path}/".startswith(folder) and path != folder for folder in folders):
            del found[path]
    return found


def size_below(mount: Mount, path: str) -> int | None:
    """Returns how many bytes a plain file of a mount has now; None where there is none, or a link leads there.

    Args:
        mount: The mount.
        path: The path, as the guest sees it.
    """
    try:
        status = (Path(mount.host) / posixpath.relpath(path, mount.guest)).lstat()
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _resolved(path: Path) -> Path | None:
    """Where links lead; None where that cannot be said, for the guest can give any path."""
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):
        return None


def _is_below(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")
