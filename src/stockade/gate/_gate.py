"""What is looked for, and what becomes of it: for one channel, and for all of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from stockade._bytes import bytes_of
from stockade._text import printable
from stockade.errors import UsageError
from stockade.gate._joined import JoinedStreams
from stockade.gate._secrets import SecretFinder, checked_secrets
from stockade.gate._stream import GateStream
from stockade.policy import GateRules
from stockade.report import Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Self

    from stockade._bytes import BytesLike
    from stockade.gate._finder import Finder, Kind, Span

__all__ = ["FIELDS", "Findings", "Gate", "Scan", "worst_of"]

_MOST_FINDINGS: Final = 64
"""Of one run that are kept one by one; all are judged and counted."""

FIELDS: Final[Mapping[Kind, str]] = {
    "secret": "registered",
    "key": "keys",
    "personal": "personal",
    "entropy": "entropy",
}
"""Which field of the policy decides on a kind."""


def worst_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Returns the most severe of verdicts; `allow` where there is none.

    Args:
        verdicts: The verdicts.
    """
    return max(verdicts, key=lambda verdict: verdict.severity, default=Verdict.ALLOW)


class Findings:
    """What was found, in bounded room: how severe it is follows from all of it, and not from what is kept.

    Attributes:
        verdict: The most severe verdict.
        dropped: How many were not kept one by one.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], Finding] = {}
        self.verdict = Verdict.ALLOW
        self.dropped = 0

    def note(self, finding: Finding) -> None:
        """Adds something that was found.

        Args:
            finding: It, with how often it was found.
        """
        self.verdict = worst_of((self.verdict, finding.verdict))
        key = finding.kind, finding.detector, finding.channel
        before = self._found.get(key)
        if before is not None:
            self._found[key] = _with(before, finding.count)
        elif len(self._found) < _MOST_FINDINGS or self._make_room(finding.verdict):
            self._found[key] = finding
        else:
            self.dropped += finding.count

    def note_all(self, more: Iterable[Finding]) -> None:
        """Adds all that was found.

        Args:
            more: It.
        """
        for finding in more:
            self.note(finding)

    def note_new(self, others: Findings) -> None:
        """Adds what others have found, where the same is not known: both have looked at the same.

        Args:
            others: They.
        """
        known = {(each.kind, each.detector, each.channel) for each in self.all()}
        self.note_all(each for each in others.all() if (each.kind, each.detector, each.channel) not in known)

    def _make_room(self, verdict: Verdict) -> bool:
        """Drops what is milder than something that comes."""
        mildest = min(self._found.items(), key=lambda item: item[1].verdict.severity)
        if mildest[1].verdict.severity >= verdict.severity:
            return False
        del self._found[mildest[0]]
        self.dropped += mildest[1].count
        return True

    def all(self) -> tuple[Finding, ...]:
        """Returns what is kept, the most severe first."""
        return tuple(sorted(self._found.values(), key=lambda finding: -finding.verdict.severity))


def _with(finding: Finding, count: int) -> Finding:
    return Finding(
        kind=finding.kind,
        detector=finding.detector,
        channel=finding.channel,
        verdict=finding.verdict,
        offset=finding.offset,
        length=finding.length,
        evidence=finding.evidence,
        count=finding.count + count,
    )


class Scan(NamedTuple):
    """What came of looking at bytes.

    Attributes:
        data: What may leave of them: with what was found replaced by its name, where that is the verdict; nothing
            where all is withheld.
        verdict: The most severe verdict on what was found.
        findings: What was found, the most severe first.
        dropped: How many more were found than are told one by one.
    """

    data: bytes
    verdict: Verdict
    findings: tuple[Finding, ...]
    dropped: int


class Gate:
    """Looks at what leaves: for registered secrets in every common form, and for what a policy names. Safe to share.

    >>> from stockade.gate import Gate
    >>> Gate(secrets={"api": "not-a-real-key"}).scan(b"it is bm90LWEtcmVhbC1rZXk=").data
    b'it is [redacted:api]='

    Args:
        rules: What is looked for, and what becomes of it.
        secrets: Secrets that are looked for, by the names that they have in what is told: text or bytes, of 8 bytes at
            least.

    Raises:
        UsageError: A secret is none.

    Attributes:
        rules: What is looked for.
    """

    def __init__(self, rules: GateRules | None = None, secrets: Mapping[str, str | bytes] | None = None) -> None:
        if rules is not None and not isinstance(rules, GateRules):
            raise UsageError(f"rules is {type(rules).__name__}: give GateRules, such as the gate of a policy")
        checked = checked_secrets(secrets or {})
        self._set_up(rules or GateRules(), SecretFinder(checked) if checked else None)

    def _set_up(self, rules: GateRules, secrets: SecretFinder | None) -> Self:
        self.rules = rules
        self._secrets = () if secrets is None or rules.registered == "allow" else (secrets,)
        self._others: tuple[Finder, ...] = tuple(_finders(rules))
        self._across: tuple[Finder, ...] = tuple(_finders(rules, across=True))
        self._verdicts = {kind: Verdict(getattr(rules, field)) for kind, field in FIELDS.items()}
        return self

    @classmethod
    def of(cls, rules: GateRules, secrets: SecretFinder | None) -> Gate | None:
        """Returns a gate that looks for what others look for, too; None where there is nothing to look for.

        Args:
            rules: What is looked for.
            secrets: The secrets.
        """
        if not rules.looks and (secrets is None or rules.registered == "allow"):
            return None
        return cls.__new__(cls)._set_up(rules, secrets)  # noqa: SLF001 - its own

    @property
    def withholds(self) -> bool:
        """Whether something can come to be withheld as a whole."""
        return any(verdict.withholds for verdict in self._verdicts.values())

    def scan(self, data: BytesLike, channel: str = "data") -> Scan:
        """Looks at bytes.

        Args:
            data: The bytes.
            channel: What they are called in what is told.
        """
        found = Findings()
        passed = self.look(bytes_of(data, "the data"), channel, found.note)
        if found.verdict.withholds:
            passed = b""
        return Scan(passed, found.verdict, found.all(), found.dropped)

    def stream(self, channel: str = "data", found: Callable[[Finding], object] | None = None) -> GateStream:
        """Returns what looks at a channel piece by piece: give it pieces with `feed`, and call `finish` at the end.

        Args:
            channel: What it is called in what is told.
            found: Is told each thing that is found.
        """
        return GateStream(self._finders(channel), self._judge(channel, found))

    def look(self, data: bytes, channel: str, found: Callable[[Finding], object]) -> bytes:
        """Returns what may leave of bytes.

        Args:
            data: The bytes.
            channel: What they are called in what is told.
            found: Is told each thing that is found.
        """
        if not data:
            return data
        return self.stream(channel, found).whole(data)

    def look_at_text(self, text: str, channel: str, found: Callable[[Finding], object]) -> str:
        """Returns what may leave of a text.

        Args:
            text: The text.
            channel: What it is called in what is told.
            found: Is told each thing that is found.
        """
        data = text.encode("utf-8", "surrogateescape")
        passed = self.look(data, channel, found)
        return text if passed == data else passed.decode("utf-8", "replace")

    def hide(self, data: bytes, channel: str, found: Callable[[Finding], object]) -> bytes:
        """Returns bytes without what is looked for: also where it would leave, and be reported.

        Args:
            data: The bytes.
            channel: What they are called in what is told.
            found: Is told each thing that is found.
        """
        judge = self._judge(channel, found)
        stream = GateStream(self._finders(channel), lambda span, data: worst_of((judge(span, data), Verdict.REDACT)))
        return stream.whole(data)

    def look_at_cut(
        self, data: bytes, dropped: int, channel: str, found: Callable[[Finding], object], told: Sequence[Span] = ()
    ) -> bytes:
        """Returns what may leave of what is left of output.

        Args:
            data: What is left: as much of its beginning as of its end, or a byte more.
            dropped: How much was dropped between them.
            channel: What it is called in what is told.
            found: Is told each thing that is found.
            told: Where parts of something lie that was told before, as spans of all output.
        """
        if not data or not (told or (dropped and self._secrets)):
            return self.look(data, channel, found)
        judge, known = self._judge(channel, found), _cut(told, len(data), dropped)
        verdicts, quiet = self._verdicts, frozenset(known)
        if dropped:
            at = len(data) - len(data) // 2
            known += [span for finder in self._secrets for span in finder.find_cut(data[:at], data[at:])]
        stream = GateStream(
            self._finders(channel),
            lambda span, data: verdicts[span.kind] if span in quiet else judge(span, data),
            sorted(known),
        )
        return stream.whole(data)

    def look_at_beginning(self, data: bytes, channel: str, found: Callable[[Finding], object]) -> bytes:
        """Returns what may leave of bytes of which the end was cut off.

        Args:
            data: The bytes.
            channel: What they are called in what is told.
            found: Is told each thing that is found.
        """
        known = sorted(span for finder in self._secrets for span in finder.find_cut(data, b""))
        if not known:
            return self.look(data, channel, found)
        return GateStream(self._finders(channel), self._judge(channel, found), known).whole(data)

    def join(self, found: Callable[[Finding], object]) -> JoinedStreams | None:
        """Returns what looks for what lies in both streams of output; None where nothing is looked for there.

        Args:
            found: Is told each thing that is found.
        """
        finders = self._finders_across("stdout")
        if not finders:
            return None
        return JoinedStreams(finders, lambda channel, span, data: self._judge(channel, found)(span, data))

    def follow(self, channel: str, found: Callable[[Finding], object]) -> GateStream | None:
        """Returns what looks for registered secrets alone, piece by piece; None where there are none.

        Args:
            channel: What it is called in what is told.
            found: Is told each thing that is found.
        """
        return GateStream(self._secrets, self._judge(channel, found)) if self._secrets else None

    def look_for_others(self, data: bytes, channel: str, found: Callable[[Finding], object]) -> bytes:
        """Returns what may leave of bytes that were looked through for registered secrets.

        Args:
            data: The bytes.
            channel: What they are called in what is told.
            found: Is told each thing that is found.
        """
        if not self._others or _group(channel) not in self.rules.channels:
            return data
        return GateStream(self._others, self._judge(channel, found)).whole(data)

    def across(
        self, tail: bytes, head: bytes, channel: str, found: Callable[[Finding], object]
    ) -> Iterable[tuple[int, int, str, Verdict]]:
        """Yields what lies across the border of two channels: begin and end in both, which it is, and its verdict.

        Args:
            tail: The end of the one.
            head: The beginning of the other.
            channel: What they are called in what is told.
            found: Is told each thing that is found.
        """
        judge, data = self._judge(channel, found), tail + head
        for finder in self._finders_across(channel):
            for span in sorted(finder.find(data, is_last=True)):
                if span.start < len(tail) < span.end:
                    verdict = judge(span, data[span.start : span.end])
                    yield span.start, span.end, span.detector, verdict

    def _finders_across(self, channel: str) -> Sequence[Finder]:
        """Returns what is looked for where one channel goes on in another one.

        What is split among parts of a request is told by nothing else than that it was registered; nor does anything
        say of a password, or of random text, that both parts of it belong together.
        """
        looks = _group(channel) == "output" and "output" in self.rules.channels
        return (*self._secrets, *self._across) if looks else self._secrets

    def _finders(self, channel: str) -> Sequence[Finder]:
        return (*self._secrets, *self._others) if _group(channel) in self.rules.channels else self._secrets

    def _judge(self, channel: str, found: Callable[[Finding], object] | None) -> Callable[[Span, bytes], Verdict]:
        verdicts = self._verdicts

        def judge(span: Span, data: bytes) -> Verdict:
            verdict = verdicts[span.kind]
            if found is not None:
                found(
                    Finding(
                        kind=span.kind,
                        detector=span.detector,
                        channel=channel,
                        verdict=verdict,
                        offset=span.start,
                        length=span.end - span.start,
                        evidence="" if span.kind == "secret" else _evidence(data),
                    )
                )
            return verdict

        return judge

    def __repr__(self) -> str:
        return f"Gate({self.rules!r})"


def _cut(spans: Iterable[Span], left: int, dropped: int) -> list[Span]:
    """Returns what is left of spans of output out of whose middle something was dropped."""
    if not dropped:
        return [span for span in spans if span.end <= left]
    at, found = left - left // 2, []
    for span in spans:
        parts = (span.start, min(span.end, at)), (max(span.start - dropped, at), span.end - dropped)
        found += [span._replace(start=start, end=end) for start, end in parts if start < end <= left]
    return found


def _finders(rules: GateRules, *, across: bool = False) -> Iterable[Finder]:
    """Yields what looks for what a policy names. Most name nothing, and nothing is loaded for it.

    Args:
        rules: What the policy says.
        across: Whether only for what is told by itself, wherever its parts stand.
    """
    if rules.keys != "allow":
        from stockade.gate._known import KeyFinder

        yield KeyFinder(named=not across)
    if rules.personal != "allow":
        from stockade.gate._personal import PersonalFinder

        yield PersonalFinder()
    if rules.entropy != "allow" and not across:
        from stockade.gate._entropy import EntropyFinder

        yield EntropyFinder()


_GROUPS: Final = {
    "stdout": "output",
    "stderr": "output",
    "request": "requests",
    "file": "files",
    "figure": "files",
    "data": "value",
}


def _group(channel: str) -> str:
    """Returns what a channel counts as in a policy."""
    return _GROUPS.get(channel.split(" ", 1)[0], "value")


def _evidence(data: bytes) -> str:
    """Shows what was found: four characters at each end at most, and half of it at most."""
    shown = min(4, len(data) // 4)
    if not shown:
        return "…"
    text = data.decode("ascii", "replace")
    return printable(f"{text[:shown]}…{text[-shown:]}")
