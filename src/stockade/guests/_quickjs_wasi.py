"""QuickJS as npm's package quickjs-wasi has it: values are handles, and it asks the host for more."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgspec

from stockade.errors import ModuleError
from stockade.execution import Call, bind_arguments
from stockade.guests._boot import boot_code
from stockade.guests._driver import CalledDriver
from stockade.guests._fit import folders_of
from stockade.guests._jobs import job_of, made_ready, seed_for, where_stepped
from stockade.guests._result import FRAME_ROOM_BYTES
from stockade.guests._task import Task
from stockade.host import U32, HostCall  # noqa: TC001 - annotations that are read when they are lent

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from stockade.engine import GuestBytes, Number
    from stockade.execution import CallExport, OpenGuest
    from stockade.guests._tools import Toolbox
    from stockade.modules import Module
    from stockade.report import Report
    from stockade.runner import RunCoroutine
    from stockade.sandbox import Sandbox

__all__ = ["QUICKJS_WASI_EXPORTS", "QuickJSWasi"]

QUICKJS_WASI_EXPORTS: Final = frozenset(
    {"qjs_init", "qjs_eval", "qjs_call", "qjs_new_host_function", "qjs_get_string_len", "qjs_promise_state", "fd_write"}
)
"""What tells that a module is one. It imports the last, and exports it once it is fitted."""

_ASYNC: Final = 1 << 7
_BARRIER: Final = 1 << 6
_STACK_BYTES: Final = 512 << 10
"""What the interpreter may use of its stack before it says so."""

_CONTEXT_BYTES: Final = 2_048
_FULFILLED: Final = 1
_WORD: Final = 0xFFFF_FFFF
_MOST: Final = 0x7FFF_FFFF
_NOTHING: Final = 0
"""What a host function returns where the interpreter has lost its memory, and names none of its own."""

_MOST_REQUEST_BYTES: Final = 16 << 20
_STDOUT: Final = 1
_STDERR: Final = 2
_HOST: Final = ("out", "err", "tool", "evaluate")


class _Place(NamedTuple):
    """Where an interpreter that was made ready has what turns need: its functions, undefined, and its generator."""

    perform: int
    settle: int
    rejected: int
    undefined: int
    random: int


class _Turn(msgspec.Struct, frozen=True):
    """One job, and its frame.

    Attributes:
        place: Where things are.
        job: The job.
        seed: Where `Math.random` begins; None to let it go on.
        most_bytes: How long the frame may be: of one that is longer, one byte more is read.
    """

    place: _Place
    job: bytes
    seed: int | None
    most_bytes: int

    def perform(
        self,
        call: Call,  # noqa: ARG002 - all calls are these
        memory: GuestBytes,
        enter: CallExport,
        limit_bytes: int,  # noqa: ARG002 - of a value, and it is in a frame
    ) -> Generator[float, None, Sequence[Number | str | bytes]]:
        """Makes the calls."""

        def called(name: bytes, *given: int) -> Generator[float, None, int]:
            (result,) = yield from enter(name, [("i32", number) for number in given], ("i32",))
            return int(result) & _WORD

        try:
            if self.seed is not None:
                memory.write(self.place.random, struct.pack("<Q", self.seed))
            text = yield from called(b"wasm_malloc", len(self.job) + 16)
            memory.write(text + 16, self.job)
            job = yield from called(b"qjs_new_string", text + 16, len(self.job))
            memory.write(text, struct.pack("<I", job))
            frame = problem = self.place.undefined
            promise = yield from called(b"qjs_call", self.place.perform, self.place.undefined, 1, text)
            # What no code can catch comes out here: that there is no memory left.
            if (yield from called(b"qjs_is_exception", promise)):
                problem = yield from called(b"qjs_get_exception")
            while (yield from called(b"qjs_is_job_pending")):
                if (yield from called(b"qjs_execute_pending_job")) > _MOST:
                    problem = yield from called(b"qjs_get_exception")
            if (yield from called(b"qjs_promise_state", promise)) == _FULFILLED:
                frame = yield from called(b"qjs_promise_result", promise)
            memory.write(text, struct.pack("<2I", frame, problem))
            frame = yield from called(b"qjs_call", self.place.settle, self.place.undefined, 2, text)
            address = yield from called(b"qjs_get_string_len", frame, text)
            (size,) = struct.unpack("<I", memory.read(text, 4))
            return [memory.read(address, min(size, self.most_bytes + 1)) if address else b"?"]
        except IndexError:
            # It has no room, or it is not what it was: no frame is read where there is none.
            return [b"?"]


class QuickJSWasi(CalledDriver):
    """Drives it: jobs are calls. It begins where a snapshot was taken, and has no files."""

    stack_bytes = 16 << 20
    has_files = False
    calls_tools = True

    def __init__(self) -> None:
        # By the folders that the interpreter knows of, as for what it begins with.
        self._places: dict[tuple[str, ...], _Place] = {}

    def lend(self, box: Sandbox, toolbox: Toolbox) -> None:
        """Lends what it imports."""

        def nothing() -> int:
            return 0

        def nobody(name: U32, size: U32) -> int:  # noqa: ARG001 - there are no modules, and it is always UTC
            return 0

        def call(host: HostCall, name: bytes, this: U32, count: U32, given: U32) -> int:  # noqa: ARG001
            return _driven(host, toolbox, _served(host, name, given))

        async def call_async(host: HostCall, name: bytes, this: U32, count: U32, given: U32) -> int:  # noqa: ARG001
            return await _driven_async(host, toolbox, _served(host, name, given))

        def rejected(host: HostCall, promise: U32, reason: U32, is_handled: U32) -> None:
            place = self._places.get(folders_of(host.policy))
            if place is not None:
                _driven(host, toolbox, _noted(host, place, promise, reason, is_handled))

        box.host_function("env", "host_interrupt")(nothing)
        for name in ("host_module_normalize", "host_module_load", "host_get_timezone_offset"):
            box.host_function("env", name)(nobody)
        box.host_function("env", "host_promise_rejection")(rejected)
        box.host_function("env", "host_call")(call_async if toolbox.awaits else call)

    def boot(self, guest: OpenGuest, module: Module, preload: str, paths: Sequence[str]) -> RunCoroutine[Report]:  # noqa: ARG002 - it has no paths
        """Makes an interpreter ready for tasks, in steps."""

        def called(export: str, *given: int) -> RunCoroutine[int]:
            report = yield from guest.invoke(bind_arguments(module, export, given))
            if not report.ok:
                raise ModuleError(f"{module.name} cannot be made ready: {export} ends with {report.summary()}")
            return report.value & _WORD if isinstance(report.value, int) else 0

        def placed(text: str) -> RunCoroutine[int]:
            data = text.encode() + b"\0"
            address = yield from called("wasm_malloc", len(data))
            guest.memory(b"memory").write(address, data)
            return address

        def evaluated(source: str) -> RunCoroutine[int]:
            text = yield from placed(source)
            return (yield from called("qjs_eval", text, len(source.encode()), (yield from placed("<stockade>")), 0))

        if module.initializer is not None:
            yield from guest.invoke(Call(module.initializer))
        yield from called("qjs_init")
        yield from called("qjs_set_max_stack_size", _STACK_BYTES)
        host = yield from called("qjs_new_object")
        for name in _HOST:
            text = yield from placed(name)
            function = yield from called("qjs_new_host_function", text, len(name), 0)
            yield from called("qjs_set_prop_string", host, text, function)
        world = yield from called("qjs_get_global")
        yield from called("qjs_set_prop_string", world, (yield from placed("host")), host)
        program = f"{boot_code('javascript.js')}{boot_code('quickjs_wasi.js')}"
        made = yield from evaluated(f"(() => {{ 'use strict';\n{program}}})()")
        if (yield from called("qjs_is_exception", made)):
            raise ModuleError(f"{module.name} cannot be made ready: it is not the quickjs-wasi that is known here")
        context, memory = (yield from called("qjs_get_context_ptr")), guest.memory(b"memory")
        before = memory.read(context, _CONTEXT_BYTES)
        yield from evaluated("Math.random()")
        random = context + where_stepped(before, memory.read(context, _CONTEXT_BYTES))
        perform = yield from called("qjs_get_prop_string", made, (yield from placed("perform")))
        settle = yield from called("qjs_get_prop_string", made, (yield from placed("settle")))
        noting = yield from called("qjs_get_prop_string", made, (yield from placed("rejected")))
        undefined = yield from called("qjs_get_undefined")
        self._places[folders_of(guest.policy)] = _Place(perform, settle, noting, undefined, random)
        yield from called("qjs_set_promise_rejection_handler", 1)
        return made_ready((yield from self.start(guest, module, Task(preload, name="<preload>"))))

    def start(self, guest: OpenGuest, module: Module, task: Task) -> RunCoroutine[Report]:
        """Lets a guest run a task, in steps."""
        seed = seed_for(guest.policy.random) if task.reseed else None
        turn = _Turn(
            self._places[folders_of(guest.policy)],
            job_of(task, has_stdin=True),
            seed,
            task.most_bytes + FRAME_ROOM_BYTES,
        )
        return guest.invoke(Call(module.function_entry("qjs_init"), (), turn))


_Calls: TypeAlias = "Generator[tuple[str, tuple[int, ...]] | bytes, int | bytes, int]"
"""What a host function has the guest do: its exports that are called, or a request for a tool."""


def _driven(host: HostCall, toolbox: Toolbox, calls: _Calls) -> int:
    answer: int | bytes | None = None
    try:
        while True:
            asked = calls.send(answer)  # type: ignore[arg-type]
            answer = toolbox.serve(asked) if isinstance(asked, bytes) else _number(host.call(asked[0], *asked[1]))
    except StopIteration as end:
        result: int = end.value
        return result
    except IndexError:
        return _NOTHING


async def _driven_async(host: HostCall, toolbox: Toolbox, calls: _Calls) -> int:
    answer: int | bytes | None = None
    try:
        while True:
            asked = calls.send(answer)  # type: ignore[arg-type]
            if isinstance(asked, bytes):
                answer = await toolbox.serve_async(asked)
            else:
                answer = _number(await host.call_async(asked[0], *asked[1]))
    except StopIteration as end:
        result: int = end.value
        return result
    except IndexError:
        return _NOTHING


def _number(value: object) -> int:
    return value & _WORD if isinstance(value, int) else 0


def _call(name: str, *given: int) -> Generator[tuple[str, tuple[int, ...]], int | bytes, int]:
    result = yield name, given
    assert isinstance(result, int)
    return result


def _served(host: HostCall, name: bytes, given: int) -> _Calls:
    """Serves a call of one of the functions that the program has: what it returns is a value of the interpreter's."""
    memory = host.memory
    room = yield from _call("wasm_malloc", 16)
    values = struct.unpack("<3I", memory.read(given, 12))
    text = yield from _call("qjs_get_string_len", values[0], room)
    (size,) = struct.unpack("<I", memory.read(room, 4))
    result = 0
    if name == b"tool":
        # What is too long is no request.
        answer = yield memory.read(text, min(size, _MOST_REQUEST_BYTES))
        assert isinstance(answer, bytes)
        place = yield from _call("wasm_malloc", len(answer))
        memory.write(place, answer)
        result = yield from _call("qjs_new_string", place, len(answer))
        yield from _call("wasm_free", place)
    elif name == b"evaluate":
        label = yield from _call("qjs_get_string_len", values[1], room)
        is_code = yield from _call("qjs_get_bool", values[2])
        result = yield from _call("qjs_eval", text, size, label, _ASYNC | _BARRIER if is_code else 0)
        if (yield from _call("qjs_is_exception", result)):
            result = 0
    else:
        at = text
        while size:
            memory.write(room, struct.pack("<2I", at, size))
            if (yield from _call("fd_write", _STDERR if name == b"err" else _STDOUT, room, 1, room + 8)):
                break
            (written,) = struct.unpack("<I", memory.read(room + 8, 4))
            if not 0 < written <= size:
                break
            at, size = at + written, size - written
        result = yield from _call("qjs_get_undefined")
    yield from _call("qjs_free_cstring", text)
    yield from _call("wasm_free", room)
    return result


def _noted(host: HostCall, place: _Place, promise: int, reason: int, is_handled: int) -> _Calls:
    """Has the program note that a promise failed, or that somebody has come to wait for it."""
    handled = yield from _call("qjs_get_true" if is_handled else "qjs_get_false")
    room = yield from _call("wasm_malloc", 12)
    host.memory.write(room, struct.pack("<3I", promise, reason, handled))
    result = yield from _call("qjs_call", place.rejected, place.undefined, 3, room)
    for value in (result, promise, reason, handled):
        yield from _call("qjs_free_value", value)
    return (yield from _call("wasm_free", room))
