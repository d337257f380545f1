"""What leaves a run is looked at before anybody gets it: for registered secrets, and for what a policy names."""

from typing import TYPE_CHECKING

from stockade._later import called_later, found_later
from stockade.gate._finder import Span
from stockade.gate._gate import Gate, Scan, worst_of
from stockade.gate._run import GateRun, Given, violation_of
from stockade.gate._secrets import SecretFinder, checked_secrets
from stockade.gate._stream import GateStream
from stockade.policy import GateRules
from stockade.report import Finding, Verdict

if TYPE_CHECKING:
    from stockade.gate._quarantine import Quarantined, quarantined, quarantined_as, remove_leftovers
else:
    quarantined = called_later("stockade.gate._quarantine", "quarantined")
    quarantined_as = called_later("stockade.gate._quarantine", "quarantined_as")
    remove_leftovers = called_later("stockade.gate._quarantine", "remove_leftovers")
    __getattr__ = found_later(__name__, {"_quarantine": ("Quarantined",)})

__all__ = [
    "Finding",
    "Gate",
    "GateRules",
    "GateRun",
    "GateStream",
    "Given",
    "Quarantined",
    "Scan",
    "SecretFinder",
    "Span",
    "Verdict",
    "checked_secrets",
    "quarantined",
    "quarantined_as",
    "remove_leftovers",
    "violation_of",
    "worst_of",
]
