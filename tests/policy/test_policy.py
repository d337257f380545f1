"""Policies: what they say is exact, and what cannot be meant is refused by name."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stockade import Filesystem, Limits, Mount, Policy, PolicyError, Sandbox
from stockade.policy import parse_count, parse_seconds, parse_size
from tests.conftest import HELLO, wat

MAX_FUEL = 2**63 - 1
TEN_YEARS = 315_360_000.0

# The least and the most that each numeric limit may be, and whether None (unlimited) is allowed.
RANGES: dict[str, tuple[float, float, bool]] = {
    "fuel": (1, MAX_FUEL, True),
    "wall_time": (0.001, TEN_YEARS, True),
    "memory": (65_536, 4 << 30, False),
    "table_elements": (0, 10_000_000, False),
    "stack": (16 << 10, 64 << 20, False),
    "memories": (0, 100, False),
    "tables": (0, 100, False),
    "module_size": (8, 1 << 30, False),
    "stdout": (0, 256 << 20, False),
    "stderr": (0, 256 << 20, False),
}

PARTS = (
    "name, on_violation, isolation, limits, filesystem, environment, clock, random, network, process, gate, structure, "
    "features, wasi, custom"
)

SECTIONS = (
    "fuel, fuel_refill, fuel_refill_interval, fuel_refill_max, fuel_time, wall_time, idle_time, cpu_percent, "
    "memory, memory_growth, on_memory_denied, table_elements, stack, instances, memories, tables, module_size, "
    "compile_time, compile_memory, compile_process, stdout, stderr, open_files, files_created, file_size, "
    "read_bytes, write_bytes, read_rate, write_rate, random_bytes, calls, call_rate, on_rate, "
    "connections, requests, request_time, sent_bytes, received_bytes, network_rate"
)


def refusal(text: str) -> str:
    """Why this text is not a policy."""
    with pytest.raises(PolicyError) as caught:
        Policy.loads(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("128MiB", 128 << 20),
        ("128MB", 128_000_000),
        ("64KiB", 65536),
        ("1.5kB", 1500),
        ("1KB", 1000),
        ("2GiB", 2 << 30),
        ("2GB", 2 * 10**9),
        ("0.5MiB", 1 << 19),
        ("7B", 7),
        ("7", 7),
        (" 1_000 MiB ", 1000 << 20),
        (4096, 4096),
        (4096.0, 4096),
        ("unlimited", None),
        ("1" + "0" * 30, 10**30),
    ],
)
def test_sizes(text: object, size: int | None) -> None:
    """Binary and decimal units are told apart, and a bare number is bytes."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5.0),
        ("250ms", 0.25),
        ("50us", 5e-5),
        ("2m", 120.0),
        ("2min", 120.0),
        ("1h", 3600.0),
        ("0.5", 0.5),
        (3, 3.0),
    ],
)
def test_times(text: object, seconds: float) -> None:
    """A bare number is seconds."""
    assert parse_seconds(text) == pytest.approx(seconds)
    assert isinstance(parse_seconds(text), float)
    assert parse_seconds("unlimited") is None


def test_counts() -> None:
    """Counts have no unit."""
    assert [parse_count(text) for text in ("5_000", 7, 7.0, "unlimited")] == [5000, 7, 7, None]


@pytest.mark.parametrize("parse", [parse_size, parse_seconds, parse_count])
@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "-1", "+1", "1e3", "0x10", "MiB", "1 Mi B", "1mb", "1..5", ".5", "٣", "Unlimited", "inf", "nan"),
        *("1,000", "__1", True, None, [], {}),
    ],
    ids=repr,
)
def test_odd_quantities_are_refused(parse: Any, text: object) -> None:
    """What is not clearly a quantity is none."""
    with pytest.raises(ValueError, match=r"is not a (number|quantity)"):
        parse(text)


