"""Policy documents in TOML, YAML and JSON: what one says holds, to the letter, or it is refused.

Holds P-POLICY-2 and P-POLICY-5.
"""

from __future__ import annotations

import copy
import io
import json
import math
import pickle
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter

from stockade import Amount, Clock, Limits, Policy, PolicyError, Process, Random
from tests._examples import examples, part
from tests.policy._strategies import (
    AMOUNTS,
    CALL_PATTERNS,
    CALLS_NO_GUEST_HAS,
    CHOICES,
    amounts,
    environments,
    guest_paths,
    hosts,
    names,
    networks,
    numerics,
    policies,
    port_ranges,
    processes,
    texts,
    variables,
)

Format = Literal["toml", "yaml", "json"]
FORMATS: tuple[Format, ...] = ("toml", "yaml", "json")
PRESETS = ("default", "minimal", "strict", "basic", "development", "permissive")
PARTS = (
    "name, on_violation, isolation, limits, filesystem, environment, clock, random, network, process, gate, structure, "
    "features, wasi, custom"
)
TOO_DEEP = "not a policy: it is nested too deep"


def write(document: dict[str, Any], format_: Format) -> str:
    """A document as text, by other code than the library's."""
    if format_ == "json":
        return json.dumps(document)
    if format_ == "toml":
        return "".join(f"{_toml(key)} = {_toml(value)}\n" for key, value in document.items())
    stream = io.StringIO()
    dumper = YAML(typ="safe", pure=True)
    dumper.Representer = _Quoting
    dumper.allow_unicode = False
    dumper.sort_base_mapping_type_on_output = False
    # On one line: where it breaks long text beside escaped characters, the writer adds or loses a space.
    dumper.width = 1 << 20
    dumper.dump(document, stream)
    return stream.getvalue()


class _Quoting(SafeRepresenter):
    """Writes all text in quotes: without them, the YAML library reads some text otherwise than it wrote it."""


_Quoting.add_representer(
    str, lambda representer, text: representer.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_toml(key)} = {_toml(entry)}' for key, entry in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def refusal(text: str, format_: Format = "toml") -> PolicyError:
    """The error that a text gives."""
    with pytest.raises(PolicyError) as caught:
        Policy.loads(text, format_)
    return caught.value


def outcome(text: str, format_: Format = "toml") -> Policy | PolicyError:
    """What a text gives: a policy, or the error; anything else is a bug."""
    try:
        return Policy.loads(text, format_)
    except PolicyError as problem:
        return problem


NULL_FUEL = (
    'limits.fuel is null: it must be 1 to 2^63 - 1 units, or "unlimited", or a time such as "~2s"; leave it out '
    "for the default"
)


# -- there and back ---------------------------------------------------------------------------------------------------


def there_and_back(policy: Policy, format_: Format) -> None:
    """Writes a policy, reads it, and checks that nothing is lost."""
    text = policy.to_toml() if format_ == "toml" else write(policy.to_document(), format_)

    read = Policy.loads(text, format_)

    assert read == policy
    assert read.digest == policy.digest
    assert read.to_document() == policy.to_document()
    assert read.to_toml() == policy.to_toml()


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_written_and_read(name: str, format_: Format) -> None:
    """Each preset as text says all that the preset says."""
    there_and_back(Policy.preset(name), format_)


@pytest.mark.parametrize("format_", FORMATS)
@settings(max_examples=examples(40))
@given(policy=policies())
def test_policies_are_written_and_read(format_: Format, policy: Policy) -> None:
    """Attack: a policy that becomes another one by being stored: wider, or with another digest."""
    there_and_back(policy, format_)


@settings(max_examples=examples(25))
@given(policies())
def test_documents_say_every_field(policy: Policy) -> None:
    """What is written does not lean on defaults, which a later release may change: it says all, over any preset."""
    document = policy.to_document()

    for name in PRESETS:
        assert Policy.loads(json.dumps({"extends": name, **document}), "json") == policy


def test_toml_is_read_well() -> None:
    """The text of a preset: every field, with units."""
    text = Policy.preset("minimal").to_toml()

    assert text.startswith(
        'name = "minimal"\non_violation = "deny"\nisolation = "inprocess"\n\n[limits]\nfuel = 10_000_000\n'
    )
    assert 'wall_time = "5s"\n' in text
    assert 'memory = "10MiB"\n' in text
    assert 'read_rate = "1MiB/s"\n' in text
    assert "\n[filesystem]\nmounts = []\ncreate = false\ndelete = false\nsymlinks = false\n" in text


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    ("written", "seconds"),
    [("9ms", 0.009), ("5us", 5e-6), ("36ms", 0.036), ("0.1s", 0.1), ("1.1ms", 0.0011), ("0.3h", 1080.0), ("2min", 120)],
)
def test_times_are_the_same_in_every_unit(written: str, seconds: float, format_: Format) -> None:
    """Equal policies have equal digests, so 9 ms are 0.009 s to the last bit, however they are written."""
    policy = Policy.loads(write({"clock": {"step": written}}, format_), format_)

    assert policy == Policy(name="custom", clock=Clock(step=seconds))
    assert policy.digest == Policy(name="custom", clock=Clock(step=seconds)).digest


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("1.005kB", 1005),
        ("8.2MB", 8_200_000),
        ("0.5MiB", 1 << 19),
        ("9007199254740993.0", 2**53 + 1),
        ("4503599627370496.5kB", 4503599627370496500),
    ],
)
def test_sizes_are_exact(written: str, size: int) -> None:
    """Attack: a size that a float cannot hold becomes another one, and the guest has more."""
    assert Policy.loads(f'[limits]\nread_bytes = "{written}"').limits.read_bytes == size


def test_a_part_of_a_byte_is_refused() -> None:
    """The twin: what is no whole number of bytes is not rounded."""
    for written in ("0.3B", "1.0005kB", "4611686018427387903.5"):
        assert str(refusal(f'[limits]\nread_bytes = "{written}"')).startswith("limits.read_bytes: ")
        assert str(refusal(f'[limits]\nread_bytes = "{written}"')).endswith(" is not a whole number")


# -- all mistakes at once ---------------------------------------------------------------------------------------------

MANY_MISTAKES = """
nmae = "x"
on_violation = "Stop"
clock = 3

[limits]
memroy = "1MiB"
memory = "5GiB"
wall_time = "soon"
instances = 2

[filesystem]
mounts = [{ host = "", guest = "data" }, { host = ".", mod = "rw" }, 3]

[environment]
mode = "none"
names = ["LANG"]

[network]
mode = "hosts"

[process]
commands = ["git"]

[custom]
gpu = 3
"""
THEIR_PROBLEMS = (
    "nmae is not known: did you mean name?",
    'on_violation is \'Stop\': it must be "deny", "stop" or "audit"; did you mean "stop"?',
    "clock is 3: it must be a table",
    "limits.memroy is not known: did you mean memory?",
    "limits.memory is 5,368,709,120: it must be between 65,536 and 4,294,967,296",
    'limits.wall_time: \'soon\' is not a quantity such as "5s" or "unlimited" (units: s, ms, us, m, min, h)',
    "limits.instances is 2: it must be 1",
    "filesystem.mounts[0].host is '': it must be the path of a folder, such as \"./data\"",
    "filesystem.mounts[0].guest is 'data': it must be an absolute path without . or .., such as \"/data\"",
    "filesystem.mounts[1].mod is not known: did you mean mode?",
    'filesystem.mounts[1] has no guest: it must be an absolute path without . or .., such as "/data"',
    "filesystem.mounts[2] is 3: it must be a table with host, guest",
    'environment.names has no effect where the mode is "none": leave it out',
    'network.hosts is empty: name the hosts, or set the mode to "none"',
    "process.commands[0] is 'git': it must be an absolute path, such as \"/usr/bin/git\"",
    "custom.gpu is 3: a number needs bounds, such as { value = 4, min = 1, max = 8 }",
)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """Who mends a policy sees all that is wrong with it, each with its place; a file is named first."""
    problem = refusal(MANY_MISTAKES)
    path = tmp_path / "p.toml"
    path.write_text(MANY_MISTAKES)
    with pytest.raises(PolicyError) as caught:
        Policy.load(path)

    listed = "16 mistakes:" + "".join(f"\n  {line}" for line in THEIR_PROBLEMS)
    assert problem.problems == THEIR_PROBLEMS
    assert str(problem) == listed
    assert caught.value.problems == THEIR_PROBLEMS
    assert str(caught.value) == f"{path}: {listed}"


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            '[environment]\nmode = "allow"\nnames = ["A=B", "LANG", ""]',
            (
                "environment.names[0] is 'A=B': it must be the name of a variable, such as \"LANG\"",
                "environment.names[2] is '': it must be the name of a variable, such as \"LANG\"",
            ),
        ),
        (
            "[environment]\nset = { A = 3, B = 'b', C = [] }",
            ("environment.set.A is 3: it must be text", "environment.set.C is []: it must be text"),
        ),
        (
            "[network]\nmode = 'ports'\nports = ['http', 443, '9-x']",
            (
                "network.ports[0] is 'http': it must be a port or a range of ports, such as 443 or \"8000-8010\"",
                "network.ports[2] is '9-x': it must be a port or a range of ports, such as 443 or \"8000-8010\"",
            ),
        ),
        (
            "[custom]\na = 1\nb = true\nc = { value = 1 }",
            (
                "custom.a is 1: a number needs bounds, such as { value = 4, min = 1, max = 8 }",
                "custom.c is {'value': 1}: a number has value, min and max, and nothing else",
            ),
        ),
    ],
    ids=["names", "set", "ports", "custom"],
)
def test_all_mistakes_of_a_list_are_told_at_once(text: str, problems: tuple[str, ...]) -> None:
    """In lists and tables of values, too, each is told, with its place."""
    assert refusal(text).problems == problems


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[network]\nmode = 'hosts'\nhosts = [{ host = 'a' }, { host = 'b', ports = [] }]",
            "network.hosts[1]: the host 'b' has no ports: name them, or leave the host out",
        ),
        (
            "[network]\nmode = 'ports'\nports = ['90-80']",
            "network.ports[0] is '90-80': ports 90-80 are the wrong way round: write 80-90",
        ),
        (
            "[network]\nmode = 'ports'\nports = [0]",
            "network.ports[0] is 0: ports.first is 0: it must be between 1 and 65,535",
        ),
        (
            "[custom]\na = { value = 9, min = 1, max = 8 }",
            "custom.a: value is 9: it must be between min and max, 1 and 8",
        ),
        (
            "[wasi]\nallow = ['fd_write', 'fork']",
            "wasi.allow has 'fork', which no guest can be given: WASI has no such call. Leave it out",
        ),
        (
            "[limits]\nfuel = 10\nfuel_refill = 1\nfuel_refill_max = 9",
            "limits.fuel_refill_max is 9: with refills it must be at least limits.fuel, which is 10",
        ),
        (
            "[features]\nrelaxed_simd = true\nsimd = false",
            "features.relaxed_simd is true and features.simd is false: it needs simd, too",
        ),
    ],
)
def test_what_does_not_go_together_is_told_with_its_place(text: str, message: str) -> None:
    """Of several hosts, the message tells which one is meant."""
    assert str(refusal(text)) == message


