"""Policies as YAML text."""

from __future__ import annotations

import json
import re
from textwrap import wrap
from typing import TYPE_CHECKING

from stockade.policy._fields import Plain, Section, fields_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stockade.policy._policy import Policy

__all__ = ["write_yaml"]

_BARE_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_NOT_PRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def write_yaml(policy: Policy, *, told: bool = False) -> str:
    """Writes a policy with all its fields.

    Args:
        policy: The policy.
        told: Whether each field has a comment that says what it means.
    """
    return "\n".join(_lines(policy, told=told)) + "\n"


def _lines(policy: Policy, *, told: bool) -> Iterator[str]:
    document = policy.to_document()
    for name, field in fields_of(type(policy)).items():
        table = document[name]
        if not isinstance(table, dict):
            yield from _comment(field.description, "", told=told)
            yield f"{name}: {_value(table)}"
        elif table or told:
            yield ""
            yield from _comment(field.description, "", told=told)
            yield f"{name}:" if table else f"{name}: {{}}"
            inner = fields_of(field.kind.part) if isinstance(field.kind, Section) else {}
            for key, value in table.items():
                if key in inner:
                    told_of = f"{inner[key].description} ({inner[key].kind.allowed()})"
                    yield from _comment(told_of, "  ", told=told)
                yield f"  {key if _BARE_KEY.fullmatch(key) and not _means_more(key) else _value(key)}: {_value(value)}"


def _comment(text: str, indent: str, *, told: bool) -> list[str]:
    return [f"{indent}# {line}" for line in wrap(text, 100)] if told else []


def _value(value: Plain) -> str:
    # JSON is YAML, but for some characters that YAML wants escaped.
    text = json.dumps(value, ensure_ascii=False)
    return _NOT_PRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _means_more(key: str) -> bool:
    return key.lower() in ("true", "false", "null", "yes", "no", "on", "off", "y", "n")
