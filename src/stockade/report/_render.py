"""Reports for people and for machines."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import msgspec

from stockade._text import printable, terminal_safe
from stockade.report._fuel import Trend
from stockade.report._model import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.report._fuel import FuelAnomaly
    from stockade.report._model import Report, Violation

__all__ = ["duration", "last_words", "render", "rows", "size", "summary", "to_json", "violation_text"]

_ENDINGS = {
    Outcome.OK: "finished",
    Outcome.FUEL: "stopped: out of fuel",
    Outcome.TIMEOUT: "stopped: time limit reached",
    Outcome.IDLE: "stopped: idle limit reached",
    Outcome.MEMORY: "stopped: memory limit exceeded",
    Outcome.STACK: "stopped: stack overflow",
    Outcome.OUTPUT: "stopped: output limit exceeded",
    Outcome.DENIED: "stopped: policy violation",
    Outcome.CANCELLED: "cancelled",
    Outcome.CRASHED: "the sandbox failed",
}

_VALUE_SHOWN = 400
"""Characters of a returned value that are shown to people."""

_LAST_BYTES, _LAST_LINES, _LAST_SHOWN = 4096, 5, 200
"""What is shown of a guest's stderr where it failed: so many lines, of so many characters each."""

_BYTE_KINDS = ("file_size", "read_bytes", "write_bytes", "random_bytes", "read_rate", "write_rate", "value")


def size(count: float) -> str:
    """Shows a number of bytes in the largest binary unit that keeps it readable."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def duration(seconds: float) -> str:
    """Shows a time in a unit that keeps it readable."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def count(number: float) -> str:
    """Shows a number."""
    return f"{number:,.10g}"


def summary(report: Report) -> str:
    """Says in one sentence how a run ended."""
    if report.outcome is Outcome.EXIT:
        return f"exited with code {report.exit_code}"
    if report.outcome is Outcome.TRAP and report.trap is not None:
        return f"trapped: {report.trap.message}"
    return _ENDINGS.get(report.outcome, str(report.outcome))


def last_words(report: Report) -> str:
    """Returns the end of the stderr of a guest that failed by itself: each line marked, so that it can forge none."""
    if report.outcome not in (Outcome.EXIT, Outcome.TRAP):
        return ""
    lines = [line for line in report.stderr[-_LAST_BYTES:].splitlines() if line.strip()]
    return "".join(f"\n  stderr: {printable(line, _LAST_SHOWN)}" for line in lines[-_LAST_LINES:])


def violation_text(violation: Violation) -> str:
    """Says in one line what was tried and what was done about it."""
    formats: dict[str, Callable[[float], str]] = {
        "memory": size,
        "timeout": duration,
        "idle": duration,
        **dict.fromkeys(_BYTE_KINDS, size),
    }
    show = formats.get(violation.kind, count)
    text = f"{violation.kind}: {violation.subject}"
    if violation.observed is not None and violation.limit is not None:
        verb = "reached" if violation.call is None else "asked for"
        text += f" ({show(violation.observed)} {verb}, {show(violation.limit)} allowed)"
    if violation.count > 1:
        text += f", {violation.count:,} times"
    return f"{text} → {violation.action}"