def test_a_flood_of_mistakes_is_cut() -> None:
    """Attack: a policy from elsewhere floods the log. All are in `problems`, 20 in the message."""
    problem = refusal("".join(f"x{number} = 1\n" for number in range(1234)))

    assert len(problem.problems) == 1234
    assert str(problem).startswith(f"1,234 mistakes:\n  x0 is not known: known are {PARTS}\n  x1 is")
    assert str(problem).endswith(f"\n  x19 is not known: known are {PARTS}\n  and 1,214 more")


def test_one_mistake_is_told_without_a_count(tmp_path: Path) -> None:
    """The twin: a single mistake is one line, after the name of the file."""
    path = tmp_path / "p.json"
    path.write_text('{"limits": {"fule": 3}}')
    with pytest.raises(PolicyError) as caught:
        Policy.load(path)

    assert str(caught.value) == f"{path}: limits.fule is not known: did you mean fuel?"
    assert caught.value.problems == ("limits.fule is not known: did you mean fuel?",)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"limit": {}}, "limit is not known: did you mean limits?"),
        ({"enviroment": {}}, "enviroment is not known: did you mean environment?"),
        ({"extend": "strict"}, f"extend is not known: known are {PARTS}"),
        ({"limits": {"wall-time": "5s"}}, "limits.wall-time is not known: did you mean wall_time?"),
        ({"limits": {"Fuel": 1}}, "limits.Fuel is not known: did you mean fuel?"),
        ({"filesystem": {"deletes": True}}, "filesystem.deletes is not known: did you mean delete?"),
        ({"features": {"thread": True}}, "features.thread is not known: did you mean threads?"),
        (
            {"network": {"mode": "hosts", "hosts": [{"host": "a", "port": [1]}]}},
            "network.hosts[0].port is not known: did you mean ports?",
        ),
        (
            {"network": {"mode": "Full"}},
            'network.mode is \'Full\': it must be "none", "loopback", "hosts", "ports" or "full"; did you mean "full"?',
        ),
        (
            {"clock": {"mode": "virtaul"}},
            'clock.mode is \'virtaul\': it must be "real", "coarse", "virtual" or "none"; did you mean "virtual"?',
        ),
        ({"random": {"mode": "xyz"}}, 'random.mode is \'xyz\': it must be "none", "seeded" or "full"'),
        ({"wasi": {"errno": 76}}, 'wasi.errno is 76: it must be "notcapable", "perm" or "nosys"'),
    ],
)
def test_misspelt_words_are_told(document: dict[str, Any], message: str, format_: Format) -> None:
    """Attack: a misspelt word is passed over, and what it should forbid is allowed."""
    assert str(refusal(write(document, format_), format_)) == message


# -- what a document builds on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", PRESETS)
def test_a_document_extends_a_preset(name: str, format_: Format) -> None:
    """What it does not say is as in the preset; what it says replaces that, field by field."""
    preset = Policy.preset(name)

    assert Policy.loads(write({"extends": name}, format_), format_) == preset.replace(name="custom")
    assert Policy.loads(
        write({"name": "x", "limits": {"fuel": 7}, "clock": {"step": "1s"}, "extends": name}, format_), format_
    ) == preset.replace(name="x", fuel=7, step=1.0)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    ("extends", "message"),
    [
        (
            "strickt",
            (
                "extends: there is no preset 'strickt': choose default, minimal, strict, basic, development, "
                "permissive; did you mean strict?"
            ),
        ),
        ("", "extends: there is no preset '': choose default, minimal, strict, basic, development, permissive"),
        (3, "extends is 3: it must be the name of a preset"),
        (["strict"], "extends is ['strict']: it must be the name of a preset"),
        ({"name": "strict"}, "extends is {'name': 'strict'}: it must be the name of a preset"),
    ],
)
def test_an_unknown_base_is_refused(extends: object, message: str, format_: Format) -> None:
    """Attack: a misspelt base is passed over, and the guest runs under the laxer default."""
    assert str(refusal(write({"extends": extends}, format_), format_)) == message


def test_lists_are_replaced_not_joined() -> None:
    """Attack: what a preset grants stays granted beside what the document lists instead."""
    text = """
    extends = "development"
    [filesystem]
    mounts = [{ host = "/srv", guest = "/srv" }]
    [environment]
    names = ["LANG"]
    """
    policy = Policy.loads(text)

    assert [mount.host for mount in policy.filesystem.mounts] == ["/srv"]
    assert (policy.environment.mode, policy.environment.names) == ("allow", ("LANG",))
    assert policy.network == Policy.preset("development").network
    assert Policy.loads('extends = "development"\nfilesystem = { mounts = [] }').filesystem.mounts == ()


@pytest.mark.parametrize(
    ("section", "seen"),
    [
        ({"mode": "none"}, ("none", ())),
        ({"mode": "full"}, ("full", ())),
        ({"mode": "allow"}, ("allow", ())),
        ({"mode": "deny", "names": ["HOME"]}, ("deny", ("HOME",))),
        ({"set": {"A": "1"}}, ("allow", ("PATH", "TEMP", "TMP"))),
        ({}, ("allow", ("PATH", "TEMP", "TMP"))),
    ],
    ids=str,
)
def test_a_mode_sets_what_follows_it_anew(section: dict[str, Any], seen: tuple[str, tuple[str, ...]]) -> None:
    """Names of a base mean nothing under another mode. Attack: what was allowed becomes what is denied, or stays."""
    environment = Policy.loads(json.dumps({"extends": "development", "environment": section}), "json").environment

    assert (environment.mode, environment.names) == seen


def test_a_mode_keeps_what_stands_for_itself() -> None:
    """The twin: variables that are set have nothing to do with the mode; other parts are as they were."""
    text = 'extends = "development"\n[network]\nmode = "none"'
    policy = Policy.loads(text)

    assert policy == Policy.preset("development").replace(name="custom", network=Policy().network)
    listing = Process(mode="commands", commands=("/bin/sh",))
    assert Process.from_document("process", {"mode": "none"}, listing) == Process()
    assert Process.from_document("process", {"commands": ["/bin/ls"]}, listing).commands == ("/bin/ls",)
    with pytest.raises(PolicyError) as caught:
        Process.from_document("process", {"mode": "commands"}, listing)
    assert str(caught.value) == 'process.commands is empty: name the commands, or set the mode to "none"'


# -- pitfalls of the formats ------------------------------------------------------------------------------------------

TWICE: tuple[tuple[Format, str, str], ...] = (
    ("toml", "name = 'a'\nname = 'b'", "not TOML: Cannot overwrite a value"),
    ("toml", "[limits]\nfuel = 1\n[limits]\nfuel = 2", "not TOML: Cannot declare ('limits',) twice"),
    ("toml", "[limits]\nfuel = 1\n'fuel' = 2", "not TOML: Cannot overwrite a value"),
    ("toml", "limits.fuel = 1\nlimits.fuel = 2", "not TOML: Cannot overwrite a value"),
    ("json", '{"name": "a", "name": "b"}', "not JSON: the key name is there twice"),
    ("json", '{"limits": {"fuel": 1, "fu\\u0065l": 2}}', "not JSON: the key fuel is there twice"),
    ("json", '{"limits": {}, "name": "a", "limits": {}}', "not JSON: the key limits is there twice"),
    ("json", '{"\\u001b[31m": 1, "\\u001b[31m": 1}', "not JSON: the key \\x1b[31m is there twice"),
    ("yaml", "name: a\nname: b", "not YAML: while constructing a mapping "),
    ("yaml", "limits:\n  fuel: 1\n  'fuel': 2", "not YAML: while constructing a mapping "),
    ("yaml", "{limits: {fuel: 1}, limits: {fuel: 2}}", "not YAML: while constructing a mapping "),
    ("yaml", "limits: !!omap [fuel: 1, fuel: 2]", "not YAML: "),
    ("yaml", "<<: {name: a}\n<<: {name: b}", "not YAML: "),
    ("yaml", "name: a\n---\nname: b", "not YAML: expected a single document"),
)


@pytest.mark.parametrize(("format_", "text", "message"), TWICE)
def test_what_is_said_twice_is_refused(format_: Format, text: str, message: str) -> None:
    """Attack: the second of two equal keys silently wins, where a reader sees the first."""
    problem = str(refusal(text, format_))

    assert problem.startswith(message)
    assert "\n" not in problem
    assert "suppress" not in problem, "a message must not tell how to switch the check off"


@pytest.mark.parametrize(
    ("text", "twin"),
    [
        ("limits: {<<: {fuel: 3}, fuel: 4}", "limits: {fuel: 4}"),
        ("<<: {filesystem: {delete: true}}\nname: a", "name: a"),
        ("<<: [{name: a}, {name: b}]", "name: b"),
    ],
)
def test_yaml_merge_keys_are_refused(text: str, twin: str) -> None:
    """Attack: a table that is merged in says the same field otherwise. YAML 1.2 has no merge keys."""
    assert str(refusal(text, "yaml")) == "not YAML: merge keys (<<) are not allowed"
    assert isinstance(Policy.loads(twin, "yaml"), Policy)
    assert Policy.loads('custom: {"<<": true}', "yaml").custom == {"<<": True}


BILLION = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + at)}: &{chr(98 + at)} [*{chr(97 + at)}, *{chr(97 + at)}]\n" for at in range(24)
)


@pytest.mark.parametrize("text", [BILLION, "limits: &x {}\nclock: *x", "&x a: *x", "a: &a [*a]", "[&a {}, *a]"])
def test_yaml_aliases_are_refused(text: str) -> None:
    """Attack: aliases of aliases make a tree of a billion leaves out of a page of text (billion laughs)."""
    assert str(refusal(text, "yaml")) == "not YAML: aliases are not allowed"


def test_yaml_anchors_alone_say_nothing() -> None:
    """The twin: an anchor that nothing refers to is no alias."""
    assert Policy.loads("limits: &x {fuel: 3}", "yaml") == Policy(name="custom").replace(fuel=3)


