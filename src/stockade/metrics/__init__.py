"""Figures of all runs for Prometheus, and a span of each for OpenTelemetry; each is loaded when it is used.

Both are given to an audit log: `AuditLog(sinks=[PrometheusSink()], hooks=[OpenTelemetryHook()])`.
"""

from stockade.metrics._otel import OpenTelemetryHook
from stockade.metrics._prometheus import PrometheusSink

__all__ = ["OpenTelemetryHook", "PrometheusSink"]
