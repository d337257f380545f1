"""What goes out as JSON, as the plain data that web frameworks and loggers take."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Json", "JsonRecord"]

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""The data of a JSON document."""


class JsonRecord:
    """Something that is told as a JSON object. `dict(record)` is that object, so FastAPI returns it as it is."""

    __slots__ = ()

    def to_json(self) -> str:
        """Returns it as JSON."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Json]:
        """Returns what `to_json` says as plain data: dicts, lists, texts, numbers, true, false and None."""
        document: dict[str, Json] = msgspec.json.decode(self.to_json())
        return document

    def __iter__(self) -> Iterator[tuple[str, Json]]:
        """Yields the fields of `to_dict` by their names, of which `dict()` makes it."""
        return iter(self.to_dict().items())