@pytest.mark.parametrize("parse", [parse_size, parse_seconds, parse_count])
@pytest.mark.parametrize(
    "text", ["9" * 400, "9" * 5000, "9" * 400 + ".5", 10**400], ids=["400", "5000", "float", "int"]
)
def test_huge_quantities_are_refused_or_kept_exact(parse: Any, text: object) -> None:
    """The attack: a number so large that reading it fails in a way that nobody catches."""
    try:
        value = parse(text)
    except ValueError as problem:
        value = str(problem)

    assert len(value) < 1000 if isinstance(value, str) else value == text or str(value) == text


def test_units_are_named_where_there_are_some() -> None:
    """A message lists what could have been written, and nothing where there is nothing."""
    with pytest.raises(ValueError, match="units: s, ms, us, m, min, h") as caught:
        parse_seconds("5x")
    assert str(caught.value) == '\'5x\' is not a quantity such as "5s" or "unlimited" (units: s, ms, us, m, min, h)'

    with pytest.raises(ValueError, match="is not a quantity such as 1000") as caught:
        parse_count("5x")
    assert "(units: )" not in str(caught.value)


def test_presets_have_the_figures_that_were_asked_for() -> None:
    """The seed's strict and permissive figures, written with units."""
    strict, permissive = Policy.preset("strict"), Policy.preset("permissive")

    written = Policy.loads('[limits]\nmemory = "128MB"\nwall_time = "5s"\nfuel = 5_000_000_000').limits
    assert (written.memory, written.wall_time, written.fuel) == (128_000_000, 5.0, 5_000_000_000)
    assert (strict.name, strict.limits.memory, strict.limits.wall_time) == ("strict", 128_000_000, 5.0)
    assert strict.limits.fuel == 5_000_000_000
    assert permissive.name == "permissive"
    assert permissive.limits.memory == 1_024_000_000
    assert permissive.limits.wall_time == 300.0
    assert permissive.limits.fuel == 100_000_000_000
    assert (strict.limits.open_files, permissive.limits.open_files) == (3, 20)
    assert Policy.preset("default") == Policy()
    for name in ("default", "minimal", "strict", "basic", "permissive"):
        assert Policy.preset(name).filesystem.mounts == ()
        assert not Policy.preset(name).filesystem.delete


def test_presets_allow_a_plain_guest() -> None:
    """The twin of all refusals: each preset runs what asks for nothing."""
    for name in ("default", "minimal", "strict", "basic", "permissive"):
        assert Sandbox(name).run(wat(HELLO)).stdout == b"hello world\n"


@pytest.mark.parametrize("name", ["", "strct", "Strict", "none"])
def test_unknown_preset_is_refused(name: str) -> None:
    """What there is to choose from is told."""
    for action in (Policy.preset, Sandbox):
        with pytest.raises(PolicyError) as caught:
            action(name)
        assert str(caught.value) == (
            f"there is no preset '{name}': choose default, minimal, strict, basic, development, permissive"
            + ("; did you mean strict?" if name.lower().startswith("str") else "")
        )


def test_every_field_can_be_written() -> None:
    """The whole of a policy as text, and as Python has it."""
    policy = Policy.loads(
        """
        name = "all"
        [limits]
        fuel = "unlimited"
        wall_time = "250ms"
        memory = "64MiB"
        on_memory_denied = "stop"
        table_elements = 1_000
        stack = "1MiB"
        memories = 2
        tables = 3
        module_size = "10MB"
        stdout = "4KiB"
        stderr = 0
        [filesystem]
        mounts = [
            { host = "/in", guest = "/data" },
            { host = "/out", guest = "/out", mode = "rw" },
        ]
        """
    )

    assert policy == Policy(
        name="all",
        limits=Limits(
            fuel=None,
            wall_time=0.25,
            memory=64 << 20,
            on_memory_denied="stop",
            table_elements=1000,
            stack=1 << 20,
            memories=2,
            tables=3,
            module_size=10_000_000,
            stdout=4096,
            stderr=0,
        ),
        filesystem=Filesystem(mounts=(Mount("/in", "/data", "ro"), Mount("/out", "/out", "rw"))),
    )


