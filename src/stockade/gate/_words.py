"""Words of a report that the guest chose, or a worker in its hands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from stockade.gate._gate import Findings
from stockade.gate._stream import placeholder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stockade.gate._gate import Gate
    from stockade.report import Report, TracedCall, Violation, ViolationEvent

__all__ = ["call_with", "look_at_words"]

_Record = TypeVar("_Record", "Violation", "ViolationEvent")

_OF_VIOLATIONS: Final = ("kind", "subject", "call", "field", "mount")
_OF_EVENTS: Final = ("kind", "subject", "call")


def look_at_words(gate: Gate, report: Report, found: Findings) -> dict[str, object]:
    """Returns what a report tells in words that the guest chose, as it may leave: the fields that change.

    Args:
        gate: What is looked for.
        report: The report.
        found: What was found, which is added to.
    """
    trap, usage = report.trap, report.usage
    calls = tuple(_without_beginnings(gate, call, found) if call.cut else call for call in report.trace_calls)
    has_changed = any(one is not other for one, other in zip(calls, report.trace_calls, strict=True))
    texts = [text for each in report.violations for text in _words(each, _OF_VIOLATIONS)]
    texts += [text for each in report.events for text in _words(each, _OF_EVENTS)]
    # A worker in the hands of its guest chooses these, too.
    texts += [*usage.calls, *usage.denied]
    if trap is not None:
        texts += [trap.code, trap.message, *(frame.function or "" for frame in trap.frames)]
    for call in calls:
        texts += _texts_in({**call.arguments, **call.results})
    if not texts:
        return {}
    whole = "\n".join(texts).encode("utf-8", "surrogateescape")
    if gate.look(whole, "report", found.note) == whole:
        return {"trace_calls": calls} if has_changed else {}
    # What is split among several is in none of them.
    again = Findings()
    left = "\n".join(gate.look_at_text(text, "report", Findings().note) for text in texts)
    gate.look(left.encode("utf-8", "surrogateescape"), "report", again.note)
    hidden = placeholder(again.all()[0].detector).decode() if again.all() else None

    def gated(text: str) -> str:
        return hidden if hidden is not None and text else gate.look_at_text(text, "report", Findings().note)

    replace = msgspec.structs.replace
    changes: dict[str, object] = {
        "violations": tuple(_reworded(each, _OF_VIOLATIONS, gated) for each in report.violations),
        "events": tuple(_reworded(each, _OF_EVENTS, gated) for each in report.events),
        "trace_calls": tuple(call_with(call, gated) for call in calls),
        "usage": replace(
            usage,
            calls={gated(name): count for name, count in usage.calls.items()},
            denied={gated(name): count for name, count in usage.denied.items()},
        ),
    }
    if trap is not None:
        frames = tuple(
            frame if frame.function is None else replace(frame, function=gated(frame.function)) for frame in trap.frames
        )
        changes["trap"] = replace(trap, code=gated(trap.code), message=gated(trap.message), frames=frames)
    return changes


def _without_beginnings(gate: Gate, call: TracedCall, found: Findings) -> TracedCall:
    """Returns a call without beginnings of secrets at the ends of its texts that were cut."""
    changed: dict[str, dict[str, object]] = {}
    for texts in ("arguments", "results"):
        values = getattr(call, texts)
        for name in call.cut:
            text = values.get(name)
            if not isinstance(text, str):
                continue
            data = text.encode("utf-8", "surrogateescape")
            passed = gate.look_at_beginning(data, "report", found.note)
            if passed != data:
                changed[texts] = {**changed.get(texts, values), name: passed.decode("utf-8", "replace")}
    return msgspec.structs.replace(call, **changed) if changed else call


def _words(record: Violation | ViolationEvent, fields: Sequence[str]) -> list[str]:
    return [text for field in fields if (text := getattr(record, field))]


def _reworded(record: _Record, fields: Sequence[str], change: Callable[[str], str]) -> _Record:
    changed = {field: change(text) for field in fields if (text := getattr(record, field))}
    return msgspec.structs.replace(record, **changed)


def _texts_in(values: Mapping[str, object]) -> list[str]:
    found = []
    for value in values.values():
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, tuple):
            found += [item for item in value if isinstance(item, str)]
    return found


def call_with(call: TracedCall, change: Callable[[str], str]) -> TracedCall:
    """Returns a traced call with other texts.

    Args:
        call: The call.
        change: Returns what stands in the place of a text.
    """
    return msgspec.structs.replace(
        call,
        arguments={name: _with_texts(each, change) for name, each in call.arguments.items()},
        results={name: _with_texts(each, change) for name, each in call.results.items()},
    )


def _with_texts(value: object, change: Callable[[str], str]) -> object:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, tuple):
        return tuple(change(item) if isinstance(item, str) else item for item in value)
    return value
