"""Reports for people and for machines."""

from __future__ import annotations

import base64
import textwrap
from typing import TYPE_CHECKING, Any

import msgspec

from stockade._text import leads_out, printable, terminal_safe
from stockade.report._fuel import Trend
from stockade.report._limits import limits_used
from stockade.report._model import Outcome
from stockade.report._numbers import amount, bar, count, duration, percent, size

if TYPE_CHECKING:
    from stockade.report._fuel import FuelAnomaly
    from stockade.report._limits import LimitUse
    from stockade.report._model import Alert, Report, Violation

__all__ = [
    "LIMITS",
    "alert_text",
    "deciding_violation",
    "last_words",
    "limits_shown",
    "render",
    "rows",
    "summary",
    "to_json",
    "violation_text",
]

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

_WIDTH, _BAR = 80, 16
"""How wide reports are, and how wide the bar of a limit is."""

LIMITS = "limits"

_VALUE_SHOWN = 400
"""Characters of a returned value that are shown to people."""

_LAST_BYTES, _LAST_LINES, _LAST_SHOWN = 4096, 5, 200
"""What is shown of a guest's stderr where it failed: so many lines, of so many characters each."""

_BYTE_KINDS = (
    "memory",
    "stack",
    "file_size",
    "read_bytes",
    "write_bytes",
    "random_bytes",
    "read_rate",
    "write_rate",
    "value",
)


def summary(report: Report) -> str:
    """Says in one sentence how a run ended."""
    if report.outcome is Outcome.EXIT:
        return f"exited with code {report.exit_code}"
    if report.outcome is Outcome.TRAP and report.trap is not None:
        return f"trapped: {report.trap.message}"
    if report.outcome is Outcome.CRASHED and report.trap is not None:
        return f"{_ENDINGS[report.outcome]}: {report.trap.message}"
    ending = _ENDINGS.get(report.outcome, str(report.outcome))
    decisive = deciding_violation(report)
    return ending if decisive is None else f"{ending}: {_what(decisive)}"


def deciding_violation(report: Report) -> Violation | None:
    """Returns the violation that ended a run and that its summary tells; None where it tells none."""
    if report.outcome not in (Outcome.MEMORY, Outcome.DENIED):
        return None
    return next((violation for violation in reversed(report.violations) if violation.action == "stop"), None)


def last_words(report: Report) -> str:
    """Returns the end of the stderr of a guest that failed by itself: each line marked, so that it can forge none."""
    if report.outcome not in (Outcome.EXIT, Outcome.TRAP):
        return ""
    lines = [line for line in report.stderr[-_LAST_BYTES:].splitlines() if line.strip()]
    return "".join(f"\n  stderr: {printable(line, _LAST_SHOWN)}" for line in lines[-_LAST_LINES:])


def violation_text(violation: Violation) -> str:
    """Says in one line what was tried and what was done about it."""
    times = f", {violation.count:,} times" if violation.count > 1 else ""
    return f"{violation.kind}: {_what(violation)}{times} → {violation.action}"


def _what(violation: Violation) -> str:
    """Says what was tried, and what of the policy forbids it."""
    field, call = violation.field, violation.call or ""
    if violation.kind in _VERBS:
        return f"tried to {_VERBS[violation.kind]} {_place(violation)}, but {field or 'that'} is off"
    if violation.kind == "path":
        return f"tried to {_attempt(violation)} {_place(violation)}, {_objection(violation)}"
    if violation.kind == "capability":
        return f"{call} needs {field or violation.subject}, which the policy does not grant"
    if violation.kind == "call":
        return f"{call or violation.subject} is refused{_BY_FIELD.get(field, f' by {field}' if field else '')}"
    if violation.kind == "gate" and not violation.field:
        return f"gave {violation.subject}, and they are left out"
    if violation.kind == "gate":
        does = "reports" if violation.action == "audit" else "keeps back"
        return f"found {violation.subject}, which {field} {does}"
    if violation.kind == "network":
        by = f" ({field})" if field else ""
        return f"asked for {violation.subject}, which the policy does not permit{by}"
    if violation.kind == "hook":
        return f"{call} refuses it: {violation.subject}"
    if violation.kind == "request_time" and violation.limit is not None:
        return (
            f"the request to {violation.subject} took longer than {field} allows ({_show(violation, violation.limit)})"
        )
    if violation.limit is None or violation.observed is None:
        return f"used up {violation.subject}" + (f" ({_show(violation, violation.limit)})" if violation.limit else "")
    return _over_limit(violation, field or violation.subject)


