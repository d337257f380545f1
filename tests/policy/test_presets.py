"""The presets, field by field, the figures behind them, and the bounds of what a policy may ask for."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import stockade
from stockade import Features, InvalidModule, Limits, Mount, Network, Outcome, Policy, PolicyError, Sandbox
from stockade.policy import PRESETS
from stockade.policy._fields import Part, fields_of
from tests.conftest import HELLO, wat
from tests.limits._guests import EMFILE, ENOTCAPABLE, READ_RIGHTS, SUCCESS, Script

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
PAGE = 65_536

DEFAULT: dict[str, object] = {
    "name": "default",
    "on_violation": "deny",
    "isolation": "inprocess",
    "limits.fuel": None,
    "limits.fuel_refill": 0,
    "limits.fuel_refill_interval": 1.0,
    "limits.fuel_refill_max": 0,
    "limits.fuel_time": None,
    "limits.wall_time": 5.0,
    "limits.idle_time": None,
    "limits.cpu_percent": 100,
    "limits.memory": 128 * MIB,
    "limits.memory_growth": None,
    "limits.on_memory_denied": "fail",
    "limits.table_elements": 10_000,
    "limits.stack": 512 << 10,
    "limits.instances": 1,
    "limits.memories": 4,
    "limits.tables": 4,
    "limits.module_size": 100 * MIB,
    "limits.compile_time": 60.0,
    "limits.compile_memory": 1024 * MIB,
    "limits.compile_process": "auto",
    "structure.functions": 100_000,
    "structure.function_size": MIB,
    "structure.locals": 10_000,
    "structure.types": 10_000,
    "structure.imports": 100_000,
    "structure.exports": 200_000,
    "structure.globals": 100_000,
    "structure.data_segments": 100_000,
    "structure.element_segments": 10_000,
    "structure.br_table": 10_000,
    "structure.nesting": 2_000,
    "limits.stdout": MIB,
    "limits.stderr": MIB,
    "limits.open_files": 64,
    "limits.files_created": 1_000,
    "limits.file_size": 256 * MIB,
    "limits.read_bytes": None,
    "limits.write_bytes": 256 * MIB,
    "limits.read_rate": None,
    "limits.write_rate": None,
    "limits.random_bytes": 64 * MIB,
    "limits.calls": None,
    "limits.call_rate": None,
    "limits.on_rate": "wait",
    "limits.connections": 10,
    "limits.requests": 1_000,
    "limits.request_time": 30.0,
    "limits.sent_bytes": 64 * MIB,
    "limits.received_bytes": 256 * MIB,
    "limits.network_rate": None,
    "filesystem.mounts": (),
    "filesystem.create": True,
    "filesystem.delete": False,
    "filesystem.symlinks": False,
    "environment.mode": "none",
    "environment.names": (),
    "environment.secrets": "named",
    "environment.set": {},
    "clock.mode": "real",
    "clock.resolution": 0.001,
    "clock.start": 946_684_800.0,
    "clock.step": 1e-6,
    "random.mode": "full",
    "random.seed": 0,
    "network.mode": "none",
    "network.hosts": (),
    "network.ports": (),
    "process.mode": "none",
    "process.commands": (),
    "gate.registered": "redact",
    "gate.keys": "allow",
    "gate.personal": "allow",
    "gate.entropy": "allow",
    "gate.channels": ("files", "output", "requests", "value"),
    "features.simd": True,
    "features.relaxed_simd": False,
    "features.tail_call": True,
    "features.multi_memory": True,
    "features.extended_const": True,
    "features.exceptions": True,
    "features.function_references": True,
    "features.gc": False,
    "features.memory64": False,
    "features.threads": False,
    "wasi.allow": ("*",),
    "wasi.deny": ("sock_*",),
    "wasi.errno": "notcapable",
    "custom": {},
}
# In what each preset differs from the default.
DIFFERENT: dict[str, dict[str, object]] = {
    "default": {},
    "minimal": {
        "limits.memories": 1,
        "features.multi_memory": False,
        "features.exceptions": False,
        "features.function_references": False,
        "limits.fuel": 10_000_000,
        "limits.compile_process": "always",
        "limits.idle_time": 5.0,
        "limits.cpu_percent": 50,
        "limits.memory": 160 * PAGE,
        "limits.memory_growth": 10,
        "limits.tables": 1,
        "limits.open_files": 10,
        "limits.read_bytes": 10 * MIB,
        "limits.write_bytes": 5 * MIB,
        "limits.read_rate": MIB,
        "limits.write_rate": MIB,
        "limits.file_size": 5 * MIB,
        "limits.files_created": 0,
        "limits.calls": 1_000_000,
        "limits.call_rate": 10_000,
        "limits.random_bytes": MIB,
        "limits.connections": 3,
        "limits.requests": 100,
        "limits.request_time": 5.0,
        "limits.sent_bytes": MIB,
        "limits.received_bytes": 10 * MIB,
        "limits.network_rate": MIB,
        "filesystem.create": False,
        "clock.mode": "coarse",
        "random.mode": "seeded",
    },
    "strict": {
        "limits.memories": 1,
        "features.multi_memory": False,
        "features.exceptions": False,
        "features.function_references": False,
        "limits.fuel": 5_000_000_000,
        "limits.compile_process": "always",
        "limits.idle_time": 5.0,
        "limits.memory": 128_000_000,
        "limits.open_files": 3,
        "limits.read_bytes": 10 * MIB,
        "limits.write_bytes": 5 * MIB,
        "limits.read_rate": MIB,
        "limits.write_rate": MIB,
        "limits.file_size": 10 * MIB,
        "limits.files_created": 100,
        "limits.calls": 1_000_000,
        "limits.call_rate": 10_000,
        "limits.random_bytes": MIB,
        "limits.connections": 3,
        "limits.requests": 100,
        "limits.request_time": 5.0,
        "limits.sent_bytes": MIB,
        "limits.received_bytes": 10 * MIB,
        "limits.network_rate": MIB,
        "clock.mode": "coarse",
        "random.mode": "seeded",
    },
    "basic": {
        "limits.fuel": 30_000_000_000,
        "limits.wall_time": 30.0,
        "limits.memory": 512 * MIB,
    },
    "development": {
        "limits.fuel": None,
        "limits.wall_time": 30.0,
        "limits.memory": 512 * MIB,
        "limits.file_size": 10 * MIB,
        "filesystem.mounts": (Mount(".", "/work", "ro"), Mount(tempfile.gettempdir(), "/tmp", "rw")),
        "environment.mode": "allow",
        "environment.names": ("PATH", "TEMP", "TMP"),
        "network.mode": "loopback",
    },
    "permissive": {
        "limits.fuel": 100_000_000_000,
        "limits.wall_time": 300.0,
        "limits.memory": 1_024_000_000,
        "limits.table_elements": 1_000_000,
        "limits.tables": 16,
        "limits.stack": MIB,
        "limits.open_files": 20,
        "limits.files_created": None,
        "limits.file_size": None,
        "limits.write_bytes": None,
        "limits.random_bytes": None,
        "limits.requests": None,
        "limits.sent_bytes": None,
        "limits.received_bytes": None,
        "features.relaxed_simd": True,
    },
}
USABLE = [name for name in DIFFERENT if name != "development"]


def values_of(policy: Policy) -> dict[str, object]:
    """All fields of a policy by their paths."""
    found: dict[str, object] = {}
    for name in fields_of(Policy):
        value = getattr(policy, name)
        if isinstance(value, Part):
            found |= {f"{name}.{field}": getattr(value, field) for field in fields_of(type(value))}
        else:
            found[name] = value
    return found


# -- the figures ----------------------------------------------------------------------------------------------------


def test_the_presets_are_these() -> None:
    """A new preset fails here until its figures are told."""
    assert list(DIFFERENT) == list(PRESETS)


@pytest.mark.parametrize("name", DIFFERENT)
def test_every_field_of_a_preset(name: str) -> None:
    """Field by field, and nothing beside."""
    expected = {**DEFAULT, "name": name, **DIFFERENT[name]}

    assert values_of(Policy.preset(name)) == expected
    assert Policy.preset(name) == Policy.preset(name)
    assert Policy.loads(f"extends = '{name}'\nname = '{name}'") == Policy.preset(name)


def test_figures_written_with_units_are_those_of_the_presets() -> None:
    """The figures as people write them."""
    text = """
    [limits]
    memory = "{memory}"
    wall_time = "{wall_time}"
    fuel = {fuel}
    open_files = {open_files}
    """
    for name, memory, wall_time, fuel, open_files in (
        ("minimal", "10MiB", "5s", "10_000_000", 10),
        ("strict", "128MB", "5s", "5_000_000_000", 3),
        ("permissive", "1024MB", "300s", "100_000_000_000", 20),
    ):
        written = Policy.loads(text.format(memory=memory, wall_time=wall_time, fuel=fuel, open_files=open_files)).limits
        limits = Policy.preset(name).limits
        for field in ("memory", "wall_time", "fuel", "open_files"):
            assert getattr(limits, field) == getattr(written, field), (name, field)
    assert Policy.preset("basic").limits.fuel == 30_000 * 1_000_000  # a million units for each millisecond of 30 s


@pytest.mark.parametrize("name", DIFFERENT)
def test_no_preset_deletes_or_writes_outside_the_temporary_folder(name: str) -> None:
    """Attack: a preset that sounds harmless gives write access to the working folder, or to caches."""
    policy = Policy.preset(name)

    assert not policy.filesystem.delete
    assert not policy.filesystem.symlinks
    writable = [mount for mount in policy.filesystem.mounts if mount.mode != "ro"]
    assert [mount.host for mount in writable] in ([], [tempfile.gettempdir()])


def test_without_a_temporary_folder_the_working_folder_does_not_become_writable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Attack: where no temporary folder can be written to, Python takes the working folder for one."""
    for name in ("work", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    policy = Policy.preset("development")
    assert policy.filesystem.mounts[1] == Mount(str(tmp_path / "temporary"), "/tmp", "rw")
    Sandbox(policy.replace(network=Network()))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "work"))
    with pytest.raises(PolicyError) as caught:
        Sandbox(Policy.preset("development").replace(network=Network()))
    assert str(caught.value).startswith("the mounts /work (ro) and /tmp (rw) share the folder ")


