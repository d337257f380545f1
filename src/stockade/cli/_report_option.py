"""`--report`: prints the report, or with a FILE behind it writes it there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from stockade._text import printable
from stockade.cli._files import OutputFile
from stockade.execution import Monitoring

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.report import Report

__all__ = ["ReportFile", "ReportingCommand", "monitoring_for", "opened", "report_option"]

_SUFFIXES: Final = (".html", ".htm", ".json", ".txt")
"""How the names of files end that may follow --report as a word of their own. No module is called so."""

_RUN_SUFFIXES: Final = frozenset({".wasm", ".wat", ".py", ".js", ".mjs"})
"""How the names of what is run end, mostly: that it is missing is told elsewhere, in words of its own."""

_OPTION: Final = "--report"


class ReportingCommand(click.Command):
    """A command with `--report`, behind which a file may stand, or may not."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads the words of the command line, each `--report` with what belongs to it."""
        return super().parse_args(ctx, self._spelled_out(args))

    def _spelled_out(self, args: Sequence[str]) -> list[str]:
        options = [param for param in self.params if isinstance(param, click.Option)]
        takes = {name for option in options if not option.is_flag for name in option.opts}
        rest = list(args)
        found: list[str] = []
        # What stands behind the module is the guest's.
        while rest and rest[0].startswith("-") and rest[0] not in ("-", "--"):
            word = rest.pop(0)
            if word == _OPTION:
                is_file = bool(rest) and rest[0].lower().endswith(_SUFFIXES)
                if rest and not is_file:
                    _check_module(rest[0])
                found.append(f"{_OPTION}={rest.pop(0) if is_file else ''}")
                continue
            found.append(word)
            if rest and _wants_another(word, takes):
                found.append(rest.pop(0))
        return found + rest


def _check_module(word: str) -> None:
    """Sees to it that a word behind `--report` can be what is run, and is no file for the report with another ending.

    Raises:
        UsageError: It has an ending that nothing has which is run, and there is no such file.
    """
    ending = Path(word).suffix
    if word.startswith("-") or not ending or ending.lower() in _RUN_SUFFIXES or Path(word).exists():
        return
    raise click.UsageError(
        f"--report {printable(word)}: a file for the report ends in {', '.join(_SUFFIXES)}, and there is no file of "
        "this name to run. For text under any other name, write --report=FILE"
    )


def _wants_another(word: str, takes: set[str]) -> bool:
    """Whether the value of an option is the next word."""
    if word.startswith("--"):
        return word in takes
    for at, letter in enumerate(word[1:], 2):
        if f"-{letter}" in takes:
            return at == len(word)
    return False


def report_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the option, whose values are given as `reports`: "" to print the report, else the name of a file."""
    return click.option(
        _OPTION,
        "reports",
        multiple=True,
        metavar="[FILE]",
        help="Print the report to stderr, however the run ends; or write it to FILE: as HTML with plots, as JSON or as "
        "text, as its name ends in .html, .json or .txt. Write --report=FILE for any other name, which is for text.",
    )(command)


def monitoring_for(reports: Sequence[str]) -> Monitoring | None:
    """Returns what is to be watched of a run for its reports; None where nothing is."""
    return Monitoring(samples=True) if any(_is_html(name) for name in reports) else None


def _is_html(name: str) -> bool:
    return name.lower().endswith((".html", ".htm"))


class ReportFile:
    """A file that a report is to be written to: known before the run, so that no guest chooses what it is.

    Args:
        name: Its path.

    Raises:
        UsageError: It cannot be written, or what is there is no plain file.
    """

    def __init__(self, name: str) -> None:
        self._name = name.lower()
        self._file = OutputFile(name, "the report")

    def write(self, report: Report) -> None:
        """Writes the report.

        Args:
            report: The report.

        Raises:
            UsageError: It cannot be written any more.
        """
        if _is_html(self._name):
            text = report.to_html()
        else:
            text = (report.to_json() if self._name.endswith(".json") else report.render()) + "\n"
        self._file.replace(text.encode("utf-8", "backslashreplace"))


def opened(reports: Sequence[str]) -> list[ReportFile]:
    """Returns the files that reports are to be written to.

    Args:
        reports: What was given with the option.

    Raises:
        UsageError: One cannot be written.
    """
    return [ReportFile(name) for name in dict.fromkeys(reports) if name]
