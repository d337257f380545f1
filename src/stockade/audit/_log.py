"""The audit log: what sandboxes tell of runs, and where that goes."""

from __future__ import annotations

import atexit
import itertools
import os
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

from stockade._locks import new_lock
from stockade._text import printable
from stockade.audit._aside import Aside
from stockade.audit._chain_file import ChainFile
from stockade.audit._events import SEVERITIES, AuditEvent, EventName
from stockade.audit._hooks import RunHook
from stockade.audit._lines import lines_of, texts_of
from stockade.audit._outlet import Outlet, outlets
from stockade.audit._places import find_place
from stockade.audit._records import batched, events_of, figures_of
from stockade.errors import AuditError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

    from stockade.audit._lines import KindTexts, Line
    from stockade.audit._packed import KindFields
    from stockade.audit._records import Noted, RunKind
    from stockade.report import Usage

__all__ = ["AuditLog"]

_FLUSH_SECONDS: Final = 30.0
"""How long whoever has to know that events are there waits for that."""

_EXIT_SECONDS: Final = 5.0
"""How long the end of the process waits."""

_MANY: Final = 128
"""So many events at once are written by another process, where it is there: it takes them from here in less than a
tenth of the time that it takes to write them."""

_MOST_KINDS: Final = 4096
"""So many kinds of runs have records; runs of others are told as events. They are kept as long as the log."""

_logs: Final[weakref.WeakSet[AuditLog]] = weakref.WeakSet()


class _Quiet:
    """In the place of a queue: needs nobody to look after it."""

    alert = False

    def look(self) -> None:
        """Does nothing."""


_QUIET: Final = _Quiet()


def _check_list(name: str, given: object) -> None:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UsageError(f"{name} is {type(given).__name__}: it must be a list, as in {name}=[...]")


