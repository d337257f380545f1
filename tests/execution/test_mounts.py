"""Mounts: what may be granted, and that nothing else is reached.

Holds P-FS-1 and P-FS-2.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import Module, Mount, Policy, PolicyError, Sandbox, StockadeError
from stockade.engine import library_folder
from stockade.system import _mount_table
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PERM, NOENT, BADF = 63, 44, 8
"""Errno values of WASI."""

# Tells the guest's own name and the name of the first mount.
NAMES = """
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_prestat_get" (func $mount (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_prestat_dir_name" (func $name (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func $show (param $at i32) (param $size i32)
    (i32.store (i32.const 16) (local.get $at))
    (i32.store (i32.const 20) (local.get $size))
    (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 32))))
  (func (export "_start")
    (drop (call $sizes (i32.const 0) (i32.const 4)))
    (drop (call $args (i32.const 64) (i32.const 1024)))
    (call $show (i32.const 1024) (i32.load (i32.const 4)))
    (drop (call $mount (i32.const 3) (i32.const 8)))
    (drop (call $name (i32.const 3) (i32.const 2048) (i32.load (i32.const 12))))
    (call $show (i32.const 2048) (i32.load (i32.const 12)))))
"""

# Opens "etc/passwd" in the folder with the number 3, and leaves with the errno; `/` stands before it in memory.
PASSWD = """
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "/etc/passwd")
  (func (export "_start")
    (call $exit (call $open
      (i32.const 3) (i32.const 0) (i32.const {at}) (i32.const {size}) (i32.const 0)
      (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16)))))
"""


def sandbox(*mounts: Mount) -> Sandbox:
    """A sandbox with these mounts and time to spare."""
    return Sandbox(Policy().replace(mounts=mounts, wall_time=30.0, fuel=None, delete=True, symlinks=True))


def refusal(*mounts: Mount) -> str:
    """Why these mounts are refused."""
    with pytest.raises(PolicyError) as caught:
        sandbox(*mounts)
    return str(caught.value)


def outcomes(python: Module, box: Sandbox, expressions: Iterable[str]) -> dict[str, object]:
    """Evaluates expressions in CPython in the sandbox: the value of each, or the errno it failed with."""
    code = (
        "import os, sys\n"
        "found = {}\n"
        f"for expression in {list(expressions)!r}:\n"
        "    try:\n"
        "        found[expression] = eval(expression)\n"
        "    except OSError as problem:\n"
        "        found[expression] = problem.errno\n"
        "print(found)\n"
    )
    report = box.run(python, ["-c", code])
    assert report.ok, report.stderr
    found: dict[str, object] = ast.literal_eval(report.stdout.decode())
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Folders `a` (with `sub`), `b` and `out`; links in `a`, some of which lead out of it."""
    for name in ("a", "a/sub", "b", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "f").write_text("in a")
    (tmp_path / "a" / "sub" / "f").write_text("in sub")
    (tmp_path / "b" / "f").write_text("in b")
    (tmp_path / "out" / "secret").write_text("secret")
    for link, target in {
        "inside": "f",
        "folder_inside": "sub",
        "outside": "../out/secret",
        "outside_absolute": str(tmp_path / "out" / "secret"),
        "inside_absolute": str(tmp_path / "a" / "f"),
        "folder_outside": "../out",
    }.items():
        (tmp_path / "a" / link).symlink_to(target)
    return tmp_path


def test_missing_folder_is_refused(tree: Path) -> None:
    """The attack: a typo in a path grants nothing, or another folder, without a word."""
    for name in ("absent", "absent/sub", "a/f/sub"):
        path = f"{tree}/{name}"
        assert refusal(Mount(path, "/data")) == f"the mount /data cannot be made: {path} does not exist"

    (tree / "dangling").symlink_to("absent")
    path = f"{tree}/dangling"
    assert refusal(Mount(path, "/data")) == f"the mount /data cannot be made: {path} does not exist"
    sandbox(Mount(f"{tree}/a", "/data"))