@pytest.mark.parametrize(
    ("written", "fuel"), [("010", 10), ("0o10", 8), ("0x10", 16), ("1_000", 1000), ("+7", 7), ("1e3", 1000)]
)
def test_yaml_numbers_are_those_of_yaml_1_2(written: str, fuel: int) -> None:
    """Attack: `010` is eight in YAML 1.1, ten to everybody else."""
    assert Policy.loads(f"limits: {{fuel: {written}}}", "yaml").limits.fuel == fuel


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "limits: {wall_time: 1:30}",
            'limits.wall_time: \'1:30\' is not a quantity such as "5s" or "unlimited" (units: s, ms, us, m, min, h)',
        ),
        ("filesystem: {delete: yes}", "filesystem.delete is 'yes': it must be true or false"),
        ("filesystem: {create: off}", "filesystem.create is 'off': it must be true or false"),
        (
            "network: {mode: no}",
            'network.mode is \'no\': it must be "none", "loopback", "hosts", "ports" or "full"; did you mean "none"?',
        ),
        ("name: 2020-01-01", "name is datetime.date(2020, 1, 1): it must be text"),
        ("name: !!binary aGk=", "name is b'hi': it must be text"),
        ("limits: !!set {fuel}", "limits is {'fuel'}: it must be a table"),
        ("limits:", "limits is null: it must be a table; leave it out for the default"),
        ("limits: {fuel: ~}", NULL_FUEL),
        ("limits: {wall_time: .nan}", 'limits.wall_time is nan: it must be 1ms to 315,360,000 seconds, or "unlimited"'),
        ("limits: {wall_time: .inf}", 'limits.wall_time is inf: it must be 1ms to 315,360,000 seconds, or "unlimited"'),
        ("1: x", f"1 is not known: known are {PARTS}"),
        ("? [name]\n: x", "('name',) is not known: did you mean name?"),
        ("custom: {1: true}", "a name in custom is 1: it must be a name"),
    ],
)
def test_yaml_values_that_only_look_like_something_are_refused(text: str, message: str) -> None:
    """Attack: what YAML takes for a date, a set or a number of base 60, its writer took for something else."""
    assert str(refusal(text, "yaml")) == message


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.3", "2.0"])
def test_other_versions_of_yaml_are_refused(version: str) -> None:
    """Attack: a line at the top that turns `010` into eight, `1:30` into ninety and `yes` into true."""
    for rest in ("limits: {fuel: 010}", "limits: {wall_time: 1:30}", "filesystem: {delete: yes}", "name: a"):
        assert str(refusal(f"%YAML {version}\n---\n{rest}", "yaml")).startswith("not YAML: ")
    assert Policy.loads("%YAML 1.2\n---\nlimits: {fuel: 010}", "yaml").limits.fuel == 10


@pytest.mark.parametrize(
    "text",
    [
        *(
            "!!python/object/apply:os.system ['true']",
            "name: !!python/name:os.system",
            "name: !mine x",
            "name: !!merge x",
        ),
        *(
            "name: !!bool maybe",
            "name: !!int ''",
            "name: !!float ''",
            "name: !!timestamp 2020-13-45",
            "name: 2020-13-45",
        ),
        *("name: 2020-01-01 00:00:00 +99:99", "name: ._", "name: =", "? {a: b}\n: c", "name: *x", "{", "a: b: c", "@"),
        *("limits:\n\tfuel: 1", "name:\tx", "%YAML 1.x\n---\na", "name: !!omap [a]", "name: !!binary é"),
    ],
)
def test_odd_yaml_is_refused(text: str) -> None:
    """Attack: tags that call code, and values over which the YAML library itself stumbles."""
    problem = str(refusal(text, "yaml"))

    assert problem.startswith("not YAML: ")
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"limits": {"wall_time": NaN}}', "not JSON: NaN is no number of JSON"),
        ('{"limits": {"wall_time": Infinity}}', "not JSON: Infinity is no number of JSON"),
        ('{"limits": {"wall_time": -Infinity}}', "not JSON: -Infinity is no number of JSON"),
        (
            '{"limits": {"wall_time": 1e999}}',
            'limits.wall_time is inf: it must be 1ms to 315,360,000 seconds, or "unlimited"',
        ),
        ('{"limits": {"fuel": null}}', NULL_FUEL),
        ('{"limits": {"fuel": 010}}', "not JSON: Expecting ',' delimiter: line 1 column 22 (char 21)"),
        ("{'name': 'x'}", "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ('{"name": "x"} {}', "not JSON: Extra data: line 1 column 15 (char 14)"),
        ('{"name": "x",}', "not JSON: Expecting property name enclosed in double quotes: line 1 column 14 (char 13)"),
        ('{"name": "a\tb"}', "not JSON: Invalid control character at: line 1 column 12 (char 11)"),
    ],
)
def test_odd_json_is_refused(text: str, message: str) -> None:
    """Attack: NaN is neither below nor above any limit, so it passes a comparison."""
    if "Expecting property name" in message and text.endswith(",}") and sys.version_info >= (3, 13):
        message = "not JSON: Illegal trailing comma before end of object: line 1 column 13 (char 12)"
    assert str(refusal(text, "json")) == message


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        ("toml", "x = " + "[" * 100_000),
        ("toml", "x = " + "{ a = " * 100_000),
        ("json", "[" * 100_000),
        ("json", '{"a":' * 100_000),
        ("yaml", "- " * 5_000),
        ("yaml", "{a: " * 900 + "1" + "}" * 900),
        ("yaml", "\n".join(" " * depth + "a:" for depth in range(900))),
    ],
    ids=lambda value: value[:12],
)
def test_deep_nesting_is_refused(format_: Format, text: str) -> None:
    """Attack: a policy nested so deep that reading it exhausts Python's stack."""
    assert str(refusal(text, format_)) == TOO_DEEP


@pytest.mark.parametrize(
    ("format_", "text"),
    part(
        [
            ("toml", "'a.' * 50_000 + 'b = 1'"),
            ("toml", "'limits.' + 'a . ' * 50_000 + 'b = 1'"),
            ("toml", "'x = { ' + '\\'a\\'.' * 50_000 + 'b = 1 }'"),
            ("toml", "'y = ' + '\"' * 3 + 'a' + '\"' * 4 + ' # \\\\\\n' + 'a.' * 50_000 + 'b = 1 # \"'"),
            ("yaml", "'[' * 100_000"),
            ("yaml", "'{' * 100_000"),
            ("yaml", "'[' * 100_000 + ']' * 100_000"),
        ]
    ),
)
def test_deep_nesting_does_not_exhaust_the_host(format_: Format, text: str) -> None:
    """Attack: 100 kB of text for which the TOML library takes ten gigabytes, and the YAML library an hour."""
    code = (
        "import resource, stockade\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "try:\n"
        f"    stockade.Policy.loads({text}, {format_!r})\n"
        "except stockade.PolicyError as problem:\n"
        "    print(problem)\n"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.fail("reading a policy takes as long as its writer likes")

    assert done.stdout == TOO_DEEP + "\n", done.stderr[-200:]


def test_quotes_that_are_never_closed_are_looked_at_once() -> None:
    """Attack: each of half a million quotes is taken for the beginning of a text that reaches to the end."""
    begun = time.thread_time()
    problem = refusal('\\"' * 500_000)

    assert str(problem).startswith("not TOML: ")
    assert time.thread_time() - begun < 5


def test_dots_in_text_are_no_depth() -> None:
    """The twin: keys and texts that are quoted may have as many dots as they like."""
    dots = "a." * 2000

    assert Policy.loads(f'[custom]\n\'{dots}\' = \'{dots}\'\nb = """\n{dots}"""').custom == {dots: dots, "b": dots}
    assert Policy.loads(f"# {dots}").name == "custom"
    assert Policy.loads("limits . 'fuel' = 7").limits.fuel == 7


EMPTY: list[tuple[Format, str]] = [
    *(("toml", ""), ("toml", "# nothing\n"), ("yaml", ""), ("yaml", "# nothing\n"), ("yaml", "---"), ("json", " {} ")),
]


@pytest.mark.parametrize(("format_", "text"), EMPTY)
def test_an_empty_document_is_the_default(format_: Format, text: str) -> None:
    """Who says nothing gets the defaults, under a name that does not pass for the preset."""
    assert Policy.loads(text, format_) == Policy(name="custom")


@pytest.mark.parametrize("text", ["", " \n"])
def test_no_json_at_all_is_refused(text: str) -> None:
    """JSON has no empty document: a file that was cut to nothing is told."""
    assert str(refusal(text, "json")).startswith("not JSON: Expecting value: line ")


@pytest.mark.parametrize(
    ("format_", "text", "shown"),
    [
        ("json", "[]", "[]"),
        ("json", '["name"]', "['name']"),
        ("json", '"strict"', "'strict'"),
        ("json", "3", "3"),
        ("json", "null", "None"),
        ("json", "false", "False"),
        ("yaml", "- a", "['a']"),
        ("yaml", "strict", "'strict'"),
        ("yaml", "0", "0"),
        ("yaml", "false", "False"),
        ("yaml", "[]", "[]"),
        ("yaml", "''", "''"),
    ],
)
def test_documents_that_are_no_table_are_refused(format_: Format, text: str, shown: str) -> None:
    """Attack: what is empty or no table at all is taken for a policy that says nothing."""
    assert str(refusal(text, format_)) == f"not a policy: it is {shown}, where a table is expected"


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    ("digits", "message"),
    [
        (20, "limits.memory is 99,999,999,999,999,999,999: it must be between 65,536 and 4,294,967,296"),
        (400, "limits.memory: the number is too large"),
        (5000, None),
    ],
)
def test_huge_numbers_are_refused(digits: int, message: str | None, format_: Format) -> None:
    """Attack: a number so large that reading it fails in a way that nobody catches, or wraps."""
    text = write({"limits": {"memory": 12345}}, format_).replace("12345", "9" * digits)

    problem = str(refusal(text, format_))

    assert problem == message if message else problem.startswith(f"not {format_.upper()}: ")
    assert len(problem) < 1000


@pytest.mark.parametrize("format_", FORMATS)
def test_lone_surrogates_are_refused(format_: Format) -> None:
    """Attack: text that no UTF-8 holds, over which a log, a report or a digest stumbles later."""
    for raw in (f"name{'=' if format_ == 'toml' else ': '}'\ud800'", "\ud800", "name\ud800"):
        assert "\ud800" not in str(refusal(raw, format_))
    escaped = {"json": '{"name": "\\ud800"}', "yaml": 'name: "\\ud800"', "toml": 'name = "\\ud800"'}[format_]
    expected = {
        "json": r"name is '\ud800': it must be text",
        "yaml": r"name is '\ud800': it must be text",
        "toml": "not TOML: Escaped character is not a Unicode scalar value (at line 1, column 15)",
    }
    assert str(refusal(escaped, format_)) == expected[format_]
    assert Policy.loads(escaped.replace("\\ud800", "\\u00e4"), format_).name == "ä"
    assert Policy.loads('{"name": "\\ud83d\\ude00"}', "json").name == "\N{GRINNING FACE}"


