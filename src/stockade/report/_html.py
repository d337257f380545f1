"""A report as one HTML file that needs nothing else, and asks nobody for anything.

There is no script in it. Its policy (Content-Security-Policy) lets a browser load nothing and run nothing, but for the
one style sheet that it holds, by its hash. What the guest chose comes in as text only (`_markup.py`).
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Final

from stockade._version import __version__
from stockade.report._limits import limits_used
from stockade.report._markup import Markup, element, group
from stockade.report._model import Outcome
from stockade.report._numbers import amount, duration, percent, size
from stockade.report._plot import Mark, Series, plot, time_line
from stockade.report._render import LIMITS, alert_text, limits_shown, rows, summary, violation_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.report._limits import LimitUse, Unit
    from stockade.report._model import Report, Sample

__all__ = ["to_html"]

_MOST_OUTPUT: Final = 16_384
"""Bytes of each stream that are shown: half of them from the beginning."""

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2530; --dim: #5b6775; --page: #ffffff; --box: #f5f7f9; --rule: #d8dee5;
  --a: #1f6feb; --b: #b35900; --c: #1a7f37; --bad: #c62828; --warn: #b26a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --dim: #9aa7b4; --page: #12171d; --box: #1b222a;
  --rule: #36414d; --a: #6cb0ff; --b: #f0a050; --c: #56c878; --bad: #ff7b72; --warn: #e8b04a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto; padding: 24px;
  max-width: 820px; }
h1 { font-size: 22px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 28px 0 8px; }
h3 { font-size: 14px; margin: 14px 0 0; font-weight: 600; }
p { margin: 4px 0; overflow-wrap: anywhere; }
.note { color: var(--dim); font-size: 13px; }
.outcome { display: inline-block; padding: 1px 10px; border-radius: 10px; border: 1px solid currentColor;
  font-weight: 600; }
.outcome.ok { color: var(--c); } .outcome.failed { color: var(--bad); } .outcome.exit { color: var(--warn); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 3px 10px 3px 0; border-bottom: 1px solid var(--rule);
  overflow-wrap: anywhere; font-weight: normal; }
th { color: var(--dim); white-space: nowrap; }
.facts th { width: 90px; } .facts p { margin: 0; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.bar { width: 190px; }
svg { display: block; width: 100%; height: auto; }
.bar svg { height: 10px; margin-top: 7px; }
.track { fill: var(--rule); } .fill { fill: var(--a); }
.fill.high { fill: var(--warn); } .fill.full { fill: var(--bad); }
.grid { stroke: var(--rule); } .axis { stroke: var(--dim); }
.label { fill: var(--dim); font-size: 11px; } .end { text-anchor: end; } .middle { text-anchor: middle; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.s0 { stroke: var(--a); } .s1 { stroke: var(--b); stroke-dasharray: 7 3; } .s2 { stroke: var(--c);
  stroke-dasharray: 2 3; }
.limit { stroke: var(--bad); stroke-dasharray: 4 4; } .limit-label { fill: var(--bad); stroke: none; }
.mark { stroke-width: 1; stroke-dasharray: 2 4; }
.mark.stop, .mark.deny { stroke: var(--bad); } .mark.audit { stroke: var(--a); } .mark.alert { stroke: var(--warn); }
path.stop, path.deny { fill: var(--bad); } path.audit { fill: var(--a); } path.alert { fill: var(--warn); }
.key { display: inline-block; width: 34px; height: 10px; margin-right: 5px; vertical-align: middle; }
.legend span { margin-right: 16px; font-size: 13px; color: var(--dim); }
pre { background: var(--box); padding: 10px; overflow: auto; max-height: 360px; font-size: 13px; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: 6px 0; }
"""

_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

# An icon is asked for where none is named; this one is empty, and here.
_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; base-uri 'none'; form-action 'none'"
)


