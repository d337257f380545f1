"""How much stands between a guest and the host, as a number with its reasons.

Every control that is enforced gives points, more the stricter it is set, none where it is not enforced; a policy that
permits more never gets a higher score. Labels stand for bands of it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

from stockade.policy._enforced import unenforceable
from stockade.policy._fields import fields_of
from stockade.policy._rights import WELL_TRIED, Features
from stockade.policy._units import shown, size_in_words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stockade.policy._policy import Policy

__all__ = ["Reason", "Score", "score"]

_BANDS = ((85, "fortress"), (70, "hardened"), (50, "standard"), (30, "basic"), (0, "minimal"))

Label = Literal["minimal", "basic", "standard", "hardened", "fortress"]


class Reason(NamedTuple):
    """What one control gives to a score.

    Attributes:
        control: Its name.
        points: What it gives.
        most: What it could give.
        why: Why it gives no more, or what it does.
    """

    control: str
    points: int
    most: int
    why: str


class Score(NamedTuple):
    """How much stands between a guest and the host.

    Attributes:
        value: From 0 to 100.
        label: `minimal` (0 to 29), `basic` (30 to 49), `standard` (50 to 69), `hardened` (70 to 84) or `fortress`.
        reasons: What it is made of; their points add up to the value.
    """

    value: int
    label: str
    reasons: tuple[Reason, ...]

    def __str__(self) -> str:
        return f"{self.value} ({self.label})"


def score(policy: Policy, isolation: str, walls: Iterable[str]) -> Score:
    """Rates a policy under an isolation, and the walls that were found to stand around it."""
    reasons = (
        Reason(
            "engine", 34, 34, "WebAssembly in wasmtime: the guest has its own memory and only the imports it is given"
        ),
        _process(isolation, frozenset(walls)),
        _network(policy),
        _files(policy),
        _quotas(policy),
        _time(policy),
        _memory(policy),
        _environment(policy),
        _clock(policy),
        _calls(policy),
        _features(policy),
        _violations(policy),
    )
    value = sum(reason.points for reason in reasons)
    return Score(value, next(label for least, label in _BANDS if value >= least), reasons)


_WALLS = {
    "seccomp": 6,
    "landlock": 5,
    "user": 2,
    "network": 2,
    "capabilities": 1,
    "mount": 1,
    "pid": 1,
    "ipc": 1,
}
"""What each wall of a jailed process gives; a process of its own gives one more."""


def _process(isolation: str, walls: frozenset[str]) -> Reason:
    if isolation == "inprocess":
        return Reason("process", 0, 20, "runs share the host's process: a bug in the engine exposes the host")
    standing = [wall for wall in _WALLS if wall in walls]
    missing = [wall for wall in _WALLS if wall not in walls]
    points = 1 + sum(_WALLS[wall] for wall in standing)
    if not standing:
        return Reason("process", points, 20, "a process of its own; no walls were found around it")
    why = "a jailed process of its own"
    return Reason("process", points, 20, f"{why}, without {', '.join(missing)}" if missing else why)


def _enforced(policy: Policy, path: str) -> bool:
    return path not in unenforceable(policy)


def _network(policy: Policy) -> Reason:
    points, why = {
        "none": (8, "no network access"),
        # Neither loopback nor hosts contains the other, so neither may give more.
        "loopback": (2, "can reach services on this machine"),
        "hosts": (2, "named hosts only"),
        "ports": (1, "any public host on some ports"),
        "full": (0, "any host, including private networks"),
    }[policy.network.mode]
    if policy.process.mode != "none":
        points, why = 0, "can start programs on the host"
    if not (_enforced(policy, "network.mode") and _enforced(policy, "process.mode")):
        points, why = 0, "not supported in this release"
    return Reason("network", points, 8, why)


def _files(policy: Policy) -> Reason:
    files = policy.filesystem
    modes = {mount.mode for mount in files.mounts if mount.only != ()}
    if not modes:
        return Reason("files", 8, 8, "no folders")
    if "rw" not in modes:
        return Reason("files", 5, 8, "read-only folders")
    if policy.on_violation == "audit":
        return Reason("files", 0, 8, 'writable folders, rights not enforced: on_violation is "audit"')
    points = 3 - files.create - files.delete - files.symlinks
    rights = [name for name in ("create", "delete", "symlinks") if getattr(files, name)]
    return Reason("files", max(points, 0), 8, f"writable folders{', with ' + ', '.join(rights) if rights else ''}")


_QUOTAS = ("read_bytes", "write_bytes", "file_size", "files_created", "random_bytes")


def _quotas(policy: Policy) -> Reason:
    missing = [name for name in _QUOTAS if getattr(policy.limits, name) is None]
    if policy.on_violation == "audit":
        return Reason("quotas", 0, 4, 'not enforced: on_violation is "audit"')
    points = max(0, 4 - len(missing))
    return Reason(
        "quotas", points, 4, f"no limit on {', '.join(missing)}" if missing else "files and random bytes are limited"
    )


def _time(policy: Policy) -> Reason:
    limits = policy.limits
    wall = math.inf if limits.wall_time is None else limits.wall_time
    points = 4 if wall <= 60 else 2 if wall <= 3600 else 0
    told = ["no time limit" if wall == math.inf else f"time limit {wall:g} s"]
    if not limits.metered:
        told.append("fuel not metered")
    elif limits.fuel_refill and limits.fuel_time is None:  # no refill adds to the fuel of a time
        told.append("fuel refilled")
        points += 1
    else:
        points += 2
        told.append("fuel metered")
    return Reason("time", points, 6, ", ".join(told))


def _memory(policy: Policy) -> Reason:
    size = policy.limits.memory
    points = 4 if size <= 256 << 20 else 3 if size <= 1 << 30 else 1
    return Reason("memory", points, 4, f"{size_in_words(size)} for memories and tables")


def _environment(policy: Policy) -> Reason:
    environment = policy.environment
    # What is set hides the host's variable of that name; what looks like a secret may be withheld.
    named = (
        [name for name in environment.names if name not in environment.set and environment.passes(name)]
        if environment.mode == "allow"
        else []
    )
    if environment.mode == "none" or (environment.mode == "allow" and not named):
        return Reason("environment", 4, 4, "no host variables")
    secret = [name for name in environment.named_secrets() if name in named]
    if environment.mode == "allow" and not secret:
        return Reason("environment", 3, 4, f"{len(named)} named variable{'s' * (len(named) > 1)}")
    if secret:
        return Reason("environment", 0, 4, f"passes secrets: {', '.join(map(shown, secret[:3]))}")
    return Reason("environment", 1, 4, "all variables that do not look like secrets")


def _clock(policy: Policy) -> Reason:
    clock = policy.clock
    if clock.mode in ("none", "virtual"):
        return Reason("clock", 3, 3, "no real clock")
    if clock.mode == "coarse":
        points = 2 if clock.resolution >= 1e-3 else 1
        return Reason("clock", points, 3, f"rounded down to {clock.resolution * 1e3:g} ms")
    return Reason("clock", 0, 3, "nanosecond resolution: allows cache timing attacks")


def _calls(policy: Policy) -> Reason:
    limits = policy.limits
    if policy.on_violation == "audit":
        return Reason("calls", 0, 4, 'not enforced: on_violation is "audit"')
    told = [name for name in ("calls", "call_rate") if getattr(limits, name) is not None]
    sockets = any(name.startswith("sock_") and name not in policy.wasi.refused() for name in _SOCKETS)
    points = 2 * (not sockets) + len(told)
    parts = ["socket calls are allowed" if sockets else "socket calls are refused"]
    parts.append("calls are limited" if told else "calls are not limited")
    return Reason("calls", points, 4, ", ".join(parts))


_SOCKETS = ("sock_accept", "sock_recv", "sock_send", "sock_shutdown")


def _features(policy: Policy) -> Reason:
    risky = [name for name in fields_of(Features) if getattr(policy.features, name) and name not in WELL_TRIED]
    return Reason(
        "features", max(0, 3 - len(risky)), 3, f"{', '.join(risky)} allowed" if risky else "mature proposals only"
    )


def _violations(policy: Policy) -> Reason:
    points, why = {
        "stop": (2, "the first violation ends the run"),
        "deny": (1, "a refused call fails, and the guest continues"),
        "audit": (0, "violations are allowed"),
    }[policy.on_violation]
    return Reason("violations", points, 2, why)
