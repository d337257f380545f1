"""`stockade policy`: what people and scripts see."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Literal

import jsonschema
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stockade import Policy, PolicyError
from stockade.cli._commands import stockade
from stockade.guard import guard
from stockade.policy import PRESETS, reference, write_yaml
from tests.policy._strategies import policies


def command(*args: str) -> Result:
    """What a command prints, not on a terminal, and how it ends: `return_value` is its exit status, if it is not 0."""
    return CliRunner().invoke(stockade, ["policy", *args], standalone_mode=False)


def test_check_says_what_is_good(tmp_path: Path) -> None:
    """Files in every format, and presets."""
    (tmp_path / "p.toml").write_text('extends = "strict"\n[limits]\nmemory = "1MiB"')
    (tmp_path / "p.json").write_text('{"limits": {"fuel": "unlimited"}}')
    (tmp_path / "p.yaml").write_text("limits:\n  wall_time: 1s\n")
    paths = [str(tmp_path / name) for name in ("p.toml", "p.json", "p.yaml")]

    result = command("check", "strict", *paths)

    assert result.return_value == 0
    assert result.stdout.splitlines() == [
        "strict: valid, score 78 (hardened)",
        f"{paths[0]}: valid, score 78 (hardened)",
        f"{paths[1]}: valid, score 71 (hardened)",
        f"{paths[2]}: valid, score 71 (hardened)",
    ]


def test_check_tells_every_mistake(tmp_path: Path) -> None:
    """All mistakes of all files at once, each with its file."""
    path = tmp_path / "p.toml"
    path.write_text('nmae = "x"\n[limits]\nmemroy = 1\nfuel = -1\n[environment]\nmode = "alow"')

    result = command("check", str(path), "default", "nothing")

    assert result.return_value == 125
    assert result.stdout == "default: valid, score 71 (hardened)\n"
    assert result.stderr.splitlines() == [
        f"stockade: {path}: nmae is not known: did you mean name?",
        f"stockade: {path}: limits.memroy is not known: did you mean memory?",
        f"stockade: {path}: limits.fuel is -1: it must be between 1 and 9,223,372,036,854,775,807",
        (
            f'stockade: {path}: environment.mode is \'alow\': it must be "none", "allow", "deny" or "full"; did you '
            'mean "allow"?'
        ),
        "stockade: there is no preset 'nothing': choose default, minimal, strict, basic, development, permissive",
    ]


def test_check_refuses_what_cannot_be_enforced(tmp_path: Path) -> None:
    """A policy that is well written but cannot be held is not good."""
    path = tmp_path / "p.toml"
    path.write_text('[process]\nmode = "full"')
    result = command("check", str(path))

    assert result.return_value == 125
    assert result.stderr == (
        f"stockade: {path}: process.mode is 'full', which this release cannot enforce yet: set it to \"none\"\n"
    )


def test_check_tells_what_cannot_be_used_beside_mistakes(tmp_path: Path) -> None:
    """What cannot be enforced and folders that are missing are told at once with what is written wrong."""
    (tmp_path / "file").touch()
    (tmp_path / "there").mkdir()
    path = tmp_path / "p.toml"
    path.write_text("""
        wall_time = "2s"
        [limits]
        memory = 64
        hosts = ["a"]
        [network]
        mode = "sometimes"
        [process]
        mode = "full"
        [[filesystem.mounts]]
        host = "nowhere"
        guest = "/a"
        [[filesystem.mounts]]
        host = "file"
        guest = "/b"
        [[filesystem.mounts]]
        host = "there"
        guest = "/c"
    """)

    result = command("check", str(path))

    assert (result.return_value, result.stdout) == (125, "")
    assert result.stderr.splitlines() == [
        f"stockade: {path}: wall_time is not known: it belongs in [limits]",
        f'stockade: {path}: limits.memory is 64: it must be between 65,536 and 4,294,967,296; did you mean "64MiB"?',
        f"stockade: {path}: limits.hosts is not known: it belongs in [network]",
        f'stockade: {path}: network.mode is \'sometimes\': it must be "none", "loopback", "hosts", "ports" or "full"',
        f"stockade: {path}: process.mode is 'full', which this release cannot enforce yet: set it to \"none\"",
        f"stockade: {path}: filesystem.mounts[0].host: {tmp_path}/nowhere does not exist",
        f"stockade: {path}: filesystem.mounts[1].host: {tmp_path}/file is not a folder",
    ]


def test_check_tells_of_a_folder_that_is_missing(tmp_path: Path) -> None:
    """It is all that is wrong with this policy; its twin has the folder."""
    path = tmp_path / "p.toml"
    path.write_text('[[filesystem.mounts]]\nhost = "data"\nguest = "/data"')

    missing = command("check", str(path))
    (tmp_path / "data").mkdir()
    there = command("check", str(path))

    assert missing.stderr == f"stockade: {path}: filesystem.mounts[0].host: {tmp_path}/data does not exist\n"
    assert (missing.return_value, there.return_value, there.stderr) == (125, 0, "")
    assert there.stdout.startswith(f"{path}: valid, score ")


def test_check_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    """It begins as all errors of the command do."""
    result = command("check", str(tmp_path / "nope.toml"))

    assert result.return_value == 125
    assert (
        result.stderr == f"stockade: the policy file {tmp_path}/nope.toml cannot be read: No such file or directory\n"
    )


def test_diff_shows_tables_in_lines(tmp_path: Path) -> None:
    """Each mount that one has and the other has not is a line; what both have is left out."""
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    both = '[[filesystem.mounts]]\nhost = "/usr"\nguest = "/usr"\n'
    one.write_text(both + '[[filesystem.mounts]]\nhost = "/bin"\nguest = "/bin"')
    two.write_text(both + '[[filesystem.mounts]]\nhost = "/bin"\nguest = "/bin"\nmode = "rw"')

    assert command("diff", str(one), str(two)).stdout.splitlines() == [
        'filesystem.mounts  - { host = "/bin", guest = "/bin", mode = "ro" }  wider',
        '                   + { host = "/bin", guest = "/bin", mode = "rw" }',
        "the second permits more",
    ]
    assert command("diff", str(two), "default").stdout.splitlines() == [
        'name               "custom" → "default"',
        'filesystem.mounts  - { host = "/usr", guest = "/usr", mode = "ro" }  narrower',
        '                   - { host = "/bin", guest = "/bin", mode = "rw" }',
        "the second permits less",
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_show_prints_the_whole_policy(name: str) -> None:
    """As TOML, and as JSON."""
    shown = command("show", name)
    as_json = command("show", name, "--json")

    assert Policy.loads(shown.stdout) == Policy.preset(name)
    assert json.loads(as_json.stdout) == Policy.preset(name).to_document()
    assert tomllib.loads(shown.stdout).keys() <= json.loads(as_json.stdout).keys()


def test_explain_prints_sentences_with_risks() -> None:
    """In aligned plain text; the risk stands behind what carries one."""
    lines = command("explain", "permissive").stdout.splitlines()

    assert lines[0] == "files        It sees no files of the host."
    (clock,) = (line for line in lines if line.startswith("clock"))
    assert clock.endswith("low risk")
    told = json.loads(command("explain", "permissive", "--json").stdout)
    assert told[0] == {
        "capability": "files",
        "text": "It sees no files of the host.",
        "risk": "none",
        "path": "filesystem.mounts",
    }
    assert len(told) == len(Policy.preset("permissive").explain())


def test_explain_shows_no_escape_sequences(tmp_path: Path) -> None:
    """The attack: a policy from elsewhere steers the terminal of whoever reads it."""
    path = tmp_path / "p.toml"
    path.write_text('[environment]\nset = { "A\\u001b[2J" = "x" }')

    assert "\x1b" not in command("explain", str(path)).stdout


def test_diff_tells_what_is_wider(tmp_path: Path) -> None:
    """A line for each field, what it does to the guest's rights, and what it comes to."""
    path = tmp_path / "p.toml"
    path.write_text('extends = "strict"\nname = "strict"\n[limits]\nfuel = 1000\nmemory = "256MiB"')

    result = command("diff", "strict", str(path))

    assert result.return_value == 1
    assert result.stdout.splitlines() == [
        "limits.fuel    5_000_000_000 → 1000  narrower",
        'limits.memory  "128MB" → "256MiB"    wider',
        "each permits something that the other does not",
    ]
    assert command("diff", "permissive", "strict").stdout.splitlines()[-1] == "the second permits less"
    assert command("diff", "strict", "permissive").stdout.splitlines()[-1] == "the second permits more"
    as_json = json.loads(command("diff", "strict", str(path), "--json").stdout)
    assert as_json[1] == {"path": "limits.memory", "before": "128MB", "after": "256MiB", "effect": "wider"}


