"""What a gate has kept aside: in the state folder, for its owner alone, until somebody releases or deletes it."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from stockade._text import printable
from stockade.errors import EngineError, UsageError
from stockade.report import Finding  # noqa: TC001 - msgspec looks it up
from stockade.system import open_private, state_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Quarantined", "drop_aside", "keep_aside", "quarantined", "quarantined_as", "remove_leftovers"]

_MOST_BYTES: Final = 1 << 30
"""Of all that is kept aside."""

_MOST_ENTRIES: Final = 10_000
_ID: Final = re.compile(r"[0-9]{8}-[0-9a-f]{12}")
_RECORD: Final = "record.json"

_MOST_NAME_BYTES: Final = 255
_MOST_PATH_BYTES: Final = 2048
"""Of the name of a part: a file is written by its path, of which the system takes 4095 bytes."""

_LONG_NAMES: Final = "long-names"
"""The folder of what has a name that is too long for a file: no part begins so."""

_TRIES: Final = 10


class Quarantined(msgspec.Struct, frozen=True, kw_only=True):
    """What was kept aside of one run.

    Attributes:
        id: What it is called.
        at: When it was kept, in seconds since 1970.
        module: The name of the module.
        policy: The name of the policy.
        findings: Why.
        parts: What there is, by its names, such as `stdout`, `value` and `files/a.txt`, and how many bytes each has.
    """

    id: str
    at: float
    module: str
    policy: str
    findings: tuple[Finding, ...] = ()
    parts: dict[str, int] = {}

    def read(self, part: str) -> bytes:
        """Returns a part as it was.

        Args:
            part: Its name.

        Raises:
            UsageError: There is none of that name.
            OSError: It cannot be read.
        """
        if part not in self.parts:
            raise UsageError(
                f"{self.id} has no part {printable(part)!r}: it has {', '.join(map(printable, self.parts))}"
            )
        place = open_private(_folder() / self.id)
        try:
            descriptor = os.open(_file_of(self.parts, part), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
            with os.fdopen(descriptor, "rb") as file:
                return file.read()
        finally:
            os.close(place)

    def release(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes all parts below a folder, and keeps them aside no longer.

        Args:
            folder: The folder, which must not be there yet.

        Returns:
            The files that were written, in the order of `parts`. What has a name too long for a file is called
            `long-names/` and its number in that order, from 0 on.

        Raises:
            UsageError: The folder is there, or a part has a name that leads out of it.
            OSError: It cannot be written. Then nothing is, and it is kept aside as before.
        """
        target = Path(folder)
        try:
            target.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            raise UsageError(f"{printable(str(target), 400)} is there already: name a folder that is not") from None
        try:
            written = [self._write_to(target, number, part) for number, part in enumerate(self.parts)]
        except BaseException:
            # All of it, or none: it can be released again, to the same folder.
            shutil.rmtree(target, ignore_errors=True)
            raise
        self.delete()
        return written

    def _write_to(self, target: Path, number: int, part: str) -> Path:
        names = part.split("/")
        if any(name in ("", ".", "..") or "\0" in name for name in names):
            raise UsageError(f"the part {printable(part)!r} has a name that is none")
        sizes = [len(os.fsencode(name)) + 1 for name in names]
        if max(sizes) > _MOST_NAME_BYTES or sum(sizes) > _MOST_PATH_BYTES:
            names = [_LONG_NAMES, str(number)]
        path = target.joinpath(*names)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), self.read(part))
        return path

    def delete(self) -> None:
        """Deletes it."""
        place = open_private(_folder())
        gone = f".gone-{self.id}-{secrets.token_hex(6)}"
        try:
            # Renamed first: what is half gone is not found by its name any more.
            os.rename(self.id, gone, src_dir_fd=place, dst_dir_fd=place)
            _remove(place, gone)
        except FileNotFoundError:
            raise UsageError(f"{self.id} is kept aside no longer") from None
        finally:
            os.close(place)


def drop_aside(name: str) -> None:
    """Deletes what was kept aside, if it is there.

    Args:
        name: What it is called.

    Raises:
        OSError: It cannot be deleted.
    """
    with suppress(UsageError):
        quarantined_as(name).delete()


def remove_leftovers() -> int:
    """Removes what processes that were killed had begun to keep aside, or to delete; says of how many runs that was.

    Raises:
        EngineError: There is no folder for it, or it is not private.
    """
    folder = _folder()
    if not folder.exists():
        return 0
    place = open_private(folder)
    try:
        return _remove_leftovers(place)
    finally:
        os.close(place)


def _remove_leftovers(place: int) -> int:
    count = 0
    for name in _names(place):
        if name.startswith(".gone-"):
            # Whoever was to delete it may be at it: both may.
            _remove(place, name)
            count += 1
        elif name.startswith(".new-"):
            with suppress(OSError):
                inside = _locked(place, name)
                try:
                    _remove(place, name)
                    count += 1
                finally:
                    os.close(inside)
    return count


def _locked(place: int, name: str) -> int:
    """Opens what is being kept aside, for as long as nobody else is at it.

    Raises:
        OSError: Somebody is, or it is gone.
    """
    inside = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
    try:
        fcntl.flock(inside, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(inside), os.stat(name, dir_fd=place, follow_symlinks=False)):
            raise FileNotFoundError(name)
    except BaseException:
        os.close(inside)
        raise
    return inside


