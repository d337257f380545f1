"""Registered secrets, found in every form of them, however much comes."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from stockade._text import printable
from stockade.errors import UsageError
from stockade.gate._edges import Edges
from stockade.gate._escapes import LONGEST_ESCAPE, PARTIAL_ESCAPE, without_escapes
from stockade.gate._finder import Hold, Span
from stockade.gate._forms import LEAST_CHARACTERS, forms_of, longest_gap
from stockade.gate._index import Index
from stockade.gate._views import RAW

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stockade.gate._views import View

__all__ = ["LEAST_SECRET_BYTES", "SecretFinder", "checked_secrets"]

LEAST_SECRET_BYTES: Final = 8
"""What is shorter would be found where it is none."""

_MOST_SECRET_BYTES: Final = 64 << 10
_MOST_SECRETS: Final = 10_000
_MOST_NAME_CHARACTERS: Final = 100

_MOST_GAP: Final = 32
"""How much may stand between two characters of a secret that is split, beside what stands there in itself."""

_LEAST_HELD: Final = 4
"""How much of a secret is kept back, where it may go on: less of it may leave, so that a prompt does."""

_LEAST_DIFFERENT: Final = 4
"""Of the bytes of a secret, how many differ: fewer do in lines, rulers and numbers."""


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
        if len(set(data)) < _LEAST_DIFFERENT:
            raise UsageError(
                f"the secret {name} has fewer than {_LEAST_DIFFERENT} different characters: it would be found where it "
                "is none"
            )
        found[name] = data
    return found


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= _MOST_NAME_CHARACTERS and name.isprintable()


class SecretFinder:
    """Looks for secrets. Safe to share between threads. It takes about as long for a thousand secrets as for one.

    Args:
        secrets: The secrets, by their names.
        least_held: How much of a secret is kept back, where it may go on; less of it may leave.
    """

    def __init__(self, secrets: Mapping[str, bytes], *, least_held: int = _LEAST_HELD) -> None:
        forms: dict[View, dict[bytes, tuple[str, bool]]] = {}
        self._edges = Edges(secrets.values())
        own_gap = 0
        for name, secret in secrets.items():
            own_gap = max(own_gap, longest_gap(secret))
            for form in forms_of(secret):
                forms.setdefault(form.view, {}).setdefault(form.text, (name, form.is_piece))
        self._looks = [_Look(view, found) for view, found in forms.items()]
        self._looks_at_text = [look for look in self._looks if look.view is not RAW]
        self._least_held = least_held
        # In UTF-32, each character takes four bytes.
        self._gap = 1 + _MOST_GAP + 4 * own_gap
        self._escaped_gap = 1 + _MOST_GAP + LONGEST_ESCAPE * max(2, own_gap)
        longest = max((look.index.longest for look in self._looks), default=0)
        # What is split by more is written by escapes.
        self._tail_bytes = longest * (_MOST_GAP + 8) + self._escaped_gap

    def find(self, data: bytes, *, is_last: bool) -> Iterator[Span]:
        """Returns the secrets in data; pieces of the same one as often as they are there.

        Args:
            data: The data.
            is_last: Whether nothing comes behind it.
        """
        found = [(read, form, span) for look, read, gap in self._readings(data) for form, span in look.find(read, gap)]
        # However it is read: what its end is may be known later.
        without_end = {
            span.start for read, form, span in found if not is_last and self._edges.goes_on(form, read, span.end)
        }
        for read, form, span in found:
            if span.start in without_end:
                continue
            start, end = self._edges.around(form, read, span.start, span.end)
            # The last character, too, may be an escape.
            while read is not data and end < len(read) and not read[end] and data[end]:
                end += 1
            yield span._replace(start=start, end=end)

    def find_cut(self, head: bytes, tail: bytes) -> Iterator[Span]:
        """Returns what is left of secrets out of which something was cut, as spans of what is left of both.

        Args:
            head: What stood before that.
            tail: What stood behind it.
        """
        begin = max(0, len(head) - self._tail_bytes)
        for look, read, gap in self._readings(head[begin:]):
            part = look.begun(read, gap, LEAST_CHARACTERS)
            if part is not None:
                yield Span(begin + part.border, len(head), "secret", part.name, part.is_piece)
        for look, read, gap in self._readings(tail[: self._tail_bytes]):
            part = look.ended(read, gap)
            if part is not None:
                yield Span(len(head), len(head) + part.border, "secret", part.name, part.is_piece)

    def _readings(self, data: bytes) -> Iterator[tuple[_Look, bytes, int]]:
        """Yields how data is read, and what is looked for in it."""
        yield from ((look, data, self._gap) for look in self._looks)
        for read in without_escapes(data):
            yield from ((look, read, self._escaped_gap) for look in self._looks_at_text)

    def hold(self, data: bytes) -> Hold:
        """Returns from where on a secret may have begun.

        Args:
            data: The data.
        """
        tail = data[-self._tail_bytes :]
        before, end = len(data) - len(tail), len(tail)
        partial = PARTIAL_ESCAPE.search(tail[-40:])
        assert partial is not None, "it may be empty"
        cut = end - len(partial[0])
        # It may be the next character of one, or the first.
        keep = release = end
        readings = [(look, tail, self._gap) for look in self._looks]
        for read in without_escapes(tail[:cut], is_begun=True):
            readings += [(look, read, self._escaped_gap) for look in self._looks_at_text]
        if cut < end:
            # What comes before may not be one.
            readings += [(look, tail[:cut], self._escaped_gap) for look in self._looks_at_text]
        for look, read, gap in readings:
            part = look.begun(read, gap)
            if part is not None:
                begin = whole = self._edges.before(part.form, read, part.border)
                while whole and not read[whole - 1] and tail[whole - 1]:
                    # What is left out of a number says that it is one.
                    whole -= 1
                keep = min(keep, whole)
                if part.length + part.border - begin >= self._least_held:
                    release = min(release, begin)
            if self._edges:
                begin = self._open_edge(look, read, gap)
                keep, release = min(keep, begin), min(release, begin)
        return Hold(before + min(keep, cut), before + release)

    def _open_edge(self, look: _Look, read: bytes, gap: int) -> int:
        """Returns from where on there is a secret without its end, or what may stand before one."""
        begin = self._edges.begun_at(read, self._least_held)
        found = len(read) if begin is None else begin
        for form, span in look.find(read, gap):
            if self._edges.goes_on(form, read, span.end):
                found = min(found, self._edges.before(form, read, span.start))
        return found


class _Look:
    """Looks for the forms that are found in one view.

    Args:
        view: The view.
        forms: The forms, with whose each is, and whether it is a piece.
    """

    def __init__(self, view: View, forms: Mapping[bytes, tuple[str, bool]]) -> None:
        self.view = view
        self.index = Index(forms)
        self._forms = forms

    def find(self, data: bytes, gap: int) -> list[tuple[bytes, Span]]:
        """Returns the forms in data, and where they are. Those of one form that overlap are one."""
        places: list[int] = []
        found: list[tuple[bytes, Span]] = []
        last: dict[bytes, tuple[int, int]] = {}
        piece, piece_end = "", 0
        for at, form in sorted(self.index.find(self.view.of(data))):
            places = places or self.view.places_of(data)
            end = at + len(form)
            if not _is_together(places[at:end], gap):
                continue
            name, is_piece = self._forms[form]
            # What stands between two pieces belongs to the secret.
            start = places[at - 1] + 1 if is_piece and (name, at) == (piece, piece_end) else places[at]
            piece, piece_end = name if is_piece else "", end
            number, before = last.get(form, (0, 0))
            if at < before:
                found[number] = form, found[number][1]._replace(end=places[end - 1] + 1)
            else:
                number = len(found)
                found.append((form, Span(start, places[end - 1] + 1, "secret", name, is_piece)))
            last[form] = number, end
        return found

    def begun(self, tail: bytes, gap: int, least: int = 1) -> _Part | None:
        """Returns the longest beginning of a form at the end of data; None where there is none."""
        places = self.view.places_of(tail)
        if not places or len(tail) - places[-1] > gap:
            return None
        kept = self.view.of(tail)
        for at in range(max(0, len(kept) - self.index.longest + 1), len(kept) - least + 1):
            form = self.index.begun(kept[at:])
            if form is not None and _is_together(places[at:], gap):
                return _Part(places[at], len(kept) - at, form, *self._forms[form])
        return None

    def ended(self, head: bytes, gap: int) -> _Part | None:
        """Returns the longest end of a form at the beginning of data; None where there is none."""
        places, kept = self.view.places_of(head), self.view.of(head)
        for end in range(min(len(kept), self.index.longest - 1), LEAST_CHARACTERS - 1, -1):
            form = self.index.ended(kept[:end])
            if form is not None and _is_together(places[:end], gap):
                return _Part(places[end - 1] + 1, end, form, *self._forms[form])
        return None


class _Part(NamedTuple):
    """A part of a form.

    Attributes:
        border: Where it begins, or ends.
        length: How many characters of it are there.
        form: The form.
        name: Whose it is.
        is_piece: Whether the form is a piece of a longer one.
    """

    border: int
    length: int
    form: bytes
    name: str
    is_piece: bool


def _is_together(places: list[int], gap: int) -> bool:
    """Whether no two characters are so far from each other that they belong to nothing."""
    if places[-1] - places[0] == len(places) - 1:
        return True
    return all(after - before <= gap for before, after in pairwise(places))