@pytest.mark.parametrize("name", DIFFERENT)
def test_no_preset_gives_what_must_be_asked_for_by_name(name: str) -> None:
    """No hosts, no processes, no secrets, no sockets, and no violation is let through."""
    policy = Policy.preset(name)

    assert policy.network.mode == ("loopback" if name == "development" else "none")
    assert policy.process.mode == "none"
    assert policy.environment.mode == ("allow" if name == "development" else "none")
    assert not policy.environment.set
    assert policy.on_violation == "deny"
    assert {"sock_accept", "sock_recv", "sock_send", "sock_shutdown"} <= policy.wasi.refused()
    assert policy.custom == {}


NO_PRESET = "choose default, minimal, strict, basic, development, permissive"


@pytest.mark.parametrize("name", ["", "strct", "Strict", "STRICT", "none", "__class__", " strict", 5, None, ["strict"]])
def test_there_is_no_other_preset(name: Any) -> None:
    """What there is to choose from is told, whatever was given instead."""
    with pytest.raises(PolicyError) as caught:
        Policy.preset(name)

    meant = "; did you mean strict?" if isinstance(name, str) and "str" in name.lower() else ""
    assert str(caught.value) == f"there is no preset {name!r}: {NO_PRESET}{meant}"


def test_a_long_name_is_shortened_in_the_message() -> None:
    """Attack: a policy from elsewhere floods the log with a name of a megabyte, or steers the terminal."""
    name = "\x1b[31m" + "q" * 100_000

    for use in (lambda: Policy.preset(name), lambda: Policy.loads(f'extends = "\\u001b{name[1:]}"')):
        with pytest.raises(PolicyError) as caught:
            use()
        assert len(str(caught.value)) < 1000
        assert "\x1b" not in str(caught.value)