class AuditLog:
    """Where sandboxes tell what they do: in a file whose lines are tied by a key, and to sinks of yours.

    Give it to `Sandbox`, `Python` or `JavaScript`, to as many as you like. Any number of logs, threads and processes
    may write to one file. Runs do not wait for it, but where you ask for that. Use it as a context manager, or close
    it: that waits until all events are written.

    Args:
        path: The file: lines of JSON, which `stockade audit verify` checks. None for none.
        sinks: What else is given each event, on a thread of its own: functions, `LoggingSink`, `SyslogSink`, or those
            of `stockade.metrics`.
        hooks: What is called before and after each run, and may refuse it.
        key: The key that ties the lines: bytes. By default, one that is kept for the user, in the folder that
            `STOCKADE_STATE` names.
        fsync: When what was written is brought to the disk: `never`, as the system likes; `second`, at most once a
            second, and when the log is closed; `run`, before each run begins, and before its report is returned.
        required: Whether nothing may run, and no event may be lost, where a sink fails: runs raise `AuditError` until
            it works again, and wait where there is no room for events.

    Raises:
        AuditError: The file, its head or the key cannot be used.
        UsageError: An argument is unfit.

    Attributes:
        path: The file; None where there is none.
        writer: The name by which its events are known among those of others.
        hooks: What is called around each run.
        required: Whether nothing runs where a sink fails.
        blocks: Whether runs wait for something of it.
        noting: What whoever notes runs needs: whether `check` may raise; what adds the record of a run; what has to be
            looked after then, by `look`, where its `alert` says so; what returns the number of the next event.
        next_session: Returns the number of the next session.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        sinks: Sequence[Callable[[AuditEvent], object]] = (),
        hooks: Sequence[RunHook] = (),
        key: bytes | None = None,
        fsync: Literal["never", "second", "run"] = "second",
        required: bool = False,
    ) -> None:
        if fsync not in ("never", "second", "run"):
            raise UsageError(f'fsync is {printable(repr(fsync))}: it must be "never", "second" or "run"')
        if path is not None and not isinstance(path, str | os.PathLike):
            raise UsageError(f"path is {type(path).__name__}: give the path of the audit log")
        _check_list("sinks", sinks)
        _check_list("hooks", hooks)
        if path is None and not sinks and not hooks:
            raise UsageError("an audit log needs a file, a sink or a hook, as in AuditLog('audit.jsonl')")
        for sink in sinks:
            if not callable(sink):
                raise UsageError(f"a sink of an audit log is {type(sink).__name__}: it must be callable")
        for hook in hooks:
            if not isinstance(hook, RunHook):
                raise UsageError(f"a hook of an audit log is {type(hook).__name__}: it must be a RunHook")
        self.path: Path | None = None
        self.hooks = tuple(hooks)
        self.required = required
        self.blocks = bool(hooks) or fsync == "run" or required
        self._waits_for_disk = fsync == "run"
        self._closed = False
        self._file: ChainFile[Noted] | None = None
        self._aside: Aside | None = None
        self._kinds: dict[int, KindFields] = {}
        self._texts: dict[int, KindTexts] = {}
        self._kind_numbers: dict[KindFields, int] = {}
        self.writer = os.urandom(4).hex()
        self._lock = new_lock()
        self._next_number: Callable[[], int] = itertools.count(1).__next__
        self.next_session: Callable[[], int] = itertools.count(1).__next__
        made: list[Outlet] = []
        if path is not None:
            place = find_place(path)
            self._file = file = ChainFile(place, key, fsync, self._make, self._lines)
            self.path = place.path
            self._aside = aside = Aside(file, lambda: self.writer, self._texts)
            made.append(
                Outlet(
                    place.shown,
                    self._write,
                    self._make,
                    waits=required,
                    settle=file.sync if fsync == "second" else None,
                    feeder=aside,
                )
            )
        made += [
            Outlet(
                printable(getattr(sink, "__qualname__", type(sink).__name__)),
                _giving(sink, self._expand, again=required),
                self._make,
                waits=required,
            )
            for sink in sinks
        ]
        self._outlets = tuple(made)
        self._renew()
        _logs.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<AuditLog {'' if self.path is None else printable(str(self.path), 400)}>"

    @property
    def failures(self) -> int:
        """How often a sink has failed."""
        return sum(outlet.failures for outlet in self._outlets)

    @property
    def last_error(self) -> str:
        """How a sink has failed last; empty where none has."""
        return next((outlet.last_error for outlet in self._outlets if outlet.failing), "") or next(
            (outlet.last_error for outlet in self._outlets if outlet.last_error), ""
        )

    @property
    def failing(self) -> bool:
        """Whether a sink fails just now."""
        return any(outlet.failing for outlet in self._outlets)

    @property
    def dropped(self) -> int:
        """How many events were lost for want of room, each counted for each sink."""
        return sum(outlet.dropped for outlet in self._outlets)

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._closed

    def flush(self, seconds: float = _FLUSH_SECONDS) -> bool:
        """Waits until all events that were told are with the sinks, and on the disk where that was asked for.

        Args:
            seconds: The longest to wait.

        Returns:
            Whether they are. Called by a sink, it does not wait for that one.
        """
        end = time.monotonic() + seconds
        # Each of them, also where one does not take its events.
        taken = [outlet.flush(max(0.0, end - time.monotonic())) for outlet in self._outlets]
        return all(taken)

    def close(self, seconds: float = _FLUSH_SECONDS) -> None:
        """Waits until all events are with the sinks, and lets go of the file. Closing twice is harmless.

        Sandboxes that tell this log run nothing any more. Where a sink does not take its events, that is told by
        `logging`, and by `AuditLog.lost`.

        Args:
            seconds: The longest to wait.
        """
        self._closed = True
        self._renew()
        if not self.flush(seconds):
            for outlet in self._outlets:
                outlet.tell_lost()
        if self._aside is not None:
            self._aside.close()
        if self._file is not None:
            self._file.close()

    @property
    def lost(self) -> int:
        """How many events are not with a sink yet."""
        return sum(outlet.waiting for outlet in self._outlets)

    # -- for sandboxes ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Checks that something may run.

        Raises:
            UsageError: The log is closed.
            AuditError: A sink fails, and the log is required.
        """
        if self._closed:
            raise UsageError("the audit log is closed: make a new one, or close the sandbox first")
        if self.required and self.failing:
            raise AuditError(
                f"nothing runs, for the audit log cannot be written and is required: {self.last_error}. "
                "Runs go on when it can be written again"
            )

    def settle(self) -> None:
        """Waits until all is on the disk, where runs are to wait for that.

        Raises:
            AuditError: It is not, and the log is required.
        """
        if self._waits_for_disk and not self.flush() and self.required:
            raise AuditError(f"nothing runs, for the audit log cannot be written and is required: {self.last_error}")

    def note_run(self, record: bytes) -> None:
        """Passes on what was noted of a run."""
        for outlet in self._outlets:
            outlet.note_run(record)

    def _renew(self) -> None:
        """Finds where records go: with a single sink, nobody is in between."""
        outlet = self._outlets[0] if len(self._outlets) == 1 else None
        self.noting: tuple[bool, Callable[[bytes], None], Outlet | _Quiet, Callable[[], int]] = (
            self.required or self._closed,
            self.note_run if outlet is None else outlet.add,
            _QUIET if outlet is None else outlet,
            self._next_number,
        )

    def number_kind(self, kind: RunKind) -> None:
        """Has runs of a kind noted as records, unless there are too many kinds.

        Args:
            kind: The kind: one of many runs.
        """
        found = self._kind_numbers.get(kind.fields)
        if found is None and len(self._kinds) < _MOST_KINDS:
            with self._lock:
                found = len(self._kinds) + 1
                self._kinds[found] = kind.fields
                self._texts[found] = texts_of(kind.fields)
                self._kind_numbers[kind.fields] = found
        kind.number = found or 0

    def started(self, kind: RunKind, at: float) -> int:
        """Notes that a run begins; returns its number.

        Args:
            kind: What it has in common with others.
            at: The time.
        """
        seq = self._next_number()
        self._put(AuditEvent(EventName.RUN_STARTED, at, seq, self.writer, f"{self.writer}-{seq}", *kind.fields[0]))
        return seq

    def ended(
        self,
        kind: RunKind,
        run: int,
        outcome: str,
        exit_code: int | None = None,
        usage: Usage | None = None,
        reason: str = "",
    ) -> None:
        """Notes that a run is over.

        Args:
            kind: What it has in common with others.
            run: Its number.
            outcome: How it has ended.
            exit_code: The guest's exit code.
            usage: What it used; None where that is not known.
            reason: Why it came to no report.
        """
        seq, at = self._next_number(), time.time()
        figures = None if usage is None else figures_of(usage)
        name = f"{self.writer}-{run}"
        _, end, isolation = kind.fields
        self._put(
            AuditEvent(
                EventName.RUN_ENDED,
                at,
                seq,
                self.writer,
                name,
                *end,
                reason,
                str(outcome),
                exit_code,
                None,
                None,
                0,
                figures,
                isolation,
            )
        )

    def _put(self, event: AuditEvent) -> None:
        for outlet in self._outlets:
            outlet.put(event, SEVERITIES[event.event])

    def _write(self, noted: list[Noted]) -> None:
        """Writes a batch to the file, here or by the other process."""
        file, aside = self._file, self._aside
        assert file is not None
        assert aside is not None
        if (len(noted) < _MANY and not aside.is_unsure) or not aside.append(noted):
            file.append(noted)

    def tell(self, event: EventName, /, **fields: str | float | None) -> None:
        """Tells of an event.

        Args:
            event: What happened.
            **fields: Its fields, as `AuditEvent` has them.
        """
        self._put(AuditEvent(event, time.time(), self._next_number(), self.writer, **fields))  # type: ignore[arg-type]

    def _make(self, name: EventName, reason: str, count: int) -> AuditEvent:
        """Makes an event of the log's own."""
        reason = printable(reason, 400)
        return AuditEvent(name, time.time(), self._next_number(), self.writer, reason=reason, count=count)

    def _lines(self, noted: Sequence[Noted]) -> list[AuditEvent | Line]:
        return lines_of(noted, self.writer, self._texts)

    def _expand(self, noted: Sequence[Noted]) -> list[AuditEvent]:
        return events_of(noted, self.writer, self._kinds)

    def after_fork(self) -> None:
        """Begins anew in a forked process: what waits, and who writes, are the parent's."""
        self._renew()
        self.writer = os.urandom(4).hex()
        if self._aside is not None:
            self._aside.forget()
        if self._file is not None:
            # The lock belongs to what is open, which is the parent's, too.
            self._file.close()


