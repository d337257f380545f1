"""A request, looked at as one: whoever gets it has all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from stockade.gate._gate import Findings
from stockade.report import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.gate._gate import Gate

__all__ = ["SEAM_BYTES", "look_at_request"]

SEAM_BYTES: Final = 8 << 10
"""How much of the end of one thing, and of the beginning of another, is looked at together."""

_Passed: TypeAlias = "tuple[str, list[tuple[str, str]], bytes]"


def look_at_request(
    gate: Gate, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, sent_url: str | None
) -> tuple[Findings, _Passed | None]:
    """Looks at a request before it is made.

    Args:
        gate: What is looked for.
        method: Its method.
        url: Its URL.
        headers: Its headers.
        body: Its body.
        sent_url: The URL as it leaves, where that is another one.

    Returns:
        What was found; and URL, headers and body as they may leave, None where it keeps all of it from leaving.
    """
    texts = [method, url, *(part for header in headers for part in header)]
    parts = [*(text.encode("utf-8", "surrogateescape") for text in texts[:2]), *map(_header, texts[2:]), body]
    sent = b"" if sent_url is None else sent_url.encode("utf-8", "surrogateescape")
    found = _found_in(gate, parts, sent)
    if found.verdict.withholds:
        return found, None
    if found.verdict is Verdict.REDACT:
        quiet = Findings()
        left = [gate.look(part, "request", quiet.note) for part in parts]
        sent = sent and gate.look(sent, "request", quiet.note)
        again = _found_in(gate, left, sent)
        if left[0] != parts[0] or again.verdict.severity >= Verdict.REDACT.severity:
            # What is split among its parts cannot be replaced, and a method is none with other letters.
            return found, None
        texts = [
            text if part == before else part.decode("latin-1" if place > 1 else "utf-8", "replace")
            for place, (text, before, part) in enumerate(zip(texts, parts, left, strict=False))
        ]
        parts = left
        if sent_url is not None and sent != sent_url.encode("utf-8", "surrogateescape"):
            texts[1] = sent.decode("utf-8", "replace")
    return found, (texts[1], list(zip(texts[2::2], texts[3::2], strict=True)), parts[-1])


def _found_in(gate: Gate, parts: Sequence[bytes], sent: bytes) -> Findings:
    """Returns what is in a request.

    Args:
        gate: What is looked for.
        parts: Method, URL, names and values of headers, and body.
        sent: The URL as it leaves; nothing where it does so as it is.
    """
    found = Findings()
    gate.look(b"\n".join(parts), "request", found.note)
    _, url, *headers, body = parts
    names, values, ends = headers[::2], headers[1::2], (url, body)
    if sent:
        more = Findings()
        gate.look(b"\n".join([sent, *headers, body[:SEAM_BYTES]]), "request", more.note)
        found.note_new(more)
        ends = sent, body
    views = [names, values]
    if not b"".join(headers).isascii():
        # What is meant may be the letters, and not their bytes.
        views.append([part.decode("latin-1").encode() for part in headers])
    for view in views:
        more = Findings()
        secrets = gate.follow("request", more.note)
        if secrets is not None:
            secrets.feed(b"\n".join(view))
            secrets.finish()
        found.note_new(more)
    # Whoever gets it may put any two parts of it together.
    pairs = [(first, second) for value in values for end in ends for first, second in ((value, end), (end, value))]
    for first, second in [(url, body), (body, url), *(pairs if sum(map(len, values)) else ())]:
        if first and second:
            more = Findings()
            for _ in gate.across(first[-SEAM_BYTES:], second[:SEAM_BYTES], "request", more.note):
                break
            found.note_new(more)
    return found


def _header(text: str) -> bytes:
    """Returns a part of a header as it is sent; what cannot be is refused elsewhere."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape")