# -- the figures with real guests -----------------------------------------------------------------------------------

GROW = """
(module
  (memory 0) (table 0 funcref)
  (func (export "memory") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "table") (param i32) (result i32) (table.grow (ref.null func) (local.get 0)))
  (func $down (export "down") (call $down)))
"""
SPIN = '(module (func (export "_start") (loop $next (br $next))))'


@pytest.mark.parametrize("name", USABLE)
def test_a_plain_guest_runs_under_a_preset(name: str) -> None:
    """The twin of all refusals: each preset that can be enforced runs what asks for nothing."""
    report = stockade.run(wat(HELLO), policy=name)

    assert report.stdout == b"hello world\n"
    assert report.policy.name == name


@pytest.mark.parametrize("name", USABLE)
def test_memory_grows_to_the_figure_of_a_preset(name: str) -> None:
    """Exactly so many pages, and not one more."""
    policy = Policy.preset(name).replace(memory_growth=None)
    pages = policy.limits.memory // PAGE
    box = Sandbox(policy)

    assert box.call(wat(GROW), "memory", pages).check().value == 0
    refused = box.call(wat(GROW), "memory", pages + 1)
    assert refused.value == -1
    assert [violation.kind for violation in refused.violations] == ["memory"]
    with pytest.raises(stockade.LimitExceeded) as caught:
        box.call(wat(f'(module (memory {pages + 1}) (func (export "f")))'), "f").check()
    assert caught.value.report.outcome is Outcome.MEMORY