@pytest.mark.parametrize("format_", FORMATS)
def test_nul_is_refused(format_: Format) -> None:
    """Attack: text that the system cuts at the zero byte: another path, another variable."""
    for document, message in (
        ({"name": "a\0b"}, r"name is 'a\x00b': it must be text"),
        (
            {"filesystem": {"mounts": [{"host": "/etc\0/data", "guest": "/d"}]}},
            "filesystem.mounts[0].host is '/etc\\x00/data': it must be the path of a folder, such as \"./data\"",
        ),
        (
            {"environment": {"set": {"A\0": "x"}}},
            "a name in environment.set is 'A\\x00': it must be the name of a variable, such as \"LANG\"",
        ),
        ({"environment": {"set": {"A": "x\0"}}}, r"environment.set.A is 'x\x00': it must be text"),
        ({"custom": {"a\0": True}}, r"a name in custom is 'a\x00': it must be a name"),
        ({"a\0": 1}, rf"a\x00 is not known: known are {PARTS}"),
    ):
        assert str(refusal(write(document, format_), format_)) == message
    assert str(refusal("\0", format_)).startswith(f"not {format_.upper()}: ")


TABS: list[tuple[Format, str]] = [
    ("toml", "[limits]\n\tfuel\t=\t7\t"),
    ("json", '{\t"limits":\t{"fuel":\t7}}'),
]


@pytest.mark.parametrize(("format_", "text"), TABS)
def test_tabs_are_allowed_where_the_format_has_them(format_: Format, text: str) -> None:
    """The twin of YAML's tabs between tokens, which are refused."""
    assert Policy.loads(text, format_).limits.fuel == 7
    assert Policy.loads(write({"name": "a\tb"}, format_), format_).name == "a\tb"


@pytest.mark.parametrize("text", [b"name = 'x'", b"{}", b"", 3, None, ["name"], Path("p.toml")], ids=repr)
@pytest.mark.parametrize("format_", FORMATS)
def test_what_is_no_text_is_refused(text: Any, format_: Format) -> None:
    """Told at once, not by a TypeError from within. Bytes may be text in any encoding."""
    assert str(refusal(text, format_)) == f"the text of a policy is {text!r}: it must be text"


@pytest.mark.parametrize("format_", ["ini", "TOML", "", None, 3, ["toml"]], ids=repr)
def test_other_formats_are_refused(format_: Any) -> None:
    """What there is to choose from is told."""
    assert str(refusal("", format_)) == f'the format is {format_!r}: it must be "toml", "yaml" or "json"'


def test_yaml_without_its_package_tells_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """YAML is an extra: where it is not there, the message says how to get it, or do without."""
    message = 'YAML needs another package: install it with pip install "stockade[yaml]", or write the policy in TOML'
    path = tmp_path / "p.yml"
    path.write_text("name: x")
    assert Policy.load(path).name == "x"

    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)
    with pytest.raises(PolicyError) as caught:
        Policy.load(path)

    assert str(refusal("name: x", "yaml")) == message
    assert str(caught.value) == f"{path}: {message}"
    assert Policy.loads("name = 'x'").name == "x"


# -- fuel of a time ---------------------------------------------------------------------------------------------------

NO_ESTIMATES = (
    *("~", "~ ", "~2", "~2 parsecs", "~0s", "~-1s", "~1e3s", "~.5s", "~2S", "~2MiB", "~unlimited", "~~2s", "~2s~"),
    *("~11years", "~100000h", "~2s 3ms", "~\u0662s", "~" + "9" * 400 + "s", "~2s/s"),
)
"""What begins like fuel of a time, and is none."""


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("~2s", 2.0),
        ("~250ms", 0.25),
        ("~ 1_000 us ", 0.001),
        ("~1.5 min", 90.0),
        ("~2m", 120.0),
        ("~87600h", 315_360_000.0),
    ],
)
def test_fuel_may_be_told_in_time(text: str, seconds: float, format_: Format) -> None:
    """Fuel for about a time is short for no limit in units and one in time; written back, it is those two."""
    policy = Policy.loads(write({"limits": {"fuel": text}}, format_), format_)

    assert policy == Policy(name="custom", limits=Limits(fuel=None, fuel_time=seconds))
    assert policy.replace(name="default") == Policy().replace(fuel=text)
    there_and_back(policy, format_)
    assert "~" not in policy.to_toml()
    assert policy.to_document()["limits"]["fuel"] == "unlimited"  # type: ignore[index, call-overload]
    assert policy.replace(fuel=None).digest == policy.digest != Policy(name="custom").digest


def test_fuel_of_a_time_is_written_as_two_fields() -> None:
    """What is written has no short forms."""
    lines = Policy.loads("limits.fuel = '~2s'").to_toml().splitlines()

    assert [line for line in lines if line.startswith(("fuel =", "fuel_time"))] == [
        'fuel = "unlimited"',
        'fuel_time = "2s"',
    ]


def test_fuel_of_a_time_sets_the_time_anew() -> None:
    """The time of the policy that is changed gives way; other fields stay, and units may be set beside it."""
    policy = Policy().replace(fuel="~5s", memory=1 << 20)

    assert policy.replace(fuel="~2s").limits == Limits(fuel=None, fuel_time=2.0, memory=1 << 20)
    assert policy.replace(limits=Limits(fuel_time=9.0), fuel="~2s").limits == Limits(fuel=None, fuel_time=2.0)
    assert policy.replace(fuel=7).limits == Limits(fuel=7, fuel_time=5.0, memory=1 << 20)
    assert policy.replace(fuel_time=None).limits == Limits(fuel=None, memory=1 << 20)
    assert (
        Policy.loads("extends = 'strict'\n[limits]\nfuel = '~2s'").limits
        == Policy.preset("strict").replace(fuel=None, fuel_time=2.0).limits
    )


def no_estimate(text: str) -> str:
    """The message for what begins like fuel of a time, and is none."""
    shown = repr(text) if len(text) < 198 else f"{repr(text)[:200]}… ({len(repr(text))} long)"
    return (
        f"limits.fuel is {shown}: after ~ it must be a time from 1ms to 315,360,000 seconds, "
        'with its unit (s, ms, us, m, min, h): write "~2s"'
    )


@pytest.mark.parametrize("text", NO_ESTIMATES)
def test_what_is_no_time_is_told_with_what_is_right(text: str) -> None:
    """What begins like fuel of a time is one, or is refused; a unit must be named."""
    assert str(refusal(json.dumps({"limits": {"fuel": text}}), "json")) == no_estimate(text)
    with pytest.raises(PolicyError) as caught:
        Policy().replace(fuel=text)
    assert str(caught.value) == no_estimate(text)


@pytest.mark.parametrize("also", ["2s", "3s", "unlimited"])
def test_fuel_of_a_time_is_not_told_twice(also: str) -> None:
    """Attack: a document that means the shorter time to its reader, and the longer one, or none, to the guest."""
    message = "limits.fuel is '~2s', which is short for limits.fuel_time, and that is given, too: leave one of them out"

    for text in (f"fuel = '~2s'\nfuel_time = '{also}'", f"fuel_time = '{also}'\nfuel = '~2s'"):
        assert str(refusal(f"[limits]\n{text}")) == message
    for seconds in (2.0, None):
        with pytest.raises(PolicyError) as caught:
            Policy().replace(fuel="~2s", fuel_time=seconds)
        assert str(caught.value) == message


def test_fuel_of_a_time_is_short_for_nothing_elsewhere() -> None:
    """The twin: other fields do not take it. Limits made in Python do, as `replace` does."""
    assert str(refusal("[limits]\nfuel_time = '~2s'")) == (
        'limits.fuel_time: \'~2s\' is not a quantity such as "5s" or "unlimited" (units: s, ms, us, m, min, h)'
    )
    assert str(refusal("[limits]\nfuel = ' ~2s'")) == (
        "limits.fuel: ' ~2s' is not a quantity such as 1000 or \"unlimited\""
    )
    assert Limits(fuel="~2s") == Limits(fuel=None, fuel_time=2.0)


def test_mistakes_beside_fuel_of_a_time_are_told_with_it() -> None:
    """All mistakes at once, in the section's and in other sections' fields."""
    problem = refusal("[limits]\nmemroy = 1\nfuel = '~2'\n[clock]\nstep = -1")

    assert problem.problems == (
        "limits.memroy is not known: did you mean memory?",
        no_estimate("~2"),
        f"clock.step is -1.0: it must be between 0 and {2**62 / 1e9:,}",
    )


def test_refills_do_not_go_with_fuel_of_a_time_alone() -> None:
    """Attack: refills beside a budget that has no units, which would be added to what is not counted."""
    refills = "fuel_refill = 1\nfuel_refill_max = 1"

    for text in ("fuel = '~2s'", "fuel = 'unlimited'\nfuel_time = '2s'"):
        assert str(refusal(f"[limits]\n{text}\n{refills}")) == (
            "limits.fuel_refill needs a budget in units, which limits.fuel_time is not: set limits.fuel, too, "
            "or leave the refills out"
        )
    both = Policy.loads(f"[limits]\nfuel = 1\nfuel_time = '2s'\n{refills}").limits
    assert both == Limits(fuel=1, fuel_time=2.0, fuel_refill=1, fuel_refill_max=1)


@pytest.mark.parametrize(
    ("limits", "metered"),
    [(Limits(), False), (Limits(fuel=1), True), (Limits(fuel=None, fuel_time=1), True), (Limits(fuel_time=1), True)],
)
def test_fuel_is_counted_for_either_budget(limits: Limits, metered: bool) -> None:
    """Whether code is compiled to count fuel follows from both fields."""
    assert limits.metered is metered


# -- never wider than written -----------------------------------------------------------------------------------------

# A field of a document is drawn together with what it means, so that nothing here has to read sizes and times as the
# library does. REFUSED is the meaning of what no policy may have.
REFUSED: Any = type("Refused", (), {"__repr__": lambda _: "REFUSED"})()
Written = st.SearchStrategy[tuple[Any, Any]]

