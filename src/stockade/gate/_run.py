"""All that leaves one run: streams while it goes on, its report, what its code gives, and its requests."""

from __future__ import annotations

from time import thread_time
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import msgspec

from stockade._text import printable
from stockade.errors import StockadeError
from stockade.gate._gate import FIELDS, Findings
from stockade.gate._requests import SEAM_BYTES, look_at_request
from stockade.gate._stream import PIECE_BYTES, placeholder
from stockade.gate._words import call_with, look_at_words
from stockade.report import Finding, Outcome, Report, Verdict, Violation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Literal

    from stockade.gate._finder import Span
    from stockade.gate._gate import Gate
    from stockade.gate._joined import JoinedStreams
    from stockade.gate._stream import GateStream
    from stockade.report import TracedCall

__all__ = ["MOST_FILES_SECONDS", "GateRun", "Given", "violation_of"]

MOST_FILES_SECONDS: Final = 10.0
"""How long the files of a run are looked at, in processor time: code can write some that take a hundred times as long
as others. What was not looked at by then does not leave."""

Json: TypeAlias = "str | int | float | bool | bytes | list[Json] | dict[str, Json] | None"

_HELD: Final = b"[...]"
"""What is told in the place of what may be the beginning of a secret."""

_STREAMS: Final = ("stdout", "stderr")


class Given:
    """What code gives beside its output: taken in, and returned as it may leave.

    Attributes:
        value: Its value, as JSON knows it.
        texts: What its error says.
        files: What was collected, by names.
        figures: Pictures that it drew. Those in which something is to be replaced are left out.
        left_out: How many files it would have taken too long to look at.
    """

    def __init__(
        self, value: object, texts: Sequence[str], files: Mapping[str, bytes], figures: Sequence[bytes] = ()
    ) -> None:
        self.value = value
        self.texts = list(texts)
        self.files = dict(files)
        self.figures = list(figures)
        self.left_out = 0


