"""What may happen: policies as plain frozen data. Nothing of the engine."""

from stockade.policy._model import Clock, Environment, Filesystem, Limits, Mount, Policy, Random, Wasi
from stockade.policy._units import parse_count, parse_seconds, parse_size

__all__ = [
    "Clock",
    "Environment",
    "Filesystem",
    "Limits",
    "Mount",
    "Policy",
    "Random",
    "Wasi",
    "parse_count",
    "parse_seconds",
    "parse_size",
]