SIZES = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
}
TIMES = {"": 1, "s": 1, "ms": Fraction(1, 10**3), "us": Fraction(1, 10**6), "m": 60, "min": 60, "h": 3600}
RATES = {**SIZES, **{f"{unit}/s": factor for unit, factor in SIZES.items()}}
FLAGS = (
    *("filesystem.create", "filesystem.delete", "filesystem.symlinks"),
    *(f"features.{name}" for name in ("simd", "relaxed_simd", "tail_call", "multi_memory")),
    *(f"features.{name}" for name in ("extended_const", "exceptions", "function_references")),
    *(f"features.{name}" for name in ("gc", "memory64", "threads")),
)
NEVER = (
    None,
    [],
    {},
    "",
    " ",
    "x",
    "-1",
    -1,
    "1e3",
    "0x10",
    "1 000",
    "5 parsecs",
    "5S",
    "Unlimited",
    "unlimited ",
    10**30,
)


def _units(path: str) -> dict[str, Any]:
    if isinstance(AMOUNTS[path][0], float):
        return TIMES
    if path in ("limits.read_rate", "limits.write_rate"):
        return RATES
    sized = (
        "memory",
        "stack",
        "module_size",
        "compile_memory",
        "stdout",
        "stderr",
        "file_size",
        "read_bytes",
        "write_bytes",
        "random_bytes",
    )
    sizes = path.removeprefix("limits.") in sized or path == "structure.function_size"
    return SIZES if sizes else {"": 1}


def _amount(path: str) -> Written:
    least, most, _ = AMOUNTS[path]
    units = _units(path)
    whole = units is not TIMES

    def bare(value: Any) -> tuple[Any, Any]:
        return ("unlimited", None) if value is None else (value, value if whole else float(value))

    def with_unit(count: int, digits: str, unit: str, spaces: tuple[str, str, str]) -> tuple[Any, Any]:
        amount = (count + (Fraction(int(digits), 10 ** len(digits)) if digits else 0)) * units[unit]
        written = spaces[0] + f"{count:_}" + (f".{digits}" if digits else "") + spaces[1] + unit + spaces[2]
        if unit.endswith("/s"):
            written = written.rstrip()
        amount = amount if whole else float(amount)
        fits = least <= amount <= most and (not whole or Fraction(amount).denominator == 1)
        return written, (int(amount) if whole else amount) if fits else REFUSED

    count = st.sampled_from([0, 1, 5, 64, 250, 1000, 65_536]) | st.integers(0, 10**10)
    space = st.sampled_from(["", "", "", " "])
    return amounts(path).map(bare) | st.builds(
        with_unit,
        count,
        st.sampled_from(["", "", "5", "25", "000"]),
        st.sampled_from(list(units)),
        st.tuples(space, space, space),
    )


def _no_amount(path: str) -> Written:
    least, most, unlimited = AMOUNTS[path]
    never = [*NEVER, True, False, [1], {"value": 1}]
    never += [] if least == 0 else [0, "0"]
    never += [] if most > 2**62 else [int(most) + 1]
    never += [] if unlimited else ["unlimited"]
    never += ["1MiB", "1MiB/s"] if _units(path) in ({"": 1}, TIMES) else ["5s", "1MiB /s x"]
    never += [] if _units(path) is TIMES else ["5ms", 1.5, "1.5B"]
    return st.sampled_from([(value, REFUSED) for value in never])


def _fields() -> tuple[dict[str, Written], dict[str, Written]]:
    """What each field may have, and what it may not, each with what it means."""

    def plain(strategy: st.SearchStrategy[Any]) -> Written:
        return strategy.map(lambda value: (value, value))

    def listed(strategy: st.SearchStrategy[Any]) -> Written:
        return st.lists(strategy, max_size=4).map(lambda values: (values, tuple(dict.fromkeys(values))))

    def refused(*values: Any) -> Written:
        return st.sampled_from([(value, REFUSED) for value in values])

    mount = st.fixed_dictionaries(
        {"host": texts(min_size=1), "guest": guest_paths()}, optional={"mode": st.sampled_from(["ro", "rw"])}
    )
    port = port_ranges().map(lambda ports: (str(ports), (ports.first, ports.last))) | st.integers(1, 65_535).map(
        lambda number: (number, (number, number))
    )
    right: dict[str, Written] = {path: _amount(path) for path in AMOUNTS}
    wrong: dict[str, Written] = {path: _no_amount(path) for path in AMOUNTS}
    for path, words in CHOICES.items():
        right[path] = plain(st.sampled_from(words))
        wrong[path] = refused(
            None, True, 0, "", "FULL", "None", "full ", "xyz", words[0].upper(), [words[0]], {"mode": words[0]}
        )
    for path in FLAGS:
        right[path] = plain(st.booleans())
        wrong[path] = refused(None, 0, 1, "true", "yes", "", [], [True])
    wrong["limits.fuel"] |= refused(*NO_ESTIMATES)
    right["name"] = plain(names())
    wrong["name"] = refused(None, 3, True, "", "a\0", [], ["x"], "x" * 1001)
    right["gate.channels"] = st.lists(st.sampled_from(["files", "output", "requests", "value"]), max_size=4).map(
        lambda given: (given, tuple(sorted(set(given))))
    )
    wrong["gate.channels"] = refused(None, "output", ["stdout"], ["output", 3], {"output": True}, [["output"]])
    right["environment.names"] = listed(variables())
    wrong["environment.names"] = refused(None, "LANG", [""], ["A=B"], ["A", 3], [["A"]], {"A": "B"}, ["\0"])
    right["environment.set"] = plain(st.dictionaries(variables(), texts(), max_size=3))
    wrong["environment.set"] = refused(
        None, [], "A", {"": "x"}, {"A=": "x"}, {"A": 3}, {"A": None}, {"A": "\0"}, {"A": ["x"]}
    )
    right["filesystem.mounts"] = st.lists(mount, max_size=2).map(
        lambda given: (given, tuple(dict.fromkeys(map(_mount_meaning, given))))
    )
    wrong["filesystem.mounts"] = refused(
        *(None, "/data", {"host": "/a", "guest": "/a"}, [3], [None], ["/a"], [{}], [{"host": "/a"}], [{"guest": "/a"}]),
        *([{"host": "/a", "guest": "/a", "mode": mode}] for mode in ("RW", "w", "", None, True)),
        *([{"host": "/a", "guest": guest}] for guest in ("", "a", "/..", "/a/../b", "/./a", "C:/", None)),
        *([{"host": host, "guest": "/a"}] for host in ("", None, 3, "a\0b", ["/a"])),
        [{"host": "/a", "guest": "/a", "delete": True}],
    )
    right["process.commands"] = listed(guest_paths())
    wrong["process.commands"] = refused(None, "/bin/sh", ["sh"], ["/bin/../sh"], [""], [3], ["*"], {"a": "/bin/sh"})
    right["network.ports"] = st.lists(port, max_size=3).map(
        lambda given: ([one for one, _ in given], tuple(dict.fromkeys(two for _, two in given)))
    )
    wrong["network.ports"] = refused(
        *(
            None,
            443,
            "443",
            [0],
            [65_536],
            ["0"],
            ["443-80"],
            ["-1"],
            [True],
            [1.0],
            [[443]],
            ["443,80"],
            ["http"],
            ["*"],
        )
    )
    right["network.hosts"] = st.lists(hosts(), max_size=2).map(
        lambda given: ([_host(host) for host in given], tuple(dict.fromkeys(map(_host_meaning, given))))
    )
    wrong["network.hosts"] = refused(
        *(None, "example.com", ["example.com"], [{}], [{"ports": [1]}], [{"host": "example.com", "ports": []}]),
        *(
            [{"host": host}]
            for host in ("", "*", "*.com", "a b", "http://a", "a:80", "127.1", "10", "0x7f.1", None, 3, "-a")
        ),
        *([{"host": "a", "secure": secure}] for secure in (0, "false", None)),
        *([{"host": "a", "ports": 443}], [{"host": "a", "port": [80]}]),
    )
    for path in ("wasi.allow", "wasi.deny"):
        right[path] = listed(st.sampled_from(CALL_PATTERNS))
        wrong[path] = refused(None, "*", "fd_write", [""], ["fd_wrte"], ["x*"], [3], {"fd": True})
    right["wasi.deny"] |= listed(st.sampled_from(CALLS_NO_GUEST_HAS))
    wrong["wasi.allow"] |= refused(*([call] for call in CALLS_NO_GUEST_HAS))
    capability = st.booleans().map(lambda value: (value, value)) | texts().map(lambda value: (value, value))
    capability |= st.lists(texts(), max_size=3).map(lambda value: (value, tuple(dict.fromkeys(value))))
    capability |= numerics().map(
        lambda number: ({name: getattr(number, name) for name in ("value", "min", "max")}, number)
    )
    right["custom"] = st.dictionaries(texts(min_size=1), capability, max_size=3).map(
        lambda given: ({name: one for name, (one, _) in given.items()}, {name: two for name, (_, two) in given.items()})
    )
    wrong["custom"] = refused(
        *(None, [], "gpu", {"": True}, {"a\0": True}),
        *({"a": value} for value in (3, 0.5, None, [3], [[]], {}, "\0")),
        *({"a": {"value": value, "min": 0, "max": 8}} for value in (-1, 9, "3", True, None, [3])),
        *({"a": {"value": 1, "min": 0}}, {"a": {"value": 1, "min": 0, "max": 2, "step": 1}}),
    )
    return right, wrong


def _mount_meaning(entry: dict[str, Any]) -> Any:
    return entry["host"], entry["guest"], entry.get("mode", "ro")


def _host(host: Any) -> dict[str, Any]:
    ports = [ports.first if ports.first == ports.last else f"{ports.first} - {ports.last}" for ports in host.ports]
    return {"host": host.host, "ports": ports, "secure": host.secure}


def _host_meaning(host: Any) -> Any:
    return host.host, tuple((ports.first, ports.last) for ports in host.ports), host.secure


def _estimate(count: int, unit: str, space: str) -> tuple[Any, Any]:
    least, most, _ = AMOUNTS["limits.fuel_time"]
    seconds = float(count * TIMES[unit])
    return f"~{space}{count:_}{space}{unit}{space}", seconds if least <= seconds <= most else REFUSED


RIGHT, WRONG = _fields()
ESTIMATES: Written = st.builds(
    _estimate,
    st.sampled_from([0, 1, 2, 250, 1000]) | st.integers(0, 10**10),
    st.sampled_from([unit for unit in TIMES if unit]),
    st.sampled_from(["", "", " "]),
)
"""What stands for `limits.fuel_time` in the place of `limits.fuel`, with the seconds."""
FOLLOWERS = {"environment": ("names",), "network": ("hosts", "ports"), "process": ("commands",)}
UNKNOWN = ("x", "Name", "limit", "memroy", "mode ", "mounts", "host", "allow_all", "__class__", "\0", "fuel.max", "ä")


