"""The JSON Schema of reports, from their fields."""

from __future__ import annotations

from textwrap import dedent
from typing import TYPE_CHECKING, Any

import msgspec

from stockade._docstrings import attributes_told
from stockade.report import _findings, _fuel, _limits, _model
from stockade.report._model import Report

if TYPE_CHECKING:
    from stockade._json import Json

__all__ = ["json_schema"]

_NUMBER_OR_TEXT: dict[str, Any] = {"type": ["number", "string", "null"]}


def json_schema() -> dict[str, Json]:
    """Returns the JSON Schema (draft 2020-12) of what `Report.to_json` returns."""
    _, parts = msgspec.json.schema_components([Report], ref_template="#/$defs/{name}")
    for name, part in parts.items():
        _describe(part, _docstring(name))
    report = parts.pop("Report")
    fields: dict[str, Any] = report["properties"]
    for stream in ("stdout", "stderr"):
        about = fields[stream]["description"]
        fields[stream] = {"type": "string", "description": f"{about} What is not UTF-8 in it is replaced."}
        fields[f"{stream}_base64"] = _in_base64(stream, {"type": "string"})
    fields["value"] |= {"anyOf": [_NUMBER_OR_TEXT, {"type": "array", "items": _NUMBER_OR_TEXT}]}
    either = [{"type": "string"}, {"type": "array", "items": {"type": ["string", "null"]}}]
    fields["value_base64"] = _in_base64("value", {"anyOf": either})
    fields["ok"] = {"type": "boolean", "description": "Whether the outcome is ok."}
    fields["utilization"] = {
        "type": "object",
        "description": "The used part of each limit by its name; unlimited ones are left out.",
        "propertyNames": {"enum": sorted(parts["RunLimits"]["properties"])},
        "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
    }
    report["required"] = [name for name in fields if not name.endswith("_base64")]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **report,
        "title": "Stockade report",
        "description": "What happened in a run of Stockade, as Report.to_json writes it. There may be more fields.",
        "$defs": parts,
    }


def _in_base64(field: str, schema: dict[str, Any]) -> dict[str, Any]:
    about = f"The exact bytes of {field} in base64, where they are not UTF-8."
    return {**schema, "contentEncoding": "base64", "description": about}


def _docstring(name: str) -> str:
    for module in (_model, _limits, _fuel, _findings):
        if hasattr(module, name):
            return dedent(getattr(module, name).__doc__ or "")
    raise LookupError(name)


def _describe(part: dict[str, Any], docstring: str) -> None:
    """Puts what is told of a class, and of its fields, where a schema tells it. All fields are always written."""
    summary, _, rest = docstring.partition("\n")
    part["description"] = summary
    told = attributes_told(rest)
    for name, field in part.get("properties", {}).items():
        field.pop("default", None)
        if name in told:
            field["description"] = told[name]
    if "properties" in part:
        part["required"] = list(part["properties"])
