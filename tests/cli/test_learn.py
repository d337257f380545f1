"""`stockade learn`, `stockade python --learn` and `stockade js --learn`: a file that the next run goes by.

Holds P-LEARN-1.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from stockade import Policy
from tests._commands import ran as begun
from tests.conftest import HELLO

if TYPE_CHECKING:
    from pathlib import Path


OPENS = rb"""(module
  (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "a.txt")
  (func (export "_start")
    (if (call $open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 5) (i32.const 0) (i64.const 2) (i64.const 0)
      (i32.const 0) (i32.const 32)) (then unreachable))))"""


def ran(*args: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command, done."""
    done = begun(args, stdin.encode())
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    """A guest that says hello."""
    path = tmp_path / "hello.wat"
    path.write_text(HELLO)
    return path


def test_a_file_that_the_next_run_goes_by(hello: Path, tmp_path: Path) -> None:
    """What the guest writes comes as with `run`, and the policy goes to the file."""
    learned = tmp_path / "learned.toml"
    done = ran("learn", "-o", learned, hello)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello world\n", "")
    assert Policy.load(learned).wasi.allow == ("fd_write",)
    done = ran("run", "--policy", learned, hello)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello world\n", "")


def test_on_stdout_there_is_the_policy_alone(hello: Path) -> None:
    """Without -o."""
    done = ran("learn", hello)
    assert done.returncode == 0
    assert Policy.loads(done.stdout).wasi.allow == ("fd_write",)
    assert "hello world\n" not in done.stdout


def test_what_was_learned_before_is_kept(hello: Path, tmp_path: Path) -> None:
    """--merge adds to a file."""
    other = tmp_path / "other.wat"
    other.write_text(
        HELLO.replace("fd_write", "fd_read").replace("i32.const 1) (i32.const 0)", "i32.const 0) (i32.const 0)")
    )
    learned = tmp_path / "learned.toml"
    assert ran("learn", "-o", learned, other).returncode == 0
    assert Policy.load(learned).wasi.allow == ("fd_read",)
    assert ran("learn", "-o", learned, "--merge", learned, hello).returncode == 0
    assert Policy.load(learned).wasi.allow == ("fd_read", "fd_write")


def test_a_run_that_fails_is_told(tmp_path: Path) -> None:
    """It may have learned too little."""
    trap = tmp_path / "trap.wat"
    trap.write_text('(module (func (export "_start") unreachable))')
    done = ran("learn", trap)
    assert done.returncode == 134
    told = (
        "stockade: the run did not end well (trapped: unreachable instruction executed): the policy permits what it did"
    )
    assert f"{told} until then\n" in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["learn", "-"], "MODULE is read a second time to learn from it: give the name of a file"),
        (["learn", "-o", "/nowhere/at/all", "HELLO"], "/nowhere/at/all cannot be written: No such file or directory"),
        (
            ["python", "--merge", "x", "-c", "1"],
            "--merge says what is added to what is learned: give --learn FILE, too",
        ),
        (["python", "--learn", "x", "--trace", "-c", "1"], "--trace and --learn are for runs of their own"),
    ],
)
def test_mistakes(args: list[str], message: str, hello: Path) -> None:
    """They are told in words."""
    done = ran(*(str(hello) if arg == "HELLO" else arg for arg in args))
    assert done.returncode == 125
    assert message in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "code", "more"),
    [
        ("python", "print(open('/data/in/x').read())", "open('/data/in/y')"),
        ("python", "print(open('/data/in/x').read())", "open('/data/other/x')"),
        ("python", "import os; print(sorted(os.listdir('/data/in')), open('/data/in/x').read())", "open('/data/in/y')"),
        ("python", "open('/data/in/new', 'w').write('x')", "open('/data/in/y', 'w')"),
        ("js", "console.log(6 * 7)", "require('fs').readFileSync('/data/other/x')"),
    ],
)
def test_code_is_learned_from(language: str, code: str, more: str, tmp_path: Path) -> None:
    """It runs again under what was learned, and cannot open one file more. Holds P-LEARN-1."""
    for name in ("in", "other"):
        (tmp_path / name).mkdir()
        for file in ("x", "y"):
            (tmp_path / name / file).write_text(name)
    learned = tmp_path / "learned.toml"
    first = ran(language, "--learn", learned, "-v", f"{tmp_path}:/data:rw", "-c", code)
    assert (first.returncode, first.stderr) == (0, "")
    assert [mount.guest for mount in Policy.load(learned).filesystem.mounts] == (
        ["/data/in"] if language == "python" else []
    )
    again = ran(language, "--policy", learned, "-c", code)
    assert (again.returncode, again.stdout, again.stderr) == (0, first.stdout, "")
    refused = ran(language, "--policy", learned, "-c", f"{code}\n{more}")
    assert refused.returncode != 0
    assert (tmp_path / "in" / "y").read_text() == "in"
    if "/data/in/y" in more:
        assert "path: tried to open /data/in/y, which /data/in is not granted for (only) → deny" in refused.stderr


@pytest.mark.slow
def test_code_is_traced() -> None:
    """The interpreter's calls, on stderr."""
    done = ran("python", "--trace", "-c", "print(6 * 7)")
    assert (done.returncode, done.stdout) == (0, "42\n")
    assert 'fd_write(1, "42\\n") = 3\n' in done.stderr


def test_what_happens_in_a_worker_is_learned(tmp_path: Path) -> None:
    """The same policy as of a run in the command's own process, but for what it is asked to demand."""
    guest, data = tmp_path / "guest.wat", tmp_path / "data"
    guest.write_bytes(OPENS)
    data.mkdir()
    (data / "a.txt").write_text("content")
    apart = tmp_path / "apart.toml"
    apart.write_text('isolation = "process"')
    found = []
    for name, words in (
        ("here", ()),
        ("there", ("--isolation", "process")),
        ("demanded", ("--policy", apart)),
    ):
        learned = tmp_path / f"{name}.toml"
        done = ran("learn", *words, "-o", learned, "-v", f"{data}:/data", guest)
        assert (done.returncode, done.stderr) == (0, "")
        found.append(Policy.load(learned))
    # How long it took, and how much fuel that is, differs from run to run.
    here, there, demanded = (policy.replace(wall_time=1.0, name="learned") for policy in found)
    assert here.filesystem.mounts[0].only == ("a.txt",)
    assert there == here
    assert demanded == here.replace(isolation="process")
    assert ran("run", "--policy", tmp_path / "demanded.toml", guest).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("language", ["python", "js"])
def test_what_code_does_in_a_worker_is_learned(language: str, tmp_path: Path) -> None:
    """And permits it again."""
    learned = tmp_path / "learned.toml"
    code = "print(6 * 7)" if language == "python" else "console.log(6 * 7)"

    first = ran(language, "--isolation", "process", "--learn", learned, "-c", code)
    assert (first.returncode, first.stdout) == (0, "42\n")
    again = ran(language, "--policy", learned, "-c", code)
    assert (again.returncode, again.stdout, again.stderr) == (0, "42\n", "")
