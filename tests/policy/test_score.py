"""Scores: what they are made of, that granting more never raises them, that only what is enforced counts.

Holds P-POLICY-4 and P-JAIL-6.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stockade import (
    Clock,
    Environment,
    Features,
    Filesystem,
    HostRule,
    IsolationError,
    Limits,
    Mount,
    Network,
    Policy,
    PortRange,
    Process,
    Wasi,
)
from stockade.policy import PRESETS, Reason, Score, _score, unenforceable
from tests._examples import examples
from tests.policy._strategies import policies
from tests.policy.test_algebra import related

_CONTROLS = {
    "engine": 34,
    "process": 20,
    "network": 8,
    "files": 8,
    "quotas": 4,
    "time": 6,
    "memory": 4,
    "environment": 4,
    "clock": 3,
    "calls": 4,
    "features": 3,
    "violations": 2,
}
"""What each control can give at most."""


def points(policy: Policy) -> dict[str, int]:
    """The points of each control."""
    return {reason.control: reason.points for reason in policy.score().reasons}


def reason(policy: Policy, control: str) -> Reason:
    """What one control gives, and why."""
    (found,) = (reason for reason in policy.score().reasons if reason.control == control)
    return found


# -- what a score is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "label"),
    [
        *((0, "minimal"), (29, "minimal")),
        *((30, "basic"), (49, "basic")),
        *((50, "standard"), (69, "standard")),
        *((70, "hardened"), (84, "hardened")),
        *((85, "fortress"), (100, "fortress")),
    ],
)
def test_bands(monkeypatch: pytest.MonkeyPatch, value: int, label: str) -> None:
    """The labels of the seed, at the borders of its bands."""
    rest = Policy().score().value - reason(Policy(), "violations").points
    monkeypatch.setattr(_score, "_violations", lambda _: Reason("violations", value - rest, 2, "as the test wants it"))

    score = Policy().score()

    assert (score.value, score.label, str(score)) == (value, label, f"{value} ({label})")


def _check_sums(score: Score) -> None:
    assert {reason.control: reason.most for reason in score.reasons} == _CONTROLS
    assert sum(_CONTROLS.values()) == 100
    assert score.value == sum(reason.points for reason in score.reasons)
    for reason in score.reasons:
        assert 0 <= reason.points <= reason.most, reason
        assert reason.why, reason
        assert reason.why.isprintable(), reason


@settings(max_examples=examples(100))
@given(policies())
def test_reasons_add_up(policy: Policy) -> None:
    """A score is the sum of its reasons, each within its share of 100, each said in a line."""
    _check_sums(policy.score())


@pytest.mark.parametrize("name", PRESETS)
def test_reasons_of_presets_add_up(name: str) -> None:
    """The same for each preset, under the isolation that there is."""
    _check_sums(Policy.preset(name).score())
    assert Policy.preset(name).score("inprocess") == Policy.preset(name).score()


def test_presets_are_ranked() -> None:
    """A stricter preset never has the lower score."""
    score = {name: Policy.preset(name).score().value for name in PRESETS}

    assert score["permissive"] < score["default"] <= score["strict"] <= score["minimal"]
    assert score["development"] < score["basic"]


@pytest.mark.parametrize("isolation", ["jail", "", "Inprocess", "none", 1, "\x1b[31m"])
def test_an_isolation_that_is_not_there_is_no_score(isolation: Any) -> None:
    """The attack: a score for an isolation that the runs will not have."""
    with pytest.raises(IsolationError) as caught:
        Policy().score(isolation)
    assert str(caught.value) == f'there is no isolation {isolation!r}: use "inprocess", "process" or "bubblewrap"'


def test_a_policy_is_rated_where_its_runs_happen() -> None:
    """The attack: a score for runs in the host's process, of a policy whose runs never are there; and its twin."""
    demands = Policy(name="apart", isolation="process")

    assert demands.score() == demands.score("process")
    assert demands.score().value == Policy().score().value + 1
    assert Policy().score("process") == demands.score()
    with pytest.raises(IsolationError) as caught:
        demands.score("inprocess")
    assert str(caught.value) == (
        'the policy \'apart\' demands isolation "process", and "inprocess" is weaker: leave isolation out, or give '
        '"process"'
    )


WALLS = ("seccomp", "landlock", "user", "network", "capabilities", "mount", "pid", "ipc")


