"""Policies in sentences: golden texts of presets and of every mode, risks, and names that must not steer a terminal.

With STOCKADE_REWRITE_GOLDEN=1 in the environment the golden texts are written anew; read the difference then.
"""

from __future__ import annotations

import os
import re
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

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
from stockade._text import printable
from stockade.policy import PRESETS, GateRules, PolicyStatement, unenforceable
from tests._examples import examples
from tests.policy._strategies import policies
from tests.policy.test_algebra import related

_GOLDEN = Path(__file__).parent / "golden"
_RISKS = ("none", "low", "medium", "high")


def _is_harmless(text: str) -> bool:
    """Whether nothing in a text ends the line, steers a terminal, turns the direction or cannot be seen at all."""
    return not any(unicodedata.category(letter)[0] == "C" or letter in "\u2028\u2029" for letter in text)


def _told(statement: PolicyStatement) -> str:
    return f"{statement.risk:<6}  {statement.capability:<11}  {statement.text}"


def _check_golden(name: str, text: str) -> None:
    file = _GOLDEN / f"{name}.txt"
    if os.environ.get("STOCKADE_REWRITE_GOLDEN") == "1":
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


# -- golden texts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_read_well(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What each preset allows, in sentences, and its score with its reasons."""
    # One preset mounts the folder for temporary files, whose path is the machine's.
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setattr(tempfile, "tempdir", None)
    policy = Policy.preset(name)
    score = policy.score()

    lines = [_told(statement) for statement in policy.explain()]
    lines += ["", f"score {score}"]
    lines += [f"{reason.points:>2} of {reason.most:>2}  {reason.control:<11}  {reason.why}" for reason in score.reasons]

    _check_golden(name, "\n".join(lines) + "\n")


def _files(*modes: Any, limits: Limits = Limits(), **rights: bool) -> Policy:  # noqa: B008 - it is frozen
    mounts = tuple(Mount(f"./{mode}{place}", f"/{mode}", mode) for place, mode in enumerate(modes))
    return Policy(filesystem=Filesystem(mounts=mounts, **rights), limits=limits)


def _variables(mode: Any, *names: str, **values: str) -> Policy:
    return Policy(environment=Environment(mode=mode, names=names, set=values))


def _network(mode: Any, **listed: Any) -> Policy:
    return Policy(network=Network(mode=mode, **listed))


def _limited(**limits: Any) -> Policy:
    return Policy(limits=Limits(**limits))


