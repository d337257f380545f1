"""What a guest may do and use, as frozen data."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from stockade._wasi import ERRNO, WASI, WASI_BY_NAME
from stockade.errors import PolicyError
from stockade.policy._units import shown

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["Clock", "Environment", "Filesystem", "Limits", "Mount", "Policy", "Random", "Wasi", "may_be_unlimited"]

_MAX_SECONDS = 10 * 365 * 86_400.0
_MAX_FUEL = 2**63 - 1
_MAX_COUNT = 2**62
_MAX_RATE = 10**10  # what fits the guard's arithmetic in nanoseconds
_MAX_NANOSECONDS = 2**62


class _Bound(msgspec.Struct, frozen=True):
    """The range of a limit; a None stands for unlimited, where that is allowed."""

    least: float
    most: float
    unlimited: bool = False
    whole: bool = True

    def check(self, path: str, value: object) -> None:
        if value is None and self.unlimited:
            return
        number_types = int if self.whole else (int, float)
        infinite = isinstance(value, float) and not math.isfinite(value)
        if isinstance(value, bool) or not isinstance(value, number_types) or infinite:
            also = " or unlimited (None)" if self.unlimited else ""
            raise PolicyError(f"{path} is {shown(value)}: it must be a {'whole ' * self.whole}number{also}")
        if not self.least <= value <= self.most:
            figure = f"{value:,}" if abs(value) < 10**30 else shown(value)
            raise PolicyError(f"{path} is {figure}: it must be between {self.least:,} and {self.most:,}")


def _one_of(path: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        *others, last = (f'"{choice}"' for choice in choices)
        raise PolicyError(f"{path} is {shown(value)}: it must be {', '.join(others)} or {last}")


def _flag(path: str, value: object) -> None:
    if not isinstance(value, bool):
        raise PolicyError(f"{path} is {shown(value)}: it must be true or false")


_BOUNDS = {
    "fuel": _Bound(1, _MAX_FUEL, unlimited=True),
    "wall_time": _Bound(0.001, _MAX_SECONDS, unlimited=True, whole=False),
    "memory": _Bound(0, 4 << 30),
    "table_elements": _Bound(0, 10_000_000),
    "idle_time": _Bound(0.001, _MAX_SECONDS, unlimited=True, whole=False),
    "open_files": _Bound(0, 4096),
    "files_created": _Bound(0, _MAX_COUNT, unlimited=True),
    "file_size": _Bound(0, _MAX_COUNT, unlimited=True),
    "read_bytes": _Bound(0, _MAX_COUNT, unlimited=True),
    "write_bytes": _Bound(0, _MAX_COUNT, unlimited=True),
    "read_rate": _Bound(1, _MAX_RATE, unlimited=True),
    "write_rate": _Bound(1, _MAX_RATE, unlimited=True),
    "random_bytes": _Bound(0, _MAX_COUNT, unlimited=True),
    "calls": _Bound(0, _MAX_COUNT, unlimited=True),
    "call_rate": _Bound(1, _MAX_RATE, unlimited=True),
    "stack": _Bound(16 << 10, 64 << 20),
    "memories": _Bound(0, 16),
    "tables": _Bound(0, 16),
    "module_size": _Bound(8, 1 << 30),
    "stdout": _Bound(0, 256 << 20),
    "stderr": _Bound(0, 256 << 20),
}


def may_be_unlimited(limit: str) -> bool:
    """Whether a limit can be left out."""
    return _BOUNDS[limit].unlimited if limit in _BOUNDS else False


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much a run may use. None is unlimited, where a field allows it.

    Attributes:
        fuel: Fuel units, about one for each instruction. None: not metered, which is faster.
        wall_time: Seconds from the first instruction to the last, waits included. None: no deadline.
        memory: Bytes that all linear memories and tables of the run may have together (8 for a table element).
        on_memory_denied: What refused growth does: `fail`, the guest gets -1 and goes on; `stop`, the run ends with
            outcome `memory`. A violation is reported either way.
        table_elements: Elements that all tables of the run may have together.
        stack: Bytes of stack for guest code.
        memories: Linear memories that a module may declare.
        tables: Tables that a module may declare.
        module_size: Bytes that a module file may have.
        stdout: Bytes of stdout that are kept, half of them for the beginning and half for the end.
        stderr: The same for stderr.
        idle_time: Seconds that a single wait in `poll_oneoff` may last; a longer one ends the run with outcome `idle`.
        open_files: Files and folders that may be open at a time, beside stdin, stdout, stderr and the mounts.
        files_created: Files, folders and links that may be created.
        file_size: Bytes that a file may reach by writing, seeking or setting its size.
        read_bytes: Bytes that may be read from files.
        write_bytes: Bytes that may be written to files.
        read_rate: Bytes that may be read in a second; a second's worth may go at once.
        write_rate: The same for writing.
        random_bytes: Random bytes that may be handed out.
        calls: WASI calls that may be made.
        call_rate: WASI calls that may be made in a second.
        on_rate: What an exceeded rate does: `wait`, the call waits for its turn; `refuse`, it fails with EAGAIN.
    """

    fuel: int | None = 5_000_000_000
    wall_time: float | None = 5.0
    memory: int = 128 << 20
    on_memory_denied: Literal["fail", "stop"] = "fail"
    table_elements: int = 10_000
    stack: int = 512 << 10
    memories: int = 1
    tables: int = 4
    module_size: int = 100 << 20
    stdout: int = 1 << 20
    stderr: int = 1 << 20
    idle_time: float | None = None
    open_files: int = 64
    files_created: int | None = 1_000
    file_size: int | None = 256 << 20
    read_bytes: int | None = None
    write_bytes: int | None = 256 << 20
    read_rate: int | None = None
    write_rate: int | None = None
    random_bytes: int | None = 64 << 20
    calls: int | None = None
    call_rate: int | None = None
    on_rate: Literal["wait", "refuse"] = "wait"

    def __post_init__(self) -> None:
        for name, bound in _BOUNDS.items():
            bound.check(f"limits.{name}", getattr(self, name))
        _one_of("limits.on_memory_denied", self.on_memory_denied, ("fail", "stop"))
        _one_of("limits.on_rate", self.on_rate, ("wait", "refuse"))


