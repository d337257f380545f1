"""Errors and traps of the engine, read as data.

A trap is known by its code, never by its text: the text holds names that the guest chose.
"""

from __future__ import annotations

import ctypes
from ctypes import c_size_t, c_void_p, string_at
from typing import Any, NamedTuple

from stockade._text import NAME_LIMIT, printable
from stockade.engine._capi import capi

__all__ = [
    "OUT_OF_FUEL",
    "STACK_OVERFLOW",
    "TRAP_CODES",
    "UNCAUGHT_EXCEPTION",
    "UNREACHABLE",
    "EngineFrame",
    "Failure",
    "error_text",
]

TRAP_CODES: dict[int, tuple[str, str]] = {
    0: ("stack_overflow", "call stack exhausted"),
    1: ("memory_out_of_bounds", "memory access out of bounds"),
    2: ("heap_misaligned", "atomic access to a misaligned address"),
    3: ("table_out_of_bounds", "table access out of bounds"),
    4: ("indirect_call_to_null", "indirect call to an empty table element"),
    5: ("bad_signature", "indirect call to a function of another type"),
    6: ("integer_overflow", "integer overflow"),
    7: ("integer_division_by_zero", "integer division by zero"),
    8: ("bad_conversion_to_integer", "conversion of a float that has no integer value"),
    9: ("unreachable", "unreachable instruction executed"),
    10: ("interrupt", "interrupted"),
    11: ("out_of_fuel", "all fuel consumed"),
    12: ("atomic_wait_non_shared_memory", "atomic wait on memory that is not shared"),
    13: ("null_reference", "null reference used"),
    14: ("array_out_of_bounds", "array access out of bounds"),
    15: ("allocation_too_large", "allocation too large"),
    16: ("cast_failure", "reference cast to a type it does not have"),
    256: ("uncaught_exception", "exception that the guest threw and did not catch"),
}
"""Code of `wasmtime_trap_code_enum` (traps of core modules) -> its name in reports, and what it means. The last is not
of that enumeration."""

STACK_OVERFLOW, UNREACHABLE, OUT_OF_FUEL = 0, 9, 11

UNCAUGHT_EXCEPTION = 256
"""An exception that nothing in the guest caught: the engine has no code for it, and codes of its own are a byte."""

_MAX_FRAMES = 32
"""A report shows this many frames of a backtrace: enough to find the place, too few to flood."""

_MESSAGE_LIMIT = 400


class EngineFrame(NamedTuple):
    """One frame of a backtrace.

    Attributes:
        function_index: Index of the function in the module that ran.
        function_name: Its name from the name section, shortened and escaped, or None.
        offset_bytes: Offset of the instruction from the start of the function.
    """

    function_index: int
    function_name: str | None
    offset_bytes: int


class Failure(NamedTuple):
    """Why a call into the engine did not return.

    Attributes:
        code: The trap code, a key of `TRAP_CODES`; None where a native function ended the run.
        message: What happened, safe to show.
        frames: The innermost frames of the backtrace.
    """

    code: int | None
    message: str
    frames: tuple[EngineFrame, ...]

    @classmethod
    def from_trap(cls, trap: int) -> Failure:
        """Reads and frees a trap."""
        api = capi()
        code = ctypes.c_uint8()
        # SAFETY: we own `trap`, which the engine handed over through an out parameter; it lives until the delete
        # below. `code` outlives the call that writes to it.
        known = api.trap_code(trap, ctypes.addressof(code))
        frames = _frames(api.trap_trace, trap)
        api.trap_delete(trap)
        if not known:
            return cls(None, "ended by the engine", frames)
        return cls(code.value, TRAP_CODES.get(code.value, ("unknown", f"trap code {code.value}"))[1], frames)

    @classmethod
    def from_error(cls, error: int, *, thrown: bool = False) -> Failure:
        """Reads and frees an error.

        Args:
            error: The error.
            thrown: Whether it is an exception of the guest's, which is pending in its store.
        """
        frames = _frames(capi().error_wasm_trace, error)
        text = error_text(error)
        return cls(UNCAUGHT_EXCEPTION, TRAP_CODES[UNCAUGHT_EXCEPTION][1], frames) if thrown else cls(None, text, frames)


def _frames(trace: Any, owner: int) -> tuple[EngineFrame, ...]:
    api = capi()
    vector = (c_size_t * 2)()
    # SAFETY: the engine fills our vector (size, data) with frames that the vector owns; they live until
    # wasm_frame_vec_delete, and every name is copied before that. Names belong to their frame.
    trace(owner, ctypes.addressof(vector))
    size, data = vector
    frames = []
    for index in range(min(size, _MAX_FRAMES)):
        frame = c_void_p.from_address(data + index * ctypes.sizeof(c_void_p)).value
        name = api.frame_func_name(frame)
        frames.append(
            EngineFrame(
                api.frame_func_index(frame),
                printable(_vector_bytes(name, NAME_LIMIT * 4 + 1)) if name else None,
                _offset(api.frame_func_offset(frame)),
            )
        )
    api.frame_vec_delete(ctypes.addressof(vector))
    return tuple(frames)


def _offset(raw: int) -> int:
    """The engine says the largest number for a function's prologue, where no instruction of the guest is running."""
    return raw if raw < 1 << 32 else 0


def _vector_bytes(vector: int, limit: int) -> bytes:
    # SAFETY: `vector` points to a live wasm_byte_vec_t; at most its own size is read.
    size = c_size_t.from_address(vector).value
    data = c_void_p.from_address(vector + ctypes.sizeof(c_size_t)).value
    return string_at(data, min(size, limit)) if data and size else b""


def error_text(error: int, wanted: slice = slice(-1, None)) -> str:
    """Reads and frees an error; shortens and escapes what it says.

    Args:
        error: A `wasmtime_error_t` that the caller owns; it is freed here.
        wanted: Which lines: the last is the innermost cause.
    """
    api = capi()
    vector = (c_size_t * 2)()
    # SAFETY: we own `error`; the message is copied out of the vector, then both are freed, once.
    api.error_message(error, ctypes.addressof(vector))
    text = _vector_bytes(ctypes.addressof(vector), 1 << 20)
    api.byte_vec_delete(ctypes.addressof(vector))
    api.error_delete(error)
    lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    return printable(" ".join(lines[wanted]) or "no reason given", _MESSAGE_LIMIT)