_CASES: dict[str, tuple[str, Policy]] = {
    "no folders": ("files", Policy()),
    "a folder for reading": ("files", _files("ro")),
    "a folder for reading, read without end": ("files", _files("ro", limits=Limits(read_bytes=None, open_files=1))),
    "a folder for reading, little of it": (
        "files",
        _files("ro", limits=Limits(read_bytes=1, read_rate=1 << 10, open_files=0)),
    ),
    "a folder for writing": ("files", _files("rw")),
    "two folders": ("files", _files("rw", "ro")),
    "some paths of a folder": (
        "files",
        Policy(filesystem=Filesystem(mounts=(Mount("data", "/data", "ro", ["a.txt", "out/"]),))),
    ),
    "many paths of a folder, and none of another": (
        "files",
        Policy(
            filesystem=Filesystem(
                mounts=(Mount("data", "/data", "rw", [f"{n:02}" for n in range(20)]), Mount("b", "/b", "ro", []))
            )
        ),
    ),
    "a folder for writing, all rights": ("files", _files("rw", delete=True, symlinks=True)),
    "a folder for writing, no rights": ("files", _files("rw", create=False)),
    "a folder for writing, one file": ("files", _files("rw", limits=Limits(files_created=1))),
    "a folder for writing, no files": ("files", _files("rw", limits=Limits(files_created=0, write_bytes=0))),
    "a folder for writing, no quotas": (
        "files",
        _files("rw", limits=Limits(files_created=None, file_size=None, write_bytes=None, write_rate=1 << 20)),
    ),
    "no variables": ("environment", Policy()),
    "a variable": ("environment", _variables("allow", "LANG")),
    "two variables": ("environment", _variables("allow", "LANG", "HOME")),
    "an empty list of variables": ("environment", _variables("allow")),
    "many variables": ("environment", _variables("allow", *(f"V{place}" for place in range(20)))),
    "a secret variable": ("environment", _variables("allow", "LANG", "DB_SECRET")),
    "all variables but one": ("environment", _variables("deny", "HOME")),
    "all variables but none": ("environment", _variables("deny")),
    "all variables": ("environment", _variables("full")),
    "variables with values": ("environment", _variables("none", LANG="C", TZ="UTC")),
    "no hosts": ("network", Policy()),
    "this machine": ("network", _network("loopback")),
    "a host": ("network", _network("hosts", hosts=(HostRule("api.example.com"),))),
    "hosts": (
        "network",
        _network(
            "hosts",
            hosts=(
                HostRule("api.example.com", ports=(443, PortRange(8000, 8010)), secure=False),
                HostRule("[2001:db8::1]"),
            ),
        ),
    ),
    "ports": ("network", _network("ports", ports=(443, PortRange(8000, 8010)))),
    "a port": ("network", _network("ports", ports=(443,))),
    "all hosts": ("network", _network("full")),
    "no programs": ("processes", Policy()),
    "a program": ("processes", Policy(process=Process(mode="commands", commands=("/usr/bin/git",)))),
    "programs": ("processes", Policy(process=Process(mode="commands", commands=("/usr/bin/git", "/bin/ls")))),
    "all programs": ("processes", Policy(process=Process(mode="full"))),
    "a real clock": ("clock", Policy()),
    "a coarse clock": ("clock", Policy(clock=Clock(mode="coarse"))),
    "a coarse clock of seconds": ("clock", Policy(clock=Clock(mode="coarse", resolution=5))),
    "a coarse clock of nanoseconds": ("clock", Policy(clock=Clock(mode="coarse", resolution=1e-9))),
    "a coarse clock of a day": ("clock", Policy(clock=Clock(mode="coarse", resolution=86_400))),
    "a virtual clock": ("clock", Policy(clock=Clock(mode="virtual"))),
    "no clock": ("clock", Policy(clock=Clock(mode="none"))),
    "full randomness": ("randomness", Policy()),
    "full randomness without end": ("randomness", _limited(random_bytes=None)),
    "seeded randomness": ("randomness", Policy(random=Random(mode="seeded"))),
    "seeded randomness without end": (
        "randomness",
        Policy(random=Random(mode="seeded"), limits=Limits(random_bytes=None)),
    ),
    "no randomness": ("randomness", Policy(random=Random(mode="none"))),
    "all calls but sockets": ("calls", Policy()),
    "all calls": ("calls", Policy(wasi=Wasi(deny=()))),
    "some socket calls": ("calls", Policy(wasi=Wasi(deny=("sock_accept",)))),
    "all calls but some": ("calls", Policy(wasi=Wasi(deny=("sock", "sched_yield", "fd_write", "clock")))),
    "few calls": ("calls", Policy(wasi=Wasi(allow=("fd_write", "proc_exit")))),
    "no calls": ("calls", Policy(wasi=Wasi(allow=()))),
    "calls limited": ("calls", _limited(calls=1_000_000, call_rate=10_000)),
    "one call": ("calls", _limited(calls=1)),
    "a rate of calls": ("calls", _limited(call_rate=1)),
    "time": ("time", Policy()),
    "a minute and more": ("time", _limited(wall_time=61.5)),
    "some minutes": ("time", _limited(wall_time=130)),
    "hours": ("time", _limited(wall_time=9000)),
    "a year": ("time", _limited(wall_time=365 * 86_400)),
    "milliseconds": ("time", _limited(wall_time=0.25, idle_time=0.0015, fuel=1)),
    "without end": ("time", _limited(wall_time=None, fuel=None)),
    "a deadline without fuel": ("time", _limited(fuel=None)),
    "fuel without a deadline": ("time", _limited(wall_time=None, fuel=2**63 - 1)),
    "refills": (
        "time",
        _limited(fuel=1500, fuel_refill=1000, fuel_refill_max=2_500_000, fuel_refill_interval=0.5),
    ),
    "fuel of a time": ("time", _limited(fuel=None, fuel_time=2)),
    "fuel of a time without a deadline": ("time", _limited(wall_time=None, fuel=None, fuel_time=90)),
    "fuel and fuel of a time": ("time", _limited(fuel=1, fuel_time=0.25)),
    "refills and fuel of a time": ("time", _limited(fuel=1, fuel_refill=1, fuel_refill_max=1, fuel_time=3600)),
    "half a core": ("time", _limited(cpu_percent=50)),
    "memory": ("memory", Policy()),
    "much memory": ("memory", _limited(memory=4 << 30, stack=64 << 20, on_memory_denied="stop")),
    "little memory": ("memory", _limited(memory=65_536, stack=16 << 10, memory_growth=1)),
    "memory in odd sizes": ("memory", _limited(memory=128_000_000, stack=100_000)),
    "output": ("output", Policy()),
    "no output": ("output", _limited(stdout=0, stderr=1)),
    "a module": ("module", Policy()),
    "what leaves is looked at": (
        "gate",
        Policy(gate=GateRules(registered="warn", keys="redact", personal="quarantine", entropy="block")),
    ),
    "registered secrets may leave": ("gate", Policy(gate=GateRules(registered="allow"))),
    "some channels are looked at": (
        "gate",
        Policy(
            filesystem=Filesystem(mounts=(Mount("/data", "/data", "rw"),)),
            gate=GateRules(keys="warn", channels=("output", "requests")),
        ),
    ),
    "a module compiled apart": (
        "module",
        Policy(
            limits=Limits(compile_process="always", compile_time=0.5, module_size=8),
            structure=ModuleLimits(functions=1),
        ),
    ),
    "a module compiled here": ("module", _limited(compile_process="never")),
    "well tried proposals": ("features", Policy()),
    "no proposals": ("features", Policy(features=Features(**dict.fromkeys(Features.__struct_fields__, False)))),
    "no vectors": ("features", Policy(features=Features(simd=False))),
    "all proposals": ("features", Policy(features=Features(**dict.fromkeys(Features.__struct_fields__, True)))),
    "custom capabilities": (
        "custom",
        Policy(
            custom={
                "gpu": True,
                "camera": False,
                "jobs": Amount(4, 1, 8),
                "share": Amount(0.25, -1.5, 1),
                "model": "small",
                "empty": "",
                "mail": ("a@example.com", "b@example.com"),
                "nobody": (),
            }
        ),
    ),
    "denied": ("violations", Policy()),
    "stopped": ("violations", Policy(on_violation="stop")),
    "audited": ("violations", Policy(on_violation="audit")),
    "of their own": ("isolation", Policy(isolation="process")),
    "not enforced": ("unusable", Policy(network=Network(mode="loopback"), process=Process(mode="full"))),
}
"""Every mode of every section, and figures at which sentences change: what is told, and under which policy."""


