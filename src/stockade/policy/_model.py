"""What a guest may do and use, as frozen data."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from stockade.errors import PolicyError

if TYPE_CHECKING:
    import os

__all__ = ["Filesystem", "Limits", "Mount", "Policy"]

_MAX_SECONDS = 10 * 365 * 86_400.0
_MAX_FUEL = 2**63 - 1


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
        if isinstance(value, bool) or not isinstance(value, number_types) or not math.isfinite(value):
            also = " or unlimited (None)" if self.unlimited else ""
            raise PolicyError(f"{path} is {value!r}: it must be a {'whole ' * self.whole}number{also}")
        if not self.least <= value <= self.most:
            raise PolicyError(f"{path} is {value:,}: it must be between {self.least:,} and {self.most:,}")


_BOUNDS = {
    "fuel": _Bound(1, _MAX_FUEL, unlimited=True),
    "wall_time": _Bound(0.001, _MAX_SECONDS, unlimited=True, whole=False),
    "memory": _Bound(0, 4 << 30),
    "table_elements": _Bound(0, 10_000_000),
    "stack": _Bound(16 << 10, 64 << 20),
    "memories": _Bound(0, 16),
    "tables": _Bound(0, 16),
    "module_size": _Bound(8, 1 << 30),
    "stdout": _Bound(0, 256 << 20),
    "stderr": _Bound(0, 256 << 20),
}


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

    def __post_init__(self) -> None:
        for name, bound in _BOUNDS.items():
            bound.check(f"limits.{name}", getattr(self, name))
        if self.on_memory_denied not in ("fail", "stop"):
            raise PolicyError(f'limits.on_memory_denied is {self.on_memory_denied!r}: it must be "fail" or "stop"')


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
            raise PolicyError(f'the mount at {self.guest!r} has mode {self.mode!r}: it must be "ro" or "rw"')
        for side, path in (("host", self.host), ("guest", self.guest)):
            if not path or "\0" in path:
                raise PolicyError(f"a mount's {side} path is {path!r}: it must be a path")
        parts = self.guest.split("/")
        if self.guest[0] != "/" or ".." in parts or "." in parts:
            raise PolicyError(f"a mount's guest path is {self.guest!r}: it must be absolute, without . or ..")


class Filesystem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which folders a guest may reach. None, unless they are named.

    Attributes:
        mounts: The folders.
    """

    mounts: tuple[Mount, ...] = ()


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a guest may do. Whatever is not named here, it may not.

    Attributes:
        name: A name for reports.
        limits: How much it may use.
        filesystem: Which folders it may reach.
    """

    name: str = "default"
    limits: Limits = Limits()
    filesystem: Filesystem = Filesystem()

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
            for part in ("limits", "filesystem"):
                if name in getattr(self, part).__struct_fields__:
                    parts.setdefault(part, {})[name] = tuple(value) if isinstance(value, list) else value
                    break
            else:
                raise PolicyError(f"a policy has no field {name!r}")
        for part, values in parts.items():
            own[part] = msgspec.structs.replace(own.get(part, getattr(self, part)), **values)
        return msgspec.structs.replace(self, **own)

    @property
    def digest(self) -> str:
        """SHA-256 of what the policy says, equal for equal policies in any process."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()
