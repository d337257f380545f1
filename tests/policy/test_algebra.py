"""Policies combined: what two of them permit together, which permits no more than another, what a change does.

What a policy permits is asked of the policy itself, question by question (is this variable shown, may this host be
reached, is this call refused), never of the code that combines policies. So a meet that is wrong cannot vouch for
itself.

Holds P-POLICY-3.
"""

from __future__ import annotations

import math
import time
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stockade import (
    Amount,
    Clock,
    Environment,
    Features,
    Filesystem,
    HostRule,
    Limits,
    ModuleLimits,
    Mount,
    Network,
    Policy,
    PortRange,
    Process,
    Random,
    Sandbox,
    Wasi,
)
from stockade.policy import PRESETS, Change, GateRules
from tests._examples import examples
from tests.conftest import wat
from tests.policy._strategies import gates, policies, seeded_random

# -- policies with much in common ------------------------------------------------------------------------------------

# Pools are small on purpose: two policies must often name the same thing, and often almost the same.
_VARIABLES = ("A", "B", "a", "PATH", "DB_SECRET", "LD_PRELOAD")
_HOSTS = (
    *("a.example", "A.Example.", "b.example", "sub.a.example", "bücher.example", "xn--bcher-kva.example"),
    *("localhost", "db.localhost", "127.0.0.1", "10.0.0.1", "8.8.8.8", "::1", "[::1]", "2001:4860:4860::8888"),
)
_PORTS = (
    *(PortRange(port, port) for port in (79, 80, 81, 443)),
    *(PortRange(first, last) for first, last in ((79, 80), (80, 443), (81, 90), (440, 65_535))),
)
_MOUNTS = tuple(
    Mount(host, guest, mode, only)
    for host in ("data", "./data", "/srv")
    for guest in ("/in", "/out")
    for mode in ("ro", "rw")
    for only in (None, ("a", "b/"), ("b/c", "a/", "."))
)
_ASKED_PATHS = (".", "a", "a/x", "ab", "b", "b/c", "b/c/d", "b/d", "c")
_CALLS = (
    *("*", "fd_*", "path_*", "sock_*", "*_get", "fd", "clock", "random", "sock", "args", "proc", "sched"),
    *("fd_write", "fd_read", "path_open", "random_get", "clock_time_get", "sched_yield", "READ", "openat", "mmap"),
)
_COMMANDS = ("/bin/a", "/bin/b", "/bin/a/b", "/bin/A")
_TEXTS = ("", "x", "y", "X")
_NAMES = ("a", "b", "b & a", "a & b", "a &", "& b", "&", " & ", " &  & ", "a & & b", "narrowed", "x" * 600, "y" * 600)


def _some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


def _one_of(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


def _lists(pool: tuple[Any, ...], least: int = 0) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.sampled_from(pool), min_size=least, max_size=4, unique=True).map(tuple)


@st.composite
def _limits(draw: st.DrawFn) -> Limits:
    quotas = ("files_created", "file_size", "read_bytes", "write_bytes", "random_bytes", "calls", "requests")
    rates = ("read_rate", "write_rate", "call_rate", "memory_growth", "network_rate")
    values = draw(
        _some(
            **{name: _one_of(0, 7, None) for name in quotas},
            **{name: _one_of(1, 7, None) for name in rates},
            **{name: _one_of(0, 2, 3) for name in ("memories", "tables", "open_files", "table_elements", "stdout")},
            wall_time=_one_of(0.5, 5.0, None),
            idle_time=_one_of(0.5, None),
            cpu_percent=_one_of(50, 99),
            memory=_one_of(1 << 16, 1 << 20),
            stack=_one_of(16 << 10, 1 << 20),
            module_size=_one_of(8, 1 << 20),
            stderr=_one_of(0, 1 << 10),
            on_memory_denied=_one_of("fail", "stop"),
            on_rate=_one_of("wait", "refuse"),
            compile_process=_one_of("auto", "always", "never"),
            compile_time=_one_of(0.5, 5.0),
            compile_memory=_one_of(64 << 20, 1 << 40),
            fuel_refill_interval=_one_of(0.5, 1.0, 1.9, 10.0),
            fuel_time=_one_of(0.5, 2.0, None),
        )
    )
    fuel = draw(_one_of(1, 10, 100, None))
    if fuel is not None and draw(st.booleans()):
        values["fuel_refill"] = draw(_one_of(1, 5, 50, 5000))
        values["fuel_refill_max"] = fuel + draw(_one_of(0, 10, 1000))
    return Limits(fuel=fuel, **values)


@st.composite
def _environments(draw: st.DrawFn) -> Environment:
    mode = draw(_one_of("none", "allow", "deny", "full", "allow", "deny"))
    listed = draw(_lists(_VARIABLES)) if mode in ("allow", "deny") else ()
    given_values = draw(st.dictionaries(st.sampled_from(_VARIABLES), st.sampled_from(_TEXTS), max_size=3))
    secrets = draw(_one_of("named", "never")) if mode == "allow" else "named"
    return Environment(mode=mode, names=listed, secrets=secrets, set=given_values)


@st.composite
def _networks(draw: st.DrawFn) -> Network:
    mode = draw(_one_of("none", "loopback", "hosts", "ports", "full", "hosts", "hosts", "ports"))
    if mode == "hosts":
        rule = st.builds(HostRule, st.sampled_from(_HOSTS), _lists(_PORTS, 1), st.booleans())
        return Network(mode=mode, hosts=draw(st.lists(rule, min_size=1, max_size=4)))
    return Network(mode=mode, ports=draw(_lists(_PORTS, 1)) if mode == "ports" else ())


@st.composite
def _numerics(draw: st.DrawFn) -> Amount:
    least, value, most = sorted(draw(st.tuples(*(st.integers(0, 4) for _ in range(3)))))
    return Amount(value, least, most)


def _features(chosen: dict[str, bool]) -> Features:
    needed = {
        "simd": chosen.get("simd", True) or chosen.get("relaxed_simd", False),
        "function_references": chosen.get("function_references", True) or chosen.get("gc", False),
    }
    return Features(**{**chosen, **needed})


_SECTIONS: dict[str, st.SearchStrategy[Any]] = {
    "name": st.sampled_from(_NAMES),
    "on_violation": _one_of("audit", "deny", "stop"),
    "isolation": _one_of("inprocess", "process"),
    "limits": _limits(),
    "filesystem": _some(mounts=_lists(_MOUNTS), create=st.booleans(), delete=st.booleans(), symlinks=st.booleans()).map(
        lambda fields: Filesystem(**fields)
    ),
    "environment": _environments(),
    "clock": _some(
        mode=_one_of("real", "coarse", "virtual", "none"),
        resolution=_one_of(1e-9, 1e-3, 1.0),
        start=_one_of(0.0, 7.0),
        step=_one_of(0.0, 1e-6),
    ).map(lambda fields: Clock(**fields)),
    "random": _some(mode=_one_of("none", "seeded", "full"), seed=_one_of(0, 1, 2)).map(seeded_random),
    "network": _networks(),
    "process": _one_of("none", "full").map(lambda mode: Process(mode=mode))
    | _lists(_COMMANDS, 1).map(lambda commands: Process(mode="commands", commands=commands)),
    "gate": gates(),
    "structure": _some(functions=_one_of(0, 7), exports=_one_of(0, 7)).map(lambda fields: ModuleLimits(**fields)),
    "features": _some(**{name: st.booleans() for name in Features.__struct_fields__}).map(_features),
    "wasi": _some(
        allow=_lists(_CALLS), deny=_lists((*_CALLS, "fork")), errno=_one_of("notcapable", "perm", "nosys")
    ).map(lambda fields: Wasi(**fields)),
    "custom": st.dictionaries(
        _one_of("gpu", "mail"), st.booleans() | _numerics() | st.sampled_from(_TEXTS) | _lists(_TEXTS), max_size=2
    ),
}
"""For each field of a policy, values of which two often have something in common."""


