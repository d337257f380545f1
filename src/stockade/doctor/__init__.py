"""What this machine can enforce, what a policy is worth here, and what to change for more."""

from stockade.doctor._diagnose import Diagnosis, Finding, diagnose
from stockade.doctor._facts import Facts, gather_facts

__all__ = ["Diagnosis", "Facts", "Finding", "diagnose", "gather_facts"]
