"""Mounts: folders that are open before they are checked, so that what was checked is what guests are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from stockade._text import printable
from stockade.errors import PolicyError
from stockade.policy import folders_on_the_way
from stockade.system import (
    NotGranted,
    OpenFolder,
    forget_granted,
    identities_on_the_way,
    kernel_file_system,
    note_granted,
    private_files,
    private_folders,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from stockade.engine import Directory
    from stockade.execution._host_code import HostCode
    from stockade.policy import Mount
    from stockade.system import Identity

__all__ = ["OpenMounts"]


class _Granted(NamedTuple):
    """A mount, and the folder that it was when the sandbox was made."""

    mount: Mount
    folder: OpenFolder


class OpenMounts:
    """Folders that guests may reach, open since before they were checked.

    Native WASI is given the open folder, not its path: whoever can rename things on the way to it (another guest, in a
    folder that contains it) cannot make it another folder. They are let go of when nothing refers to them any
    more: closing them under a run in another thread would give their numbers, and so other folders, to its guest.

    Args:
        mounts: The mounts of a policy.

    Raises:
        PolicyError: One cannot be granted.

    Attributes:
        directories: What native WASI may reach.
    """

    def __init__(self, mounts: Sequence[Mount]) -> None:
        _check_names(mounts)
        granted = [_Granted(mount, _opened(mount)) for mount in mounts]
        # First: who opens an audit log notes it before looking here, so that one of both sees the other.
        for _, folder in granted:
            note_granted(folder)
        try:
            _check_own(granted)
        except PolicyError:
            # Whoever holds what is raised holds these.
            for _, folder in granted:
                forget_granted(folder)
            raise
        self._set(granted)

    def narrowed(self, mounts: Sequence[Mount]) -> OpenMounts:
        """Returns the same folders, as far as a narrower policy has them, with the rights that it gives.

        They are the folders that are open here, wherever they have gone since, and whatever is in their place now.

        Args:
            mounts: The mounts of a policy that permits no more than the one of these.

        Raises:
            PolicyError: Two of them contradict each other.
        """
        folders = {(granted.mount.host, granted.mount.guest): granted.folder for granted in self._granted}
        narrowed = object.__new__(OpenMounts)
        narrowed._set([_Granted(mount, folders[mount.host, mount.guest]) for mount in mounts])
        return narrowed

    @classmethod
    def received(cls, mounts: Sequence[Mount], descriptors: Sequence[int]) -> OpenMounts:
        """Returns folders that another process has opened and checked, as its runs reach them.

        Args:
            mounts: What they are called, and whether they are writable; where they are does not matter.
            descriptors: The folders, in the same order.
        """
        found = object.__new__(cls)
        found._granted = tuple(map(_Granted, mounts, map(OpenFolder.received, descriptors)))
        found._list()
        return found

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open folders, in the order of the mounts."""
        return tuple(granted.folder.descriptor for granted in self._granted)

    def _set(self, granted: Sequence[_Granted]) -> None:
        for place, inner in enumerate(granted):
            for outer in granted[:place]:
                _check_pair(outer, inner)
        self._granted = tuple(granted)
        self._list()

    def _list(self) -> None:
        self.directories: tuple[Directory, ...] = tuple(
            (folder.name, mount.guest.encode(), mount.mode == "rw") for mount, folder in self._granted
        )

    def check(self) -> None:
        """Checks that the folders still are.

        Raises:
            PolicyError: One was removed.
        """
        for mount, folder in self._granted:
            if folder.removed:
                raise PolicyError(
                    f"the mount {printable(mount.guest)} has lost its folder: {printable(mount.host, 400)} was removed"
                )


def _opened(mount: Mount) -> OpenFolder:
    guest, shown = printable(mount.guest), printable(mount.host, 400)
    try:
        return OpenFolder(mount.host, writable=mount.mode == "rw")
    except NotGranted as problem:
        why = str(problem)
        if why == "does not exist":
            raise PolicyError(f"the mount {guest} cannot be made: {shown} does not exist") from None
        raise PolicyError(
            f"the mount {guest} cannot be made: {shown}{'' if why.startswith(':') else ' '}{why}"
        ) from None