def _giving(
    sink: Callable[[AuditEvent], object], expand: Callable[[Sequence[Noted]], list[AuditEvent]], *, again: bool
) -> Callable[[list[Noted]], Exception | None]:
    """Returns what gives events to a sink, one by one.

    Args:
        sink: The sink.
        expand: Makes events of what was noted.
        again: Whether an event that it has raised for is given to it again, and those behind it wait: then that is
            raised. Else it is returned, and the sink goes on with the next.
    """

    def give(noted: list[Noted]) -> Exception | None:
        failed: Exception | None = None
        done = 0
        try:
            for event in itertools.chain.from_iterable(map(expand, batched(noted))):
                try:
                    sink(event)
                except Exception as problem:
                    failed = problem
                except BaseException as problem:
                    # It would end the thread, and nobody would be told anything any more.
                    failed = RuntimeError(f"the sink raised {type(problem).__name__}")
                    failed.__cause__ = problem
                if failed is not None and again:
                    raise failed
                done += 1
        finally:
            del noted[:done]
        return failed

    return give


def _close_all() -> None:
    Outlet.process_ends = True
    for log in list(_logs):
        if not log.closed:
            log.close(_EXIT_SECONDS)
    for outlet in list(outlets):
        outlet.flush(_EXIT_SECONDS)


def _after_fork() -> None:
    for outlet in list(outlets):
        outlet.begin_anew()
    for log in list(_logs):
        log.after_fork()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
