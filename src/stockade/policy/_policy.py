"""A whole policy: its parts under one name."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec

from stockade.errors import PolicyError, UsageError
from stockade.policy._custom import CUSTOM, Custom, grants
from stockade.policy._fields import Part, Plain, Section, Text, fields_of, suggestion
from stockade.policy._frozen import FrozenDict
from stockade.policy._gate import GATE_CHANNELS, GateRules
from stockade.policy._limits import Limits
from stockade.policy._network import Network
from stockade.policy._rights import Clock, Environment, Features, Filesystem, Process, Random, Wasi
from stockade.policy._structure import ModuleLimits
from stockade.policy._units import shown

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Unpack

    from stockade.policy._algebra import Change
    from stockade.policy._changes import PolicyChanges, PolicyFields
    from stockade.policy._explain import PolicyStatement
    from stockade.policy._score import Score

__all__ = ["Policy"]


class Policy(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a guest may do. Whatever is not named here, it may not.

    Attributes:
        name: A name for reports.
        on_violation: What a violation does: `deny`, the call is refused and the guest goes on; `stop`, the run ends
            with outcome `denied`, also where memory or a table may not grow; `audit`, the call is made all the same,
            and reported: for learning.
        isolation: Where runs happen at least: `inprocess`, in the host's process or in one of their own, as the caller
            likes; `process`, each in a jailed process of its own, and nowhere else.
        limits: How much it may use.
        filesystem: Which folders it may reach, and what it may do there.
        environment: Which environment variables it sees.
        clock: What time it sees.
        random: What randomness it gets.
        network: Which hosts it may reach.
        process: Which commands of the host it may start.
        gate: What is looked for in what leaves a run, and what becomes of it.
        structure: What a module may be made of.
        features: Which WebAssembly proposals it may use.
        wasi: Which WASI calls it may make.
        custom: Capabilities that host functions ask for, by name: true or false, text, a list of texts, or an amount
            with its bounds, as `{ value = 4, min = 1, max = 8 }`.
    """

    PATH: ClassVar = ""

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[PolicyFields]) -> None: ...

    name: Annotated[str, Text("text", check=lambda name: 0 < len(name) <= 1000)] = "default"
    on_violation: Literal["deny", "stop", "audit"] = "deny"
    isolation: Literal["inprocess", "process"] = "inprocess"
    limits: Limits = Limits()
    filesystem: Filesystem = Filesystem()
    environment: Environment = Environment()
    clock: Clock = Clock()
    random: Random = Random()
    network: Network = Network()
    process: Process = Process()
    gate: GateRules = GateRules()
    structure: ModuleLimits = ModuleLimits()
    features: Features = Features()
    wasi: Wasi = Wasi()
    custom: Annotated[FrozenDict[Custom], CUSTOM] = FrozenDict()

    @classmethod
    def preset(cls, name: str) -> Policy:
        """Returns a policy that comes with Stockade.

        Args:
            name: `default`, `minimal`, `strict`, `basic`, `development` or `permissive`.

        Raises:
            PolicyError: There is none of that name.
        """
        from stockade.policy._presets import preset

        return preset(name)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Policy:
        """Reads a policy from a file in TOML, YAML (`.yaml`, `.yml`) or JSON (`.json`).

        Relative mount paths are relative to the file.

        Raises:
            PolicyError: The file cannot be read, or is not a policy; the message names all that is wrong with it.
        """
        from stockade.policy._document import read_policy

        if not isinstance(path, str | os.PathLike):
            raise UsageError(f"the path of the policy file is {shown(path)}: give text or a Path")
        return read_policy(Path(os.fsdecode(path)))

    @classmethod
    def loads(cls, text: str, format: Literal["toml", "yaml", "json"] = "toml") -> Policy:  # noqa: A002 - the usual word
        """Reads a policy from text.

        Args:
            text: The text.
            format: What it is written in.

        Raises:
            PolicyError: The text is not a policy; the message names all that is wrong with it.
        """
        from stockade.policy._document import parse_policy

        return parse_policy(text, format)

    def to_toml(self) -> str:
        """Returns the policy as a TOML document that says every field."""
        from stockade.policy._toml import write_toml

        return write_toml(self)

    def replace(self, **changes: Unpack[PolicyChanges]) -> Policy:
        """Returns this policy with changes.

        Args:
            **changes: Fields of the policy, or of its parts (`wall_time="2s"`, `mounts=[...]`), with units where
                documents have them; `fuel="~2s"` is short for `fuel=None, fuel_time="2s"`.

        Raises:
            PolicyError: There is no such field, or a value is out of its range.
        """
        own: dict[str, object] = {}
        inner: dict[str, dict[str, object]] = {}
        for name, value in changes.items():
            if name in fields_of(Policy):
                own[name] = value
            else:
                inner.setdefault(_part_with(name), {})[name] = value
        for part, values in inner.items():
            base = own.get(part, getattr(self, part))
            if not isinstance(base, Part):
                raise PolicyError(f"{part} is {shown(base)}: it must be {part.capitalize()}")
            own[part] = msgspec.structs.replace(base, **base.spelled_out(values))
        return msgspec.structs.replace(self, **own)

    @property
    def digest(self) -> str:
        """SHA-256 of what the policy says, equal for equal policies in any process and release."""
        document = self.to_document()
        for path, default in _LATER.items():
            section, _, field = path.rpartition(".")
            table = document.get(section, {}) if section else document
            assert isinstance(table, dict)
            if table.get(field) == default:
                del table[field]
                if not table:
                    # A part that was added after the first release.
                    del document[section]
        return hashlib.sha256(msgspec.json.encode(document, order="deterministic")).hexdigest()

    @property
    def reproducible(self) -> bool:
        """Whether equal runs are equal to the last bit: virtual clock, no host entropy; NaNs are then canonical.

        A rate of reading, writing or calls takes that away: how much may go at once reveals the time. So does the
        network, whose other side answers as it likes.
        """
        limits = self.limits
        has_rate = any(rate is not None for rate in (limits.read_rate, limits.write_rate, limits.call_rate))
        return (
            self.clock.mode in ("virtual", "none")
            and self.random.mode != "full"
            and not has_rate
            and self.network.mode == "none"
        )

    def narrow(self, other: Policy) -> Policy:
        """Returns what both policies permit.

        Args:
            other: The other policy.

        Returns:
            A policy that permits at most what each of them permits: the smaller limit, the rights that both give.
            The order does not matter.
        """
        from stockade.policy._algebra import narrow
        from stockade.policy._given import check_policy

        return narrow(self, check_policy(other, "other"))

    def is_subset(self, other: Policy) -> bool:
        """Whether everything that this policy permits is permitted by another one, too.

        Args:
            other: The other policy.
        """
        from stockade.policy._algebra import is_subset
        from stockade.policy._given import check_policy

        return is_subset(self, check_policy(other, "other"))

    def diff(self, other: Policy) -> tuple[Change, ...]:
        """Returns what changes from this policy to another one, and whether it permits more or less.

        Args:
            other: The other policy.
        """
        from stockade.policy._algebra import diff
        from stockade.policy._given import check_policy

        return diff(self, check_policy(other, "other"))

    def explain(self) -> tuple[PolicyStatement, ...]:
        """Says in sentences what a guest can and cannot do, with the risk of each grant."""
        from stockade.policy._explain import explain

        return explain(self)

    def score(
        self, isolation: Literal["inprocess", "process", "bubblewrap"] | None = None, walls: Iterable[str] = ()
    ) -> Score:
        """Rates how much stands between a guest and the host, from 0 to 100, with reasons.

        Only what is enforced counts, and a policy that permits more never gets a higher score.

        Args:
            isolation: Where runs happen; by default, where the policy has them happen at least.
            walls: What was found to stand around a process of its own, as `stockade.jail.rehearse().active` or
                `stockade doctor` tells it. None of it counts unless it is told here.

        Raises:
            IsolationError: There is no such isolation, or the policy demands a stronger one.
        """
        from stockade.policy._isolation import isolation_of
        from stockade.policy._score import score

        return score(self, isolation_of(self, isolation), walls)

    def grants(self, name: str, asked: bool | float | str = True) -> bool:
        """Whether a custom capability covers what is asked for; one that is not set covers nothing.

        Args:
            name: Name of the capability.
            asked: For one that is on or off, True; for an amount, how much; for a text or list, one of the texts.
        """
        if not isinstance(name, str):
            raise UsageError(f"the name of the capability is {shown(name)}: it must be text")
        return grants(self.custom, name, asked)

    @staticmethod
    def schema() -> dict[str, Plain]:
        """Returns the JSON Schema of policy documents."""
        from stockade.policy._schema import schema

        return schema()