def test_empty_text_is_the_default_under_another_name() -> None:
    """What is not written is as by default; an unnamed policy does not pass for the preset."""
    assert Policy.loads("") == Policy(name="custom")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nmae = 'x'", "nmae is not known: did you mean name?"),
        ("[limit]", "limit is not known: did you mean limits?"),
        ("[zzz]", f"zzz is not known: known are {PARTS}"),
        ("[limits]\nmemroy = 1", "limits.memroy is not known: did you mean memory?"),
        ("[limits]\nfule = 1", "limits.fule is not known: did you mean fuel?"),
        ("[limits]\nqqq = 1", f"limits.qqq is not known: known are {SECTIONS}"),
        ("[limits]\n'\\u001b[31m' = 1", rf"limits.\u001b[31m is not known: known are {SECTIONS}"),
        ('[limits]\n"\\u001b[31m" = 1', rf"limits.\x1b[31m is not known: known are {SECTIONS}"),
        ("[filesystem]\nmount = []", "filesystem.mount is not known: did you mean mounts?"),
        (
            "[filesystem]\nmounts = [{ host = '.', guest = '/d', write = true }]",
            "filesystem.mounts[0].write is not known: known are host, guest, mode, only",
        ),
        (
            "[filesystem]\nmounts = [{ host = '.', guest = '/d' }, { host = '.' }]",
            'filesystem.mounts[1] has no guest: it must be an absolute path without . or .., such as "/data"',
        ),
        ("[filesystem]\nmounts = ['.']", "filesystem.mounts[0] is '.': it must be a table with host, guest"),
        ("[filesystem]\nmounts = '.'", "filesystem.mounts is '.': it must be a list of tables"),
        ("limits = 3", "limits is 3: it must be a table"),
        ("filesystem = []", "filesystem is []: it must be a table"),
        ("name = 3", "name is 3: it must be text"),
        ("[limits]\non_memory_denied = 'kill'", 'limits.on_memory_denied is \'kill\': it must be "fail" or "stop"'),
        (
            "[filesystem]\nmounts = [{ host = '.', guest = '/d', mode = 'RW' }]",
            'filesystem.mounts[0].mode is \'RW\': it must be "ro" or "rw"; did you mean "rw"?',
        ),
        ("[limits]\nfuel = true", "limits.fuel: true is not a number such as 1000"),
        ("[limits]\nfuel = 1.5", "limits.fuel: 1.5 is not a whole number"),
        (
            "[limits]\nfuel = nan",
            'limits.fuel is nan: it must be 1 to 2^63 - 1 units, or "unlimited", or a time such as "~2s"',
        ),
        ("[limits]\nfuel = -1", "limits.fuel is -1: it must be between 1 and 9,223,372,036,854,775,807"),
        ("[limits]\nwall_time = 0", "limits.wall_time is 0.0: it must be between 0.001 and 315,360,000.0"),
        ("[limits]\nwall_time = inf", 'limits.wall_time is inf: it must be 1ms to 315,360,000 seconds, or "unlimited"'),
        ("[limits]\nmemory = '5GiB'", "limits.memory is 5,368,709,120: it must be between 65,536 and 4,294,967,296"),
        ("[limits]\nmemory = '10km'", 'limits.memory: \'10km\' is not a quantity such as "128MiB" or "unlimited" '),
        ("[limits", "not TOML: "),
        ("name = 'a'\nname = 'b'", "not TOML: "),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    """The attack: a misspelt limit is passed over, and the guest has none."""
    if message.endswith((": ", " ")):
        assert refusal(text).startswith(message)
    else:
        assert refusal(text) == message


@pytest.mark.parametrize("field", [name for name, (*_, unlimited) in RANGES.items() if not unlimited])
def test_unlimited_is_refused_in_words_where_it_cannot_be(field: str) -> None:
    """Who writes "unlimited" where there must be a limit is told so, in the words of the file, not of Python."""
    message = refusal(f"[limits]\n{field} = 'unlimited'")

    assert message.startswith(f"limits.{field}")
    assert "None" not in message