def _begin(place: int) -> tuple[str, int]:
    """Makes a folder for what is to be kept aside; returns its name, and the folder, which is locked.

    Raises:
        OSError: There can be none.
    """
    for tries in range(_TRIES):
        name = f".new-{secrets.token_hex(6)}"
        os.mkdir(name, 0o700, dir_fd=place)
        try:
            return name, _locked(place, name)
        except OSError:
            # Another process has taken it for a leftover, before it was locked.
            with suppress(OSError):
                os.rmdir(name, dir_fd=place)
            if tries == _TRIES - 1:
                raise
    raise AssertionError("there was a try")


def _remove(place: int, name: str) -> None:
    """Removes a folder, which others may be removing, too.

    Raises:
        OSError: It cannot be removed.
    """
    shutil.rmtree(name, ignore_errors=True, dir_fd=place)
    with suppress(FileNotFoundError):
        # What is left of it, and why.
        shutil.rmtree(name, dir_fd=place)


def keep_aside(
    module: str, policy: str, findings: Sequence[Finding], parts: Mapping[str, bytes], name: str = ""
) -> str:
    """Keeps something aside; returns what it is called.

    Args:
        module: The name of the module.
        policy: The name of the policy.
        findings: Why.
        parts: What is kept, by its names.
        name: What something is called that was kept of the same run, and that these belong to; "" for nothing.

    Raises:
        OSError: It cannot be written.
        EngineError: There is no place for it, or no room.
    """
    before = quarantined_as(name) if name else None
    if before is not None:
        parts = {**{part: before.read(part) for part in before.parts}, **parts}
        findings = (*before.findings, *findings)
    parts = _with_written_names(parts)
    place = open_private(_folder())
    try:
        _remove_leftovers(place)
        _check_room(place, sum(map(len, parts.values())))
        made = name or f"{time.strftime('%Y%m%d', time.gmtime())}-{secrets.token_hex(6)}"
        sizes = {part: len(data) for part, data in parts.items()}
        record = Quarantined(
            id=made, at=time.time(), module=module, policy=policy, findings=tuple(findings), parts=sizes
        )
        files = {f"part-{number}": data for number, data in enumerate(parts.values())}
        files[_RECORD] = msgspec.json.encode(record)
        new, inside = _begin(place)
        try:
            for file, data in files.items():
                _write(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=inside), data)
            if before is not None:
                before.delete()
            os.rename(new, made, src_dir_fd=place, dst_dir_fd=place)
        except BaseException:
            with suppress(OSError):
                shutil.rmtree(new, dir_fd=place)
            raise
        finally:
            # Not before it has its name: it would be taken for a leftover.
            os.close(inside)
    finally:
        os.close(place)
    return made


def _with_written_names(parts: Mapping[str, bytes]) -> dict[str, bytes]:
    """Returns parts by names that can be written down, for a guest may choose bytes that are no text."""
    found: dict[str, bytes] = {}
    for name, data in parts.items():
        written = free = os.fsencode(name).decode("utf-8", "backslashreplace")
        number = 1
        while free in found:
            number += 1
            free = f"{written} ({number})"
        found[free] = data
    return found


def quarantined() -> list[Quarantined]:
    """Returns all that is kept aside, the latest first. What a process that was killed had begun to keep is removed.

    Raises:
        EngineError: There is no folder for it, or it is not private.
    """
    folder = _folder()
    if not folder.exists():
        return []
    place = open_private(folder)
    try:
        _remove_leftovers(place)
        found = [_read(place, name) for name in _names(place) if _ID.fullmatch(name)]
    finally:
        os.close(place)
    return sorted((each for each in found if each is not None), key=lambda each: (-each.at, each.id))


def quarantined_as(name: str) -> Quarantined:
    """Returns what is kept aside under a name.

    Args:
        name: What it is called.

    Raises:
        UsageError: There is nothing of that name.
        EngineError: There is no folder for it, or it is not private.
    """
    found = None
    folder = _folder()
    if _ID.fullmatch(name) and folder.exists():
        place = open_private(folder)
        try:
            found = _read(place, name)
        finally:
            os.close(place)
    if found is None:
        raise UsageError(f"nothing is kept aside as {printable(name)!r}: `stockade gate list` tells what is")
    return found


def _names(place: int) -> list[str]:
    return os.listdir(place)


def _read(place: int, name: str) -> Quarantined | None:
    """Reads what is kept under a name; None where it is gone, or is none."""
    try:
        inside = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
    except OSError:
        return None
    try:
        with os.fdopen(os.open(_RECORD, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside), "rb") as file:
            found = msgspec.json.decode(file.read(), type=Quarantined)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None
    finally:
        os.close(inside)
    return found if found.id == name else None


def _file_of(parts: Mapping[str, object], part: str) -> str:
    """Returns what the file of a part is called: a number, for its name may be one that a guest chose."""
    return f"part-{list(parts).index(part)}"


def _write(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _check_room(place: int, size: int) -> None:
    names = [name for name in _names(place) if _ID.fullmatch(name)]
    kept = [found for name in names if (found := _read(place, name)) is not None]
    total = size + sum(sum(each.parts.values()) for each in kept)
    if len(names) >= _MOST_ENTRIES or total > _MOST_BYTES:
        raise EngineError(
            f"{_MOST_BYTES:,} bytes, or {_MOST_ENTRIES:,} runs, are kept aside already: release or delete some "
            "(`stockade gate list`)"
        )


def _folder() -> Path:
    folder = state_folder()
    if folder is None:
        raise EngineError("there is no folder for what is kept aside: set STOCKADE_STATE to one")
    return folder / "quarantine"