class GateRun:
    """Looks at what leaves one run, or one session, call by call. For one thread at a time.

    Args:
        gate: What is looked for.
        frames: Whether what the guest returns is a message for the host, which is looked at when it was read.

    Attributes:
        frames: The same.
        joins: Whether somebody is passed both streams of output, who sees them as they were written.
    """

    def __init__(self, gate: Gate, *, frames: bool = False) -> None:
        self._gate = gate
        self.frames = frames
        self.joins = False
        self._begin()

    def renewed(self, *, frames: bool) -> GateRun:
        """Returns what looks at what leaves another run of the same guest.

        Args:
            frames: As for this one.
        """
        renewed = GateRun(self._gate, frames=frames)
        renewed.joins = self.joins
        return renewed

    def _begin(self) -> None:
        """Begins with nothing found."""
        self._live: dict[str, GateStream] = {}
        self._joined: JoinedStreams | None = None
        self._calls: GateStream | None = None
        self._seen = Findings()
        self._requests = Findings()

    # -- while it goes on ---------------------------------------------------------------------------------------------

    def pass_on(self, stream: str, piece: bytes) -> list[tuple[str, bytes]]:
        """Returns what may be passed on of the output of a guest that runs, by its streams.

        Args:
            stream: `stdout` or `stderr`.
            piece: What it has written.
        """
        # What is withheld is so in both of them, whichever it was in.
        withheld = self._seen.verdict.withholds
        if self._joined is None and self.joins and not self._live:
            self._joined = self._gate.join(self._seen.note)
        pieces = [(stream, piece)] if self._joined is None else self._joined.feed(stream, piece)
        found = [(each, self._stream(each).feed(data)) for each, data in pieces]
        return [] if withheld else found

    def _stream(self, stream: str) -> GateStream:
        live = self._live.get(stream)
        if live is None:
            live = self._live[stream] = self._gate.stream(stream, self._seen.note)
        return live

    def rest(self) -> list[tuple[str, bytes]]:
        """Returns what was held of the output and may be passed on now that there is no more, by its streams."""
        found: list[tuple[str, bytes]] = []
        withheld = self._seen.verdict.withholds
        if self._joined is not None:
            found += [(stream, self._stream(stream).feed(data)) for stream, data in self._joined.finish()]
        for stream, live in self._live.items():
            passed = live.finish()
            withheld = withheld or self._seen.verdict.withholds
            found.append((stream, passed))
        self._live = {}
        return [] if withheld else [(stream, data) for stream, data in found if data]

    def traced(self, call: TracedCall) -> TracedCall:
        """Returns a call as it may be told while the guest runs: together with those that were told before it.

        Args:
            call: The call.
        """
        if self._calls is None:
            self._calls = self._gate.follow("report", self._seen.note)
        return call_with(call, self._followed)

    def _followed(self, text: str) -> str:
        """Returns a text of a call. What may be the beginning of a secret is not told: nothing can be told later."""
        data = passed = text.encode("utf-8", "surrogateescape")
        calls = self._calls
        if calls is not None:
            passed = calls.feed(data)
            if calls.let_go():
                passed += _HELD
        passed = self._gate.look_for_others(passed, "report", self._seen.note)
        return text if passed == data else passed.decode("utf-8", "replace")

    # -- requests -----------------------------------------------------------------------------------------------------

    def request(
        self, url: str, headers: Sequence[tuple[str, str]], body: bytes, method: str = "", sent_url: str | None = None
    ) -> tuple[str, list[tuple[str, str]], bytes] | Finding:
        """Looks at a request before it is made.

        Args:
            url: Its URL.
            headers: Its headers.
            body: Its body.
            method: Its method.
            sent_url: The URL as it leaves, where that is another one: a host in other letters is that of the usual
                ones, and dots in a path join what is around them.

        Returns:
            URL, headers and body as they may leave; or what was found that keeps all of it from leaving.
        """
        found, passed = look_at_request(self._gate, method, url, headers, body, sent_url)
        self._requests.note_all(found.all())
        return found.all()[0] if passed is None else passed

    # -- reports ------------------------------------------------------------------------------------------------------

    def release(self, report: Report) -> Report:
        """Returns a report as it may leave.

        Args:
            report: The report on a call, which is over.
        """
        found = Findings()
        stdout, stderr = self._output(report, found)
        value: object = report.value
        if value is not None and not self.frames:
            value = self._value(value, "value", found)
        told = look_at_words(self._gate, report, found)
        found.note_new(self._seen)
        requests = self._requests
        self._begin()
        if not found.all() and not requests.all():
            return report
        changes: dict[str, object] = {**told, "stdout": stdout, "stderr": stderr, "value": value}
        if found.verdict.withholds:
            parts = {"stdout": report.stdout, "stderr": report.stderr}
            if report.value is not None and not self.frames:
                parts["value"] = _written(report.value)
            # A message for the host is looked at by itself: what is worse may be in it.
            kept_value = value if self.frames else None
            changes |= {"stdout": b"", "stderr": b"", "value": kept_value, "trace_calls": ()}
            changes |= self._withheld(report, found, parts)
        return self._told(report, changes, (found, requests))

    def release_given(self, report: Report, given: Given) -> Report:
        """Has what code gives looked at, as it may leave; returns the report on it, which was released before.

        Args:
            report: The report.
            given: What the code gives. It is changed.
        """
        found = Findings()
        value, texts, files, figures = given.value, list(given.texts), given.files, given.figures
        was_withheld = any(finding.verdict.withholds and finding.channel != "request" for finding in report.findings)
        given.value = self._value(value, "value", found)
        given.texts = [self._text(text, found, "error") for text in texts]
        given.files, until, late = {}, thread_time() + MOST_FILES_SECONDS, set[str]()
        for name, data in files.items():
            shown = self._free(self._text(name, found, "file"), given.files)
            passed = self._looked_at(data, f"file {printable(shown)}", found, until)
            if passed is None:
                late.add(name)
            else:
                given.files[shown] = passed
        looked = [self._looked_at(data, "figure", found, until) for data in figures]
        # A picture with other bytes in it is none.
        given.figures = [data for data, passed in zip(figures, looked, strict=True) if passed == data]
        given.left_out, count = len(late), len(late) + looked.count(None)
        changes: dict[str, object] = {"violations": (*report.violations, _late(count))} if count else {}
        if found.verdict.withholds or was_withheld:
            given.value, given.texts, given.files, given.figures = None, ["" for _ in texts], {}, []
            parts = {"value": _written(value), "error": "\n".join(texts).encode("utf-8", "surrogateescape")}
            # What was not looked at may be worse than what was found.
            parts |= {f"files/{name}": data for name, data in files.items() if name not in late}
            seen = [(number, data) for number, data in enumerate(figures, 1) if looked[number - 1] is not None]
            parts |= {f"figures/{number}.png": data for number, data in seen}
            parts = {name: data for name, data in parts.items() if data not in (b"", b"null")}
            if not was_withheld:
                parts = {"stdout": report.stdout, "stderr": report.stderr, **parts}
                changes |= {"stdout": b"", "stderr": b"", "value": None, "trace_calls": ()}
            if parts and (not was_withheld or report.quarantine):
                changes |= self._withheld(report, found, parts, kept=report.quarantine)
        if not found.all() and not changes:
            return report
        return self._told(report, changes, (found,))

    def _withheld(
        self, report: Report, found: Findings, parts: Mapping[str, bytes], *, kept: str = ""
    ) -> dict[str, object]:
        """Keeps aside what does not leave, where that is the verdict; returns what the report tells of that.

        Args:
            report: The report.
            found: What was found.
            parts: What does not leave.
            kept: What was kept aside of the same run before is called so; "" for nothing.
        """
        changes: dict[str, object] = {}
        if report.outcome in (Outcome.OK, Outcome.EXIT):
            changes = {"outcome": Outcome.DENIED, "exit_code": None}
        if found.verdict is Verdict.BLOCK:
            # Nobody is to have it: nor is what was kept aside before this was found.
            if kept:
                from stockade.gate._quarantine import drop_aside

                drop_aside(kept)
                changes["quarantine"] = ""
        elif kept or found.verdict is Verdict.QUARANTINE:
            from stockade.gate._quarantine import keep_aside

            try:
                changes["quarantine"] = keep_aside(report.module.name, report.policy.name, found.all(), parts, kept)
            except (OSError, StockadeError):
                # Fail closed: what cannot be kept aside is gone, as `block` has it.
                changes["quarantine"] = ""
        return changes

    def _told(self, report: Report, changes: dict[str, object], of: Iterable[Findings]) -> Report:
        """Adds what was found to a report."""
        all_found = tuple(finding for findings in of for finding in findings.all())
        violations = cast("tuple[Violation, ...]", changes.get("violations", report.violations))
        changes |= {
            "findings": (*report.findings, *all_found),
            "findings_dropped": report.findings_dropped + sum(findings.dropped for findings in of),
            "violations": (*violations, *map(violation_of, all_found)),
        }
        return msgspec.structs.replace(report, **changes)

    # -- parts --------------------------------------------------------------------------------------------------------

    def _output(self, report: Report, found: Findings) -> tuple[bytes, bytes]:
        """Returns both streams as they may leave."""
        dropped, joined = report.truncated, self._joined
        split: Mapping[str, Sequence[Span]] = {"stdout": (), "stderr": ()} if joined is None else joined.split
        out = self._gate.look_at_cut(report.stdout, dropped.stdout, "stdout", found.note, split["stdout"])
        err = self._gate.look_at_cut(report.stderr, dropped.stderr, "stderr", found.note, split["stderr"])
        if found.verdict.withholds:
            # Nothing is left of them, but that what is worse is found.
            self._without_seams(report.stdout, report.stderr, found)
            return b"", b""
        if joined is not None and joined.has_more:
            return (_HELD if report.stdout else b""), (_HELD if report.stderr else b"")
        return self._without_seams(out, err, found)

    def _without_seams(self, stdout: bytes, stderr: bytes, found: Findings) -> tuple[bytes, bytes]:
        """Looks for what ends one stream in part, and of which the rest begins the other."""
        for first, second in (("stdout", "stderr"), ("stderr", "stdout")):
            before, behind = (stdout, stderr) if first == "stdout" else (stderr, stdout)
            if not before or not behind:
                continue
            tail, head = before[-SEAM_BYTES:], behind[:SEAM_BYTES]
            for start, end, detector, verdict in self._gate.across(tail, head, f"{first} and {second}", found.note):
                if verdict.severity >= Verdict.REDACT.severity:
                    before = before[: len(before) - len(tail) + start] + placeholder(detector)
                    behind = behind[end - len(tail) :]
                break
            stdout, stderr = (before, behind) if first == "stdout" else (behind, before)
        return stdout, stderr

    def _looked_at(self, data: bytes, channel: str, found: Findings, until: float) -> bytes | None:
        """Returns what may leave of a file; None where it takes too long to look at it."""
        stream, passed = self._gate.stream(channel, found.note), list[bytes]()
        for at in range(0, len(data), PIECE_BYTES):
            if thread_time() > until:
                return None
            passed.append(stream.feed(data[at : at + PIECE_BYTES]))
        return b"".join((*passed, stream.finish()))

    def _text(self, text: str, found: Findings, channel: str) -> str:
        return self._gate.look_at_text(text, channel, found.note)

    def _free(self, name: str, taken: Mapping[str, object]) -> str:
        """Returns a name that no other file has, for several may differ in nothing but what was replaced."""
        free, number = name, 1
        while free in taken:
            number += 1
            free = f"{name} ({number})"
        return free

    def _value(self, value: object, channel: str, found: Findings) -> object:
        """Returns a value as it may leave."""
        if isinstance(value, str):
            return self._text(value, found, channel)
        if isinstance(value, bytes):
            return self._gate.look(value, channel, found.note)
        if value is None or isinstance(value, bool | float):
            return value
        whole, inner = Findings(), Findings()
        self._gate.look(_written(value), channel, whole.note)
        changed = self._changed(value, inner) if whole.all() or _has_bytes(value) else value
        told = whole if whole.verdict.severity >= inner.verdict.severity else inner
        found.note_all(told.all())
        if told.verdict.severity < Verdict.REDACT.severity:
            return value
        again = Findings()
        self._gate.look(_written(changed), channel, again.note)
        if again.verdict.severity >= Verdict.REDACT.severity:
            # It is no text, or stands in several.
            return placeholder(again.all()[0].detector).decode()
        return changed

    def _changed(self, value: object, found: Findings) -> object:
        """Returns a value with its texts as they may leave."""
        if isinstance(value, str):
            return self._text(value, found, "value")
        if isinstance(value, bytes):
            return self._gate.look(value, "value", found.note)
        if isinstance(value, list | tuple):
            return [self._changed(item, found) for item in value]
        if isinstance(value, dict):
            return {
                self._text(key, found, "value") if isinstance(key, str) else key: self._changed(item, found)
                for key, item in value.items()
            }
        return value

    def told(self, text: str) -> str:
        """Returns what is told of a run without a report on it, such as an error, as it may be told.

        What the policy would have leave and reported is replaced, for there is no report.

        Args:
            text: The words, which the guest may have chosen.
        """
        found = Findings()
        data = text.encode("utf-8", "surrogateescape")
        passed = self._gate.hide(data, "error", found.note)
        if found.verdict.withholds:
            return f"what it says is kept back by gate.{FIELDS[found.all()[0].kind]}"
        return text if passed == data else passed.decode("utf-8", "replace")


