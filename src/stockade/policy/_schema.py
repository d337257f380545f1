"""The JSON Schema of policy documents and the reference page, both from the fields themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.policy._fields import Items, Section, fields_of
from stockade.policy._limits import Limits
from stockade.policy._policy import Policy
from stockade.policy._presets import PRESETS
from stockade.policy._toml import write_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stockade.policy._fields import Field, Part, Plain

__all__ = ["reference", "schema"]


def schema() -> dict[str, Plain]:
    """Returns the JSON Schema of policy documents."""
    table = Section(Policy).schema()
    properties = table["properties"]
    assert isinstance(properties, dict)
    extends: dict[str, Plain] = {
        "description": "The preset from which the policy takes what it does not say.",
        "enum": list(PRESETS),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Stockade policy",
        "description": (Policy.__doc__ or "").partition("\n")[0],
        **table,
        "properties": {"extends": extends, **properties},
    }


def reference(kept: Mapping[str, str]) -> str:
    """Returns the reference page of policy documents, in Markdown.

    Args:
        kept: For limits by their names, whether a count is kept for a `session` or begins anew with each `call` of it.
    """
    top = [field for field in fields_of(Policy).values() if not isinstance(field.kind, Section)]
    lines = [
        "# Policy reference",
        "",
        "Made from the fields themselves by `stockade policy schema --markdown`; `make docs` writes it anew.",
        "",
        "A policy is a document in TOML, YAML (with the `yaml` extra) or JSON. What it does not say is as in the",
        f"preset that `extends` names ({', '.join(f'`{name}`' for name in PRESETS)}), or else as in `default`.",
        'Sizes and times take units: `"128MiB"` is 128 × 2^20 bytes, `"128MB"` is 128 × 10^6, `"250ms"` a quarter',
        "of a second. A bare number is in the unit of the field.",
        "",
        *_table(top),
    ]
    for field in fields_of(Policy).values():
        if isinstance(field.kind, Section):
            lines += ["", f"## `[{field.name}]`", "", *_about(field.kind.part), "", *_table(_fields(field.kind.part))]
            if field.name == "limits":
                lines += ["", *_kept(kept)]
            for inner in _fields(field.kind.part):
                if isinstance(inner.kind, Items):
                    part = inner.kind.part
                    title = f"### Each of `{field.name}.{inner.name}`"
                    lines += ["", title, "", *_about(part), "", *_table(_fields(part))]
    return "\n".join(lines) + "\n"


def _kept(kept: Mapping[str, str]) -> list[str]:
    """Says which limits the calls of a session share."""

    def names(lifetime: str) -> str:
        return ", ".join(f"`{name}`" for name in fields_of(Limits) if kept.get(name) == lifetime)

    return [
        f"In a session, these limits hold for all its calls together: {names('session')}.",
        f"Fuel and time begin anew with each call, and so do {names('call')}.",
    ]


def _fields(part: type[Part]) -> list[Field]:
    return list(fields_of(part).values())


def _about(part: type[Part]) -> list[str]:
    return [(part.__doc__ or "").partition("\n")[0]]


def _table(fields: Iterable[Field]) -> list[str]:
    lines = ["| field | default | what it means | what it may be |", "|---|---|---|---|"]
    for field in fields:
        default = "" if field.required else f"`{write_value(field.kind.write(field.default))}`"
        meaning = field.description.replace("|", "\\|")
        lines.append(f"| `{field.name}` | {default} | {meaning} | {field.kind.allowed()} |")
    return lines
