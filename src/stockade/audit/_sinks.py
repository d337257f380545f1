"""Sinks that pass events on to what Python has for logs."""

from __future__ import annotations

import json
import logging
import logging.handlers
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, Never

import msgspec

from stockade._text import quoted
from stockade.audit._events import Severity
from stockade.errors import AuditError

if TYPE_CHECKING:
    from stockade.audit._events import AuditEvent

__all__ = ["LoggingSink", "SyslogSink"]

_LEVELS: Final = {
    Severity.DETAIL: logging.DEBUG,
    Severity.NOTICE: logging.INFO,
    Severity.CRITICAL: logging.WARNING,
}

_PLAIN: Final = re.compile(r"[\w./:*<>+&@#-]+")

_LEFT_OUT: Final = frozenset({"event", "time", "seq", "writer"})


def _told(event: AuditEvent) -> str:
    """Returns an event as one line of text."""
    fields = msgspec.to_builtins(event)
    figures = fields.pop("figures", {})
    words = [f"{name}={_word(value)}" for name, value in (fields | figures).items() if name not in _LEFT_OUT]
    return " ".join([fields["event"], *words])


def _word(value: object) -> str:
    """Returns a value as one word, in quotes where it has spaces or could be taken for several fields."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else quoted(text, 2 * len(text))


class LoggingSink:
    """Passes events to `logging`: what was refused as warnings, runs as information, host functions for debugging.

    Each record has the event as `record.audit`.

    Args:
        logger: The name of the logger.
    """

    def __init__(self, logger: str = "stockade.audit") -> None:
        self._logger = logging.getLogger(logger)

    def __call__(self, event: AuditEvent) -> None:
        """Passes an event on."""
        level = _LEVELS[event.severity]
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", _told(event), extra={"audit": event})


class _Handler(logging.handlers.SysLogHandler):
    """A handler that does not keep its failures to itself."""

    append_nul = False
    ident = "stockade: "

    def handleError(self, record: logging.LogRecord) -> Never:  # noqa: ARG002, N802 - as logging calls it
        """Raises what went wrong, to whoever passes the event on."""
        raise


class SyslogSink:
    """Passes events to syslog, each as a line of JSON.

    Args:
        address: Where syslog is: the path of a socket, or a host and a port, which gets datagrams.
        facility: For which part of the system: `auth`, `authpriv`, `daemon`, `user`, `local0` to `local7`.

    Raises:
        AuditError: There is no such syslog.
    """

    def __init__(self, address: str | tuple[str, int] = "/dev/log", facility: str = "authpriv") -> None:
        number = _Handler.facility_names.get(facility)
        if number is None:
            raise AuditError(f"there is no facility {facility!r} of syslog: use one such as authpriv or local0")
        try:
            if isinstance(address, str):
                # The handler would wait for it to come.
                Path(address).stat()
            self._handler = _Handler(address, number)
        except OSError as problem:
            raise AuditError(f"syslog at {address!r} cannot be reached: {problem.strerror or problem}") from None

    def __call__(self, event: AuditEvent) -> None:
        """Passes an event on."""
        # In ASCII, whatever the other end takes text for.
        text = json.dumps(msgspec.to_builtins(event), separators=(",", ":"))
        level = _LEVELS[event.severity]
        self._handler.emit(logging.LogRecord("stockade.audit", level, "", 0, text, None, None))

    def close(self) -> None:
        """Lets go of the socket."""
        self._handler.close()
