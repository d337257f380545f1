"""HTML made of elements, in which whatever is text is escaped: nothing else comes into a page."""

from __future__ import annotations

from html import escape

from stockade._text import terminal_safe

__all__ = ["Markup", "element", "group"]


class Markup(str):
    """HTML that was made here."""

    __slots__ = ()


def group(*parts: str) -> Markup:
    """Joins elements and texts.

    Args:
        *parts: Elements; what is no `Markup` is text, in which what is invisible, or turns the reading direction, is
            shown as an escape.
    """
    return Markup("".join(part if isinstance(part, Markup) else _text(part) for part in parts))


def element(tag: str, /, *parts: str, **attributes: str | float | None) -> Markup:
    """Makes an element.

    Args:
        tag: Its name.
        *parts: What is in it, as in `group`.
        **attributes: Its attributes; underscores in their names stand for hyphens, and one at the end for nothing. None
            leaves one out.
    """
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_text(_shown(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{tag}{told}>")
    return Markup(f"<{tag}{told}>{group(*parts)}</{tag}>")


_VOID = frozenset({"meta", "link", "br"})


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def _text(text: str) -> str:
    return escape(terminal_safe(text.encode("utf-8", "backslashreplace")))