def meaning_of(policy: Policy) -> dict[str, Any]:
    """All fields of a policy by their paths, in the form in which the meaning of documents is drawn."""
    found: dict[str, Any] = {path: _attribute(policy, path) for path in RIGHT}
    found["filesystem.mounts"] = tuple((mount.host, mount.guest, mount.mode) for mount in policy.filesystem.mounts)
    found["network.hosts"] = tuple(map(_host_meaning, policy.network.hosts))
    found["network.ports"] = tuple((ports.first, ports.last) for ports in policy.network.ports)
    return found


def _attribute(policy: Policy, path: str) -> Any:
    value: Any = policy
    for name in path.split("."):
        value = getattr(value, name)
    return value


def contradicts_itself(said: dict[str, Any]) -> bool:
    """Whether fields that may be as they are do not go together."""
    fuel, refill, most = (said[f"limits.{name}"] for name in ("fuel", "fuel_refill", "fuel_refill_max"))
    refills = (fuel is None or most < fuel) if refill else most != 0
    listed = any(
        bool(said[f"{part}.{name}"]) != (said[f"{part}.mode"] == name)
        for part, name in (("network", "hosts"), ("network", "ports"), ("process", "commands"))
    )
    names_for_nothing = bool(said["environment.names"]) and said["environment.mode"] in ("none", "full")
    secrets_for_nothing = said["environment.secrets"] != "named" and said["environment.mode"] != "allow"
    names_for_nothing = names_for_nothing or secrets_for_nothing
    names_for_nothing = names_for_nothing or (said["random.seed"] and said["random.mode"] != "seeded")
    alone = any(
        said[f"features.{name}"] and not said[f"features.{needed}"]
        for name, needed in (("relaxed_simd", "simd"), ("gc", "function_references"))
    )
    return refills or listed or names_for_nothing or alone


@st.composite
def documents(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A document, and what it means for every field of a policy; None where it must be refused."""
    spoilt = draw(st.booleans())
    written: dict[str, Any] = {}
    meaning: dict[str, Any] = {}
    whole_parts = (environments(), networks(), processes())
    for path in draw(st.lists(st.sampled_from(list(RIGHT)), unique=True, max_size=10)):
        written[path], meaning[path] = draw(WRONG[path] if spoilt and draw(st.booleans()) else RIGHT[path])
    if draw(st.sampled_from([False, False, False, True])):
        told_twice = "limits.fuel_time" in written
        written["limits.fuel"], seconds = draw(ESTIMATES)
        meaning["limits.fuel"], meaning["limits.fuel_time"] = None, REFUSED if told_twice else seconds
    for one in whole_parts if draw(st.booleans()) else ():
        section = draw(one)
        for field, value in section.to_document().items():
            written[f"{section.PATH}.{field}"] = value
            meaning[f"{section.PATH}.{field}"] = meaning_of(Policy().replace(**{section.PATH: section}))[
                f"{section.PATH}.{field}"
            ]
    document: dict[str, Any] = {}
    for path, value in written.items():
        section_name, dot, field = path.partition(".")
        if dot:
            document.setdefault(section_name, {})[field] = value
        else:
            document[path] = value
    base = draw(st.sampled_from([None, *PRESETS]))
    if base is not None:
        document["extends"] = base
    refused = REFUSED in [value for value in meaning.values() if value is REFUSED]
    if spoilt and draw(st.booleans()):
        refused = True
        target = draw(st.sampled_from(["limits", "filesystem", "wasi", "", "extends", "clock"]))
        if target == "":
            document[draw(st.sampled_from(UNKNOWN))] = draw(st.sampled_from([1, True, {}, "x"]))
        elif target == "extends":
            document["extends"] = draw(st.sampled_from(["Strict", "", "none", "custom", 3, ["strict"], {}]))
        elif draw(st.booleans()):
            document[target] = draw(st.sampled_from([3, True, "x", [], [{}]]))
        else:
            document.setdefault(target, {})[draw(st.sampled_from([*UNKNOWN[:3], *UNKNOWN[6:]]))] = 1
    expected = meaning_of(Policy.preset(base or "default"))
    expected["name"] = "custom"
    for part_name, followers in FOLLOWERS.items():
        if f"{part_name}.mode" in written:
            expected.update({f"{part_name}.{name}": () for name in followers})
    if "random.mode" in written:
        expected["random.seed"] = 0
    expected.update(meaning)
    return document, None if refused or contradicts_itself(expected) else expected


def _has_none(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_none, value.values()))
    return any(map(_has_none, value)) if isinstance(value, list) else value is None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-15, abs_tol=0)
    return type(one) is type(other) and bool(one == other) if not isinstance(one, dict) else dict(one) == dict(other)


@settings(max_examples=examples(200), suppress_health_check=[HealthCheck.too_slow])
@given(documents(), st.sampled_from(FORMATS))
def test_a_policy_is_never_wider_than_written(
    case: tuple[dict[str, Any], dict[str, Any] | None], format_: Format
) -> None:
    """Attack: a document that means less to its reader than to the guest.

    Either it is refused, or each field that it has holds exactly, and each that it does not have is as in its base.
    """
    document, expected = case
    if format_ == "toml" and _has_none(document):
        format_ = "json"
    policy = outcome(write(document, format_), format_)

    if expected is None:
        assert isinstance(policy, PolicyError), "this document should have been refused"
        return
    assert isinstance(policy, Policy), policy
    found = meaning_of(policy)
    assert {path: (found[path], value) for path, value in expected.items() if not _same(found[path], value)} == {}


def test_the_documents_that_are_drawn_have_every_field() -> None:
    """What is never drawn is never checked: all that a policy has is in the tables of these tests."""
    said = Policy().to_document()
    fields = {
        f"{name}.{field}" if name != "custom" and isinstance(part, dict) else name
        for name, part in said.items()
        for field in (part if name != "custom" and isinstance(part, dict) else (name,))
    }

    assert fields == set(RIGHT) == set(WRONG)


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["delete", "insert", "replace", "double", "swap"]),
        st.integers(0, 1 << 16),
        st.integers(0, 3),
        st.sampled_from([*"\"'[]{}=:,.#\n\r\t -_0123456789abefinorstuxMGK&*!%|>@`~\\/", "\0", "\x7f", "\x85", "\u2028"])
        | st.sampled_from(["\ufeff", "\ud800", "ä", "\U0001f600", "''", '"""', "[[", "\r\n", "true", "<<", "null"]),
    ),
    min_size=1,
    max_size=3,
)


def mutated(text: str, edits: list[tuple[str, int, int, str]]) -> str:
    """A text with some of its characters changed."""
    for what, place, length, new in edits:
        at = place % (len(text) + 1)
        before, inside, after = text[:at], text[at : at + length], text[at + length :]
        text = (
            before
            + {"delete": "", "insert": new + inside, "replace": new, "double": inside * 2, "swap": inside[::-1]}[what]
            + after
        )
    return text


@pytest.mark.parametrize(("format_", "most"), [("toml", 100), ("json", 100), ("yaml", 40)])
def test_damaged_documents_are_policies_or_refused(format_: Format, most: int) -> None:
    """Attack: text that makes reading fail in a way that nobody catches, or gives half a policy."""

    @settings(max_examples=examples(most))
    @given(policies(), EDITS)
    def check(policy: Policy, edits: list[tuple[str, int, int, str]]) -> None:
        text = policy.to_toml() if format_ == "toml" else write(policy.to_document(), format_)
        read = outcome(mutated(text, edits), format_)
        if isinstance(read, Policy):
            there_and_back(read, "toml")
        else:
            assert read.problems
            assert all(character >= " " for character in str(read).replace("\n", " "))
            assert str(read).encode()

    check()


@settings(max_examples=examples(150))
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*RIGHT, *UNKNOWN]) | st.text(), inner, max_size=3)
        ),
        max_leaves=8,
    ).map(
        lambda value: {"limits": value, "custom": value, "filesystem": {"mounts": value}, "network": {"hosts": value}}
    ),
    st.sets(st.sampled_from(["limits", "custom", "filesystem", "network"])),
)
def test_any_data_is_a_policy_or_refused(document: dict[str, Any], without: set[str]) -> None:
    """Attack: data of an odd shape in the place of a table or list."""
    kept = {name: value for name, value in document.items() if name not in without}
    read = outcome(json.dumps(kept), "json")

    if isinstance(read, Policy):
        there_and_back(read, "json")
    else:
        assert read.problems


# -- files ------------------------------------------------------------------------------------------------------------

SAME: dict[str, str] = {
    "p.toml": "name = 'same'\n[limits]\nfuel = 7\n",
    "p.json": '{"name": "same", "limits": {"fuel": 7}}',
    "p.yaml": "name: same\nlimits:\n  fuel: 7\n",
    "p.yml": "name: same\nlimits: {fuel: 7}\n",
    "p.JSON": '{"name": "same", "limits": {"fuel": 7}}',
    "p.Yaml": "{name: same, limits: {fuel: 7}}",
    "p": "name = 'same'\nlimits.fuel = 7",
    "p.conf": "name = 'same'\nlimits.fuel = 7",
}


@pytest.mark.parametrize("name", SAME)
def test_a_file_is_read_by_its_name(tmp_path: Path, name: str) -> None:
    """The suffix tells the format; without one that is known it is TOML."""
    path = tmp_path / name
    path.write_text(SAME[name])

    assert Policy.load(path) == Policy.load(str(path)) == Policy(name="same").replace(fuel=7)


@pytest.mark.parametrize(
    ("name", "shown"), [("p.json", "not JSON: "), ("p.yaml", "not YAML: "), ("p.toml", "not TOML: ")]
)
def test_a_file_in_another_format_is_refused(tmp_path: Path, name: str, shown: str) -> None:
    """The twin: the file is named first, then the format in which it was read."""
    path = tmp_path / name
    path.write_text("[limits\n= {")
    with pytest.raises(PolicyError) as caught:
        Policy.load(path)

    assert str(caught.value).startswith(f"{path}: {shown}")


def test_a_file_that_is_too_large_is_told_as_such(tmp_path: Path) -> None:
    """The size is told, not that a character at the cut is damaged. The twin fits to the byte."""
    path = tmp_path / "p.toml"
    path.write_bytes(b"##" + "ä".encode() * (1 << 19))
    with pytest.raises(PolicyError) as caught:
        Policy.load(path)
    assert str(caught.value) == f"the policy file {path} is larger than 1,048,576 bytes"

    path.write_bytes(b"##" + "ä".encode() * ((1 << 19) - 1))
    assert Policy.load(path) == Policy(name="custom")


