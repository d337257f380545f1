"""Docstrings as data: what they say of fields is what schemas and reference pages say."""

from __future__ import annotations

from textwrap import dedent

__all__ = ["attributes_told"]


def attributes_told(docstring: str) -> dict[str, str]:
    """Reads the "Attributes:" of a docstring in Google's style.

    Args:
        docstring: The docstring of a class.

    Returns:
        What is said of each attribute, in one line.
    """
    told: dict[str, str] = {}
    name = ""
    _, _, attributes = docstring.partition("Attributes:\n")
    for line in dedent(attributes.partition("\n\n")[0]).splitlines():
        if line.startswith(" "):
            told[name] += f" {line.strip()}"
        elif line:
            name, _, told[name] = line.partition(": ")
    return told
