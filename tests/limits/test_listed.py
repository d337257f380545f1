"""Mounts of which only some paths may be named: everything else is refused, however it is spelled, and is untouched.

Holds P-FS-4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stockade.engine import wasmtime_version
from stockade.policy import Filesystem, Mount, Policy
from stockade.report import violation_text
from tests._examples import examples
from tests.limits._guests import (
    CREAT,
    DIRECTORY,
    EACCES,
    EBADF,
    MOUNT,
    SUCCESS,
    Later,
    Played,
    Script,
    files_policy,
    kinds,
    tree,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("everywhere")

ONLY = ("a.txt", "new.txt", "sub", "sub/b.txt", "sub/new", "out/", "empty", "made")
"""What is named in most of these tests, of what `folder` has."""

OTHER = MOUNT + 1
"""The descriptor of a second mount, without a list."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with named files and secrets beside them."""
    top = tmp_path / "data"
    for name in ("a.txt", "secret", "sub/b.txt", "sub/secret", "out/c.txt", "out/d/e.txt", "outside", "hidden/x"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    (top / "empty").mkdir()
    (tmp_path / "other").mkdir()
    return top


def listed(folder: Path, only: Sequence[str] = ONLY, mode: str = "rw") -> Policy:
    """A policy that permits everything in a folder, but only by some names; and all of a second one."""
    policy = files_policy(folder)
    mounts = (Mount(str(folder), "/data", mode, only), Mount(str(folder.parent / "other"), "/other", "rw"))  # type: ignore[arg-type]
    return policy.replace(mounts=mounts)


def play(folder: Path, write: Callable[[Script], object], only: Sequence[str] = ONLY) -> Played:
    """Plays a script under such a policy."""
    script = Script()
    write(script)
    return script.play(listed(folder, only))


def stat(script: Script, path: str | bytes, fd: int | Later = MOUNT, lookup: int = 0) -> int:
    """Looks at a path."""
    return script.call("path_filestat_get", fd, lookup, path, script.room(64))


CALLS: dict[str, Callable[[Script, str], object]] = {
    "path_open": lambda script, path: script.open(path),
    "path_open with O_CREAT": lambda script, path: script.open(path, CREAT),
    "path_open of a folder": lambda script, path: script.open(path, DIRECTORY),
    "path_filestat_get": stat,
    "path_filestat_set_times": lambda script, path: script.call("path_filestat_set_times", MOUNT, 0, path, 0, 0, 0),
    "path_create_directory": lambda script, path: script.call("path_create_directory", MOUNT, path),
    "path_remove_directory": lambda script, path: script.call("path_remove_directory", MOUNT, path),
    "path_unlink_file": lambda script, path: script.call("path_unlink_file", MOUNT, path),
    "path_rename from": lambda script, path: script.call("path_rename", MOUNT, path, MOUNT, "new.txt"),
    "path_rename to": lambda script, path: script.call("path_rename", MOUNT, "a.txt", MOUNT, path),
    "path_rename out": lambda script, path: script.call("path_rename", MOUNT, path, OTHER, "x"),
    "path_link from": lambda script, path: script.call("path_link", MOUNT, 0, path, MOUNT, "new.txt"),
    "path_link to": lambda script, path: script.call("path_link", MOUNT, 0, "a.txt", MOUNT, path),
    "path_link out": lambda script, path: script.call("path_link", MOUNT, 0, path, OTHER, "x"),
    "path_symlink": lambda script, path: script.call("path_symlink", "a.txt", MOUNT, path),
    "path_readlink": lambda script, path: script.call(
        "path_readlink", MOUNT, path, script.room(64), 64, script.cell().address
    ),
}
"""Each call that takes a path, and each place of it that a path can stand at."""


@pytest.mark.parametrize("call", CALLS)
def test_each_call_is_refused_what_is_not_named(call: str, folder: Path) -> None:
    """Attack: one file more, by each call that takes a path. It is refused, told by its name, and as it was."""
    before = tree(folder.parent)
    played = play(folder, lambda script: CALLS[call](script, "secret"))

    assert played.errnos == [EACCES]
    assert tree(folder.parent) == before
    violation = played.only_violation()
    assert (violation.kind, violation.call, violation.action) == ("path", call.split()[0], "deny")
    assert (violation.subject, violation.mount, violation.field) == ("secret", "/data", "filesystem.mounts.only")
    assert "/data/secret, which /data is not granted for (only) → deny" in violation_text(violation)


@pytest.mark.parametrize(
    ("call", "path"),
    [
        ("path_open", "a.txt"),
        ("path_open with O_CREAT", "new.txt"),
        ("path_open with O_CREAT", "out/new"),
        ("path_open of a folder", "sub"),
        ("path_open of a folder", "out"),
        ("path_filestat_get", "sub/b.txt"),
        ("path_filestat_get", "."),
        ("path_filestat_set_times", "a.txt"),
        ("path_create_directory", "made"),
        ("path_create_directory", "out/made"),
        ("path_remove_directory", "empty"),
        ("path_unlink_file", "a.txt"),
        ("path_unlink_file", "out/d/e.txt"),
        ("path_rename from", "a.txt"),
        ("path_rename to", "out/d/x"),
        pytest.param(
            *("path_rename out", "out/c.txt"),
            marks=pytest.mark.differs("each mount of a worker is a file system of its own"),
        ),
    ],
)
def test_each_call_may_name_what_is_named(call: str, path: str, folder: Path) -> None:
    """The twin: what the list has, also below a folder that it has."""
    played = play(folder, lambda script: CALLS[call](script, path))

    assert (played.errnos, played.report.violations) == ([SUCCESS], ())


@pytest.mark.parametrize(
    "path", ["./a.txt", ".//a.txt", "sub/./b.txt", "sub//b.txt", "out/./d//e.txt", "out/", "sub/."]
)
def test_what_means_nothing_is_left_out(path: str, folder: Path) -> None:
    """Dots and slashes that native WASI leaves out, too."""
    assert play(folder, lambda script: stat(script, path)).errnos == [SUCCESS]


@pytest.mark.parametrize(
    "path",
    [
        *("../data/a.txt", "sub/../secret", "out/../secret", "out/d/../../secret", "out/..", "sub/..", "..", "./.."),
        *("out/../a.txt", "a.txt/../secret", "/secret", "/a.txt", "//a.txt", "/out/c.txt"),
        *("a.txt\0", "a.txt\0secret", "out/\0", "\0"),
        *(
            "A.TXT",
            "a.tx",
            "a.txtx",
            "outside",
            "out.",
            "ou",
            "sub/secret",
            "sub/b.txt/x",
            "hidden/x",
            "sub/b",
            "Out/c.txt",
        ),
        *("a.txt ", " a.txt", "a.txt\\", "sub\\b.txt", "a.txt/..", "...", "out/c.txt/../../secret"),
    ],
)
def test_no_spelling_leads_elsewhere(path: str, folder: Path) -> None:
    """Attack: a path that looks like one that is named, or leads through one to another. It is not even looked at."""
    played = play(folder, lambda script: (stat(script, path), script.open(path)))

    assert played.errnos == [EACCES, EACCES]
    assert kinds(played.report.violations) == ["path", "path"]


def test_nothing_is_told_of_what_is_not_named(folder: Path) -> None:
    """Attack: a guest that looks whether something is there. What is and what is not are refused alike."""
    played = play(folder, lambda script: [stat(script, path) for path in ("secret", "nothing", "hidden", "hidden/y")])

    assert played.errnos == [EACCES] * 4


def test_an_empty_list_names_nothing(folder: Path) -> None:
    """Nor the folder itself; what is told of every descriptor is told of it."""

    def write(script: Script) -> None:
        for path in ("a.txt", "sub", "out/c.txt"):
            script.open(path)
        script.open(".", DIRECTORY)
        script.call("fd_readdir", MOUNT, script.room(512), 512, 0, script.cell().address)
        script.call("fd_filestat_get", MOUNT, script.room(64))
        stat(script, ".")

    assert play(folder, write, ()).errnos == [EACCES] * 5 + [SUCCESS] * 2


def test_names_are_listed_where_the_list_says_so(folder: Path) -> None:
    """Attack: the names of other files, by the descriptor of the mount itself, or of another number of it."""

    def write(script: Script) -> None:
        for fd in (MOUNT, MOUNT + 20):
            script.call("fd_readdir", fd, script.room(512), 512, 0, script.cell().address)
            script.call("fd_filestat_set_times", fd, 0, 0, 2)
            script.call("path_filestat_set_times", fd, 0, ".", 0, 0, 2)
            script.open(".", DIRECTORY, fd=fd)
            if fd == MOUNT:
                script.call("fd_renumber", MOUNT, MOUNT + 20)

    # A number that was never given out is none that one can be moved to.
    def moved(script: Script) -> None:
        target = script.open("a.txt")
        script.call("fd_renumber", MOUNT, target)
        script.call("fd_readdir", target, script.room(512), 512, 0, script.cell().address)
        script.open("secret", fd=target)
        script.open("a.txt", fd=target)

    played = play(folder, write)
    assert played.errnos[:4] == [EACCES] * 4
    assert played.report.violations[0].subject == "."
    assert play(folder, moved).errnos == [SUCCESS, SUCCESS, EACCES, EACCES, SUCCESS]
    # The twins: where the list has the folder, and of folders that it has.
    # The native WASI of wasmtime 49 sets no times of a folder by its descriptor.
    timed = SUCCESS if int(wasmtime_version().partition(".")[0]) >= 50 else EBADF
    assert play(folder, write, (*ONLY, ".")).errnos[:4] == [SUCCESS, timed, SUCCESS, SUCCESS]

    def below(script: Script) -> None:
        for name in ("sub", "out", "out/d"):
            opened = script.open(name, DIRECTORY)
            script.call("fd_readdir", opened, script.room(512), 512, 0, script.cell().address)

    assert play(folder, below).errnos == [SUCCESS] * 6


def test_paths_that_begin_at_a_folder_are_looked_up_from_the_root(folder: Path) -> None:
    """Attack: a folder that is named is opened, and what is not named is asked for from there."""

    def write(script: Script) -> None:
        sub = script.open("sub", DIRECTORY)
        for path in ("secret", "../secret", "..", "/secret", "b.txt/../secret"):
            script.open(path, fd=sub)
        for path in ("b.txt", "./b.txt", "."):
            stat(script, path, sub)
        out = script.open("out/d", DIRECTORY)
        for path in ("../../secret", "..", "../c.txt", "/secret", "e.txt\0"):
            script.open(path, fd=out)
        for path in ("e.txt", ".", ""):
            stat(script, path, out)

    played = play(folder, write)
    assert played.errnos[:6] == [SUCCESS, *[EACCES] * 5]
    assert played.errnos[6:9] == [SUCCESS] * 3
    assert played.errnos[9:15] == [SUCCESS, *[EACCES] * 5]
    assert played.errnos[15:17] == [SUCCESS] * 2


def test_a_number_means_what_stands_there_now(folder: Path) -> None:
    """Attack: descriptors are closed, moved and given out again, so that one has the rights of another."""

    def write(script: Script) -> None:
        out = script.open("out", DIRECTORY)
        sub = script.open("sub", DIRECTORY)
        script.call("fd_renumber", sub, out)
        script.open("c.txt", fd=out)  # refused: it is sub now
        script.open("b.txt", fd=out)
        script.close(out)
        again = script.open("sub", DIRECTORY)
        script.open("secret", fd=again)
        free = script.open("x", CREAT, fd=OTHER)
        script.close(free)
        script.close(OTHER)
        script.open("secret")

    played = play(folder, write)
    assert played.errnos == [
        *(SUCCESS, SUCCESS, SUCCESS, EACCES, SUCCESS, SUCCESS, SUCCESS, EACCES),
        *(SUCCESS, SUCCESS, SUCCESS, EACCES),
    ]


def test_a_guest_makes_no_name_lead_elsewhere(folder: Path) -> None:
    """Attack: links at names that may be written, folders moved to where all is named, and links moved in."""
    (folder / "out" / "link").symlink_to("../secret")
    (folder.parent / "other" / "planted").symlink_to("secret")
    before = tree(folder.parent)

    def write(script: Script) -> None:
        script.call("path_symlink", "secret", MOUNT, "new.txt")
        script.call("path_symlink", "../secret", MOUNT, "out/new")
        script.call("path_link", OTHER, 0, "planted", MOUNT, "new.txt")
        script.call("path_link", MOUNT, 0, "a.txt", OTHER, "copy")
        script.call("path_rename", OTHER, "planted", MOUNT, "new.txt")
        script.call("path_rename", MOUNT, "sub", MOUNT, "out/sub")
        script.call("path_rename", MOUNT, "sub", OTHER, "sub")
        script.call("path_rename", MOUNT, "out/link", MOUNT, "new.txt")
        script.call("path_rename", MOUNT, "out/d", MOUNT, "out/deeper")

    played = play(folder, write)
    assert played.errnos == [EACCES] * 9
    assert tree(folder.parent) == before
    assert {violation.field for violation in played.report.violations} == {"filesystem.mounts.only"}


def test_a_link_of_the_hosts_is_followed_within_the_mount(folder: Path) -> None:
    """The list says what a path may be called: where a link leads that the host has put there is the host's matter."""
    (folder / "made").symlink_to("secret")
    (folder / "new.txt").symlink_to("/etc/passwd")

    played = play(folder, lambda script: (script.open("made"), script.open("new.txt")))
    assert played.errnos[0] == SUCCESS
    assert played.errnos[1] != SUCCESS


def test_what_is_refused_is_refused_where_the_policy_only_audits(folder: Path) -> None:
    """As every path that a mount does not permit; and it ends the run where the policy says so."""
    script = Script()
    script.open("secret")
    audits = script.play(listed(folder).replace(on_violation="audit"))
    assert audits.errnos == [EACCES]
    stops = script.play(listed(folder).replace(on_violation="stop"))
    assert stops.report.outcome == "denied"


def test_other_mounts_are_as_they_were(folder: Path) -> None:
    """A list is that of its mount alone; several mounts may each have one."""
    (folder.parent / "other" / "b").write_text("b")
    mounts = (
        Mount(str(folder.parent / "other"), "/other", "rw"),
        Mount(str(folder), "/data", "ro", ["a.txt"]),
        Mount(str(folder / "sub"), "/sub", "ro", ["b.txt"]),
    )
    script = Script()
    for fd in (MOUNT, MOUNT + 1, MOUNT + 2):
        for path in ("b", "a.txt", "b.txt"):
            script.open(path, fd=fd, rights=2)
    script.call("path_symlink", "b", MOUNT, "link")
    played = script.play(files_policy(folder).replace(mounts=mounts))
    granted = [errno == SUCCESS for errno in played.errnos]
    assert granted == [True, False, False, False, True, False, False, False, True, True]


def test_a_path_that_is_too_long_is_refused(folder: Path) -> None:
    """Attack: a path with so many dots and slashes that it does not fit, from a folder with a long name."""
    name = "n" * 200
    (folder / name).mkdir()

    def write(script: Script) -> None:
        opened = script.open(name, DIRECTORY)
        stat(script, "./" * 2047 + "x", opened)
        stat(script, "y/" * 2047 + "x", opened)
        stat(script, "./" * 2048 + "x", opened)
        stat(script, "./" * 2040 + "x", opened)

    played = play(folder, write, (name, f"{name}/x"))
    assert played.errnos[0] == SUCCESS
    assert played.errnos[2] == EACCES
    assert EACCES not in (played.errnos[1], played.errnos[3], played.errnos[4])


# -- the guard and another reading of the same rules -------------------------------------------------------------------


def names(only: Sequence[str], path: bytes) -> bool:
    """Whether a list names a path from the root of its mount on: written without a look at the guard."""
    if path.startswith(b"/") or b"\0" in path:
        return False
    parts = [part for part in path.split(b"/") if part and part != b"."]
    if b".." in parts:
        return False
    if not parts:
        return True  # it is only looked at here
    for entry in only:
        wanted = entry.rstrip("/").encode().split(b"/")
        if parts == wanted or (entry.endswith("/") and parts[: len(wanted)] == wanted):
            return True
    return False


_PART = st.sampled_from(["a", "b", "ab", "A", "é", "a b", "...", "-"])
_ENTRIES = st.lists(
    st.builds(
        lambda parts, end: "/".join(parts) + end, st.lists(_PART, min_size=1, max_size=3), st.sampled_from(["", "/"])
    ),
    max_size=6,
)
_PATHS = st.builds(
    lambda parts, slash: slash + "/".join(parts),
    st.lists(st.one_of(_PART, st.sampled_from([".", "..", "", "a\0", "c"])), max_size=5),
    st.sampled_from(["", "", "", "", "./", "/"]),
).map(str.encode) | st.binary(max_size=12)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with something at some of the paths that are asked for."""
    top = tmp_path_factory.mktemp("deep") / "data"
    for one in ("a", "b", "ab"):
        for two in ("a", "b", "..."):
            (top / one / two).mkdir(parents=True)
            (top / one / two / "a").write_text("")
    (top.parent / "other").mkdir()
    return top


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(only=_ENTRIES, paths=st.lists(_PATHS, min_size=1, max_size=40), start=st.sampled_from(["", "a", "a/b", "ab"]))
@example(only=["a", "a/b/"], paths=[b"b/a", b"a", b"../b", b"b/../a", b"."], start="a")
@example(only=["a/b"], paths=[b"b", b"b/a", b"./b/."], start="a")
@example(only=[], paths=[b"", b".", b"a", b"\0"], start="")
def test_the_guard_decides_as_the_rules_say(only: list[str], paths: list[bytes], start: str, deep: Path) -> None:
    """Any list, any path, from any folder that it names: the guard refuses exactly what another reading of it does."""
    script = Script()
    fd: int | Later = script.open(start, DIRECTORY) if start else MOUNT
    for path in paths:
        stat(script, path, fd)
    played = script.play(listed(deep, only, "ro"))

    errnos = played.errnos
    if start:
        assert (errnos.pop(0) == SUCCESS) == names(only, start.encode())
        if not names(only, start.encode()):
            assert EACCES not in errnos  # there is no descriptor
            return
    below = any(entry.endswith("/") and f"{start}/".startswith(entry) for entry in only)
    prefix = f"{start}/".encode() if start else b""
    for path, errno in zip(paths, errnos, strict=True):
        allowed = names(("x/",), b"x/" + path) if below else names(only, prefix + path)
        if path.startswith(b"/"):
            allowed = False
        assert (errno != EACCES) == allowed, (path, errno)


def test_lists_are_checked(tmp_path: Path) -> None:
    """What could be read as something else is no entry."""
    for entry in ("", "/", "./", "..", "a/..", "../a", "/a", "a//b", "a/./b", "./a", "a//", "a\0", "n" * 4097, 5):
        with pytest.raises(Exception, match="it must be a path below the folder without"):
            Mount(str(tmp_path), "/data", "ro", [entry])  # type: ignore[list-item]
    mount = Mount(str(tmp_path), "/data", only=["b/", "a", ".", "a"])
    assert mount.only == (".", "a", "b/")
    assert Policy.loads(Policy(filesystem=Filesystem(mounts=(mount,))).to_toml()).filesystem.mounts == (mount,)
    assert "only" not in Mount(str(tmp_path), "/data").to_document()
