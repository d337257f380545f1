"""What a process loads when it begins, which is as little as it needs, and how it ends when it is interrupted then.

Holds P-START-1.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

import stockade
from stockade.cli._commands import stockade as command
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from pathlib import Path

_LISTING = """
import atexit, sys
atexit.register(lambda: print(*sorted(set(sys.modules) - before), sep="\\n", file=sys.__stderr__))
before = set(sys.modules)
"""


def loaded(statement: str, *args: str) -> set[str]:
    """The modules that a statement loads in a process of its own, beyond those that Python begins with."""
    done = subprocess.run(
        [sys.executable, "-c", f"{_LISTING}{statement}", *args], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


def of_command(*args: str) -> set[str]:
    """The modules that the command loads."""
    return loaded("import sys; sys.argv[0] = 'stockade'; from stockade.cli import main; main()", *args)


def test_importing_the_package_loads_nothing_else() -> None:
    """Its names are found when they are used."""
    assert loaded("import stockade") == {"__future__", "stockade", "stockade._start", "stockade._version"}


def test_the_version_is_told_without_loading_the_rest() -> None:
    """Scripts ask for it, and people who want to know whether the command is there."""
    assert of_command("--version") == {
        "__future__",
        "stockade",
        "stockade._start",
        "stockade._version",
        "stockade.cli",
    }


def test_the_version_is_told_in_the_same_words_by_every_way() -> None:
    """Alone, which is quick; and beside other options, where click tells it."""
    for args in (["--version"], ["--version", "run"]):
        done = subprocess.run([sys.executable, "-m", "stockade", *args], capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == (f"stockade, version {stockade.__version__}\n", "")


def test_a_run_loads_no_other_command(tmp_path: Path) -> None:
    """Nor what only they need, nor what compiles: the module is in the cache."""
    path, policy = tmp_path / "hello.wasm", tmp_path / "aside.toml"
    path.write_bytes(wat(HELLO).data)
    # What is compiled in a process of its own takes long enough to be kept.
    policy.write_text('limits.compile_process = "always"')
    of_command("run", "--policy", str(policy), str(path))

    modules = of_command("run", str(path))

    assert "stockade.cli._run" in modules
    others = {f"stockade.cli._{name}" for name in ("bench", "cache", "inspect")}
    needless = {
        "stockade.worker._process",
        "stockade.scheduling",
        "asyncio",
        "rich",
        "statistics",
        "tomllib",
        "json.tool",
        # What weaves, validates and compiles, and what inspects modules and policies.
        "stockade.guard._bodies",
        "stockade.guard._proof",
        "stockade.guard._weave",
        "stockade.wasm._instructions",
        "stockade.wasm._scan",
        "stockade.worker._prepare",
        "stockade.worker._subprocess",
        "stockade.modules._inspection",
        "stockade.policy._document",
        "stockade.policy._explain",
        "stockade.policy._yaml",
        "stockade.execution._calibrate",
        # What is for requests, for workers, and for those who ask for more than a run.
        "h11",
        "ssl",
        "stockade.audit",
        "stockade.doctor",
        "stockade.egress",
        "stockade.gate",
        "stockade.isolation._worker",
        "stockade.jail",
        "stockade.learning",
        "stockade.metrics",
        "stockade.monitoring",
    }
    assert not modules & (others | needless)
    # Each takes a quarter of a millisecond. Raise this for what every run needs, and for nothing else.
    assert sum(name.startswith("stockade.") for name in modules) <= 172


def test_garbage_is_looked_for_again_when_a_command_is_loaded(tmp_path: Path) -> None:
    """It is not while modules are loaded: that would be a tenth of the time."""
    path = tmp_path / "hello.wat"
    path.write_text(HELLO)
    code = (
        "import atexit, gc, sys; sys.argv[0] = 'stockade'; from stockade.cli import main;"
        "atexit.register(lambda: print(gc.isenabled(), file=sys.__stderr__)); main()"
    )

    done = subprocess.run([sys.executable, "-c", code, "run", str(path)], capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("hello world\n", "True\n")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("pyhton", "No such command 'pyhton'. Did you mean 'python'?"),
        ("Run", "No such command 'Run'. Did you mean 'run'?"),
        (
            "xyz",
            (
                "No such command 'xyz'. "
                "Choose from audit, bench, cache, completion, doctor, gate, inspect, js, learn, policy, python, "
                "report, run, snapshot, top, trace."
            ),
        ),
    ],
)
def test_a_command_that_is_not_known_is_told_what_was_meant(typed: str, message: str) -> None:
    """Commands that are loaded when they are used are suggested, too."""
    result = CliRunner().invoke(command, [typed])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"Error: {message}"


@pytest.mark.parametrize("group", [[], ["policy"], ["cache"]])
def test_help_says_whole_what_each_command_does(group: list[str]) -> None:
    """In 80 columns nothing is cut."""
    result = CliRunner().invoke(command, [*group, "--help"], terminal_width=80)
    assert "..." not in result.stdout.partition("Commands:")[2]


def test_help_of_the_group_lists_every_command() -> None:
    """They are loaded for that: each tells what it does."""
    done = subprocess.run([sys.executable, "-m", "stockade", "--help"], capture_output=True, text=True, check=True)

    listed = [line.split()[0] for line in done.stdout.partition("Commands:\n")[2].splitlines()]
    assert listed == [
        *(
            "audit",
            "bench",
            "cache",
            "completion",
            "doctor",
            "gate",
            "inspect",
            "js",
            "learn",
            "policy",
            "python",
            "report",
            "run",
            "snapshot",
            "top",
            "trace",
        )
    ]


_INTERRUPTED_WHILE_LOADING = """
import builtins, os, signal, sys
# What runs the tests in the background may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
real = builtins.__import__
def slow(name, *args, **kwargs):
    if name == {module!r}:
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *args, **kwargs)
builtins.__import__ = slow
sys.argv = ["stockade", "run", "none.wasm"]
from stockade.cli import main
main()
"""


@pytest.mark.parametrize("module", ["click", "stockade.errors", "stockade.sandbox", "msgspec"])
def test_an_interrupt_while_modules_are_loaded_ends_quietly(module: str) -> None:
    """Ctrl-C right after the command was typed: one line and the usual status, no traceback."""
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_WHILE_LOADING.format(module=module)], capture_output=True, text=True
    )

    # An empty line may come first: the ^C of the terminal stands before it.
    assert (done.returncode, done.stdout, done.stderr.removeprefix("\n")) == (130, "", "stockade: interrupted\n")


def test_an_interrupt_with_nobody_to_tell_is_quiet() -> None:
    """The attack: stderr is closed, so that telling of the interrupt fails."""
    code = _INTERRUPTED_WHILE_LOADING.format(module="click")
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2))

    assert (done.returncode, done.stdout) == (130, b"")
