"""Policy documents in TOML, YAML and JSON: what one says is enforced, or it is refused."""

from __future__ import annotations

import json
import os
import re
import stat
from typing import TYPE_CHECKING, Literal, NoReturn, TypeAlias

import msgspec

from stockade._text import printable
from stockade.errors import PolicyError
from stockade.policy._enforced import unenforceable_in
from stockade.policy._fields import closest
from stockade.policy._files import folders_on_the_way, note_policy_file
from stockade.policy._policy import Policy
from stockade.policy._presets import PRESETS, preset
from stockade.policy._units import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from stockade.policy._fields import Plain

__all__ = ["Format", "examine_policy", "parse_policy", "read_policy"]

Format: TypeAlias = Literal["toml", "yaml", "json"]

_FORMATS: dict[str, Format] = {".yaml": "yaml", ".yml": "yaml", ".json": "json"}
_MAX_FILE_BYTES = 1 << 20


def read_policy(path: Path) -> Policy:
    """Reads a policy file; relative mount paths are relative to its folder."""
    text = _read_text(path)
    try:
        policy = _with_mounts_from(path, parse_policy(text, _format_of(path)))
        _check_file_is_safe(path, policy)
        note_policy_file(path)
    except PolicyError as problem:
        raise PolicyError.several(problem.problems, printable(str(path), 400)) from None
    return policy


def examine_policy(path: Path) -> tuple[Policy | None, tuple[str, ...]]:
    """Reads a policy file, and finds all that keeps it from being used.

    Args:
        path: The file.

    Returns:
        The policy, None where the file does not make one; and the problems, a sentence for each: mistakes, what cannot
        be enforced, folders to be mounted that are not there.

    Raises:
        PolicyError: The file cannot be read.
    """
    text = _read_text(path)
    policy: Policy | None = None
    document: Mapping[str, object] = {}
    problems: tuple[str, ...] = ()
    try:
        document = _parse(text, _format_of(path))
        policy = _with_mounts_from(path, _made_of(document))
        _check_file_is_safe(path, policy)
    except PolicyError as problem:
        problems = problem.problems
    if policy is not None:
        document = policy.to_document()
    return policy, (*problems, *unenforceable_in(document), *_missing_folders(path.parent, document))


def _missing_folders(folder: Path, document: Mapping[str, object]) -> Iterator[str]:
    """Tells which folders to be mounted are not there, also where a document has mistakes elsewhere."""
    filesystem = document.get("filesystem")
    mounts = filesystem.get("mounts") if isinstance(filesystem, dict) else None
    for place, mount in enumerate(mounts if isinstance(mounts, list) else ()):
        host = mount.get("host") if isinstance(mount, dict) else None
        if isinstance(host, str) and host and "\0" not in host and not (folder / host).is_dir():
            what = "is not a folder" if (folder / host).exists() else "does not exist"
            yield f"filesystem.mounts[{place}].host: {printable(str(folder / host), 400)} {what}"


def _read_text(path: Path) -> str:
    shown_path = printable(str(path), 400)
    try:
        # Not blocking: opening a FIFO must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(descriptor, "rb", closefd=True) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PolicyError(f"the policy file {shown_path} is not a regular file")
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise PolicyError(f"the policy file {shown_path} is larger than {_MAX_FILE_BYTES:,} bytes")
        return data.decode()
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
        raise PolicyError(f"the policy file {shown_path} cannot be read: {reason}") from None


def _format_of(path: Path) -> Format:
    return _FORMATS.get(path.suffix.lower(), "toml")


def _with_mounts_from(path: Path, policy: Policy) -> Policy:
    """Returns a policy whose mounts are relative to where its file is."""
    mounts = tuple(
        msgspec.structs.replace(mount, host=str(path.parent / mount.host)) for mount in policy.filesystem.mounts
    )
    return policy.replace(mounts=mounts)


def _check_file_is_safe(path: Path, policy: Policy) -> None:
    """Refuses a policy under which a guest could write the next one."""
    on_the_way = folders_on_the_way(path)
    problems = []
    for place, mount in enumerate(policy.filesystem.mounts):
        folder = os.path.realpath(mount.host)
        if mount.mode == "rw" and any(os.path.commonpath((folder, other)) == folder for other in on_the_way):
            problems.append(
                f"filesystem.mounts[{place}].host is {shown(mount.host)}, a writable folder with this policy file in "
                "it: the guest could change its own policy. Keep the policy elsewhere, or mount a folder beside it"
            )
    if problems:
        raise PolicyError.several(problems)


def parse_policy(text: str, format_: Format) -> Policy:
    """Reads a policy from text."""
    return _made_of(_parse(text, format_))