def test_what_is_not_a_folder_is_refused(tree: Path) -> None:
    """Only folders can be granted."""
    os.mkfifo(tree / "fifo")

    for name in ("a/f", "fifo", "a/outside"):
        path = f"{tree}/{name}"
        assert refusal(Mount(path, "/data")) == f"the mount /data cannot be made: {path} is not a folder"
    sandbox(Mount(f"{tree}/a/folder_inside", "/data"))


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is readable to root")
def test_unreadable_folder_is_refused(tree: Path) -> None:
    """What cannot be granted as written is refused before anything runs."""
    path = tree / "a"
    path.chmod(0o500)
    sandbox(Mount(str(path), "/data"))
    assert refusal(Mount(str(path), "/data", "rw")) == (
        f"the mount /data cannot be made: {path} cannot be read and written by this user"
    )

    path.chmod(0o000)
    try:
        assert (
            refusal(Mount(str(path), "/data")) == f"the mount /data cannot be made: {path} cannot be read by this user"
        )
    finally:
        path.chmod(0o700)


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (("a", "/x", "ro"), ("a", "/y", "rw"), "a"),
        (("a", "/x", "rw"), ("a", "/y", "ro"), "a"),
        (("a", "/x", "rw"), ("a/sub", "/y", "ro"), "a/sub"),
        (("a", "/x", "ro"), ("a/sub", "/y", "rw"), "a/sub"),
        (("a/sub", "/x", "ro"), ("a", "/y", "rw"), "a/sub"),
        (("a", "/x", "rw"), ("link/sub", "/y", "ro"), "a/sub"),
        (("a", "/x", "ro"), ("link/sub", "/y", "rw"), "a/sub"),
        (("link", "/x", "rw"), ("a/folder_inside", "/y", "ro"), "a/sub"),
        (("a", "/x", "rw"), ("b/../a/./sub", "/y", "ro"), "a/sub"),
        ((".", "/x", "rw"), ("a", "/y", "ro"), "a"),
    ],
    ids=lambda value: f"{value[0]} {value[2]}" if isinstance(value, tuple) else "",
)
def test_one_folder_with_two_rights_is_refused(
    tree: Path, first: tuple[str, str, str], second: tuple[str, str, str], shared: str
) -> None:
    """The attack: what is read-only under one name is written to through another."""
    (tree / "link").symlink_to("a")
    mounts = [Mount(f"{tree}/{host}", guest, mode) for host, guest, mode in (first, second)]  # type: ignore[arg-type]

    assert refusal(*mounts) == (
        f"the mounts {first[1]} ({first[2]}) and {second[1]} ({second[2]}) share the folder {tree}/{shared} "
        "with different rights: what one forbids the other would allow. "
        "Give both the same mode, or mount separate folders"
    )
    sandbox(*(Mount(mount.host, mount.guest, "ro") for mount in mounts))


def test_folders_with_a_common_beginning_are_not_nested(tree: Path) -> None:
    """The twin of the above: `data2` does not lie in `data`."""
    for name in ("data", "data2"):
        (tree / name).mkdir()

    sandbox(Mount(f"{tree}/data", "/x", "ro"), Mount(f"{tree}/data2", "/y", "rw"))


@pytest.mark.parametrize(
    ("first", "second"), [("/x", "/x"), ("/x", "/x/"), ("/", "//"), ("/x", "//x"), ("/x/y", "/x//y")], ids=str
)
def test_two_folders_at_one_place_are_refused(tree: Path, first: str, second: str) -> None:
    """The attack: of two folders at one place, the guest gets the one that nobody meant."""
    message = refusal(Mount(f"{tree}/a", first), Mount(f"{tree}/b", second))

    assert message == f"two folders are mounted at {first}: {tree}/a and {tree}/b"
    sandbox(Mount(f"{tree}/a", "/x"), Mount(f"{tree}/b", "/xy"), Mount(f"{tree}/out", "/"))


@pytest.mark.parametrize(
    ("guest", "shown"),
    [
        ("data", "'data'"),
        ("./data", "'./data'"),
        ("/data/../etc", "'/data/../etc'"),
        ("/..", "'/..'"),
        ("/data/.", "'/data/.'"),
        ("", "''"),
        ("/da\0ta", "'/da\\x00ta'"),
    ],
)
def test_odd_guest_paths_are_refused(guest: str, shown: str) -> None:
    """The attack: a mount whose name means another place to the guest than to the reader of the policy."""
    with pytest.raises(PolicyError) as caught:
        Mount(".", guest)

    assert str(caught.value) == (
        f'mount.guest is {shown}: it must be an absolute path without . or .., such as "/data"'
    )
    assert Mount(".", "/..data/.hidden").guest == "/..data/.hidden"


@pytest.mark.parametrize(("host", "shown"), [("", "''"), ("/da\0ta", "'/da\\x00ta'")])
def test_odd_host_paths_are_refused(host: str, shown: str) -> None:
    """The attack: a path that the system would cut at the zero byte."""
    with pytest.raises(PolicyError) as caught:
        Mount(host, "/data")

    assert str(caught.value) == f'mount.host is {shown}: it must be the path of a folder, such as "./data"'


