"""The instructions of ours that run on a guest's stack: what they do, what they say, and that no Python runs there."""

from __future__ import annotations

import ctypes
import errno
import linecache
import shutil
import subprocess
import sys
from collections import Counter
from ctypes import CFUNCTYPE, addressof, c_bool, c_size_t, c_uint64, c_void_p
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from stockade import EngineError, Sandbox
from stockade.engine import Instance, _machine_code
from stockade.engine._machine_code import INSTRUCTIONS, routines
from stockade.engine._parking import ParkingSlot
from tests.conftest import wat

if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

CALLBACK = CFUNCTYPE(None, *[c_void_p] * 3, c_size_t, c_void_p, c_size_t, c_void_p, c_void_p)
ASSEMBLERS = {"x86_64": ("x86_64-linux-gnu-as", "as"), "aarch64": ("aarch64-linux-gnu-as", "as")}


def test_park_leads_to_the_slot_of_the_store_whose_guest_calls() -> None:
    """The eighth argument is filled in with the first two words of what the two functions find, and nothing else is."""
    asked: list[tuple[str, int]] = []
    slot = ParkingSlot()
    slot.make_ready()
    step = CFUNCTYPE(c_void_p, c_void_p)

    def answer(name: str, result: int) -> Any:
        return step(lambda given: asked.append((name, given)) or result)

    context, data = answer("context", 0x1234_5678_9ABC_DEF0), answer("data", addressof(slot))
    table = (c_void_p * 2)(ctypes.cast(context, c_void_p).value, ctypes.cast(data, c_void_p).value)
    continuation = (c_uint64 * 4)(1, 2, 0, 4)
    untouched = (c_uint64 * 4)(5, 6, 7, 8)

    CALLBACK(routines().park)(
        addressof(table), 0x0FED_CBA9, 11, 12, 13, 14, addressof(untouched), addressof(continuation)
    )

    assert asked == [("context", 0x0FED_CBA9), ("data", 0x1234_5678_9ABC_DEF0)]
    assert list(continuation) == [routines().is_awake, addressof(slot) + 24, 0, 4]
    assert list(untouched) == [5, 6, 7, 8]
    assert (slot.awake, slot.finalizer) == (0, None)
    is_awake = CFUNCTYPE(c_bool, c_void_p)(continuation[0])
    assert is_awake(continuation[1]) is False
    slot.wake()
    assert is_awake(continuation[1]) is True


@pytest.mark.parametrize("machine", sorted(INSTRUCTIONS))
def test_the_bytes_are_what_they_say(machine: str, tmp_path: Path) -> None:
    """An assembler makes the same bytes of the words beside them, where there is one for the machine."""
    import platform

    cross, native = ASSEMBLERS[machine]
    assembler = shutil.which(cross) or (shutil.which(native) if platform.machine() == machine else None)
    if assembler is None:
        pytest.skip(f"there is no assembler for {machine}: install binutils-{machine.replace('_', '-')}-linux-gnu")
    (tmp_path / "code.s").write_text(
        (".intel_syntax noprefix\n" if machine == "x86_64" else "")
        + "".join(f".globl at_{place}\nat_{place}: {words}\n" for place, (_, words) in enumerate(INSTRUCTIONS[machine]))
        + ".globl the_end\nthe_end:\n"
    )
    subprocess.run([assembler, "-o", "code.o", "code.s"], cwd=tmp_path, check=True)
    made = (tmp_path / "code.o").read_bytes()
    code = bytes.fromhex("".join(code for code, _ in INSTRUCTIONS[machine]))
    assert code in made


def test_the_pages_are_never_writable_and_executable() -> None:
    """The attack: bytes written where instructions lie. The page of ours is executable and read-only."""
    park = routines().park
    if not sys.platform.startswith("linux"):
        pytest.skip("/proc/self/maps is Linux")
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if start <= park < end:
            assert line.split()[1] == "r-xp"
            return
    pytest.fail("the page is not mapped")


def test_a_system_that_forbids_made_code_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What SELinux or systemd forbid is an error in words, and no crash."""

    class Refuses:
        restype = argtypes = None

        def __call__(self, *_: object) -> int:
            ctypes.set_errno(errno.EPERM)
            return -1

    libc = SimpleNamespace(mmap=ctypes.PyDLL(None, use_errno=True).mmap, mprotect=Refuses())
    monkeypatch.setattr(_machine_code.ctypes, "PyDLL", lambda *_, **__: libc)
    with pytest.raises(EngineError) as caught:
        _machine_code._make_executable(b"\xc3")
    assert str(caught.value) == (
        "the system lets this process run no code that it has made (Operation not permitted): without that no "
        "WebAssembly runs. Look for what forbids it, such as SELinux or systemd's MemoryDenyWriteExecute"
    )


def test_a_machine_that_is_not_known_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_machine_code, "machine_name", lambda: None)
    with pytest.raises(EngineError) as caught:
        routines.__wrapped__()
    assert str(caught.value) == "guests cannot be made to wait on this machine under posix"


WAITER = wat(
    """
    (module
      (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "sleep") (param $times i32)
        (loop $again
          (i32.store (i32.const 16) (i32.const 1))
          (i64.store (i32.const 24) (i64.const 1))
          (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))
          (br_if $again (local.tee $times (i32.sub (local.get $times) (i32.const 1)))))))
    """
)


def test_no_python_runs_on_the_stack_of_a_guest() -> None:
    """Attack: a guest waits a thousand times, so that Python looks for signals or takes its lock on its stack."""
    callers: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_back is not None and frame.f_back.f_code is Instance.poll.__code__:
            callers[linecache.getline(Instance.poll.__code__.co_filename, frame.f_back.f_lineno).strip()] += 1

    with Sandbox().open(WAITER) as session:
        sys.setprofile(note)
        try:
            report = session.call("sleep", 1000)
        finally:
            sys.setprofile(None)
    assert report.ok
    assert callers["ticker.enter(self)"] > 1000
    assert not [line for line in callers if "call_future_poll" in line]
