"""The trace of a guest: taken out of the guard's ring while the guest is halted, told in words, and passed on."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from stockade._outside import call_outside
from stockade._text import printable
from stockade._wasi import ERRNO_NAMES, FLAGS, MODULE, NAMES, WASI
from stockade.errors import UsageError
from stockade.guard import HOST_CALLS, MOST_STRING_BYTES, TraceEntry, TraceRing, lost_entries, take_entries
from stockade.policy import wasi_calls
from stockade.report import Trace, TracedCall

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stockade._wasi import WasiArgument
    from stockade.execution._plan import Plan
    from stockade.gate import GateRun
    from stockade.guard import State
    from stockade.report import TraceArgument
    from stockade.wasm import FuncType

__all__ = ["HostImport", "TraceTaker", "Tracer", "trace_of", "trace_ring", "tracer_of"]

_HOST: Final = "host"
_DURATIONS: Final = ("io", "all", "none")

HostImport = tuple[str, "FuncType"]
"""A function of the embedder as a guest imports it: its name and its type."""

_Words = dict[str, "TraceArgument"]


def trace_of(given: Trace | bool | None) -> Trace | None:
    """Returns what is traced, checked; None where nothing is.

    Args:
        given: What the caller says: True for all calls.

    Raises:
        UsageError: It is not fit.
    """
    if given is None or given is False:
        return None
    trace = Trace() if given is True else given
    if not isinstance(trace, Trace):
        raise UsageError(f"trace is {printable(repr(trace))}: give True, or a stockade.Trace")
    calls: object = trace.calls
    if not isinstance(calls, tuple | list) or not all(isinstance(pattern, str) for pattern in calls):
        raise UsageError("Trace.calls must be names of calls, groups or patterns, such as ('path_*', 'clock')")
    for pattern in trace.calls:
        if pattern != _HOST and not wasi_calls(pattern):
            raise UsageError(
                f"Trace.calls has {printable(repr(pattern))}, which is no WASI call, group or pattern of calls: write "
                "names such as fd_write, path_* or clock, or host"
            )
    for name, number, most in (
        ("string_bytes", trace.string_bytes, MOST_STRING_BYTES),
        ("most_calls", trace.most_calls, 10**9),
    ):
        if type(number) is not int or not 0 <= number <= most:
            raise UsageError(f"Trace.{name} is {printable(repr(number))}: it must be a whole number from 0 to {most:,}")
    if trace.durations not in _DURATIONS:
        raise UsageError(f'Trace.durations is {printable(repr(trace.durations))}: it must be "io", "all" or "none"')
    if trace.on_overflow not in ("wait", "count"):
        raise UsageError(f'Trace.on_overflow is {printable(repr(trace.on_overflow))}: it must be "wait" or "count"')
    if trace.sink is not None and not callable(trace.sink):
        raise UsageError(f"Trace.sink is {printable(repr(trace.sink))}: it must be a function of one call")
    return trace


def trace_ring(trace: Trace) -> TraceRing:
    """Returns what is asked of the guard.

    Args:
        trace: What is traced.
    """
    calls = {name for pattern in trace.calls for name in wasi_calls(pattern)}
    if "*" in trace.calls or _HOST in trace.calls:
        calls.add(HOST_CALLS)
    strings = -(-trace.string_bytes // 8) * 8
    return TraceRing(frozenset(calls), strings, trace.durations, trace.on_overflow == "wait")


class TraceTaker(Protocol):
    """What takes the trace of one guest out of the guard's ring."""

    def drain(self, state: State, gate: GateRun | None) -> None:
        """Empties the ring.

        Args:
            state: The guard's state.
            gate: What looks at what is told as it happens; None where nothing is looked for.
        """

    def finish(self) -> None:
        """Notes that the guest has ended, in whatever calls it was."""

    def take(self, state: State | None) -> tuple[tuple[TracedCall, ...], int]:
        """Returns the calls that were kept since the last time, and how many were not.

        Args:
            state: The guard's state.
        """


class _Place(NamedTuple):
    """The place of a call among others: its number, and when it began, not before the one before it."""

    sequence: int
    seconds: float


def tracer_of(plan: Plan, trace: Trace) -> Tracer:
    """Returns what takes the trace of a guest.

    Args:
        plan: What runs.
        trace: What is traced.
    """
    parsed = plan.module.parsed
    imports = [entry for entry in parsed.imports if entry.module != MODULE.encode()]
    types = map(parsed.type_of_function, (entry.type_index for entry in imports))
    names = (f"{printable(entry.module)}.{printable(entry.name)}" for entry in imports)
    return Tracer(trace, list(zip(names, types, strict=True)))


