"""Figures of all runs, as Prometheus collects them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stockade.audit import EventName
from stockade.errors import UsageError
from stockade.report import Outcome

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from stockade.audit import AuditEvent

__all__ = ["PrometheusSink"]

_OTHER: Final = "other"

_OUTCOMES: Final = frozenset({*(outcome.value for outcome in Outcome), "error"})

_KINDS: Final = frozenset(
    {
        *("memory", "table", "fuel", "timeout", "stack", "idle", "calls", "call_rate", "open_files", "files_created"),
        *("file_size", "read_bytes", "write_bytes", "read_rate", "write_rate", "random_bytes", "value", "call"),
        *("create", "delete", "symlinks", "path", "hook", "output"),
    }
)
"""Kinds of violations that have a label of their own."""

_REFUSALS: Final = frozenset({"ModuleNotFound", "InvalidModule", "LinkError"})

_SECONDS: Final = (0.00005, 0.0002, 0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
_BYTES: Final = tuple(float(1 << shift) for shift in range(16, 34, 2))


class PrometheusSink:
    """Counts runs for Prometheus: give it to an `AuditLog` as a sink.

    Labels have few values, which no guest chooses: the outcome, the kind of a violation, and the names of the first
    policies. There is none for tenants, modules or functions.

    Args:
        registry: Where the metrics are registered; by default, where `prometheus_client` has its own.
        namespace: What their names begin with.
        most_policies: How many policies have a label of their own; all others are `other`.

    Raises:
        UsageError: `prometheus_client` is not installed, or there are metrics of these names already.
    """

    def __init__(
        self, registry: CollectorRegistry | None = None, *, namespace: str = "stockade", most_policies: int = 32
    ) -> None:
        try:
            from prometheus_client import REGISTRY, Counter, Gauge, Histogram
        except ImportError:
            raise UsageError(
                "prometheus_client is not installed, which counts for Prometheus: pip install 'stockade[metrics]'"
            ) from None
        where = REGISTRY if registry is None else registry
        self._registry = where
        self._most_policies = most_policies
        # By their digests: what has a label, and what is to have one.
        self._policies: dict[str, str] = {}

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(name, told, labels, namespace=namespace, registry=where)

        try:
            self._runs = counter("runs", "Runs that are over.", "outcome", "policy")
            self._active = Gauge("runs_active", "Runs under way.", namespace=namespace, registry=where)
            self._seconds = Histogram(
                "run_seconds",
                "Seconds from the first instruction of a run to the last.",
                namespace=namespace,
                registry=where,
                buckets=_SECONDS,
            )
            self._memory = Histogram(
                "run_memory_bytes",
                "Bytes that memories and tables of a run had at its end.",
                namespace=namespace,
                registry=where,
                buckets=_BYTES,
            )
            self._cpu = counter("run_cpu_seconds", "Seconds of processor time of all runs.")
            self._fuel = counter("run_fuel", "Units of fuel of all runs.")
            self._calls = counter("wasi_calls", "WASI calls of guests.")
            self._denied = counter("wasi_calls_denied", "WASI calls of guests that the policy refused.")
            self._host_calls = counter("host_calls", "Calls of host functions.")
            self._bytes = counter("io_bytes", "Bytes that guests have read or written.", "stream")
            self._violations = counter("violations", "What guests were denied, and limits that they reached.", "kind")
            self._refused = counter("modules_refused", "Modules that cannot be run.", "reason")
            self._sessions = Gauge("sessions_open", "Sessions that are open.", namespace=namespace, registry=where)
            self._dropped = counter("events_dropped", "Events for which there was no room.")
        except ValueError as problem:
            raise UsageError(f"the metrics cannot be registered: {problem}. Make one PrometheusSink") from None

    def __call__(self, event: AuditEvent) -> None:
        """Counts an event."""
        match event.event:
            case EventName.POLICY_USED:
                if len(self._policies) < self._most_policies:
                    self._policies.setdefault(event.policy, event.name or _OTHER)
            case EventName.RUN_STARTED:
                self._active.inc()
            case EventName.RUN_ENDED:
                self._count_run(event)
            case EventName.DENIED | EventName.LIMIT_REACHED:
                self._violations.labels(_known(event.name, _KINDS)).inc(max(1, event.count))
            case EventName.MODULE_REFUSED:
                self._refused.labels(_known(event.subject, _REFUSALS)).inc()
            case EventName.SESSION_OPENED:
                self._sessions.inc()
            case EventName.SESSION_CLOSED:
                self._sessions.dec()
            case EventName.EVENTS_DROPPED:
                self._dropped.inc(event.count)
            case _:
                pass

    def _count_run(self, event: AuditEvent) -> None:
        self._active.dec()
        self._runs.labels(_known(event.outcome, _OUTCOMES), self._policies.get(event.policy, _OTHER)).inc()
        figures = event.figures
        if figures is None:
            return
        self._seconds.observe(figures.wall_seconds)
        self._memory.observe(figures.memory_bytes)
        self._cpu.inc(figures.cpu_seconds)
        self._fuel.inc(figures.fuel or 0)
        self._calls.inc(figures.calls)
        self._denied.inc(figures.denied)
        self._host_calls.inc(figures.host_calls)
        for stream, size in (
            ("read", figures.read_bytes),
            ("written", figures.written_bytes),
            ("stdout", figures.stdout_bytes),
            ("stderr", figures.stderr_bytes),
        ):
            if size:
                self._bytes.labels(stream).inc(size)


def _known(name: str, names: frozenset[str]) -> str:
    return name if name in names else _OTHER
