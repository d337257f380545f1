"""What a policy must say beyond the default, so that something fits into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from stockade.policy._fields import BYTES, Quantity, fields_of
from stockade.policy._policy import Policy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stockade.policy._fields import Part, Plain

__all__ = ["Need", "needs"]

_ROUND = 1 << 20


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """A field that a policy would have to set.

    Attributes:
        field: Its path, such as `limits.memory`.
        value: The least that it must be, as a document says it.
    """

    field: str
    value: bool | int | str


def needs(wanted: Mapping[str, int | bool]) -> tuple[tuple[Need, ...], tuple[str, ...]]:
    """Tells what a policy must say for all of this to be allowed, where the default does not allow it.

    Args:
        wanted: Path of a field -> the least that it must be. Bytes are rounded up to MiB.

    Returns:
        The fields to set, and what no policy can say, in words.
    """
    found, beyond = [], []
    default = Policy()
    for path, least in wanted.items():
        section, _, name = path.partition(".")
        part: Part = getattr(default, section)
        kind = fields_of(type(part))[name].kind
        present = getattr(part, name)
        if present is None or least <= present:
            continue
        if isinstance(kind, Quantity):
            if least > kind.most:
                beyond.append(f"{path} would have to be {least:,}; it can be {kind.most:,} at most")
                continue
            if kind.unit is BYTES:
                least = min(-(-least // _ROUND) * _ROUND, int(kind.most))
        written: Plain = kind.write(least)
        assert isinstance(written, bool | int | str)
        found.append(Need(field=path, value=written))
    return tuple(found), tuple(beyond)
