"""A policy in sentences: what a guest can and cannot do, and the risk of each grant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from stockade._text import printable
from stockade._wasi import WASI
from stockade.policy._custom import Amount
from stockade.policy._enforced import unenforceable
from stockade.policy._fields import fields_of
from stockade.policy._http import METHODS
from stockade.policy._network import is_metadata
from stockade.policy._rights import WELL_TRIED, Features
from stockade.policy._units import size_in_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from stockade.policy._limits import Limits
    from stockade.policy._network import HostRule, PortRange
    from stockade.policy._policy import Policy

__all__ = ["PolicyStatement", "Risk", "explain"]

Risk = Literal["none", "low", "medium", "high"]


class PolicyStatement(NamedTuple):
    """One thing that a guest can or cannot do.

    Attributes:
        capability: What it is about.
        text: The sentence.
        risk: What a hostile guest could make of it: `none`, `low`, `medium` or `high`.
        path: The field that decides it.
    """

    capability: str
    text: str
    risk: Risk
    path: str


def explain(policy: Policy) -> tuple[PolicyStatement, ...]:
    """Says in sentences what a guest can and cannot do."""
    auditing = policy.on_violation == "audit"
    parts = (
        _violations(policy) if auditing else (),
        _files(policy),
        _environment(policy),
        _network(policy),
        _process(policy),
        _clock(policy),
        _random(policy),
        _calls(policy),
        _time(policy.limits),
        _memory(policy),
        _output(policy.limits),
        _gate(policy),
        _compiling(policy),
        _features(policy),
        _custom(policy),
        _isolation(policy),
        () if auditing else _violations(policy),
    )
    # First: nothing of the rest holds before this does.
    return (*map(_unenforced, unenforceable(policy)), *(statement for part in parts for statement in part))


def _unenforced(path: str) -> PolicyStatement:
    return PolicyStatement(
        "unusable", f"This release does not support {path}, so no sandbox accepts this policy.", "none", path
    )


def _files(policy: Policy) -> Iterator[PolicyStatement]:
    files, limits = policy.filesystem, policy.limits
    if not files.mounts:
        yield PolicyStatement("files", "It sees no files of the host.", "none", "filesystem.mounts")
        return
    for place, mount in enumerate(files.mounts):
        host, guest = printable(mount.host, 400), printable(mount.guest)
        path = f"filesystem.mounts[{place}]"
        if mount.only is not None and not mount.only:
            yield PolicyStatement("files", f'It can name nothing in "{host}", which is there as {guest}.', "none", path)
            continue
        does = "read" if mount.mode == "ro" else "read and change"
        what = f"{'all' if mount.only is None else _paths(mount.only)} of"
        yield PolicyStatement(
            "files", f'It can {does} {what} "{host}", as {guest}.', "low" if mount.mode == "ro" else "medium", path
        )
    if any(mount.mode == "rw" for mount in files.mounts):
        yield from _changes(policy)
    read = _up_to(limits.read_bytes, "It can read {} in total", "It can read without limit")
    pace = _up_to(limits.read_rate, ", at {} per second", "")
    opened = f"It can have {_count(limits.open_files, 'file')} open at a time."
    yield PolicyStatement("files", f"{read}{pace}. {opened}", "low", "limits.read_bytes")


def _paths(only: Sequence[str]) -> str:
    """The paths of a list, or the first of many."""
    shown = ", ".join(printable(path) for path in only[:_MOST_PATHS])
    more = f" and {len(only) - _MOST_PATHS:,} more" if len(only) > _MOST_PATHS else ""
    return f"{shown}{more}, and nothing else"


def _changes(policy: Policy) -> Iterator[PolicyStatement]:
    """What can be done in writable folders."""
    files, limits = policy.filesystem, policy.limits
    created = limits.files_created
    made = "any number of files" if created is None else _count(created, "file")
    may = {"create": files.create and created != 0, "delete": files.delete, "symlinks": files.symlinks}
    granted: dict[str, tuple[str, Risk]] = {
        "create": (f"It can create {made} there.", "low"),
        "delete": ("It can delete and replace what is there.", "medium"),
        "symlinks": ("It can create links there, which lead programs on the host out of the folder.", "high"),
    }
    refused = {"create": "create files", "delete": "delete anything", "symlinks": "create links"}
    for right, (text, risk) in granted.items():
        path = f"filesystem.{right}"
        if may[right]:
            yield PolicyStatement("files", text, risk, path)
        elif policy.on_violation == "audit":
            yield PolicyStatement("files", f"It may not {refused[right]} there, but this is only reported.", risk, path)
        else:
            yield PolicyStatement("files", f"It cannot {refused[right]} there.", "none", path)
    written = _up_to(limits.write_bytes, "It can write {} in total", "It can write without limit")
    size = _up_to(limits.file_size, ", and no file larger than {}", ", and files of any size")
    pace = _up_to(limits.write_rate, ", at {} per second", "")
    full = limits.write_bytes is None
    yield PolicyStatement("files", f"{written}{pace}{size}.", "medium" if full else "low", "limits.write_bytes")


def _environment(policy: Policy) -> Iterator[PolicyStatement]:
    environment = policy.environment
    names = environment.names
    text: str = "It sees no environment variables of the host."
    risk: Risk = "none"
    if environment.mode == "allow" and names:
        unless = "" if environment.secrets == "named" else ", unless they look like secrets"
        text = f"It sees {_listed(names)} from the host's environment{unless}."
        risk = "high" if environment.named_secrets() else "low"
    elif environment.mode in ("deny", "full"):
        but = f"{_listed(names)} and " if names else ""
        text, risk = f"It sees the host's variables but {but}{_WITHHELD}.", "medium"
    yield PolicyStatement("environment", text, risk, "environment.mode")
    if environment.set:
        told = _listed(tuple(environment.set))
        yield PolicyStatement("environment", f"It is given values for {told}.", "low", "environment.set")


_MOST_PATHS = 8

_WITHHELD = (
    "those that look like secrets, by name (such as API_TOKEN, AWS_PROFILE, HTTPS_PROXY, DATABASE_URL) or by value (a "
    "URL with a user, a private key, a known kind of token), or that steer loaders (such as LD_PRELOAD): name one in "
    'environment.names with the mode "allow" to pass it on'
)


def _network(policy: Policy) -> Iterator[PolicyStatement]:
    network = policy.network
    match network.mode:
        case "none":
            yield PolicyStatement("network", "It cannot reach any host.", "none", "network.mode")
            return
        case "loopback":
            text = "It can reach services on this machine, many of which trust local clients."
            yield PolicyStatement("network", text, "high", "network.mode")
        case "hosts":
            for place, host in enumerate(network.hosts):
                how = "encrypted" if host.secure else "also unencrypted"
                text = f"It can reach {_host(host)} on {_ports(host.ports)}, {how}{_only(host)}."
                risk: Risk = "medium" if host.secure else "high"
                if is_metadata(host.name):
                    text, risk = f"{text[:-1]}: a cloud keeps credentials of this machine there.", "high"
                yield PolicyStatement("network", text, risk, f"network.hosts[{place}]")
        case "ports":
            text = f"It can reach any public host on {_ports(network.ports)}, and send out what it has read."
            yield PolicyStatement("network", text, "high", "network.ports")
        case "full":
            text = "It can reach any host, private networks included, but not the metadata services of clouds."
            yield PolicyStatement("network", text, "high", "network.mode")
    limits = policy.limits
    many = "any number of requests" if limits.requests is None else _count(limits.requests, "request")
    sent = _up_to(limits.sent_bytes, "send up to {}", "send without limit")
    received = _up_to(limits.received_bytes, "receive up to {}", "receive without limit")
    pace = _up_to(limits.network_rate, ", at {} per second", "")
    text = f"It can make {many}, {limits.connections:,} at a time, and {sent} and {received}{pace}."
    risk = "medium" if None in (limits.requests, limits.sent_bytes) else "low"
    yield PolicyStatement("network", text, risk, "limits.requests")


def _host(rule: HostRule) -> str:
    name = str(rule.name)
    return f"all hosts below {printable(name[2:])}" if name.startswith("*.") else printable(name)


def _only(rule: HostRule) -> str:
    """Says to which methods and paths a rule is limited."""
    methods = "" if len(rule.methods) == len(METHODS) else f", by {_listed(rule.methods)}"
    paths = "" if "/" in rule.paths else f", below {_listed(tuple(printable(path) for path in rule.paths))}"
    return f"{methods}{paths}"


def _ports(ports: tuple[PortRange, ...]) -> str:
    one = len(ports) == 1 and ports[0].first == ports[0].last
    return f"port{'' if one else 's'} {_listed(tuple(map(str, ports)))}"


def _process(policy: Policy) -> Iterator[PolicyStatement]:
    match policy.process.mode:
        case "none":
            yield PolicyStatement("processes", "It cannot start programs on the host.", "none", "process.mode")
        case "commands":
            told = _listed(policy.process.commands)
            yield PolicyStatement("processes", f"It can start {told}, unconfined.", "high", "process.commands")
        case "full":
            yield PolicyStatement(
                "processes", "It can start any program on the host, unconfined.", "high", "process.mode"
            )


def _clock(policy: Policy) -> Iterator[PolicyStatement]:
    clock = policy.clock
    text, risk = _CLOCKS[clock.mode]
    if clock.mode == "coarse":
        text = text.format(_seconds(clock.resolution))
        risk = "none" if clock.resolution >= 1e-3 else "low"
    yield PolicyStatement("clock", text, risk, "clock.mode")


_CLOCKS: dict[str, tuple[str, Risk]] = {
    "real": (
        "It can read the time to the nanosecond, and so measure what other code does; it cannot set the clock.",
        "low",
    ),
    "coarse": ("It can read the time to within {}; it cannot set the clock.", "none"),
    "virtual": ("It sees a virtual time, the same in every run.", "none"),
    "none": ("It cannot read the time.", "none"),
}


def _random(policy: Policy) -> Iterator[PolicyStatement]:
    random = policy.random
    much = _up_to(policy.limits.random_bytes, ", up to {}", "")
    text = {
        "none": "It gets no random numbers.",
        "seeded": f"It gets random numbers that are the same in every run{much}: not suitable for keys.",
        "full": f"It gets random numbers of the host{much}.",
    }[random.mode]
    yield PolicyStatement("randomness", text, "none", "random.mode")


def _calls(policy: Policy) -> Iterator[PolicyStatement]:
    refused = policy.wasi.refused()
    groups: dict[str, list[str]] = {}
    for call in WASI:
        groups.setdefault(call.group, []).append(call.name)
    whole = [
        f"{group}_*" if len(names) > 1 else names[0] for group, names in groups.items() if refused.issuperset(names)
    ]
    single = [name for names in groups.values() if not refused.issuperset(names) for name in names if name in refused]
    allowed = [call.name for call in WASI if call.name not in refused]
    if not allowed:
        yield PolicyStatement("calls", "It can make no WASI calls.", "none", "wasi")
        return
    if len(allowed) < len(refused):
        text = f"Of the WASI calls, it can make {_listed(allowed)} only."
    elif refused:
        text = f"It can make all WASI calls but {_listed((*whole, *single))}."
    else:
        text = "It can make all WASI calls."
    if refused and policy.on_violation == "audit":
        text += " Other calls are still made, and reported."
    sockets = any(call.group == "sock" and call.name not in refused for call in WASI)
    yield PolicyStatement("calls", text, "low" if sockets else "none", "wasi")
    limits = policy.limits
    total = "any number of calls" if limits.calls is None else f"{_count(limits.calls, 'call')} in total"
    pace = "" if limits.call_rate is None else f", {limits.call_rate:,} per second"
    yield PolicyStatement("calls", f"It can make {total}{pace}.", "none", "limits.calls")


def _time(limits: Limits) -> Iterator[PolicyStatement]:
    if limits.wall_time is None:
        yield PolicyStatement("time", "It may run forever.", "high", "limits.wall_time")
    else:
        risk: Risk = "none" if limits.wall_time <= 60 else "low" if limits.wall_time <= 3600 else "medium"
        text = f"It is stopped after {_seconds(limits.wall_time)}, also while it sleeps."
        yield PolicyStatement("time", text, risk, "limits.wall_time")
    if limits.idle_time is not None:
        text = f"It is stopped when it waits for more than {_seconds(limits.idle_time)} at once."
        yield PolicyStatement("time", text, "none", "limits.idle_time")
    yield from _fuel(limits)
    if limits.cpu_percent < 100:
        text = f"It gets {limits.cpu_percent}% of one core."
        yield PolicyStatement("time", text, "none", "limits.cpu_percent")


def _fuel(limits: Limits) -> Iterator[PolicyStatement]:
    if not limits.metered:
        risk: Risk = "high" if limits.wall_time is None else "none"
        yield PolicyStatement("time", "Its instructions are not counted.", risk, "limits.fuel")
    if limits.fuel is not None:
        many = _scaled(limits.fuel, "instruction")
        text = f"It is stopped after about {many}."
        if limits.fuel_refill:
            text = f"It starts with about {many}, and is stopped when none are left."
        yield PolicyStatement("time", text, "none", "limits.fuel")
    if limits.fuel_refill:
        every, most = _seconds(limits.fuel_refill_interval), _scaled(limits.fuel_refill_max)
        text = f"Every {every} it gets {_scaled(limits.fuel_refill)} more, up to {most}."
        yield PolicyStatement("time", text, "none", "limits.fuel_refill")
    if limits.fuel_time is not None:
        included = ", refills included" if limits.fuel_refill else ""
        text = (
            f"It is stopped after about {_seconds(limits.fuel_time)} of computing{included}: an estimate, for how much "
            "it computes in a second is measured on the machine where it runs."
        )
        yield PolicyStatement("time", text, "none", "limits.fuel_time")


def _memory(policy: Policy) -> Iterator[PolicyStatement]:
    limits = policy.limits
    stop = "the run ends" if "stop" in (limits.on_memory_denied, policy.on_violation) else "growing fails"
    pace = "" if limits.memory_growth is None else f", growing by up to {_bytes(limits.memory_growth << 16)} per second"
    risk: Risk = "none" if limits.memory <= 1 << 30 else "low"
    text = f"It has {_bytes(limits.memory)} for memories and tables together{pace}; beyond that {stop}."
    yield PolicyStatement("memory", text, risk, "limits.memory")
    yield PolicyStatement("memory", f"It has {_bytes(limits.stack_bytes)} of stack.", "none", "limits.stack")


def _output(limits: Limits) -> Iterator[PolicyStatement]:
    text = f"A report keeps at most {_bytes(limits.stdout)} of stdout and {_bytes(limits.stderr)} of stderr."
    yield PolicyStatement("output", text, "none", "limits.stdout")


_WITHHOLDING: dict[str, str] = {
    "warn": "it leaves, and is reported",
    "redact": "its name stands in its place",
    "quarantine": "nothing of the run leaves, and it is kept aside until somebody releases it",
    "block": "nothing of the run leaves",
}

_LOOKED_FOR = {
    "keys": "a key, a token or a named password",
    "personal": "a number of a card, an account or of social security",
    "entropy": "text as random as a key",
}

_WHERE_LOOKED = {
    "files": "files that are collected",
    "output": "stdout and stderr",
    "requests": "requests",
    "value": "its value",
}


def _gate(policy: Policy) -> Iterator[PolicyStatement]:
    rules = policy.gate
    if rules.registered == "allow":
        text = "Secrets that were registered may leave the run."
        yield PolicyStatement("gate", text, "high", "gate.registered")
    else:
        text = f"Where a registered secret would leave the run, {_WITHHOLDING[rules.registered]}."
        risk: Risk = "medium" if rules.registered == "warn" else "none"
        yield PolicyStatement("gate", text, risk, "gate.registered")
    if not rules.looks:
        return
    where = _listed([_WHERE_LOOKED[name] for name in rules.channels])
    for name, what in _LOOKED_FOR.items():
        verdict = getattr(rules, name)
        if verdict != "allow":
            text = f"Where {what} is found in {where}, {_WITHHOLDING[verdict]}."
            yield PolicyStatement("gate", text, "none", f"gate.{name}")
    if any(mount.mode == "rw" for mount in policy.filesystem.mounts):
        text = "What it writes to the host's folders is not looked at."
        yield PolicyStatement("gate", text, "none", "filesystem.mounts")


def _features(policy: Policy) -> Iterator[PolicyStatement]:
    used = [name for name in fields_of(Features) if getattr(policy.features, name)]
    if used:
        text = f"It may use the proposal{'s' if len(used) > 1 else ''} {_listed(used)}."
    else:
        text = "It may use no optional WebAssembly proposals."
    risky: Risk = "low" if set(used) - WELL_TRIED else "none"
    yield PolicyStatement("features", text, risky, "features")


def _compiling(policy: Policy) -> Iterator[PolicyStatement]:
    limits, structure = policy.limits, policy.structure
    text = f"A module has at most {_bytes(limits.module_size)} and {_count(structure.functions, 'function')}."
    yield PolicyStatement("module", text, "none", "structure.functions")
    if limits.compile_process == "never":
        text = "It is compiled in this process, for as long as that takes."
        yield PolicyStatement("module", text, "medium", "limits.compile_process")
    else:
        which = "It is" if limits.compile_process == "always" else "Unless compiling is certain to be cheap, it is"
        many = f"{_seconds(limits.compile_time)} and {_bytes(limits.compile_memory)}"
        text = f"{which} compiled in a separate process, within {many}."
        yield PolicyStatement("module", text, "none", "limits.compile_process")


def _custom(policy: Policy) -> Iterator[PolicyStatement]:
    for name, value in sorted(policy.custom.items()):
        shown = printable(name)
        if isinstance(value, Amount):
            text = f"It has {shown}: from {value.min:,g} up to {value.value:,g}."
        elif isinstance(value, bool):
            text = f"It has {shown}." if value else f"It does not have {shown}."
        else:
            texts = (value,) if isinstance(value, str) else value
            text = f"It has {shown}: {_listed(texts)}." if any(texts) else f"It has {shown}, which is empty."
        yield PolicyStatement("custom", text, "none" if value is False else "medium", f"custom.{shown}")


def _isolation(policy: Policy) -> Iterator[PolicyStatement]:
    text: str = "Runs happen in the host's process, unless the caller asks for jailed ones of their own."
    risk: Risk = "low"
    if policy.isolation == "process":
        text, risk = "Each run has a jailed process of its own, whatever the caller asks for.", "none"
    yield PolicyStatement("isolation", text, risk, "isolation")


def _violations(policy: Policy) -> Iterator[PolicyStatement]:
    text, risk = _ON_VIOLATION[policy.on_violation]
    yield PolicyStatement("violations", text, risk, "on_violation")


_ON_VIOLATION: dict[str, tuple[str, Risk]] = {
    "deny": ("A call that violates the policy fails and is reported; the guest continues.", "none"),
    "stop": ("The first call that violates the policy, or growth that is refused, ends the run.", "none"),
    "audit": (
        "A call that violates the policy IS STILL MADE, and reported: use this only to learn what a guest needs.",
        "high",
    ),
}


def _listed(items: Iterable[str]) -> str:
    shown = [printable(item) for item in items]
    if len(shown) > 12:
        shown = [*shown[:11], f"{len(shown) - 11} more"]
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:]))) or "nothing"


def _count(number: int, what: str) -> str:
    return _plural(f"{number:,}", what)


def _up_to(limit: int | None, text: str, unlimited: str) -> str:
    return unlimited if limit is None else text.format(_bytes(limit))


def _bytes(size: int) -> str:
    return size_in_words(size) or _count(size, "byte")


def _seconds(seconds: float) -> str:
    for unit, length, most in (("ns", 1e-9, 1e-6), ("µs", 1e-6, 1e-3), ("ms", 1e-3, 1.0), ("s", 1.0, 121.0)):
        if seconds < most:
            return f"{seconds / length:g} {unit}"
    for word, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length or seconds == length:
            return _plural(f"{seconds / length:,.1f}".removesuffix(".0"), word)
    return f"{seconds:g} s"


def _scaled(number: int, what: str = "") -> str:
    for word, factor in (("trillion", 10**12), ("billion", 10**9), ("million", 10**6)):
        if number >= factor:
            figure = f"{number / factor:,.1f}".removesuffix(".0") + f" {word}"
            return f"{figure} {what}s" if what else figure
    return _count(number, what) if what else f"{number:,}"


def _plural(figure: str, what: str) -> str:
    return f"{figure} {what}{'' if figure == '1' else 's'}"
