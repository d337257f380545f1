"""What leaves a run is looked at before anybody gets it: for registered secrets, and for what a policy names."""

from stockade.gate._gate import Gate, Scan, worst_of
from stockade.gate._secrets import SecretFinder, checked_secrets
from stockade.gate._stream import GateStream
from stockade.policy import GateRules
from stockade.report import Finding, Verdict

__all__ = [
    "Finding",
    "Gate",
    "GateRules",
    "GateStream",
    "Scan",
    "SecretFinder",
    "Verdict",
    "checked_secrets",
    "worst_of",
]