@st.composite
def related(draw: st.DrawFn, count: int = 2) -> tuple[Policy, ...]:
    """Policies of which each is an edit of the one before, in few or in all of its fields."""
    found = [Policy(**{name: draw(strategy) for name, strategy in _SECTIONS.items()})]
    while len(found) < count:
        edited = draw(st.sets(st.sampled_from(sorted(_SECTIONS)), min_size=1))
        found.append(found[-1].replace(**{name: draw(_SECTIONS[name]) for name in sorted(edited)}))
    return tuple(found)


def sections(name: str, count: int) -> st.SearchStrategy[tuple[Policy, ...]]:
    """Policies that differ in one field only, so that all examples go into that one."""
    return st.tuples(*[_SECTIONS[name].map(lambda value: Policy(**{name: value}))] * count)


# -- what a policy permits, asked of the policy ------------------------------------------------------------------------

_HOST_ENVIRONMENTS: tuple[dict[str, str], ...] = (
    {name: f"the host's {name}" for name in (*_VARIABLES, "OTHER", "OTHER_TOKEN", "path", "db_secret")},
    dict.fromkeys(_VARIABLES, "x"),
    dict.fromkeys(_VARIABLES, "https://user:password@host/"),
    {"B": "y", "PATH": "", "DB_SECRET": "x"},
    {},
)
_ASKED_HOSTS = (
    *("a.example", "A.EXAMPLE", "a.example.", "a.example..", "sub.a.example", "b.example", "example", "aa.example"),
    *("bücher.example", "BÜCHER.example.", "xn--bcher-kva.example", "c.example", "", ".", "*", "a.example:80"),
    *("localhost", "LOCALHOST.", "db.localhost", "notlocalhost", "localhost.example", "\uff4cocalhost"),
    *("127.0.0.1", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.0.0.2", "::1", "[::1]", "::ffff:127.0.0.1"),
    *("metadata.google.internal", "METADATA.", "[fd00:ec2::254]", "64:ff9b::a9fe:a9fe"),
    *("10.0.0.1", "167772161", "::ffff:10.0.0.1", "64:ff9b::a00:1", "169.254.169.254", "0xa9fea9fe", "224.0.0.1"),
    *("8.8.8.8", "134744072", "::ffff:8.8.8.8", "2001:4860:4860::8888", "[2001:4860:4860:0::8888]", "fe80::1", "0"),
)
_ASKED_PORTS = (0, 1, 79, 80, 81, 82, 90, 91, 440, 443, 65_535, 65_536)
_CONNECTIONS = tuple((host, port, secure) for host in _ASKED_HOSTS for port in _ASKED_PORTS for secure in (True, False))
_ASKED_COMMANDS = (*_COMMANDS, "/bin/c", "/bin", "bin/a", "/bin/a/", "")
_ASKED_CUSTOM = (True, False, *range(-1, 6), 0.5, 1.5, *_TEXTS, "z")
_WORDS = {
    "on_violation": ("audit", "deny", "stop"),
    "isolation": ("inprocess", "process"),
    "on_memory_denied": ("fail", "stop"),
    "on_rate": ("wait", "refuse"),
    "compile_process": ("never", "auto", "always"),
    "clock": ("real", "coarse", "virtual", "none"),
    "random": ("full", "seeded", "none"),
    "mount": ("rw", "ro"),
}
"""From the laxest to the strictest."""


def _stricter(kind: str, less: str, more: str) -> bool:
    return _WORDS[kind].index(less) >= _WORDS[kind].index(more)


def _refills_by(limits: Limits, seconds: float) -> int:
    """How often fuel was added when so many seconds have passed."""
    return int(Fraction(str(seconds)) / Fraction(str(limits.fuel_refill_interval)))


def _fuel_by(limits: Limits, seconds: float) -> float:
    """The most units that a guest can have burnt after a time: each refill is the largest if nothing is in hand."""
    if limits.fuel is None:
        return math.inf
    return limits.fuel + min(limits.fuel_refill, limits.fuel_refill_max) * _refills_by(limits, seconds)


def _fuel_within(limits: Limits, seconds: float) -> float:
    """The most units that a guest can burn in a span so long, if it saves up before, and burns all just in time."""
    if limits.fuel is None or not limits.fuel_refill:
        return _fuel_by(limits, seconds)
    refills = _refills_by(limits, seconds) + 1
    return limits.fuel_refill_max + min(limits.fuel_refill, limits.fuel_refill_max) * refills


def _check_limits(less: Limits, more: Limits) -> None:
    for name in Limits.__struct_fields__:
        one, other = getattr(less, name), getattr(more, name)
        if name in _WORDS:
            assert _stricter(name, one, other), name
        elif not name.startswith("fuel_refill"):
            assert (math.inf if one is None else one) <= (math.inf if other is None else other), name
    for seconds in (0.4, 0.5, 1, 2.5, 10, 1000):
        assert _fuel_by(less, seconds) <= _fuel_by(more, seconds)
        assert _fuel_within(less, seconds) <= _fuel_within(more, seconds)
    if less.fuel_refill and more.fuel is not None:
        assert less.fuel_refill_max <= more.fuel_refill_max


def _names(mount: Mount, path: str) -> bool:
    if mount.only is None or path in mount.only:
        return True
    return any(f"{path}/".startswith(entry) for entry in mount.only if entry.endswith("/"))


def _granted(files: Filesystem) -> set[tuple[str, str, str, str]]:
    """What may be done with which paths. Where a folder is to be read and to be written, the latter counts."""
    writable = {(mount.host, mount.guest) for mount in files.mounts if mount.mode == "rw"}
    return {
        (mount.host, mount.guest, mode, path)
        for mount in files.mounts
        if mount.mode == "rw" or (mount.host, mount.guest) not in writable
        for mode in {"ro", mount.mode}
        for path in _ASKED_PATHS
        if _names(mount, path)
    }


def _check_mounts(less: Filesystem, more: Filesystem) -> None:
    for mount in less.mounts:
        granted = [other for other in more.mounts if (other.host, other.guest) == (mount.host, mount.guest)]
        assert any(_stricter("mount", mount.mode, other.mode) for other in granted), mount
    assert _granted(less) <= _granted(more)
    for right in ("create", "delete", "symlinks"):
        assert getattr(less, right) <= getattr(more, right), right


def _shown(environment: Environment, host: dict[str, str]) -> set[tuple[str, str]]:
    return set(environment.of(host).items())


def _connections(network: Network) -> set[tuple[str, int, bool]]:
    return {asked for asked in _CONNECTIONS if network.permits(asked[0], asked[1], secure=asked[2])}


def _started(process: Process) -> set[str]:
    return {command for command in _ASKED_COMMANDS if process.permits(command)}


def _capabilities(policy: Policy) -> set[tuple[str, str]]:
    # As text, because 1, 1.0 and True are one element of a set.
    return {(name, repr(asked)) for name in ("gpu", "mail") for asked in _ASKED_CUSTOM if policy.grants(name, asked)}


_GATE_WORDS = ("allow", "warn", "redact", "quarantine", "block")


def _check_gate(less: GateRules, more: GateRules) -> None:
    assert _GATE_WORDS.index(less.registered) >= _GATE_WORDS.index(more.registered)
    for channel in more.channels:
        for name in ("keys", "personal", "entropy"):
            word = getattr(less, name) if channel in less.channels else "allow"
            assert _GATE_WORDS.index(word) >= _GATE_WORDS.index(getattr(more, name)), (channel, name)


def check_permits_no_more(less: Policy, more: Policy) -> None:
    """Fails where the first policy permits what the second one does not."""
    assert _stricter("on_violation", less.on_violation, more.on_violation)
    assert _stricter("isolation", less.isolation, more.isolation)
    _check_limits(less.limits, more.limits)
    _check_mounts(less.filesystem, more.filesystem)
    for host in _HOST_ENVIRONMENTS:
        assert _shown(less.environment, host) <= _shown(more.environment, host)
    assert _stricter("clock", less.clock.mode, more.clock.mode)
    if less.clock.mode == more.clock.mode == "coarse":
        assert less.clock.resolution >= more.clock.resolution
    assert _stricter("random", less.random.mode, more.random.mode)
    if less.network != more.network:
        assert _connections(less.network) <= _connections(more.network)
    assert _started(less.process) <= _started(more.process)
    _check_gate(less.gate, more.gate)
    for name in ModuleLimits.__struct_fields__:
        assert getattr(less.structure, name) <= getattr(more.structure, name), name
    for name in Features.__struct_fields__:
        assert getattr(less.features, name) <= getattr(more.features, name), name
    assert less.wasi.refused() >= more.wasi.refused()
    assert _capabilities(less) <= _capabilities(more)


# -- the laws of narrow ------------------------------------------------------------------------------------------------


@settings(max_examples=examples(50))
@given(related(3))
def test_narrow_is_a_meet(three: tuple[Policy, ...]) -> None:
    """Neither the order of policies nor how they are grouped changes what comes out, to the last field."""
    one, two, three_ = three

    assert one.narrow(one) == one
    assert one.narrow(two) == two.narrow(one)
    assert one.narrow(two).digest == two.narrow(one).digest
    assert one.narrow(two).narrow(three_) == one.narrow(two.narrow(three_))
    assert one.narrow(two).narrow(two) == one.narrow(two)


@pytest.mark.parametrize("name", _SECTIONS)
@settings(max_examples=examples(40))
@given(data=st.data())
def test_each_section_narrows_as_a_meet(name: str, data: st.DataObject) -> None:
    """The same for each field of a policy by itself."""
    one, two, three = data.draw(sections(name, 3))

    assert one.narrow(one) == one
    assert one.narrow(two) == two.narrow(one)
    assert one.narrow(two).narrow(three) == one.narrow(two.narrow(three))
    assert one.narrow(two).narrow(two) == one.narrow(two)


@settings(max_examples=examples(30))
@given(policies(), policies())
def test_narrow_takes_any_two_policies(one: Policy, two: Policy) -> None:
    """Whatever text and numbers they are made of, what comes out is a policy within both."""
    both = one.narrow(two)

    assert both == two.narrow(one)
    assert Policy.loads(both.to_toml()) == both
    check_permits_no_more(both, one)
    check_permits_no_more(both, two)


# -- narrow never widens, and takes no more than it must ---------------------------------------------------------------


@settings(max_examples=examples(50))
@given(related())
def test_narrow_never_widens(two: tuple[Policy, ...]) -> None:
    """What two policies permit together, each of them permits."""
    both = two[0].narrow(two[1])

    for side in two:
        check_permits_no_more(both, side)


@pytest.mark.parametrize("name", [name for name in _SECTIONS if name != "name"])
@settings(max_examples=examples(40))
@given(data=st.data())
def test_no_section_widens(name: str, data: st.DataObject) -> None:
    """The same for each field by itself, and for three policies."""
    one, two, three = data.draw(sections(name, 3))

    for side in (one, two):
        check_permits_no_more(one.narrow(two), side)
    check_permits_no_more(one.narrow(two).narrow(three), two)


@settings(max_examples=examples(200))
@given(_environments(), _environments())
@example(Environment(mode="full", set={"A": "x"}), Environment(mode="full"))
@example(Environment(mode="deny", names=("A",), set={"A": "x"}), Environment(mode="full", set={"A": "x"}))
@example(Environment(mode="allow", names=("DB_SECRET",)), Environment(mode="full"))
def test_environments_narrow_exactly(one: Environment, two: Environment) -> None:
    """What both show with the same value, from the same source, is shown by the narrowed one; nothing else is.

    The attack: one policy sets a variable so that the guest does not see the host's value, which may be a secret; the
    other passes the host's. Were the variable only dropped, the host's value would come to light.
    """
    both = Policy(environment=one).narrow(Policy(environment=two)).environment

    for host in _HOST_ENVIRONMENTS:
        assert _shown(both, host) <= _shown(one, host) & _shown(two, host)
    # None of this host's values is one that a policy sets.
    host = _HOST_ENVIRONMENTS[0]
    assert _shown(both, host) == _shown(one, host) & _shown(two, host)


@settings(max_examples=examples(150))
@given(_networks(), _networks())
def test_networks_narrow_exactly(one: Network, two: Network) -> None:
    """A connection that both policies permit is permitted by the narrowed one, and no other.

    The attack: a host in another of its forms (upper case, a dot at its end, an address as one number or as IPv6),
    which one policy would take for something else than the other.
    """
    both = Policy(network=one).narrow(Policy(network=two)).network

    assert _connections(both) == _connections(one) & _connections(two)


@settings(max_examples=examples(100))
@given(_SECTIONS["process"], _SECTIONS["process"], _SECTIONS["wasi"], _SECTIONS["wasi"], *[_SECTIONS["features"]] * 2)
def test_commands_calls_and_features_narrow_exactly(
    one: Process, two: Process, calls: Wasi, others: Wasi, some: Features, more: Features
) -> None:
    """Nothing that both policies permit is lost."""
    both = Policy(process=one, wasi=calls, features=some).narrow(Policy(process=two, wasi=others, features=more))

    assert _started(both.process) == _started(one) & _started(two)
    assert both.wasi.refused() == calls.refused() | others.refused()
    for name in Features.__struct_fields__:
        assert getattr(both.features, name) == (getattr(some, name) and getattr(more, name))


@settings(max_examples=examples(100))
@given(_SECTIONS["limits"], _SECTIONS["limits"])
def test_limits_narrow_to_the_smaller(one: Limits, two: Limits) -> None:
    """Each limit is exactly the smaller one, so that narrowing takes no more than it must."""
    both = Policy(limits=one).narrow(Policy(limits=two)).limits

    for name in Limits.__struct_fields__:
        if name not in _WORDS and not name.startswith("fuel_refill"):
            sides = [value for value in (getattr(one, name), getattr(two, name)) if value is not None]
            assert getattr(both, name) == (min(sides) if sides else None), name
    for name in ("on_memory_denied", "on_rate", "compile_process"):
        assert getattr(both, name) in (getattr(one, name), getattr(two, name))


@settings(max_examples=examples(100))
@given(_SECTIONS["filesystem"], _SECTIONS["filesystem"])
def test_folders_narrow_exactly(one: Filesystem, two: Filesystem) -> None:
    """The same folder under the same name stays, writable where both say so, for the paths that both name."""
    both = Policy(filesystem=one).narrow(Policy(filesystem=two)).filesystem
    assert _granted(both) == _granted(one) & _granted(two)
    assert len({(mount.host, mount.guest) for mount in both.mounts}) == len(both.mounts) or both in (one, two)


_SAME_SORT = st.one_of(
    *(st.tuples(sort, sort) for sort in (st.booleans(), _numerics(), st.sampled_from(_TEXTS), _lists(_TEXTS)))
)


@settings(max_examples=examples(200))
@given(_SAME_SORT)
def test_capabilities_of_one_sort_narrow_exactly(sides: tuple[Any, Any]) -> None:
    """A capability that both policies have in the same sort grants what both grant."""
    one, two = (Policy(custom={"gpu": side}) for side in sides)

    assert _capabilities(one.narrow(two)) == _capabilities(one) & _capabilities(two)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (True, Amount(4, 1, 8)),
        (True, "x"),
        (True, ("x",)),
        (Amount(1, 1, 1), True),
        (Amount(1, 1, 1), "1"),
        ("x", ("y",)),
        ("x", False),
        ((), ""),
    ],
    ids=repr,
)
def test_capabilities_of_two_sorts_grant_nothing(one: Any, two: Any) -> None:
    """The attack: a capability that one policy has as an amount and the other as a switch."""
    for first, second in ((one, two), (two, one)):
        both = Policy(custom={"gpu": first}).narrow(Policy(custom={"gpu": second}))
        assert _capabilities(both) == set()


