"""Traced calls as text for people: lines as `strace` writes them, and its table of counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from stockade._text import quoted
from stockade._wasi import WASI_BY_NAME

if TYPE_CHECKING:
    from stockade._wasi import WasiArgument
    from stockade.report._trace import TraceArgument, TracedCall

__all__ = ["TraceCount", "TraceSummary", "line"]

_SCALARS: Final = frozenset({"fd", "u32", "u64"})
_HEXADECIMAL: Final = frozenset({"address", "rights"})
_TEXTS: Final = frozenset({"path", "text", "buffers"})
_PATH_CHARS: Final = 256
"""So much of a path is always shown."""


def line(call: TracedCall, string_chars: int) -> str:
    """Returns a call as one line.

    Args:
        call: The call.
        string_chars: How many characters of a text are shown.
    """
    known = WASI_BY_NAME.get(call.call)
    if known is None:
        shown = [_value(value, "", string_chars, cut=False) for value in call.arguments.values()]
        returned = call.results.get("result")
        returns = "0" if returned is None else _value(returned, "", string_chars, cut=False)
    else:
        scalars = [argument for argument in known.arguments if argument.is_answer and argument.kind in _SCALARS]
        told = scalars[0] if len(scalars) == 1 and scalars[0].name in call.results else None
        shown = [_argument(call, argument, string_chars) for argument in known.arguments if argument is not told]
        returns = "0" if told is None else str(call.results[told.name])
    text = f"{quoted(call.call, quotes='') if known is None else call.call}({', '.join(shown)}) = "
    if not call.has_returned:
        text += "?"
    elif call.errno is not None:
        text += f"-1 {call.errno}"
    else:
        text += returns
    return text if call.duration_seconds is None else f"{text} <{call.duration_seconds:.6f}>"


def _argument(call: TracedCall, argument: WasiArgument, string_chars: int) -> str:
    name, kind = argument.name, argument.kind
    cut = name in call.cut
    if not argument.is_answer:
        return _value(call.arguments[name], kind, string_chars, cut=cut)
    if name not in call.results:
        # As strace does it: where nothing was answered, the address.
        return _value(call.arguments[name], "address", string_chars, cut=False)
    value = _value(call.results[name], kind, string_chars, cut=cut)
    return f"[{value}]" if kind in _SCALARS else value


def _value(value: TraceArgument, kind: str, string_chars: int, *, cut: bool) -> str:
    if isinstance(value, tuple):
        if kind in ("subscriptions", "filestat", "fdstat", "prestat"):
            return "{" + ", ".join(value) + "}"
        return "|".join(value) or "0"
    if isinstance(value, str):
        # Names stand as they are; what the guest has written, in quotes.
        if kind and kind not in _TEXTS:
            return value
        most = string_chars if kind in ("buffers", "") else max(string_chars, _PATH_CHARS)
        return quoted(value, most) + ("..." if cut and len(value) <= most else "")
    if kind in _HEXADECIMAL or (kind in _TEXTS or kind == "subscriptions"):
        return f"{value:#x}"
    return str(value)


class TraceCount(NamedTuple):
    """How often a call was made.

    Attributes:
        call: The call.
        calls: How often.
        errors: How often with an error.
        seconds: How long these took together, as far as that was measured.
    """

    call: str
    calls: int
    errors: int
    seconds: float | None


class TraceSummary:
    """Counts calls, as `strace -c` does."""

    def __init__(self) -> None:
        self._counts: dict[str, TraceCount] = {}

    def add(self, call: TracedCall) -> None:
        """Counts a call.

        Args:
            call: The call.
        """
        _, calls, errors, seconds = self._counts.get(call.call, (call.call, 0, 0, None))
        if call.duration_seconds is not None:
            seconds = (seconds or 0.0) + call.duration_seconds
        self._counts[call.call] = TraceCount(call.call, calls + 1, errors + (call.errno is not None), seconds)

    def counts(self) -> list[TraceCount]:
        """Returns what was counted: what took longest first."""
        return sorted(self._counts.values(), key=lambda count: (-(count.seconds or 0.0), -count.calls, count.call))

    def render(self) -> str:
        """Returns it as a table for people."""
        counts = self.counts()
        seconds = sum(count.seconds or 0.0 for count in counts)
        calls, errors = sum(count.calls for count in counts), sum(count.errors for count in counts)
        lines = [_HEAD, _RULE]
        for count in counts:
            took = count.seconds or 0.0
            share = 100 * took / seconds if seconds else 0.0
            name = quoted(count.call, quotes="")
            lines.append(_row(share, took, took * 1e6 / count.calls, count.calls, count.errors, name))
        return "\n".join([*lines, _RULE, _row(100.0, seconds, seconds * 1e6 / (calls or 1), calls, errors, "total")])


_HEAD: Final = "% time     seconds  usecs/call     calls    errors call"
_RULE: Final = "------ ----------- ----------- --------- --------- ----------------"


def _row(share: float, seconds: float, each: float, calls: int, errors: int, name: str) -> str:
    return f"{share:6.2f} {seconds:11.6f} {each:11.0f} {calls:9} {errors or '':>9} {name}"
