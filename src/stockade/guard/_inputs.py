"""What a run is given, placed behind the guard's first state: arguments, environment, stdin, and room for output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from stockade.errors import UsageError
from stockade.guard._granted import scopes_bytes
from stockade.guard._source import guard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stockade.guard._trace import TraceRing
    from stockade.policy import Limits

__all__ = ["OUTPUT_RING_BYTES", "PROGRAM_NAME", "STDIN_PIECE_BYTES", "StateImage", "place_inputs"]

STDIN_PIECE_BYTES: Final = 64 << 10
"""The most that is asked of a stdin callback at a time."""

OUTPUT_RING_BYTES: Final = 256 << 10
"""Output that may wait for the host's callbacks; a guest that is ahead of them waits. A power of two."""

_MOST_BYTES: Final = 1 << 30
"""The guard's memory has this much room for arguments, environment, stdin and captured output together."""

PROGRAM_NAME: Final = b"main.wasm"
"""What every guest is called in its own arguments: the file's true name and place are none of its business."""

_PAGE_OF_HOST: Final = 4_096
"""Copying is quicker where both sides begin with a page of the host's."""


class StateImage(NamedTuple):
    """The guard's state for one run, ready to be written.

    Attributes:
        block: The state, and behind it arguments, environment and stdin.
        reach_bytes: How far the guard's memory must reach before the guest runs.
        end_bytes: How far it may come to reach.
        where: Where the block belongs.
    """

    block: bytes
    reach_bytes: int
    end_bytes: int
    where: slice


def place_inputs(
    initial: bytes,
    limits: Limits,
    args: Sequence[bytes],
    env: Mapping[bytes, bytes],
    stdin: bytes | None,
    *,
    listening: bool = False,
    trace: TraceRing | None = None,
) -> StateImage:
    """Completes the guard's first state with what this run is given.

    Args:
        initial: The state as every run under this policy begins with it.
        limits: Tells how much output is kept.
        args: The guest's arguments, its own name first.
        env: Its environment.
        stdin: Its standard input; None where the host is asked for it piece by piece.
        listening: Whether the host wants output as it is written.
        trace: What is traced.

    Raises:
        UsageError: All together is more than the guard has room for.
    """
    layout = guard().layout
    block = bytearray(initial)
    arguments = b"".join(arg + b"\0" for arg in args)
    variables = b"".join(name + b"=" + value + b"\0" for name, value in env.items())
    # Behind the lists of paths, where there are some.
    at = layout.block + len(block)
    layout.write(block, "args", at)
    layout.write(block, "args_count", len(args))
    layout.write(block, "args_size", len(arguments))
    at += len(arguments)
    layout.write(block, "environ", at)
    layout.write(block, "environ_count", len(env))
    layout.write(block, "environ_size", len(variables))
    at += len(variables)
    layout.write(block, "stdin", at)
    if stdin is None:
        layout.write(block, "stdin_mode", layout.constants["STDIN_ASKED"])
        at += STDIN_PIECE_BYTES
    else:
        layout.write(block, "stdin_size", len(stdin))
        at += len(stdin)
    at = (at + 7) & ~7
    if listening:
        layout.write(block, "tap", at)
        layout.write(block, "tap_size", OUTPUT_RING_BYTES)
        at += OUTPUT_RING_BYTES
    if trace is not None:
        trace.write(block, at)
        at += trace.size_bytes
    if len(block) > layout.size:
        layout.write(block, "scopes", at)
        at += scopes_bytes()
    reach = at
    for name, cap in (("stdout", limits.stdout), ("stderr", limits.stderr)):
        layout.write(block, name, at, cap - cap // 2, cap, 0)
        at += cap
    at = -(-at // _PAGE_OF_HOST) * _PAGE_OF_HOST
    if at > _MOST_BYTES:
        raise UsageError(
            f"arguments, environment, stdin and output limits together take {at:,} bytes; {_MOST_BYTES:,} fit. "
            "Give large inputs as files in a mount"
        )
    layout.write(block, "scratch", at)
    written = bytes(block) + arguments + variables + (stdin or b"")
    return StateImage(written, reach, at, slice(layout.block, layout.block + len(written)))