def test_only_walls_that_were_found_count() -> None:
    """The attack: a score for walls that were asked for, or that have names that nobody knows."""
    alone = Policy().score("process")
    assert alone.value == Policy().score().value + 1
    assert alone.reasons[1] == (
        "process",
        1,
        20,
        "a process of its own; no walls were found around it",
    )
    assert Policy().score("process", ["moat", "SECCOMP", ""]) == alone
    assert Policy().score("inprocess", WALLS) == Policy().score()

    full = Policy().score("process", WALLS)
    assert full.reasons[1] == ("process", 20, 20, "a jailed process of its own")
    assert full.value == Policy().score().value + 20


@given(st.frozensets(st.sampled_from(WALLS)), st.sampled_from(WALLS))
def test_each_wall_gives_more_and_a_missing_one_is_told(walls: frozenset[str], wall: str) -> None:
    """Whatever stands already."""
    before, after = (Policy().score("process", found) for found in (walls - {wall}, walls | {wall}))

    assert before.value < after.value
    assert wall in before.reasons[1].why or len(walls - {wall}) == 0
    assert wall not in after.reasons[1].why


# -- granting more never raises it -------------------------------------------------------------------------------------


def _check_no_more_points(more: Policy, less: Policy) -> None:
    """Fails where a policy has points that one which permits no more than it has not."""
    strict = points(less)
    for control, number in points(more).items():
        assert number <= strict[control], control
    assert more.score().value <= less.score().value


@settings(max_examples=examples(100))
@given(related())
def test_narrowing_never_lowers_a_score(two: tuple[Policy, ...]) -> None:
    """What permits no more than either policy has at least the points of each, control by control."""
    both = two[0].narrow(two[1])

    for side in two:
        _check_no_more_points(side, both)


@settings(max_examples=examples(50))
@given(policies(), policies())
def test_narrowing_any_policy_never_lowers_its_score(one: Policy, two: Policy) -> None:
    """The same for policies of any kind."""
    _check_no_more_points(one, one.narrow(two))


_LISTED = Policy(environment=Environment(mode="allow"), limits=Limits(memory=1 << 16))
_WITHHELD = Policy(environment=Environment(mode="allow", names=("DB_SECRET",), secrets="never"))
_HIDDEN = Policy(environment=Environment(mode="allow", names=("DB_SECRET",), set={"DB_SECRET": "none"}))


@settings(max_examples=examples(100))
@given(related())
@example((_LISTED, Policy()))
@example((_WITHHELD, Policy()))
@example((_HIDDEN, Policy(environment=Environment(set={"DB_SECRET": "none"}))))
def test_a_subset_never_scores_less(two: tuple[Policy, ...]) -> None:
    """However a policy is written, one that permits more has no more points."""
    for less, more in (two, two[::-1]):
        if less.is_subset(more):
            _check_no_more_points(more, less)


def _mounted(mode: Any, **rights: bool) -> dict[str, Any]:
    return {"filesystem": Filesystem(mounts=(Mount("data", "/data", mode),), **rights)}


