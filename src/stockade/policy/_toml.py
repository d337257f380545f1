"""Policies as TOML text."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from stockade.policy._fields import Part, Plain, Section, fields_of

if TYPE_CHECKING:
    from stockade.policy._policy import Policy

__all__ = ["write_toml", "write_value"]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def write_toml(policy: Policy, *, told: bool = False) -> str:
    """Writes a policy with all its fields.

    Args:
        policy: The policy.
        told: Whether each field has a comment that says what it means.
    """
    document = policy.to_document()
    lines: list[str] = []
    sections: list[tuple[str, str, dict[str, Plain], type[Part] | None]] = []
    for name, field in fields_of(type(policy)).items():
        table = document[name]
        if not isinstance(table, dict):
            lines += [*_comment(field.description, told=told), f"{name} = {write_value(table)}"]
        elif isinstance(field.kind, Section):
            sections.append((name, field.description, table, field.kind.part))
        elif table or told:
            sections.append((name, field.description, table, None))
    for name, description, table, part in sections:
        lines += ["", *_comment(description, told=told), f"[{name}]"]
        if part is not None:
            for inner in fields_of(part).values():
                comment = f"{inner.description} ({inner.kind.allowed()})"
                lines += [*_comment(comment, told=told), f"{inner.name} = {write_value(table[inner.name])}"]
        else:
            lines += [f"{_key(key)} = {write_value(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _comment(text: str, *, told: bool) -> list[str]:
    from textwrap import wrap

    return [f"# {line}" for line in wrap(text, 100)] if told else []


def write_value(value: Plain) -> str:
    """Writes a value in one line, except for lists of tables."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _text(value)
        case list():
            if value and isinstance(value[0], dict):
                return "[\n" + "".join(f"    {write_value(entry)},\n" for entry in value) + "]"
            return f"[{', '.join(map(write_value, value))}]"
        case dict() if not value:
            return "{}"
        case dict():
            return f"{{ {', '.join(f'{_key(key)} = {write_value(entry)}' for key, entry in value.items())} }}"
        case int() if abs(value) >= 10_000:
            return f"{value:_}"
    return repr(value)


def _text(text: str) -> str:
    # A JSON string is a TOML string, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)