_VERBS = {"create": "create", "delete": "remove", "symlinks": "make the link"}
"""What rights are about."""

_BY_FIELD = {
    "wasi.allow": ": wasi.allow does not have it",
    "wasi.deny": ": wasi.deny has it",
    "clock.mode": ': clock.mode is "none"',
    "random.mode": ': random.mode is "none"',
}
"""How a policy refuses a call."""

_ATTEMPTS = {
    "path_open": "open",
    "path_create_directory": "create the folder",
    "path_filestat_get": "look at",
    "path_filestat_set_times": "set the times of",
    "path_link": "link",
    "path_readlink": "read the link",
    "path_remove_directory": "remove the folder",
    "path_rename": "rename",
    "path_symlink": "make the link",
    "path_unlink_file": "remove",
}
"""What calls do to a path."""


def _attempt(violation: Violation) -> str:
    if violation.call == "path_open" and violation.field == "filesystem.mounts":
        return "write"
    return _ATTEMPTS.get(violation.call or "", f"use {violation.call} on")


def _objection(violation: Violation) -> str:
    if violation.field == "filesystem.mounts.only":
        return f"which {violation.mount or 'its folder'} is not granted for (only)"
    if violation.field:
        return f"but {violation.mount} is read-only"
    if leads_out(violation.subject):
        return f"which is outside {violation.mount or 'its folder'}"
    return f"which {'its folder' if violation.mount is None else violation.mount} does not permit"


def _place(violation: Violation) -> str:
    """Returns the path that was tried, from the guest's root where that is known."""
    if violation.mount is None or violation.subject.startswith("/"):
        return "what is open" if violation.subject == violation.call else violation.subject
    return f"{violation.mount.rstrip('/')}/{violation.subject}"


_ASKED = {
    "timeout": "ran for",
    "idle": "waited for",
    "fuel": "used",
    "value": "returned",
    "open_files": "opened",
    "files_created": "created",
}


def _over_limit(violation: Violation, field: str) -> str:
    """Says how much was asked for, and how much there is."""
    assert violation.observed is not None
    assert violation.limit is not None
    asked, allowed = _show(violation, violation.observed), _show(violation, violation.limit)
    if asked == allowed and violation.kind in _BYTE_KINDS and violation.observed != violation.limit:
        # Rounded to one unit they look alike.
        asked, allowed = f"{violation.observed:,.0f} B", f"{violation.limit:,.0f} B"
    if violation.call is None:
        verb = _ASKED.get(violation.kind, "of")
        who = violation.subject if violation.subject != field else ""
        return f"{who} {verb} {asked}, {field} allows {allowed}".lstrip()
    verb = _ASKED.get(violation.kind, "asked for")
    return f"{violation.call} {verb} {asked}, {field} allows {allowed}"


def _show(violation: Violation, number: float) -> str:
    if violation.kind in ("timeout", "idle", "request_time"):
        return duration(number)
    return size(number) if violation.kind in _BYTE_KINDS else count(number)