def _check_names(mounts: Iterable[Mount]) -> None:
    """Checks that no two folders have one name.

    Raises:
        PolicyError: Two have.
    """
    names: dict[str, Mount] = {}
    for mount in mounts:
        name = "/" + "/".join(part for part in mount.guest.split("/") if part)
        if name in names:
            first, second = (printable(each.host, 400) for each in (names[name], mount))
            raise PolicyError(f"two folders are mounted at {printable(name)}: {first} and {second}")
        names[name] = mount


def _check_own(granted: Sequence[_Granted]) -> None:
    """Checks that no guest reaches what is ours or the kernel's, or writes where this process takes its code from.

    Raises:
        PolicyError: One would.
    """
    known: dict[str, Identity | None] = {}
    own = [_Private(folder, known) for folder in private_folders()] if granted else []
    files = {file: identities_on_the_way(str(file.parent), known) for file in private_files()} if granted else {}
    code = _host_code() if any(mount.mode == "rw" for mount, _ in granted) else None
    for mount, folder in granted:
        guest = printable(mount.guest)
        for private in own:
            if private.reached_from(folder):
                raise PolicyError(
                    f"the mount {guest} covers {private.shown}, where Stockade keeps machine code and "
                    "secrets, which no guest may reach: mount a folder beside it"
                )
            if mount.mode == "rw" and private.exchanged_from(folder):
                raise PolicyError(
                    f"the mount {guest} is writable and has a link on the way to {private.shown}, where Stockade keeps "
                    "machine code and secrets: a guest could lead it elsewhere. Mount it read-only, or a folder "
                    "beside it"
                )
        for file, around in files.items():
            if folder.identity in around:
                raise PolicyError(
                    f"the mount {guest} covers {printable(str(file), 400)}, an audit log, which no guest may reach: "
                    "mount a folder beside it, or move the log"
                )
        if told := kernel_file_system(folder.descriptor, folder.path):
            raise PolicyError(f"the mount {guest} cannot be made: {printable(mount.host, 400)} {told}")
        if code is not None and mount.mode == "rw" and (reached := code.reached_from(folder)):
            raise PolicyError(f"the mount {guest} is writable and {reached}. Mount it read-only, or a folder beside it")


class _Private:
    """A folder of ours that no guest may reach; it need not exist yet."""

    def __init__(self, folder: Path, known: dict[str, Identity | None]) -> None:
        real = str(folder.resolve())
        self.shown = printable(real, 400)
        self._around = identities_on_the_way(real, known)
        self._identity = known[real]
        # Where the folders and links stand that lead to it.
        self._ways: set[Identity] = set()
        for way in folders_on_the_way(folder):
            self._ways |= identities_on_the_way(way, known)

    def reached_from(self, folder: OpenFolder) -> bool:
        return folder.identity in self._around or self._identity in folder.within

    def exchanged_from(self, folder: OpenFolder) -> bool:
        return folder.identity in self._ways


def _check_pair(first: _Granted, second: _Granted) -> None:
    """Checks that two mounts do not contradict each other.

    A folder that is mounted twice, or inside another mount, must have the same rights both times: native WASI enforces
    rights by the way a path is reached, so a read-only folder inside a writable one would be writable.

    Raises:
        PolicyError: They do.
    """
    earlier, mount = first.mount, second.mount
    if not (first.folder.covers(second.folder) or second.folder.covers(first.folder)):
        return
    guest = printable(mount.guest)
    if earlier.mode != mount.mode:
        inner = max(first.folder, second.folder, key=lambda folder: len(folder.within))
        raise PolicyError(
            f"the mounts {printable(earlier.guest)} ({earlier.mode}) and {guest} ({mount.mode}) share the "
            f"folder {printable(inner.path, 400)} with different rights: "
            "what one forbids the other would allow. Give both the same mode, or mount separate folders"
        )
    if first.folder.identity != second.folder.identity and mount.mode == "rw":
        raise PolicyError(
            f"of the mounts {printable(earlier.guest)} and {guest}, one lies inside the other and both are "
            "writable: a guest could put a link in the place of the inner one. Mount the outer one only"
        )


def _host_code() -> HostCode:
    # It imports what takes a while, and most policies have no folder for writing.
    from stockade.execution._host_code import HostCode

    return HostCode()