def test_clocks_narrow_to_the_coarser() -> None:
    """Two coarse clocks give the coarser, whatever the order; a real one never makes one finer."""
    coarse, coarser = (
        Policy(clock=Clock(mode="coarse", resolution=0.25)),
        Policy(clock=Clock(mode="coarse", resolution=1)),
    )

    assert coarse.narrow(coarser).clock == coarser.clock
    assert coarse.narrow(Policy()).clock == coarse.clock
    assert coarse.narrow(Policy(clock=Clock(mode="virtual", start=7.0))).clock == Clock(mode="virtual", start=7.0)
    assert coarse.narrow(Policy(clock=Clock(mode="none"))).clock == Clock(mode="none")


def test_randomness_narrows_to_one_of_the_seeds() -> None:
    """Seeded is stricter than the host's, none stricter than seeded; of two seeds one is kept."""
    one, two = Policy(random=Random(mode="seeded", seed=1)), Policy(random=Random(mode="seeded", seed=2))

    assert one.narrow(Policy()).random == one.random
    assert one.narrow(two).random == two.narrow(one).random
    assert one.narrow(two).random in (one.random, two.random)
    assert one.narrow(Policy(random=Random(mode="none"))).random == Random(mode="none")


_ASKS_TIME_AND_CHANCE = """
(module
  (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "now") (result i64)
    (drop (call $time (i32.const 0) (i64.const 1) (i32.const 64)))
    (i64.load (i32.const 64)))
  (func (export "chance") (result i64)
    (drop (call $random (i32.const 64) (i32.const 8)))
    (i64.load (i32.const 64))))
"""


