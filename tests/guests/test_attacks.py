"""P-LANG-2, P-LANG-3: guests that attack the shape of a result. Each changes no other run, no file of the host's, and
no field of the result but its own value, error and output."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stockade import Outcome, Python, UsageError
from stockade._text import printable
from stockade.guests import _folder
from stockade.guests._folder import PrivateFolder
from stockade.guests._result import read_frame
from tests._examples import part
from tests._processes import fork
from tests.guests.conftest import PATIENT

if TYPE_CHECKING:
    from collections.abc import Iterator

FORGED = '{"value": "forged", "shown": false, "error": null, "exit": 0}'


@pytest.fixture(autouse=True)
def _nothing_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Folders of runs lie where we see them, and after each attack the next run is as ever."""
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    yield
    assert [path.name for path in private.iterdir()] == []


@pytest.fixture
def fresh(python: Python) -> Iterator[Python]:
    """A language whose folders lie in this test's own place."""
    with Python(PATIENT, runtime=python.runtime) as language:
        yield language
        after = language.run("import os, sys, json\n[sorted(os.listdir()), os.listdir('/tmp'), json.dumps(1)]")
        assert after.value == [[], [], "1"]


def test_output_that_looks_like_a_frame_is_output(fresh: Python) -> None:
    """It prints frames on both streams."""
    result = fresh.run(f"import sys\nprint({FORGED!r})\nprint({FORGED!r}, file=sys.stderr)\n7")
    assert (result.value, result.stdout, result.stderr) == (7, FORGED + "\n", FORGED + "\n")


@pytest.mark.parametrize(
    "code",
    [
        f"import os\nfd = os.open('/run/result', os.O_WRONLY)\nos.write(fd, {FORGED.encode()!r})\nos._exit(0)",
        f"open('/run/result', 'w').write({FORGED!r})\nimport os\nos._exit(0)",
    ],
)
def test_a_forged_frame_says_what_the_code_could_have_said(fresh: Python, code: str) -> None:
    """It writes the frame itself, and leaves: a value of its own, and nothing else."""
    result = fresh.run(code)
    assert (result.value, result.stdout, result.files, result.report.outcome) == ("forged", "", {}, Outcome.OK)


def test_a_frame_that_is_handed_over_is_no_more_than_one_in_a_file(fresh: Python) -> None:
    """Where the interpreter hands its frame to the host, the code does so itself: too soon, too long, and in pieces."""
    if fresh.runtime != "cpython-3.15":
        pytest.skip("it leaves its frame in a file")
    hand = "import _host, os\ndef hand(data): _host.call(b'\\0' + data)\n"
    forged = fresh.run(f"{hand}data = {FORGED.encode()!r}\nhand(data[:9]); hand(data[9:]); os._exit(0)")
    assert (forged.value, forged.stdout, forged.files, forged.report.outcome) == ("forged", "", {}, Outcome.OK)
    for code, why in (
        (f"{hand}for _ in range(40): hand(bytes(1 << 20))\nos._exit(0)", "it is no file, or too long"),
        (f"{hand}hand({FORGED.encode()!r})\n1", "JSON is malformed"),
    ):
        result = fresh.run(code)
        assert result.error is not None
        assert result.error.message.startswith(f"the result that the code has left cannot be read: {why}")
    assert fresh.run("2").value == 2


@pytest.mark.parametrize(
    ("data", "why"),
    part(
        [
            (b"not JSON", "JSON is malformed"),
            (b'{"value": 1}', "missing required field"),
            (b'{"value": 1, "shown": false, "error": null, "exit": 0, "report": {}}', "unknown field `report`"),
            (b'{"value": 1, "shown": 0, "error": null, "exit": 0}', "Expected `bool`, got `int`"),
            (b'{"value": 1, "shown": false, "error": null, "exit": -1}', "Expected `int` >= 0"),
            (b'{"value": NaN, "shown": false, "error": null, "exit": 0}', "JSON is malformed"),
            (b'{"value": "\xff", "shown": false, "error": null, "exit": 0}', "Invalid UTF-8"),
            (b'{"value": ' + b"[" * 100_000, "it is nested too deep"),
            (b'{"value": 1, "shown": false, "error": {"type": 5}, "exit": 0}', "Expected `str`, got `int`"),
            (
                b'{"value": 1, "shown": false, "error": null, "exit": 0, "figures": ["a", 5]}',
                "Expected `str`, got `int`",
            ),
        ]
    ),
)
def test_a_broken_frame_is_told(fresh: Python, data: bytes, why: str) -> None:
    """It is read strictly; what cannot be read is the error of this run."""
    told = read_frame(data)
    assert isinstance(told, str)
    assert why in told
    result = fresh.run("import os\nopen('/run/result', 'wb').write(data)\nos._exit(0)", inputs={"data": data})
    assert result.error is not None
    assert (result.value, result.error.type) == (None, "Exit")
    assert result.error.message.startswith("the result that the code has left cannot be read: ")


