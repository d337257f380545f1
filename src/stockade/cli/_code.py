"""`stockade python` and `stockade js`: code in an interpreter that is a guest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import click

from stockade._text import printable
from stockade.cli._collect import check_collection, open_folder, write_files
from stockade.cli._complete import offer
from stockade.cli._encoding import plain_json
from stockade.cli._endings import INTERRUPTED, complain, leave
from stockade.cli._files import FileName, OutputFile
from stockade.cli._grants import environment_of, folder_options, isolation_option, limit_options, policy_with
from stockade.cli._guest_io import GuestStreams, Watcher
from stockade.cli._logging import audit_option, audited, check_own_files
from stockade.cli._policy_option import policy_option
from stockade.cli._report_option import ReportFile, ReportingCommand, monitoring_for, opened, report_option
from stockade.cli._status import ExitStatus, exit_status
from stockade.cli._streams import pass_on, say_document
from stockade.cli._terminal import progress, show_report
from stockade.engine import Engine
from stockade.errors import Cancelled, ModuleNotFound, UsageError
from stockade.guests import JavaScript, Python
from stockade.report import Outcome
from stockade.runner import run_blocking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from click.shell_completion import CompletionItem

    from stockade.guests import CodeResult
    from stockade.policy import Policy
    from stockade.report import Trace

__all__ = ["js", "python"]

_MOST_CODE_BYTES = 64 << 20


class _CodeFile(click.Path):
    """The path of a file with code."""

    def __init__(self, suffixes: tuple[str, ...]) -> None:
        super().__init__()
        self._suffixes = suffixes

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Offers files with code, and folders on the way to them."""
        return offer(incomplete, self._suffixes)