@pytest.mark.parametrize("on_violation", ["audit", "deny"])
def test_none_is_the_strictest_when_it_is_only_noted_too(on_violation: Any) -> None:
    """The attack: two policies under which a guest cannot learn the time, and one made of both that tells.

    Under `audit` refused calls are made all the same. Where they then went to the host's clock, `none` would permit
    more than `virtual` does, and narrowing a virtual clock by it would be a widening.
    """
    module = wat(_ASKS_TIME_AND_CHANCE)
    made_up = Policy(on_violation=on_violation, clock=Clock(mode="virtual"), random=Random(mode="seeded"))
    nothing = Policy(on_violation=on_violation, clock=Clock(mode="none"), random=Random(mode="none"))
    real = Policy(on_violation=on_violation)
    begun = time.time_ns()

    for policy in (made_up, nothing, made_up.narrow(nothing)):
        with Sandbox(policy) as box:
            times, chances = ([box.call(module, name).value for _ in range(2)] for name in ("now", "chance"))
        assert times[0] == times[1] < begun
        assert chances[0] == chances[1]
    with Sandbox(real) as box:
        assert box.call(module, "now").value >= begun
        assert box.call(module, "chance").value != box.call(module, "chance").value


@pytest.mark.parametrize(
    ("one", "two", "both"),
    [
        # Refilled on one side only: the other one's fuel is all there is.
        ({"fuel": 10, "fuel_refill": 5, "fuel_refill_max": 20}, {"fuel": 100}, (10, 0, 0, 1.0)),
        ({"fuel": 10, "fuel_refill": 5, "fuel_refill_max": 20}, {"fuel": 3}, (3, 0, 0, 1.0)),
        # Not metered on one side: the other one's refills go on.
        ({"fuel": 10, "fuel_refill": 5, "fuel_refill_max": 20}, {"fuel": None}, (10, 5, 20, 1.0)),
        (
            {"fuel": 10, "fuel_refill": 5, "fuel_refill_max": 20, "fuel_refill_interval": 2.0},
            {"fuel": 15, "fuel_refill": 3, "fuel_refill_max": 15},
            (10, 3, 15, 2.0),
        ),
        # The attack: amounts and intervals mixed so that both policies' rates are kept, and refills are larger.
        (
            {"fuel": 10, "fuel_refill": 100, "fuel_refill_max": 1000, "fuel_refill_interval": 100.0},
            {"fuel": 10, "fuel_refill": 1, "fuel_refill_max": 1000},
            (10, 1, 1000, 100.0),
        ),
        # A refill that overflows adds no more than there is room for.
        (
            {"fuel": 10, "fuel_refill": 100, "fuel_refill_max": 20},
            {"fuel": 5, "fuel_refill": 50, "fuel_refill_max": 60},
            (5, 20, 20, 1.0),
        ),
        # The attack: a time on one side, and units without end on the other.
        ({"fuel": 10, "fuel_refill": 5, "fuel_refill_max": 20}, {"fuel": None, "fuel_time": 2.0}, (10, 5, 20, 1.0)),
    ],
)
def test_refills_narrow(one: dict[str, Any], two: dict[str, Any], both: tuple[float, ...]) -> None:
    """The smaller amount at the longer interval, up to the smaller maximum; a time stays beside it."""
    for first, second in ((one, two), (two, one)):
        narrowed = Policy(limits=Limits(**first)).narrow(Policy(limits=Limits(**second))).limits

        assert (narrowed.fuel, narrowed.fuel_refill, narrowed.fuel_refill_max, narrowed.fuel_refill_interval) == both
        assert narrowed.fuel_time == one.get("fuel_time", two.get("fuel_time"))


_Events = list[tuple[int, int]]


def _played(limits: Limits, events: _Events) -> list[tuple[float, int, int]]:
    """Plays a run that burns units of fuel at some moments, as long as it has any.

    Args:
        limits: The limits.
        events: Tenths of a second that pass, and the units that are burnt then.

    Returns:
        After each event, the seconds since the beginning, the units burnt in all, and those in hand.
    """
    assert limits.fuel is not None
    now, refills, burnt, in_hand = Fraction(0), 0, 0, limits.fuel
    told = []
    for tenths, units in events:
        now += Fraction(tenths, 10)
        while limits.fuel_refill and refills < _refills_by(limits, float(now)):
            refills += 1
            in_hand = min(in_hand + limits.fuel_refill, limits.fuel_refill_max)
        spent = min(units, in_hand)
        burnt, in_hand = burnt + spent, in_hand - spent
        told.append((float(now), burnt, in_hand))
        if not in_hand:
            break
    return told


_BUDGETS = _limits().filter(lambda limits: limits.fuel is not None)
_EVENTS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40)), max_size=20)


@settings(max_examples=examples(200))
@given(_BUDGETS, _BUDGETS, _EVENTS)
def test_a_run_gets_no_more_under_narrowed_refills(one: Limits, two: Limits, events: _Events) -> None:
    """However a guest saves up and burns, it has never burnt or in hand more than each policy gives."""
    both = Policy(limits=one).narrow(Policy(limits=two)).limits

    for side in (one, two):
        for now, burnt, in_hand in _played(both, events):
            assert burnt <= _fuel_by(side, now)
            assert in_hand <= (side.fuel_refill_max if side.fuel_refill else side.fuel or 0)


@settings(max_examples=examples(200))
@given(_BUDGETS, _BUDGETS, _EVENTS)
def test_a_run_that_lasts_under_narrowed_refills_lasts_under_each(one: Limits, two: Limits, events: _Events) -> None:
    """Where refills come at the same moments, a guest that goes on under both policies does under each."""
    two = msgspec.structs.replace(two, fuel_refill_interval=one.fuel_refill_interval)
    both = Policy(limits=one).narrow(Policy(limits=two)).limits

    lasted = _played(both, events)
    for side in (one, two):
        told = _played(side, events)
        for less, more in zip(lasted, told, strict=False):
            assert less[1] <= more[1]
            assert less[1] < more[1] or less[2] <= more[2]
        assert len(told) >= len(lasted)