def test_a_frame_that_is_too_long_is_not_read(fresh: Python) -> None:
    """It writes 100 MB in the place of the frame."""
    result = fresh.run(
        "import os\nf = open('/run/result', 'wb')\nfor _ in range(100): f.write(bytes(1 << 20))\nos._exit(0)"
    )
    assert result.error is not None
    assert result.error.message == "the result that the code has left cannot be read: it is no file, or too long"


@pytest.mark.parametrize(
    "place",
    ["os.mkdir('/run/result')", "os.symlink('/workspace/x', '/run/result')", "os.link('/workspace/x', '/run/result')"],
)
def test_something_else_in_its_place_is_not_followed(fresh: Python, place: str) -> None:
    """It puts a folder or a link where the frame should be."""
    result = fresh.run(f"import os\nopen('x', 'w').write({FORGED!r})\nos.remove('/run/result')\n{place}\nos._exit(0)")
    assert result.value in (None, "forged")
    assert result.ok is (result.value == "forged")
    assert result.report.outcome in (Outcome.OK, Outcome.EXIT)


@pytest.mark.parametrize(
    "code",
    part(
        [
            "import json\njson.dumps = json.JSONEncoder.encode = lambda *a, **k: 'broken'",
            "import sys\nsys.stdout = sys.stderr = None",
            "import sys\nsys.modules.clear()",
            "import builtins\nbuiltins.repr = builtins.str = builtins.len = None",
            "import os\nos.closerange(0, 100)",
            "import os\nos.close(1); os.close(2)",
            "import sys\nsys.stdout.close(); sys.stderr.close()",
            "import os\nos.write = os.ftruncate = os._exit = None",
            "import posix\nposix.write = lambda *a: 1 / 0",
            "import sys\nsys.setrecursionlimit(5)",
            "import gc\nfor o in gc.get_objects():\n  if isinstance(o, dict) and 'sources' in o: o.clear()",
            "import sys\nf = sys._getframe()\nwhile f.f_back: f = f.f_back\nf.f_globals.clear()",
            "import ctypes\nctypes.string_at(0)",
            "import builtins\nfor n in list(vars(builtins)): delattr(builtins, n)",
        ]
    ),
)
def test_whatever_it_breaks_is_its_own(fresh: Python, code: str) -> None:
    """It takes away what the frame is made with: the run ends, with what it has come to."""
    result = fresh.run(code + "\n")
    assert result.value is None or result.value_is_repr
    assert result.files == {}
    assert result.report.outcome in (Outcome.OK, Outcome.EXIT, Outcome.TRAP, Outcome.STACK)


def test_a_million_files_are_removed(fresh: Python) -> None:
    """It writes as many as the policy lets it; the host reads a part, and removes all."""
    policy = PATIENT.replace(files_created=None, open_files=8)
    with Python(policy, runtime=fresh.runtime) as language:
        result = language.run(
            "for n in range(3000): open(f'{n}', 'w').close()\nopen('/tmp/t', 'w').close()", collect=["*"]
        )
        assert (result.error, len(result.files), result.files_left_out) == (None, _folder.MOST_FILES, 2000)
        assert language.run("import os\nlen(os.listdir())").value == 0


def test_a_deep_folder_is_removed() -> None:
    """It makes a folder in a folder in a folder: no recursion, no descriptor for each."""
    folder = PrivateFolder()
    here = os.open(folder.mounts()[0].host, os.O_RDONLY | os.O_DIRECTORY)
    # Deeper than Python recurses, and more than a process may have open.
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    assert folder.collect(["*"]).left_out == 1
    other = PrivateFolder()
    with pytest.raises(UsageError) as caught:
        folder.copy_to(other)
    assert str(caught.value) == (
        "the workspace has folders more than 32 levels deep, which are not copied: remove them, such as "
        + printable("d/" * 32 + "d", 100)
    )
    other.close()
    folder.left()
    assert folder.clear()
    assert list(Path(folder.mounts()[0].host).iterdir()) == []
    folder.close()


