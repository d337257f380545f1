"""From what was found to what it is worth, and what to change. A pure function of facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from stockade._text import printable
from stockade.jail import NAMESPACES, Wall
from stockade.policy import ISOLATIONS, stronger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stockade.doctor._facts import Facts
    from stockade.policy import Policy

__all__ = ["Diagnosis", "Finding", "State", "diagnose"]

State: TypeAlias = Literal["active", "partial", "missing", "ok", "low"]

_KNOWN_LANDLOCK: Final = 6
"""The version that has all that workers are confined by."""

_LACKS: Final = (
    (3, "to cut files is not confined"),
    (4, "TCP is not confined"),
    (5, "devices are not confined"),
    (6, "signals and abstract sockets are not confined"),
)

_ADVICE: Final[dict[Wall, str]] = {
    "user": (
        "allow user namespaces: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, or the container's "
        'profile; where only bubblewrap may have them, use isolation="bubblewrap"'
    ),
    "landlock": "boot Linux 5.13 or later with landlock in lsm=, and let the container's seccomp profile pass it",
    "seccomp": "use a kernel with CONFIG_SECCOMP_FILTER, and let the container's profile pass seccomp",
    "capabilities": "let the process drop its capabilities: the container's profile refuses capset",
}

_FEW_DESCRIPTORS: Final = 4096
_FEW_MAPS: Final = 65_530


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        name: What.
        state: `active`, `partial` or `missing` for walls; `ok` or `low` for what the machine has; `missing` for a file
            that cannot be followed, too.
        found: What was found.
        advice: What to change for more; empty where nothing is to be changed.
    """

    name: str
    state: State
    found: str
    advice: str = ""


class Diagnosis(msgspec.Struct, frozen=True):
    """What a machine can enforce.

    Attributes:
        system: The kernel, Python and wasmtime.
        findings: What was looked at.
        walls: The walls that stand around a jailed process here.
        policy: The policy that was rated.
        scores: What it is worth here under each isolation.
    """

    system: str
    findings: tuple[Finding, ...]
    walls: tuple[Wall, ...]
    policy: str
    scores: dict[str, int]

    def missing(self, required: frozenset[str] = frozenset()) -> tuple[str, ...]:
        """Returns the walls that do not stand.

        Args:
            required: Those that matter; all where none is named.
        """
        return tuple(
            finding.name
            for finding in self.findings
            if finding.state == "missing" and (not required or finding.name in required)
        )


def diagnose(facts: Facts, policy: Policy) -> Diagnosis:
    """Says what a machine can enforce, and what to change for more.

    Args:
        facts: What was found there.
        policy: The policy to be rated.
    """
    active = facts.jail.active
    return Diagnosis(
        system=f"{facts.system}, Python {facts.python}, wasmtime {facts.wasmtime}",
        findings=(*_walls(facts), *_removals(facts), *_resources(facts)),
        walls=tuple(step.wall for step in facts.jail.steps if step.wall in active),
        policy=policy.name,
        scores={
            name: policy.score(name, active if name == "process" else ()).value
            # What another command around it would give is not tried here.
            for name in ISOLATIONS
            if name != "bubblewrap" and stronger(name, policy.isolation) == name
        },
    )


def _walls(facts: Facts) -> Iterator[Finding]:
    steps = {step.wall: step for step in facts.jail.steps}
    no_user = "user" in steps and not steps["user"].active
    for wall, step in steps.items():
        if not step.active:
            advice = _ADVICE.get(wall, "")
            if wall in NAMESPACES and wall != "user":
                advice = "see user" if no_user else "let the container's profile pass unshare"
            yield Finding(wall, "missing", step.detail, advice)
        elif wall == "landlock" and facts.landlock < _KNOWN_LANDLOCK:
            lacks = [told for version, told in _LACKS if facts.landlock < version]
            yield Finding(wall, "partial", f"{step.detail}; {', '.join(lacks)}", "use Linux 6.12 or later")
        else:
            yield Finding(wall, "active", step.detail)


def _removals(facts: Facts) -> Iterator[Finding]:
    """Tells of the file of the user's own that takes system calls from workers, where there is one."""
    if facts.removed_problem:
        yield Finding(
            "system calls",
            "missing",
            facts.removed_problem,
            "mend the file that STOCKADE_SYSCALLS names: until then, nothing runs in a process of its own",
        )
    elif facts.removed:
        yield Finding("system calls", "ok", f"without {', '.join(facts.removed)}, by STOCKADE_SYSCALLS")


def _resources(facts: Facts) -> Iterator[Finding]:
    if facts.user == 0:
        yield Finding("account", "low", "root", "run as a user of its own, so that files of others are out of reach")
    elif facts.user is not None:
        yield Finding("account", "ok", f"user {facts.user}")
    if facts.cgroups:
        told = ", groups of its own" if facts.groups_writable else ""
        yield Finding(
            "cgroups",
            "ok",
            f"version {facts.cgroups}{told}; not used: limits are the engine's and the kernel's rlimits",
        )
    else:
        yield Finding("cgroups", "ok", "none; not used: limits are the engine's and the kernel's rlimits")
    if facts.pool:
        yield Finding("address space", "ok", "enough for the engine's pool")
    else:
        yield Finding(
            "address space", "low", "not enough for the engine's pool: runs take longer", "lift ulimit -v (RLIMIT_AS)"
        )
    soft, hard = facts.descriptors
    few = soft is not None and soft < _FEW_DESCRIPTORS
    yield Finding(
        "open files",
        "low" if few else "ok",
        f"{_amount(soft)} of at most {_amount(hard)}",
        "raise ulimit -n for more runs at once" if few else "",
    )
    if facts.maps is not None:
        few = facts.maps < _FEW_MAPS
        yield Finding("memory maps", "low" if few else "ok", f"{facts.maps:,}", "raise vm.max_map_count" if few else "")
    if facts.cache:
        yield Finding(
            "cache",
            "low",
            f"modules are compiled again in each process: {printable(facts.cache, 1000)}",
            "see stockade cache info",
        )
    else:
        yield Finding("cache", "ok", "compiled modules are kept on disk")


def _amount(value: int | None) -> str:
    return "any number" if value is None else f"{value:,}"
