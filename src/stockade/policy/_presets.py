"""Policies that come with Stockade."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from stockade._pages import PAGE_BYTES
from stockade.errors import PolicyError
from stockade.policy._fields import closest
from stockade.policy._limits import Limits
from stockade.policy._network import Network
from stockade.policy._policy import Policy
from stockade.policy._rights import Clock, Environment, Features, Filesystem, Mount, Random
from stockade.policy._units import shown

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PRESETS", "preset"]


def _minimal() -> Policy:
    """The least: no rights at all, and tight limits on every resource.

    Its time, and its quotas on reading, writing, calls and random bytes, are those of `strict`.
    """
    strict = _strict()
    return msgspec.structs.replace(
        strict,
        name="minimal",
        limits=msgspec.structs.replace(
            strict.limits,
            fuel=10_000_000,
            cpu_percent=50,
            memory=160 * PAGE_BYTES,
            memory_growth=10,
            tables=1,
            open_files=10,
            file_size=5 << 20,
            files_created=0,
        ),
        filesystem=Filesystem(create=False),
    )


def _strict() -> Policy:
    """For code that nobody knows: little time, and a quota on everything."""
    return Policy(
        name="strict",
        limits=Limits(
            fuel=5_000_000_000,
            wall_time=5.0,
            compile_process="always",
            idle_time=5.0,
            memory=128_000_000,
            open_files=3,
            read_bytes=10 << 20,
            write_bytes=5 << 20,
            read_rate=1 << 20,
            write_rate=1 << 20,
            file_size=10 << 20,
            files_created=100,
            calls=1_000_000,
            call_rate=10_000,
            random_bytes=1 << 20,
            memories=1,
            connections=3,
            requests=100,
            request_time=5.0,
            sent_bytes=1 << 20,
            received_bytes=10 << 20,
            network_rate=1 << 20,
        ),
        clock=Clock(mode="coarse"),
        random=Random(mode="seeded"),
        features=Features(multi_memory=False, exceptions=False, function_references=False),
    )


def _basic() -> Policy:
    """A plain start: 30 s, fuel for as long, 512 MiB."""
    return Policy(
        name="basic",
        limits=Limits(fuel=30_000_000_000, wall_time=30.0, memory=512 << 20),
    )


def _development() -> Policy:
    """For one's own code: files, services on this machine, the environment and generous limits."""
    import tempfile

    return Policy(
        name="development",
        limits=Limits(fuel=None, wall_time=30.0, memory=512 << 20, file_size=10 << 20),
        filesystem=Filesystem(
            mounts=(Mount(".", "/work", "ro"), Mount(tempfile.gettempdir(), "/tmp", "rw")),  # noqa: S108 - in the guest
        ),
        environment=Environment(mode="allow", names=("PATH", "TEMP", "TMP")),
        network=Network(mode="loopback"),
    )


def _permissive() -> Policy:
    """For large jobs of code that is half trusted.

    Folders, deleting in them and hosts are granted by name only, so not here.
    """
    return Policy(
        name="permissive",
        limits=Limits(
            fuel=100_000_000_000,
            wall_time=300.0,
            memory=1_024_000_000,
            table_elements=1_000_000,
            tables=16,
            stack=1 << 20,
            open_files=20,
            files_created=None,
            file_size=None,
            write_bytes=None,
            random_bytes=None,
            requests=None,
            sent_bytes=None,
            received_bytes=None,
        ),
        features=Features(relaxed_simd=True),
    )


PRESETS: dict[str, Callable[[], Policy]] = {
    "default": Policy,
    "minimal": _minimal,
    "strict": _strict,
    "basic": _basic,
    "development": _development,
    "permissive": _permissive,
}
"""How each preset is made, by its name."""


def preset(name: str) -> Policy:
    """Returns a preset by its name.

    Raises:
        PolicyError: There is none of that name.
    """
    unchecked: object = name
    if isinstance(unchecked, str) and name in PRESETS:
        return PRESETS[name]()
    close = closest(unchecked, tuple(PRESETS))
    hint = f"; did you mean {close}?" if close else ""
    raise PolicyError(f"there is no preset {shown(name)}: choose {', '.join(PRESETS)}{hint}")
