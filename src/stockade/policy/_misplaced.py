"""Where a field belongs that somebody has put elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.policy._fields import Section, fields_of, meant

if TYPE_CHECKING:
    from stockade.policy._fields import Part

__all__ = ["field_of_policy", "place_in_document", "place_in_python"]


def field_of_policy(word: str) -> tuple[str, tuple[tuple[str, type[Part]], ...]]:
    """Returns the field that a word means, and the parts of a policy that have it, by their sections.

    Args:
        word: Its name, or what it is called elsewhere.
    """
    from stockade.policy._policy import Policy

    for name in (word, meant(word)):
        found = tuple(
            (section, field.kind.part)
            for section, field in fields_of(Policy).items()
            if isinstance(field.kind, Section) and name in fields_of(field.kind.part)
        )
        if found and name:
            return name, found
        if name in fields_of(Policy):
            return name, (("", Policy),)
    return "", ()


def place_in_document(word: str) -> str:
    """Says in which table of a document a field belongs; "" where no table has it.

    Args:
        word: What somebody wrote.
    """
    name, parts = field_of_policy(word)
    if not parts:
        return ""
    if parts[0][0] == "":
        is_table = isinstance(fields_of(parts[0][1])[name].kind, Section)
        return f"[{name}] is a table of its own" if is_table else f"{name} belongs before the first table"
    *others, last = (f"[{section}]" for section, _ in parts)
    tables = f"{', '.join(others)} or {last}" if others else last
    return f"{'it' if name == word else name} belongs in {tables}"


def place_in_python(word: str) -> str:
    """Says how a field is set in Python; "" where no policy has it.

    Args:
        word: What somebody wrote.
    """
    name, parts = field_of_policy(word)
    if not parts:
        return ""
    section, part = parts[0]
    return f"Policy({name}=...)" if not section else f"Policy({section}={part.__name__}({name}=...))"