def test_every_mode_reads_well() -> None:
    """The sentence of every mode of every section, with its risk."""
    text = ""
    for title, (capability, policy) in _CASES.items():
        lines = [_told(statement) for statement in policy.explain() if statement.capability == capability]
        assert lines, title
        text += "\n".join((f"# {title}", *lines, "")) + "\n"

    _check_golden("sentences", text)


# -- what statements are -----------------------------------------------------------------------------------------------


_LEVELS = re.compile(r"([a-z_0-9]+)(?:\[([0-9]+)\])?")


def _stands_in(document: Any, path: str) -> bool:
    """Whether a document has something at a path."""
    section, _, rest = path.partition(".")
    if section == "custom" and rest:
        return rest in {printable(name) for name in document["custom"]}
    for level in path.split("."):
        match = _LEVELS.fullmatch(level)
        if match is None or match[1] not in document:
            return False
        document = document[match[1]]
        if match[2] is not None:
            if int(match[2]) >= len(document):
                return False
            document = document[int(match[2])]
    return True


def test_paths_are_told_from_others() -> None:
    """The twin of the next test: what the check of paths refuses."""
    document = Policy(custom={"gpu": True}).to_document()

    found = [path for path in ("limits.memory", "wasi", "custom.gpu", "on_violation") if _stands_in(document, path)]
    assert found == ["limits.memory", "wasi", "custom.gpu", "on_violation"]
    for path in ("limits.memroy", "was", "custom.gp", "filesystem.mounts[0]", ""):
        assert not _stands_in(document, path)