@pytest.mark.parametrize("field", RANGES)
def test_limits_are_checked_at_their_borders(field: str) -> None:
    """The least and the most are allowed, what lies beyond is not, and the message names the range."""
    least, most, unlimited = RANGES[field]
    step = 0.0005 if field == "wall_time" else 1

    for value in (least, most):
        assert getattr(Policy().replace(**{field: value}).limits, field) == value
    for value in (least - step, most + 1, -1, -(2**63), 2**64):
        with pytest.raises(PolicyError) as caught:
            Policy().replace(**{field: value})
        assert str(caught.value) == f"limits.{field} is {value:,}: it must be between {least:,} and {most:,}"
    if unlimited:
        assert getattr(Policy().replace(**{field: None}).limits, field) is None


@pytest.mark.parametrize("field", RANGES)
@pytest.mark.parametrize("value", [True, False, math.nan, math.inf, -math.inf, [], b"5"], ids=repr)
def test_limits_are_numbers(field: str, value: object) -> None:
    """The attack: True, NaN or infinity passes a comparison and reaches the engine as another number."""
    *_, unlimited = RANGES[field]
    whole = "" if field == "wall_time" else "whole "

    with pytest.raises(PolicyError) as caught:
        Limits(**{field: value})  # type: ignore[arg-type]

    assert str(caught.value) == (
        f"limits.{field} is {value!r}: it must be a {whole}number" + " or unlimited (None)" * unlimited
    )


@pytest.mark.parametrize("field", [name for name in RANGES if name != "wall_time"])
def test_whole_limits_are_whole(field: str) -> None:
    """A float is refused even where it is whole, rather than rounded."""
    with pytest.raises(PolicyError):
        Policy().replace(**{field: 16384.0})
    with pytest.raises(PolicyError):
        Policy().replace(**{field: 16384.5})


@pytest.mark.parametrize("field", RANGES)
@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["huge", "hugely negative"])
def test_huge_limits_are_refused(field: str, value: int) -> None:
    """The attack: a number that no float can hold fails in a way that nobody catches."""
    with pytest.raises(PolicyError):
        Policy().replace(**{field: value})


@pytest.mark.parametrize("field", RANGES)
@pytest.mark.parametrize("digits", [400, 5000])
def test_huge_limits_in_files_are_refused(field: str, digits: int) -> None:
    """The same in a file, as a number and as text."""
    for value in ("9" * digits, "'" + "9" * digits + "'"):
        assert len(refusal(f"[limits]\n{field} = {value}")) < 1000


def test_long_values_are_shortened_in_messages() -> None:
    """The attack: a policy from elsewhere floods the log with a value of a megabyte."""
    long = "q" * 100_000

    for text in (
        f"[limits]\nmemory = '{long}'",
        f"[limits]\non_memory_denied = '{long}'",
        f"[limits]\n{long} = 1",
        f"name = ['{long}']",
        f"filesystem = '{long}'",
        f"[filesystem]\nmounts = [{{ host = '.', guest = '{long}' }}]",
        f"[filesystem]\nmounts = [{{ host = '.', guest = '/d', mode = '{long}' }}]",
    ):
        assert len(refusal(text)) < 2000


def test_replace_changes_what_is_named_only() -> None:
    """Fields of the policy and of its parts, by name."""
    base = Policy.preset("strict")

    changed = base.replace(name="mine", wall_time=2.0, mounts=[Mount("/in", "/data")], on_memory_denied="stop")

    assert (changed.name, changed.limits.wall_time, changed.limits.on_memory_denied) == ("mine", 2.0, "stop")
    assert changed.filesystem.mounts == (Mount("/in", "/data"),)
    assert changed.replace(name="strict", wall_time=5.0, mounts=[], on_memory_denied="fail") == base
    assert base == Policy.preset("strict")
    assert base.replace() == base
    limits = Limits(fuel=7)
    assert base.replace(limits=limits).limits == limits
    assert base.replace(limits=limits, memory=1 << 20).limits == Limits(fuel=7, memory=1 << 20)