@pytest.mark.parametrize(
    ("one", "two", "both"),
    [
        ({"fuel": 7, "fuel_time": 2.0}, {"fuel_time": 3.0}, (7, 2.0)),
        ({"fuel": None, "fuel_time": 2.0}, {"fuel": None}, (None, 2.0)),
        # How many units a time is, only the machine knows: both stay, and the lesser counts.
        ({"fuel": None, "fuel_time": 2.0}, {"fuel": 10}, (10, 2.0)),
        ({"fuel": None, "fuel_time": 3600.0}, {"fuel": 10, "fuel_time": 0.5}, (10, 0.5)),
    ],
)
def test_fuel_of_a_time_narrows(one: dict[str, Any], two: dict[str, Any], both: tuple[float | None, ...]) -> None:
    """The shorter time counts, beside the smaller number of units, whichever side they are from."""
    for first, second in ((one, two), (two, one)):
        narrowed = Policy(limits=Limits(**first)).narrow(Policy(limits=Limits(**second)))

        assert (narrowed.limits.fuel, narrowed.limits.fuel_time) == both
        for side in (one, two):
            assert narrowed.is_subset(Policy(limits=Limits(**side)))


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two", "both"),
    [
        ("strict", "strict", "strict"),
        ("strict", "mine", "mine & strict"),
        ("mine & strict", "strict", "mine & strict"),
        ("x" * 600, "y" * 600, "narrowed"),
    ],
)
def test_names_are_told_together(one: str, two: str, both: str) -> None:
    """Each name once, as long as they are short enough to tell."""
    assert Policy(name=one).narrow(Policy(name=two)).name == both


@pytest.mark.parametrize("one", [" & ", "&", " &  & ", "& ", " "])
@pytest.mark.parametrize("two", [" &  & ", " & ", "a"])
def test_no_name_stops_policies_from_being_combined(one: str, two: str) -> None:
    """The attack: a policy whose name makes narrowing fail, so that it is used as it is."""
    assert Policy(name=one).narrow(Policy(name=two)).name


@settings(max_examples=examples(200))
@given(st.lists(st.sampled_from(_NAMES) | st.text("ab& ", min_size=1, max_size=8), min_size=3, max_size=3))
@example(["x" * 600, "y" * 600, "a"])
@example(["a &", "b", "b"])
def test_names_do_not_depend_on_the_grouping(names: list[str]) -> None:
    """Names with the separator in them, and too long ones, come out the same however policies are grouped."""
    one, two, three = (Policy(name=name) for name in names)

    assert one.narrow(two).narrow(three).name == one.narrow(two.narrow(three)).name


def _mounts(*mounts: Mount) -> dict[str, Any]:
    return {"filesystem": Filesystem(mounts=mounts)}


def _hosts(*hosts: HostRule) -> dict[str, Any]:
    return {"network": Network(mode="hosts", hosts=hosts)}


# -- nothing in common -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two", "both"),
    [
        (
            {"environment": Environment(mode="allow", names=("A",))},
            {"environment": Environment(mode="allow", names=("B",))},
            {"environment": Environment()},
        ),
        (
            {"environment": Environment(mode="allow", names=("DB_SECRET",))},
            {"environment": Environment(mode="deny", names=("A",))},
            {"environment": Environment()},
        ),
        ({"environment": Environment(set={"A": "x"})}, {"environment": Environment(set={"A": "y"})}, {}),
        (
            _hosts(HostRule("a.example")),
            _hosts(HostRule("b.example")),
            {},
        ),
        (
            _hosts(HostRule("a.example", ports=(80,))),
            _hosts(HostRule("a.example", ports=(443,))),
            {},
        ),
        ({"network": Network(mode="ports", ports=(80,))}, {"network": Network(mode="ports", ports=(81,))}, {}),
        (
            _hosts(HostRule("localhost", ports=(80,))),
            {"network": Network(mode="ports", ports=(80,))},
            {},
        ),
        (
            _hosts(HostRule("10.0.0.1", ports=(80,))),
            {"network": Network(mode="ports", ports=(80,))},
            {},
        ),
        ({"network": Network(mode="loopback")}, {"network": Network(mode="ports", ports=(80,))}, {}),
        (
            {"network": Network(mode="loopback")},
            _hosts(HostRule("a.example")),
            {},
        ),
        (
            {"process": Process(mode="commands", commands=("/bin/a",))},
            {"process": Process(mode="commands", commands=("/bin/b",))},
            {},
        ),
        (
            _mounts(Mount("a", "/data")),
            _mounts(Mount("b", "/data")),
            {},
        ),
        (
            _mounts(Mount("a", "/data")),
            _mounts(Mount("a", "/other")),
            {},
        ),
        ({"wasi": Wasi(allow=("fd_*",))}, {"wasi": Wasi(allow=("path_*",))}, {"refused": 46}),
        ({"wasi": Wasi(allow=())}, {"wasi": Wasi()}, {"refused": 46}),
        ({"custom": {"gpu": ("x",)}}, {"custom": {"gpu": ("y",)}}, {"custom": {"gpu": ()}}),
        ({"custom": {"gpu": True}}, {"custom": {"mail": True}}, {}),
        ({"custom": {"gpu": True}}, {"custom": {"gpu": False}}, {"custom": {"gpu": False}}),
        ({"custom": {"gpu": Amount(2, 1, 8)}}, {"custom": {"gpu": Amount(4, 3, 8)}}, {}),
        ({"custom": {"gpu": "x"}}, {"custom": {"gpu": "y"}}, {}),
    ],
)
def test_disjoint_lists_give_nothing(one: dict[str, Any], two: dict[str, Any], both: dict[str, Any]) -> None:
    """The attack: two allow-lists whose intersection is empty, and an empty list that means everything."""
    expected = dict(both)
    refused = expected.pop("refused", None)

    for first, second in ((one, two), (two, one)):
        narrowed = Policy(**first).narrow(Policy(**second))
        if refused is None:
            assert narrowed == Policy(**expected)
        else:
            assert len(narrowed.wasi.refused()) == refused
        assert _connections(narrowed.network) == _started(narrowed.process) == _capabilities(narrowed) == set()
        assert narrowed.filesystem.mounts == ()
        assert all(narrowed.environment.of(host) == {} for host in _HOST_ENVIRONMENTS)


@pytest.mark.parametrize(
    ("one", "two", "both"),
    [
        (
            {"environment": Environment(mode="allow", names=("B", "A"))},
            {"environment": Environment(mode="allow", names=("A", "C"))},
            {"environment": Environment(mode="allow", names=("A",))},
        ),
        (
            {"environment": Environment(mode="deny", names=("A",))},
            {"environment": Environment(mode="deny", names=("B",))},
            {"environment": Environment(mode="deny", names=("A", "B"))},
        ),
        (
            {"environment": Environment(mode="full")},
            {"environment": Environment(mode="allow", names=("A", "DB_SECRET"))},
            # The first withholds it where its value looks like a secret.
            {"environment": Environment(mode="allow", names=("A",), secrets="never")},
        ),
        (
            {"environment": Environment(mode="full", set={"A": "x", "B": "y"})},
            {"environment": Environment(mode="full", set={"A": "x"})},
            {"environment": Environment(mode="deny", names=("B",), set={"A": "x"})},
        ),
        (
            _hosts(HostRule("A.example.", ports=(80, PortRange(90, 99)))),
            _hosts(HostRule("a.example", ports=(PortRange(1, 92),), secure=False)),
            _hosts(HostRule("a.example", ports=(80, PortRange(90, 92)))),
        ),
        (
            _hosts(HostRule("8.8.8.8", ports=(53, 80)), HostRule("10.0.0.1", ports=(53,))),
            {"network": Network(mode="ports", ports=(53,))},
            _hosts(HostRule("8.8.8.8", ports=(53,))),
        ),
        (
            _hosts(HostRule("::1"), HostRule("a.example")),
            {"network": Network(mode="loopback")},
            _hosts(HostRule("::1")),
        ),
        (
            {"network": Network(mode="ports", ports=(PortRange(80, 90), 95))},
            {"network": Network(mode="ports", ports=(PortRange(85, 100),))},
            {"network": Network(mode="ports", ports=(PortRange(85, 90), 95))},
        ),
        (
            {"network": Network(mode="full")},
            {"network": Network(mode="loopback")},
            {"network": Network(mode="loopback")},
        ),
        (
            {"process": Process(mode="full")},
            {"process": Process(mode="commands", commands=("/bin/b", "/bin/a"))},
            {"process": Process(mode="commands", commands=("/bin/a", "/bin/b"))},
        ),
        (
            {"filesystem": Filesystem(mounts=(Mount("a", "/a", "rw"), Mount("b", "/b", "rw")), delete=True)},
            {"filesystem": Filesystem(mounts=(Mount("b", "/b", "rw"), Mount("a", "/a", "ro")), create=False)},
            {"filesystem": Filesystem(mounts=(Mount("a", "/a", "ro"), Mount("b", "/b", "rw")), create=False)},
        ),
        (
            {"wasi": Wasi(deny=("random_get", "sched_yield"))},
            {"wasi": Wasi(deny=("sock", "clock_res_get", "clock_time_get"), errno="perm")},
            {"wasi": Wasi(deny=("clock_*", "random_get", "sched_yield", "sock_*"))},
        ),
        (
            {"custom": {"gpu": Amount(8, 1, 16), "mail": ("b", "a", "c")}},
            {"custom": {"gpu": Amount(9, 2, 9), "mail": ("a", "b")}},
            {"custom": {"gpu": Amount(8, 2, 9), "mail": ("a", "b")}},
        ),
    ],
)
def test_what_is_common_stays(one: dict[str, Any], two: dict[str, Any], both: dict[str, Any]) -> None:
    """The twin of disjoint lists: exactly what both permit is left, written in one way."""
    assert Policy(**one).narrow(Policy(**two)) == Policy(**two).narrow(Policy(**one)) == Policy(**both)


