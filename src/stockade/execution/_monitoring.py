"""Samples and alerts: what a run uses, looked at in its course, where somebody asked for it.

A run is looked at when it has halted anyway, as it does every hundredth of a second, and in the end. So nothing is
missed in the end; the moment at which something is seen is as exact as the guest halts often. Nothing is done for a run
of which nobody asked anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from stockade._outside import call_outside
from stockade._text import printable
from stockade.errors import UsageError
from stockade.report import Alert, RunLimits, Sample, check_share

if TYPE_CHECKING:
    from stockade.report import LimitUse, Progress, Report

__all__ = ["Monitoring", "RunMonitor", "check_monitoring"]

_MOST_SAMPLES: Final = 512
"""How many samples are kept of a run, so that memory is bounded however long it takes."""

_SAMPLE_SECONDS: Final = 0.001
"""How far samples are apart at first; twice as far whenever there is no room for more."""

_ALERT_SECONDS: Final = 0.005
"""How often limits are held against thresholds, at most."""

_NOT_MEASURED: Final = ("stack", "file_size")
"""Limits of whose use nothing is known before it is too much."""


@dataclass(frozen=True, kw_only=True)
class Monitoring:
    """What a sandbox watches of its runs, beside what every report tells.

    Args:
        samples: Whether reports have samples over time, at most 512 each: for `Report.to_html`.
        alerts: Of which use of limits to tell: a share such as 0.8, for all limits; or shares for some of them by their
            names, `{"memory": 0.9, "fuel": (0.5, 0.9)}`. Each is told once in a run. Asking for more than a limit
            allows counts as all of it.
        on_alert: Is given each `Alert`, on the thread that drives the run, when the guest has halted: within about 10
            ms while it computes, when it goes on where it waits, at the latest in the end. What it raises ends the run,
            and is raised by whoever runs it.

    Raises:
        UsageError: A share is none, there is no such limit, or nothing would ever be told.
    """

    samples: bool = False
    alerts: float | Mapping[str, float | Iterable[float]] = field(default_factory=dict)
    on_alert: Callable[[Alert], object] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.samples, bool):
            raise UsageError(f"samples is {self.samples!r}: it must be True or False")
        if self.on_alert is not None and not callable(self.on_alert):
            raise UsageError(f"on_alert is {type(self.on_alert).__name__}: give a function, or None")
        object.__setattr__(self, "_thresholds", _thresholds(self.alerts))
        if self.on_alert is not None and not self.thresholds:
            raise UsageError("on_alert is never called: say with alerts of which limits to tell, such as alerts=0.8")

    @property
    def thresholds(self) -> tuple[tuple[str, float], ...]:
        """The shares of limits that are told of."""
        found: tuple[tuple[str, float], ...] = self.__dict__["_thresholds"]
        return found


def check_monitoring(monitoring: object) -> Monitoring | None:
    """Returns what is to be watched.

    Args:
        monitoring: What was given as `monitoring`.

    Raises:
        UsageError: It is something else.
    """
    if monitoring is None or isinstance(monitoring, Monitoring):
        return monitoring
    raise UsageError(f"monitoring is {type(monitoring).__name__}: give stockade.Monitoring(...)")


def _thresholds(alerts: object) -> tuple[tuple[str, float], ...]:
    if not isinstance(alerts, Mapping):
        share = check_share(alerts, "alerts")
        return tuple((name, share) for name in RunLimits.__struct_fields__ if name not in _NOT_MEASURED)
    found: set[tuple[str, float]] = set()
    for name, shares in alerts.items():
        if name not in RunLimits.__struct_fields__ or name in _NOT_MEASURED:
            known = ", ".join(known for known in RunLimits.__struct_fields__ if known not in _NOT_MEASURED)
            raise UsageError(
                f"alerts names {printable(str(name))}, which is no limit that is measured: those are {known}"
            )
        several = shares if isinstance(shares, Iterable) and not isinstance(shares, str | bytes) else (shares,)
        found.update((name, check_share(share, f"alerts[{name!r}]")) for share in several)
    return tuple(sorted(found))


class RunMonitor:
    """Watches one guest, from one report to the next.

    Args:
        monitoring: What is asked for.
    """

    __slots__ = ("_alerts", "_next_alert", "_next_sample", "_samples", "_step", "_waiting_for", "asked")

    def __init__(self, monitoring: Monitoring) -> None:
        self.asked = monitoring
        self.begin()

    def begin(self) -> None:
        """Forgets what was, for the next call."""
        self._samples: list[Sample] = []
        self._alerts: list[Alert] = []
        self._waiting_for = list(self.asked.thresholds)
        self._step = _SAMPLE_SECONDS
        self._next_sample = self._next_alert = 0.0

    def look(self, progress: Callable[[], Progress | None], run_id: str | None) -> None:
        """Takes a sample, and tells of what is reached, where it is time.

        Args:
            progress: Says how far the guest is.
            run_id: What the run is called.
        """
        now = time.monotonic()
        wants_sample = self.asked.samples and now >= self._next_sample
        wants_alert = bool(self._waiting_for) and now >= self._next_alert
        if not (wants_sample or wants_alert):
            return
        told = progress()
        if told is None:
            return
        if wants_sample:
            self._next_sample = now + self._step
            self._keep(_sample(told))
        if wants_alert:
            self._next_alert = now + _ALERT_SECONDS
            self._tell(told.limits_used, told.seconds, told.module, run_id)

    def finish(self, report: Report, run_id: str | None) -> Report:
        """Adds what was seen to a report, and what is to be told in the end.

        Args:
            report: The report.
            run_id: What the run is called.
        """
        usage = report.usage
        seen: dict[str, object] = {}
        if self.asked.samples:
            first = Sample(
                at=0.0,
                fuel=None if usage.fuel is None else 0,
                memory_bytes=usage.memory_bytes - usage.memory_grown_bytes,
            )
            seen["samples"] = (first, *self._samples, _last(report))
        if self._waiting_for:
            self._tell(report.limits_used, usage.wall_seconds, report.module.name, run_id)
        if self._alerts:
            seen["alerts"] = tuple(self._alerts)
        return msgspec.structs.replace(report, **seen) if seen else report

    def _keep(self, sample: Sample) -> None:
        self._samples.append(sample)
        if len(self._samples) >= _MOST_SAMPLES - 2:
            # The whole run in as much memory, whatever its length: every other one goes, and those that come are as far
            # apart as those that stay, which may be farther than was asked for.
            del self._samples[::2]
            seconds = self._samples[-1].at - self._samples[0].at
            self._step = max(2 * self._step, seconds / len(self._samples))

    def _tell(self, limits: Iterable[LimitUse], at: float, module: str, run_id: str | None) -> None:
        shares = {use.name: (1.0 if use.exceeded else use.utilization, use) for use in limits}
        for name, threshold in tuple(self._waiting_for):
            share, use = shares.get(name, (None, None))
            if use is None or share is None or share < threshold or use.limit is None:
                continue
            # First: a callback that raises must not be told the same again.
            self._waiting_for.remove((name, threshold))
            alert = Alert(
                limit=name,
                threshold=threshold,
                utilization=share,
                used=use.used or 0.0,
                allowed=use.limit,
                at=at,
                module=module,
                run_id=run_id or "",
            )
            self._alerts.append(alert)
            if self.asked.on_alert is not None:
                call_outside(self.asked.on_alert, alert)


def _sample(progress: Progress) -> Sample:
    return Sample(
        at=progress.seconds,
        fuel=progress.fuel,
        memory_bytes=progress.memory_bytes,
        read_bytes=progress.read_bytes,
        written_bytes=progress.written_bytes,
        output_bytes=progress.stdout_bytes + progress.stderr_bytes,
        calls=progress.calls,
        violations=progress.violations,
    )


def _last(report: Report) -> Sample:
    usage = report.usage
    return Sample(
        at=usage.wall_seconds,
        fuel=usage.fuel,
        memory_bytes=usage.memory_bytes,
        read_bytes=usage.read_bytes,
        written_bytes=usage.written_bytes,
        output_bytes=usage.stdout_bytes + usage.stderr_bytes,
        calls=sum(usage.calls.values()) + usage.host_calls,
        violations=sum(violation.count for violation in report.violations) + report.violations_dropped,
    )