def to_html(report: Report) -> str:
    """Returns a report as an HTML file."""
    body = group(
        _head(report),
        _facts(report),
        _limits(limits_shown(report)),
        _course(report),
        _list("Violations", _violations(report)),
        _output("stdout", report.stdout, report.truncated.stdout),
        _output("stderr", report.stderr, report.truncated.stderr),
        element("p", f"Made by Stockade {__version__}. Nothing in this file is loaded from elsewhere.", class_="note"),
    )
    head = group(
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("link", rel="icon", href="data:,"),
        element("title", f"{report.module.name}: {report.outcome}"),
        Markup(f"<style>{_STYLE}</style>"),
    )
    page = element("html", element("head", head), element("body", body), lang="en")
    return f"<!doctype html>\n{page}\n"


def _head(report: Report) -> Markup:
    kind = {Outcome.OK: "ok", Outcome.EXIT: "exit"}.get(report.outcome, "failed")
    return group(
        element("h1", report.module.name),
        element("p", element("span", str(report.outcome), class_=f"outcome {kind}"), " ", summary(report)),
    )


def _facts(report: Report) -> Markup:
    facts: list[tuple[str, list[str]]] = []
    for label, text in rows(report):
        if label == LIMITS:
            break
        if label:
            facts.append((label, []))
        facts[-1][1].append(text)
    lines = [
        element("tr", element("th", label, scope="row"), element("td", *(element("p", text) for text in texts)))
        for label, texts in facts
        if label != "outcome"
    ]
    return element("table", *lines, class_="facts")


def _limits(limits: Sequence[LimitUse]) -> Markup:
    if not limits:
        return Markup()
    lines = []
    for use in limits:
        share = use.utilization
        allowed = "unlimited" if use.limit is None else f"of {amount(use.limit, use.unit)}"
        lines.append(
            element(
                "tr",
                element("th", use.name, scope="row"),
                element("td", "" if use.used is None else amount(use.used, use.unit), class_="number"),
                element("td", allowed, class_="number"),
                element("td", "" if share is None else percent(share), class_="number"),
                element("td", Markup() if share is None else _bar(share, exceeded=use.exceeded), class_="bar"),
            )
        )
    return group(element("h2", "Limits"), element("table", *lines))


def _bar(share: float, *, exceeded: bool) -> Markup:
    kind = "fill full" if exceeded or share == 1 else "fill high" if share >= 0.8 else "fill"
    return element(
        "svg",
        element("rect", width=100, height=10, class_="track"),
        element("rect", width=100 * share, height=10, class_=kind),
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        role="img",
        aria_label=percent(share),
    )


def _course(report: Report) -> Markup:
    """What happened over the time of the run."""
    seconds, samples, marks = report.usage.wall_seconds, report.samples, _marks(report)
    parts: list[Markup] = []
    if samples:
        limits = {use.name: use for use in limits_used(report)}
        parts.append(_plot("Memory", "bytes", samples, seconds, marks, [("", _memory)], limits["memory"]))
        if report.usage.fuel is not None:
            parts.append(_plot("Fuel", "units", samples, seconds, marks, [("", _fuel)], limits["fuel"]))
        streams = [("read", _read), ("written", _written), ("stdout and stderr", _printed)]
        parts.append(_plot("Bytes in and out", "bytes", samples, seconds, marks, streams))
        parts.append(_plot("Calls", "count", samples, seconds, marks, [("", _calls)], limits["calls"]))
    if marks:
        kinds = {"stop": "ended the run", "deny": "refused", "audit": "let through", "alert": "alert"}
        seen = {mark.kind for mark in marks}
        legend = [element("span", _key(kind), text) for kind, text in kinds.items() if kind in seen]
        parts.append(element("h3", "Violations and alerts" if report.alerts else "Violations"))
        parts.append(time_line("When policy violations and alerts were seen", marks, seconds))
        parts.append(element("p", *legend, class_="legend"))
    if not parts:
        return Markup()
    note = "" if samples else "There are no samples of this run: ask for them to see memory, fuel and calls over time."
    return group(
        element("h2", f"Over {duration(seconds)}"),
        element("p", note, class_="note") if note else Markup(),
        *parts,
        _list("Alerts", [alert_text(alert) for alert in report.alerts]),
    )