# -- stricter policies for single runs ---------------------------------------------------------------------------------


def test_a_stricter_policy_for_one_run_wins() -> None:
    """Whatever the policy at hand permits, a run's own stricter one is what holds."""
    house = Policy.preset("permissive").replace(mounts=(Mount("data", "/data", "rw"),), delete=True)
    one_run = Policy.preset("strict").replace(mounts=(Mount("data", "/data", "ro"),), name="one run")

    both = house.narrow(one_run)

    assert both.filesystem == one_run.filesystem
    assert both.limits == one_run.limits
    assert both.clock == one_run.clock
    assert both.random == one_run.random
    assert both.features == one_run.features
    assert both.name == "one run & permissive"


def test_a_laxer_policy_for_one_run_has_no_effect() -> None:
    """The attack: whoever may choose a run's policy chooses one that permits everything."""
    house = Policy.preset("strict")
    everything = Policy(
        name="strict",
        on_violation="audit",
        limits=Limits(
            **dict.fromkeys(("fuel", "wall_time", "files_created", "file_size", "write_bytes", "random_bytes")),
            memory=4 << 30,
            table_elements=10_000_000,
            stack=64 << 20,
            memories=16,
            tables=16,
            module_size=1 << 30,
            compile_process="never",
            compile_time=86_400,
            compile_memory=1 << 40,
            stdout=256 << 20,
            stderr=256 << 20,
            open_files=4096,
        ),
        filesystem=Filesystem(mounts=(Mount("/", "/", "rw"),), delete=True, symlinks=True),
        environment=Environment(mode="full", set={"LD_PRELOAD": "/evil.so"}),
        network=Network(mode="full"),
        process=Process(mode="full"),
        features=Features(**dict.fromkeys(Features.__struct_fields__, True)),
        wasi=Wasi(deny=()),
        custom={"gpu": True},
    )

    assert house.narrow(everything) == everything.narrow(house)
    assert house.narrow(everything).is_subset(house)
    assert house.is_subset(house.narrow(everything))
    assert house.is_subset(everything.replace(set={}))


@pytest.mark.parametrize("one", PRESETS)
@pytest.mark.parametrize("two", PRESETS)
def test_presets_narrow(one: str, two: str) -> None:
    """Any two presets have a meet within both."""
    first, second = Policy.preset(one), Policy.preset(two)

    for side in (first, second):
        check_permits_no_more(first.narrow(second), side)
        assert first.narrow(second).is_subset(side)
    if one == two:
        assert first.narrow(second) == first


# -- subsets -----------------------------------------------------------------------------------------------------------


@settings(max_examples=examples(50))
@given(related())
def test_subsets_permit_no_more(two: tuple[Policy, ...]) -> None:
    """A policy is within itself, a meet within both sides, and what is within permits no more."""
    one, other = two
    both = one.narrow(other)

    assert one.is_subset(one)
    assert both.is_subset(one)
    assert both.is_subset(other)
    for first, second in ((one, other), (other, one), (one, both), (both, one)):
        if first.is_subset(second):
            check_permits_no_more(first, second)


@pytest.mark.parametrize("name", _SECTIONS)
@settings(max_examples=examples(40))
@given(data=st.data())
def test_subsets_by_section(name: str, data: st.DataObject) -> None:
    """Subsets of each field by itself permit no more, and a subset's subset is one, too."""
    one, two, three = data.draw(sections(name, 3))

    assert one.is_subset(one)
    assert one.narrow(two).is_subset(one)
    assert one.narrow(two).is_subset(two)
    assert one.narrow(two).narrow(three).is_subset(two.narrow(three))
    if one.is_subset(two):
        check_permits_no_more(one, two)
        assert one.narrow(three).is_subset(two.narrow(three))
        if two.is_subset(three):
            assert one.is_subset(three)


@settings(max_examples=examples(200))
@given(_environments(), _environments())
def test_subsets_of_environments_are_found(one: Environment, two: Environment) -> None:
    """An environment that shows no more, whatever the host has, is a subset: the test is exact, not only safe."""
    shows_no_more = all(
        # A value that one sets is no subset of a host's that happens to be the same.
        _shown(one, host) <= _shown(two, host)
        for host in (
            _HOST_ENVIRONMENTS[0],
            {name: f"another {name}" for name in _HOST_ENVIRONMENTS[0]},
            {name: f"https://user:{name}@host/" for name in _HOST_ENVIRONMENTS[0]},
            {},
        )
    )

    assert Policy(environment=one).is_subset(Policy(environment=two)) == shows_no_more


@settings(max_examples=examples(100))
@given(_networks(), _networks())
@example(
    Network(mode="hosts", hosts=(HostRule("a.example", secure=False),)),
    Network(mode="hosts", hosts=(HostRule("a.example", secure=False), HostRule("a.example"))),
)
def test_subsets_of_networks_are_found(one: Network, two: Network) -> None:
    """The same for networks. What is asked has a connection for every way in which two of these networks can differ."""
    assert Policy(network=one).is_subset(Policy(network=two)) == (_connections(one) <= _connections(two))