@settings(max_examples=examples(100))
@given(policies())
def test_every_statement_is_a_sentence_with_a_risk_and_a_field(policy: Policy) -> None:
    """Every statement is one line that can be printed, says how bad it is, and names what decides it."""
    document = policy.to_document()

    for statement in policy.explain():
        assert statement.risk in _RISKS
        assert _is_harmless(statement.text + statement.path)
        assert statement.text.endswith(".")
        assert statement.capability == "unusable" or statement.text[0].isupper()
        assert _stands_in(document, statement.path), statement


@settings(max_examples=examples(100))
@given(policies())
def test_every_grant_has_a_sentence(policy: Policy) -> None:
    """No section of a policy is passed over, and each folder, host and capability is told by itself."""
    told = [statement.path for statement in policy.explain()]
    expected = {f"filesystem.mounts[{place}]" for place in range(len(policy.filesystem.mounts))}
    expected |= {f"network.hosts[{place}]" for place in range(len(policy.network.hosts))}
    expected |= {f"custom.{printable(name)}" for name in policy.custom}

    assert expected <= set(told)
    untold = {"name"} if policy.custom else {"name", "custom"}
    assert {path.partition(".")[0] for path in told} == set(policy.to_document()) - untold


def test_every_risk_and_capability_occurs() -> None:
    """The cases of the golden text reach every capability and every level of risk."""
    statements = [statement for _, policy in _CASES.values() for statement in policy.explain()]

    assert {statement.risk for statement in statements} == set(_RISKS)
    assert {statement.capability for statement in statements} == {capability for capability, _ in _CASES.values()}


# -- risks -------------------------------------------------------------------------------------------------------------


def _worst(policy: Policy) -> dict[str, int]:
    """The highest risk of each capability."""
    worst: dict[str, int] = {}
    for statement in policy.explain():
        risk = _RISKS.index(statement.risk)
        worst[statement.capability] = max(worst.get(statement.capability, 0), risk)
    return worst


@settings(max_examples=examples(100))
@given(related())
def test_narrowing_never_raises_a_risk(two: tuple[Policy, ...]) -> None:
    """What permits no more is not told as riskier."""
    both = _worst(two[0].narrow(two[1]))

    for side in map(_worst, two):
        for capability, risk in both.items():
            assert risk <= side.get(capability, 0), capability


def test_a_default_policy_grants_nothing_risky() -> None:
    """The twin of the risks below: what everybody starts from."""
    assert set(_worst(Policy()).values()) == {0, 1}
    risky = [statement.path for statement in Policy().explain() if statement.risk != "none"]
    assert risky == ["clock.mode", "isolation"]