@pytest.mark.parametrize("name", USABLE)
def test_tables_grow_to_the_figure_of_a_preset(name: str) -> None:
    """10,000 elements, or as many as the preset says, and not one more."""
    elements = Policy.preset(name).limits.table_elements
    box = Sandbox(name)

    assert box.call(wat(GROW), "table", elements).check().value == 0
    refused = box.call(wat(GROW), "table", elements + 1)
    assert refused.value == -1
    assert [violation.kind for violation in refused.violations] == ["table"]


@pytest.mark.parametrize("name", USABLE)
def test_so_many_tables_and_memories_may_be_declared(name: str) -> None:
    """One table under minimal, four by default; a second memory only where it is allowed."""
    policy = Policy.preset(name)
    box = Sandbox(policy)

    for what, most in (("(table 0 funcref)", policy.limits.tables), ("(memory 0)", policy.limits.memories)):
        assert box.call(wat(f'(module {what * most} (func (export "f")))'), "f").ok
        with pytest.raises(InvalidModule):
            box.call(wat(f'(module {what * (most + 1)} (func (export "f")))'), "f")


def test_memory_grows_by_ten_pages_a_second_under_minimal() -> None:
    """Ten at once are fine, eleven are refused for the rate and for nothing else."""
    box = Sandbox("minimal")

    assert box.call(wat(GROW), "memory", 10).check().value == 0
    refused = box.call(wat(GROW), "memory", 11)
    assert refused.value == -1
    assert [(v.kind, v.limit, v.observed) for v in refused.violations] == [("memory_growth", 10, 11)]


@pytest.mark.parametrize("name", USABLE)
def test_endless_recursion_ends_under_a_preset(name: str) -> None:
    """The stack of the figure, and a host that lives."""
    assert Sandbox(name).call(wat(GROW), "down").outcome is Outcome.STACK


def test_fuel_of_the_figure_is_used_up() -> None:
    """Under minimal, an endless loop ends after exactly ten million units."""
    report = Sandbox("minimal").run(wat(SPIN))

    assert report.outcome is Outcome.FUEL
    assert report.usage.fuel == 10_000_000


def test_without_fuel_the_deadline_holds() -> None:
    """Metering off does not mean for ever."""
    report = Sandbox(Policy.preset("basic").replace(fuel=None, wall_time=0.05)).run(wat(SPIN))

    assert report.outcome is Outcome.TIMEOUT
    assert report.usage.fuel is None


@pytest.mark.parametrize("name", ["minimal", "strict", "permissive"])
def test_so_many_files_may_be_open(name: str, tmp_path: Path) -> None:
    """10, 3 and 20 files, and not one more."""
    (tmp_path / "one").write_bytes(b"1")
    policy = Policy.preset(name).replace(mounts=[Mount(str(tmp_path), "/")])
    script = Script()
    for _ in range(policy.limits.open_files + 1):
        script.open("one", rights=READ_RIGHTS)

    assert script.play(policy).errnos == [SUCCESS] * policy.limits.open_files + [EMFILE]


@pytest.mark.parametrize("name", USABLE)
def test_no_preset_gives_files_or_sockets(name: str) -> None:
    """A correctly built guest finds nothing to open, and may not use a socket."""
    script = Script()
    script.open("etc/passwd", rights=READ_RIGHTS)
    script.call("sock_shutdown", 3, 0)

    assert script.play(Policy.preset(name)).errnos == [8, ENOTCAPABLE]


# -- bounds ---------------------------------------------------------------------------------------------------------

