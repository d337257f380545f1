"""Custom sections that say where a module comes from. Nothing in them is binding: what is damaged is left out."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from stockade._text import printable
from stockade.errors import InvalidModule
from stockade.wasm._binary import Reader

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Customs", "Producer"]

_SHOWN = 100
"""Entries of a custom section that are told: toolchains write a handful."""


class Producer(msgspec.Struct, frozen=True, kw_only=True):
    """Something that took part in making a module, by its own word.

    Attributes:
        role: `language`, `processed-by` or `sdk`.
        name: Its name.
        version: Its version.
    """

    role: str
    name: str
    version: str


class Customs:
    """What the custom sections of a module say.

    Attributes:
        producers: What it was made with.
        module_name: The name that it gives itself.
        target_features: Proposals that its toolchain says it uses (`+`) or must not use (`-`).
    """

    def __init__(self) -> None:
        self.producers: tuple[Producer, ...] = ()
        self.module_name: str | None = None
        self.target_features: tuple[str, ...] = ()
        self._read: set[bytes] = set()

    def take(self, data: bytes, start: int, end: int) -> str:
        """Reads a custom section.

        Args:
            data: The whole file.
            start: Where the section's content begins.
            end: Where it ends.

        Returns:
            Its name, safe to show.
        """
        reader = Reader(data, start, end, "custom section")
        try:
            # Of any length: nothing is made of it but a line to show.
            name = reader.take(reader.u32())
        except InvalidModule:
            return ""
        read = _READERS.get(name)
        if read is not None and name not in self._read:
            # The first of its kind: toolchains write one, and a hostile file a hundred thousand.
            self._read.add(name)
            # Its word would not have been binding anyway.
            with suppress(InvalidModule):
                read(self, reader)
        return printable(name)

    def _read_producers(self, reader: Reader) -> None:
        found: list[Producer] = []
        for _ in range(min(reader.count(), _SHOWN)):
            role = printable(reader.name())
            for _ in range(reader.count()):
                if len(found) == _SHOWN:
                    return
                found.append(Producer(role=role, name=printable(reader.name()), version=printable(reader.name())))
                self.producers = tuple(found)

    def _read_names(self, reader: Reader) -> None:
        # The module's name comes first, where there is one.
        if reader.byte() == 0:
            inner = Reader(reader.data, reader.position, reader.end, reader.what)
            inner.u32()
            self.module_name = printable(inner.name())

    def _read_target_features(self, reader: Reader) -> None:
        found = []
        for _ in range(min(reader.count(), _SHOWN)):
            found.append(printable(reader.take(1) + reader.name()))  # noqa: PERF401 - read in order
        self.target_features = tuple(found)


_READERS: dict[bytes, Callable[[Customs, Reader], None]] = {
    b"producers": Customs._read_producers,  # noqa: SLF001 - its own table
    b"name": Customs._read_names,  # noqa: SLF001
    b"target_features": Customs._read_target_features,  # noqa: SLF001
}