_LATER: dict[str, object] = {
    "isolation": "inprocess",
    "environment.secrets": "named",
    "features.extended_const": True,
    "features.function_references": False,
    "limits.connections": 10,
    "limits.requests": 1_000,
    "limits.request_time": "30s",
    "limits.sent_bytes": "64MiB",
    "limits.received_bytes": "256MiB",
    "limits.network_rate": "unlimited",
    "gate.registered": "redact",
    "gate.keys": "allow",
    "gate.personal": "allow",
    "gate.entropy": "allow",
    "gate.channels": list(GATE_CHANNELS),
}
"""Fields that were added after the first release, by their paths, with the value that changes no digest."""


def _part_with(name: str) -> str:
    """Finds the part of a policy that has a field."""
    known: list[str] = list(fields_of(Policy))
    found = []
    for part, field in fields_of(Policy).items():
        if isinstance(field.kind, Section):
            inner = fields_of(field.kind.part)
            known += inner
            if name in inner:
                found.append(part)
    if not found:
        raise PolicyError(f"a policy has no field {shown(name)}: {suggestion(name, tuple(dict.fromkeys(known)))}")
    if len(found) > 1:
        raise PolicyError(f"several parts of a policy have {name}: give one as a whole, {' or '.join(found)}=...")
    return found[0]
