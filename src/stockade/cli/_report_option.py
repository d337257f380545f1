"""`--report`: prints the report, or with a FILE behind it writes it there."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from stockade._text import printable
from stockade.cli._files import replace_file
from stockade.execution import Monitoring

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.report import Report

__all__ = ["ReportFile", "ReportingCommand", "monitoring_for", "opened", "report_option"]

_SUFFIXES: Final = (".html", ".htm", ".json", ".txt")
"""How the names of files end that may follow --report as a word of their own. No module is called so."""

_OPTION: Final = "--report"
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


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
                found.append(f"{_OPTION}={rest.pop(0) if is_file else ''}")
                continue
            found.append(word)
            if rest and _wants_another(word, takes):
                found.append(rest.pop(0))
        return found + rest


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

    It is whole or as it was before, and what lies under its name is replaced, never followed or opened.

    Args:
        name: Its path.

    Raises:
        UsageError: It cannot be written, or what is there is no plain file.
    """

    def __init__(self, name: str) -> None:
        path = Path(name)
        self._shown = printable(name, 400)
        self._path = name
        self._name = path.name
        try:
            self._folder = os.open(path.parent, _FOLDER)
            if not self._name:
                raise IsADirectoryError(0, "Is a directory")
            self._check()
            # Whether anything can be written there is known when something was.
            replace_file(self._folder, None, b"")
        except OSError as problem:
            raise click.UsageError(f"{self._shown} cannot be written: {problem.strerror}") from None

    def _check(self) -> None:
        try:
            mode = os.stat(self._name, dir_fd=self._folder, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a link" if stat.S_ISLNK(mode) else "no plain file"
            raise click.UsageError(f"{self._shown} is {kind}: give the report a file of its own")

    def write(self, report: Report) -> None:
        """Writes the report.

        Args:
            report: The report.

        Raises:
            UsageError: It cannot be written any more.
        """
        if _is_html(self._path):
            text = report.to_html()
        else:
            text = (report.to_json() if self._path.lower().endswith(".json") else report.render()) + "\n"
        try:
            self._check()
            replace_file(self._folder, self._name, text.encode("utf-8", "backslashreplace"))
        except OSError as problem:
            raise click.UsageError(f"{self._shown} cannot be written: {problem.strerror}") from None
        finally:
            os.close(self._folder)


def opened(reports: Sequence[str]) -> list[ReportFile]:
    """Returns the files that reports are to be written to.

    Args:
        reports: What was given with the option.

    Raises:
        UsageError: One cannot be written.
    """
    return [ReportFile(name) for name in dict.fromkeys(reports) if name]
