"""What a gate has found in what leaves a run, as frozen data."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

__all__ = ["Finding", "Verdict"]


class Verdict(StrEnum):
    """What becomes of what leaves a run. The later one is the more severe."""

    ALLOW = "allow"
    """It leaves."""
    WARN = "warn"
    """It leaves, and what was found is reported."""
    REDACT = "redact"
    """What was found is replaced by its name; the rest leaves."""
    QUARANTINE = "quarantine"
    """Nothing leaves: it is kept aside, until somebody releases it."""
    BLOCK = "block"
    """Nothing leaves, and nothing is kept."""

    @property
    def severity(self) -> int:
        """Its place, from 0 for `allow` to 4 for `block`."""
        return _ORDER[self]

    @property
    def withholds(self) -> bool:
        """Whether all is held back, and not only what was found."""
        return self.severity >= _ORDER[Verdict.QUARANTINE]


_ORDER = {verdict: place for place, verdict in enumerate(Verdict)}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a gate has found, and how often.

    Attributes:
        kind: What it is: a registered secret, a key of a known form, personal data, or text as random as a key.
        detector: What has found it, such as `github-token`; for a registered secret, the name that it has here.
        channel: Where: `stdout`, `stderr`, `value`, `error`, `report`, `request`, or `file` and a name.
        verdict: What became of it.
        offset: Where it begins, in bytes from the beginning of the channel, the first time.
        length: How long it is there, in bytes.
        evidence: What it looks like: four characters at each end at most, and half of it at most. Of a registered
            secret, nothing.
        count: How often it was found there.
    """

    kind: Literal["secret", "key", "personal", "entropy"]
    detector: str
    channel: str
    verdict: Verdict
    offset: int = 0
    length: int = 0
    evidence: str = ""
    count: int = 1