@pytest.mark.parametrize("format_", FORMATS)
def test_mounts_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: Format) -> None:
    """Attack: a policy that grants another folder when the process is somewhere else."""
    conf = tmp_path / "conf"
    conf.mkdir()
    path = conf / f"p.{format_}"
    given = ("data", "./out", "../beside", str(tmp_path / "absolute"))
    path.write_text(
        write({"filesystem": {"mounts": [{"host": host, "guest": f"/{at}"} for at, host in enumerate(given)]}}, format_)
    )
    meant = [conf / "data", conf / "out", tmp_path / "beside", tmp_path / "absolute"]

    for folder, name in ((tmp_path, path), (conf, f"p.{format_}"), (tmp_path, f"conf/p.{format_}")):
        monkeypatch.chdir(folder)
        hosts_ = [mount.host for mount in Policy.load(name).filesystem.mounts]
        assert [Path(host).resolve() for host in hosts_] == meant
    assert [mount.host for mount in Policy.loads(path.read_text(), format_).filesystem.mounts] == list(given)


def test_mounts_of_a_preset_are_relative_to_the_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that extends `development` grants its own folder, as if the preset stood in it."""
    monkeypatch.setattr("tempfile.tempdir", "/nowhere/tmp")
    path = tmp_path / "p.toml"
    path.write_text('extends = "development"')

    found = [(mount.host, mount.guest, mount.mode) for mount in Policy.load(path).filesystem.mounts]

    assert found == [(str(tmp_path), "/work", "ro"), ("/nowhere/tmp", "/tmp", "rw")]


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Folders around a policy: `conf` holds it, `conf2` and `out` lie beside it, `link` leads to `conf`."""
    for name in ("conf/out", "conf2", "out"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "conf")
    return tmp_path


def load_with(path: Path, *mounts: tuple[str, str]) -> Policy:
    """Writes a policy with mounts, and reads it."""
    entries = [{"host": host, "guest": f"/{at}", "mode": mode} for at, (host, mode) in enumerate(mounts)]
    path.write_text(json.dumps({"filesystem": {"mounts": entries}}))
    return Policy.load(path)


def covered(path: Path, place: int, host: str) -> str:
    """The message for a policy file that a guest could write."""
    return (
        f"{path}: filesystem.mounts[{place}].host is {host!r}, a writable folder with this policy file in it: the "
        "guest could change its own policy. Keep the policy elsewhere, or mount a folder beside it"
    )


@pytest.mark.parametrize("host", [".", "..", "../link", "../link/../conf", "/", "out/.."])
def test_a_writable_mount_over_the_policy_is_refused(house: Path, host: str) -> None:
    """Attack: the guest writes the policy under which it runs next time; also through a link."""
    path = house / "conf" / "p.json"
    folder = str(path.parent / host)

    for mounts, place in (([(host, "rw")], 0), ([("/usr", "ro"), (host, "rw")], 1)):
        with pytest.raises(PolicyError) as caught:
            load_with(path, *mounts)
        assert str(caught.value) == covered(path, place, folder)
    assert load_with(path, (host, "ro")).filesystem.mounts[0].host == folder


@pytest.mark.parametrize("host", ["out", "../out", "../conf2", "../link/out"])
def test_a_writable_mount_beside_the_policy_is_not(house: Path, host: str) -> None:
    """The twin: folders beside and below, and one whose name begins alike."""
    policy = load_with(house / "conf" / "p.json", (host, "rw"))

    assert policy.filesystem.mounts[0].mode == "rw"


def test_a_policy_by_a_link_is_where_it_stands(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: the file is reached through a link to its folder, or by a relative name, so that it seems elsewhere."""
    for path in (house / "link" / "p.json", Path("p.json")):
        monkeypatch.chdir(house / "conf")
        with pytest.raises(PolicyError) as caught:
            load_with(path, (str(house / "conf"), "rw"))
        assert str(caught.value) == covered(path, 0, str(house / "conf"))


def test_a_link_to_the_policy_in_a_writable_folder_is_refused(house: Path) -> None:
    """Attack: the policy itself is safe, but the name by which it is found stands where the guest can replace it."""
    path = house / "conf" / "p.json"
    load_with(path, (str(house / "out"), "rw"))
    (house / "out" / "p.json").symlink_to(path)
    (house / "out" / "way").symlink_to(house / "conf")
    (house / "conf2" / "p.json").symlink_to(house / "out" / "p.json")

    for name in (house / "out" / "p.json", house / "out" / "way" / "p.json", house / "conf2" / "p.json"):
        with pytest.raises(PolicyError) as caught:
            Policy.load(name)
        assert str(caught.value) == covered(name, 0, str(house / "out"))
    assert Policy.load(house / "link" / "p.json").filesystem.mounts[0].mode == "rw"


# -- the schema -------------------------------------------------------------------------------------------------------

VALIDATOR = jsonschema.Draft202012Validator(Policy.schema())


def test_the_schema_is_one() -> None:
    """Editors check a policy by it, so it must be well formed, and be data."""
    schema = Policy.schema()

    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert Policy.schema() is not schema


@settings(max_examples=examples(40))
@given(policies(), st.sampled_from(PRESETS))
def test_policies_are_valid_by_the_schema(policy: Policy, preset: str) -> None:
    """What the library writes is what the schema tells."""
    VALIDATOR.validate(policy.to_document())
    VALIDATOR.validate({"extends": preset, **Policy.preset(preset).to_document()})


@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.too_slow])
@given(documents())
def test_the_schema_refuses_nothing_that_is_read(case: tuple[dict[str, Any], dict[str, Any] | None]) -> None:
    """An editor must not mark as wrong what holds, whichever of its forms it is written in."""
    document, expected = case
    if expected is not None:
        VALIDATOR.validate(document)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ({"nmae": "x"}, {"name": "x"}),
        ({"limits": {"memroy": 65_536}}, {"limits": {"memory": 65_536}}),
        ({"limits": {"memory": 65_535}}, {"limits": {"memory": 65_536}}),
        ({"limits": {"memory": (4 << 30) + 1}}, {"limits": {"memory": 4 << 30}}),
        ({"limits": {"memory": "unlimited"}}, {"limits": {"fuel": "unlimited"}}),
        ({"limits": {"memory": "1Mb"}}, {"limits": {"memory": "1MB"}}),
        ({"limits": {"memory": "1MB/s"}}, {"limits": {"read_rate": "1MB/s"}}),
        ({"limits": {"fuel": 1.5}}, {"limits": {"wall_time": 1.5}}),
        ({"limits": {"fuel": "5s"}}, {"limits": {"fuel": "5_000"}}),
        ({"limits": {"fuel": "~2"}}, {"limits": {"fuel": "~2s"}}),
        ({"limits": {"fuel": "~2 parsecs"}}, {"limits": {"fuel": "~ 2_000.5 ms "}}),
        ({"limits": {"fuel": " ~2s"}}, {"limits": {"fuel": "~2min"}}),
        ({"limits": {"wall_time": "~2s"}}, {"limits": {"wall_time": "2s"}}),
        ({"limits": {"fuel_time": "~2s"}}, {"limits": {"fuel_time": "2s"}}),
        ({"limits": {"fuel": True}}, {"limits": {"fuel": 1}}),
        ({"limits": {"wall_time": "5x"}}, {"limits": {"wall_time": "5 s"}}),
        ({"limits": {"wall_time": 0}}, {"limits": {"wall_time": 0.001}}),
        ({"limits": 3}, {"limits": {}}),
        ({"on_violation": "Deny"}, {"on_violation": "deny"}),
        ({"clock": {"mode": "virtaul"}}, {"clock": {"mode": "virtual"}}),
        ({"filesystem": {"delete": "yes"}}, {"filesystem": {"delete": True}}),
        ({"filesystem": {"mounts": [{"host": "."}]}}, {"filesystem": {"mounts": [{"host": ".", "guest": "/d"}]}}),
        (
            {"filesystem": {"mounts": [{"host": ".", "guest": "/d", "mode": "RW"}]}},
            {"filesystem": {"mounts": [{"host": ".", "guest": "/d", "mode": "rw"}]}},
        ),
        (
            {"network": {"mode": "hosts", "hosts": [{"host": "a", "port": [1]}]}},
            {"network": {"mode": "hosts", "hosts": [{"host": "a", "ports": [1, "80-90"]}]}},
        ),
        ({"network": {"mode": "ports", "ports": [0]}}, {"network": {"mode": "ports", "ports": [1]}}),
        ({"environment": {"set": {"A": 1}}}, {"environment": {"set": {"A": "1"}}}),
        ({"environment": {"names": "A"}}, {"environment": {"mode": "allow", "names": ["A"]}}),
        ({"custom": {"a": 3}}, {"custom": {"a": {"value": 3, "min": 1, "max": 4}}}),
        ({"custom": {"a": {"value": 3, "min": 1}}}, {"custom": {"a": ["x"]}}),
        ({"extends": "strickt"}, {"extends": "strict"}),
        ([], {}),
    ],
    ids=str,
)
def test_mistakes_are_invalid_by_the_schema(wrong: Any, right: Any) -> None:
    """What the schema can say, it says: an editor marks what would be refused, and nothing else."""
    assert not VALIDATOR.is_valid(wrong)
    refusal(json.dumps(wrong), "json")
    assert VALIDATOR.is_valid(right)
    assert isinstance(Policy.loads(json.dumps(right), "json"), Policy)


def test_defaults_in_the_schema_are_those_of_a_policy() -> None:
    """An editor tells the default that is in force, for every field but whole sections."""
    properties = Policy.schema()["properties"]
    assert isinstance(properties, dict)

    told: dict[str, Any] = {}
    for name, described in properties.items():
        if "default" in described:
            told[name] = described["default"]
        elif "properties" in described:
            told[name] = {field: inner["default"] for field, inner in described["properties"].items()}

    assert told == Policy().to_document()
    assert list(properties) == ["extends", *told]


def test_every_field_is_described() -> None:
    """The schema, the reference page and the comments of written policies come from these sentences."""

    def described(path: str, schema: Any) -> list[str]:
        missing = []
        if isinstance(schema, dict):
            for name, inner in schema.get("properties", {}).items():
                text = inner.get("description", "")
                if not (text.strip() and text.strip().endswith((".", "`."))):
                    missing.append(f"{path}.{name}")
            for key, inner in schema.items():
                missing += described(f"{path}.{key}", inner)
        for place, inner in enumerate(schema) if isinstance(schema, list) else ():
            missing += described(f"{path}[{place}]", inner)
        return missing

    assert described("schema", Policy.schema()) == []
    assert Policy.schema()["description"] == "What a guest may do. Whatever is not named here, it may not."


# -- frozen -----------------------------------------------------------------------------------------------------------

FULL = Policy(
    limits=Limits(fuel=1000, fuel_refill=1, fuel_refill_max=5000, fuel_time=3.0),
    custom={"gpu": True, "cores": Amount(2, 1, 8), "models": ("a", "b"), "tier": "x"},
).replace(
    environment=Policy.loads(
        '[environment]\nmode = "allow"\nnames = ["A", "B"]\nset = { C = "1", D = "2" }'
    ).environment,
    network=Policy.loads('[network]\nmode = "hosts"\nhosts = [{ host = "a.test", ports = [80, "90-99"] }]').network,
    process=Process(mode="commands", commands=("/bin/a",)),
    filesystem=Policy.loads('[filesystem]\nmounts = [{ host = "/a", guest = "/a" }]').filesystem,
)
"""A policy in which all that may be said of one is said."""


def test_tables_of_a_policy_cannot_be_changed() -> None:
    """Attack: code that is handed a policy widens it behind the sandbox's back."""
    before = FULL.digest
    for table in (FULL.environment.set, FULL.custom):
        changes: list[Any] = [
            lambda table=table: table.__setitem__("gpu", False),
            lambda table=table: table.__delitem__(next(iter(table))),
            lambda table=table: table.__ior__({"gpu": False}),
            lambda table=table: table.update(gpu=False),
            lambda table=table: table.setdefault("new", True),
            lambda table=table: table.pop(next(iter(table))),
            lambda table=table: table.popitem(),
            lambda table=table: table.clear(),
        ]
        for change in changes:
            with pytest.raises(TypeError) as caught:
                change()
            assert str(caught.value) == "a policy cannot be changed: make another one with replace()"

    assert FULL.digest == before
    assert FULL.replace(custom={**FULL.custom, "gpu": False}).custom["gpu"] is False


def test_what_a_policy_is_made_of_stays_outside() -> None:
    """Attack: the lists and tables that a policy was made of are changed afterwards."""
    table, listed = {"A": "1"}, ["x"]
    policy = Policy().replace(set=table, custom={"a": listed})

    table["B"] = "2"
    listed.append("y")

    assert policy.environment.set == {"A": "1"}
    assert policy.custom == {"a": ("x",)}


def test_fields_of_every_part_are_frozen() -> None:
    """Attack: the same, field by field."""
    parts: list[Any] = [
        *(FULL, FULL.limits, FULL.filesystem, FULL.environment, FULL.clock, FULL.random, FULL.network, FULL.process),
        *(FULL.features, FULL.wasi, FULL.custom["cores"], FULL.filesystem.mounts[0], FULL.network.hosts[0]),
        FULL.network.hosts[0].ports[0],
    ]
    for one in parts:
        for name in one.__struct_fields__:
            with pytest.raises(AttributeError):
                setattr(one, name, getattr(one, name))
            with pytest.raises(AttributeError):
                delattr(one, name)
        with pytest.raises(AttributeError):
            one.something_new = True


@settings(max_examples=examples(60))
@given(policies())
@example(FULL)
def test_copies_are_equal_and_frozen(policy: Policy) -> None:
    """A policy may be a key of a dict, and go to another process."""
    copies = [copy.copy(policy), copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))]

    for other in copies:
        assert other == policy
        assert hash(other) == hash(policy)
        assert other.digest == policy.digest
        for table in (other.environment.set, other.custom):
            with pytest.raises(TypeError):
                table["x"] = "y"  # type: ignore[index]
    assert len({policy, *copies}) == 1


