"""Policies as a lattice: what two of them permit together, whether one permits no more than another, what changes.

Every part has a meet, the most that both sides permit. A meet is commutative, associative and idempotent, and permits
at most what each side does: disjoint lists give nothing, not everything. Where both sides are equal they stay as they
were written; otherwise lists come out sorted. One policy is a subset of another if meeting it changes nothing of what
it means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec

from stockade._wasi import WASI
from stockade.policy._custom import Amount, Custom
from stockade.policy._fields import Part, Plain, Quantity, fields_of
from stockade.policy._frozen import FrozenDict
from stockade.policy._gate import GATE_CHANNELS, GATE_VERDICTS, GateRules, GateVerdict
from stockade.policy._http import METHODS, is_below
from stockade.policy._isolation import stronger
from stockade.policy._limits import Limits
from stockade.policy._network import Address, HostRule, Network, PortRange, is_loopback, is_metadata, may_be_public
from stockade.policy._policy import Policy
from stockade.policy._rights import (
    Clock,
    Environment,
    Features,
    Filesystem,
    Mount,
    Process,
    Random,
    Wasi,
)
from stockade.policy._secrets import names_a_secret
from stockade.policy._structure import ModuleLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["Change", "diff", "is_subset", "narrow"]

_T = TypeVar("_T")


def narrow(first: Policy, second: Policy) -> Policy:
    """Returns what both policies permit."""
    if first == second:
        return first
    return Policy(
        name=_names(first.name, second.name),
        on_violation=_stricter(first.on_violation, second.on_violation, ("audit", "deny", "stop")),
        isolation=stronger(first.isolation, second.isolation),
        limits=_meet(_limits, first.limits, second.limits),
        filesystem=_meet(_filesystem, first.filesystem, second.filesystem),
        environment=_meet(_environment, first.environment, second.environment),
        clock=_meet(_clock, first.clock, second.clock),
        random=_meet(_random, first.random, second.random),
        network=_meet(_network, first.network, second.network),
        process=_meet(_process, first.process, second.process),
        gate=_meet(_gate, first.gate, second.gate),
        structure=_meet(_structure, first.structure, second.structure),
        features=_meet(_features, first.features, second.features),
        wasi=_meet(_wasi, first.wasi, second.wasi),
        custom=_custom(first.custom, second.custom),
    )


def is_subset(first: Policy, second: Policy) -> bool:
    """Whether everything that the first policy permits is permitted by the second one, too."""
    return _meaning(narrow(first, second)) == _meaning(first)


def _meet(meet: Callable[[_T, _T], _T], first: _T, second: _T) -> _T:
    return first if first == second else meet(first, second)


def _meaning(policy: Policy) -> Policy:
    """Returns a policy in the one form that all policies have which permit the same."""
    return msgspec.structs.replace(
        policy,
        name="meaning",
        limits=_limits(policy.limits, policy.limits),
        filesystem=_filesystem(policy.filesystem, policy.filesystem),
        environment=_environment(policy.environment, policy.environment),
        # When a virtual clock starts and which numbers a seed gives are no rights.
        clock=msgspec.structs.replace(_clock(policy.clock, policy.clock), start=0, step=0),
        random=Random(mode=policy.random.mode),
        network=_network(policy.network, policy.network),
        process=_process(policy.process, policy.process),
        gate=_gate(policy.gate, policy.gate),
        wasi=msgspec.structs.replace(_wasi(policy.wasi, policy.wasi), errno="notcapable"),
        custom=FrozenDict({name: value for name, value in policy.custom.items() if value not in (False, ())}),
    )


def _stricter(first: _T, second: _T, order: tuple[_T, ...]) -> _T:
    """Returns the stricter of two words, given all from the laxest to the strictest."""
    return order[max(order.index(first), order.index(second))]


def _names(first: str, second: str) -> str:
    if first == second:
        return first
    # Without the separator's characters at its ends, a name is found again in the text that tells several.
    names = {part.strip("& ") for name in (first, second) for part in name.split(" & ")} - {""}
    together = " & ".join(sorted(names)) or "&"
    return "narrowed" if "narrowed" in names or len(together) > 1000 else together


# -- limits ---------------------------------------------------------------------------------------------------------


def _limits(first: Limits, second: Limits) -> Limits:
    values: dict[str, object] = {}
    for field in fields_of(Limits).values():
        one, other = getattr(first, field.name), getattr(second, field.name)
        if isinstance(field.kind, Quantity):
            values[field.name] = other if one is None else one if other is None else min(one, other)
    values["compile_process"] = _stricter(first.compile_process, second.compile_process, ("never", "auto", "always"))
    values["on_memory_denied"] = _stricter(first.on_memory_denied, second.on_memory_denied, ("fail", "stop"))
    values["on_rate"] = _stricter(first.on_rate, second.on_rate, ("wait", "refuse"))
    values.update(_refill(first, second))
    return Limits(**values)  # type: ignore[arg-type]


def _refill(first: Limits, second: Limits) -> dict[str, object]:
    """Meets refills: the smaller amount at the longer interval, as long as all sides that count units refill at all.

    So neither by any moment of a run, nor in a span of any length, can more be burnt than under each side, and more is
    never in hand. Only when the refills come is not always when those of each side do: no interval has that but a
    multiple of both, which would take far more away than either side.
    """
    budgets = [side for side in (first, second) if side.fuel is not None]
    refilled = [side for side in budgets if side.fuel_refill]
    if not budgets or len(refilled) < len(budgets):
        return {"fuel_refill": 0, "fuel_refill_max": 0, "fuel_refill_interval": 1.0}
    return {
        # A refill fills up what may be in hand, and no more, however large it is.
        "fuel_refill": min(min(side.fuel_refill, side.fuel_refill_max) for side in refilled),
        "fuel_refill_interval": max(side.fuel_refill_interval for side in refilled),
        "fuel_refill_max": min(side.fuel_refill_max for side in refilled),
    }


# -- rights ---------------------------------------------------------------------------------------------------------


def _filesystem(first: Filesystem, second: Filesystem) -> Filesystem:
    # Only the same folder under the same name is common: what lies below a path depends on links that are not known.
    ours, theirs = _by_folder(first.mounts), _by_folder(second.mounts)
    return Filesystem(
        mounts=tuple(_mount(ours[folder], theirs[folder]) for folder in sorted(ours.keys() & theirs.keys())),
        create=first.create and second.create,
        delete=first.delete and second.delete,
        symlinks=first.symlinks and second.symlinks,
    )


def _by_folder(mounts: Iterable[Mount]) -> dict[tuple[str, str], Mount]:
    """Puts together what is said of the same folder under the same name, more than once.

    Of what may be read, and what may be written, only the latter is kept: there is no mount that says both.
    """
    found: dict[tuple[str, str], Mount] = {}
    for mount in sorted(mounts, key=lambda mount: mount.mode):
        before = found.get((mount.host, mount.guest), mount)
        only = mount.only
        if before.mode == mount.mode and only is not None:
            only = None if before.only is None else _least({*before.only, *only})
        found[mount.host, mount.guest] = Mount(mount.host, mount.guest, mount.mode, only)
    return found


def _mount(first: Mount, second: Mount) -> Mount:
    if first.only is None or second.only is None:
        only = second.only if first.only is None else first.only
    else:
        both = [path for path in first.only if _is_named(path, second.only)]
        only = _least({*both, *(path for path in second.only if _is_named(path, first.only))})
    return Mount(first.host, first.guest, min(first.mode, second.mode), only)


def _is_named(path: str, only: Iterable[str]) -> bool:
    """Whether a list names all that one of its entries would."""
    return path in only or any(path.startswith(entry) or f"{path}/" == entry for entry in only if entry.endswith("/"))


def _least(only: set[str]) -> tuple[str, ...]:
    """Leaves out what another entry names, too."""
    return tuple(sorted(path for path in only if not _is_named(path, only - {path})))


def _environment(first: Environment, second: Environment) -> Environment:
    sides = (first, second)
    common = {name: value for name, value in first.set.items() if second.set.get(name) == value}
    # A variable that one side sets hides the host's value, which must not come to light again.
    hidden = {*first.set, *second.set}
    allowing = [side for side in sides if side.mode == "allow"]
    if any(side.mode == "none" for side in sides):
        return Environment(set=FrozenDict(common))
    if allowing:
        names = {name for name in allowing[0].names if all(side.passes(name) for side in sides)} - hidden
        if not names:
            return Environment(set=FrozenDict(common))
        # Of what the other side passes on, it withholds what looks like a secret by its value.
        never = any(side.mode != "allow" or side.secrets == "never" for side in sides)
        return Environment(
            mode="allow",
            names=tuple(sorted(names)),
            secrets="never" if never else "named",
            set=FrozenDict(common),
        )
    names = {name for side in sides for name in side.names} | hidden - set(common)
    names = {name for name in names - set(common) if not names_a_secret(name)}
    return Environment(mode="deny" if names else "full", names=tuple(sorted(names)), set=FrozenDict(common))


def _clock(first: Clock, second: Clock) -> Clock:
    mode = _stricter(first.mode, second.mode, ("real", "coarse", "virtual", "none"))
    sides = [side for side in (first, second) if side.mode == mode]
    if mode == "coarse":
        return Clock(mode=mode, resolution=max(side.resolution for side in sides))
    if mode == "virtual":
        return Clock(mode=mode, start=max(side.start for side in sides), step=max(side.step for side in sides))
    return Clock(mode=mode)


def _random(first: Random, second: Random) -> Random:
    mode = _stricter(first.mode, second.mode, ("full", "seeded", "none"))
    seeds = [side.seed for side in (first, second) if side.mode == "seeded"]
    return Random(mode=mode, seed=max(seeds)) if mode == "seeded" else Random(mode=mode)


def _features(first: Features, second: Features) -> Features:
    both = {name: getattr(first, name) and getattr(second, name) for name in fields_of(Features)}
    both["relaxed_simd"] = both["relaxed_simd"] and both["simd"]
    both["gc"] = both["gc"] and both["function_references"]
    return Features(**both)


def _structure(first: ModuleLimits, second: ModuleLimits) -> ModuleLimits:
    return ModuleLimits(**{name: min(getattr(first, name), getattr(second, name)) for name in fields_of(ModuleLimits)})


def _process(first: Process, second: Process) -> Process:
    if "none" in (first.mode, second.mode):
        return Process()
    listing = [set(side.commands) for side in (first, second) if side.mode == "commands"]
    if not listing:
        return Process(mode="full")
    common = tuple(sorted(set.intersection(*listing)))
    return Process(mode="commands", commands=common) if common else Process()


def _gate(first: GateRules, second: GateRules) -> GateRules:
    # Where one looks for nothing, its channels mean nothing.
    sides = [side for side in (first, second) if side.looks]
    return GateRules(
        registered=_stricter(first.registered, second.registered, GATE_VERDICTS),
        keys=_strictest([side.keys for side in sides]),
        personal=_strictest([side.personal for side in sides]),
        entropy=_strictest([side.entropy for side in sides]),
        channels=tuple(sorted({name for side in sides for name in side.channels})) or GATE_CHANNELS,
    )


def _strictest(verdicts: Sequence[GateVerdict]) -> GateVerdict:
    return GATE_VERDICTS[max(map(GATE_VERDICTS.index, verdicts), default=0)]


def _wasi(first: Wasi, second: Wasi) -> Wasi:
    refused = first.refused() | second.refused()
    errno = _stricter(first.errno, second.errno, ("perm", "nosys", "notcapable"))
    groups: dict[str, list[str]] = {}
    for call in WASI:
        groups.setdefault(call.group, []).append(call.name)
    deny = []
    for group, calls in groups.items():
        inside = [name for name in calls if name in refused]
        deny += [f"{group}_*"] if inside == calls and len(calls) > 1 else inside
    return Wasi(allow=("*",), deny=tuple(sorted(deny)), errno=errno)


def _custom(first: FrozenDict[Custom], second: FrozenDict[Custom]) -> FrozenDict[Custom]:
    if first == second:
        return first
    met = {}
    for name in sorted(set(first) & set(second)):
        value = _capability(first[name], second[name])
        if value is not None:
            met[name] = value
    return FrozenDict(met)


def _capability(first: Custom, second: Custom) -> Custom | None:
    """Meets two capabilities; None where nothing is left."""
    if first == second and type(first) is type(second):
        return first
    if isinstance(first, bool) and isinstance(second, bool):
        return False
    if isinstance(first, Amount) and isinstance(second, Amount):
        value, least = min(first.value, second.value), max(first.min, second.min)
        return Amount(value, least, min(first.max, second.max)) if least <= value else None
    if isinstance(first, tuple) and isinstance(second, tuple):
        return tuple(sorted(set(first) & set(second)))
    return None


# -- network --------------------------------------------------------------------------------------------------------


def _network(first: Network, second: Network) -> Network:
    modes = {first.mode, second.mode}
    if "none" in modes:
        return Network()
    sides = [side for side in (first, second) if side.mode != "full"]
    if not sides:
        return Network(mode="full")
    if all(side.mode == "loopback" for side in sides):
        return Network(mode="loopback")
    if all(side.mode == "ports" for side in sides):
        ports = _common_ports(sides[0].ports, sides[-1].ports)
        return Network(mode="ports", ports=ports) if ports else Network()
    hosts = _merged(_common_hosts(sides[0], sides[-1]))
    if "full" in modes:
        # Not even where anything may be reached: only rules that both sides have can name those.
        hosts = tuple(host for host in hosts if not is_metadata(host.name))
    return Network(mode="hosts", hosts=hosts) if hosts else Network()


def _common_hosts(first: Network, second: Network) -> Iterable[HostRule]:
    if first.mode != "hosts":
        first, second = second, first
    for rule in first.hosts:
        if second.mode == "loopback":
            if is_loopback(rule.name):
                yield rule
        elif second.mode == "ports":
            ports = _common_ports(rule.ports, second.ports)
            if ports and may_be_public(rule.name):
                yield HostRule(rule.host, ports, rule.secure, rule.methods, rule.paths)
    if second.mode == "hosts":
        yield from _common_rules(first.hosts, second.hosts)


def _common_rules(first: tuple[HostRule, ...], second: tuple[HostRule, ...]) -> Iterable[HostRule]:
    theirs: dict[str | Address, list[HostRule]] = {}
    for other in second:
        theirs.setdefault(other.name, []).append(other)
    ours: dict[str | Address, list[HostRule]] = {}
    for rule in first:
        ours.setdefault(rule.name, []).append(rule)
        for general in _generalized(rule.name):
            yield from (common for other in theirs.get(general, ()) if (common := _common_rule(rule, other)))
    for other in second:
        for general in _generalized(other.name)[1:]:
            yield from (common for rule in ours.get(general, ()) if (common := _common_rule(other, rule)))


def _common_rule(narrow: HostRule, wide: HostRule) -> HostRule | None:
    """Returns what two rules permit, of which the second covers all hosts of the first."""
    ports = _common_ports(narrow.ports, wide.ports)
    methods = tuple(method for method in narrow.methods if method in wide.methods)
    paths = tuple(
        dict.fromkeys(
            path if is_below(path, other) else other
            for path in narrow.paths
            for other in wide.paths
            if is_below(path, other) or is_below(other, path)
        )
    )
    if not (ports and methods and paths):
        return None
    return HostRule(str(narrow.name), ports, narrow.secure or wide.secure, methods, paths)


def _generalized(name: str | Address) -> list[str | Address]:
    """Returns a host, or all below a domain, and what stands for all that and more; the least first."""
    found: list[str | Address] = [name]
    if isinstance(name, str) and not is_metadata(name):
        labels = name.removeprefix("*.").split(".")
        # Rules name no top-level domain.
        found += ["*." + ".".join(labels[at:]) for at in range(1, len(labels) - 1)]
    return found


_Atom: TypeAlias = tuple[str, bool, str, str]
"""What is permitted at some ports: a host, or all below a domain; only encrypted or not; a method; below a path."""


def _merged(rules: Iterable[HostRule]) -> tuple[HostRule, ...]:
    """Puts rules together so that each port stands once for all that it is permitted for."""
    ports: dict[_Atom, int] = {}
    for rule in rules:
        for method in rule.methods:
            for path in rule.paths:
                key = str(rule.name), rule.secure, method, path.removesuffix("/")
                ports[key] = ports.get(key, 0) | _bits(rule.ports)
    # Of a host's rules those are one that differ in their methods alone, and of these those that do so in their paths.
    methods: dict[tuple[str, bool, str, int], list[str]] = {}
    for atom, found in ports.items():
        left = found
        for wider in _wider(atom):
            left &= ~ports.get(wider, 0)
        if left:
            name, secure, method, path = atom
            methods.setdefault((name, secure, path, left), []).append(method)
    paths: dict[tuple[str, bool, tuple[str, ...], int], list[str]] = {}
    for (name, secure, path, left), several in methods.items():
        paths.setdefault((name, secure, tuple(sorted(several, key=METHODS.index)), left), []).append(path or "/")
    return tuple(
        HostRule(name, _ranges(left), secure, several, tuple(sorted(found)))
        for (name, secure, several, left), found in sorted(paths.items())
    )


def _wider(atom: _Atom) -> Iterable[_Atom]:
    """Yields what stands for all that an atom stands for, and more."""
    name, secure, method, path = atom
    segments = path.split("/")
    for host in _generalized(name):
        for only_secure in {secure, False}:
            for end in range(1, len(segments) + 1):
                wider = str(host), only_secure, method, "/".join(segments[:end])
                if wider != atom:
                    yield wider


def _common_ports(first: tuple[PortRange, ...], second: tuple[PortRange, ...]) -> tuple[PortRange, ...]:
    return _ranges(_bits(first) & _bits(second))


def _bits(ports: Iterable[PortRange]) -> int:
    """Returns a number with a bit for each port, so that 65,535 of them are met in a microsecond."""
    bits = 0
    for span in ports:
        bits |= (2 << span.last) - (1 << span.first)
    return bits


def _ranges(bits: int) -> tuple[PortRange, ...]:
    spans = []
    while bits:
        lowest = bits & -bits
        carried = bits + lowest  # the lowest run of ones gives way to a one above it
        spans.append(PortRange(lowest.bit_length() - 1, (bits ^ carried).bit_length() - 2))
        bits &= carried
    return tuple(spans)


# -- differences ----------------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """Something in which two policies differ.

    Attributes:
        path: Where it stands in the document, such as `limits.memory`.
        before: What it was, as a document has it.
        after: What it is.
        effect: What the change does to what is permitted: `wider`, `narrower`, `both` (something gained and something
            lost), or `none`.
    """

    path: str
    before: Plain
    after: Plain
    effect: Literal["wider", "narrower", "both", "none"]


_FIELD_BY_FIELD = ("limits", "filesystem", "structure", "features")
"""Parts in which each field stands for itself; in the others the fields mean something together."""

_TOGETHER = (
    ("fuel", "fuel_refill", "fuel_refill_interval", "fuel_refill_max"),
    ("simd", "relaxed_simd"),
    ("function_references", "gc"),
)
"""Fields of these parts that mean something together all the same."""


def diff(before: Policy, after: Policy) -> tuple[Change, ...]:
    """Returns what changes from one policy to another."""
    changes = []
    for name, field in fields_of(Policy).items():
        old, new = getattr(before, name), getattr(after, name)
        if old == new:
            continue
        effect = _effect(before, msgspec.structs.replace(before, **{name: new}))
        if not isinstance(old, Part):
            changes.append(Change(name, field.kind.write(old), field.kind.write(new), effect))
            continue
        for inner in fields_of(type(old)).values():
            one, other = getattr(old, inner.name), getattr(new, inner.name)
            if one == other:
                continue
            if name in _FIELD_BY_FIELD:
                group = next((names for names in _TOGETHER if inner.name in names), (inner.name,))
                changed = msgspec.structs.replace(old, **{each: getattr(new, each) for each in group})
                effect = _effect(before, msgspec.structs.replace(before, **{name: changed}))
            changes.append(Change(f"{name}.{inner.name}", inner.kind.write(one), inner.kind.write(other), effect))
    return tuple(changes)


def _effect(before: Policy, after: Policy) -> Literal["wider", "narrower", "both", "none"]:
    less, more = is_subset(after, before), is_subset(before, after)
    if less and more:
        return "none"
    return "narrower" if less else "wider" if more else "both"