@settings(max_examples=examples(100))
@given(_SECTIONS["process"], _SECTIONS["process"], _SECTIONS["wasi"], _SECTIONS["wasi"])
def test_subsets_of_commands_and_calls_are_found(one: Process, two: Process, calls: Wasi, others: Wasi) -> None:
    """The same for commands and calls."""
    assert Policy(process=one).is_subset(Policy(process=two)) == (_started(one) <= _started(two))
    assert Policy(wasi=calls).is_subset(Policy(wasi=others)) == (calls.refused() >= others.refused())


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (_hosts(HostRule("A.example.")), _hosts(HostRule("a.example"))),
        (_hosts(HostRule("a.example")), _hosts(HostRule("a.example", secure=False))),
        (_hosts(HostRule("a.example")), {"network": Network(mode="ports", ports=(443,))}),
        (_hosts(HostRule("a.example")), {"network": Network(mode="full")}),
        (_hosts(HostRule("db.localhost")), {"network": Network(mode="loopback")}),
        ({"environment": Environment(mode="allow")}, {}),
        (
            {"environment": Environment(mode="allow", names=("A",), secrets="never")},
            {"environment": Environment(mode="deny")},
        ),
        ({"wasi": Wasi(deny=("sock",), errno="perm")}, {}),
        ({"clock": Clock(start=0)}, {}),
        ({"clock": Clock(mode="virtual", start=5, step=0)}, {"clock": Clock(mode="virtual")}),
        ({"random": Random(mode="seeded", seed=5)}, {"random": Random(mode="seeded")}),
        ({"custom": {"gpu": False, "mail": ()}}, {}),
        ({"name": "another"}, {}),
        ({"limits": Limits(fuel_refill_interval=0.5)}, {}),
        (
            {"limits": Limits(fuel=5, fuel_refill=100, fuel_refill_max=6)},
            {"limits": Limits(fuel=5, fuel_refill=6, fuel_refill_max=6)},
        ),
        (
            _mounts(Mount("a", "/a"), Mount("b", "/b")),
            _mounts(Mount("b", "/b"), Mount("a", "/a", "rw")),
        ),
    ],
    ids=repr,
)
def test_wording_is_no_right(one: dict[str, Any], two: dict[str, Any]) -> None:
    """What permits no more is a subset, however it is written."""
    assert Policy(**one).is_subset(Policy(**two))


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"on_violation": "stop"}, {"on_violation": "deny"}),
        ({"on_violation": "deny"}, {"on_violation": "audit"}),
        ({"isolation": "process"}, {"isolation": "inprocess"}),
        ({"limits": Limits(fuel=1)}, {"limits": Limits(fuel=None)}),
        ({"limits": Limits(fuel_time=0.001)}, {}),
        ({"limits": Limits(fuel=None, fuel_time=2)}, {"limits": Limits(fuel=None, fuel_time=2.001)}),
        ({"limits": Limits(fuel=1, fuel_time=2)}, {"limits": Limits(fuel=None, fuel_time=2)}),
        ({"limits": Limits(on_memory_denied="stop")}, {"limits": Limits(on_memory_denied="fail")}),
        ({"limits": Limits(on_rate="refuse")}, {"limits": Limits(on_rate="wait")}),
        ({"limits": Limits(fuel=5)}, {"limits": Limits(fuel=5, fuel_refill=1, fuel_refill_max=5)}),
        (
            {"limits": Limits(fuel=5, fuel_refill=1, fuel_refill_max=5, fuel_refill_interval=2)},
            {"limits": Limits(fuel=5, fuel_refill=1, fuel_refill_max=5)},
        ),
        (
            {"limits": Limits(fuel=5, fuel_refill=1, fuel_refill_max=5)},
            {"limits": Limits(fuel=5, fuel_refill=1, fuel_refill_max=6)},
        ),
        ({"limits": Limits(compile_process="always")}, {}),
        ({}, {"limits": Limits(compile_process="never")}),
        ({"structure": ModuleLimits(functions=99_999)}, {}),
        ({"filesystem": Filesystem(create=False)}, {}),
        ({}, {"filesystem": Filesystem(delete=True)}),
        ({}, {"filesystem": Filesystem(symlinks=True)}),
        (
            _mounts(Mount("a", "/a")),
            _mounts(Mount("a", "/a", "rw")),
        ),
        ({}, {"environment": Environment(set={"A": ""})}),
        ({"environment": Environment(mode="full")}, {"environment": Environment(mode="full", set={"DB_SECRET": "x"})}),
        ({"environment": Environment(mode="deny", names=("A",))}, {"environment": Environment(mode="full")}),
        ({"clock": Clock(mode="coarse", resolution=1)}, {"clock": Clock(mode="coarse", resolution=0.5)}),
        ({"random": Random(mode="none")}, {"random": Random(mode="seeded")}),
        ({}, {"network": Network(mode="loopback")}),
        (
            _hosts(HostRule("a.example", ports=(80,))),
            _hosts(HostRule("a.example", ports=(PortRange(80, 81),))),
        ),
        ({"process": Process(mode="commands", commands=("/bin/a",))}, {"process": Process(mode="full")}),
        ({}, {"features": Features(gc=True)}),
        ({}, {"wasi": Wasi(deny=("sock_send", "sock_recv", "sock_accept"))}),
        ({}, {"custom": {"gpu": True}}),
        ({"custom": {"gpu": ("x",)}}, {"custom": {"gpu": ("x", "y")}}),
        ({"custom": {"gpu": Amount(3, 1, 8)}}, {"custom": {"gpu": Amount(4, 1, 8)}}),
        ({"custom": {"gpu": Amount(4, 2, 8)}}, {"custom": {"gpu": Amount(4, 1, 8)}}),
    ],
    ids=repr,
)
def test_one_right_more_is_no_subset(less: dict[str, Any], more: dict[str, Any]) -> None:
    """The smallest widening is noticed, in one direction only."""
    assert Policy(**less).is_subset(Policy(**more))
    assert not Policy(**more).is_subset(Policy(**less))
    assert Policy(**less).narrow(Policy(**more)).is_subset(Policy(**less))


def test_long_lists_are_combined() -> None:
    """The attack: a policy of some kilobytes, thousands of hosts or nested ranges, on which combining never ends."""
    many = examples(1000)
    nested = Policy(network=Network(mode="ports", ports=[PortRange(port, 60_000 - port) for port in range(1, many)]))
    hosts = Policy(**_hosts(*(HostRule(f"h{place}.example", ports=(PortRange(1, 65_535),)) for place in range(many))))
    fewer = hosts.replace(hosts=hosts.network.hosts[1:])

    assert nested.narrow(Policy(network=Network(mode="full"))).network.ports == (PortRange(1, 59_999),)
    assert nested.narrow(nested.replace(ports=nested.network.ports[1:])).network.ports == (PortRange(2, 59_998),)
    assert fewer.is_subset(hosts)
    assert not hosts.is_subset(fewer)
    assert [change.effect for change in hosts.diff(fewer.replace(wall_time=1.0))] == ["narrower", "narrower"]


# -- differences -------------------------------------------------------------------------------------------------------