class Mount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A host folder that the guest may reach.

    Attributes:
        host: Path of the folder on the host.
        guest: Absolute path under which the guest sees it.
        mode: `ro` for reading, `rw` for reading and writing.
    """

    host: str
    guest: str
    mode: Literal["ro", "rw"] = "ro"

    def __post_init__(self) -> None:
        if self.mode not in ("ro", "rw"):
            raise PolicyError(f'the mount at {shown(self.guest)} has mode {shown(self.mode)}: it must be "ro" or "rw"')
        for side, path in (("host", self.host), ("guest", self.guest)):
            unchecked: object = path
            if not isinstance(unchecked, str) or not unchecked or "\0" in unchecked:
                raise PolicyError(f"a mount's {side} path is {shown(path)}: it must be a path")
        parts = self.guest.split("/")
        if self.guest[0] != "/" or ".." in parts or "." in parts:
            raise PolicyError(f"a mount's guest path is {shown(self.guest)}: it must be absolute, without . or ..")


class Filesystem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which folders a guest may reach, and what it may do there. None, unless they are named.

    Attributes:
        mounts: The folders.
        create: Whether files and folders may be created in writable mounts.
        delete: Whether files and folders may be removed there, or replaced by renaming.
        symlinks: Whether symbolic and hard links may be made there.
    """

    mounts: tuple[Mount, ...] = ()
    create: bool = True
    delete: bool = False
    symlinks: bool = False

    def __post_init__(self) -> None:
        mounts: object = self.mounts
        if not isinstance(mounts, tuple) or not all(isinstance(mount, Mount) for mount in mounts):
            raise PolicyError(f"filesystem.mounts is {shown(mounts)}: it must be a list of Mount")
        for name in ("create", "delete", "symlinks"):
            _flag(f"filesystem.{name}", getattr(self, name))