@pytest.mark.parametrize(
    ("policy", "path", "risk"),
    [
        (_files("ro"), "filesystem.mounts[0]", "low"),
        (_files("rw"), "filesystem.mounts[0]", "medium"),
        (_files("rw"), "filesystem.create", "low"),
        (_files("rw", delete=True), "filesystem.delete", "medium"),
        (_files("rw", symlinks=True), "filesystem.symlinks", "high"),
        (_files("rw", limits=Limits(write_bytes=None)), "limits.write_bytes", "medium"),
        (_variables("allow", "LANG"), "environment.mode", "low"),
        (_variables("allow", "LANG", "DB_SECRET"), "environment.mode", "high"),
        (_variables("deny", "LANG"), "environment.mode", "medium"),
        (_variables("full"), "environment.mode", "medium"),
        (_network("loopback"), "network.mode", "high"),
        (_network("hosts", hosts=(HostRule("a.example"),)), "network.hosts[0]", "medium"),
        (_network("hosts", hosts=(HostRule("a.example", secure=False),)), "network.hosts[0]", "high"),
        (_network("ports", ports=(443,)), "network.ports", "high"),
        (_network("full"), "network.mode", "high"),
        (Policy(process=Process(mode="commands", commands=("/bin/true",))), "process.commands", "high"),
        (Policy(process=Process(mode="full")), "process.mode", "high"),
        (Policy(clock=Clock(mode="coarse")), "clock.mode", "none"),
        (Policy(clock=Clock(mode="coarse", resolution=1e-9)), "clock.mode", "low"),
        (Policy(wasi=Wasi(deny=())), "wasi", "low"),
        # One refused socket call does not make the others harmless.
        (Policy(wasi=Wasi(deny=("sock_accept",))), "wasi", "low"),
        (_limited(wall_time=None), "limits.wall_time", "high"),
        (_limited(wall_time=3601), "limits.wall_time", "medium"),
        (_limited(fuel=None), "limits.fuel", "none"),
        (_limited(fuel=None, wall_time=None), "limits.fuel", "high"),
        (_limited(fuel=None, wall_time=None, fuel_time=1), "limits.fuel_time", "none"),
        (_limited(fuel=1, fuel_refill=1, fuel_refill_max=1), "limits.fuel_refill", "none"),
        (_limited(compile_process="never"), "limits.compile_process", "medium"),
        (_limited(memory=2 << 30), "limits.memory", "low"),
        (Policy(features=Features(multi_memory=False)), "features", "none"),
        (Policy(features=Features(gc=True)), "features", "low"),
        (Policy(custom={"gpu": True}), "custom.gpu", "medium"),
        (Policy(custom={"gpu": False}), "custom.gpu", "none"),
        (Policy(on_violation="audit"), "on_violation", "high"),
    ],
)
def test_risks_of_grants(policy: Policy, path: str, risk: str) -> None:
    """How risky each grant is."""
    found = [told.risk for told in policy.explain() if told.path == path and told.capability != "unusable"]
    assert found == [risk]


# -- what is not enforced ----------------------------------------------------------------------------------------------


@settings(max_examples=examples(50))
@given(policies())
def test_what_cannot_be_enforced_is_told(policy: Policy) -> None:
    """Whoever reads what a policy allows learns that this release refuses it, and why."""
    told = [statement for statement in policy.explain() if statement.capability == "unusable"]

    assert told == [
        PolicyStatement(
            "unusable", f"This release does not support {path}, so no sandbox accepts this policy.", "none", path
        )
        for path in unenforceable(policy)
    ]


def test_what_is_enforced_is_not_told_as_missing() -> None:
    """The twin: the default policy can be enforced, one that asks for programs on the host cannot."""
    assert not any(statement.capability == "unusable" for statement in Policy().explain())
    policy = Policy(process=Process(mode="full"))
    assert [statement.path for statement in policy.explain() if statement.capability == "unusable"] == ["process.mode"]


# -- names -------------------------------------------------------------------------------------------------------------

_EVIL = "\x1b]0;owned\x07\x1b[2J\u202e\u2028\r\nIt sees no files of the host."
_SHOWN = r"\x1b]0;owned\x07\x1b[2J\u202e\u2028\x0d\x0aIt sees no files of the host."


