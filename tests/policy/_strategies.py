"""Strategies for whole policies and for each of their parts: for what must hold of every policy.

Values come from small pools as often as from the whole range. So borders are met, and two policies often have
something in common, which tests of how policies combine need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    Wasi,
)
from stockade.policy import GATE_CHANNELS, GateRules

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AMOUNTS",
    "CALLS_NO_GUEST_HAS",
    "CALL_PATTERNS",
    "CHOICES",
    "MAX_AMOUNT",
    "MAX_FUEL",
    "amounts",
    "clocks",
    "customs",
    "environments",
    "features",
    "filesystems",
    "gates",
    "guest_paths",
    "hosts",
    "limits",
    "mounts",
    "names",
    "networks",
    "numerics",
    "policies",
    "port_ranges",
    "processes",
    "randoms",
    "structures",
    "texts",
    "variables",
    "wasis",
]

MAX_FUEL = 2**63 - 1
MAX_AMOUNT = 2.0**53
"""The largest amount of a custom capability, either way."""

_TEN_YEARS = 315_360_000.0
_NANOSECONDS = 2**62 / 1e9
_COUNT = 2**62
_RATE = 10**10

# Written out rather than taken from the fields: what is tested must not be what the tests go by.
AMOUNTS: dict[str, tuple[float, float, bool]] = {
    "limits.fuel": (1, MAX_FUEL, True),
    "limits.fuel_refill": (0, MAX_FUEL, False),
    "limits.fuel_refill_interval": (0.001, _TEN_YEARS, False),
    "limits.fuel_refill_max": (0, MAX_FUEL, False),
    "limits.fuel_time": (0.001, _TEN_YEARS, True),
    "limits.wall_time": (0.001, _TEN_YEARS, True),
    "limits.idle_time": (0.001, _TEN_YEARS, True),
    "limits.cpu_percent": (1, 100, False),
    "limits.memory": (65_536, 4 << 30, False),
    "limits.memory_growth": (1, 65_536, True),
    "limits.table_elements": (0, 10_000_000, False),
    "limits.stack": (16 << 10, 64 << 20, False),
    "limits.instances": (1, 1, False),
    "limits.memories": (0, 100, False),
    "limits.tables": (0, 100, False),
    "limits.module_size": (8, 1 << 30, False),
    "limits.compile_time": (0.1, 86_400.0, False),
    "limits.compile_memory": (64 << 20, 1 << 40, False),
    "limits.stdout": (0, 256 << 20, False),
    "limits.stderr": (0, 256 << 20, False),
    "limits.open_files": (0, 4096, False),
    "limits.files_created": (0, _COUNT, True),
    "limits.file_size": (0, _COUNT, True),
    "limits.read_bytes": (0, _COUNT, True),
    "limits.write_bytes": (0, _COUNT, True),
    "limits.read_rate": (1, _RATE, True),
    "limits.write_rate": (1, _RATE, True),
    "limits.random_bytes": (0, _COUNT, True),
    "limits.calls": (0, _COUNT, True),
    "limits.call_rate": (1, _RATE, True),
    "limits.connections": (0, 1000, False),
    "limits.requests": (0, _COUNT, True),
    "limits.request_time": (0.001, _TEN_YEARS, True),
    "limits.sent_bytes": (0, _COUNT, True),
    "limits.received_bytes": (0, _COUNT, True),
    "limits.network_rate": (1, _RATE, True),
    "clock.resolution": (1e-9, _NANOSECONDS, False),
    "clock.start": (0.0, _NANOSECONDS, False),
    "clock.step": (0.0, _NANOSECONDS, False),
    "random.seed": (0, 2**64 - 1, False),
    "structure.functions": (0, 1_000_000, False),
    "structure.function_size": (0, 7_654_321, False),
    "structure.locals": (0, 50_000, False),
    "structure.types": (0, 1_000_000, False),
    "structure.imports": (0, 1_000_000, False),
    "structure.exports": (0, 1_000_000, False),
    "structure.globals": (0, 1_000_000, False),
    "structure.data_segments": (0, 100_000, False),
    "structure.element_segments": (0, 100_000, False),
    "structure.br_table": (0, 65_520, False),
    "structure.nesting": (0, 100_000, False),
}
"""Every numeric field: the least, the most, and whether None, which is unlimited, is allowed. Times are floats."""

CHOICES: dict[str, tuple[str, ...]] = {
    "on_violation": ("deny", "stop", "audit"),
    "isolation": ("inprocess", "process"),
    "limits.on_memory_denied": ("fail", "stop"),
    "limits.on_rate": ("wait", "refuse"),
    "limits.compile_process": ("auto", "always", "never"),
    "environment.mode": ("none", "allow", "deny", "full"),
    "environment.secrets": ("named", "never"),
    "clock.mode": ("real", "coarse", "virtual", "none"),
    "random.mode": ("none", "seeded", "full"),
    "network.mode": ("none", "loopback", "hosts", "ports", "full"),
    "process.mode": ("none", "commands", "full"),
    "gate.registered": ("allow", "warn", "redact", "quarantine", "block"),
    "gate.keys": ("allow", "warn", "redact", "quarantine", "block"),
    "gate.personal": ("allow", "warn", "redact", "quarantine", "block"),
    "gate.entropy": ("allow", "warn", "redact", "quarantine", "block"),
    "wasi.errno": ("notcapable", "perm", "nosys"),
}
"""Every field that is one of some words, with the words in their order."""

CALL_PATTERNS = (
    *("*", "fd_*", "path_*", "sock_*", "*_get", "fd_write", "fd_read", "path_open", "random_get", "poll_oneoff"),
    *("fd", "path", "clock", "random", "poll", "proc", "sock", "args", "environ"),
    *("READ", "write", "openat", "unlink", "nanosleep", "mmap", "getpid", "exit_group"),
)
"""What `wasi.allow` and `wasi.deny` may have: calls, patterns, groups, POSIX names."""

CALLS_NO_GUEST_HAS = ("fork", "EXECVE", "socket", "ptrace", "umount")
"""What `wasi.deny` may have beside, and `wasi.allow` may not."""

_ROUND_NUMBERS = (0, 1, 2, 3, 10, 100, 1000, 9_999, 10_000, 1 << 10, 1 << 16, 1 << 20, 10**6, 3 << 20, 1 << 30, 10**9)
_ROUND_TIMES = (0.0, 1e-9, 1e-6, 5e-5, 0.001, 0.1, 0.25, 0.3, 1.0, 1.5, 5.0, 90.0, 300.0, 3600.0, 86_400.0, 1e15)
_HOSTS = (
    *(
        "example.com",
        "API.Example.com",
        "api.example.com.",
        "localhost",
        "db.localhost",
        "bücher.example",
        "a_b-c.test",
        "*.example.com",
        "*.api.Example.com",
        "*.corp.internal",
    ),
    *(
        "127.0.0.1",
        "10.0.0.7",
        "169.254.169.254",
        "metadata.goog",
        "8.8.8.8",
        "::1",
        "[2001:db8::1]",
        "2001:4860:4860::8888",
    ),
)
_VARIABLES = ("LANG", "Lang", "HOME", "PATH", "TMP", "DB_SECRET", "LD_PRELOAD", "AWS_REGION", "a b", "\N{SNOWMAN}")
_CAPABILITIES = ("gpu", "mail", "model", "a.b", "a b", "7")


def _lists_of(item: st.SearchStrategy[Any], *, least: int = 0, most: int = 4) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(item, min_size=least, max_size=most, unique=True).map(tuple)


def _some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


def _choice(path: str) -> st.SearchStrategy[Any]:
    return st.sampled_from(CHOICES[path])


def texts(*, min_size: int = 0, max_size: int = 20) -> st.SearchStrategy[str]:
    """Any text that a policy may hold: all of Unicode but NUL and lone surrogates."""
    return st.text(st.characters(codec="utf-8", min_codepoint=1), min_size=min_size, max_size=max_size)


def names() -> st.SearchStrategy[str]:
    """Names of policies."""
    return st.sampled_from(["default", "mine", "a & b", "ä" * 1000]) | texts(min_size=1)


def amounts(path: str) -> st.SearchStrategy[Any]:
    """Values of a numeric field, by its path in `AMOUNTS`."""
    least, most, unlimited = AMOUNTS[path]
    whole = isinstance(least, int)
    pool: Sequence[float | None] = [least, most, *(_ROUND_NUMBERS if whole else _ROUND_TIMES)]
    pool = [value for value in pool if value is not None and least <= value <= most]
    anything = st.integers(int(least), int(most)) if whole else st.floats(least, most)
    return st.sampled_from([*pool, None] if unlimited else pool) | anything


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    """Limits, a third of them with refills where there are units to refill, with `fuel_time` and without."""
    fields = {path.partition(".")[2]: amounts(path) for path in AMOUNTS if path.startswith("limits.")}
    del fields["fuel_refill"], fields["fuel_refill_max"]
    values = draw(
        _some(
            **fields,
            on_memory_denied=_choice("limits.on_memory_denied"),
            on_rate=_choice("limits.on_rate"),
            compile_process=_choice("limits.compile_process"),
        )
    )
    fuel = values.get("fuel", Limits().fuel)
    if fuel is not None and draw(st.sampled_from([False, False, True])):
        values["fuel_refill"] = draw(st.sampled_from([1, 1000, MAX_FUEL]) | st.integers(1, MAX_FUEL))
        values["fuel_refill_max"] = draw(st.sampled_from([fuel, MAX_FUEL]) | st.integers(fuel, MAX_FUEL))
    return Limits(**values)


def guest_paths() -> st.SearchStrategy[str]:
    """Absolute paths without `.` and `..`."""
    part = texts(max_size=6).filter(lambda text: text not in (".", "..") and "/" not in text)
    return st.sampled_from(["/", "/data", "/data/in", "/work", "/tmp"]) | st.lists(part, min_size=1, max_size=3).map(
        lambda parts: "/" + "/".join(parts)
    ).filter(lambda path: not {".", ".."} & set(path.split("/")))


def mounts() -> st.SearchStrategy[Mount]:
    """Folders that are granted; whether there is such a folder is no matter of a policy."""
    host = st.sampled_from([".", "./data", "/srv/data", "/tmp", "../ä b"]) | texts(min_size=1)
    path = st.sampled_from([".", "a", "a/b.txt", "out/", "ä b/"])
    only = st.none() | st.lists(path, max_size=3)
    return st.builds(Mount, host, guest_paths(), st.sampled_from(["ro", "rw"]), only)


def filesystems() -> st.SearchStrategy[Filesystem]:
    """Folders and what may be done there."""
    rights = {name: st.booleans() for name in ("create", "delete", "symlinks")}
    return _some(mounts=_lists_of(mounts(), most=3), **rights).map(lambda fields: Filesystem(**fields))


def variables() -> st.SearchStrategy[str]:
    """Names of environment variables."""
    return st.sampled_from(_VARIABLES) | texts(min_size=1).filter(lambda name: "=" not in name)


@st.composite
def environments(draw: st.DrawFn) -> Environment:
    """Environments of all modes, with names where they mean something."""
    mode = draw(_choice("environment.mode"))
    listed = draw(_lists_of(variables())) if mode in ("allow", "deny") else ()
    secrets = draw(_choice("environment.secrets")) if mode == "allow" else "named"
    return Environment(
        mode=mode, names=listed, secrets=secrets, set=draw(st.dictionaries(variables(), texts(), max_size=3))
    )


def clocks() -> st.SearchStrategy[Clock]:
    """Clocks of all modes; fields that say nothing under a mode are kept all the same."""
    fields = {name: amounts(f"clock.{name}") for name in ("resolution", "start", "step")}
    return _some(mode=_choice("clock.mode"), **fields).map(lambda values: Clock(**values))


def seeded_random(values: dict[str, Any]) -> Random:
    """A seed says something under one mode only."""
    return Random(**values) if values.get("mode") == "seeded" else Random(mode=values.get("mode", "full"))


def randoms() -> st.SearchStrategy[Random]:
    """Randomness of all modes."""
    return _some(mode=_choice("random.mode"), seed=amounts("random.seed")).map(seeded_random)


def port_ranges() -> st.SearchStrategy[PortRange]:
    """Single ports and ranges."""
    port = st.sampled_from([1, 80, 443, 8000, 65_535]) | st.integers(1, 65_535)
    return port.map(lambda one: PortRange(one, one)) | st.tuples(port, port).map(lambda two: PortRange(*sorted(two)))


def hosts() -> st.SearchStrategy[HostRule]:
    """Hosts by name and by address, as they may be written."""
    label = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,8}[a-z0-9_])?", fullmatch=True)
    name = st.lists(label, min_size=1, max_size=3).map(lambda labels: ".".join([*labels, "test"]))
    address = (st.ip_addresses(v=4) | st.ip_addresses(v=6)).map(str).filter(lambda text: "::ffff:" not in text)
    return st.builds(
        HostRule,
        st.sampled_from(_HOSTS) | name | address,
        _lists_of(port_ranges(), least=1, most=3),
        st.booleans(),
        _lists_of(st.sampled_from(["GET", "HEAD", "POST", "DELETE"]), least=1, most=3),
        _lists_of(st.sampled_from(["/", "/v1", "/v1/", "/v1/a", "/v2"]), least=1, most=2),
    )


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Networks of all modes, with the list that the mode needs."""
    mode = draw(_choice("network.mode"))
    if mode == "hosts":
        return Network(mode=mode, hosts=draw(_lists_of(hosts(), least=1, most=3)))
    if mode == "ports":
        return Network(mode=mode, ports=draw(_lists_of(port_ranges(), least=1, most=3)))
    return Network(mode=mode)