MOST_SECONDS = "315,360,000.0"
MOST_FUEL = "9,223,372,036,854,775,807"
TOO_LITTLE = [
    ({"memory": 0}, "limits.memory is 0: it must be between 65,536 and 4,294,967,296"),
    ({"memory": 65_535}, "limits.memory is 65,535: it must be between 65,536 and 4,294,967,296"),
    ({"wall_time": 0}, f"limits.wall_time is 0: it must be between 0.001 and {MOST_SECONDS}"),
    ({"wall_time": 0.0}, f"limits.wall_time is 0.0: it must be between 0.001 and {MOST_SECONDS}"),
    ({"wall_time": 0.0009}, f"limits.wall_time is 0.0009: it must be between 0.001 and {MOST_SECONDS}"),
    ({"wall_time": -1.0}, f"limits.wall_time is -1.0: it must be between 0.001 and {MOST_SECONDS}"),
    ({"idle_time": 0}, f"limits.idle_time is 0: it must be between 0.001 and {MOST_SECONDS}"),
    ({"fuel": 0}, f"limits.fuel is 0: it must be between 1 and {MOST_FUEL}"),
    ({"fuel": -5}, f"limits.fuel is -5: it must be between 1 and {MOST_FUEL}"),
    ({"fuel": 2**63}, f"limits.fuel is 9,223,372,036,854,775,808: it must be between 1 and {MOST_FUEL}"),
    ({"cpu_percent": 0}, "limits.cpu_percent is 0: it must be between 1 and 100"),
    ({"cpu_percent": 101}, "limits.cpu_percent is 101: it must be between 1 and 100"),
    ({"memory_growth": 0}, "limits.memory_growth is 0: it must be between 1 and 65,536"),
    ({"call_rate": 0}, "limits.call_rate is 0: it must be between 1 and 10,000,000,000"),
    ({"read_rate": 0}, "limits.read_rate is 0: it must be between 1 and 10,000,000,000"),
    ({"stack": 0}, "limits.stack is 0: it must be between 16,384 and 67,108,864"),
]


@pytest.mark.parametrize(("fields", "message"), TOO_LITTLE, ids=str)
def test_limits_under_which_nothing_could_run_are_refused(fields: dict[str, Any], message: str) -> None:
    """No memory, no time or no fuel is a mistake, not a policy."""
    with pytest.raises(PolicyError) as caught:
        Limits(**fields)

    assert str(caught.value) == message


def test_the_least_that_is_allowed_runs_a_guest() -> None:
    """The positive twin: one page, and what little fuel a small guest needs."""
    limits = Limits(memory=PAGE, fuel=1000, stack=16 << 10, idle_time=0.001, tables=0, table_elements=0, open_files=0)

    assert Sandbox(Policy(limits=limits)).run(wat(HELLO)).stdout == b"hello world\n"
    assert Limits(wall_time=0.001, fuel=1).fuel == 1


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("memory = 0", "limits.memory is 0: it must be between 65,536 and 4,294,967,296"),
        ("wall_time = '0s'", f"limits.wall_time is 0.0: it must be between 0.001 and {MOST_SECONDS}"),
        ("memory = 'unlimited'", "limits.memory: it cannot be unlimited: give a limit"),
        ("stack = 'unlimited'", "limits.stack: it cannot be unlimited: give a limit"),
        (
            "memory = 0\nwall_time = 0\nfuel = 0",
            (
                "3 mistakes:\n"
                "  limits.memory is 0: it must be between 65,536 and 4,294,967,296\n"
                f"  limits.wall_time is 0.0: it must be between 0.001 and {MOST_SECONDS}\n"
                f"  limits.fuel is 0: it must be between 1 and {MOST_FUEL}"
            ),
        ),
        ("memroy = 1", "limits.memroy is not known: did you mean memory?"),
        ("max_network_mbps = 10", None),
    ],
)
def test_the_same_in_documents(document: str, message: str | None) -> None:
    """All mistakes at once; a limit that there is not is never taken for one that holds."""
    with pytest.raises(PolicyError) as caught:
        Policy.loads(f"[limits]\n{document}")

    if message is None:
        message = f"limits.max_network_mbps is not known: known are {', '.join(fields_of(Limits))}"
    assert str(caught.value) == message


# -- refills --------------------------------------------------------------------------------------------------------

