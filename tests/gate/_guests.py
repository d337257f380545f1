"""Guests that print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stockade import Module

__all__ = ["printer", "source"]


def _escaped(data: bytes) -> str:
    return "".join(f"\\{byte:02x}" for byte in data)


def printer(writes: Mapping[int, bytes] | Sequence[tuple[int, bytes]], after: str = "") -> Module:
    """Returns a command that writes to stdout and stderr.

    Args:
        writes: What it writes, by the numbers of streams, in their order.
        after: What it does then.
    """
    return wat(source(writes, after))


def source(writes: Mapping[int, bytes] | Sequence[tuple[int, bytes]], after: str = "") -> str:
    """Returns the text of such a command.

    Args:
        writes: As above.
        after: What it does then.
    """
    pieces = list(writes.items()) if hasattr(writes, "items") else list(writes)
    address, data, calls = 1024, "", ""
    for place, (stream, piece) in enumerate(pieces):
        vector = 16 + 8 * place
        data += f'(data (i32.const {address}) "{_escaped(piece)}")'
        numbers = address.to_bytes(4, "little") + len(piece).to_bytes(4, "little")
        data += f'(data (i32.const {vector}) "{_escaped(numbers)}")'
        calls += f"(drop (call $write (i32.const {stream}) (i32.const {vector}) (i32.const 1) (i32.const 8)))"
        address += len(piece)
    return f"""
        (module
          (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") {1 + address // 65536})
          {data}
          (func (export "_start") {calls} {after}))
        """
