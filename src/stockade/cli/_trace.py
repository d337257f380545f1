"""`stockade trace`: what a module calls, as `strace` tells it of a process."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal

import click

from stockade._text import document_safe, printable
from stockade.cli._complete import ExportName, ModuleFile
from stockade.cli._encoding import plain_json
from stockade.cli._endings import complain
from stockade.cli._files import FileName, open_stream
from stockade.cli._grants import environment_of, isolation_option, limit_options, long_folder_options, policy_with
from stockade.cli._guest_io import GuestStreams, Watcher
from stockade.cli._logging import audit_option, audited, check_own_files
from stockade.cli._policy_option import policy_option
from stockade.cli._run import finish, perform
from stockade.engine import Engine
from stockade.errors import UsageError
from stockade.report import Outcome, Trace, TraceSummary
from stockade.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from io import FileIO

    from stockade.policy import Policy
    from stockade.report import Report, TracedCall

__all__ = ["TraceWriter", "trace"]

_STRING_CHARS = 32
_MOST_CHARS = 4096
_KEPT_BYTES = 256
"""So much is kept of a path, however little of data is shown."""


class TraceWriter:
    """Writes traced calls, one a line.

    Args:
        write: Writes text to it.
        name: What it is called, for messages.
        string_chars: How many characters of data are shown.
        as_json: Whether lines are JSON.
        summary: Counts calls in the place of writing them; None where they are written.
    """

    def __init__(
        self,
        write: Callable[[str], object],
        name: str = "stderr",
        *,
        string_chars: int = _STRING_CHARS,
        as_json: bool = False,
        summary: TraceSummary | None = None,
    ) -> None:
        self._to = write
        self._name = name
        self._string_chars = string_chars
        self._as_json = as_json
        self._summary = summary

    def __call__(self, call: TracedCall) -> None:
        """Writes a call.

        Raises:
            UsageError: It cannot be written.
        """
        if self._summary is not None:
            self._summary.add(call)
        elif self._as_json:
            self._write(document_safe(plain_json(call.to_json()), "json"))
        else:
            self._write(call.render(self._string_chars))

    def finish(self, report: Report) -> None:
        """Writes what stands below the calls.

        Args:
            report: How the run ended.
        """
        if self._summary is not None:
            self._write(self._summary.render())
        elif not self._as_json:
            ending = report.summary()
            if report.outcome in (Outcome.OK, Outcome.EXIT):
                ending = f"exited with {report.exit_code or 0}"
            self._write(f"+++ {ending} +++")

    def _write(self, text: str) -> None:
        try:
            self._to(text + "\n")
        except OSError as problem:
            raise UsageError(f"{printable(self._name, 400)} cannot be written: {problem.strerror}") from None


def _calls(given: Sequence[str]) -> tuple[str, ...]:
    """Reads -e: several in one, and `trace=` before them, as strace has it."""
    names = [name.strip() for text in given for name in text.removeprefix("trace=").split(",")]
    return tuple("*" if name == "all" else name for name in names) or ("*",)


@click.command(
    short_help="Run MODULE, and write each call that it makes.",
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
)
@click.argument("module", type=ModuleFile())
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "-e",
    "filters",
    multiple=True,
    metavar="CALLS",
    help="Trace only these: names, groups, patterns or POSIX names, with commas between; host for host functions.",
)
@click.option("-c", "wants_summary", is_flag=True, help="Count calls, errors and time, and print a table at the end.")
@click.option("-o", "output", metavar="FILE", type=FileName(), help="Write to FILE, not to stderr.")
@click.option("--json", "wants_json", is_flag=True, help="Write each call as a line of JSON.")
@click.option(
    "-s",
    "string_chars",
    metavar="SIZE",
    type=click.IntRange(0, _MOST_CHARS),
    default=_STRING_CHARS,
    show_default=True,
    help="Show this much of data that is read or written.",
)
@click.option(
    "--durations",
    type=click.Choice(["io", "all", "none"]),
    help="Measure calls that can wait or go to the file system, all, or none.  [default: io; with -c, all]",
)
@click.option(
    "--overflow",
    type=click.Choice(["wait", "count"]),
    default="wait",
    show_default=True,
    help="Where calls come faster than they are told, have the guest wait, or leave some out and count them.",
)
@long_folder_options
@click.option("--invoke", metavar="EXPORT", type=ExportName(), help="Call this function with ARGS.")
@policy_option
@limit_options
@isolation_option
@audit_option
def trace(
    module: str,
    args: tuple[str, ...],
    filters: tuple[str, ...],
    wants_summary: bool,
    output: str | None,
    wants_json: bool,
    string_chars: int,
    durations: Literal["io", "all", "none"] | None,
    overflow: Literal["wait", "count"],
    directories: tuple[str, ...],
    volumes: tuple[str, ...],
    variables: tuple[str, ...],
    invoke: str | None,
    base: Policy,
    fuel: str | None,
    memory: str | None,
    timeout: str | None,
    isolation: Literal["inprocess", "process", "bubblewrap"] | None,
    audit_file: str | None,
) -> int:
    """Run MODULE with ARGS, and write each call that it makes to stderr, as strace does.

    A line has the call with its arguments, what it answered or the name of its error, and how long it took. What the
    guest reads and writes, and its exit status, are as with `stockade run`.
    """
    if wants_summary and wants_json:
        raise click.UsageError("-c prints a table, and --json calls: give one of them")
    Engine.make_no_pools()  # There is one guest.
    policy = policy_with(base, directories, volumes, fuel=fuel, memory=memory, timeout=timeout)
    environment = environment_of(variables)
    check_own_files(audit_file, module, output)
    with ExitStack() as stack:
        # Opened before the guest runs: what cannot be written is told at once, and no guest chooses what it is.
        write = sys.stderr.write if output is None else _writing(stack.enter_context(open_stream(output, "the trace")))
        summary = TraceSummary() if wants_summary else None
        writer = TraceWriter(write, output or "stderr", string_chars=string_chars, as_json=wants_json, summary=summary)
        asked = Trace(
            calls=_calls(filters),
            string_bytes=max(string_chars, _KEPT_BYTES),
            durations=durations or ("all" if wants_summary else "io"),
            on_overflow=overflow,
            sink=writer,
        )
        watcher = stack.enter_context(Watcher())
        log = stack.enter_context(audited(audit_file))
        box = stack.enter_context(Sandbox(policy, isolation, trace=asked, audit=log))
        streams = GuestStreams(watcher, reads=module != "-", shows=True)
        report = perform(box, watcher, streams, module, args, environment, invoke)
        writer.finish(report)
    if report.trace_lost:
        click.echo(f"stockade: {report.trace_lost:,} calls were left out (--overflow count)", err=True)
    complain(report, watcher.signal)
    return finish(report, watcher, streams)


def _writing(file: FileIO) -> Callable[[str], object]:
    def write(text: str) -> None:
        # Without a buffer: what cannot be written is told of the line that it is.
        left = text.encode("utf-8", "backslashreplace")
        while left:
            left = left[file.write(left) :]

    return write