class Clock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What time the guest sees, on clocks and on files. It can never set a clock.

    Attributes:
        mode: `real`; `coarse`, cut to `resolution`; `virtual`, which starts at `start`, moves on by `step` whenever it
            is read and by the time of every wait, which then takes none; or `none`, clocks are refused.
        resolution: Seconds to which a coarse clock is cut.
        start: Seconds since 1970 at which the virtual time of day starts.
        step: Seconds by which a virtual clock moves on when it is read.
    """

    mode: Literal["real", "coarse", "virtual", "none"] = "real"
    resolution: float = 1e-3
    start: float = 946_684_800.0
    step: float = 1e-6

    def __post_init__(self) -> None:
        _one_of("clock.mode", self.mode, ("real", "coarse", "virtual", "none"))
        for name, least in (("resolution", 1e-9), ("start", 0), ("step", 0)):
            _Bound(least, _MAX_NANOSECONDS / 1e9, whole=False).check(f"clock.{name}", getattr(self, name))


class Environment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which environment variables the guest sees. None of the host's, unless they are named.

    Attributes:
        mode: What of the host's environment is passed on: `none`; `allow`, the variables in `names`; `deny`, all but
            those; `full`. Where they are not named one by one, variables for loaders and such as look like secrets
            are left out all the same.
        names: Names for `allow` and `deny`, matched exactly.
        set: Variables with their values, whatever the host has.
    """

    mode: Literal["none", "allow", "deny", "full"] = "none"
    names: tuple[str, ...] = ()
    set: dict[str, str] = {}

    def __post_init__(self) -> None:
        _one_of("environment.mode", self.mode, ("none", "allow", "deny", "full"))
        unchecked: object = self.names
        if not isinstance(unchecked, tuple):
            raise PolicyError(f"environment.names is {shown(unchecked)}: it must be a list of names")
        names: tuple[object, ...] = (*self.names, *self.set)
        for name in names:
            if not isinstance(name, str) or not name or "=" in name or "\0" in name:
                raise PolicyError(f"environment has the name {shown(name)}: it cannot be that of a variable")
        values: dict[str, object] = {**self.set}
        for name, value in values.items():
            if not isinstance(value, str) or "\0" in value:
                raise PolicyError(f"environment.set.{shown(name)} is {shown(value)}: it must be text")
        if self.names and self.mode in ("none", "full"):
            raise PolicyError(f'environment.names says nothing where the mode is "{self.mode}": leave it out')

    def of(self, host: Mapping[str, str]) -> dict[str, str]:
        """Returns what a guest sees of a host's environment.

        Args:
            host: The host's variables.
        """
        if self.mode == "allow":
            passed = {name: host[name] for name in self.names if name in host}
        elif self.mode == "none":
            passed = {}
        else:
            passed = {
                name: value for name, value in host.items() if name not in self.names and not _SENSITIVE.search(name)
            }
        return {**passed, **self.set}


# Variables that steer loaders and interpreters, and names under which secrets are kept.
_SENSITIVE = re.compile(
    r"^(LD_|DYLD_|PYTHON|NODE_OPTIONS|PERL5|RUBYOPT|BASH_ENV|IFS|AWS_|AZURE_|GOOGLE_|GCP_)"
    r"|SECRET|TOKEN|PASSW|PWD|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_?KEY|AUTH|COOKIE|SESSION",
    re.IGNORECASE,
)