def rows(report: Report) -> list[tuple[str, str]]:
    """Returns the lines of a report as pairs of label and text; one that is called `LIMITS` is for its limits."""
    usage, timings = report.usage, report.timings
    lines = [
        ("module", f"{report.module.name}  sha256 {report.module.sha256[:16]}…"),
        ("policy", f"{report.policy.name}  {report.policy.digest[:16]}…"),
        ("isolation", report.isolation),
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
    dropped = (("stdout", report.truncated.stdout), ("stderr", report.truncated.stderr))
    if any(number for _, number in dropped):
        lines.append(("not kept", " and ".join(f"{size(number)} of {name}" for name, number in dropped if number)))
    if usage.files_opened or usage.files_created or usage.files_deleted:
        counts = f"{usage.files_opened:,} opened, {usage.files_created:,} created, {usage.files_deleted:,} deleted"
        lines.append(("files", f"{counts}, {size(usage.read_bytes)} read, {size(usage.written_bytes)} written"))
    if usage.calls:
        most = sorted(usage.calls.items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{name} ×{count:,}" for name, count in most[:5])
        rest = f" and {len(most) - 5} more" if len(most) > 5 else ""
        lines.append(("WASI calls", f"{sum(usage.calls.values()):,}: {shown}{rest}"))
    lines.append((LIMITS, ""))
    for number, alert in enumerate(report.alerts):
        lines.append(("alerts" if number == 0 else "", alert_text(alert)))
    for number, violation in enumerate(report.violations):
        lines.append(("violations" if number == 0 else "", violation_text(violation)))
    if report.quarantine:
        lines.append(("kept aside", f"{report.quarantine} (stockade gate show {report.quarantine})"))
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


def alert_text(alert: Alert) -> str:
    """Says in one line which share of a limit was used, and when that was seen."""
    return f"{alert.limit} reached {percent(alert.threshold)}: {percent(alert.utilization)} at {duration(alert.at)}"


def limits_shown(report: Report) -> list[LimitUse]:
    """Returns the limits that are shown: all whose use is known, and what was used where there is no limit."""
    return [
        use
        for use in limits_used(report)
        if use.utilization is not None or (use.used and use.unit in ("seconds", "bytes", "count"))
    ]


def _limit_lines(limits: list[LimitUse], width: int) -> list[str]:
    cells: list[tuple[str, str, str, float | None]] = []
    for use in limits:
        used = "" if use.used is None else amount(use.used, use.unit)
        allowed = "unlimited" if use.limit is None else f"of {amount(use.limit, use.unit)}"
        cells.append((use.name, used, allowed, use.utilization))
    names, amounts, bounds, _ = zip(*cells, strict=True)
    widths = [max(map(len, column)) for column in (names, amounts, bounds)]
    bar_width = min(_BAR, width - sum(widths) - len("     100%  "))
    lines = []
    for name, used, allowed, share in cells:
        line = f"{name:<{widths[0]}}  {used:>{widths[1]}} {allowed:<{widths[2]}}"
        if share is not None:
            line += f"  {percent(share):>4}  {bar(share, bar_width)}"
        lines.append(line)
    return lines


def render(report: Report) -> str:
    """Returns a report as text."""
    lines: list[tuple[str, str]] = []
    listed = rows(report)
    width = max(len(label) for label, _ in listed)
    for label, text in listed:
        if label == LIMITS:
            limits = _limit_lines(limits_shown(report), _WIDTH - width - 2) if limits_shown(report) else []
            lines.extend(zip([LIMITS, *[""] * len(limits)], limits, strict=False))
            continue
        # Line breaks and the like in a text become spaces: what it says begins no line of the report.
        wrapped = textwrap.wrap(
            terminal_safe(text.encode()), _WIDTH - width - 2, break_long_words=label == "value", break_on_hyphens=False
        )
        lines.extend(zip([label, *[""] * len(wrapped)], wrapped or [""], strict=False))
    return "\n".join(f"{label:>{width}}  {text}".rstrip() for label, text in lines)


def to_json(report: Report) -> str:
    """Returns a report as JSON."""
    document: dict[str, Any] = msgspec.to_builtins(report, builtin_types=(bytes,))
    for field in ("stdout", "stderr", "value"):
        document[field], in_base64 = _in_json(document[field])
        if in_base64 is not None:
            document[f"{field}_base64"] = in_base64
    document["ok"] = report.ok
    document["utilization"] = report.utilization
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