# -- the digest -------------------------------------------------------------------------------------------------------

# Reports and audit logs name policies by their digests, so these must stay as they are from release to release. When
# one changes: if a preset itself was changed on purpose, take the new digest over here and tell it in the changelog;
# if a field was added, give it an entry in `_LATER` in `stockade.policy._policy`, which keeps the digests as they were.
DIGESTS: dict[str, str] = {
    "default": "b88a1c8a90f6af25635067458f010d2be9a59315ccb38cc7172549047bfa348b",
    "minimal": "c9dcdd221c7eeea2fb7440c8884dc7a5eabf96d2c86e43fa34939b31026add71",
    "strict": "b02b68937fc3babfca51cf14f73956e814769bdb679f88401e5c91cfb972075d",
    "basic": "e5afdfab095b976a65946088d466048d2a08e46733f5b837f0ae37535a9a502b",
    "permissive": "6dd379e8d612521cfb52af325b3d90b8a8a561010377bfd6d6b3116f7e436535",
}


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "development"])
def test_digests_of_presets_stay(name: str) -> None:
    """A digest in an old log still names the policy. That of `development` depends on the machine."""
    assert Policy.preset(name).digest == DIGESTS[name]


def test_digests_are_the_same_in_every_process() -> None:
    """Equal policies have equal digests, whatever order sets and dicts have in a process."""
    code = "import sys, stockade\nfor text in sys.argv[1:]: print(stockade.Policy.loads(text).digest)"
    turned = FULL.replace(set=dict(reversed(FULL.environment.set.items())), custom=dict(reversed(FULL.custom.items())))
    those = [FULL, turned, *(Policy.preset(name) for name in PRESETS)]

    for seed in ("0", "1", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", code, *(policy.to_toml() for policy in those)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONUTF8": "1"},
        )
        assert done.stdout.split() == [policy.digest for policy in those]
    assert turned == FULL
    assert turned.digest == FULL.digest


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Policy(limits=Limits(wall_time=5)), Policy(limits=Limits(wall_time=5.0))),
        (Policy(clock=Clock(start=-0.0)), Policy(clock=Clock(start=0.0))),
        (Policy(clock=Clock(step=-0.0)), Policy(clock=Clock(step=0))),
        (Policy(custom={"a": Amount(-0.0, -1, 1)}), Policy(custom={"a": Amount(0, -1.0, 1.0)})),
        (Policy(custom={"a": ["x", "x"]}), Policy(custom={"a": ("x",)})),
    ],
    ids=["int", "negative zero", "negative step", "numeric", "list"],
)
def test_equal_policies_have_equal_digests(one: Policy, other: Policy) -> None:
    """Attack: a policy that is equal to an approved one, yet goes by another digest."""
    assert one == other
    assert hash(one) == hash(other)
    assert one.digest == other.digest


OTHER_VALUES: dict[str, list[Any]] = {
    "name": ["x", "default "],
    "limits.fuel_refill": [2],
    "limits.fuel_refill_max": [6000],
    "filesystem.mounts": [
        [],
        [{"host": "/b", "guest": "/a"}],
        [{"host": "/a", "guest": "/b"}],
        [{"host": "/a", "guest": "/a", "mode": "rw"}],
        [{"host": "/a", "guest": "/a"}, {"host": "/a", "guest": "/b"}],
        [{"host": "/a", "guest": "/b"}, {"host": "/a", "guest": "/a"}],
    ],
    "environment.mode": ["deny"],
    "gate.channels": [["output"], [], ["value", "files"]],
    "environment.names": [["A"], ["a", "B"], ["B", "A"], []],
    "environment.set": [{}, {"C": "1"}, {"C": "2", "D": "1"}, {"C": "1", "d": "2"}],
    "network.hosts": [
        [{"host": "b.test", "ports": [80, "90-99"]}],
        [{"host": "a.test", "ports": [80, "90-98"]}],
        [{"host": "a.test", "ports": [80]}],
        [{"host": "a.test", "ports": [80, "90-99"], "secure": False}],
    ],
    "process.commands": [["/bin/b"], ["/bin/a", "/bin/b"]],
    "wasi.allow": [[], ["fd"], ["fd_*"]],
    "wasi.deny": [[], ["sock"], ["sock_*", "fork"]],
    "custom": [
        {},
        {**FULL.to_document()["custom"], "gpu": False},  # type: ignore[dict-item]
        {**FULL.to_document()["custom"], "cores": {"value": 3, "min": 1, "max": 8}},  # type: ignore[dict-item]
        {**FULL.to_document()["custom"], "cores": {"value": 2, "min": 0, "max": 8}},  # type: ignore[dict-item]
        {**FULL.to_document()["custom"], "models": ["b", "a"]},  # type: ignore[dict-item]
        {**FULL.to_document()["custom"], "tier": ["x"]},  # type: ignore[dict-item]
    ],
}
MODES_ALONE = ("network.mode", "process.mode", "network.ports", "random.mode", "random.seed")
"""Fields that cannot be changed alone where FULL has what another mode takes, so that they have a base of their own."""


def test_every_field_counts_in_the_digest() -> None:
    """The twin. Attack: two policies, one of them wider, that logs cannot tell apart."""
    digests: dict[str, str] = {FULL.digest: "base"}
    changed = set()
    for path in RIGHT:
        if path in (*MODES_ALONE, "limits.instances"):  # of instances, there is one value only
            continue
        section, dot, field = path.partition(".")
        now = FULL.to_document()[section]
        now = now[field] if dot else now  # type: ignore[call-overload, index]
        others = OTHER_VALUES.get(path)
        if others is None and path in AMOUNTS:
            others = [bound for bound in AMOUNTS[path][:2] if bound != _attribute(FULL, path)]
        elif others is None:
            others = [word for word in CHOICES.get(path, (True, False)) if word != now]
        for other in others:
            if path in ("limits.fuel", "features.simd") and other not in (1, False):
                continue  # the most fuel does not go with FULL's refills
            document: Any = FULL.to_document()
            if dot:
                document[section][field] = other
            else:
                document[section] = other
            digest = Policy.loads(json.dumps(document), "json").digest
            assert digest not in digests, (path, other, digests[digest])
            digests[digest] = f"{path} = {other}"
            changed.add(path)
    for text in (
        "mode = 'loopback'",
        "mode = 'full'",
        "mode = 'ports'\nports = [1]",
        "mode = 'ports'\nports = ['1-2']",
    ):
        digests[Policy.loads(f"name = 'default'\n[network]\n{text}").digest] = text
    digests[Policy(process=Process(mode="full")).digest] = "process"
    digests[Policy(random=Random(mode="none")).digest] = "no randomness"
    digests |= {Policy(random=Random(mode="seeded", seed=seed)).digest: f"seed {seed}" for seed in (0, 1, 2**64 - 1)}
    digests[Policy().digest] = "default"

    assert changed == set(RIGHT) - {*MODES_ALONE, "limits.instances"}
    assert len(digests) > len(RIGHT) + 20
    assert {
        "process",
        "default",
        "no randomness",
        "seed 0",
        "seed 1",
        "mode = 'full'",
        "mode = 'ports'\nports = [1]",
    } < set(digests.values())
