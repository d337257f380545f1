"""What may happen: policies as plain frozen data. Nothing of the engine."""

from stockade.policy._model import Filesystem, Limits, Mount, Policy
from stockade.policy._units import parse_count, parse_seconds, parse_size

__all__ = ["Filesystem", "Limits", "Mount", "Policy", "parse_count", "parse_seconds", "parse_size"]