@pytest.mark.parametrize(
    ("mode", "hint"),
    [("RW", '; did you mean "rw"?'), ("write", ""), ("none", ""), ("", ""), ("r", '; did you mean "rw"?')],
)
def test_odd_modes_are_refused(mode: str, hint: str) -> None:
    """The attack: a misspelt mode silently becomes another one."""
    with pytest.raises(PolicyError) as caught:
        Mount(".", "/data", mode)  # type: ignore[arg-type]

    assert str(caught.value) == f'mount.mode is {mode!r}: it must be "ro" or "rw"{hint}'
    assert [Mount(".", "/data").mode, Mount(".", "/data", "rw").mode] == ["ro", "rw"]


def test_paths_that_are_too_long_are_refused(tree: Path) -> None:
    """A path that no system has is a policy error like others, in a message of a fit length."""
    message = refusal(Mount(f"{tree}/{'x' * 5000}", "/data"))

    assert message.startswith("the mount /data ")
    assert len(message) < 1000


def test_paths_are_escaped_in_messages(tree: Path) -> None:
    """The attack: a policy from elsewhere names paths that steer the terminal of whoever checks it."""
    mounts = [Mount(f"{tree}/\x1b[31m", "/\x1b[32m"), Mount(f"{tree}/a", "/\x1b[32m"), Mount(f"{tree}/b", "/\x1b[32m")]

    messages = [refusal(mounts[0]), refusal(*mounts[1:])]

    assert not any("\x1b" in message for message in messages)
    assert all(r"\x1b[32m" in message for message in messages)


@pytest.mark.slow
def test_two_folders_are_reached_by_their_names(tree: Path, python: Module) -> None:
    """Each folder has its own name and its own rights."""
    box = sandbox(Mount(f"{tree}/a", "/a"), Mount(f"{tree}/b", "/deep/b", "rw"))

    found = outcomes(
        python,
        box,
        [
            "open('/a/f').read()",
            "open('/deep/b/f').read()",
            "open('/deep/b/new', 'w').write('new')",
            "open('/a/new', 'w').write('new')",
            "open('/b/f').read()",
            "open('/a/../deep/b/f').read()",
        ],
    )

    assert list(found.values()) == ["in a", "in b", 3, PERM, NOENT, PERM]
    assert (tree / "b" / "new").read_text() == "new"
    assert not (tree / "a" / "new").exists()


def test_read_only_folder_stays_as_it_is(tree: Path, python: Module) -> None:
    """The attack: every call that changes a folder is tried on a read-only one."""
    attempts = [
        "open('/a/new', 'w')",
        "open('/a/new', 'x')",
        "open('/a/f', 'w')",
        "open('/a/f', 'a')",
        "open('/a/f', 'r+')",
        "os.truncate('/a/f', 0)",
        "os.unlink('/a/f')",
        "os.mkdir('/a/new')",
        "os.rmdir('/a/sub')",
        "os.rename('/a/f', '/a/new')",
        "os.rename('/a/f', '/b/new')",
        "os.rename('/b/f', '/a/f')",
        "os.link('/a/f', '/a/new')",
        "os.link('/a/f', '/b/new')",
        "os.symlink('f', '/a/new')",
        "os.utime('/a/f', (1, 1))",
    ]
    box = sandbox(Mount(f"{tree}/a", "/a"), Mount(f"{tree}/b", "/b", "rw"))
    before = {path: path.lstat() for path in sorted(tree.rglob("*"))}

    found = outcomes(python, box, attempts)

    assert found == dict.fromkeys(attempts, PERM)
    after = {path: path.lstat() for path in sorted(tree.rglob("*"))}
    assert [*after] == [*before]
    for path, status in before.items():
        assert (after[path].st_size, after[path].st_mtime_ns, after[path].st_nlink) == (
            status.st_size,
            status.st_mtime_ns,
            status.st_nlink,
        )


def test_writable_folder_can_be_changed(tree: Path, python: Module) -> None:
    """The twin of the above: the same calls work where they are allowed."""
    box = sandbox(Mount(f"{tree}/a", "/a", "rw"))

    found = outcomes(
        python,
        box,
        [
            "open('/a/new', 'x').close()",
            "open('/a/f', 'a').write('!')",
            "os.truncate('/a/new', 3)",
            "os.mkdir('/a/folder')",
            "os.rmdir('/a/folder')",
            "os.rename('/a/new', '/a/newer')",
            "os.link('/a/newer', '/a/newest')",
            "os.unlink('/a/newer')",
            "os.utime('/a/newest', (1, 1))",
        ],
    )

    assert [value for value in found.values() if value is not None] == [1]
    assert (tree / "a" / "f").read_text() == "in a!"
    assert (tree / "a" / "newest").stat().st_size == 3


