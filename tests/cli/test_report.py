"""`--report`, which prints or writes, and `stockade report schema`.

Holds P-REPORT-6.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from stockade.cli._run import run as run_command
from stockade.report import json_schema
from tests._commands import begun, ran
from tests.cli.test_run import SPEAK_THEN_SLEEP, save, speaker, stockade

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("words", "spelled"),
    [
        (["--report", "app.wasm"], ["--report=", "app.wasm"]),
        (["--report", "out.html", "app.wasm"], ["--report=out.html", "app.wasm"]),
        (["--report", "OUT.HTML", "app.wasm"], ["--report=OUT.HTML", "app.wasm"]),
        (["--report=log", "app.wasm"], ["--report=log", "app.wasm"]),
        (["--report", "--quiet", "app.wasm"], ["--report=", "--quiet", "app.wasm"]),
        (["--report"], ["--report="]),
        (["app.wasm", "--report", "out.html"], ["app.wasm", "--report", "out.html"]),
        (["--", "--report", "out.html"], ["--", "--report", "out.html"]),
        (["--fuel", "--report", "app.wasm"], ["--fuel", "--report", "app.wasm"]),
        (["--fuel=5", "--report", "app.wasm"], ["--fuel=5", "--report=", "app.wasm"]),
        (["-m", "64m", "--report", "a.json", "app.wasm"], ["-m", "64m", "--report=a.json", "app.wasm"]),
        (["-m64m", "--report", "a.txt", "app.wasm"], ["-m64m", "--report=a.txt", "app.wasm"]),
        (["--quiet", "-", "--report"], ["--quiet", "-", "--report"]),
        (["--report", "a.json", "--report", "b.html", "x"], ["--report=a.json", "--report=b.html", "x"]),
    ],
)
def test_a_file_behind_the_option_is_told_from_the_module(words: list[str], spelled: list[str]) -> None:
    """By how its name ends; whatever stands behind the module is the guest's."""
    assert run_command._spelled_out(words) == spelled  # type: ignore[attr-defined]


def test_the_report_goes_into_files_of_every_kind(tmp_path: Path) -> None:
    """HTML with plots, JSON, and text; the terminal has it as well, where that is asked for."""
    html, document, text = (tmp_path / f"report.{kind}" for kind in ("html", "json", "txt"))
    done = stockade(
        "run", "--report", html, "--report", document, f"--report={text}", "--report", save(tmp_path, speaker(b"bye\n"))
    )

    assert (done.returncode, done.stdout) == (0, b"bye\n")
    assert "<polyline" in html.read_text()
    assert json.loads(document.read_text())["stdout"] == "bye\n"
    assert text.read_text() == done.stderr.decode()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["report.html", "report.json", "report.txt", *(path.name for path in tmp_path.glob("*.w*"))]
    )


def test_only_plots_are_sampled_for(tmp_path: Path) -> None:
    """JSON has samples where a page is asked for, too, and else it has none."""
    guest, document = save(tmp_path, speaker(b"bye\n")), tmp_path / "a.json"

    stockade("run", "--report", document, guest)
    assert json.loads(document.read_text())["samples"] == []
    stockade("run", "--report", document, "--report", tmp_path / "a.html", guest)
    assert len(json.loads(document.read_text())["samples"]) >= 2


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    """Attack: a link to a file of the user's under the name of the report. Nothing runs, and the file is as it was."""
    precious, link = tmp_path / "precious", tmp_path / "report.html"
    precious.write_text("mine")
    link.symlink_to(precious)

    done = stockade("run", "--report", link, save(tmp_path, speaker(b"bye\n")))

    assert (done.returncode, done.stdout) == (125, b"")
    assert f"{link} is a link: give the report a file of its own" in done.stderr.decode()
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_what_is_no_plain_file_is_not_written_to(tmp_path: Path, kind: str) -> None:
    """A FIFO would have the command wait for a reader; nothing is waited for, and nothing removed."""
    path = tmp_path / "report.json"
    (path.mkdir if kind == "folder" else lambda: os.mkfifo(path))()

    done = stockade("run", "--report", path, save(tmp_path, speaker(b"bye\n")))

    assert (done.returncode, done.stdout) == (125, b"")
    assert b"give the report a file of its own" in done.stderr
    assert path.is_dir() if kind == "folder" else path.is_fifo()


PLANT = """(module
  (import "wasi_snapshot_preview1" "path_symlink" (func $link (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "precious")
  (data (i32.const 16) "report.json")
  (func (export "_start")
    (if (call $link (i32.const 0) (i32.const 8) (i32.const 3) (i32.const 16) (i32.const 11)) (then unreachable))))"""


def test_a_link_that_the_guest_plants_is_not_followed(tmp_path: Path) -> None:
    """Attack: the report goes into a folder that the guest may write to, and the guest makes its name a link."""
    folder, policy = tmp_path / "shared", tmp_path / "p.toml"
    folder.mkdir()
    (folder / "precious").write_text("mine")
    policy.write_text("[filesystem]\nsymlinks = true\n")

    done = stockade(
        *("run", "--policy", policy, "--dir", f"{folder}::/data::rw", "--report", folder / "report.json"),
        save(tmp_path, PLANT),
    )

    assert (folder / "report.json").is_symlink(), done.stderr
    assert done.returncode == 125
    assert b"report.json is a link: give the report a file of its own" in done.stderr
    assert (folder / "precious").read_text() == "mine"
    assert sorted(path.name for path in folder.iterdir()) == ["precious", "report.json"]


def test_what_was_there_stays_until_the_report_is_whole(tmp_path: Path) -> None:
    """A command that is killed leaves the old report, not half of a new one."""
    path = tmp_path / "report.json"
    path.write_text("old")
    guest = save(tmp_path, SPEAK_THEN_SLEEP)
    process = begun(["run", "--timeout", "60s", "--report", path, guest])
    assert process.stdout is not None
    # By then it has looked at the file, and runs the guest.
    assert process.stdout.read(1)
    process.kill()
    process.communicate()

    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".stockade")] == []


def test_code_is_reported_on_in_files_too(tmp_path: Path) -> None:
    """`stockade python --report out.html`."""
    html = tmp_path / "out.html"
    # To compile the interpreter takes longer than anything else.
    done = ran(["python", "--report", html, "-c", "print(sum(range(1_000_000)))"])

    assert (done.returncode, done.stdout, done.stderr) == (0, b"499999500000\n", b"")
    assert "<polyline" in html.read_text()
    assert "499999500000" in html.read_text()


def test_the_schema_is_printed() -> None:
    """As it is published."""
    done = stockade("report", "schema")

    assert json.loads(done.stdout) == json_schema()