def test_diff_of_equals_is_empty() -> None:
    """Exit status 0, as of diff(1)."""
    result = command("diff", "strict", "strict")

    assert (result.return_value, result.stdout) == (0, "no difference\n")


def test_score_prints_its_reasons() -> None:
    """A row for each control, the sum last."""
    lines = command("score", "strict").stdout.splitlines()

    assert lines[0].split()[:2] == ["engine", "34/34"]
    assert lines[-1].split() == ["score", "78", "hardened"]
    rated = json.loads(command("score", "strict", "--json").stdout)
    assert rated["value"] == sum(reason["points"] for reason in rated["reasons"]) == 78


def test_check_and_score_rate_in_the_same_way(tmp_path: Path) -> None:
    """Where runs happen in processes of their own, both count the walls that stand here."""
    path = tmp_path / "apart.toml"
    path.write_text('isolation = "process"')

    rated = json.loads(command("score", str(path), "--json").stdout)

    assert rated["value"] > Policy(isolation="process").score().value
    assert command("check", str(path)).stdout == f"{path}: valid, score {rated['value']} ({rated['label']})\n"


def test_score_can_be_asked_for_a_least_value() -> None:
    """For scripts: exactly the score is enough, one more is not."""
    assert command("score", "strict", "--at-least", "78").return_value == 0
    assert command("score", "strict", "--at-least", "79").return_value == 1


