"""Text that a guest chose, made safe to show.

Holds P-TEXT-1.
"""

from __future__ import annotations

import tracemalloc
import unicodedata
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade._text import NAME_LIMIT, printable, terminal_safe

HIDDEN: Final = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Categories of characters that steer, hide, turn or break the line they stand in."""

LONGEST_ESCAPE = len("\\U0010ffff")


def hidden(text: str) -> list[str]:
    """The characters of a text that are not simply shown."""
    return [character for character in text if unicodedata.category(character) in HIDDEN]


@given(st.text() | st.binary(), st.integers(0, 200))
def test_printable_shows_one_short_line(text: str | bytes, limit: int) -> None:
    """The attack: a name forges a line, steers a terminal, turns the reading direction, or floods a log."""
    shown = printable(text, limit)

    assert hidden(shown) == []
    assert len(shown) <= limit * LONGEST_ESCAPE + len(f"… ({len(text):,} long)")
    shown.encode()


@given(st.text(st.characters(exclude_categories=HIDDEN), max_size=NAME_LIMIT))
def test_printable_leaves_ordinary_names_alone(text: str) -> None:
    """The twin of the above: names in any script are shown as they are, as text and as bytes."""
    assert printable(text) == text
    assert printable(text.encode()) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fd_write", "fd_write"),
        ("größe 大小 🙂", "größe 大小 🙂"),
        ("\x1b[31m", r"\x1b[31m"),
        ("a\nb\r\tc\0", r"a\x0ab\x0d\x09c\x00"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("a\u2028b\u2029c\ufeffd\u200be", r"a\u2028b\u2029c\ufeffd\u200be"),
        ("\ud800", r"\ud800"),
        ("\U000e0041\U0010ffff", r"\U000e0041\U0010ffff"),
        (b"ok", "ok"),
        (b"\xff\x1b", r"\xff\x1b"),
        ("", ""),
    ],
)
def test_printable_escapes_what_is_not_shown(text: str | bytes, shown: str) -> None:
    """Each kind of character that could do something else than be read."""
    assert printable(text) == shown


def test_printable_tells_how_long_the_whole_was() -> None:
    """What is left out is told, as a count; what fits is not cut."""
    assert printable("x" * NAME_LIMIT) == "x" * NAME_LIMIT
    assert printable("x" * (NAME_LIMIT + 1)) == "x" * NAME_LIMIT + "… (121 long)"
    assert printable(b"x" * 1_000_000, 3) == "xxx… (1,000,000 long)"


def test_printable_marks_what_it_cut() -> None:
    """Bytes that hold fewer characters than their number are cut by characters, and a cut is always marked."""
    assert printable("ä".encode() * 100) == "ä" * 100
    assert printable("ä".encode() * 121) == "ä" * 120 + "… (242 long)"


def test_printable_costs_nothing_for_long_names() -> None:
    """The attack: a name of many megabytes takes long to show. What is not shown is not copied either."""
    name = b"\x1b" * 50_000_000
    text = name.decode()
    tracemalloc.start()

    shown = [printable(name), printable(text)]

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100_000
    assert shown == ["\\x1b" * NAME_LIMIT + "… (50,000,000 long)"] * 2


@given(st.binary())
def test_terminal_safe_output_steers_nothing(output: bytes) -> None:
    """The attack: a guest's output steers the terminal of whoever looks at it."""
    shown = terminal_safe(output)

    assert hidden(shown.replace("\n", "").replace("\t", "")) == []
    assert len(shown) <= len(output) * LONGEST_ESCAPE
    shown.encode()


@given(st.text(st.characters(exclude_categories=HIDDEN, include_characters="\n\t")))
def test_terminal_safe_leaves_ordinary_output_alone(text: str) -> None:
    """The twin of the above: text, lines and tabs stay as they are."""
    assert terminal_safe(text.encode()) == text


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (b"one\r\ntwo\n\tthree", "one\ntwo\n\tthree"),
        (b"99%\r100%", r"99%\x0d100%"),
        (b"\x1b]0;title\x07", r"\x1b]0;title\x07"),
        (b"\xc2\x9b31m", r"\x9b31m"),
        (b"\x9b31m", r"\x9b31m"),
        ("\u202e\u2066".encode(), r"\u202e\u2066"),
        (b"\x08\x0b\x0c\x0e", r"\x08\x0b\x0c\x0e"),
    ],
)
def test_terminal_safe_escapes_each_kind(output: bytes, shown: str) -> None:
    """Carriage returns that overwrite, 8-bit controls, shifts, and turned reading direction included."""
    assert terminal_safe(output) == shown