class _RuntimeName(click.ParamType):  # type: ignore[type-arg]
    """The name of an interpreter that is installed, or the path of one."""

    name = "NAME|FILE"

    def __init__(self, language: type[Python | JavaScript]) -> None:
        self._language = language

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Offers what is installed, and modules."""
        return offer(incomplete, (".wasm",), self._language.runtimes())


class _Source(NamedTuple):
    """Code, and what it is called; `reads` says whether stdin is still there for it."""

    code: str
    name: str
    reads: bool = True


class _Run(NamedTuple):
    """Code, and what it is given."""

    source: _Source
    args: Sequence[str]
    files: dict[str, bytes]
    environment: dict[str, str]
    patterns: Sequence[str]


def _command(language: type[Python | JavaScript], name: str, suffixes: tuple[str, ...]) -> click.Command:
    """Makes the command of a language."""

    @click.command(name, cls=ReportingCommand, context_settings={"allow_interspersed_args": False})
    @click.option("-c", "code", metavar="CODE", help="Run this code; what follows are its arguments.")
    @click.argument("file", required=False, type=_CodeFile(suffixes))
    @click.argument("args", nargs=-1, type=click.UNPROCESSED)
    @click.option(
        "--file",
        "-f",
        "files",
        multiple=True,
        metavar="HOST[::NAME]",
        help="Put a copy of a file into /workspace, where the code runs. May be repeated.",
    )
    @click.option(
        "--collect",
        "patterns",
        multiple=True,
        metavar="PATTERN",
        help="Bring files that the code leaves in /workspace to -o FOLDER: '*.csv', or '*' for all. May be repeated.",
    )
    @click.option("-o", "folder", metavar="FOLDER", type=click.Path(), help="Where --collect brings files to.")
    @click.option("--force", is_flag=True, help="Overwrite files that are in FOLDER already.")
    @folder_options
    @policy_option
    @limit_options
    @isolation_option
    @click.option("--runtime", type=_RuntimeName(language), default="auto", help="The interpreter.  [default: auto]")
    @click.option("--packages", metavar="FOLDER", help="Grant a folder with packages that the code may import.")
    @click.option("--prepare", "only_prepare", is_flag=True, help="Compile the interpreter, and do nothing else.")
    @click.option("--trace", "wants_trace", is_flag=True, help="Write each call of the interpreter to stderr.")
    @click.option(
        "--learn",
        "learned",
        metavar="FILE",
        type=FileName(),
        help="Write the smallest policy that permits what the code did.",
    )
    @click.option(
        "--merge",
        "before",
        metavar="FILE",
        type=FileName(),
        help="With --learn, permit what this policy permits, too: one that was learned from other runs.",
    )
    @report_option
    @click.option(
        "--json", "wants_json", is_flag=True, help="Print value, output, error and report as JSON, and nothing else."
    )
    @audit_option
    @click.option("--quiet", is_flag=True, help="Print only what the code writes, and its error.")
    def command(
        code: str | None,
        file: str | None,
        args: tuple[str, ...],
        files: tuple[str, ...],
        patterns: tuple[str, ...],
        folder: str | None,
        force: bool,
        directories: tuple[str, ...],
        volumes: tuple[str, ...],
        variables: tuple[str, ...],
        base: Policy,
        fuel: str | None,
        memory: str | None,
        timeout: str | None,
        isolation: Literal["inprocess", "process", "bubblewrap"] | None,
        runtime: str,
        packages: str | None,
        only_prepare: bool,
        wants_trace: bool,
        learned: str | None,
        before: str | None,
        reports: tuple[str, ...],
        wants_json: bool,
        audit_file: str | None,
        quiet: bool,
    ) -> int:
        policy = policy_with(base, directories, volumes, fuel=fuel, memory=memory, timeout=timeout)
        check_collection(patterns, folder, force=force, wants_json=wants_json)
        check_own_files(audit_file, file if code is None else None, learned, *reports)
        report_files = opened(reports)
        learned_file = None if learned is None else OutputFile(learned, "the policy")
        given = _files(files)
        environment = environment_of(variables)
        Engine.make_no_pools()  # There is one guest at a time.
        watched = monitoring_for(reports)
        under, trace = _traced(policy, learned, before, wants_trace=wants_trace)
        with (
            audited(audit_file) as log,
            language(
                under,
                runtime=runtime,
                isolation=isolation,
                packages=packages,
                monitoring=watched,
                audit=log,
                trace=trace,
            ) as interpreter,
        ):
            with Watcher() as watcher:
                if only_prepare:
                    _prepare(interpreter, watcher)
                    return 0
                if code is not None:
                    # The first word behind the code is an argument, too.
                    source = _Source(code, "-c")
                    args = args if file is None else (file, *args)
                elif file is not None and file != "-":
                    source = _Source(_read(Path(file)), Path(file).name)
                elif file is None and sys.stdin.isatty():
                    wanted = {"--json": wants_json, "--report": reports, "--collect": patterns, "--learn": learned}
                    if option := next((option for option, given in wanted.items() if given), None):
                        raise click.UsageError(f"{option} is for code that is given: with -c, as FILE, or on stdin")
                    source = None
                else:
                    source = _Source(_text(sys.stdin.buffer.read(_MOST_CODE_BYTES)), "<stdin>", reads=False)
                _prepare(interpreter, watcher)
                if source is not None:
                    target = None if folder is None else open_folder(folder)
                    run = _Run(source, args, given, environment, patterns)
                    result, streams = _run(interpreter, watcher, run, report_files, shows=not wants_json)
                module = None if learned is None else interpreter.module
            if source is None:
                from stockade.cli._interactive import interact

                return interact(interpreter, environment, given)
        if streams.lost_bytes and not quiet:
            click.echo(f"stockade: nobody read the last {streams.lost_bytes:,} bytes of the output", err=True)
        _show(result, watcher.signal, source.name, wants_report="" in reports, wants_json=wants_json, quiet=quiet)
        if module is not None:
            from stockade.cli._learn import write_learned

            write_learned(module, policy, result.report, [*environment], before, learned_file, finds_folders=True)
        written = target is None or write_files(result.files, patterns, target, force=force)
        if result.files_left_out:
            click.echo(
                f"stockade: {result.files_left_out:,} more files match --collect: at most 1,000 plain files of 64 MiB "
                "together are collected, and those that a gate can look at in time",
                err=True,
            )
        if streams.problem is not None:
            raise streams.problem
        if watcher.signal and (result.report.outcome is Outcome.CANCELLED or streams.lost_bytes):
            leave(128 + watcher.signal)
        return _status(result) or (0 if written else ExitStatus.USAGE)

    command.short_help = f"Run {language.__name__} code in a sandbox, or ask for it."
    command.help = _HELP.format(language=language.__name__, name=name)
    return command


def _traced(
    policy: Policy, learned: str | None, before: str | None, *, wants_trace: bool
) -> tuple[Policy, Trace | None]:
    """Returns the policy under which code runs, and what is traced of it."""
    if wants_trace and learned is not None:
        raise click.UsageError("--trace and --learn are for runs of their own: give one of them")
    if before is not None and learned is None:
        raise click.UsageError("--merge says what is added to what is learned: give --learn FILE, too")
    if learned is not None:
        from stockade.learning import LEARNING_TRACE, learning_policy

        return learning_policy(policy), LEARNING_TRACE
    if wants_trace:
        from stockade.cli._trace import TraceWriter
        from stockade.report import Trace

        return policy, Trace(sink=TraceWriter(sys.stderr.write))
    return policy, None


_HELP = """Run {language} code in a sandbox: CODE, or FILE with ARGS, or what is read from stdin.

