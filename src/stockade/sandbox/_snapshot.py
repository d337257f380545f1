"""Snapshots: what a session's guest held between two calls, as users hold it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from stockade.errors import UsageError
from stockade.execution import SavedGuest
from stockade.modules import Module

if TYPE_CHECKING:
    from os import PathLike

    from stockade.execution import PolicyContext
    from stockade.modules import Source

__all__ = ["SNAPSHOT_MARK", "Snapshot", "is_snapshot_file", "load_source"]

SNAPSHOT_MARK: Final = b"stockade snapshot "
"""What the file of a snapshot begins with."""


class Snapshot:
    """What a guest held between two calls: its memories and globals. Give it to `Sandbox.open`, `call` and `run`.

    Each makes a guest of its own that begins with it, in the place of a new one. They share what none of them has
    written to. It is freed with the last reference to it and the last guest that began with it.

    A guest's random state is part of it: guests that begin with one snapshot draw the same numbers from a generator
    that was seeded before it was taken.

    Args:
        saved: What the guest held.
    """

    __slots__ = ("__weakref__", "_saved")

    def __init__(self, saved: SavedGuest) -> None:
        self._saved = saved

    def __repr__(self) -> str:
        return f"<Snapshot of {self.module.name}, {self.memory_bytes:,} bytes>"

    @property
    def module(self) -> Module:
        """The module whose guest it was taken of."""
        return self._saved.state.module

    @property
    def memory_bytes(self) -> int:
        """How large the guest's memories are together: what each guest that begins with it takes of `limits.memory`."""
        return self._saved.state.memory_bytes

    @property
    def stored_bytes(self) -> int:
        """How much memory it takes, once for all guests that begin with it: pages of zeros are left out.

        Of a session that itself began with a snapshot, or of which one was taken before, only what has changed since
        is stored anew; the rest is counted in both.
        """
        return self._saved.state.instance.stored_bytes

    def save(self, path: str | PathLike[str], *, dir_fd: int | None = None) -> None:
        """Writes it to a file, for `load`: all of it or nothing. What was at the path is replaced.

        The file holds all that is in the guest's memory, and is readable by its owner only. It is signed by a secret of
        the user's (`STOCKADE_STATE`), so `load` believes it on this machine, for this user.

        Args:
            path: Where to. What lies there is replaced: it is not followed, nor opened.
            dir_fd: An open folder that a relative path begins at, as `os.open` has it.

        Raises:
            SnapshotError: It cannot be written there, or there is no secret.
        """
        from stockade.sandbox._snapshot_file import write_snapshot

        write_snapshot(self._saved.state, Path(path), dir_fd)

    @classmethod
    def load(cls, path: str | PathLike[str], module: Module | None = None) -> Snapshot:
        """Reads a snapshot that `save` has written.

        Args:
            path: Where it is.
            module: The module that it has to be of; None for any.

        Raises:
            UsageError: The module is none.
            SnapshotError: It was changed, cut short, or written by somebody else; or it is of another module, or of
                another release of Stockade or wasmtime.
        """
        from stockade.sandbox._snapshot_file import read_snapshot

        if module is not None and not isinstance(module, Module):
            raise UsageError(f"module is {type(module).__name__}: give a Module, as Module.load returns it")
        return cls(SavedGuest(read_snapshot(Path(path), module)))


def is_snapshot_file(path: Path) -> bool:
    """Whether a file says that it is a snapshot; it is not checked.

    Args:
        path: Where it is.
    """
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(SNAPSHOT_MARK)) == SNAPSHOT_MARK
    except OSError:
        return False


def load_source(context: PolicyContext, source: Source | Snapshot) -> tuple[Module, SavedGuest | None]:
    """Loads a module, as large as the policy allows, or that of a snapshot.

    Args:
        context: The policy made ready.
        source: The module, or the snapshot.

    Returns:
        The module; and what its guests begin with, where that is not what the module begins with.

    Raises:
        ModuleError: It cannot be loaded.
    """
    if isinstance(source, Snapshot):
        saved = source._saved  # noqa: SLF001 - the other half of this class, kept out of the public one
        return context.load(saved.state.module), saved
    return context.load(source), None