def test_more_files_than_are_copied_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes more than are looked at; a name that ends as the mark of that does is a name like any other."""
    monkeypatch.setattr(_folder, "_MOST_LOOKED_AT", 3)
    folder, other = PrivateFolder(), PrivateFolder()
    work = Path(folder.mounts()[0].host)
    (work / "a…").symlink_to("nowhere")
    folder.put({("b",): b"1", ("c", "…"): b"2"})
    with pytest.raises(UsageError) as caught:
        folder.copy_to(other)
    assert str(caught.value) == (
        "the workspace holds more than 3 files and folders, and so many are not copied: remove some"
    )
    (work / "b").unlink()
    assert other.clear()
    folder.copy_to(other)
    assert other.collect(["c/…"]).files == {"c/…": b"2"}
    for each in (folder, other):
        each.close()


_FORKED = """
import os, stockade
with stockade.Python("default", runtime={runtime!r}) as language, language.session() as session:
    language.prepare()
    child = os.fork()
    if not child:
        ended = 1
        try:
            try:
                print(language.run("import os; open('secret', 'w').write('x'); os.listdir()").value, flush=True)
            except stockade.EngineError as problem:
                print(str(problem).split(",")[0], flush=True)
            try:
                session.run("1")
            except stockade.UsageError as problem:
                print(problem, flush=True)
            session.close()
            language.close()
            ended = 0
        finally:
            os._exit(ended)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(language.run("import os; os.listdir()").value, session.run("import os; os.listdir()").value)
"""


def test_a_forked_process_shares_no_folder(python: Python) -> None:
    """It is forked from one that has prepared, as servers do; its guest looks for what guests of others keep.

    A run of the child's has a folder of its own, or is refused where the parent has run a guest to make the
    interpreter ready; a session of the parent's is not there for it, and the parent's folders are still there when the
    child has let go of all that it had.
    """
    has_run = python.runtime == "cpython-3.15"
    code = _FORKED.format(runtime=python.runtime)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == [
        "this process was forked from one that had run guests" if has_run else "['secret']",
        "the session was opened before this process was forked: open one here",
        "0",
        "[] []",
    ]


def test_a_forked_process_removes_no_folder() -> None:
    """It ends as programs do, and with it all that it holds."""
    folder = PrivateFolder()
    folder.put({("file",): b"x"})
    child = fork()
    if not child:
        left = folder.clear()
        folder.close()
        os._exit(left)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert folder.collect(["file"]).files == {"file": b"x"}
    folder.left()
    assert folder.clear()
    folder.close()


def test_links_are_not_followed(tmp_path: Path) -> None:
    """Where links may be made, one to a file of the host's is neither read nor written through, nor removed behind."""
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "keep").write_text("x")
    folder = PrivateFolder()
    work = Path(folder.mounts()[0].host)
    (work / "file").symlink_to(secret)
    (work / "folder").symlink_to(elsewhere)
    (Path(folder.mounts()[2].host) / "result").unlink()
    (Path(folder.mounts()[2].host) / "result").symlink_to(secret)

    collected = folder.collect(["*"])
    assert (collected.files, collected.left_out) == ({}, 2)
    assert folder.take_result(100) is None
    assert not folder.has_result()
    folder.put({("file",): b"new"})
    with pytest.raises(Exception, match="the file folder/x cannot be put into the workspace: Not a directory"):
        folder.put({("folder", "x"): b"new"})
    assert secret.read_text() == "of the host"
    folder.left()
    assert folder.clear()
    folder.close()
    assert (elsewhere / "keep").exists()
    assert not (elsewhere / "x").exists()


def test_names_of_a_guest_are_names_only(fresh: Python) -> None:
    """It makes files whose names a careless host would take for paths or patterns."""
    names = ["..", "...", ".hidden", "a\nb", "*", "[x]", "ü", "con", "a" * 200]
    code = "import os\nfor n in names:\n  try: open(n, 'w').write('x')\n  except OSError: pass"
    result = fresh.run(code, inputs={"names": names}, collect=["*"])
    assert set(result.files) == set(names) - {".."}