def test_schema_is_that_of_policies() -> None:
    """As JSON Schema, and as the reference page."""
    schema = json.loads(command("schema").stdout)

    assert schema == Policy.schema()
    jsonschema.validate(Policy.preset("strict").to_document(), schema)
    assert command("schema", "--markdown").stdout == reference(guard().layout.kept())


def test_reference_page_is_up_to_date() -> None:
    """`make docs` writes it anew."""
    page = Path(__file__).parents[2] / "docs" / "policy.md"

    assert page.read_text(encoding="utf-8") == reference(guard().layout.kept())


def test_init_writes_a_policy_that_says_what_each_field_means(tmp_path: Path) -> None:
    """To a file, once; to stdout without one."""
    path = tmp_path / "mine.toml"

    written = command("init", str(path), "--preset", "strict")
    again = command("init", str(path))

    assert Policy.load(path) == Policy.preset("strict").replace(name="mine")
    assert "# Tables that a module may declare. (0 to 100)\n" in path.read_text()
    assert written.stderr == f"wrote {path}: edit it, then run stockade policy check {path}\n"
    assert str(again.exception) == f"{path} already exists: use --force to overwrite it"
    assert Policy.load(path).name == "mine"
    assert command("init", str(path), "--force").exception is None
    assert Policy.load(path) == Policy(name="mine")
    assert Policy.loads(command("init").stdout) == Policy(name="custom")


def test_init_says_why_it_cannot_write(tmp_path: Path) -> None:
    """No traceback."""
    result = command("init", str(tmp_path / "no" / "p.toml"))

    assert str(result.exception) == f"{tmp_path}/no/p.toml cannot be written: No such file or directory"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_offered(shell: str) -> None:
    """What the shell is to evaluate, and what it will be told."""
    script = CliRunner().invoke(stockade, ["completion", shell], standalone_mode=False).stdout
    told = CliRunner().invoke(
        stockade,
        env={"_STOCKADE_COMPLETE": "bash_complete", "COMP_WORDS": "stockade policy show st", "COMP_CWORD": "3"},
        prog_name="stockade",
    )

    assert "_STOCKADE_COMPLETE" in script
    assert "plain,strict" in told.stdout.splitlines()


