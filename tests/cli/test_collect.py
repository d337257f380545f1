"""P-LANG-7: files that code leaves come to a folder of the user's. The code chose their names, and reaches no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stockade.cli._collect import open_folder, write_files
from tests.cli.test_code import PATIENT, ran

if TYPE_CHECKING:
    from pathlib import Path


def written(files: dict[str, bytes], folder: Path, *, patterns: tuple[str, ...] = ("*",), force: bool = False) -> bool:
    """Whether all of them were written."""
    return write_files(files, patterns, open_folder(str(folder)), force=force)


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_files_come_out(tmp_path: Path) -> None:
    """With the folders that they lie in, which are made, as the folder itself is."""
    assert written({"a.csv": b"1", "deep/er/b.csv": b"2", "deep/c": b""}, tmp_path / "new" / "out")
    out = tmp_path / "new" / "out"
    assert {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()} == {
        "a.csv": b"1",
        "deep/er/b.csv": b"2",
        "deep/c": b"",
    }
    assert not (out / "a.csv").stat().st_mode & 0o111


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../up", "its name leads elsewhere"),
        ("a/../../up", "its name leads elsewhere"),
        ("/etc/up", "its name leads elsewhere"),
        ("a//b", "its name leads elsewhere"),
        ("", "its name leads elsewhere"),
        ("a\nb", "its name has characters that cannot be shown"),
        ("\x1b[2J", "its name has characters that cannot be shown"),
        ("a\u202eb", "its name has characters that cannot be shown"),
        (".envrc", "its name begins with a dot: give a --collect that does, such as '.*', if you want it"),
        (
            ".git/hooks/pre-commit",
            "its name begins with a dot: give a --collect that does, such as '.*', if you want it",
        ),
        ("link/x", "Not a directory"),
        ("n" * 300, "File name too long"),
    ],
)
def test_a_hostile_name_is_not_taken(
    name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Attack: names that lead outside, that a terminal or other programs obey, or that lie behind a link."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "link").symlink_to(elsewhere)

    assert not written({name: b"hostile", "fine": b"1"}, out)
    told = capsys.readouterr().err
    assert told.endswith(f" is not written: {reason}\n")
    assert told.count("\n") == 1
    assert "\x1b" not in told
    assert names(out) == ["fine", "link"]
    assert (names(elsewhere), names(tmp_path)) == ([], ["elsewhere", "out"])


def test_hidden_files_come_where_they_are_asked_for(tmp_path: Path) -> None:
    """By a pattern that begins with a dot, or has a part that does."""
    assert written({".env": b"1"}, tmp_path, patterns=("*", ".e*"))
    assert written({"a/.b": b"1"}, tmp_path, patterns=("/workspace/a/.b",))


def test_what_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --force; with it, the file is replaced, and a link in its place is, too, not what it leads to."""
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("mine")
    (out / "b").symlink_to(secret)
    (out / "c").mkdir()

    assert not written({"a": b"1", "b": b"2"}, out)
    assert capsys.readouterr().err == (
        "stockade: a is not written: it is there already: use --force to overwrite it\n"
        "stockade: b is not written: it is there already: use --force to overwrite it\n"
    )
    assert ((out / "a").read_text(), (out / "b").is_symlink()) == ("mine", True)

    assert not written({"a": b"1", "b": b"2", "c": b"3"}, out, force=True)
    assert capsys.readouterr().err == "stockade: c is not written: Is a directory\n"
    assert ((out / "a").read_bytes(), (out / "b").read_bytes(), (out / "b").is_symlink()) == (b"1", b"2", False)
    assert secret.read_text() == "of the host"
    assert names(out) == ["a", "b", "c"]


def test_many_that_are_not_written_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A thousand lines would tell no more."""
    assert not written({f".{number}": b"" for number in range(30)}, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines), lines[-1]) == (11, "stockade: 20 more files are not written")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--collect", "*"], "--collect: say where the files go, with -o FOLDER (or print them, with --json)"),
        (["-o", "out"], "-o is for files that the code writes: say which, with --collect PATTERN"),
        (["--force"], "--force is for files that are written to -o FOLDER"),
        (["--collect", "*", "-o", "file"], "-o file: File exists"),
    ],
)
def test_options_that_lack_others_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    """In words, before anything runs."""
    (tmp_path / "file").touch()
    done = ran("python", *words, "-c", "print(1)", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (125, "", f"Error: {message}")


def test_the_command_brings_files_out(tmp_path: Path) -> None:
    """Those that the pattern asks for; a name with a line break in it forges no line."""
    code = "for n in ('a.csv', 'b.txt', 'x\\nstockade: all is well.csv'): open(n, 'w').write('1')"
    done = ran("python", *PATIENT, "--collect", "*.csv", "-o", "out", "-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == (
        "stockade: x\\x0astockade: all is well.csv is not written: its name has characters that cannot be shown\n"
    )
    assert names(tmp_path / "out") == ["a.csv"]
    done = ran("js", *PATIENT, "--collect", "*", "-o", "out", "-c", "std.open('c', 'w').puts('x')", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "c").read_text() == "x"