class Tracer:
    """Takes the trace of one guest.

    Args:
        trace: What is traced.
        functions: The functions of the embedder that it imports, in the order of their imports.
    """

    def __init__(self, trace: Trace, functions: Sequence[HostImport]) -> None:
        self._trace = trace
        self._functions = functions
        # Calls that have begun, by their numbers in the ring: rests have numbers, too.
        self._pending: dict[int, tuple[_Place, TraceEntry]] = {}
        self._begun = 0
        # The guest's clock and the host's, by which calls that are not measured are told, began one after the other.
        self._latest = 0
        self._kept: list[TracedCall] = []
        self._left_out = 0
        self._lost = 0
        self._gate: GateRun | None = None

    def drain(self, state: State, gate: GateRun | None) -> None:
        """Empties the ring, and passes on what has returned.

        Args:
            state: The guard's state.
            gate: What looks at what is told as it happens; None where nothing is looked for.
        """
        while entries := take_entries(state):
            self.tell(entries, gate)

    def tell(self, entries: Sequence[TraceEntry], gate: GateRun | None) -> None:
        """Passes on what has returned.

        Args:
            entries: What was in the ring.
            gate: What looks at what is told as it happens; None where nothing is looked for.
        """
        self._gate = gate
        for entry in entries:
            if entry.is_rest:
                begun = self._pending.pop(entry.sequence, None)
                if begun is not None:
                    self._pass_on(begun[0], _whole(begun[1], entry))
                continue
            self._latest = max(self._latest, entry.began)
            place, self._begun = _Place(self._begun, self._latest / 1e9), self._begun + 1
            if entry.has_returned:
                self._pass_on(place, entry)
            else:
                self._pending[entry.sequence] = place, entry

    def finish(self) -> None:
        """Passes on the calls in which the guest has ended."""
        while self._pending:
            self._pass_on(*self._pending.pop(min(self._pending)))

    def take(self, state: State | None) -> tuple[tuple[TracedCall, ...], int]:
        """Returns the calls that were kept since the last time, as they began; and how many were not.

        Args:
            state: The guard's state.
        """
        kept, self._kept = self._kept, []
        lost, self._left_out = self._left_out, 0
        if state is not None:
            before, self._lost = self._lost, lost_entries(state)
            lost += self._lost - before
        return tuple(sorted(kept, key=lambda call: call.sequence)), lost

    def _pass_on(self, place: _Place, entry: TraceEntry) -> None:
        if self._trace.sink is None and len(self._kept) >= self._trace.most_calls:
            self._left_out += 1
            return
        call = _told(place, entry, self._functions)
        if self._trace.sink is None:
            self._kept.append(call)
        else:
            call_outside(self._trace.sink, call if self._gate is None else self._gate.traced(call))


def _whole(begun: TraceEntry, rest: TraceEntry) -> TraceEntry:
    """An entry put together of its beginning and its rest."""
    return begun._replace(
        has_returned=True,
        errno=rest.errno,
        ended=rest.ended if begun.is_timed else None,
        answers=rest.answers if begun.number < len(WASI) else (rest.answers[0], begun.answers[1]),
        texts=(_later(begun, rest, 0), _later(begun, rest, 1)),
        lengths=(rest.lengths[0] or begun.lengths[0], rest.lengths[1] or begun.lengths[1]),
    )


def _later(begun: TraceEntry, rest: TraceEntry, which: int) -> bytes | None:
    """One of the texts, where it may have been answered."""
    return rest.texts[which] if rest.lengths[which] else begun.texts[which]


# -- in words --------------------------------------------------------------------------------------------------------


def _told(place: _Place, entry: TraceEntry, functions: Sequence[HostImport]) -> TracedCall:
    """Tells an entry."""
    duration = None
    if entry.ended is not None and entry.is_timed:
        duration = max(0, entry.ended - entry.began) / 1e9
    arguments: _Words = {}
    results: _Words = {}
    cut: list[str] = []
    errno = None
    if entry.number < len(WASI):
        name = WASI[entry.number].name
        _tell_wasi(entry, arguments, results, cut)
        if entry.has_returned and entry.errno:
            errno = ERRNO_NAMES[entry.errno] if entry.errno < len(ERRNO_NAMES) else f"E{entry.errno}"
    else:
        name = _tell_host(entry, functions, arguments, results)
    return TracedCall(
        sequence=place.sequence,
        call=name,
        arguments=arguments,
        results=results,
        has_returned=entry.has_returned,
        errno=errno,
        duration_seconds=duration,
        at=place.seconds,
        cut=tuple(cut),
    )


