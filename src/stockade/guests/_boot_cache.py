"""What an interpreter has made of our program, kept on disk as machine code is: made once, and not once a process."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from stockade.compilation import Cache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.modules import Module

__all__ = ["BootCache"]

_DOMAIN: Final = "program of an interpreter, compiled"


class _Entry(msgspec.Struct, frozen=True):
    """What is kept. It is believed as machine code is, for its MAC is checked.

    Attributes:
        name: The name of the interpreter's module, for whoever lists what is kept.
        program: What it has made.
    """

    name: str
    program: bytes


class BootCache:
    """Where a program is kept that an interpreter has compiled.

    Args:
        module: The module of the interpreter.
        arguments: What it is given to compile it, and the program itself.
    """

    def __init__(self, module: Module, arguments: Sequence[str]) -> None:
        self._name = module.name
        parts = (_DOMAIN, module.sha256, *arguments)
        told = b"".join(len(part).to_bytes(8, "little") + part for part in map(str.encode, parts))
        self._key = hashlib.sha256(told).hexdigest()

    def get(self) -> bytes:
        """Returns the program; nothing where none is kept that can be believed."""
        found = Cache().get(self._key)
        if found is None:
            return b""
        found.close()
        try:
            return msgspec.msgpack.decode(found.told, type=_Entry).program
        except msgspec.MsgspecError:
            # Of another release.
            return b""

    def put(self, program: bytes) -> None:
        """Keeps the program, where there is a cache.

        Args:
            program: What the interpreter has made.
        """
        Cache().put(self._key, msgspec.msgpack.encode(_Entry(f"{self._name} (its program)", program)), b"")
