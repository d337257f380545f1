"""A span of each run, for OpenTelemetry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stockade._bounded import BoundedDict
from stockade._text import printable
from stockade.audit import RunHook
from stockade.errors import UsageError

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

    from stockade.audit import RunInfo
    from stockade.report import Report

__all__ = ["OpenTelemetryHook"]

_MOST_UNDER_WAY: Final = 10_000


class OpenTelemetryHook(RunHook):
    """Makes a span of each run: give it to an `AuditLog` as a hook.

    The span is a child of the one that is current where the run was asked for. Only the API of OpenTelemetry is used:
    where the program has set up nothing, nothing is recorded.

    Args:
        tracer: What makes the spans; by default, that of the program for `stockade`.

    Raises:
        UsageError: `opentelemetry-api` is not installed.
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        try:
            from opentelemetry import trace
        except ImportError:
            raise UsageError(
                "opentelemetry-api is not installed, which makes spans: pip install 'stockade[otel]'"
            ) from None
        self._tracer = trace.get_tracer("stockade") if tracer is None else tracer
        self._failed = trace.StatusCode.ERROR
        self._spans: BoundedDict[str, Span] = BoundedDict(_MOST_UNDER_WAY)

    def before_run(self, run: RunInfo) -> None:
        """Begins a span."""
        attributes = {
            "stockade.run": run.run,
            "stockade.policy.name": run.policy_name,
            "stockade.policy.digest": run.policy,
            "stockade.module.name": run.module_name,
            "stockade.module.sha256": run.module,
        }
        for name, value in (("export", run.export), ("tenant", run.tenant), ("session", run.session)):
            if value:
                attributes[f"stockade.{name}"] = printable(value)
        self._spans.keep(run.run, self._tracer.start_span("stockade.run", attributes=attributes))

    def after_run(self, run: RunInfo, report: Report) -> None:
        """Ends it, with the outcome and the figures."""
        span = self._spans.pop(run.run, None)
        if span is None:
            return
        usage = report.usage
        span.set_attribute("stockade.outcome", report.outcome.value)
        span.set_attribute("stockade.memory_bytes", usage.memory_bytes)
        span.set_attribute("stockade.cpu_seconds", usage.cpu_seconds)
        if usage.fuel is not None:
            span.set_attribute("stockade.fuel", usage.fuel)
        for violation in report.violations[:8]:
            span.add_event(
                "stockade.violation",
                {"kind": violation.kind, "subject": printable(violation.subject), "count": violation.count},
            )
        if not report.ok:
            span.set_status(self._failed, printable(report.summary(), 400))
        span.end()

    def run_failed(self, run: RunInfo, problem: BaseException) -> None:
        """Ends it, where there is no report."""
        span = self._spans.pop(run.run, None)
        if span is not None:
            span.set_attribute("stockade.outcome", "error")
            span.set_status(self._failed, type(problem).__name__)
            span.end()