@st.composite
def processes(draw: st.DrawFn) -> Process:
    """Processes of all modes, with commands where they mean something."""
    mode = draw(_choice("process.mode"))
    command = st.sampled_from(["/usr/bin/git", "/bin/sh"]) | guest_paths()
    return Process(mode=mode, commands=draw(_lists_of(command, least=1, most=3)) if mode == "commands" else ())


def structures() -> st.SearchStrategy[ModuleLimits]:
    """What modules may be made of."""
    fields = {path.partition(".")[2]: amounts(path) for path in AMOUNTS if path.startswith("structure.")}
    return _some(**fields).map(lambda values: ModuleLimits(**values))


def features() -> st.SearchStrategy[Features]:
    """Sets of proposals; relaxed SIMD comes with SIMD only."""
    every = Features.__struct_fields__

    def consistent(chosen: dict[str, bool]) -> Features:
        needed = {
            "simd": chosen.get("simd", True) or chosen.get("relaxed_simd", False),
            "function_references": chosen.get("function_references", True) or chosen.get("gc", False),
        }
        return Features(**{**chosen, **needed})

    return _some(**{name: st.booleans() for name in every}).map(consistent)


def wasis() -> st.SearchStrategy[Wasi]:
    """Lists of allowed and denied calls."""
    return _some(
        allow=_lists_of(st.sampled_from(CALL_PATTERNS)),
        deny=_lists_of(st.sampled_from((*CALL_PATTERNS, *CALLS_NO_GUEST_HAS))),
        errno=_choice("wasi.errno"),
    ).map(lambda fields: Wasi(**fields))


