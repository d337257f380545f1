"""The JSON Schema of reports: published, and true of every report.

Holds P-REPORT-3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from stockade import Outcome, Report
from stockade.report import json_schema
from tests._examples import part
from tests.report._reports import busy, endings, hostile
from tests.report.test_report import FULL, make

SCHEMA = json_schema()


def closed(schema: Any) -> Any:
    """The same schema, which permits no field that it does not tell of."""
    if isinstance(schema, dict):
        found = {key: closed(value) for key, value in schema.items()}
        if "properties" in found:
            found["additionalProperties"] = False
        return found
    return [closed(item) for item in schema] if isinstance(schema, list) else schema


VALIDATOR = jsonschema.Draft202012Validator(closed(SCHEMA))


def test_the_published_schema_is_that_of_the_code() -> None:
    """`stockade report schema > docs/report.schema.json` brings it up to date."""
    published = Path(__file__).parents[2] / "docs" / "report.schema.json"

    assert json.loads(published.read_text()) == SCHEMA
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_real_report_is_as_the_schema_says(tmp_path: Path) -> None:
    """However the run ended, with samples and alerts."""
    reports = endings(tmp_path)

    assert {outcome: report.outcome for outcome, report in reports.items()} == {outcome: outcome for outcome in reports}
    assert set(Outcome) - set(reports) == {Outcome.CANCELLED, Outcome.CRASHED}
    for report in (*reports.values(), busy()):
        VALIDATOR.validate(json.loads(report.to_json()))


@pytest.mark.parametrize(
    "report",
    [
        FULL,
        make(),
        msgspec.structs.replace(hostile(), samples=()),
        make(value=float("inf")),
        make(value=[1, 2.5, b"\xff" * 16, "text", None]),
        make(stdout=b"\xff", stderr=b"\x00"),
        make(value=b"\xff"),
    ],
)
def test_reports_with_every_field_are_as_the_schema_says(report: Report) -> None:
    """Also what is in base64, and numbers that JSON does not know."""
    VALIDATOR.validate(json.loads(report.to_json()))


@pytest.mark.parametrize(
    "change",
    part(
        [
            {"outcome": "fine"},
            {"ok": 1},
            {"utilization": {"memory": 1.5}},
            {"utilization": {"luck": 0.5}},
            {"stdout": None},
            {"usage": {}},
            {"violations": [{"kind": "memory"}]},
            {"exit_code": "0"},
        ]
    ),
)
def test_what_is_no_report_is_not_as_the_schema_says(change: dict[str, object]) -> None:
    """The twin: the schema says something."""
    document = json.loads(FULL.to_json())

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document | change, SCHEMA)
    del document["usage"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


def test_every_field_is_told() -> None:
    """A schema without descriptions is half a reference."""
    for one in (SCHEMA, *SCHEMA["$defs"].values()):  # type: ignore[union-attr, misc]
        assert one["description"], one  # type: ignore[index, call-overload]
        for name, field in one.get("properties", {}).items():  # type: ignore[union-attr]
            assert field.get("description"), (one.get("title"), name)  # type: ignore[union-attr]
