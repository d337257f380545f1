"""Registered secrets, found in every form of them, however much comes."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from stockade._text import printable
from stockade.errors import UsageError
from stockade.gate._finder import Hold, Span
from stockade.gate._forms import (
    LEAST_CHARACTERS,
    MOST_CHARACTERS,
    PARTIAL_ESCAPE,
    canonical,
    edges_of,
    exact_forms,
    forms_of,
    longest_gap,
    places_of,
    without_escapes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["LEAST_SECRET_BYTES", "SecretFinder", "checked_secrets"]

LEAST_SECRET_BYTES: Final = 8
"""What is shorter would be found where it is none."""

_MOST_SECRET_BYTES: Final = 64 << 10
_MOST_SECRETS: Final = 10_000
_MOST_NAME_CHARACTERS: Final = 100

_MOST_GAP: Final = 32
"""How much may stand between two characters of a secret that is split, beside what stands there in itself."""

_MOST_OWN_GAP: Final = 100
_ESCAPE_BYTES: Final = 10
"""How long a character may be in an escape."""

_LEAST_HELD: Final = 4
"""How much of a secret is kept back, where it may go on: less of it may leave, so that a prompt does."""


def checked_secrets(secrets: Mapping[str, str | bytes]) -> dict[str, bytes]:
    """Returns secrets as bytes, by their names. No message has a value.

    Args:
        secrets: What the caller gives.

    Raises:
        UsageError: They are none.
    """
    if len(secrets) > _MOST_SECRETS:
        raise UsageError(f"there are {len(secrets):,} secrets: at most {_MOST_SECRETS:,} can be looked for")
    found = {}
    for name, value in secrets.items():
        if not _is_name(name):
            raise UsageError(
                f"the secret {printable(str(name), 100)!r} has a name that is none: use text of at most "
                f"{_MOST_NAME_CHARACTERS} characters"
            )
        data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
        if not isinstance(data, bytes):
            raise UsageError(f"the secret {name} is {type(value).__name__}: give text or bytes")
        if not LEAST_SECRET_BYTES <= len(data) <= _MOST_SECRET_BYTES:
            raise UsageError(
                f"the secret {name} has {len(data):,} bytes: it must have {LEAST_SECRET_BYTES} to "
                f"{_MOST_SECRET_BYTES:,}, for what is shorter would be found where it is none"
            )
        found[name] = data
    return found


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= _MOST_NAME_CHARACTERS and name.isprintable()


class SecretFinder:
    """Looks for secrets. Safe to share between threads.

    Of what it looks through it takes every fourth or eighth byte's word, in one pass of the interpreter's own code, and
    looks closer only where one is a word of some form. So it takes as long for a thousand secrets as for one.

    Args:
        secrets: The secrets, by their names.
    """

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        self._names: dict[bytes, str] = {}
        self._pieces: set[bytes] = set()
        self._exact: dict[bytes, str] = {}
        self._edges: dict[bytes, tuple[bytes, bytes]] = {}
        own_gap = 0
        for name, secret in secrets.items():
            own_gap = min(max(own_gap, longest_gap(secret)), _MOST_OWN_GAP)
            self._edges[canonical(secret)] = edges_of(secret)
            for form, is_piece in forms_of(secret).items():
                self._names.setdefault(form, name)
                if is_piece:
                    self._pieces.add(form)
            for form in exact_forms(secret):
                self._exact.setdefault(form, name)
        self._word_bytes = 8 if min(map(len, self._names), default=0) >= 15 else 4
        self._words: dict[int, list[bytes]] = {}
        self._beginnings: dict[bytes, list[bytes]] = {}
        size = self._word_bytes
        for form in self._names:
            # Whatever stands before it, one of these is where words are taken.
            for at in range(size):
                self._words.setdefault(int.from_bytes(form[at : at + size], sys.byteorder), []).append(form)
            for length in (1, 2, 3):
                self._beginnings.setdefault(form[:length], []).append(form)
        self._known = frozenset(self._words)
        self._longest = max(map(len, self._names), default=0)
        self._longest_exact = max(map(len, self._exact), default=0)
        self._gap = 1 + _MOST_GAP + own_gap
        self._escaped_gap = 1 + _MOST_GAP + _ESCAPE_BYTES * max(2, own_gap)
        # What is split by more is written by escapes.
        self._tail_bytes = max(self._longest * (_MOST_GAP + 8) + self._escaped_gap, self._longest_exact)

    def find(self, data: bytes, *, is_last: bool) -> Iterator[Span]:  # noqa: ARG002 - a form is whole where it is found
        """Returns the secrets in data; pieces of the same one as often as they are there.

        Args:
            data: The data.
            is_last: Whether nothing comes behind it.
        """
        for span in self._find_in(data, self._gap):
            before, behind = self._edges.get(canonical(data[span.start : span.end]), (b"", b""))
            start = span.start - len(before) if data.endswith(before, 0, span.start) else span.start
            end = span.end + len(behind) if data.startswith(behind, span.end) else span.end
            yield span._replace(start=start, end=end)
        for form, name in self._exact.items():
            at = data.find(form)
            while at >= 0:
                yield Span(at, at + len(form), "secret", name)
                at = data.find(form, at + len(form))
        for read in without_escapes(data):
            for span in self._find_in(read, self._escaped_gap):
                # The last character, too, may be an escape.
                end = span.end
                while end < len(read) and not read[end] and data[end]:
                    end += 1
                yield span._replace(end=end)

    def find_cut(self, head: bytes, tail: bytes) -> Iterator[Span]:
        """Returns what is left of secrets out of which something was cut, as spans of what is left of both.

        Args:
            head: What stood before that.
            tail: What stood behind it.
        """
        begin = max(0, len(head) - self._tail_bytes)
        for read, gap in self._readings(head[begin:]):
            kept, places = canonical(read), places_of(read)
            near = kept[-MOST_CHARACTERS:]
            for form, name in self._names.items():
                if form[:LEAST_CHARACTERS] not in near:
                    continue
                for length in range(min(len(form) - 1, len(kept)), LEAST_CHARACTERS - 1, -1):
                    if kept.endswith(form[:length]) and _is_together(places[-length:], gap):
                        yield Span(begin + places[-length], len(head), "secret", name, form in self._pieces)
                        break
        for read, gap in self._readings(tail[: self._tail_bytes]):
            kept, places = canonical(read), places_of(read)
            near = kept[:MOST_CHARACTERS]
            for form, name in self._names.items():
                if form[-LEAST_CHARACTERS:] not in near:
                    continue
                for length in range(min(len(form) - 1, len(kept)), LEAST_CHARACTERS - 1, -1):
                    if kept.startswith(form[-length:]) and _is_together(places[:length], gap):
                        end = len(head) + places[length - 1] + 1
                        yield Span(len(head), end, "secret", name, form in self._pieces)
                        break

    def _readings(self, data: bytes) -> list[tuple[bytes, int]]:
        return [(data, self._gap), *((read, self._escaped_gap) for read in without_escapes(data))]

    def _find_in(self, data: bytes, gap: int) -> Iterator[Span]:
        kept = canonical(data)
        size = self._word_bytes
        whole = memoryview(kept)[: len(kept) // size * size]
        words = whole.cast("Q") if size == 8 else whole.cast("I")
        met = self._known.intersection(words)
        if not met:
            return
        places: list[int] = []
        for form in dict.fromkeys(form for word in met for form in self._words[word]):
            at = kept.find(form)
            while at >= 0:
                places = places or places_of(data)
                end = at + len(form)
                if _is_together(places[at:end], gap):
                    yield Span(places[at], places[end - 1] + 1, "secret", self._names[form], form in self._pieces)
                    at = kept.find(form, end)
                else:
                    at = kept.find(form, at + 1)

    def hold(self, data: bytes) -> Hold:
        """Returns from where on a secret may have begun.

        Args:
            data: The data.
        """
        tail = data[-self._tail_bytes :]
        before, end = len(data) - len(tail), len(tail)
        keep, release = self._begun(tail, self._gap)
        partial = PARTIAL_ESCAPE.search(tail[-16:])
        assert partial is not None, "it may be empty"
        cut = end - len(partial[0])
        # It may be the next character of one, or the first.
        keep = min(keep, cut)
        readings = without_escapes(tail[:cut])
        if cut < end:
            # What comes before may not be one.
            readings.append(tail[:cut])
        for read in readings:
            found, leaves = self._begun(read, self._escaped_gap)
            keep = min(keep, found)
            release = release if leaves == cut else min(release, leaves)
        return Hold(before + keep, before + release)

    def _begun(self, tail: bytes, gap: int) -> tuple[int, int]:
        """Returns from where on a secret may have begun, and up to where data may leave."""
        keep = release = len(tail)
        if self._longest_exact:
            for at in range(max(0, len(tail) - self._longest_exact + 1), len(tail)):
                if any(form.startswith(tail[at:]) for form in self._exact):
                    keep = release = at
                    break
        places = places_of(tail)
        if not places or len(tail) - places[-1] > gap:
            return keep, release
        kept = canonical(tail)
        for at in range(max(0, len(kept) - self._longest + 1), len(kept)):
            rest = kept[at:]
            if any(
                len(form) > len(rest) and form.startswith(rest) for form in self._beginnings.get(rest[:3], ())
            ) and _is_together(places[at:], gap):
                keep = min(keep, places[at])
                if len(rest) >= _LEAST_HELD:
                    release = min(release, places[at])
                break
        return keep, release


def _is_together(places: list[int], gap: int) -> bool:
    """Whether no two characters are so far from each other that they belong to nothing."""
    if places[-1] - places[0] == len(places) - 1:
        return True
    return all(after - before <= gap for before, after in pairwise(places))