def test_nothing_outside_a_mount_is_reached(tree: Path, python: Module) -> None:
    """The attack: `..`, absolute paths and links that lead out of the mount."""
    attempts = {
        "open('/a/../out/secret').read()": PERM,
        "open('/a/sub/../../out/secret').read()": PERM,
        "open('/a/" + "../" * 20 + "etc/passwd').read()": PERM,
        f"open({str(tree / 'out' / 'secret')!r}).read()": NOENT,
        "open('/etc/passwd').read()": NOENT,
        "open('../out/secret').read()": NOENT,
        "open('/proc/self/environ').read()": NOENT,
        "open('/a/outside').read()": PERM,
        "open('/a/outside_absolute').read()": PERM,
        "open('/a/inside_absolute').read()": PERM,
        "open('/a/folder_outside/secret').read()": PERM,
        "open('/a/folder_outside/../out/secret').read()": PERM,
        "open('/a/outside', 'w')": PERM,
        "open('/a/folder_outside/new', 'w')": PERM,
        "os.listdir('/a/folder_outside')": PERM,
        "os.listdir('/')": NOENT,
        "os.listdir('/a/..')": PERM,
        "os.symlink('/etc/passwd', '/a/planted')": PERM,
    }

    assert outcomes(python, sandbox(Mount(f"{tree}/a", "/a", "rw")), attempts) == attempts
    assert [path.name for path in (tree / "out").iterdir()] == ["secret"]
    assert (tree / "out" / "secret").read_text() == "secret"


def test_links_that_a_guest_plants_lead_nowhere(tree: Path, python: Module) -> None:
    """The attack: a guest makes a link that leads out of its folder, and opens it."""
    box = sandbox(Mount(f"{tree}/a", "/a", "rw"))

    found = outcomes(
        python,
        box,
        [
            "os.symlink('../out/secret', '/a/planted') or 'planted'",
            "open('/a/planted').read()",
            "open('/a/planted', 'w').write('PWND')",
        ],
    )

    assert list(found.values())[1:] == [PERM, PERM]
    assert (tree / "out" / "secret").read_text() == "secret"


def test_links_inside_a_mount_are_followed(tree: Path, python: Module) -> None:
    """The twin of both: links and `..` that stay inside the mount work."""
    expected = {
        "open('/a/inside').read()": "in a",
        "open('/a/folder_inside/f').read()": "in sub",
        "open('/a/sub/../f').read()": "in a",
        "os.listdir('/a/folder_inside')": ["f"],
        "os.readlink('/a/outside')": "../out/secret",
    }

    assert outcomes(python, sandbox(Mount(f"{tree}/a", "/a")), expected) == expected


@pytest.mark.parametrize(("at", "size"), [(0, 11), (1, 10)], ids=["absolute", "relative"])
def test_no_filesystem_by_default(at: int, size: int) -> None:
    """The attack: a correctly built guest opens /etc/passwd in the first folder."""
    guest = wat(PASSWD.format(at=at, size=size))

    report = Sandbox().run(guest)

    assert report.exit_code == BADF
    assert report.usage.calls == {"path_open": 1, "proc_exit": 1}
    assert report.usage.files_opened == 0


def test_the_same_guest_opens_what_it_was_granted(tree: Path) -> None:
    """The twin of the above: with a folder that has such a file, the relative path opens; the absolute one does not."""
    (tree / "a" / "etc").mkdir()
    (tree / "a" / "etc" / "passwd").write_text("granted")
    box = sandbox(Mount(f"{tree}/a", "/"))

    relative = box.run(wat(PASSWD.format(at=1, size=10)))
    absolute = box.run(wat(PASSWD.format(at=0, size=11)))

    assert (relative.exit_code, relative.usage.files_opened) == (0, 1)
    assert (absolute.exit_code, absolute.usage.files_opened) == (PERM, 0)


