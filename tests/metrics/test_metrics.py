"""Figures for Prometheus, and spans for OpenTelemetry. Holds P-METRICS-1."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest

import stockade
from stockade import AuditLog, Limits, Policy, Sandbox, UsageError
from stockade.audit import EventName
from stockade.metrics import OpenTelemetryHook, PrometheusSink
from tests.audit._logs import GUEST


def test_runs_are_counted_with_their_outcomes_and_figures() -> None:
    """As they are in the report."""
    registry = CollectorRegistry()
    with AuditLog(sinks=[PrometheusSink(registry)]) as log, Sandbox("strict", audit=log) as box:
        reports = [box.run(GUEST), box.call(GUEST, "add", 1, 2), box.call(GUEST, "trap")]
        stopped = box.call(GUEST, "spin", policy=Policy(limits=Limits(fuel=5000)))
        with box.open(GUEST):
            log.flush()
            assert registry.get_sample_value("stockade_sessions_open") == 1
        with pytest.raises(stockade.ModuleError):
            box.run(b"\0asm\1\0\0\0\xff")
        log.flush()

        def value(name: str, **labels: str) -> float | None:
            return registry.get_sample_value(f"stockade_{name}", labels)

        assert value("runs_total", outcome="ok", policy="strict") == 2
        assert value("runs_total", outcome="trap", policy="strict") == 1
        assert value("runs_total", outcome="fuel", policy="default & strict") == 1
        assert value("runs_active") == value("sessions_open") == 0
        assert value("run_fuel_total") == sum(report.usage.fuel or 0 for report in (*reports, stopped))
        assert value("run_seconds_count") == 4
        assert value("run_seconds_sum") == pytest.approx(
            sum(report.usage.wall_seconds for report in (*reports, stopped))
        )
        assert value("wasi_calls_total") == 1
        assert value("violations_total", kind="fuel") == 1
        assert value("modules_refused_total", reason="InvalidModule") == 1


def test_no_label_is_a_guests_choice_and_none_has_many_values() -> None:
    """Else each name that a guest makes up is a series for ever."""
    registry = CollectorRegistry()
    with AuditLog(sinks=[PrometheusSink(registry, most_policies=4)]) as log:
        for number in range(100):
            log.tell(EventName.POLICY_USED, policy=f"digest {number}", name=f"policy {number}")
            log.tell(EventName.RUN_ENDED, policy=f"digest {number}", outcome=f"outcome {number}", name=f"name {number}")
            log.tell(EventName.DENIED, name=f"kind {number}", subject=f"path {number}")
            log.tell(EventName.MODULE_REFUSED, subject=f"reason {number}")
        log.flush()

    lines = generate_latest(registry).decode().splitlines()

    assert len([line for line in lines if line.startswith("stockade_runs_total{")]) == 5
    assert 'stockade_runs_total{outcome="other",policy="other"} 96.0' in lines
    assert 'stockade_violations_total{kind="other"} 100.0' in lines
    assert 'stockade_modules_refused_total{reason="other"} 100.0' in lines


def test_metrics_are_registered_once() -> None:
    """A second sink would count into the same names."""
    registry = CollectorRegistry()
    PrometheusSink(registry)
    PrometheusSink(registry, namespace="other")

    with pytest.raises(UsageError, match="the metrics cannot be registered: Duplicated"):
        PrometheusSink(registry)


@pytest.fixture
def spans() -> tuple[InMemorySpanExporter, TracerProvider]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter, provider


def test_each_run_is_a_span(spans: tuple[InMemorySpanExporter, TracerProvider]) -> None:
    """Of the one that is current where it was asked for, also where others take its steps."""
    exporter, provider = spans
    tracer = provider.get_tracer("test")
    with (
        AuditLog(hooks=[OpenTelemetryHook(tracer)]) as log,
        Sandbox("strict", audit=log) as box,
        tracer.start_as_current_span("request") as request,
    ):
        box.call(GUEST, "add", 1, 2)
        asyncio.run(box.call_async(GUEST, "spin", policy=Policy(limits=Limits(fuel=5000))))
        with pytest.raises(stockade.LinkError):
            box.call(GUEST, "missing\n")

    ok, fuel, missing, _ = exporter.get_finished_spans()
    for span in (ok, fuel, missing):
        assert span.name == "stockade.run"
        assert span.parent is not None
        assert span.parent.span_id == request.get_span_context().span_id
        assert span.attributes is not None
        assert span.attributes["stockade.module.sha256"] == GUEST.sha256
    assert ok.attributes is not None
    assert (ok.attributes["stockade.outcome"], ok.attributes["stockade.export"]) == ("ok", "add")
    assert ok.status.is_ok
    assert not fuel.status.is_ok
    assert fuel.events[0].name == "stockade.violation"
    assert missing.attributes is not None
    assert missing.attributes["stockade.outcome"] == "error"
    assert missing.attributes["stockade.export"] == r"missing\x0a"
    assert missing.status.description == "LinkError"


def test_without_a_provider_nothing_is_recorded_and_runs_go_on() -> None:
    """Only the API is used."""
    with AuditLog(hooks=[OpenTelemetryHook()]) as log, Sandbox(audit=log) as box:
        assert box.call(GUEST, "add", 1, 2).value == 3


@pytest.mark.parametrize("package", ["prometheus_client", "opentelemetry"])
def test_what_is_not_installed_is_told_and_loaded_by_nobody_else(package: str) -> None:
    """Each is an extra."""
    make = "PrometheusSink" if package == "prometheus_client" else "OpenTelemetryHook"
    code = (
        "import sys, stockade, stockade.metrics\n"
        "with stockade.AuditLog(sinks=[print]) as log: pass\n"
        f"assert {package!r} not in sys.modules\n"
        f"sys.modules[{package!r}] = None\n"
        f"try: stockade.metrics.{make}()\n"
        "except stockade.UsageError as problem: print(problem)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "is not installed" in done.stdout
    assert "pip install 'stockade[" in done.stdout
