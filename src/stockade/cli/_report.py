"""`stockade report`: what programs that read reports want to know."""

from __future__ import annotations

import json

import click

from stockade.cli._streams import say_document
from stockade.report import json_schema

__all__ = ["report"]


@click.group()
def report() -> None:
    """Tell programs how to read the reports that runs leave.

    They are written by stockade run --report FILE and --json, and by Report.to_json in Python.
    """


@report.command(short_help="Print the JSON Schema of reports.")
def schema() -> None:
    """Print the JSON Schema of reports, for validators and generators of code."""
    say_document(json.dumps(json_schema(), indent=2))