def _tell_wasi(entry: TraceEntry, arguments: _Words, results: _Words, cut: list[str]) -> None:
    answers, texts = iter(entry.answers), iter(zip(entry.texts, entry.lengths, strict=True))
    known = WASI[entry.number].arguments
    answered = entry.has_returned and not entry.errno
    for argument in known:
        number = entry.arguments[argument.place]
        text = None
        if not argument.is_answer and argument.kind in ("path", "buffers", "subscriptions"):
            text, length = next(texts)
            if text is not None and length > len(text):
                cut.append(argument.name)
        arguments[argument.name] = _word(argument, number) if text is None else _text(argument, text)
    if not answered:
        return
    for argument in known:
        if argument.is_answer and argument.kind not in ("buffers", "text"):
            value = next(answers)
            second = next(answers) if argument.kind == "filestat" else None
            if value is not None:
                results[argument.name] = _answer(argument.kind, value, second)
    for argument in known:
        if argument.is_answer and argument.kind in ("buffers", "text"):
            text, length = next(texts)
            if text is not None:
                results[argument.name] = _decoded(text)
                if length > len(text):
                    cut.append(argument.name)


def _tell_host(entry: TraceEntry, functions: Sequence[HostImport], arguments: _Words, results: _Words) -> str:
    function = entry.answers[1] or 0
    name, type_ = functions[function]
    for place, (kind, number) in enumerate(zip(type_.params, entry.arguments, strict=False)):
        arguments[f"arg{place}"] = _number(kind, number)
    if entry.has_returned and type_.results and entry.answers[0] is not None:
        results["result"] = _number(type_.results[0], entry.answers[0])
    return name


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace")


def _text(argument: WasiArgument, text: bytes) -> TraceArgument:
    return _subscriptions(text) if argument.kind == "subscriptions" else _decoded(text)


def _word(argument: WasiArgument, number: int) -> TraceArgument:
    """What a parameter says; of an answer, and of a text that cannot be read, the address."""
    kind = argument.kind
    if argument.is_answer:
        return number
    if kind in FLAGS:
        return _flags(FLAGS[kind], number)
    if kind in NAMES:
        return _name(NAMES[kind], number)
    return number - (1 << 64) if kind == "s64" and number >> 63 else number


def _flags(names: Sequence[str], number: int) -> tuple[str, ...]:
    found = [name for bit, name in enumerate(names) if number >> bit & 1]
    rest = number >> len(names) << len(names)
    return (*found, f"{rest:#x}") if rest else tuple(found)


def _name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else f"{number:#x}"


def _answer(kind: str, value: int, second: int | None) -> TraceArgument:
    types = NAMES["filetype"]
    if kind == "filestat":
        return _name(types, value & 0xFF), f"size={second}"
    if kind == "fdstat":
        flags = _flags(FLAGS["fdflags"], value >> 16 & 0xFFFF)
        return _name(types, value & 0xFF), "|".join(flags) or "0"
    if kind == "prestat":
        return "DIR", f"pr_name_len={value >> 32}"
    return value


def _number(kind: str, bits: int) -> TraceArgument:
    if kind == "f32":
        found: float = struct.unpack("<f", struct.pack("<I", bits & 0xFFFF_FFFF))[0]
        return found if math.isfinite(found) else str(found)
    if kind == "f64":
        found = struct.unpack("<d", struct.pack("<Q", bits))[0]
        return found if math.isfinite(found) else str(found)
    size = 32 if kind == "i32" else 64
    return bits - (1 << size) if bits >> (size - 1) & 1 else bits


_SUBSCRIPTION: Final = struct.Struct("<QB7xI4xQQH6x")
_POLLED: Final[Mapping[int, str]] = {1: "fd_read", 2: "fd_write"}


def _subscriptions(text: bytes) -> tuple[str, ...]:
    """What a poll waits for, as far as it was kept."""
    found = []
    for at in range(0, len(text) - _SUBSCRIPTION.size + 1, _SUBSCRIPTION.size):
        _, type_, of, timeout, _, flags = _SUBSCRIPTION.unpack_from(text, at)
        if type_:
            found.append(f"{_POLLED.get(type_, f'{type_:#x}')}({of})")
        else:
            sign = "" if flags & 1 else "+"
            found.append(f"{_name(NAMES['clock'], of)} {sign}{timeout / 1e9:.9f}s")
    return tuple(found)
