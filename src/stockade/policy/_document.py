"""Policy files: TOML in, a checked policy out. What a file says is enforced, or the file is refused."""

from __future__ import annotations

import difflib
import os
import stat
import tomllib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from stockade._text import printable
from stockade.errors import PolicyError
from stockade.policy._model import Clock, Environment, Filesystem, Limits, Mount, Policy, Random, Wasi, may_be_unlimited
from stockade.policy._units import parse_count, parse_rate, parse_seconds, parse_size, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

__all__ = ["parse_policy", "read_policy"]

_PARSERS = {
    "fuel": parse_count,
    "wall_time": parse_seconds,
    "memory": parse_size,
    "table_elements": parse_count,
    "stack": parse_size,
    "memories": parse_count,
    "tables": parse_count,
    "module_size": parse_size,
    "stdout": parse_size,
    "stderr": parse_size,
    "idle_time": parse_seconds,
    "open_files": parse_count,
    "files_created": parse_count,
    "file_size": parse_size,
    "read_bytes": parse_size,
    "write_bytes": parse_size,
    "read_rate": parse_rate,
    "write_rate": parse_rate,
    "random_bytes": parse_size,
    "calls": parse_count,
    "call_rate": parse_count,
}
_CLOCK_PARSERS = {"resolution": parse_seconds, "start": parse_seconds, "step": parse_seconds}
_MAX_FILE_BYTES = 1 << 20


def read_policy(path: Path) -> Policy:
    """Reads a policy file; relative mount paths are relative to its folder."""
    shown_path = printable(str(path), 400)
    try:
        # Not blocking: opening a FIFO must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(descriptor, "rb", closefd=True) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PolicyError(f"the policy file {shown_path} is not a regular file")
            data = file.read(_MAX_FILE_BYTES + 1)
        text = data.decode()
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
        raise PolicyError(f"the policy file {shown_path} cannot be read: {reason}") from None
    if len(data) > _MAX_FILE_BYTES:
        raise PolicyError(f"the policy file {shown_path} is larger than {_MAX_FILE_BYTES:,} bytes")
    try:
        policy = parse_policy(text)
    except PolicyError as problem:
        raise PolicyError(f"{shown_path}: {problem}") from None
    mounts = tuple(
        msgspec.structs.replace(mount, host=str(path.parent / mount.host)) for mount in policy.filesystem.mounts
    )
    return policy.replace(mounts=mounts)


def parse_policy(text: str) -> Policy:
    """Reads a policy from TOML text."""
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise PolicyError("not a policy: it is nested too deep") from None
    except ValueError as problem:  # not TOML, or a number of thousands of digits
        raise PolicyError(f"not TOML: {printable(str(problem), 400)}") from None
    _known(document, Policy.__struct_fields__, "")
    name = document.get("name", "custom")
    if not isinstance(name, str):
        raise PolicyError(f"name is {shown(name)}: it must be text")
    return Policy(
        name=name,
        limits=Limits(**_section(document, "limits", Limits.__struct_fields__, _PARSERS)),
        filesystem=Filesystem(**_filesystem(document)),
        environment=Environment(**_environment(document)),
        clock=Clock(**_section(document, "clock", Clock.__struct_fields__, _CLOCK_PARSERS)),
        random=Random(**_section(document, "random", Random.__struct_fields__)),
        wasi=Wasi(**_wasi(document)),
        on_violation=document.get("on_violation", "deny"),
    )


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise PolicyError(f"{name} is {shown(table)}: it must be a table")
    return table


def _known(table: dict[str, Any], fields: Iterable[str], path: str) -> None:
    for key in table:
        if key not in fields:
            close = difflib.get_close_matches(key, list(fields), n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(fields)}"
            raise PolicyError(f"{path}{printable(key)} is not known: {hint}")


def _section(
    document: dict[str, Any],
    name: str,
    fields: Iterable[str],
    parsers: Mapping[str, Callable[[object], int | float | None]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Reads a table whose keys are fields; quantities take units."""
    table = _table(document, name)
    _known(table, fields, f"{name}.")
    values = {}
    for key, value in table.items():
        parser = parsers.get(key)
        try:
            values[key] = value if parser is None else parser(value)
            if parser is not None and values[key] is None and not may_be_unlimited(key):
                raise ValueError("it cannot be unlimited: give a limit")
        except ValueError as problem:
            raise PolicyError(f"{name}.{key}: {problem}") from None
    return values


def _environment(document: dict[str, Any]) -> dict[str, Any]:
    values = _section(document, "environment", Environment.__struct_fields__)
    if "names" in values:
        if not isinstance(values["names"], list):
            raise PolicyError(f"environment.names is {shown(values['names'])}: it must be a list of names")
        values["names"] = tuple(values["names"])
    if not isinstance(values.get("set", {}), dict):
        raise PolicyError(f"environment.set is {shown(values['set'])}: it must be a table")
    return values


def _wasi(document: dict[str, Any]) -> dict[str, Any]:
    values = _section(document, "wasi", Wasi.__struct_fields__)
    for key in ("allow", "deny"):
        if key in values:
            if not isinstance(values[key], list):
                raise PolicyError(f"wasi.{key} is {shown(values[key])}: it must be a list of calls")
            values[key] = tuple(values[key])
    return values


def _filesystem(document: dict[str, Any]) -> dict[str, Any]:
    values = _section(document, "filesystem", Filesystem.__struct_fields__)
    return {**values, "mounts": tuple(_mounts(values))}


def _mounts(table: dict[str, Any]) -> list[Mount]:
    entries = table.get("mounts", [])
    if not isinstance(entries, list):
        raise PolicyError(f"filesystem.mounts is {shown(entries)}: it must be a list of tables")
    mounts = []
    for number, entry in enumerate(entries):
        path = f"filesystem.mounts[{number}]"
        if not isinstance(entry, dict):
            raise PolicyError(f"{path} is {shown(entry)}: it must be a table with host, guest and mode")
        _known(entry, Mount.__struct_fields__, f"{path}.")
        for required in ("host", "guest"):
            if required not in entry:
                raise PolicyError(f"{path} has no {required}: it must be a path")
        mounts.append(Mount(**entry))
    return mounts
