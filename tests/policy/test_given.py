"""Policies, sizes, times and paths as Python's callers give them: the same that files take, and as well checked."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stockade import Policy, PolicyError, UsageError
from stockade.policy import (
    Clock,
    Environment,
    Features,
    Filesystem,
    HostRule,
    Limits,
    ModuleLimits,
    Mount,
    Network,
    PortRange,
    Process,
    Random,
    Wasi,
    _changes,
    policy_of,
)
from stockade.policy._fields import Choice, Items, Quantity, Section, fields_of
from tests._types import refusals

if TYPE_CHECKING:
    from collections.abc import Callable

# -- units ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"memory": "64MiB"}, 64 << 20),
        ({"memory": "64MB"}, 64_000_000),
        ({"stdout": "1KiB"}, 1024),
        ({"read_rate": "2MiB/s"}, 2 << 20),
        ({"wall_time": "2s"}, 2.0),
        ({"wall_time": "250ms"}, 0.25),
        ({"wall_time": timedelta(minutes=1.5)}, 90.0),
        ({"idle_time": "unlimited"}, None),
        ({"compile_time": timedelta(seconds=3)}, 3.0),
        ({"fuel": "1_000"}, 1000),
        ({"fuel": "unlimited"}, None),
        ({"calls": "7"}, 7),
    ],
    ids=str,
)
def test_limits_take_units(given: dict[str, Any], kept: object) -> None:
    """In the constructor and in `replace`, as in files; what is kept is a number of the base unit."""
    (name,) = given
    for limits in (Limits(**given), Policy().replace(**given).limits):
        assert (getattr(limits, name), type(getattr(limits, name))) == (kept, type(kept))
    assert Policy(limits=Limits(**given)) == Policy().replace(**{name: kept})  # type: ignore[arg-type]


def test_an_estimate_of_fuel_is_taken_by_the_constructor() -> None:
    """As by `replace` and by files."""
    assert Limits(fuel="~2s") == Limits(fuel=None, fuel_time="2s") == Policy().replace(fuel="~2s").limits
    with pytest.raises(PolicyError, match=r"which is short for limits\.fuel_time, and that is given, too"):
        Limits(fuel="~2s", fuel_time=1.0)
    with pytest.raises(PolicyError, match="after ~ it must be a time"):
        Limits(fuel="~much")


def test_other_parts_take_units_and_paths() -> None:
    """Wherever a file has them."""
    assert Clock(resolution="10ms", start=timedelta(days=1)) == Clock(resolution=0.01, start=86_400.0)
    assert ModuleLimits(function_size="1MiB") == ModuleLimits(function_size=1 << 20)
    assert Mount(Path("a") / "b", "/data", "rw") == Mount("a/b", "/data", "rw")
    assert HostRule("a.example", [80, "8000-8010"]) == HostRule("a.example", (PortRange(80, 80), PortRange(8000, 8010)))
    assert Network(mode="ports", ports=["443"]) == Network(mode="ports", ports=[443])
    assert Policy(custom={"cpus": {"value": 2, "min": 1, "max": 4}}).grants("cpus", 2)


NO_QUANTITY = 'is not a quantity such as "128MiB" or "unlimited" (units: B, kB, KB, MB, GB, KiB, MiB, GiB)'


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Limits(memory="64"),
            'limits.memory is 64: it must be between 65,536 and 4,294,967,296; did you mean "64MiB"?',
        ),
        (
            lambda: Limits(stack=16),
            'limits.stack is 16: it must be between 16,384 and 67,108,864; did you mean "16MiB"?',
        ),
        (
            lambda: Limits(stack=128),
            'limits.stack is 128: it must be between 16,384 and 67,108,864; did you mean "128KiB"?',
        ),
        (
            lambda: Limits(memory="64XB"),
            f"limits.memory: '64XB' {NO_QUANTITY}",
        ),
        (lambda: Limits(memory="unlimited"), "limits.memory: it cannot be unlimited: give a limit"),
        (
            lambda: Limits(memory=timedelta(1)),  # type: ignore[typeddict-item]
            "limits.memory is datetime.timedelta(days=1): it must be a whole number",
        ),
        (
            lambda: Policy().replace(wall_time=timedelta(-1)),
            "limits.wall_time is -86,400.0: it must be between 0.001 and 315,360,000.0",
        ),
        (
            lambda: Mount(b"/a", "/b"),  # type: ignore[arg-type]
            "mount.host is b'/a': it must be the path of a folder, such as \"./data\"",
        ),
        (
            lambda: Random(mode="full", seed=3),
            'random.seed has no effect where the mode is "full": leave it out, or set the mode to "seeded"',
        ),
        (
            lambda: Random(mode="none", seed=3),
            'random.seed has no effect where the mode is "none": leave it out, or set the mode to "seeded"',
        ),
    ],
)
def test_what_is_no_quantity_is_told_by_its_field(make: Callable[[], object], message: str) -> None:
    """In the words that files get."""
    with pytest.raises(PolicyError) as caught:
        make()
    assert str(caught.value) == message


def test_a_seed_stands_beside_its_mode() -> None:
    """The twin of a seed that says nothing; a document that sets the mode sets it anew."""
    assert Random(mode="seeded", seed=3).seed == 3
    text = "extends = 'strict'\n[random]\nmode = '{}'\n{}"
    assert Policy.loads(text.format("seeded", "seed = 7")).random == Random(mode="seeded", seed=7)
    assert Policy.loads(text.format("none", "")).random == Random(mode="none")
    with pytest.raises(PolicyError, match="has no effect where the mode is"):
        Policy.loads(text.format("none", "seed = 7"))


# -- types ------------------------------------------------------------------------------------------------------------

PARTS: dict[type[Any], type[Any]] = {
    Limits: _changes.LimitsFields,
    Filesystem: _changes.FilesystemFields,
    Environment: _changes.EnvironmentFields,
    Clock: _changes.ClockFields,
    Random: _changes.RandomFields,
    Network: _changes.NetworkFields,
    Process: _changes.ProcessFields,
    ModuleLimits: _changes.ModuleLimitsFields,
    Features: _changes.FeaturesFields,
    Wasi: _changes.WasiFields,
    Policy: _changes.PolicyFields,
}


UNITS = {"bytes": "Size", "bytes per second": "Size", "seconds": "Seconds", "": "Count"}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_type_checkers_know_every_field_of_a_part(part: type[Any]) -> None:
    """What they are told is held against the fields themselves: names, None, and words to choose from."""
    told = {name: hint.__forward_arg__ for name, hint in PARTS[part].__annotations__.items()}
    fields = fields_of(part)
    assert told.keys() == fields.keys()
    for name, field in fields.items():
        if isinstance(field.kind, Quantity):
            unit = UNITS[field.kind.unit.name]
            assert told[name] == unit + " | None" * field.kind.unlimited, name
        elif isinstance(field.kind, Choice):
            assert told[name] == f"Literal[{', '.join(map(repr, field.kind.words))}]"
        elif isinstance(field.kind, Section):
            assert told[name] == field.kind.part.__name__
        elif isinstance(field.kind, Items):
            assert told[name] == f"Sequence[{field.kind.part.__name__}]"


def test_type_checkers_know_what_replace_takes() -> None:
    """All fields of all parts, but for those that several have: which one is meant could not be told."""
    names = [name for part in PARTS for name in fields_of(part)]
    several = {name for name in names if names.count(name) > 1}
    assert several == {"mode"}
    assert _changes.PolicyChanges.__annotations__.keys() == set(names) - several


CHECKED = """
from datetime import timedelta
from pathlib import Path
import stockade
from stockade import Limits, Mount, Policy