def test_replace_refuses_what_it_does_not_know() -> None:
    """The attack: a misspelt change is passed over, and the guest has more than was meant."""
    with pytest.raises(PolicyError) as caught:
        Policy().replace(wall_tmie=1.0)

    assert str(caught.value).startswith("a policy has no field 'wall_tmie'")
    assert "wall_time" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"limits": 3},
        {"limits": {"fuel": 1}},
        {"limits": None},
        {"filesystem": None},
        {"mounts": 3},
        {"mounts": None},
        {"mounts": ["/data"]},
        {"mounts": [("/in", "/data")]},
        {"mounts": "/data"},
        {"name": 5},
        {"name": None},
    ],
    ids=str,
)
def test_replace_refuses_values_of_a_wrong_kind(changes: dict[str, Any]) -> None:
    """Told at once and by name, not later by an AttributeError in the middle of a run."""
    (name,) = changes

    with pytest.raises(PolicyError) as caught:
        Policy().replace(**changes)

    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, "/data"), 'mount.host is 1: it must be the path of a folder, such as "./data"'),
        ((".", 1), 'mount.guest is 1: it must be an absolute path without . or .., such as "/data"'),
        ((None, "/data"), 'mount.host is None: it must be the path of a folder, such as "./data"'),
        ((b".", "/data"), "mount.host is b'.': it must be the path of a folder, such as \"./data\""),
    ],
    ids=str,
)
def test_mounts_are_made_of_text(arguments: tuple[Any, Any], message: str) -> None:
    """Told by name, not by a TypeError from within."""
    with pytest.raises(PolicyError) as caught:
        Mount(*arguments)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("host = 1, guest = '/d'", 'host is 1: it must be the path of a folder, such as "./data"'),
        ("host = '.', guest = 1", 'guest is 1: it must be an absolute path without . or .., such as "/data"'),
        ("host = [], guest = '/d'", 'host is []: it must be the path of a folder, such as "./data"'),
    ],
)
def test_mounts_in_files_are_made_of_text(entry: str, message: str) -> None:
    """The same in a file."""
    assert refusal(f"[filesystem]\nmounts = [{{ {entry} }}]") == f"filesystem.mounts[0].{message}"


def test_policies_are_frozen() -> None:
    """The attack: code that was handed a policy widens it behind the sandbox's back."""
    policy = Policy()

    for target, name in ((policy, "name"), (policy.limits, "fuel"), (policy.filesystem, "mounts")):
        with pytest.raises(AttributeError):
            setattr(target, name, None)
    assert isinstance(policy.replace(mounts=[Mount(".", "/d")]).filesystem.mounts, tuple)


def test_digest_is_the_same_in_every_process() -> None:
    """Reports name the policy that held by its digest: equal policies have equal ones, anywhere."""
    code = (
        "import stockade; print(stockade.Policy(name='ä').replace(fuel=7, mounts=[stockade.Mount('a', '/b')]).digest)"
    )
    policy = Policy(name="ä").replace(fuel=7, mounts=[Mount("a", "/b")])

    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONUTF8": "1"},
        )
        assert done.stdout.strip() == policy.digest
    assert len(policy.digest) == 64


def test_digest_differs_between_different_policies() -> None:
    """The twin of the above: every field counts."""
    base = Policy()
    changes: list[dict[str, Any]] = [
        {"name": "other"},
        {"on_memory_denied": "stop"},
        {"wall_time": None},
    ]
    changes += [{field: most} for field, (_, most, _) in RANGES.items()]
    changes += [{"mounts": [Mount(host, guest, mode)]} for host, guest, mode in _MOUNTS]

    digests = {base.digest, *(base.replace(**change).digest for change in changes)}

    assert len(digests) == len(changes) + 1


_MOUNTS: list[tuple[str, str, Any]] = [("a", "/a", "ro"), ("a", "/a", "rw"), ("b", "/a", "ro"), ("a", "/b", "ro")]