_RO = {"host": "a", "guest": "/a", "mode": "ro"}
_RW = {"host": "a", "guest": "/a", "mode": "rw"}
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_HTTPS = {"host": "a.example", "ports": [443], "secure": True, "methods": _METHODS, "paths": ["/"]}


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ({"name": "a"}, {"name": "b"}, [("name", "a", "b", "none")]),
        ({}, {"on_violation": "stop"}, [("on_violation", "deny", "stop", "narrower")]),
        ({}, {"on_violation": "audit"}, [("on_violation", "deny", "audit", "wider")]),
        ({}, {"isolation": "process"}, [("isolation", "inprocess", "process", "narrower")]),
        (
            {"limits": Limits(fuel=5_000_000_000)},
            {"limits": Limits(memory=64 << 20, fuel=None, wall_time=2.5)},
            [
                ("limits.fuel", 5_000_000_000, "unlimited", "wider"),
                ("limits.wall_time", "5s", "2500ms", "narrower"),
                ("limits.memory", "128MiB", "64MiB", "narrower"),
            ],
        ),
        ({}, {"limits": Limits(on_rate="refuse")}, [("limits.on_rate", "wait", "refuse", "narrower")]),
        ({}, {"limits": Limits(fuel_refill_interval=2)}, [("limits.fuel_refill_interval", "1s", "2s", "none")]),
        ({}, {"limits": Limits(fuel_time=2)}, [("limits.fuel_time", "unlimited", "2s", "narrower")]),
        # One may be more than the other or less: that is told of each.
        (
            {"limits": Limits(fuel=None, fuel_time=2)},
            {"limits": Limits(fuel=1000)},
            [("limits.fuel", "unlimited", 1000, "narrower"), ("limits.fuel_time", "2s", "unlimited", "wider")],
        ),
        (
            {"limits": Limits(fuel=100)},
            {"limits": Limits(fuel=100, fuel_refill=1, fuel_refill_max=200)},
            [("limits.fuel_refill", 0, 1, "wider"), ("limits.fuel_refill_max", 0, 200, "wider")],
        ),
        ({}, _mounts(Mount("a", "/a")), [("filesystem.mounts", [], [_RO], "wider")]),
        (_mounts(Mount("a", "/a", "rw")), {}, [("filesystem.mounts", [_RW], [], "narrower")]),
        (_mounts(Mount("a", "/a", "rw")), _mounts(Mount("a", "/a")), [("filesystem.mounts", [_RW], [_RO], "narrower")]),
        (
            _mounts(Mount("a", "/a")),
            _mounts(Mount("b", "/a")),
            [("filesystem.mounts", [_RO], [{**_RO, "host": "b"}], "both")],
        ),
        (
            {},
            {"filesystem": Filesystem(create=False, delete=True)},
            [("filesystem.create", True, False, "narrower"), ("filesystem.delete", False, True, "wider")],
        ),
        (
            {},
            {"environment": Environment(mode="allow", names=("A",))},
            [("environment.mode", "none", "allow", "wider"), ("environment.names", [], ["A"], "wider")],
        ),
        (
            {"environment": Environment(mode="allow", names=("A", "B"))},
            {"environment": Environment(mode="allow", names=("B", "A"))},
            [("environment.names", ["A", "B"], ["B", "A"], "none")],
        ),
        (
            {"environment": Environment(mode="deny", names=("A",))},
            {"environment": Environment(mode="deny", names=("A", "B"))},
            [("environment.names", ["A"], ["A", "B"], "narrower")],
        ),
        (
            {"environment": Environment(set={"A": "x"})},
            {"environment": Environment(set={"A": "y"})},
            [("environment.set", {"A": "x"}, {"A": "y"}, "both")],
        ),
        ({}, {"clock": Clock(mode="coarse")}, [("clock.mode", "real", "coarse", "narrower")]),
        ({"clock": Clock(mode="none")}, {}, [("clock.mode", "none", "real", "wider")]),
        ({}, {"clock": Clock(step=0.5)}, [("clock.step", "1us", "500ms", "none")]),
        ({}, {"random": Random(mode="none")}, [("random.mode", "full", "none", "narrower")]),
        (
            {"random": Random(mode="seeded")},
            {"random": Random(mode="seeded", seed=1)},
            [("random.seed", 0, 1, "none")],
        ),
        (
            {},
            _hosts(HostRule("a.example")),
            [("network.mode", "none", "hosts", "wider"), ("network.hosts", [], [_HTTPS], "wider")],
        ),
        (
            _hosts(HostRule("a.example")),
            _hosts(HostRule("A.example.")),
            [("network.hosts", [_HTTPS], [{**_HTTPS, "host": "A.example."}], "none")],
        ),
        (
            _hosts(HostRule("a.example", secure=False)),
            _hosts(HostRule("a.example")),
            [("network.hosts", [{**_HTTPS, "secure": False}], [_HTTPS], "narrower")],
        ),
        (
            _hosts(HostRule("a.example")),
            _hosts(HostRule("b.example")),
            [("network.hosts", [_HTTPS], [{**_HTTPS, "host": "b.example"}], "both")],
        ),
        (
            {"network": Network(mode="ports", ports=(80,))},
            {"network": Network(mode="loopback")},
            [("network.mode", "ports", "loopback", "both"), ("network.ports", [80], [], "both")],
        ),
        ({"process": Process(mode="full")}, {}, [("process.mode", "full", "none", "narrower")]),
        (
            {},
            {"process": Process(mode="commands", commands=("/bin/a",))},
            [("process.mode", "none", "commands", "wider"), ("process.commands", [], ["/bin/a"], "wider")],
        ),
        (
            {},
            {"features": Features(simd=False, gc=True)},
            [("features.simd", True, False, "narrower"), ("features.gc", False, True, "wider")],
        ),
        (
            {"features": Features(relaxed_simd=True)},
            {"features": Features(simd=False)},
            [("features.simd", True, False, "narrower"), ("features.relaxed_simd", True, False, "narrower")],
        ),
        ({}, {"wasi": Wasi(deny=("sock",))}, [("wasi.deny", ["sock_*"], ["sock"], "none")]),
        ({}, {"wasi": Wasi(deny=())}, [("wasi.deny", ["sock_*"], [], "wider")]),
        ({}, {"wasi": Wasi(allow=("fd",))}, [("wasi.allow", ["*"], ["fd"], "narrower")]),
        ({}, {"wasi": Wasi(errno="nosys")}, [("wasi.errno", "notcapable", "nosys", "none")]),
        ({}, {"custom": {"gpu": True}}, [("custom", {}, {"gpu": True}, "wider")]),
        ({}, {"custom": {"gpu": False}}, [("custom", {}, {"gpu": False}, "none")]),
        (
            {"custom": {"gpu": ("x",)}},
            {"custom": {"gpu": ("y",)}},
            [("custom", {"gpu": ["x"]}, {"gpu": ["y"]}, "both")],
        ),
    ],
)
def test_changes_are_told_with_their_effect(
    before: dict[str, Any], after: dict[str, Any], changes: list[tuple[str, Any, Any, Any]]
) -> None:
    """What changes is told as documents have it, in their order, and whether more or less is permitted then."""
    assert Policy(**before).diff(Policy(**after)) == tuple(Change(*change) for change in changes)


@pytest.mark.parametrize("name", PRESETS)
def test_equal_policies_do_not_differ(name: str) -> None:
    """The twin of every difference: none."""
    assert Policy.preset(name).diff(Policy.preset(name)) == ()


_REVERSED = {"wider": "narrower", "narrower": "wider", "both": "both", "none": "none"}


def _section_of(change: Change) -> str:
    return change.path.partition(".")[0]


@settings(max_examples=examples(50))
@given(related())
def test_no_change_is_hidden(two: tuple[Policy, ...]) -> None:
    """Every field that changed is told, at a path that documents have, with what stands there before and after."""
    before, after = two
    changes = before.diff(after)
    documents = before.to_document(), after.to_document()

    for change in changes:
        section, _, field = change.path.partition(".")
        old, new = ((document[section][field] if field else document[section]) for document in documents)
        assert (old, new) == (change.before, change.after)
    assert len({change.path for change in changes}) == len(changes)
    together = before
    for name in {_section_of(change) for change in changes}:
        together = together.replace(**{name: getattr(after, name)})
    assert together == after


@settings(max_examples=examples(40))
@given(related())
@example(
    (
        Policy(limits=Limits(fuel=100, fuel_refill=10, fuel_refill_max=1000)),
        Policy(limits=Limits(fuel=50, fuel_refill=20, fuel_refill_max=1000)),
    )
)
@example((Policy(limits=Limits(memory=1 << 20)), Policy(limits=Limits(memory=1 << 21, stack=1 << 20))))
def test_a_widening_is_told_as_one(two: tuple[Policy, ...]) -> None:
    """The attack: a change that permits more among others that permit less, so that a reader waves it on."""
    before, after = two
    changes = before.diff(after)

    for name in {_section_of(change) for change in changes}:
        effects = {change.effect for change in changes if _section_of(change) == name}
        changed = before.replace(**{name: getattr(after, name)})
        assert changed.is_subset(before) == (not effects & {"wider", "both"}), name
        assert before.is_subset(changed) == (not effects & {"narrower", "both"}), name
        if not effects & {"wider", "both"}:
            check_permits_no_more(changed, before)


@pytest.mark.parametrize("name", _SECTIONS)
@settings(max_examples=examples(25))
@given(data=st.data())
def test_changes_the_other_way_round(name: str, data: st.DataObject) -> None:
    """Going back undoes every effect."""
    before, after = data.draw(sections(name, 2))
    there, back = before.diff(after), after.diff(before)

    assert [(change.path, change.before, change.after) for change in there] == [
        (change.path, change.after, change.before) for change in back
    ]
    assert [change.effect for change in there] == [_REVERSED[change.effect] for change in back]
