"""Numbers that belong to people: of payment cards, bank accounts, and of the social security of the United States."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from stockade.gate._finder import Hold, Span
from stockade.gate._known import held_word

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PersonalFinder"]

_CARD: Final = re.compile(
    rb"(?<![\w.+/=-])(?:"
    rb"(?:4\d{3}|5[1-5]\d\d|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)|6011|65\d\d|64[4-9]\d|35(?:2[89]|[3-8]\d))"
    rb"([ -]?)\d{4}\1\d{4}\1\d{4}"
    rb"|3[47]\d\d([ -]?)\d{6}\2\d{5}"
    rb"|3(?:0[0-5]|[68]\d)\d([ -]?)\d{6}\3\d{4}"
    rb")(?![\w/=-]|\.\d)"
)
_ACCOUNT: Final = re.compile(rb"(?<![\w/+=-])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![\w/+=-])")
_SECURITY: Final = re.compile(rb"(?<![\w.+/=-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w/=-]|\.\d)")

_ACCOUNT_LENGTHS: Final = {
    b"AD": 24, b"AE": 23, b"AL": 28, b"AT": 20, b"AZ": 28, b"BA": 20, b"BE": 16, b"BG": 22, b"BH": 22, b"BR": 29,
    b"BY": 28, b"CH": 21, b"CR": 22, b"CY": 28, b"CZ": 24, b"DE": 22, b"DK": 18, b"DO": 28, b"EE": 20, b"EG": 29,
    b"ES": 24, b"FI": 18, b"FO": 18, b"FR": 27, b"GB": 22, b"GE": 22, b"GI": 23, b"GL": 18, b"GR": 27, b"GT": 28,
    b"HR": 21, b"HU": 28, b"IE": 22, b"IL": 23, b"IQ": 23, b"IS": 26, b"IT": 27, b"JO": 30, b"KW": 30, b"KZ": 20,
    b"LB": 28, b"LC": 32, b"LI": 21, b"LT": 20, b"LU": 20, b"LV": 21, b"MC": 27, b"MD": 24, b"ME": 22, b"MK": 19,
    b"MR": 27, b"MT": 31, b"MU": 30, b"NL": 18, b"NO": 15, b"PK": 24, b"PL": 28, b"PS": 29, b"PT": 25, b"QA": 29,
    b"RO": 24, b"RS": 22, b"SA": 24, b"SC": 31, b"SE": 24, b"SI": 19, b"SK": 24, b"SM": 27, b"TN": 24, b"TR": 26,
    b"UA": 29, b"VA": 22, b"VG": 24, b"XK": 20,
}  # fmt: skip


class PersonalFinder:
    """Looks for such numbers. What has a sum to be checked is found only where it is right."""

    def find(self, data: bytes, *, is_last: bool) -> Iterator[Span]:
        """Returns the numbers in data.

        Args:
            data: The data.
            is_last: Whether nothing comes behind it.
        """
        for match in _CARD.finditer(data):
            if (is_last or match.end() < len(data)) and _is_card(match[0]):
                yield Span(*match.span(), "personal", "card-number")
        for match in _ACCOUNT.finditer(data):
            found = _account_in(match[0])
            if found and (is_last or match.end() < len(data)):
                yield Span(match.start(), match.start() + found, "personal", "bank-account")
        for match in _SECURITY.finditer(data):
            if is_last or match.end() < len(data):
                yield Span(*match.span(), "personal", "social-security-number")

    def hold(self, data: bytes) -> Hold:
        """Returns from where on a number may have begun.

        Args:
            data: The data.
        """
        tail = data[-64:]
        found = _AT_END.search(tail)
        begin = len(data) - (0 if found is None else len(found[0]))
        word = held_word(data)
        release = begin if len(data) - begin >= 4 else len(data)
        return Hold(min(begin, word.keep_from), min(release, word.release_to))


_AT_END: Final = re.compile(rb"(?<![A-Z0-9])[A-Z]{0,2}\d[A-Z0-9]*(?:[ -][A-Z0-9]+)*[ -]?\Z")


def _is_card(text: bytes) -> bool:
    """Whether the last digit of a number is the one that follows from the others."""
    digits = [byte - 48 for byte in text if 48 <= byte <= 57]
    if len(set(digits)) < 4:
        return False
    total = sum(digits[-1::-2]) + sum(sum(divmod(digit * 2, 10)) for digit in digits[-2::-2])
    return total % 10 == 0


def _account_in(text: bytes) -> int:
    """Returns how much of a text is a number of an account; 0 where it is none."""
    length = _ACCOUNT_LENGTHS.get(text[:2], 0)
    number, end = b"", 0
    while len(number) < length and end < len(text):
        number += text[end : end + 1].strip()
        end += 1
    if not length or len(number) != length or text[end : end + 1].strip():
        return 0
    value = int("".join(str(int(chr(byte), 36)) for byte in number[4:] + number[:4]))
    return end if value % 97 == 1 else 0