@pytest.mark.parametrize(
    ("stricter", "laxer", "control", "lost"),
    [
        ({"on_violation": "stop"}, {"on_violation": "deny"}, "violations", 1),
        ({"on_violation": "deny"}, {"on_violation": "audit"}, "violations", 1),
        ({"isolation": "process"}, {"isolation": "inprocess"}, "process", 1),
        ({"limits": Limits(fuel=10**15)}, {"limits": Limits(fuel=None)}, "time", 2),
        ({"limits": Limits(fuel=None, fuel_time=1e8)}, {"limits": Limits(fuel=None)}, "time", 2),
        ({"limits": Limits(fuel=1)}, {"limits": Limits(fuel=1, fuel_refill=1, fuel_refill_max=1)}, "time", 1),
        (
            {"limits": Limits(fuel=1, fuel_refill=1, fuel_refill_max=1, fuel_time=1e8)},
            {"limits": Limits(fuel=1, fuel_refill=1, fuel_refill_max=1)},
            "time",
            1,
        ),
        ({"limits": Limits(fuel=1, fuel_refill=1, fuel_refill_max=1)}, {"limits": Limits(fuel=None)}, "time", 1),
        ({"limits": Limits(wall_time=60)}, {"limits": Limits(wall_time=60.001)}, "time", 2),
        ({"limits": Limits(wall_time=3600)}, {"limits": Limits(wall_time=3600.001)}, "time", 2),
        ({"limits": Limits(wall_time=3600.001)}, {"limits": Limits(wall_time=None)}, "time", 0),
        ({"limits": Limits(memory=256 << 20)}, {"limits": Limits(memory=(256 << 20) + 1)}, "memory", 1),
        ({"limits": Limits(memory=1 << 30)}, {"limits": Limits(memory=(1 << 30) + 1)}, "memory", 2),
        ({"limits": Limits(read_bytes=0)}, {}, "quotas", 1),
        ({}, {"limits": Limits(write_bytes=None)}, "quotas", 1),
        ({}, {"limits": Limits(file_size=None)}, "quotas", 1),
        ({}, {"limits": Limits(files_created=None)}, "quotas", 1),
        ({}, {"limits": Limits(random_bytes=None)}, "quotas", 1),
        ({"limits": Limits(calls=2**62)}, {}, "calls", 1),
        ({"limits": Limits(call_rate=10**10)}, {}, "calls", 1),
        ({}, _mounted("ro"), "files", 3),
        (_mounted("ro"), _mounted("rw", create=False), "files", 2),
        (_mounted("rw", create=False), _mounted("rw"), "files", 1),
        (_mounted("rw"), _mounted("rw", delete=True), "files", 1),
        (_mounted("rw", create=False), _mounted("rw", create=False, symlinks=True), "files", 1),
        (_mounted("rw", delete=True), _mounted("rw", delete=True, symlinks=True), "files", 1),
        ({}, {"environment": Environment(mode="allow", names=("LANG",))}, "environment", 1),
        (
            {"environment": Environment(mode="allow", names=("LANG",))},
            {"environment": Environment(mode="deny", names=("HOME",))},
            "environment",
            2,
        ),
        (
            {"environment": Environment(mode="deny", names=("HOME",))},
            {"environment": Environment(mode="full")},
            "environment",
            0,
        ),
        (
            {"environment": Environment(mode="allow", names=("LANG",))},
            {"environment": Environment(mode="allow", names=("LANG", "DB_SECRET"))},
            "environment",
            3,
        ),
        ({}, {"environment": Environment(set={"DB_SECRET": "given"})}, "environment", 0),
        ({"clock": Clock(mode="none")}, {"clock": Clock(mode="virtual")}, "clock", 0),
        ({"clock": Clock(mode="virtual")}, {"clock": Clock(mode="coarse", resolution=1)}, "clock", 1),
        ({"clock": Clock(mode="coarse")}, {"clock": Clock(mode="coarse", resolution=0.0009)}, "clock", 1),
        ({"clock": Clock(mode="coarse", resolution=1e-9)}, {"clock": Clock(mode="real")}, "clock", 1),
        ({}, {"wasi": Wasi(deny=())}, "calls", 2),
        ({}, {"wasi": Wasi(deny=("sock_accept", "sock_recv", "sock_send"))}, "calls", 2),
        ({}, {"wasi": Wasi(deny=("sock", "fd_write"))}, "calls", 0),
        ({"features": Features(simd=False, tail_call=False)}, {}, "features", 0),
        ({}, {"features": Features(relaxed_simd=True)}, "features", 1),
        ({}, {"features": Features(relaxed_simd=True, gc=True)}, "features", 2),
        ({}, {"network": Network(mode="loopback")}, "network", 6),
        ({}, {"network": Network(mode="hosts", hosts=(HostRule("api.example.com"),))}, "network", 6),
        ({}, {"network": Network(mode="ports", ports=(443,))}, "network", 7),
        ({}, {"network": Network(mode="full")}, "network", 8),
        ({}, {"process": Process(mode="commands", commands=("/bin/true",))}, "network", 8),
    ],
)
def test_each_widening_costs_what_it_should(
    stricter: dict[str, Any], laxer: dict[str, Any], control: str, lost: int
) -> None:
    """A single field made laxer costs points of its own control, and changes no other."""
    before, after = points(Policy(**stricter)), points(Policy(**laxer))

    assert before[control] - after[control] == lost
    # A policy that only notes what it would refuse limits nothing.
    others = {"violations", "quotas", "calls"} if "audit" in laxer.values() else {control}
    for other in _CONTROLS.keys() - others:
        assert before[other] == after[other], other


# -- only what is enforced counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {"process": Process(mode="commands", commands=("/bin/true",))},
        {"process": Process(mode="full")},
    ],
    ids=lambda asked: str(next(iter(asked.values())).mode),
)
def test_what_is_asked_for_and_not_enforced_gives_nothing(asked: dict[str, Any]) -> None:
    """The attack: a policy that asks for controls which nobody carries out, and a score that credits them.

    Once one is enforced, what it gives belongs in the table of widenings.
    """
    policy = Policy(**asked)

    assert unenforceable(policy)
    assert reason(policy, "network") == Reason("network", 0, 8, "not supported in this release")
    assert reason(Policy(), "network") == Reason("network", 8, 8, "no network access")