The code runs in an interpreter that is WebAssembly, in an empty folder, /workspace. It reads this command's stdin and
writes to its stdout and stderr. On a terminal, without code, it is asked for: `stockade {name}` then keeps a session.

\b
Exit status: that of the code, 1 after an exception; 124 timeout; 125 wrong
usage; 126 the interpreter cannot run; 127 no such file; 130 Ctrl-C;
134 trap; 137 another limit; 143 SIGTERM.
"""


def _prepare(interpreter: Python | JavaScript, watcher: Watcher) -> None:
    """Loads and compiles the interpreter; a signal ends the process."""
    with progress(interpreter.runtime) as tell:
        done = watcher.finish(lambda: interpreter.prepare(tell))
    if not done:
        click.echo(f"stockade: {INTERRUPTED[watcher.signal]}", err=True)
        leave(128 + watcher.signal)


def _run(
    interpreter: Python | JavaScript, watcher: Watcher, run: _Run, report_files: Sequence[ReportFile], *, shows: bool
) -> tuple[CodeResult, GuestStreams]:
    streams = GuestStreams(watcher, reads=run.source.reads, shows=shows)
    steps, control = interpreter.steps(
        run.source.code,
        name=run.source.name,
        args=run.args,
        files=run.files,
        env=run.environment,
        collect=run.patterns,
        streams=lambda _: streams,
    )
    watcher.attach(control)
    try:
        result = run_blocking(steps, control)
        for file in report_files:
            file.write(result.report)
        return result, streams  # noqa: TRY300 - it is written in any case
    except Cancelled as cancelled:
        for file in report_files:
            file.write(cancelled.report)
        complain(cancelled.report, watcher.signal)
        leave(128 + watcher.signal)


def _show(result: CodeResult, stopped_by: int, name: str, *, wants_report: bool, wants_json: bool, quiet: bool) -> None:
    if wants_json:
        say_document(plain_json(result.to_json()))
        return
    if result.error is not None and result.error.traceback:
        pass_on(sys.stderr, result.error.traceback.encode())
    elif result.error is not None and result.error.type == "Exit" and not quiet:
        click.echo(f"stockade: {result.error.message}", err=True)
    if wants_report:
        show_report(result.report)
    elif not quiet:
        complain(result.report, stopped_by, "the code" if name in ("-c", "<stdin>") else printable(name))


def _status(result: CodeResult) -> int:
    """The exit status of a result: that of the code, where it has one."""
    if result.exit_code is None:
        return exit_status(result.report)
    return result.exit_code & 0xFF or (1 if result.exit_code else 0)


def _files(given: Sequence[str]) -> dict[str, bytes]:
    """Reads the files that the code finds, by their names there."""
    found: dict[str, bytes] = {}
    for text in given:
        host, separator, name = text.partition("::")
        path = Path(host)
        is_split = ":" in host and not path.exists()
        if not host or (separator and not name) or is_split:
            raise click.UsageError(f"--file {printable(text)}: write HOST, or HOST::NAME")
        name = name or path.name
        if name in found:
            raise click.UsageError(
                f"--file {printable(text)}: {printable(name)} is given twice: write HOST::NAME to name it otherwise"
            )
        found[name] = _bytes(path)
    return found


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read()
    except FileNotFoundError:
        raise ModuleNotFound(f"no file at {printable(str(path))}") from None
    except OSError as problem:
        raise UsageError(f"{printable(str(path))} cannot be read: {problem.strerror}") from None


def _read(path: Path) -> str:
    return _text(_bytes(path))


def _text(data: bytes) -> str:
    if len(data) >= _MOST_CODE_BYTES:
        raise UsageError(f"the code is longer than {_MOST_CODE_BYTES:,} bytes: put large data into files")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise UsageError(f"the code is not UTF-8 at byte {problem.start:,}") from None


python = _command(Python, "python", (".py",))
js = _command(JavaScript, "js", (".js", ".mjs"))
