"""Every field of a policy changes what happens to a real guest, or is refused when the policy is used.

Holds P-POLICY-2 and P-NET-3.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stockade
from stockade import (
    Filesystem,
    HostRule,
    InvalidModule,
    IsolationError,
    Limits,
    Module,
    Mount,
    Network,
    Policy,
    PolicyError,
    PortRange,
    Process,
    Sandbox,
)
from stockade.execution._throttle import Throttle
from stockade.policy import PRESETS, check_enforceable, unenforceable
from stockade.policy._fields import Items, Part, Section, fields_of
from stockade.runner import GO_ON
from tests._examples import examples
from tests._http_server import HttpServer
from tests.conftest import HELLO, wat
from tests.egress.test_guests import GUEST as HTTP_GUEST
from tests.gate._guests import printer
from tests.limits._guests import (
    CREAT,
    EACCES,
    EAGAIN,
    EBADF,
    EDQUOT,
    EFBIG,
    EMFILE,
    ENOENT,
    ENOSYS,
    ENOTCAPABLE,
    EPERM,
    MOUNT,
    READ_RIGHTS,
    SUCCESS,
    Later,
    Played,
    Script,
)

Observe = Callable[[Policy, Path], object]
"""Runs something under a policy, with a folder, and tells what came of it."""


class Effect(NamedTuple):
    """A field that changes what happens.

    Attributes:
        path: The field, such as `limits.memory`.
        observe: What is done.
        seen: For each value of the field, what comes of it; all differ. Values that need the folder are functions.
        beside: Other fields that are set throughout.
    """

    path: str
    observe: Observe
    seen: Mapping[Any, object]
    beside: Mapping[str, object] = MappingProxyType({})


class Refusal(NamedTuple):
    """A field that cannot be enforced yet.

    Attributes:
        path: The field.
        values: Values of it that are refused when a policy with them is used.
        message: Why.
        beside: Other fields that are set throughout.
    """

    path: str
    values: tuple[object, ...]
    message: str
    beside: Mapping[str, object] = MappingProxyType({})


# -- what is done ---------------------------------------------------------------------------------------------------


def plays(write: Callable[[Script], object], told: Callable[[Played], object] | None = None) -> Observe:
    """Plays a script, and tells the errno of its last call, or how the run was ended."""

    def observe(policy: Policy, folder: Path) -> object:
        script = Script()
        write(script)
        played = script.play(policy)
        if told is not None:
            return told(played)
        return played.errnos[-1] if played.errnos else played.report.outcome.value

    return observe


def calls(body: str) -> Observe:
    """Calls the export `f` of a module, and tells what it returned, how it ended, or that it was refused."""

    def observe(policy: Policy, folder: Path) -> object:
        try:
            report = Sandbox(policy).call(wat(f"(module {body})").data, "f")
        except InvalidModule:
            return "refused"
        return report.value if report.ok else report.outcome.value

    return observe


def is_run_here(policy: Policy, folder: Path) -> object:
    """Calls a function in this process, and tells what it returned, or that it was refused."""
    try:
        return Sandbox(policy, isolation="inprocess").call(wat(f"(module {ANSWER})").data, "f").value
    except IsolationError:
        return "refused"


def asks(url: str = "/a/b") -> Observe:
    """Asks a server; tells how many bytes the answer has, the code of the failure, or how the run ended."""

    def observe(policy: Policy, folder: Path) -> object:
        with HttpServer() as server:
            whole = url if url.startswith("https:") else f"http://127.0.0.1:{server.port}{url}"
            report = Sandbox(policy).call(HTTP_GUEST.encode(), "fetch", whole)
        return report.value if report.ok else report.outcome.value

    return observe


EVERY_PORT = (PortRange(1, 65_535),)
THIS_HOST = HostRule("127.0.0.1", EVERY_PORT, secure=False)
ONE_HOST = HostRule("127.0.0.2", EVERY_PORT, secure=False)
HOSTS = {"network.mode": "hosts", "network.hosts": (THIS_HOST,)}
LOOPBACK = {"network.mode": "loopback"}


def clock_tells(policy: Policy, folder: Path) -> object:
    """Two readings of the time of day in nanoseconds, or the errno."""
    script = Script()
    first, second = script.time(0), script.time(0)
    played = script.play(policy)
    if any(played.errnos):
        return played.errnos[0]
    return played.number(first, 8), played.number(second, 8)


HOUR = 3600 * 10**9


def clock_kind(policy: Policy, folder: Path) -> object:
    """Whether the time of day is cut to hours, stands at the start of a virtual clock, or is any other."""
    found = clock_tells(policy, folder)
    if not isinstance(found, tuple):
        return found
    return "virtual" if found[0] <= 2 * 10**9 else "coarse" if found[0] % HOUR == 0 else "real"


def cut_to(policy: Policy, folder: Path) -> object:
    """Whether the time of day is cut as the policy says: the unit if it is, 0 if not."""
    found = clock_tells(policy, folder)
    assert isinstance(found, tuple)
    unit = round(policy.clock.resolution * 10**9)
    now = time.time_ns()
    return unit if found[0] % unit == 0 and now - unit - HOUR < found[0] <= now else 0


def random_numbers(policy: Policy) -> bytes | int:
    """Eight random bytes, or the errno."""
    script = Script()
    buffer = script.room(8)
    script.call("random_get", buffer, 8)
    played = script.play(policy)
    return played.errnos[0] or played.memory[buffer : buffer + 8]


def random_kind(policy: Policy, folder: Path) -> object:
    """Whether two runs get the same bytes, or the errno."""
    first, second = random_numbers(policy), random_numbers(policy)
    return first if isinstance(first, int) else first == second


def sees_variables(policy: Policy, folder: Path) -> object:
    """The environment of a guest."""
    script = Script()
    count, size = script.cell(), script.cell()
    script.call("environ_sizes_get", count.address, size.address)
    pointers, buffer = script.room(256), script.room(1024)
    script.call("environ_get", pointers, buffer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.environ", {"A": "1", "B": "2", "MY_TOKEN": "3"})
        played = script.play(policy)
    text = played.memory[buffer : buffer + played.number(size)].decode()
    return " ".join(text.split("\0")[:-1])


RANDOM = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0z"


def prints(text: str) -> Observe:
    """What leaves of what a guest prints, or how it ended, where a secret is registered."""

    def observe(policy: Policy, folder: Path) -> object:
        report = Sandbox(policy, secrets={"api": "abcdefgh-1234"}).run(printer({1: text.encode()}))
        return report.stdout if report.ok else report.outcome.value

    return observe


def name_of_the_mount(policy: Policy, folder: Path) -> object:
    """The name under which a guest finds its first mount."""
    script = Script()
    buffer = script.room(64)
    script.call("fd_prestat_dir_name", MOUNT, buffer, 2)
    played = script.play(policy)
    return played.errnos[0] or played.memory[buffer : buffer + 2].decode()


def is_halted(policy: Policy, folder: Path) -> object:
    """Whether a busy guest is made to pause."""
    pauses: list[float] = []
    until = Throttle.until

    def watched(throttle: Throttle, cpu_seconds: float) -> float:
        pauses.append(until(throttle, cpu_seconds))
        return pauses[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Throttle, "until", watched)
        Sandbox(policy).run(wat('(module (func (export "_start") (loop br 0)))'))
    return any(pause != GO_ON for pause in pauses)


def kept_of(stream: str) -> Observe:
    """How many of ten bytes are kept."""

    def observe(policy: Policy, folder: Path) -> object:
        script = Script()
        script.write({"stdout": 1, "stderr": 2}[stream], b"0123456789")
        report = script.play(policy).report
        return len(getattr(report, stream)), getattr(report.truncated, stream)

    return observe


def opens(script: Script) -> None:
    script.open("digits", rights=READ_RIGHTS)


def reads_twice(script: Script) -> None:
    fd = script.open("digits", rights=READ_RIGHTS)
    for _ in range(2):
        script.read(fd, 5)


def writes_twice(script: Script) -> None:
    fd = script.open("digits")
    for _ in range(2):
        script.write(fd, b"12345")


def opens_twice(script: Script) -> None:
    for _ in range(2):
        script.open("digits", rights=READ_RIGHTS)


def creates_twice(script: Script) -> None:
    for name in ("new", "newer"):
        script.open(name, CREAT)


def yields(count: int) -> Callable[[Script], object]:
    return lambda script: [script.call("sched_yield") for _ in range(count)]


def one(name: str, *arguments: int | str) -> Callable[[Script], object]:
    return lambda script: script.call(name, *arguments)


LOOP = """
(memory (export "memory") 1)
(func (export "f") (result i32) (local $left i32)
  (local.set $left (i32.const 10000))
  (loop $next (br_if $next (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
  (i32.const 7))
"""
LONG_LOOP = LOOP.replace("10000", "20000000")
# Waits for 300 ms, and so for one refill after 200 ms, but not for the next one.
WAIT_AND_LOOP = f"""
(import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
{LOOP.replace("(local.set", "(call $wait) (local.set", 1).replace("10000", "1000000")}
(func $wait
  (i32.store (i32.const 16) (i32.const 1))
  (i64.store (i32.const 24) (i64.const 300_000_000))
  (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128))))
"""
LITTLE_FUEL = MappingProxyType({"limits.fuel": 100_000, "limits.fuel_refill_interval": 0.2})
MUCH = 1_000_000_000
GROW = '(memory 1) (func (export "f") (result i32) (memory.grow (i32.const 10)))'
GROW_TABLE = '(table 1 funcref) (func (export "f") (result i32) (table.grow (ref.null func) (i32.const 10)))'
RECURSE = """
(func $down (param $left i32) (result i32)
  (if (result i32) (local.get $left)
    (then (i32.add (i32.const 1) (call $down (i32.sub (local.get $left) (i32.const 1)))))
    (else (i32.const 0))))
(func (export "f") (result i32) (call $down (i32.const 5000)))
"""
ANSWER = '(func (export "f") (result i32) (i32.const 7))'
SIMD = '(func (export "f") (result i32) (i32x4.extract_lane 0 (i32x4.splat (i32.const 7))))'
RELAXED = """
(func (export "f") (result i32)
  (i32x4.extract_lane 0 (i32x4.relaxed_trunc_f32x4_s (f32x4.splat (f32.const 7)))))
"""
TAIL = '(func $g (result i32) (i32.const 7)) (func (export "f") (result i32) (return_call $g))'


def module_bytes() -> int:
    return len(wat(f"(module {ANSWER})").data)


def mount(
    folder: str = "inside", guest: str = "/a", mode: str = "rw", only: tuple[str, ...] | None = None
) -> Callable[[Path], object]:
    return lambda base: (Mount(str(base / folder), guest, mode, only),)  # type: ignore[arg-type]


NO_MOUNTS: tuple[Mount, ...] = ()
REFUSE = MappingProxyType({"limits.on_rate": "refuse"})
YIELD_DENIED = MappingProxyType({"wasi.deny": ("sched_yield",)})
COARSE = MappingProxyType({"clock.mode": "coarse"})
VIRTUAL = MappingProxyType({"clock.mode": "virtual", "clock.start": 1.0})

# Far too much for a tenth of a second and for 64 MiB.
# Each of them another module: what was compiled once is at hand.
_COMPILING = ("limits.compile_memory", "limits.compile_process", "limits.compile_time")
"""What is shown by modules that take long to compile."""

MANY = [f"{'(func)' * (30_000 + number)} {ANSWER}" for number in range(3)]
ASIDE = MappingProxyType({"limits.compile_process": "always"})
YIELD = '(import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))'

EFFECTS = [
    Effect("name", plays(yields(1), lambda played: played.report.policy.name), {"one": "one", "two": "two"}),
    Effect("on_violation", plays(yields(1)), {"deny": ENOTCAPABLE, "stop": "denied", "audit": SUCCESS}, YIELD_DENIED),
    Effect("isolation", is_run_here, {"inprocess": 7, "process": "refused"}),
    Effect("limits.fuel", calls(LOOP), {1_000: "fuel", 1_000_000: 7}),
    Effect(
        "limits.fuel_refill",
        calls(WAIT_AND_LOOP),
        {1: "fuel", MUCH: 7},
        {**LITTLE_FUEL, "limits.fuel_refill_max": MUCH},
    ),
    Effect(
        "limits.fuel_refill_interval",
        calls(WAIT_AND_LOOP),
        {0.2: 7, 3600.0: "fuel"},
        {**LITTLE_FUEL, "limits.fuel_refill": MUCH, "limits.fuel_refill_max": MUCH},
    ),
    Effect(
        "limits.fuel_refill_max",
        calls(WAIT_AND_LOOP),
        {100_000: "fuel", MUCH: 7},
        {**LITTLE_FUEL, "limits.fuel_refill": MUCH},
    ),
    # A thousandth of a second is too little for this on any machine, a thousand seconds is not.
    Effect("limits.fuel_time", calls(LONG_LOOP), {0.001: "fuel", 1000.0: 7}, {"limits.fuel": None}),
    Effect("limits.wall_time", plays(lambda script: script.sleep(0.2)), {0.02: "timeout", 30.0: SUCCESS}),
    Effect("limits.idle_time", plays(lambda script: script.sleep(0.2)), {0.02: "idle", 30.0: SUCCESS}),
    Effect("limits.cpu_percent", is_halted, {1: True, 100: False}, {"limits.wall_time": 0.2, "limits.fuel": None}),
    Effect("limits.memory", calls(GROW), {5 << 16: -1, 20 << 16: 1}),
    Effect("limits.memory_growth", calls(GROW), {9: -1, 10: 1}),
    Effect("limits.on_memory_denied", calls(GROW), {"fail": -1, "stop": "memory"}, {"limits.memory": 5 << 16}),
    Effect("limits.table_elements", calls(GROW_TABLE), {10: -1, 11: 1}),
    Effect("limits.stack", calls(RECURSE), {32 << 10: "stack", 8 << 20: 5000}),
    Effect("limits.memories", calls(f"(memory 1) {ANSWER}"), {0: "refused", 1: 7}),
    Effect("limits.tables", calls(f"(table 1 funcref) {ANSWER}"), {0: "refused", 1: 7}),
    Effect("limits.module_size", calls(ANSWER), {module_bytes() - 1: "refused", module_bytes(): 7}),
    Effect("limits.stdout", kept_of("stdout"), {4: (4, 6), 10: (10, 0)}),
    Effect("limits.stderr", kept_of("stderr"), {4: (4, 6), 10: (10, 0)}),
    Effect("limits.open_files", plays(opens_twice), {1: EMFILE, 2: SUCCESS}),
    Effect("limits.files_created", plays(creates_twice), {1: EDQUOT, 2: SUCCESS}),
    Effect("limits.file_size", plays(writes_twice), {9: EFBIG, 10: SUCCESS}),
    Effect("limits.read_bytes", plays(reads_twice), {5: EDQUOT, 10: SUCCESS}),
    Effect("limits.write_bytes", plays(writes_twice), {9: EDQUOT, 10: SUCCESS}),
    Effect("limits.read_rate", plays(reads_twice), {5: EAGAIN, 1000: SUCCESS}, REFUSE),
    Effect("limits.write_rate", plays(writes_twice), {5: EAGAIN, 1000: SUCCESS}, REFUSE),
    Effect("limits.random_bytes", plays(one("random_get", 0, 10)), {9: EDQUOT, 10: SUCCESS}),
    Effect("limits.calls", plays(yields(3)), {2: EPERM, 3: SUCCESS}),
    Effect("limits.call_rate", plays(yields(3)), {2: EAGAIN, 1000: SUCCESS}, REFUSE),
    Effect("limits.on_rate", plays(yields(3)), {"refuse": EAGAIN, "wait": SUCCESS}, {"limits.call_rate": 2}),
    Effect("filesystem.mounts", plays(opens), {NO_MOUNTS: EBADF, mount(): SUCCESS}),
    Effect("filesystem.mounts[].host", plays(opens), {mount("empty"): ENOENT, mount("inside"): SUCCESS}),
    Effect("filesystem.mounts[].guest", name_of_the_mount, {mount(guest="/a"): "/a", mount(guest="/b"): "/b"}),
    Effect(
        "filesystem.mounts[].mode",
        plays(one("path_create_directory", MOUNT, "new")),
        {mount(mode="ro"): EPERM, mount(mode="rw"): SUCCESS},
    ),
    Effect("filesystem.mounts[].only", plays(opens), {mount(only=("no",)): EACCES, mount(only=("digits",)): SUCCESS}),
    Effect("filesystem.create", plays(one("path_create_directory", MOUNT, "new")), {False: EPERM, True: SUCCESS}),
    Effect("filesystem.delete", plays(one("path_unlink_file", MOUNT, "digits")), {False: EPERM, True: SUCCESS}),
    Effect("filesystem.symlinks", plays(one("path_symlink", "digits", MOUNT, "new")), {False: EPERM, True: SUCCESS}),
    Effect("environment.mode", sees_variables, {"none": "", "full": "A=1 B=2"}),
    Effect("environment.mode", sees_variables, {"allow": "A=1", "deny": "B=2"}, {"environment.names": ("A",)}),
    Effect(
        "environment.names",
        sees_variables,
        {(): "", ("A",): "A=1", ("B", "A"): "A=1 B=2"},
        {"environment.mode": "allow"},
    ),
    Effect(
        "environment.secrets",
        sees_variables,
        {"named": "A=1 MY_TOKEN=3", "never": "A=1"},
        {"environment.mode": "allow", "environment.names": ("A", "MY_TOKEN")},
    ),
    Effect(
        "gate.registered",
        prints("it is abcdefgh-1234!"),
        {"allow": b"it is abcdefgh-1234!", "redact": b"it is [redacted:api]!", "block": "denied"},
    ),
    Effect(
        "gate.keys",
        prints("password=hunt3r2 "),
        {"allow": b"password=hunt3r2 ", "redact": b"password=[redacted:password] "},
    ),
    Effect("gate.personal", prints("536-90-4399 "), {"allow": b"536-90-4399 ", "quarantine": "denied"}),
    Effect("gate.entropy", prints(RANDOM), {"allow": RANDOM.encode(), "redact": b"[redacted:random-text]"}),
    Effect(
        "gate.channels",
        prints("536-90-4399 "),
        {("value",): b"536-90-4399 ", ("output",): b"[redacted:social-security-number] "},
        {"gate.personal": "redact"},
    ),
    Effect("environment.set", sees_variables, {(): "", (("C", "3"),): "C=3"}),
    Effect(
        "clock.mode",
        clock_kind,
        {"none": ENOTCAPABLE, "virtual": "virtual", "coarse": "coarse", "real": "real"},
        {"clock.resolution": 3600.0, "clock.start": 1.0},
    ),
    Effect("clock.resolution", cut_to, {3600.0: HOUR, 97.0: 97 * 10**9, 1e-9: 1}, COARSE),
    Effect(
        "clock.start",
        clock_tells,
        {0.0: (0, 10**3), 5.0: (5 * 10**9, 5 * 10**9 + 10**3)},
        {"clock.mode": "virtual"},
    ),
    Effect(
        "clock.step",
        clock_tells,
        {0.0: (10**9, 10**9), 2.0: (10**9, 3 * 10**9)},
        VIRTUAL,
    ),
    Effect("random.mode", random_kind, {"none": ENOTCAPABLE, "seeded": True, "full": False}),
    # The first numbers of SplitMix64, as its author publishes them, with the lowest byte first.
    Effect(
        "random.seed",
        lambda policy, folder: random_numbers(policy),
        {0: bytes.fromhex("afcd1d7b39a820e2"), 1: bytes.fromhex("c15c0289ec2d0a91")},
        {"random.mode": "seeded"},
    ),
    Effect("limits.compile_time", calls(MANY[0]), {0.1: "refused", 600.0: 7}, ASIDE),
    Effect("limits.compile_memory", calls(MANY[1]), {64 << 20: "refused", 4 << 30: 7}, ASIDE),
    Effect(
        "limits.compile_process", calls(MANY[2]), {"always": "refused", "never": 7}, {"limits.compile_memory": 64 << 20}
    ),
    Effect("structure.functions", calls(f"(func) (func) {ANSWER}"), {2: "refused", 3: 7}),
    Effect("structure.function_size", calls(f"(func nop nop nop nop) {ANSWER}"), {5: "refused", 6: 7}),
    Effect("structure.locals", calls(f"(func (local i32 i64)) {ANSWER}"), {1: "refused", 2: 7}),
    Effect("structure.types", calls(f"(func (param i32)) {ANSWER}"), {1: "refused", 2: 7}),
    Effect("structure.imports", calls(f"{YIELD} {ANSWER}"), {0: "refused", 1: 7}),
    Effect("structure.exports", calls(ANSWER), {0: "refused", 1: 7}),
    Effect("structure.globals", calls(f"(global i32 (i32.const 0)) {ANSWER}"), {0: "refused", 1: 7}),
    Effect("structure.data_segments", calls(f'(memory 1) (data (i32.const 0) "x") {ANSWER}'), {0: "refused", 1: 7}),
    Effect(
        "structure.element_segments", calls(f"(table 1 funcref) (elem (i32.const 0)) {ANSWER}"), {0: "refused", 1: 7}
    ),
    Effect(
        "structure.br_table", calls(f"(func (block (br_table 0 0 0 (i32.const 0)))) {ANSWER}"), {1: "refused", 2: 7}
    ),
    Effect("structure.nesting", calls(f"(func (block (block (block)))) {ANSWER}"), {2: "refused", 3: 7}),
    Effect("features.simd", calls(SIMD), {False: "refused", True: 7}),
    Effect("features.relaxed_simd", calls(RELAXED), {False: "refused", True: 7}),
    Effect("features.tail_call", calls(TAIL), {False: "refused", True: 7}),
    *(
        Effect(f"features.{name}", calls(text), {False: "refused", True: 7})
        for name, text in {
            "extended_const": """(global i32 (i32.add (i32.const 3) (i32.const 4)))
                                 (func (export "f") (result i32) (global.get 0))""",
            "exceptions": """(tag $e (param i32)) (func (export "f") (result i32)
                               (block $h (result i32)
                                 (try_table (catch $e $h) (throw $e (i32.const 7))) (i32.const 1)))""",
            "function_references": """(type $t (func (result i32))) (elem declare func $g)
                                      (func $g (type $t) (i32.const 7))
                                      (func (export "f") (result i32) (call_ref $t (ref.func $g)))""",
            "gc": '(func (export "f") (result i32) (i31.get_s (ref.i31 (i32.const 7))))',
            "memory64": """(memory i64 1) (data (i64.const 8) "\\07")
                           (func (export "f") (result i32) (i32.load (i64.const 8)))""",
            "threads": """(memory 1) (data (i32.const 8) "\\07")
                          (func (export "f") (result i32) (i32.atomic.load (i32.const 8)))""",
        }.items()
    ),
    Effect(
        "features.multi_memory",
        calls(f"(memory 1) (memory 1) {ANSWER}"),
        {False: "refused", True: 7},
        {"limits.memories": 2},
    ),
    Effect("wasi.allow", plays(yields(1)), {("fd",): ENOTCAPABLE, ("fd", "sched"): SUCCESS}),
    Effect("wasi.deny", plays(yields(1)), {("sched",): ENOTCAPABLE, ("fd",): SUCCESS}),
    Effect("wasi.errno", plays(yields(1)), {"notcapable": ENOTCAPABLE, "perm": EPERM, "nosys": ENOSYS}, YIELD_DENIED),
    Effect("network.mode", asks(), {"none": -1, "loopback": len(b"hello GET /a/b")}),
    Effect("network.hosts", asks(), {(ONE_HOST,): -1, (ONE_HOST, THIS_HOST): -6}, {**HOSTS, "limits.connections": 0}),
    *(
        Effect(f"network.hosts[].{name}", asks(), {(less,): -1, (THIS_HOST,): -6}, {**HOSTS, "limits.connections": 0})
        for name, less in {
            "host": ONE_HOST,
            "ports": HostRule("127.0.0.1", (1,), secure=False),
            "secure": HostRule("127.0.0.1", EVERY_PORT),
            "methods": HostRule("127.0.0.1", EVERY_PORT, secure=False, methods=("POST",)),
            "paths": HostRule("127.0.0.1", EVERY_PORT, secure=False, paths=("/a/c",)),
        }.items()
    ),
    Effect(
        "network.ports",
        asks("https://8.8.8.8:444/"),
        {(PortRange(443, 443),): -1, (PortRange(443, 444),): -6},
        {"network.mode": "ports", "limits.connections": 0},
    ),
    Effect("limits.connections", asks(), {0: -6, 1: len(b"hello GET /a/b")}, LOOPBACK),
    Effect("limits.requests", asks(), {0: -6, 1: len(b"hello GET /a/b")}, LOOPBACK),
    Effect(
        "limits.request_time",
        asks("/wait?seconds=60"),
        {0.1: -5, 60.0: "timeout"},
        {**LOOPBACK, "limits.wall_time": 1.0},
    ),
    Effect("limits.sent_bytes", asks(), {10: -6, 1000: len(b"hello GET /a/b")}, LOOPBACK),
    Effect("limits.received_bytes", asks(), {10: -6, 1000: len(b"hello GET /a/b")}, LOOPBACK),
    Effect(
        "limits.network_rate",
        asks(),
        {1: -5, 10**9: len(b"hello GET /a/b")},
        {**LOOPBACK, "limits.request_time": 0.5},
    ),
    Effect("custom", lambda policy, folder: policy.grants("gpu"), {(): False, (("gpu", True),): True}),
]

NOT_YET = "which this release cannot enforce yet: set it to"
REFUSALS = [
    Refusal("process.mode", ("full",), f"process.mode is 'full', {NOT_YET} \"none\""),
    Refusal(
        "process.commands",
        (("/bin/true",), ("/bin/true", "/bin/false")),
        f"process.mode is 'commands', {NOT_YET} \"none\"",
        {"process.mode": "commands"},
    ),
]
ONE_VALUE = {"limits.instances": 1}
"""Fields that can only have one value, so that there is nothing to change."""


# -- policies by the paths of their fields --------------------------------------------------------------------------


def paths_of(part: type[Part], before: str = "") -> Iterator[str]:
    """The paths of all fields of a part, and of the parts in it."""
    for field in fields_of(part).values():
        path = f"{before}{field.name}"
        if isinstance(field.kind, Section):
            yield from paths_of(field.kind.part, f"{path}.")
            continue
        yield path
        if isinstance(field.kind, Items):
            assert isinstance(field.kind.item, Section)
            yield from paths_of(field.kind.item.part, f"{path}[].")


def policy_with(folder: Path, fields: Mapping[str, object]) -> Policy:
    """A policy under which everything works, but for these fields. Whatever depends on one another is set at once."""
    base = Policy(
        limits=Limits(wall_time=20.0),
        filesystem=Filesystem(mounts=(Mount(str(folder / "inside"), "/a", "rw"),), delete=True, symlinks=True),
    )
    parts: dict[str, dict[str, object]] = {}
    whole: dict[str, object] = {}
    for path, value in fields.items():
        section, _, name = path.partition("[]")[0].partition(".")
        settled = value(folder) if callable(value) else value
        settled = dict(settled) if path in ("custom", "environment.set") else settled  # type: ignore[call-overload]
        if name:
            parts.setdefault(section, {})[name] = settled
        else:
            whole[section] = settled
    for section, values in parts.items():
        whole[section] = msgspec.structs.replace(getattr(base, section), **values)
    return msgspec.structs.replace(base, **whole)


def flat(value: object, path: str = "") -> dict[str, object]:
    """A document as one table from paths to values; of lists of tables, each column stands together."""
    found: dict[str, object] = {}
    if isinstance(value, dict) and path not in ("custom", "environment.set"):
        for key, entry in value.items():
            found |= flat(entry, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for entry in value:
            for key, inner in entry.items():
                found[f"{path}[].{key}"] = (*found.get(f"{path}[].{key}", ()), inner)  # type: ignore[misc]
    else:
        found[path] = value
    return found


def changed(before: Policy, after: Policy) -> set[str]:
    """The paths in which two policies differ."""
    one_, other = flat(before.to_document()), flat(after.to_document())
    return {path for path in one_.keys() | other.keys() if one_.get(path) != other.get(path)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two folders to mount, in one of which is a file."""
    for name in ("inside", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "inside" / "digits").write_bytes(b"0123456789")
    return tmp_path


# -- the tables hold ------------------------------------------------------------------------------------------------


def test_every_field_is_checked() -> None:
    """A new field fails here until it is shown to be enforced, or refused on use."""
    checked = {effect.path for effect in EFFECTS} | {refusal.path for refusal in REFUSALS} | set(ONE_VALUE)

    assert sorted(checked) == sorted(paths_of(Policy))


@pytest.mark.parametrize(
    "effect",
    [
        pytest.param(effect, id=effect.path, marks=pytest.mark.slow if effect.path.startswith(_COMPILING) else ())
        for effect in EFFECTS
    ],
)
def test_a_field_changes_what_happens(effect: Effect, folder: Path) -> None:
    """Policies that differ in one field only, and a guest that tells."""
    assert len(effect.seen) == len(set(effect.seen.values())) >= 2
    policies = [policy_with(folder, {**effect.beside, effect.path: value}) for value in effect.seen]

    for first, second in itertools.combinations(policies, 2):
        differing = changed(first, second)
        assert differing
        assert all(path == effect.path or path.startswith(f"{effect.path}[]") for path in differing)
    for policy, seen in zip(policies, effect.seen.values(), strict=True):
        assert effect.observe(policy, folder) == seen


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.path)
def test_a_field_that_cannot_be_enforced_is_refused(refusal: Refusal, folder: Path) -> None:
    """Never accepted and ignored. The policy can be written, but not used."""
    for value in refusal.values:
        policy = policy_with(folder, {**refusal.beside, refusal.path: value})
        for use in (Sandbox, check_enforceable, lambda policy: stockade.run(b"", policy=policy)):
            with pytest.raises(PolicyError) as caught:
                use(policy)
            assert str(caught.value) == refusal.message.format(value)
        assert unenforceable(policy) == (refusal.message.partition(" ")[0],)
    default = policy_with(folder, {})
    assert unenforceable(default) == ()
    Sandbox(default)


@pytest.mark.parametrize("path", ONE_VALUE)
def test_a_field_of_one_value_has_no_other(path: str) -> None:
    """There is one instance in a run, and no policy can say otherwise."""
    section, _, name = path.partition(".")
    only = ONE_VALUE[path]

    assert getattr(getattr(Policy(), section), name) == only
    for value in (only - 1, only + 1):
        with pytest.raises(PolicyError) as caught:
            Policy().replace(**{name: value})
        assert str(caught.value) == f"{path} is {value}: it must be {only}"


def test_a_problem_is_told_with_what_to_set_it_to() -> None:
    policy = Policy(network=Network(mode="full"), process=Process(mode="full"))

    assert unenforceable(policy) == ("process.mode",)
    with pytest.raises(PolicyError) as caught:
        check_enforceable(policy)
    assert caught.value.problems == (f"process.mode is 'full', {NOT_YET} \"none\"",)
    check_enforceable(policy.replace(process=Process()))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes with the library can be used with it, whichever way it is named."""
    # The tests' own cache lies in the true folder for temporary files, which `development` grants.
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for use in (name, Policy.preset(name), Policy.loads(f"extends = '{name}'")):
        assert stockade.run(wat(HELLO), policy=use).ok  # type: ignore[arg-type]


def test_nothing_runs_and_nothing_is_opened_under_a_policy_that_cannot_be_enforced(tmp_path: Path) -> None:
    """Attack: what cannot be enforced is noticed half-way. Neither the module nor the mounts are looked at."""
    policy = Policy(
        process=Process(mode="full"),
        filesystem=Filesystem(mounts=(Mount(str(tmp_path / "absent"), "/work", "rw"),)),
    )
    steps: list[str] = []

    for use in (
        lambda: Sandbox(policy).prepare(tmp_path / "absent.wasm", steps.append),
        lambda: stockade.run(tmp_path / "absent.wasm", policy=policy),
        lambda: stockade.call(tmp_path / "absent.wasm", "f", policy=policy),
    ):
        with pytest.raises(PolicyError) as caught:
            use()
        assert str(caught.value) == f"process.mode is 'full', {NOT_YET} \"none\""
    assert steps == []


def test_a_module_that_was_loaded_elsewhere_is_held_to_the_limits_of_the_policy() -> None:
    """Attack on limits.module_size: the module is loaded under a lax policy, and then run under a strict one."""
    module = wat(f'(module (func (export "_start")) {ANSWER})')
    size = len(module.data)

    def attempts(box: Sandbox) -> list[Callable[[], object]]:
        return [
            lambda: box.run(module),
            lambda: box.call(module, "f"),
            lambda: box.prepare(module),
            lambda: box.open(module).close(),
            lambda: box.run(Module.load(module.data)),
        ]

    for attempt in attempts(Sandbox(Policy(limits=Limits(module_size=size)))):
        attempt()
    for attempt in attempts(Sandbox(Policy(limits=Limits(module_size=size - 1)))):
        with pytest.raises(InvalidModule) as caught:
            attempt()
        assert str(caught.value) == f"the module has {size} bytes; modules may have {size - 1} (limits.module_size)"


# -- exactly ----------------------------------------------------------------------------------------------------------


def repeats(field: str, script: Script, times: int) -> None:
    """Appends calls of which each uses one unit of a limit."""
    fd: int | Later = 0
    if field in ("read_bytes", "write_bytes", "file_size"):
        fd = script.open("digits" if field == "read_bytes" else "new", 0 if field == "read_bytes" else CREAT)
    for place in range(times):
        match field:
            case "calls":
                script.call("sched_yield")
            case "open_files":
                script.open("digits", rights=READ_RIGHTS)
            case "files_created":
                script.call("path_create_directory", MOUNT, f"new{place}")
            case "random_bytes":
                script.call("random_get", 0, 1)
            case "read_bytes":
                script.pread(fd, 1, 0)
            case "write_bytes":
                script.pwrite(fd, b"x", 0)
            case "file_size":
                script.write(fd, b"x")


REPEATED = ("calls", "open_files", "files_created", "random_bytes", "read_bytes", "write_bytes", "file_size")


@settings(max_examples=examples(150))
@given(st.sampled_from(REPEATED), st.integers(0, 8), st.integers(0, 12))
def test_exactly_the_limit_can_be_used(field: str, limit: int, times: int) -> None:
    """Of so many attempts exactly the limit succeeds, and the first of them."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "inside").mkdir()
        (Path(name) / "inside" / "digits").write_bytes(b"0123456789")
        script = Script()
        repeats(field, script, times)
        played = script.play(policy_with(Path(name), {f"limits.{field}": limit}))

    errnos = played.errnos[len(played.errnos) - times :]
    assert errnos[:limit] == [SUCCESS] * min(limit, times)
    assert SUCCESS not in errnos[limit:]
    assert sum(violation.count for violation in played.report.violations) == max(0, times - limit)


GROW_BY_ONE = """
(memory 1) (table 0 funcref)
(func (export "memory") (param $left i32) (result i32)
  (loop $next (if (local.get $left) (then
    (drop (memory.grow (i32.const 1)))
    (local.set $left (i32.sub (local.get $left) (i32.const 1)))
    (br $next))))
  (memory.size))
(func (export "table") (param $left i32) (result i32)
  (loop $next (if (local.get $left) (then
    (drop (table.grow (ref.null func) (i32.const 1)))
    (local.set $left (i32.sub (local.get $left) (i32.const 1)))
    (br $next))))
  (table.size))
"""


@settings(max_examples=examples(100))
@given(st.integers(1, 20), st.integers(0, 25))
def test_exactly_the_limit_can_be_grown(limit: int, times: int) -> None:
    """Pages of memory, and elements of tables."""
    module = wat(f"(module {GROW_BY_ONE})")
    memory = Sandbox(Policy(limits=Limits(memory=limit << 16))).call(module, "memory", times)
    table = Sandbox(Policy(limits=Limits(table_elements=limit))).call(module, "table", times)

    assert memory.value == min(1 + times, limit)
    assert table.value == min(times, limit)
    assert bool(memory.violations) is (1 + times > limit)
    assert bool(table.violations) is (times > limit)


@settings(max_examples=examples(60))
@given(st.sampled_from(["stdout", "stderr"]), st.integers(0, 12), st.binary(max_size=20))
def test_exactly_the_limit_is_kept_of_output(stream: str, limit: int, data: bytes) -> None:
    """What is kept and what is dropped add up to what was written."""
    script = Script()
    script.write({"stdout": 1, "stderr": 2}[stream], data)
    report = script.play(Policy(limits=Limits(**{stream: limit}))).report  # type: ignore[arg-type]

    assert len(getattr(report, stream)) == min(limit, len(data))
    assert getattr(report.truncated, stream) == max(0, len(data) - limit)
