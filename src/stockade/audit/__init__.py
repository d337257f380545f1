"""What sandboxes do, told as it happens: to a file that nobody changes unseen, to logs, to functions, to hooks.

`stockade.AuditLog` is where it begins: `Sandbox(policy, audit=AuditLog("audit.jsonl"))`.
"""

from stockade._log_levels import set_log_level
from stockade.audit._events import AuditEvent, EventName, RunFigures, RunInfo, Severity
from stockade.audit._hooks import RunHook
from stockade.audit._log import AuditLog
from stockade.audit._packed import ENDED, STARTED, pack
from stockade.audit._places import key_from
from stockade.audit._records import RunKind
from stockade.audit._sinks import LoggingSink, SyslogSink
from stockade.audit._verify import AuditCheck, AuditFinding, verify

__all__ = [
    "ENDED",
    "STARTED",
    "AuditCheck",
    "AuditEvent",
    "AuditFinding",
    "AuditLog",
    "EventName",
    "LoggingSink",
    "RunFigures",
    "RunHook",
    "RunInfo",
    "RunKind",
    "Severity",
    "SyslogSink",
    "key_from",
    "pack",
    "verify",
]

set_log_level()