@pytest.mark.parametrize(
    ("asked", "number"),
    [
        ({}, 8),
        ({"network": Network(mode="loopback")}, 2),
        ({"network": Network(mode="hosts", hosts=(HostRule("api.example.com"),))}, 2),
        ({"network": Network(mode="ports", ports=(443,))}, 1),
        ({"network": Network(mode="full")}, 0),
        ({"process": Process(mode="commands", commands=("/bin/true",))}, 0),
        ({"process": Process(mode="full"), "network": Network(mode="loopback")}, 0),
    ],
)
def test_what_networks_give_once_they_are_enforced(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], number: int
) -> None:
    """The twin: points for what is carried out. A program of the host reaches every network, whatever the guest may."""
    monkeypatch.setattr(_score, "unenforceable", lambda _: ())

    assert reason(Policy(**asked), "network").points == number


@settings(max_examples=examples(100))
@given(related())
def test_narrowing_never_lowers_a_score_once_all_is_enforced(two: tuple[Policy, ...]) -> None:
    """Granting more never raises a score in a release that enforces everything, either."""
    both = two[0].narrow(two[1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_score, "unenforceable", lambda _: ())
        for side in two:
            _check_no_more_points(side, both)


def _without(policy: Policy, path: str) -> Policy:
    """The same policy without one thing that it asks for."""
    section, _, field = path.partition(".")
    if section in ("network", "process"):
        return policy.replace(**{section: getattr(Policy(), section)})
    return policy.replace(**{field: getattr(getattr(Policy(), section), field)})


@settings(max_examples=examples(100))
@given(policies())
@example(Policy(network=Network(mode="loopback"), process=Process(mode="full")))
@example(Policy(features=Features(threads=True, gc=True)))
def test_asking_for_what_is_not_enforced_never_raises_a_score(policy: Policy) -> None:
    """Without the fields that cannot be enforced, a policy has at least the same points."""
    plain = policy
    for path in unenforceable(policy):
        plain = _without(plain, path)

    assert unenforceable(plain) == ()
    _check_no_more_points(policy, plain)


def test_more_folders_and_ports_never_add_points() -> None:
    """The attack: the seed added 3 points for a rule of `/ rw`, and 3 for opening ports."""
    plain = Policy()
    whole = plain.replace(mounts=(Mount("/", "/", "rw"),))
    more = whole.replace(mounts=(Mount("/", "/", "rw"), Mount("data", "/data", "ro")))
    port = plain.replace(network=Network(mode="ports", ports=(443,)))
    ports = plain.replace(network=Network(mode="ports", ports=(443, PortRange(1, 100))))

    assert plain.score().value > whole.score().value == more.score().value
    assert plain.score().value > port.score().value == ports.score().value


def test_limits_that_are_only_noted_give_nothing() -> None:
    """Under `audit` a guest goes on over quotas and refused calls, so they count for nothing."""
    limits = Limits(read_bytes=0, write_bytes=0, file_size=0, files_created=0, random_bytes=0, calls=1, call_rate=1)
    held, noted = Policy(limits=limits), Policy(limits=limits, on_violation="audit")

    assert reason(held, "quotas") == Reason("quotas", 4, 4, "files and random bytes are limited")
    assert reason(held, "calls").points == 4
    assert reason(noted, "quotas") == Reason("quotas", 0, 4, 'not enforced: on_violation is "audit"')
    assert reason(noted, "calls") == Reason("calls", 0, 4, 'not enforced: on_violation is "audit"')


def test_rights_to_files_that_are_only_noted_give_nothing() -> None:
    """Under `audit` files are created, deleted and linked whatever the policy says."""
    refusing = Policy(**_mounted("rw", create=False))
    granting = Policy(**_mounted("rw", delete=True, symlinks=True))

    assert reason(refusing, "files").points == 3
    assert reason(granting, "files").points == 0
    assert reason(refusing.replace(on_violation="audit"), "files").points == 0
    # A folder for reading is kept so by the engine, whatever is noted.
    assert reason(Policy(**_mounted("ro"), on_violation="audit"), "files").points == 5


def test_names_in_reasons_are_escaped_and_shortened() -> None:
    """The attack: a variable's name that steers the terminal or floods it when a score is shown."""
    names = tuple(f"TOKEN_{place}\x1b[2J\u202e\n{'x' * 10_000}" for place in range(50))

    why = reason(Policy(environment=Environment(mode="allow", names=names)), "environment").why

    assert why.startswith(r"passes secrets: 'TOKEN_0\x1b[2J\u202e\n")
    assert why.isprintable()
    assert len(why) < 1000