_SHAPES: Final = {
    "stop": "l5-5l5 5l-5 5z",
    "deny": "a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "audit": "v-5h10v10h-10z",
    "alert": "m0 5l5-10l5 10z",
}


def _key(kind: str) -> Markup:
    return element(
        "svg",
        element("path", d=f"M12 5{_SHAPES[kind]}", class_=kind),
        viewBox="0 0 34 10",
        class_="key",
        aria_hidden="true",
    )


def _plot(
    title: str,
    unit: Unit,
    samples: Sequence[Sample],
    seconds: float,
    marks: Sequence[Mark],
    lines: Sequence[tuple[str, Callable[[Sample], float]]],
    use: LimitUse | None = None,
) -> Markup:
    series = [Series(name, [(sample.at, value(sample)) for sample in samples]) for name, value in lines]
    limit = None if use is None else use.limit
    told = "" if use is None or use.used is None else f"{amount(use.used, unit)} in the end"
    if use is not None and use.limit is not None and use.utilization is not None:
        told += f", {percent(use.utilization)} of the limit of {amount(use.limit, unit)}"
    legend = [
        element("span", _key_line(number), name) for number, (name, _) in enumerate(lines) if name and len(lines) > 1
    ]
    return group(
        element("h3", title),
        element("p", told, class_="note") if told else Markup(),
        plot(f"{title} over time", unit, series, seconds, limit, marks),
        element("p", *legend, class_="legend") if legend else Markup(),
    )


def _key_line(number: int) -> Markup:
    line = element("line", x1=0, x2=34, y1=5, y2=5, class_=f"line s{number}")
    return element("svg", line, viewBox="0 0 34 10", class_="key", aria_hidden="true")


def _memory(sample: Sample) -> float:
    return sample.memory_bytes


def _fuel(sample: Sample) -> float:
    return sample.fuel or 0


def _read(sample: Sample) -> float:
    return sample.read_bytes


def _written(sample: Sample) -> float:
    return sample.written_bytes


def _printed(sample: Sample) -> float:
    return sample.output_bytes


def _calls(sample: Sample) -> float:
    return sample.calls


def _marks(report: Report) -> list[Mark]:
    """Violations and alerts that have a time. What ended the run and has none was at its end."""
    end = report.usage.wall_seconds
    marks = []
    for violation in report.violations:
        at = end if violation.at is None and violation.action == "stop" else violation.at
        if at is not None:
            marks.append(Mark(at, f"{duration(at)}: {violation_text(violation)}", violation.action))
    first = {(mark.at, mark.kind) for mark in marks}
    for event in report.events:
        if event.at is not None and (event.at, event.action) not in first:
            text = f"{duration(event.at)}: {event.kind}: {event.call} {event.subject} → {event.action}"
            marks.append(Mark(event.at, text, event.action))
    marks += [Mark(alert.at, alert_text(alert), "alert") for alert in report.alerts]
    return marks


def _violations(report: Report) -> list[str]:
    lines = []
    for violation in report.violations:
        at = "" if violation.at is None else f"{duration(violation.at)}: "
        lines.append(at + violation_text(violation))
    if report.violations_dropped:
        lines.append(f"and {report.violations_dropped:,} more of the same kinds")
    return lines


def _list(title: str, lines: Sequence[str]) -> Markup:
    if not lines:
        return Markup()
    return group(element("h2", title), element("table", *(element("tr", element("td", line)) for line in lines)))


def _output(name: str, data: bytes, dropped: int) -> Markup:
    if not data:
        return Markup()
    half = _MOST_OUTPUT // 2
    parts = [data] if len(data) <= _MOST_OUTPUT else [data[:half], data[-half:]]
    told = [element("h2", name)]
    if len(parts) > 1:
        told.append(element("p", f"{size(len(data))}, of which the beginning and the end are shown.", class_="note"))
    if dropped:
        told.append(element("p", f"{size(dropped)} from the middle were not kept.", class_="note"))
    return group(*told, *(element("pre", part.decode("utf-8", "backslashreplace")) for part in parts))