class Random(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What randomness the guest gets.

    Attributes:
        mode: `full`, the host's entropy; `seeded`, SplitMix64 from `seed`, the same in every run; `none`, refused.
        seed: Where the seeded generator starts.
    """

    mode: Literal["none", "seeded", "full"] = "full"
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("random.mode", self.mode, ("none", "seeded", "full"))
        _Bound(0, 2**64 - 1).check("random.seed", self.seed)


class Wasi(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which WASI calls the guest may make.

    Attributes:
        allow: Calls, by name (`fd_write`), pattern (`path_*`) or group (`clock`); what is not allowed is refused.
        deny: Calls that are refused all the same.
        errno: How they are refused: `notcapable`, `perm` or `nosys`.
    """

    allow: tuple[str, ...] = ("*",)
    deny: tuple[str, ...] = ("sock_*",)
    errno: Literal["notcapable", "perm", "nosys"] = "notcapable"

    def __post_init__(self) -> None:
        _one_of("wasi.errno", self.errno, tuple(ERRNO))
        for name in ("allow", "deny"):
            for pattern in getattr(self, name):
                if not isinstance(pattern, str) or not _matching(pattern):
                    raise PolicyError(
                        f"wasi.{name} has {shown(pattern)}, which is no WASI call, group or pattern of calls: "
                        "write names such as fd_write, path_* or clock"
                    )

    def refused(self) -> frozenset[str]:
        """Returns the names of the calls that are refused."""
        allowed = {name for pattern in self.allow for name in _matching(pattern)}
        denied = {name for pattern in self.deny for name in _matching(pattern)}
        return frozenset(WASI_BY_NAME) - allowed | denied


def _matching(pattern: str) -> list[str]:
    return [call.name for call in WASI if call.group == pattern or fnmatchcase(call.name, pattern)]


_SECTIONS = ("limits", "filesystem", "environment", "clock", "random", "wasi")
_PARTS = {
    "name": str,
    "limits": Limits,
    "filesystem": Filesystem,
    "environment": Environment,
    "clock": Clock,
    "random": Random,
    "wasi": Wasi,
}


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a guest may do. Whatever is not named here, it may not.

    Attributes:
        name: A name for reports.
        limits: How much it may use.
        filesystem: Which folders it may reach, and what it may do there.
        environment: Which environment variables it sees.
        clock: What time it sees.
        random: What randomness it gets.
        wasi: Which WASI calls it may make.
        on_violation: What a violation does: `deny`, the call is refused and the guest goes on; `stop`, the run ends
            with outcome `denied`; `note`, the call is made all the same, and noted (for learning what a guest needs).
    """

    name: str = "default"
    limits: Limits = Limits()
    filesystem: Filesystem = Filesystem()
    environment: Environment = Environment()
    clock: Clock = Clock()
    random: Random = Random()
    wasi: Wasi = Wasi()
    on_violation: Literal["deny", "stop", "note"] = "deny"

    def __post_init__(self) -> None:
        for name, kind in _PARTS.items():
            if not isinstance(getattr(self, name), kind):
                raise PolicyError(f"{name} is {shown(getattr(self, name))}: it must be {kind.__name__}")
        _one_of("on_violation", self.on_violation, ("deny", "stop", "note"))

    @property
    def reproducible(self) -> bool:
        """Whether equal runs are equal to the last bit: virtual clock, no host entropy; NaNs are then canonical."""
        return self.clock.mode in ("virtual", "none") and self.random.mode != "full"

    @classmethod
    def preset(cls, name: str) -> Policy:
        """Returns a policy that comes with Stockade.

        Args:
            name: `default`, `strict` or `permissive`.

        Raises:
            PolicyError: There is none of that name.
        """
        from stockade.policy._presets import preset

        return preset(name)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Policy:
        """Reads a policy from a TOML file. Relative mount paths are relative to the file.

        Raises:
            PolicyError: The file cannot be read, or is not a policy.
        """
        from stockade.policy._document import read_policy

        return read_policy(Path(path))

    @classmethod
    def loads(cls, text: str) -> Policy:
        """Reads a policy from TOML text.

        Raises:
            PolicyError: The text is not a policy; the message names the field.
        """
        from stockade.policy._document import parse_policy

        return parse_policy(text)

    def replace(self, **changes: Any) -> Policy:
        """Returns this policy with changes.

        Args:
            **changes: Fields of the policy, or of its parts (`wall_time=2.0`, `mounts=[...]`).

        Raises:
            PolicyError: There is no such field, or a value is out of its range.
        """
        own: dict[str, Any] = {}
        parts: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            if name in self.__struct_fields__:
                own[name] = value
                continue
            for part in _SECTIONS:
                if name in getattr(self, part).__struct_fields__:
                    parts.setdefault(part, {})[name] = tuple(value) if isinstance(value, list) else value
                    break
            else:
                known = [
                    *self.__struct_fields__,
                    *(f for part in _SECTIONS for f in getattr(self, part).__struct_fields__),
                ]
                close = difflib.get_close_matches(name, known, n=1)
                hint = f": did you mean {close[0]}?" if close else f": known are {', '.join(known)}"
                raise PolicyError(f"a policy has no field {shown(name)}{hint}")
        for part, values in parts.items():
            own[part] = msgspec.structs.replace(own.get(part, getattr(self, part)), **values)
        return msgspec.structs.replace(self, **own)

    @property
    def digest(self) -> str:
        """SHA-256 of what the policy says, equal for equal policies in any process."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()