policy = Policy(limits=Limits(memory="64MiB", wall_time=timedelta(seconds=2)))
policy = policy.replace(wall_time="2s", fuel=None, mounts=[Mount(Path("."), "/data")], set={"A": "b"})
"""
REFUSED = {
    "policy.replace(wal_time=2.0)": 'Unexpected keyword argument "wal_time" for "replace" of "Policy"',
    "policy.replace(wall_time=[])": 'Argument "wall_time" to "replace" of "Policy" has incompatible type',
    'Limits(memmory="64MiB")': 'Unexpected keyword argument "memmory" for "Limits"',
    "Limits(memory=None)": 'Argument "memory" to "Limits" has incompatible type "None"',
    'policy.replace(on_rate="drop")': 'Argument "on_rate" to "replace" of "Policy" has incompatible type',
}


@pytest.mark.slow
def test_mypy_accepts_what_is_right_and_refuses_what_is_not(tmp_path: Path) -> None:
    """As users run it: strict, over code of theirs."""
    for line, message in zip(refusals(CHECKED, REFUSED, tmp_path), REFUSED.values(), strict=True):
        assert message in line


# -- policy= ----------------------------------------------------------------------------------------------------------


def test_a_policy_is_given_as_itself_by_name_or_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text is a path where it has the suffix of a policy file or a separator in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.toml").write_text('name = "mine"\n')
    (tmp_path / "P.JSON").write_text('{"name": "mine"}')
    (tmp_path / "strict").write_text('name = "mine"\n')
    mine = Policy(name="mine")
    assert policy_of(mine) is mine
    assert policy_of("strict") == Policy.preset("strict")
    for path in ("p.toml", "./p.toml", "./strict", str(tmp_path / "strict"), "P.JSON", Path("p.toml"), Path("strict")):
        assert policy_of(path) == mine


GIVE = "give a Policy, the name of a preset, or the path of a policy file"


@pytest.mark.parametrize(
    ("given", "problem", "message"),
    [
        ("stirct", PolicyError, "there is no preset 'stirct': choose "),
        ("none.toml", PolicyError, "the policy file none.toml cannot be read: No such file or directory"),
        ("a/strict", PolicyError, "the policy file a/strict cannot be read: No such file or directory"),
        (Path("strict"), PolicyError, "the policy file strict cannot be read: No such file or directory"),
        (None, UsageError, f"policy is None: {GIVE}"),
        (
            b"strict",
            UsageError,
            f"policy is b'strict': {GIVE}",
        ),
        (
            {"name": "x"},
            UsageError,
            f"policy is {{'name': 'x'}}: {GIVE}; Policy.loads reads what a document says",
        ),
    ],
    ids=str,
)
def test_what_is_no_policy_is_told(
    given: object, problem: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In words, and before anything runs."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(problem) as caught:
        policy_of(given)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("method", ["narrow", "is_subset", "diff"])
def test_policies_are_compared_with_policies(method: str) -> None:
    """And with nothing else."""
    with pytest.raises(UsageError) as caught:
        getattr(Policy(), method)("strict")
    assert str(caught.value) == ("other is 'strict': it must be a Policy, such as Policy.preset or Policy.load returns")
    with pytest.raises(UsageError, match=r"^the path of the policy file is 5: give text or a Path$"):
        Policy.load(5)  # type: ignore[arg-type]