NO_UNITS = (
    "limits.fuel_refill needs a budget in units, which limits.fuel_time is not: set limits.fuel, too, "
    "or leave the refills out"
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"fuel": 0, "fuel_refill": 5, "fuel_refill_max": 5},
            f"limits.fuel is 0: it must be between 1 and {MOST_FUEL}",
        ),
        (
            {"fuel": 1000, "fuel_refill": 5, "fuel_refill_max": 999},
            "limits.fuel_refill_max is 999: with refills it must be at least limits.fuel, which is 1,000",
        ),
        (
            {"fuel": 1000, "fuel_refill": 5},
            "limits.fuel_refill_max is 0: with refills it must be at least limits.fuel, which is 1,000",
        ),
        (
            {"fuel": 1000, "fuel_refill": 0, "fuel_refill_max": 1000},
            "limits.fuel_refill_max has no effect where fuel_refill is 0: leave it out",
        ),
        ({"fuel_refill_max": 1}, "limits.fuel_refill_max has no effect where fuel_refill is 0: leave it out"),
        (
            {"fuel": None, "fuel_refill": 5, "fuel_refill_max": 5},
            "limits.fuel_refill has no effect where fuel is unlimited: leave it out",
        ),
        (
            {"fuel": None, "fuel_time": 2.0, "fuel_refill": 5, "fuel_refill_max": 5},
            NO_UNITS,
        ),
        (
            {"fuel": 10, "fuel_refill": -1, "fuel_refill_max": 10},
            f"limits.fuel_refill is -1: it must be between 0 and {MOST_FUEL}",
        ),
        (
            {"fuel": 10, "fuel_refill": 5, "fuel_refill_max": 2**63},
            f"limits.fuel_refill_max is 9,223,372,036,854,775,808: it must be between 0 and {MOST_FUEL}",
        ),
        (
            {"fuel": 10, "fuel_refill": 5, "fuel_refill_max": 10, "fuel_refill_interval": 0},
            f"limits.fuel_refill_interval is 0: it must be between 0.001 and {MOST_SECONDS}",
        ),
        (
            {"fuel": 10, "fuel_refill": 5, "fuel_refill_max": 10, "fuel_refill_interval": None},
            "limits.fuel_refill_interval is None: it must be a number",
        ),
    ],
    ids=str,
)
def test_refills_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    """Nothing at the start, less room than at the start, room without refills."""
    with pytest.raises(PolicyError) as caught:
        Limits(**fields)

    assert str(caught.value) == message


def test_refills_that_make_sense_can_be_written() -> None:
    """The positive twin, at the borders; in a document with units."""
    least = Limits(fuel=1, fuel_refill=1, fuel_refill_max=1, fuel_refill_interval=0.001)
    assert (least.fuel, least.fuel_refill, least.fuel_refill_max, least.fuel_refill_interval) == (1, 1, 1, 0.001)
    assert msgspec.structs.replace(least, fuel_time=0.001).fuel_time == 0.001

    text = "[limits]\nfuel = 10_000\nfuel_refill = 1_000\nfuel_refill_interval = '250ms'\nfuel_refill_max = 20_000"
    written = Policy.loads(text).limits
    assert written == Limits(fuel=10_000, fuel_refill=1_000, fuel_refill_interval=0.25, fuel_refill_max=20_000)


@pytest.mark.parametrize("name", DIFFERENT)
def test_features_of_a_preset(name: str) -> None:
    """Proposals by preset; none of them asks for what no guest can be given yet."""
    features = Policy.preset(name).features

    tight = Features(multi_memory=False, exceptions=False, function_references=False)
    own = {"permissive": Features(relaxed_simd=True), "strict": tight, "minimal": tight}
    assert features == own.get(name, Features())
    simd = '(func (export "f") (result i32) (i32x4.extract_lane 0 (i32x4.splat (i32.const 7))))'
    relaxed = (
        '(func (export "f") (result i32)'
        " (i32x4.extract_lane 0 (i32x4.relaxed_trunc_f32x4_s (f32x4.splat (f32.const 7)))))"
    )
    box = Sandbox(Policy(features=features))
    assert box.call(wat(f"(module {simd})"), "f").value == 7
    if name == "permissive":
        assert box.call(wat(f"(module {relaxed})"), "f").value == 7
    else:
        with pytest.raises(InvalidModule):
            box.call(wat(f"(module {relaxed})"), "f")