def numerics() -> st.SearchStrategy[Amount]:
    """Amounts with their bounds, whole and not."""
    number = (
        st.sampled_from([-MAX_AMOUNT, -1, 0, 0.1, 1, 8, MAX_AMOUNT])
        | st.integers(-1000, 1000)
        | st.floats(-MAX_AMOUNT, MAX_AMOUNT)
    )

    def ordered(numbers: list[float]) -> Amount:
        least, value, most = sorted(numbers)
        return Amount(value, least, most)

    return st.lists(number, min_size=3, max_size=3).map(ordered)


def customs() -> st.SearchStrategy[dict[str, Any]]:
    """Custom capabilities of all four sorts, by their names."""
    value = st.booleans() | numerics() | texts() | _lists_of(st.sampled_from(["a", "b", "c"]) | texts())
    return st.dictionaries(st.sampled_from(_CAPABILITIES) | texts(min_size=1), value, max_size=3)


def gates() -> st.SearchStrategy[GateRules]:
    """What becomes of secrets that are found."""
    return _some(
        registered=_choice("gate.registered"),
        keys=_choice("gate.keys"),
        personal=_choice("gate.personal"),
        entropy=_choice("gate.entropy"),
        channels=st.lists(st.sampled_from(GATE_CHANNELS), unique=True),
    ).map(lambda values: GateRules(**values))


def policies() -> st.SearchStrategy[Policy]:
    """Whole policies: every field of every part takes all values that it may have."""
    return st.builds(
        Policy,
        name=names(),
        on_violation=_choice("on_violation"),
        isolation=_choice("isolation"),
        limits=limits(),
        filesystem=filesystems(),
        environment=environments(),
        clock=clocks(),
        random=randoms(),
        network=networks(),
        process=processes(),
        gate=gates(),
        structure=structures(),
        features=features(),
        wasi=wasis(),
        custom=customs(),
    )