def test_host_paths_are_not_told_to_the_guest(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a guest learns the host's user and folder names from its own name and its mounts."""
    path = tree / "guest.wat"
    path.write_text(NAMES)

    report = sandbox(Mount(f"{tree}/a", "/data")).run(path)

    assert report.stdout == b"main.wasm\0/data"


def test_relative_host_paths_are_from_the_current_folder(
    tree: Path, python: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Python, `Mount("a", …)` means what `open("a")` would mean when the sandbox was made."""
    monkeypatch.chdir(tree)

    assert outcomes(python, sandbox(Mount("a", "/a")), ["open('/a/f').read()"]) == {"open('/a/f').read()": "in a"}


def test_folder_that_vanishes_is_told(tree: Path) -> None:
    """A folder that was there when the sandbox was made and is gone at a run is an error, not an empty folder."""
    (tree / "new").mkdir()
    box = sandbox(Mount(f"{tree}/new", "/b"))
    assert box.run(wat(NAMES)).stdout == b"main.wasm\0/b"
    (tree / "new").rmdir()

    with pytest.raises(PolicyError) as caught:
        box.run(wat(NAMES))

    assert str(caught.value) == f"the mount /b has lost its folder: {tree}/new was removed"


def test_folder_that_is_renamed_stays_granted(tree: Path, python: Module) -> None:
    """What was granted is the folder, wherever it goes, and never another one that comes to its old place."""
    box = sandbox(Mount(f"{tree}/b", "/b"))
    names = sorted(entry.name for entry in (tree / "b").iterdir())
    (tree / "b").rename(tree / "elsewhere")
    (tree / "b").mkdir()
    (tree / "b" / "other").write_text("not granted")

    assert outcomes(python, box, ["sorted(os.listdir('/b'))"]) == {"sorted(os.listdir('/b'))": names}


def replace_by_a_link(python: Module, box: Sandbox, seen: str) -> list[object]:
    """What the guest sees in its folder `/sub` before and after it has put a link in its place."""
    code = "os.rename('/a/sub', '/a/old') or os.symlink('../out', '/a/sub')"
    before = outcomes(python, box, ["os.listdir('/sub')"])
    outcomes(python, box, [code])
    try:
        after = outcomes(python, box, [seen])
    except StockadeError:
        after = {}
    return [*before.values(), *after.values()]


@pytest.mark.parametrize("seen", ["os.listdir('/sub')", "open('/sub/secret').read()"])
def test_guest_cannot_exchange_a_folder_that_it_is_granted(tree: Path, python: Module, seen: str) -> None:
    """The attack: of two nested folders, a guest replaces the inner one by a link that leads out of both,
    and is granted what the link leads to in the next run.
    """
    mounts = [Mount(f"{tree}/a", "/a", "rw"), Mount(f"{tree}/a/sub", "/sub", "rw")]
    try:
        box = sandbox(*mounts)
    except PolicyError:
        return  # Refusing nested folders where one can be written to is an answer, too.

    answers = replace_by_a_link(python, box, seen)

    assert answers[0] == ["f"]
    assert ["secret"] not in answers
    assert "secret" not in answers


def test_granted_folder_that_the_host_replaces_by_a_link_is_not_followed(tree: Path, python: Module) -> None:
    """The attack: between two runs, whoever may write beside the folder puts a link in its place."""
    box = sandbox(Mount(f"{tree}/b", "/b"))
    assert outcomes(python, box, ["os.listdir('/b')"]) == {"os.listdir('/b')": ["f"]}
    (tree / "b").rename(tree / "gone")
    (tree / "b").symlink_to("out")

    try:
        found = outcomes(python, box, ["os.listdir('/b')"])
    except StockadeError:
        return

    assert found != {"os.listdir('/b')": ["secret"]}


def test_folders_that_the_host_imports_from_are_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a guest leaves a Python module where the host will look for one, and so runs code outside.

    Read-only is fine, and so is a folder beside it, or below it.
    """
    modules, beside, below = tmp_path / "app", tmp_path / "data", tmp_path / "app" / "out"
    below.mkdir(parents=True)
    beside.mkdir()
    monkeypatch.chdir(modules)
    for entry in (str(modules), ""):
        monkeypatch.setattr(sys, "path", [entry, *(place for place in sys.path if place not in ("", str(modules)))])
        for folder in (modules, tmp_path):
            with pytest.raises(PolicyError) as caught:
                Sandbox(Policy().replace(mounts=[Mount(str(folder), "/work", "rw")]))
            assert str(caught.value) == (
                f"the mount /work is writable and covers {modules}, where this process looks for Python modules: a "
                "guest could leave code there that the host would run. Mount it read-only, or a folder beside it"
            )
        for folder, mode in ((modules, "ro"), (beside, "rw"), (below, "rw")):
            Sandbox(Policy().replace(mounts=[Mount(str(folder), "/work", mode)]))


def places() -> dict[str, tuple[Path, str]]:
    """Folders that no guest may write to, and how that is told."""
    runs = "a guest could leave code there that the host would run"
    program = Path(sys.executable).resolve()
    package = Path(stockade.__file__).parent.resolve()
    engine = library_folder().resolve() / "wasmtime"
    library = Path(os.__file__).parent.resolve()
    modules = Path(sysconfig.get_path("purelib")).resolve()
    return {
        "interpreter": (program.parent, f"covers {program}, where the Python interpreter is: {runs}"),
        "library": (library, f"covers {library}, where this process looks for Python modules: {runs}"),
        "in the library": (library / "json", f"lies in {library}, where this process looks for Python modules: {runs}"),
        "stockade": (package, f"covers {package}, where code of Stockade is: {runs}"),
        "in stockade": (package / "guard", f"lies in {package}, where code of Stockade is: {runs}"),
        "wasmtime": (engine, f"lies in {modules}, where this process looks for Python modules: {runs}"),
    }


@pytest.mark.parametrize("name", places())
def test_where_code_of_the_host_is_cannot_be_written(name: str) -> None:
    """The attack: a guest changes the interpreter that compiles its next module, its library, or ours.

    Read-only is fine.
    """
    folder, told = places()[name]

    assert refusal(Mount(str(folder), "/work", "rw")) == (
        f"the mount /work is writable and {told}. Mount it read-only, or a folder beside it"
    )
    sandbox(Mount(str(folder), "/work"))


@pytest.mark.parametrize("prefix", ["prefix", "exec_prefix", "base_prefix", "base_exec_prefix"])
def test_where_the_interpreter_is_installed_cannot_be_written(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for where it says that it is; a folder below, or beside, is not the interpreter's."""
    installed = tmp_path / "python"
    (installed / "data").mkdir(parents=True)
    monkeypatch.setattr(sys, prefix, str(installed))

    for folder in (installed, tmp_path):
        assert refusal(Mount(str(folder), "/work", "rw")) == (
            f"the mount /work is writable and covers {installed}, where the Python interpreter is: a guest could leave "
            "code there that the host would run. Mount it read-only, or a folder beside it"
        )
    sandbox(Mount(str(installed / "data"), "/work", "rw"))


@pytest.mark.parametrize("kind", ["libraries", "bytecode", "imported"])
def test_where_code_may_come_from_cannot_be_written(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a library, a file of bytecode, or a module beside those that were imported, left by a guest."""
    code = tmp_path / "code"
    (code / "data").mkdir(parents=True)
    if kind == "libraries":
        monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{code}")
        found = "this process looks for libraries"
    elif kind == "bytecode":
        monkeypatch.setattr(sys, "pycache_prefix", str(code))
        found = "this process looks for Python modules"
    else:
        plugin = ModuleType("plugin")
        plugin.__file__ = str(code / "plugin.py")
        monkeypatch.setitem(sys.modules, "plugin", plugin)
        found = "modules of this process come from"

    for folder in (code, tmp_path):
        assert refusal(Mount(str(folder), "/work", "rw")) == (
            f"the mount /work is writable and covers {code}, where {found}: a guest could leave code there that "
            "the host would run. Mount it read-only, or a folder beside it"
        )
        sandbox(Mount(str(folder), "/work"))
    below = Mount(str(code / "data"), "/work", "rw")
    if kind == "bytecode":
        assert refusal(below).startswith(f"the mount /work is writable and lies in {code}, where {found}: ")
    else:
        sandbox(below)


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell what is loaded")
def test_where_libraries_were_loaded_from_cannot_be_written() -> None:
    """The attack: a guest changes the C library, which the next process of the host's runs."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()]
    folder = Path(next(words[5] for words in maps if words[5:] and "/libc." in words[5])).parent

    assert refusal(Mount(str(folder), "/work", "rw")) == (
        f"the mount /work is writable and covers {folder}, where libraries of this process come from: a guest could "
        "leave code there that the host would run. Mount it read-only, or a folder beside it"
    )
    sandbox(Mount(str(folder), "/work"))


@pytest.mark.parametrize("kind", ["interpreter", "startup", "modules"])
def test_links_to_code_cannot_be_written(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: what the host runs is elsewhere, and a link on the way to it stands where the guest may write."""
    real, links, data = tmp_path / "real", tmp_path / "links", tmp_path / "data"
    for folder in (real, links, data):
        folder.mkdir()
    (real / "code").mkdir() if kind == "modules" else (real / "code").touch()
    (links / "code").symlink_to(real / "code")
    (tmp_path / "first").symlink_to(links / "code")
    named = str(tmp_path / "first")
    if kind == "interpreter":
        monkeypatch.setattr(sys, "executable", named)
    elif kind == "startup":
        monkeypatch.setenv("PYTHONSTARTUP", named)
    else:
        monkeypatch.setattr(sys, "path", [*sys.path, named])
    found = {
        "interpreter": "the Python interpreter is",
        "startup": "there is what Python runs when it starts",
        "modules": "this process looks for Python modules",
    }[kind]

    for folder, how in ((real, "covers"), (links, "has a link on the way to")):
        assert refusal(Mount(str(folder), "/work", "rw")) == (
            f"the mount /work is writable and {how} {real / 'code'}, where {found}: a guest could leave code there "
            "that the host would run. Mount it read-only, or a folder beside it"
        )
        sandbox(Mount(str(folder), "/work"))
    sandbox(Mount(str(data), "/work", "rw"))


def test_folders_with_policies_of_this_process_cannot_be_written(tmp_path: Path) -> None:
    """The attack: a guest changes the policy that it will run under the next time."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "work").mkdir()
    file = tmp_path / "policies" / "p.toml"
    file.write_text("[limits]\nwall_time = 1")
    Sandbox(Policy().replace(mounts=[Mount(str(tmp_path / "policies"), "/work", "rw")]))

    policy = Policy.load(file)

    for folder in (tmp_path / "policies", tmp_path):
        with pytest.raises(PolicyError) as caught:
            Sandbox(policy.replace(mounts=[Mount(str(folder), "/work", "rw")]))
        assert str(caught.value) == (
            f"the mount /work is writable and covers {file}, where a policy of this process is: a guest could change "
            "what it may do. Mount it read-only, or a folder beside it"
        )
        Sandbox(policy.replace(mounts=[Mount(str(folder), "/work")]))
    Sandbox(policy.replace(mounts=[Mount(str(tmp_path / "work"), "/work", "rw")]))


def run_command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a folder, by Python with these arguments."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_does_not_import_from_the_working_folder(tmp_path: Path) -> None:
    """The twin for the command line: once it has begun, it imports nothing from there."""
    (tmp_path / "difflib.py").write_text("raise SystemExit('taken over')")

    misspelt = run_command(tmp_path, "-m", "stockade", "policy", "show", "missing.wat")

    assert "taken over" not in misspelt.stderr


def test_the_working_folder_is_granted_where_the_command_does_not_begin_in_it(tmp_path: Path) -> None:
    """The attack: a guest leaves a package stockade, which the next `python -m stockade` from there would run."""
    (tmp_path / "guest.wat").write_text('(module (func (export "_start")))')
    arguments = ("stockade", "run", "--dir", ".::/work::rw", "guest.wat")

    refused, granted = run_command(tmp_path, "-m", *arguments), run_command(tmp_path, "-P", "-m", *arguments)

    told = f"the mount /work is writable and covers {tmp_path}, where this process looks for Python modules: "
    assert (refused.returncode, refused.stderr.startswith(f"stockade: {told}")) == (125, True), refused.stderr
    assert (granted.returncode, granted.stderr) == (0, "")


# -- what is checked is what is open ----------------------------------------------------------------------------------

CALLS = ("open", "stat", "lstat", "fstat", "access", "readlink")
"""System calls before which somebody else may come."""


@pytest.mark.parametrize("moment", range(1, 40))
def test_folder_that_is_exchanged_while_it_is_checked(moment: int, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: whoever may write on the way to a folder leads it to our secrets, between two calls of ours."""
    guest = wat(PASSWD.format(at=1, size=10))
    for home in ("way", "own"):
        (tree / home / "state" / "etc").mkdir(parents=True)
    (tree / "own" / "state" / "etc" / "passwd").write_text("secret")
    monkeypatch.setenv("STOCKADE_STATE", str(tree / "own" / "state"))
    calls = 0

    def before(genuine: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == moment:
                (tree / "way").rename(tree / "away")
                (tree / "way").symlink_to("own")
            return genuine(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, before(getattr(os, name)))
        try:
            box = sandbox(Mount(f"{tree}/way/state", "/a"))
        except PolicyError:
            return

    assert box.run(guest).exit_code == NOENT


def test_the_folder_of_secrets_is_refused_whatever_it_is_called(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: without anybody who exchanges it, both are told apart."""
    (tree / "own" / "state").mkdir(parents=True)
    (tree / "link").symlink_to("own/state")
    monkeypatch.setenv("STOCKADE_STATE", str(tree / "own" / "state"))

    for name in ("own/state", "own", "link", "link/.."):
        assert refusal(Mount(f"{tree}/{name}", "/a")) == (
            f"the mount /a covers {tree}/own/state, where Stockade keeps machine code and secrets, which no guest may "
            "reach: mount a folder beside it"
        )
    sandbox(Mount(f"{tree}/b", "/a"))


def test_a_link_on_the_way_to_the_folder_of_secrets_cannot_be_written(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: a guest replaces the link that leads to our secrets, and so chooses them. Read-only is fine."""
    (tree / "own").mkdir()
    (tree / "a" / "state").symlink_to("../own")
    monkeypatch.setenv("STOCKADE_STATE", str(tree / "a" / "state"))

    assert refusal(Mount(f"{tree}/a", "/a", "rw")) == (
        f"the mount /a is writable and has a link on the way to {tree}/own, where Stockade keeps machine code and "
        "secrets: a guest could lead it elsewhere. Mount it read-only, or a folder beside it"
    )
    sandbox(Mount(f"{tree}/a", "/a"))


def test_folder_that_is_renamed_stays_granted_under_narrower_policies(tree: Path, python: Module) -> None:
    """The attack: a folder is renamed, another comes to its place, and a run with a policy of its own gets that."""
    box = sandbox(Mount(f"{tree}/b", "/b", "rw"), Mount(f"{tree}/out", "/out"))
    (tree / "b").rename(tree / "elsewhere")
    (tree / "b").mkdir()
    (tree / "b" / "other").write_text("not granted")

    for mode in ("rw", "ro"):
        narrow = box.policy.replace(mounts=[Mount(f"{tree}/b", "/b", mode)])  # type: ignore[arg-type]
        code = "import os; print('f' in os.listdir('/b'), os.path.exists('/out'))"
        report = box.run(python, ["-c", code], policy=narrow)
        assert report.stdout == b"True False\n"
        report = box.run(python, ["-c", "open('/b/new', 'w')"], policy=narrow)
        assert report.ok == (mode == "rw")
    assert (tree / "elsewhere" / "new").exists()
    assert not (tree / "b" / "new").exists()


def test_narrower_policies_cannot_give_one_folder_two_rights(tree: Path) -> None:
    """The attack: of two names of one folder, a policy of a run makes one read-only, and the other undoes it."""
    box = sandbox(Mount(f"{tree}/b", "/x", "rw"), Mount(f"{tree}/b", "/y", "rw"))
    narrow = box.policy.replace(mounts=[Mount(f"{tree}/b", "/x", "ro"), Mount(f"{tree}/b", "/y", "rw")])

    with pytest.raises(PolicyError) as caught:
        box.run(wat(NAMES), policy=narrow)

    assert str(caught.value) == (
        f"the mounts /x (ro) and /y (rw) share the folder {tree}/b with different rights: what one forbids the other "
        "would allow. Give both the same mode, or mount separate folders"
    )


WHY = "through which a guest would reach the kernel and other processes: mount a folder of files"


@pytest.mark.skipif(sys.platform != "linux", reason="file systems of Linux")
@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/proc", "lies on proc"),
        ("/proc/self", "lies on proc"),
        ("/proc/self/fd", "lies on proc"),
        ("/sys", "lies on sysfs"),
        ("/sys/kernel", "lies on sysfs"),
        ("/dev/pts", "lies on devpts"),
    ],
)
def test_file_systems_of_the_kernel_are_refused(path: str, told: str, tree: Path) -> None:
    """The attack: a mount for reading shows the environment and the memory of the host, one for writing its devices."""
    (tree / "link").symlink_to(path)
    for name in (path, f"{tree}/link"):
        assert refusal(Mount(name, "/a")) == f"the mount /a cannot be made: {name} {told}, {WHY}"


MOUNTED = Path("/proc/self/mountinfo")


@pytest.mark.skipif(sys.platform != "linux", reason="file systems of Linux")
def test_devices_are_refused_on_any_file_system(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In containers, the folder of devices lies on a file system like any other."""
    assert refusal(Mount("/dev", "/a")).endswith(WHY)
    monkeypatch.setattr(_mount_table, "_DEVICES", tree / "b")

    assert refusal(Mount(f"{tree}/b", "/a")) == (
        f"the mount /a cannot be made: {tree}/b is the folder of devices, {WHY}"
    )
    sandbox(Mount(f"{tree}/a", "/a"))


@pytest.mark.skipif(sys.platform != "linux", reason="file systems of Linux")
def test_a_file_system_of_unknown_kind_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not tell what a folder lies on, it is not granted."""
    table = tree / "table"
    table.write_text("1 0 0:1 / / rw - ext4 /dev/a rw\nno line\n")
    monkeypatch.setattr(_mount_table, "_TABLE", table)
    assert refusal(Mount(f"{tree}/a", "/a")) == (
        f"the mount /a cannot be made: {tree}/a lies on a file system of unknown kind, which the kernel does not list "
        "in /proc/self/mountinfo"
    )

    table.unlink()
    assert refusal(Mount(f"{tree}/a", "/a")) == (
        f"the mount /a cannot be made: {tree}/a lies on a file system of unknown kind ({table}: No such file or "
        "directory): mount /proc first"
    )
    monkeypatch.undo()
    sandbox(Mount(f"{tree}/a", "/a"))


@pytest.mark.skipif(sys.platform != "linux", reason="file systems of Linux")
def test_file_systems_below_a_mount_are_found_by_odd_names(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: the kernel writes blanks in paths as numbers, so that a comparison of texts misses them."""
    table = tree / "table"
    inside = rf"9 1 0:9 / {tree}/a/s\040b rw shared:1 - cgroup2 cgroup rw"
    table.write_text(f"{MOUNTED.read_text()}{inside}\n")
    monkeypatch.setattr(_mount_table, "_TABLE", table)

    assert refusal(Mount(f"{tree}/a", "/a")) == (
        f"the mount /a cannot be made: {tree}/a covers {tree}/a/s b, which is cgroup2, {WHY}"
    )
    sandbox(Mount(f"{tree}/a/sub", "/a"), Mount(f"{tree}/b", "/b"))