def _has_bytes(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_bytes, value))
    if isinstance(value, dict):
        return any(map(_has_bytes, value.values()))
    return isinstance(value, bytes)


def _written(value: object) -> bytes:
    """Returns a value as JSON."""
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError, UnicodeEncodeError):
        return repr(value).encode("utf-8", "replace")


def _late(count: int) -> Violation:
    """Returns what a report tells of files that were not looked at."""
    subject = "files that took too long to look at"
    return Violation(kind="gate", subject=subject, limit=MOST_FILES_SECONDS, action="deny", count=count)


_ACTIONS: Final[Mapping[Verdict, Literal["audit", "deny"]]] = {Verdict.WARN: "audit", Verdict.REDACT: "deny"}


def violation_of(finding: Finding) -> Violation:
    """Returns what a report tells of something that was found.

    Args:
        finding: It.
    """
    what = f"the secret {finding.detector}" if finding.kind == "secret" else finding.detector
    withheld: Literal["deny", "stop"] = "deny" if finding.channel == "request" else "stop"
    return Violation(
        kind="gate",
        subject=printable(f"{what} in {finding.channel}"),
        action=_ACTIONS.get(finding.verdict, withheld),
        count=finding.count,
        field=f"gate.{FIELDS[finding.kind]}",
    )