def _parse(text: str, format_: Format) -> Mapping[str, object]:
    try:
        parse = _PARSERS[format_]
    except (KeyError, TypeError):
        raise PolicyError(f'the format is {shown(format_)}: it must be "toml", "yaml" or "json"') from None
    if not isinstance(text, str):
        raise PolicyError(f"the text of a policy is {shown(text)}: it must be text")
    try:
        # Some editors put a mark of the byte order at the beginning.
        document = parse(text.removeprefix("\ufeff"))
    except (RecursionError, _TooDeep):
        raise PolicyError("not a policy: it is nested too deep") from None
    except ValueError as problem:  # wrong syntax, or a number of thousands of digits
        raise PolicyError(f"not {format_.upper()}: {printable(str(problem), 400)}") from None
    if not isinstance(document, dict):
        raise PolicyError(f"not a policy: it is {shown(document)}, where a table is expected")
    return document


def _made_of(given: Mapping[str, object]) -> Policy:
    document = dict(given)
    base, problems = _base(document.pop("extends")) if "extends" in document else (Policy(), ())
    try:
        policy = Policy.from_document("", {"name": "custom", **document}, base)
    except PolicyError as problem:
        raise PolicyError.several([*problems, *problem.problems]) from None
    if problems:
        raise PolicyError.several(problems)
    return policy


def _base(name: object) -> tuple[Policy, tuple[str, ...]]:
    """Returns what a document extends, and what is wrong with its name; the rest is then held to what was meant."""
    if not isinstance(name, str):
        return Policy(), (f"extends is {shown(name)}: it must be the name of a preset",)
    try:
        return preset(name), ()
    except PolicyError as problem:
        meant = closest(name, tuple(PRESETS))
        return preset(meant) if meant else Policy(), (f"extends: {problem}",)


class _TooDeep(Exception):  # noqa: N818 - never leaves this module
    """Text is nested deeper than any policy."""


_MAX_DEPTH = 100
# What is not closed reaches as far as it can, and nothing is looked at twice: there the library stops, too.
_TOML_TEXT = re.compile(
    r'''"""(?:\\.|[^\\"]|"(?!""))*+"{0,5}|\'\'\'(?:[^']|'(?!\'\'))*+'{0,5}'''
    r"""|"(?:\\.|[^"\\\n])*+"?|'[^'\n]*+'?|\#[^\n]*""",
    re.DOTALL,
)


def _parse_toml(text: str) -> Plain:
    # The library takes memory and time with the square of the parts of a dotted key.
    bare = _TOML_TEXT.sub("x", text)
    if any(key.count(".") > _MAX_DEPTH for key in re.split(r"[\n=,{}\[\]]", bare)):
        raise _TooDeep
    import tomllib

    document: Plain = tomllib.loads(text)
    return document


def _parse_json(text: str) -> Plain:
    def once(pairs: list[tuple[str, Plain]]) -> dict[str, Plain]:
        table = dict(pairs)
        if len(table) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"the key {printable(twice)} is there twice")
        return table

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number of JSON")

    document: Plain = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    return document


def _parse_yaml(text: str) -> Plain:
    try:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError
        from ruamel.yaml.events import (
            AliasEvent,
            CollectionEndEvent,
            CollectionStartEvent,
            DocumentStartEvent,
            ScalarEvent,
        )
    except ImportError:
        raise PolicyError(
            'YAML needs another package: install it with pip install "stockade[yaml]", or write the policy in TOML'
        ) from None
    loader = YAML(typ="safe", pure=True)
    try:
        depth = 0
        for event in loader.parse(text):
            # An alias can stand for a tree that is exponentially larger than the text.
            if isinstance(event, AliasEvent):
                raise ValueError("aliases are not allowed")  # noqa: TRY004 - an error of the text
            if isinstance(event, DocumentStartEvent) and event.version not in (None, (1, 2)):
                raise ValueError("a policy is read as YAML 1.2, and no other version")
            if isinstance(event, ScalarEvent) and event.value == "<<" and event.implicit[0]:
                raise ValueError("merge keys (<<) are not allowed")
            # The library takes time with the square of the depth.
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise _TooDeep
        document: Plain = loader.load(text)
    except YAMLError as problem:
        text, _, _ = str(problem).partition("To suppress this check")
        raise ValueError(" ".join(text.split())) from None
    except (ArithmeticError, AssertionError, LookupError, TypeError, AttributeError) as problem:
        # What the YAML library itself stumbles over.
        raise ValueError(f"{type(problem).__name__}: {problem}") from None
    return {} if document is None else document


_PARSERS: dict[str, Callable[[str], object]] = {"toml": _parse_toml, "yaml": _parse_yaml, "json": _parse_json}