# -- documents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["default", "strict", "permissive", "minimal"])
@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json", ".toml", ""])
def test_init_writes_what_the_name_promises(tmp_path: Path, suffix: str, preset: str) -> None:
    """YAML for .yaml and .yml, JSON for .json, TOML for the rest: each is read back as the same policy."""
    path = tmp_path / f"mine{suffix}"

    assert command("init", str(path), "--preset", preset).exception is None

    text = path.read_text(encoding="utf-8")
    assert Policy.load(path) == Policy.preset(preset).replace(name="mine")
    if suffix == ".json":
        assert json.loads(text)["name"] == "mine"
    elif suffix in (".yaml", ".yml"):
        assert '\nname: "mine"\n' in text
        assert "\n  # Tables that a module may declare. (0 to 100)\n" in text
    else:
        assert '\nname = "mine"\n' in text


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(policies(), st.booleans())
def test_yaml_says_the_same(policy: Policy, told: bool) -> None:
    """Whatever a policy holds is read back from the YAML that is written of it."""
    assert Policy.loads(write_yaml(policy, told=told), "yaml") == policy


@pytest.mark.parametrize(
    ("name", "text"), [("p.toml", 'name = "x"\n'), ("p.json", '{"name": "x"}\n'), ("p.yaml", "name: x\n")]
)
def test_byte_order_mark_is_passed_over(tmp_path: Path, name: str, text: str) -> None:
    """Some editors put one at the beginning of a file."""
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())

    assert Policy.load(path) == Policy(name="x")


@pytest.mark.parametrize(
    ("text", "format_", "problems"),
    [
        ("limits.timeout = '5s'", "toml", ["limits.timeout is not known: did you mean wall_time?"]),
        ("env = {}", "toml", ["env is not known: did you mean environment?"]),
        ("limits.stdot = 5", "toml", ["limits.stdot is not known: did you mean stdout?"]),
        (
            '{"limits": {"fuel": null, "memory": null}, "clock": {"mode": null}}',
            "json",
            [
                (
                    'limits.fuel is null: it must be 1 to 2^63 - 1 units, or "unlimited", or a time such as "~2s"; '
                    "leave it out for the default"
                ),
                "limits.memory is null: it must be 64KiB to 4GiB; leave it out for the default",
                'clock.mode is null: it must be "real", "coarse", "virtual" or "none"; leave it out for the default',
            ],
        ),
        (
            "limits = { memory = nan, wall_time = nan, stdout = inf, stderr = true }",
            "toml",
            [
                "limits.memory is nan: it must be 64KiB to 4GiB",
                'limits.wall_time is nan: it must be 1ms to 315,360,000 seconds, or "unlimited"',
                "limits.stdout is inf: it must be 0 to 256MiB",
                'limits.stderr: true is not a number such as "128MiB"',
            ],
        ),
    ],
)
def test_mistakes_are_told_truly(text: str, format_: Literal["toml", "json"], problems: list[str]) -> None:
    """What is suggested is what was meant, and what is said of a value is so."""
    with pytest.raises(PolicyError) as caught:
        Policy.loads(text, format_)

    assert list(caught.value.problems) == problems


def test_every_mistake_is_told_at_once() -> None:
    """Also where `extends` is wrong, where a section fails, and where fields do not go together."""
    with pytest.raises(PolicyError) as caught:
        Policy.loads(
            """
            extends = "strct"
            [limits]
            nonsense_of_mine = 1
            fuel_refill = 5
            fuel_refill_max = 6
            [environment]
            nonsense_of_mine = 2
            mode = "none"
            names = ["A"]
            secrets = "never"
            [network]
            hosts = [{ host = "example.com", ports = [443] }]
            ports = [443]
            """
        )

    told = [problem.partition(": ")[0] for problem in caught.value.problems]
    assert told == [
        "extends",
        "limits.nonsense_of_mine is not known",
        "limits.fuel_refill_max is 6",
        "environment.nonsense_of_mine is not known",
        'environment.names has no effect where the mode is "none"',
        'environment.secrets has no effect where the mode is "none"',
        'network.hosts has no effect where the mode is "none"',
        'network.ports has no effect where the mode is "none"',
    ]


def test_no_mistake_is_told_of_what_is_right() -> None:
    """The twin of the above: what is wrong elsewhere makes nothing of the rest wrong."""
    with pytest.raises(PolicyError) as caught:
        Policy.loads('extends = "strct"\n[environment]\nmod = "allow"\nnames = ["A"]\n[limits]\nmemory = "64MiB"')

    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        "extends",
        "environment.mod is not known",
    ]