def test_policy_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative mounts are relative to the file, wherever the process is; absolute ones stay."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "data").mkdir()
    path = tmp_path / "conf" / "p.toml"
    path.write_text(
        "name = 'mine'\n"
        "[filesystem]\n"
        "mounts = [{ host = '../data', guest = '/d' }, { host = '/usr', guest = '/usr' }]\n"
    )

    policy = Policy.load(path)
    monkeypatch.chdir(tmp_path)
    relative = Policy.load("conf/p.toml")

    assert policy.name == "mine"
    assert [Path(mount.host) for mount in policy.filesystem.mounts] == [tmp_path / "conf" / ".." / "data", Path("/usr")]
    assert Path(relative.filesystem.mounts[0].host) == Path("conf/../data")
    Sandbox(policy)
    Sandbox(relative)


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """The file is named, and so is what is wrong with it."""
    cases = {
        "absent.toml": (None, "cannot be read: "),
        "folder.toml": ("folder", "cannot be read: "),
        "latin.toml": (b"name = '\xe4'", "cannot be read: "),
        "large.toml": (b"#" * (1 << 20) + b"\n", "is larger than 1,048,576 bytes"),
    }
    for name, (content, problem) in cases.items():
        path = tmp_path / name
        if content == "folder":
            path.mkdir()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        with pytest.raises(PolicyError) as caught:
            Policy.load(path)
        assert str(caught.value).startswith(f"the policy file {path} {problem}")

    path = tmp_path / "wrong.toml"
    path.write_text("[limits]\nfuell = 1")
    with pytest.raises(PolicyError) as caught:
        Policy.load(path)
    assert str(caught.value) == f"{path}: limits.fuell is not known: did you mean fuel?"


@pytest.mark.parametrize("path", ["/dev/zero", "zero\0byte", "x" * 5000])
def test_odd_paths_to_policies_are_refused(path: str) -> None:
    """The attack: a path that never ends, that the system would cut, or that no system has."""
    with pytest.raises(PolicyError) as caught:
        Policy.load(path)

    assert len(str(caught.value)) < 2000
    assert "\0" not in str(caught.value)


def test_fifo_in_place_of_a_policy_does_not_hang(tmp_path: Path) -> None:
    """The attack: a FIFO that nobody writes to, where a policy should be."""
    path = tmp_path / "p.toml"
    os.mkfifo(path)
    code = (
        "import sys, stockade\n"
        "try:\n"
        "    stockade.Policy.load(sys.argv[1])\n"
        "except stockade.PolicyError as problem:\n"
        "    print(problem)"
    )

    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.fail("reading a policy waits for whoever writes to a FIFO")
    assert str(path) in done.stdout


@pytest.mark.parametrize("text", ["x = " + "[" * 5000, "x = " + "{a=" * 5000, "[" + "a." * 5000 + "a]"])
def test_deep_nesting_is_refused(text: str) -> None:
    """The attack: a policy nested so deep that reading it exhausts Python's stack."""
    refusal(text)


_KEYS = st.sampled_from(["name", "limits", "filesystem", "mounts", "host", "guest", "mode", *RANGES, "x"])
_VALUES = st.recursive(
    st.sampled_from(["'5s'", "'128MiB'", "true", "nan", "-inf", "1e400", "'unlimited'", "1979-05-27", "'/a'", "''"])
    | st.integers().map(str)
    | st.floats().map(repr),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(st.tuples(_KEYS, inner), max_size=3).map(
            lambda pairs: "{" + ", ".join(f"{key} = {value}" for key, value in dict(pairs).items()) + "}"
        )
    ),
    max_leaves=6,
)
_LINES = st.tuples(_KEYS, _VALUES).map(" = ".join) | st.sampled_from(
    ["[limits]", "[filesystem]", "[[filesystem.mounts]]"]
)


@given(st.text() | st.lists(_LINES, max_size=8).map("\n".join))
@example("[limits]\nfuel = 1e400")
@example("[filesystem]\nmounts = [{ host = 1, guest = '/d' }]")
@example("\ud800")
@example("\0")
def test_any_text_is_a_policy_or_refused(text: str) -> None:
    """The attack: text that makes reading fail in a way that nobody catches."""
    try:
        policy = Policy.loads(text)
    except PolicyError:
        return

    assert isinstance(policy, Policy)
    assert len(policy.digest) == 64