def _named(place: str, name: str) -> Policy:
    """A policy with a name of one's own at a place."""
    return {
        "mount host": lambda: Policy(filesystem=Filesystem(mounts=(Mount(name, "/data"),))),
        "mount guest": lambda: Policy(filesystem=Filesystem(mounts=(Mount("data", f"/{name}", "rw"),))),
        "allowed variable": lambda: Policy(environment=Environment(mode="allow", names=("LANG", name))),
        "denied variable": lambda: Policy(environment=Environment(mode="deny", names=(name,))),
        "set variable": lambda: Policy(environment=Environment(set={name: "x"})),
        "command": lambda: Policy(process=Process(mode="commands", commands=(f"/{name}",))),
        "capability": lambda: Policy(custom={name: True}),
        "amount": lambda: Policy(custom={name: Amount(2, 1, 4)}),
        "text": lambda: Policy(custom={"model": name}),
        "list": lambda: Policy(custom={"models": ("small", name)}),
    }[place]()


_PLACES = (
    *("mount host", "mount guest", "allowed variable", "denied variable", "set variable", "command"),
    *("capability", "amount", "text", "list"),
)


@pytest.mark.parametrize("place", _PLACES)
def test_names_cannot_steer_a_terminal(place: str) -> None:
    """The attack: a name with escape sequences, a new line and turned direction, in a shown policy."""
    statements = _named(place, _EVIL).explain()

    assert all(_is_harmless(statement.text + statement.path) for statement in statements)
    assert not _is_harmless(_EVIL)
    assert sum(_SHOWN in statement.text for statement in statements) == 1


@pytest.mark.parametrize("place", _PLACES)
def test_long_names_are_cut(place: str) -> None:
    """The attack: a name of megabytes that floods whoever reads the policy. A short one is told in full."""
    statements = _named(place, "x" * 1_000_000).explain()

    assert max(len(statement.text) + len(statement.path) for statement in statements) < 1000
    assert any("… (1,000,00" in statement.text for statement in statements)
    assert any("shrt" in statement.text for statement in _named(place, "shrt").explain())


def test_long_lists_are_cut() -> None:
    """A list of hundreds is told by its first ones, and how many more there are; a dozen in full."""
    many = _variables("allow", *(f"V{place}" for place in range(500))).explain()
    dozen = _variables("allow", *(f"V{place}" for place in range(12))).explain()

    (told,) = (statement.text for statement in many if statement.path == "environment.mode")
    assert " V10 and 489 more" in told
    assert "V11" not in told
    (told,) = (statement.text for statement in dozen if statement.path == "environment.mode")
    assert " V10 and V11" in told


def test_values_of_variables_are_not_told() -> None:
    """The attack: a password that is set for a guest ends up where policies are explained."""
    told = _variables("none", DB_PASSWORD="hunter2").explain()

    assert any("DB_PASSWORD" in statement.text for statement in told)
    assert not any("hunter2" in statement.text for statement in told)


def test_hosts_are_told_in_the_form_that_is_reached() -> None:
    """The attack: a host in look-alike letters of another script, which reads like a trusted one."""
    (told,) = (
        statement.text
        for statement in _network("hosts", hosts=(HostRule("\u0430pple.example"),)).explain()
        if statement.path == "network.hosts[0]"
    )
    assert "xn--pple-43d.example" in told


def test_statements_follow_the_order_of_their_subjects() -> None:
    """Statements of one capability stand together, what the host risks most before what the guest may use."""
    order = [statement.capability for statement in _CASES["custom capabilities"][1].explain()]

    assert list(dict.fromkeys(order)) == [
        *("files", "environment", "network", "processes", "clock", "randomness", "calls", "time", "memory", "output"),
        *("gate", "module", "features", "custom", "isolation", "violations"),
    ]
    assert order == sorted(order, key=order.index)