def rows(report: Report) -> list[tuple[str, str]]:
    """Returns the lines of a report as pairs of label and text."""
    usage, timings = report.usage, report.timings
    lines = [
        ("module", f"{report.module.name}  sha256 {report.module.sha256[:16]}…"),
        ("policy", f"{report.policy.name}  {report.policy.digest[:16]}…"),
        ("outcome", f"{report.outcome} - {summary(report)}"),
    ]
    if report.exit_code is not None:
        lines.append(("exit code", str(report.exit_code)))
    if report.value is not None:
        value = report.value
        lines.append(("value", printable(value if isinstance(value, str | bytes) else str(value), _VALUE_SHOWN)))
    if report.trap is not None:
        for number, frame in enumerate(report.trap.frames[:8]):
            name = frame.function or f"function {frame.index}"
            lines.append(("trap" if number == 0 else "", f"{name} + {frame.offset:#x}"))
    compile_time = "cached" if timings.cache_hit else duration(timings.compile)
    lines.append(("time", f"run: {duration(timings.run)} · instantiate: {duration(timings.instantiate)}"))
    lines.append(("", f"compile: {compile_time} · CPU: {duration(usage.cpu_seconds)}"))
    if usage.idle_seconds:
        lines.append(("waiting", duration(usage.idle_seconds)))
    lines.extend(_fuel_rows(report))
    lines.append(("memory", f"{size(usage.memory_peak_bytes)} peak"))
    output = f"stdout {size(usage.stdout_bytes)}, stderr {size(usage.stderr_bytes)}"
    if report.truncated.stdout or report.truncated.stderr:
        dropped = report.truncated.stdout + report.truncated.stderr
        output += f" ({size(dropped)} not kept)"
    lines.append(("output", output))
    if usage.files_opened or usage.files_created or usage.files_deleted:
        counts = f"{usage.files_opened:,} opened, {usage.files_created:,} created, {usage.files_deleted:,} deleted"
        lines.append(("files", f"{counts}, {size(usage.read_bytes)} read, {size(usage.written_bytes)} written"))
    if usage.calls:
        most = sorted(usage.calls.items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{name} ×{count:,}" for name, count in most[:5])
        rest = f" and {len(most) - 5} more" if len(most) > 5 else ""
        lines.append(("WASI calls", f"{sum(usage.calls.values()):,}: {shown}{rest}"))
    for number, violation in enumerate(report.violations):
        lines.append(("violations" if number == 0 else "", violation_text(violation)))
    if report.violations_dropped:
        lines.append(("", f"and {report.violations_dropped:,} more of the same kinds"))
    return lines


def _fuel_rows(report: Report) -> list[tuple[str, str]]:
    used, fuel = report.usage.fuel, report.fuel
    if used is None or fuel is None:
        return [("fuel", "not metered" if used is None else f"{used:,}")]
    text = f"{'' if fuel.exact else 'at least '}{used:,} of {fuel.initial + fuel.refilled:,}"
    if fuel.refills:
        text += f", including {fuel.refilled:,} from {fuel.refills:,} refills"
    lines = [("fuel", text)]
    if fuel.rate:
        trend = "" if fuel.trend is Trend.TOO_LITTLE_DATA else f", {fuel.trend}"
        lines.append(("", f"{fuel.average_rate:,.0f} per second{trend}"))
    return lines + [("", anomaly_text(anomaly)) for anomaly in fuel.anomalies]


def anomaly_text(anomaly: FuelAnomaly) -> str:
    """Says in one line what was unusual about fuel."""
    if anomaly.kind == "rapid_depletion":
        return f"rapid depletion: used up within {duration(anomaly.observed)}"
    name = anomaly.kind.replace("_", " ")
    return f"{name}: {anomaly.observed:,.0f} per second in the latest slice, {anomaly.expected:,.0f} before"


def render(report: Report) -> str:
    """Returns a report as text."""
    lines = rows(report)
    width = max(len(label) for label, _ in lines)
    return terminal_safe("\n".join(f"{label:>{width}}  {text}" for label, text in lines).encode())


def to_json(report: Report) -> str:
    """Returns a report as JSON."""
    document: dict[str, Any] = msgspec.to_builtins(report, builtin_types=(bytes,))
    for field in ("stdout", "stderr", "value"):
        document[field], in_base64 = _in_json(document[field])
        if in_base64 is not None:
            document[f"{field}_base64"] = in_base64
    document["ok"] = report.ok
    return msgspec.json.encode(document).decode()


def _in_json(found: Any) -> tuple[Any, Any]:
    """Returns a value with its bytes as text; and with them in base64, where that text does not tell them exactly."""
    if isinstance(found, list):
        pairs = [_in_json(item) for item in found]
        exact = [in_base64 for _, in_base64 in pairs]
        return [text for text, _ in pairs], exact if any(exact) else None
    if not isinstance(found, bytes):
        return found, None
    try:
        return found.decode(), None
    except UnicodeDecodeError:
        return found.decode("utf-8", "replace"), base64.b64encode(found).decode()
