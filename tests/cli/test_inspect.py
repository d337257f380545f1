"""`stockade inspect`: what people and scripts see of a module before it runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

import stockade
from stockade import Inspection, Module, Policy, Sandbox
from stockade._wasi import GROUPS, WASI
from stockade.cli._commands import stockade as command_line
from stockade.engine import _engine, assemble
from stockade.guard import Woven, guard, weave
from stockade.modules import _weaving
from stockade.policy import Limits
from stockade.wasm import _scan
from tests.cli.test_run import in_terminal, save
from tests.cli.test_run import stockade as process
from tests.compilation.test_compiling import with_items
from tests.conftest import HELLO, program_path
from tests.guard._modules import HEADER, custom
from tests.guard.test_encodings import hidden_call


def command(*args: str | Path) -> Result:
    """What the command prints, not on a terminal: `return_value` is None or its exit status."""
    return CliRunner().invoke(command_line, ["inspect", *map(str, args)], standalone_mode=False)


WIDE = """
(module $wide
  (import "wasi_snapshot_preview1" "random_get" (func (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sock_shutdown" (func (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sched_yield" (func))
  (import "env" "log" (func (param i32 i64)))
  (import "env" "memory" (memory 1))
  (table 20000 funcref) (table 1 externref)
  (memory 3000 4000) (memory 0)
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func $f (drop (i32x4.relaxed_trunc_f32x4_s (v128.const i32x4 0 0 0 0))) return_call $f)
  (start $f)
  (data "abc") (data "d"))
"""


def test_a_module_is_told_as_a_person_would_read_it(tmp_path: Path) -> None:
    """All that is there, each line in its place; what a policy must say, as it would say it."""
    path = save(tmp_path, WIDE)
    digest = hashlib.sha256(assemble(WIDE)).hexdigest()

    result = command(path)

    assert result.exception is None
    assert (
        result.stdout
        == f"""\
guest.wat
  kind       a plain module: its exports are called
  size       {len(assemble(WIDE))} bytes
  sha256     {digest}
  named      wide
  uses       SIMD, relaxed SIMD, tail calls and multiple memories
  functions  6, 4 imported
  memory     1 or more pages
  memory     3,000 to 4,000 pages
  memory     0 or more pages
  table      20,000 or more of funcref
  table      1 or more of externref
  data       9 bytes in 2 segments
  at start   function 5 runs

It asks to
  random  get random bytes                                                   random_get
  sock    accept and use network connections; the default policy refuses it  sock_shutdown

Not part of WASI: provide these with Sandbox.host_function
  wasi_snapshot_preview1.sched_yield (func () -> ()), which in WASI preview 1 is () -> (i32)
  env.log (func (i32, i64) -> ())
  env.memory (memory 1 or more pages)

It exports
  add  func  (i32, i32) -> (i32)

Largest sections
"""
        + result.stdout.partition("Largest sections\n")[2]
    )
    assert (
        result.stdout.partition("A policy must allow\n")[2]
        == """\
  [limits]
  memory = "188MiB"
  table_elements = 20_001
  [features]
  relaxed_simd = true
"""
    )


@pytest.mark.parametrize("program", ["python", "quickjs", "resvg", "graphviz", "svg-flatten"])
def test_real_programs_need_nothing_beyond_the_default(program: str) -> None:
    """Programs from five toolchains, which the tests run under the default policy."""
    path = program_path(program)
    result = command(path)
    told = result.stdout

    assert result.exception is None
    assert told.endswith("A policy must allow\n  nothing beyond the default policy\n")
    assert "WASI has none" not in told
    assert "Not understood" not in told
    assert f"  size       {path.stat().st_size:,} bytes\n" in told
    assert "  path     open, create and remove files in the mounts " in told
    assert max(map(len, told.splitlines())) < 220


def test_quickjs_is_told_to_be_a_reactor() -> None:
    """With what it was built with, and the first of what it offers."""
    told = command(program_path("quickjs")).stdout

    assert "  kind       a reactor: _initialize runs, then its exports are called\n" in told
    assert "  made with  C11, clang 21.1.4-wasi-sdk (" in told
    assert "  malloc           func    (i32) -> (i32)\n" in told
    assert "more: --all shows them" in told


def test_all_shows_all() -> None:
    """Without it, long lists end after some rows, with how many more there are."""
    path = program_path("python")
    brief, whole = command(path).stdout, command(path, "--all").stdout

    assert "fd_advise, fd_allocate, fd_close, fd_datasync and 15 more\n" in brief
    assert "fd_tell, fd_write\n" in whole
    assert "… and 14 more: --all shows them" in brief
    assert "--all shows them" not in whole
    assert whole.count(" bytes ") > brief.count(" bytes ")


def test_what_cannot_run_is_told_with_its_reason(tmp_path: Path) -> None:
    """A component; an invalid module; one that wants more than any policy can give. MicroPython throws, and runs."""
    told = command(program_path("micropython")).stdout
    assert "It cannot run" not in told
    assert "  uses       exceptions" in told
    for text, reason in (
        ("(component)", "it is a component, and this release runs core modules: build it for wasm32-wasip1"),
        ("(module (memory 1 (pagesize 1)))", "it uses custom page sizes, which this release cannot run"),
        (
            "(module (memory 65536) (memory 1))",
            "limits.memory would have to be 4,295,032,832; it can be 4,294,967,296 at most",
        ),
    ):
        told = command(save(tmp_path, text)).stdout
        assert told.endswith(f"It cannot run\n  {reason}\n")
        assert "A policy must allow" not in told
    invalid = command(save(tmp_path, "(module (func (result i32) nop))")).stdout
    assert "It cannot run\n  not valid WebAssembly: type mismatch" in invalid


def test_a_module_larger_than_the_default_allows_is_told(tmp_path: Path) -> None:
    """Its size is a need, not an error."""
    path = tmp_path / "large.wasm"
    path.write_bytes(HEADER + custom("x", bytes(100 << 20)))

    assert command(path).stdout.endswith('A policy must allow\n  [limits]\n  module_size = "101MiB"\n')


def test_what_is_needed_is_enough(tmp_path: Path) -> None:
    """The lines that are shown make a policy under which the module runs, and without any of them it does not."""
    path = save(tmp_path, WIDE.replace('"env"', '"none"').replace("(start $f)", ""))
    text = "".join(line for line in path.read_text().splitlines(keepends=True) if "(import" not in line)
    path.write_text(text)
    lines = command(path).stdout.partition("A policy must allow\n")[2]
    policy = Policy.loads(lines)

    assert Sandbox(policy).call(path, "add", 5, 3).value == 8
    needs = Module.load(path).inspect().needs
    assert [need.field for need in needs] == [
        "limits.memory",
        "limits.table_elements",
        "features.relaxed_simd",
    ]
    for need in needs:
        fewer = [other for other in needs if other != need]
        document: dict[str, dict[str, object]] = {"limits": {}, "features": {}}
        for other in fewer:
            section, _, name = other.field.partition(".")
            document[section][name] = other.value
        without = Policy.loads(json.dumps(document), format="json")
        try:
            outcome = Sandbox(without).call(path, "add", 5, 3).outcome
        except stockade.InvalidModule as problem:
            assert need.field in str(problem)  # noqa: PT017 - some limits refuse, some end the run
        else:
            assert outcome is stockade.Outcome.MEMORY


def test_every_group_of_calls_says_what_it_grants() -> None:
    """A group without words would grant something that nobody was told of."""
    assert set(GROUPS) == {call.group for call in WASI}


# -- for machines ------------------------------------------------------------------------------------------------------


def test_json_has_the_same_for_machines(tmp_path: Path) -> None:
    """Holds the shape: a change of any of these names breaks whoever reads it."""
    path = save(tmp_path, WIDE)
    told = json.loads(command(path, "--json").stdout)

    assert list(told) == [field.encode_name for field in msgspec.structs.fields(Inspection)]
    assert told == json.loads(Module.load(path).inspect().to_json())
    assert told["kind"] == "plain"
    assert told["name"] == "guest.wat"
    assert told["sha256"] == Module.load(path).sha256
    assert told["features"] == ["simd", "relaxed_simd", "tail_call", "multi_memory"]
    assert told["exports"] == [{"name": "add", "kind": "func", "type": "(i32, i32) -> (i32)"}]
    assert told["imports"][3] == {"module": "env", "name": "log", "kind": "func", "type": "(i32, i64) -> ()"}
    assert told["memories"][1] == {
        "minimum": 3000,
        "maximum": 4000,
        "page_bytes": 65536,
        "shared": False,
        "address_bits": 32,
        "imported": False,
    }
    assert told["grants"][1] == {
        "group": "sock",
        "grants": "accept and use network connections",
        "calls": ["sock_shutdown"],
        "refused": ["sock_shutdown"],
    }
    assert told["needs"][0] == {"field": "limits.memory", "value": "188MiB"}
    assert (told["problem"], told["obstacles"], told["start"]) == (None, [], 5)


def test_the_documented_shape_is_the_real_one() -> None:
    """The reference page names every field, and no other."""
    page = (Path(__file__).parents[2] / "docs" / "inspect.md").read_text(encoding="utf-8")
    documented = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]

    assert documented == [field.encode_name for field in msgspec.structs.fields(Inspection)]


def test_an_inspection_cannot_be_changed() -> None:
    """It is a record."""
    inspection = Module.load(assemble("(module)")).inspect()

    with pytest.raises(AttributeError):
        inspection.kind = "command"  # type: ignore[misc]
    assert isinstance(inspection, Inspection)
    assert inspection == Module.load(assemble("(module)")).inspect()


# -- hostile modules ---------------------------------------------------------------------------------------------------


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    """The attack: escape sequences in every name that a module chooses, on a terminal and elsewhere."""
    path = tmp_path / "guest.wasm"
    text = r"""
    (module $\1b[2J
      (import "\1b[31mm" "\e2\80\aen" (func))
      (memory (export "\1b[2Jx") 1)
      (@custom "\1b[2Jc" "x"))
    """.replace("$\\1b[2J", "")
    path.write_bytes(assemble(text))

    for args in ([path], [path, "--all"], [path, "--json"]):
        result = command(*args)
        assert result.exception is None
        assert "\x1b" not in result.stdout
        assert "\u202e" not in result.stdout
    assert r"\x1b[31mm.\u202en (func () -> ())" in command(path).stdout
    status, shown, _ = in_terminal(["stdout"], "inspect", path)
    assert status == 0
    assert b"\x1b[2J" not in shown
    assert b"\x1b[31mm" not in shown
    assert rb"\x1b[2Jx" in shown


def test_a_terminal_gets_a_table_in_colour(tmp_path: Path) -> None:
    """The twin: the same words as elsewhere, with our own escape sequences only."""
    status, shown, _ = in_terminal(["stdout"], "inspect", save(tmp_path, HELLO))

    assert status == 0
    assert b"\x1b[1m" in shown
    assert b"a command: stockade run starts it at _start" in shown
    assert b"fd_write" in shown


def test_a_name_of_megabytes_is_cut(tmp_path: Path) -> None:
    """The attack: a module that floods whoever looks at it."""
    path = tmp_path / "guest.wasm"
    path.write_bytes(HEADER + custom("A" * 5_000_000) + custom("producers", b"\xff\xff\xff\xff\x0f"))

    for args in ([path], [path, "--all"], [path, "--json"]):
        result = command(*args)
        assert "(5,000,000 long)" in result.stdout
        assert len(result.stdout) < 2500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#!/bin/sh\n", "guest.wasm is not WebAssembly but a script"),
        (b"", "guest.wasm is empty"),
        (HEADER + b"\x01\x7f\x00", "guest.wasm: damaged module: section 1 announces 127 bytes, 1 are left"),
        (b"\0asm\x02\0\0\0", "guest.wasm has WebAssembly version 02000000, which is not known"),
        (b"\0asm\x0d\0\x01\0\x0a\x01\x7f", "damaged module: 127 items announced in 0 bytes"),
    ],
)
def test_what_is_no_module_leaves_126(tmp_path: Path, content: bytes, message: str) -> None:
    """With the reason, and without a traceback."""
    path = tmp_path / "guest.wasm"
    path.write_bytes(content)

    done = process("inspect", path)

    assert (done.returncode, done.stdout) == (126, b"")
    assert done.stderr.decode().startswith(f"stockade: {message}")
    assert b"Traceback" not in done.stderr


def test_a_missing_file_leaves_127(tmp_path: Path) -> None:
    """As the shell does; a good module leaves 0, and a folder is no module."""
    missing = process("inspect", tmp_path / "none.wasm")

    assert (missing.returncode, missing.stderr) == (127, f"stockade: no file at {tmp_path}/none.wasm\n".encode())
    assert process("inspect", save(tmp_path, HELLO)).returncode == 0
    assert process("inspect", tmp_path).returncode == 126
    assert process("inspect", "--json", save(tmp_path, "(component)")).returncode == 0


# -- the woven module --------------------------------------------------------------------------------------------------


def test_what_the_weaver_adds_is_told(tmp_path: Path) -> None:
    """Each number is that of the module that will run."""
    path = save(
        tmp_path,
        HELLO.replace("(drop (call", "(drop (memory.grow (i32.const 1))) (drop (call").replace(
            '(func (export "_start")', '(start $s) (func $s) (func (export "_start")'
        ),
    )
    original = Module.load(path)
    woven = weave(original.data, guard())
    after = Module.load(woven.wasm)

    told = command("--woven", path).stdout
    as_json = json.loads(command("--woven", "--json", path).stdout)

    assert told.startswith("guest.wat, with the guard in it\n")
    assert f"  size        {len(woven.wasm):,} bytes, {len(original.data):,} before\n" in told
    assert f"  functions   {len(woven.guard_functions):,}, from index 3 on\n" in told
    assert "  redirected  1 × memory.grow, 1 × call\n" in told or "  redirected  1 × call, 1 × memory.grow\n" in told
    assert "  exports     memory, stockade.natives, stockade.start\n" in told
    assert as_json["renamed"] == {"memory": "stockade.memory"}
    assert "  start       removed, and called under the limits\n" in told
    assert as_json["functions"] == list(woven.guard_functions)
    assert as_json["first_function"] == woven.guest_functions == 3
    assert as_json["woven_bytes"] == len(after.data)
    assert as_json["memories"] == len(after.parsed.memories) - 1
    assert as_json["memory_bytes"] == sum(after.parsed.memories[1:]) * 65_536
    assert as_json["types"] == len(after.parsed.types) - len(original.parsed.types)
    assert as_json["redirected"] == {"call": 1, "memory.grow": 1}
    assert as_json["start_taken"] is True


def test_a_module_without_anything_to_guard_stays_as_it_is(tmp_path: Path) -> None:
    """The twin: no WASI, no growth."""
    path = save(tmp_path, '(module (func (export "f")))')

    assert "  added  nothing: there is nothing to guard\n" in command("--woven", path).stdout
    out = tmp_path / "out.wasm"
    command("--woven", "-o", out, path)
    assert out.read_bytes() == Module.load(path).data


def test_the_woven_module_is_written(tmp_path: Path) -> None:
    """It is what the weaver made, a module like others; the original is left alone."""
    path, out = save(tmp_path, HELLO), tmp_path / "woven.wasm"

    result = command("--woven", "-o", out, path)

    assert result.exception is None
    assert out.read_bytes() == weave(Module.load(path).data, guard()).wasm
    assert b"stockade.memory" in out.read_bytes()
    assert command(out).exception is None
    assert path.read_text() == HELLO


def test_a_file_is_not_written_over(tmp_path: Path) -> None:
    """Unless that is said; never over what is no regular file."""
    path, out = save(tmp_path, HELLO), tmp_path / "woven.wasm"
    out.write_bytes(b"precious")

    refused = command("--woven", "-o", out, path)
    assert str(refused.exception) == f"{out} already exists: use --force to overwrite it"
    assert out.read_bytes() == b"precious"
    assert command("--woven", "--force", "-o", out, path).exception is None
    assert out.read_bytes().startswith(b"\0asm")
    for place, kind in ((tmp_path, "a folder"), (Path("/dev/null"), "no plain file")):
        folder = command("--woven", "--force", "-o", place, path)
        assert str(folder.exception) == f"{place} is {kind}: give the module a file of its own"
    nowhere = command("--woven", "-o", tmp_path / "no" / "x", path)
    assert str(nowhere.exception) == f"{tmp_path}/no/x cannot be written: No such file or directory"


def test_a_module_is_not_written_to_a_terminal(tmp_path: Path) -> None:
    """To a pipe it is, and nothing else with it."""
    path = save(tmp_path, HELLO)

    status, shown, streams = in_terminal(["stdout"], "inspect", "--woven", "-o", "-", path)
    assert (status, b"\0asm" in shown) == (125, False)
    assert streams["stderr"].endswith(b"Error: -o - would write binary data to the terminal: give a file name\n")
    status, shown, _ = in_terminal(["stdout", "stderr"], "inspect", "--woven", "--force", "-o", "/dev/tty", path)
    assert (status, b"\0asm" in shown) == (125, False)
    piped = process("inspect", "--woven", "-o", "-", path)
    assert (piped.returncode, piped.stdout) == (0, weave(Module.load(path).data, guard()).wasm)


def test_an_output_without_woven_is_a_mistake(tmp_path: Path) -> None:
    """There would be nothing to write."""
    result = command("-o", tmp_path / "x", save(tmp_path, HELLO))

    assert str(result.exception) == "-o writes the woven module: use it with --woven"
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_woven_leaves_126(tmp_path: Path) -> None:
    """It is refused as a run would refuse it, and nothing is written."""
    out = tmp_path / "out.wasm"
    for text, message in (
        ('(module (import "env" "m" (memory 1)))', "nothing provides what the module imports: env.m (memory)"),
        ("(module (memory 1 (pagesize 1)))", "guest.wat uses custom page sizes, which this release cannot run"),
        ('(module (import "env" "e" (tag)))', "nothing provides what the module imports: env.e (tag)"),
        ("(component)", "guest.wat is a WebAssembly component"),
    ):
        done = process("inspect", "--woven", "-o", out, save(tmp_path, text))
        assert done.returncode == 126
        assert done.stderr.decode().startswith(f"stockade: {message}")
        assert not out.exists()


def test_what_cannot_be_proven_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a call of native WASI where a reader that has lost step sees a constant, in what people look at.

    The reader is broken here; as it is, the call is shown among those that go to the guard.
    """
    path, out = tmp_path / "guest.wasm", tmp_path / "out.wasm"
    path.write_bytes(hidden_call())
    monkeypatch.setattr(_weaving, "is_cheap", lambda module: True)
    assert json.loads(command("--woven", "--json", path).stdout)["redirected"] == {"call": 1}
    monkeypatch.setattr(_scan, "guest_value_type", lambda reader: f"{reader.byte():#x}")

    refused = command("--woven", "-o", out, path)

    assert isinstance(refused.exception, stockade.InvalidModule)
    assert str(refused.exception).startswith(
        "guest.wasm cannot be guarded, for it is encoded in a way that Stockade reads differently from the engine: "
        "rebuild it with a current toolchain, and report it if that does not help (not valid WebAssembly: "
    )
    assert refused.stdout == ""
    assert not out.exists()


def test_what_is_not_cheap_is_woven_in_the_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a module that takes long to weave and prove, which keeps the host waiting; told all the same."""
    woven: list[str] = []
    real = _weaving.weave_aside

    def watch(name: str, *others: Any) -> Woven:
        woven.append(name)
        return real(name, *others)

    monkeypatch.setattr(_weaving, "weave_aside", watch)
    path = save(tmp_path, HELLO)
    here = command("--woven", "--json", path).stdout
    assert woven == []
    monkeypatch.setattr(_weaving, "is_cheap", lambda module: False)

    assert command("--woven", "--json", path).stdout == here
    assert woven == ["guest.wat"]
    program = program_path("quickjs")
    assert command("--woven", "-o", tmp_path / "woven.wasm", program).exception is None
    assert (tmp_path / "woven.wasm").read_bytes() == weave(program.read_bytes(), guard()).wasm
    assert woven == ["guest.wat", program.name]
    monkeypatch.setattr(_weaving, "Limits", lambda: Limits(compile_time=0.1))
    large = program_path("python")
    assert str(command("--woven", large).exception) == (
        f"{large.name} takes more than 0.1 s to weave (limits.compile_time): it is too much for the weaver"
    )


@pytest.mark.slow
def test_without_room_for_the_guard_it_is_said_what_there_is(tmp_path: Path) -> None:
    """As many declarations as are read, to which the guard adds its own: which bound that is, and what to do."""
    path, out = tmp_path / "guest.wasm", tmp_path / "out.wasm"
    path.write_bytes(with_items(400_000))

    done = process("inspect", "--woven", "-o", out, path)

    assert done.returncode == 126
    assert done.stderr.decode() == (
        "stockade: guest.wasm leaves no room for the guard: 400,015 types, imports, globals and exports: no more than "
        "400,000 are read. Build it with fewer, or as several modules\n"
    )
    assert not out.exists()
    assert process("inspect", path).returncode == 0


def test_without_room_for_an_engine_it_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many engines as there may be are in use: no module is told to be at fault, and it says what to do."""
    path = save(tmp_path, HELLO)
    monkeypatch.setattr(_engine, "_MAX_ENGINES", 0)
    # One that nobody has made.
    monkeypatch.setattr(_weaving, "_CONFIG", _weaving._CONFIG._replace(stack_bytes=96 << 10))

    refused = command("--woven", path)

    assert isinstance(refused.exception, stockade.EngineError)
    assert " engines are in use, as many as there may be in a process. " in str(refused.exception)
    assert str(refused.exception).endswith("let them agree, or close sandboxes and sessions that are done")
