"""A model of the C library: stores, futures and guests that do what a script says, with every misuse told.

Only the library is a model. Instances, their stores, engines, tickers, the guard's state as the host reads and writes
it, and all that drives runs are the product's own.
"""

from __future__ import annotations

import ctypes
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from stockade import Policy, Sandbox
from stockade.engine import Engine, Failure, ResourceCost
from stockade.engine._callbacks import running
from stockade.engine._capi import Extern
from stockade.engine._instance import FUEL_SLICE, Memory
from stockade.engine._ticker import Ticker
from stockade.execution._pace import Pace
from stockade.guard import guard, mailbox_words
from stockade.host._functions import HostFunction
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stockade.execution._plan import Plan
    from tests.simulation._world import World

__all__ = ["MODULE", "Library", "ModelFailure", "ModelMemory", "Op", "real_plan"]

MODULE = wat(
    """
    (module
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "f"))
      (func (export "_start")))
    """
)

_MEMORY_BYTES = 3 << 16
_TRAP, _OUT_OF_FUEL = 9, 11


def real_plan(policy: Policy) -> Plan:
    """A plan as the product makes it, of which the engine is exchanged later."""
    box = Sandbox(policy)
    box.prepare(MODULE)
    assert box._contexts._own is not None
    return box._contexts._own.plan(MODULE)


class Op(NamedTuple):
    """One thing that a guest does.

    Attributes:
        what: `compute`, `write`, `read`, `sleep`, `look`, `call` or `trap`.
        amount: Seconds, for ever too, or bytes.
    """

    what: str
    amount: float = 0.0


class _AnyPace(Pace):
    """Whether a run is expected to be over within a moment is by chance: where it is, loops do it on their threads."""

    __slots__ = ("_world",)

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def wary(self) -> int:  # type: ignore[override]
        return int(not self._world.chance.randrange(4))

    def note(self, seconds: float) -> None:
        pass


class _Guest:
    """One store, with what lives in it."""

    def __init__(self, library: Library, number: int) -> None:
        self.library = library
        self.number = number
        self.freed = self.polled = False
        self.future: int | None = None
        self.state = ctypes.create_string_buffer(_MEMORY_BYTES)
        self.memory = ctypes.create_string_buffer(65_536)
        # What the engine knows of its fuel at a yield, and what is left.
        self.fuel: int | None = None
        self.known_fuel = 0
        self.burned = 0
        self.code: Iterator[bool] | None = None
        self.trap_at = 0
        self.written = {1: b"", 2: b""}
        self.read = 0
        self.at_end = False
        self.last_poll = 0.0
        self.ticks = 0
        self.place = 0
        # Seconds that its latest call has computed.
        self.computed = 0.0
        # How deep it is in calls that the host makes.
        self.within = 0

    # -- the guard's state --------------------------------------------------------------------------------------------

    def get(self, name: str, code: str = "<I", at: int = 0) -> int:
        number: int = struct.unpack_from(code, self.state, guard().layout.offsets[name] + at)[0]
        return number

    def put(self, name: str, code: str, *numbers: int, at: int = 0) -> None:
        struct.pack_into(code, self.state, guard().layout.offsets[name] + at, *numbers)

    def begin_anew(self) -> None:
        """Counts from nothing, for the next call of a session."""
        self.written = {1: b"", 2: b""}
        self.burned, self.computed, self.within = 0, 0.0, 0

    # -- what it does -------------------------------------------------------------------------------------------------

    def perform(self, script: list[Op]) -> Iterator[bool]:
        """Yields True where it parks, False where it lets others go on."""
        for what, amount in script:
            if what == "compute":
                yield from self._compute(amount)
            elif what == "write":
                yield from self._write(1 + self.library.world.chance.randrange(2), int(amount))
            elif what == "read":
                yield from self._read(int(amount))
            elif what == "sleep":
                yield from self._sleep(amount)
            elif what == "look":
                yield from self._park("FOR_NOW")
            elif what == "call":
                yield from self._call(1 + self.library.world.chance.randrange(self.library.functions))
            else:
                self.trap_at = _TRAP
            if self.trap_at:
                return

    def _compute(self, seconds: float) -> Iterator[bool]:
        ticker, world = self.library.engine.ticker, self.library.world
        unseen = 0.0
        while seconds > 0:
            piece = min(seconds, 0.002)
            seconds -= piece
            world.compute(piece)
            self.computed += piece
            world.step()
            if self.fuel is not None:
                used = min(FUEL_SLICE, int(piece * 1e9), self.fuel + 1)
                self.burned += used
                self.fuel -= used
                if self.fuel < 0:
                    self.fuel = 0
                    self.trap_at = _OUT_OF_FUEL
                    return
                if ticker.count - self.ticks < 2:
                    self.known_fuel = self.fuel
            elif ticker.count == self.ticks:
                # Nothing makes it look up before a tick.
                unseen += piece
                world.check(unseen < 0.5, "a guest computes, and nothing ticks")
                continue
            unseen = 0.0
            yield False

    def _park(self, reason: str, *, seconds: float = 0.0) -> Iterator[bool]:
        chance = self.library.world.chance
        self.put("wait_nanoseconds", "<Q", int(seconds * 1e9))
        self.put("wait_reason", "<I", guard().layout.constants[reason])
        if not chance.randrange(3):
            # Its slice is over just before it halts for what it has written down.
            yield False
        yield True
        if not chance.randrange(3):
            yield False
        self.put("wait_reason", "<I", 0)

    def _call(self, number: int) -> Iterator[bool]:
        """Calls a function of the embedder: as the function in its place does, and what that asks."""
        world, words = self.library.world, mailbox_words()
        argument = world.chance.randrange(1000)
        said = number
        self.put("mailbox", "<q", argument, at=8)
        while True:
            self.put("mailbox", "<II", said, 1)
            if not world.chance.randrange(3):
                yield False
            yield True
            while (answer := self.get("mailbox", "<i")) > 0:
                yield True
            if not world.chance.randrange(3):
                yield False
            self.put("mailbox", "<I", 0)
            if answer == words.end:
                self.trap_at = _TRAP
                return
            if not answer:
                break
            world.check(answer == words.export, f"guest {self.number} is to call an export that it has not")
            self.within += 1
            yield from self.perform(self.library.script_within(self.within))
            self.within -= 1
            if self.trap_at:
                return
            said = words.returned
        told = self.get("mailbox", "<q", 8)
        world.check(told == argument + 1, f"guest {self.number} called with {argument}, and was told {told}")

    def _write(self, stream: int, size: int) -> Iterator[bool]:
        data = b"<%d:%d:%d>" % (self.number, stream, len(self.written[stream]))
        data += b"." * max(0, size - len(data))
        name = "stdout" if stream == 1 else "stderr"
        if ring_bytes := self.get("tap_size"):
            piece = struct.pack("<II", stream, len(data)) + data
            piece += bytes(-len(piece) % 8)
            while self.get("tap_written", "<Q") - self.get("tap_read", "<Q") + len(piece) > ring_bytes:
                yield from self._park("FOR_ROOM")
            at, ring = self.get("tap_written", "<Q"), self.get("tap")
            for place, byte in enumerate(piece):
                self.state[ring + (at + place) % ring_bytes] = byte
            self.put("tap_written", "<Q", at + len(piece))
        self.written[stream] += data
        total = self.get(name, "<Q", 16)
        base, cap = self.get(name), self.get(name, "<I", 8)
        if total + len(data) <= cap:
            ctypes.memmove(ctypes.addressof(self.state) + base + total, data, len(data))
            self.put(name, "<Q", total + len(data), at=16)
        else:
            self.library.capped.add(self.number)

    def _read(self, most: int) -> Iterator[bool]:
        world, asked = self.library.world, guard().layout.constants["STDIN_ASKED"]
        self.put("waited", "<Q", 0)
        while self.get("stdin_read") == self.get("stdin_size") and self.get("stdin_mode") == asked:
            yield from self._park("FOR_STDIN")
        start, end = self.get("stdin_read"), min(self.get("stdin_size"), self.get("stdin_read") + most)
        data = bytes(self.state[self.get("stdin") + place][0] for place in range(start, end))
        wanted = bytes((self.read + place) % 251 for place in range(len(data)))
        world.check(data == wanted, f"guest {self.number} reads {data[:20]!r} where {wanted[:20]!r} was written")
        self.read += len(data)
        self.at_end = not data
        self.put("stdin_read", "<I", end)

    def _sleep(self, seconds: float) -> Iterator[bool]:
        world = self.library.world
        self.put("waited", "<Q", 0)
        due = world.now + seconds
        while world.now < due:
            yield from self._park("FOR_TIME", seconds=due - world.now)


class Library:
    """The model of the C API, and an engine over it.

    Args:
        world: Where it is.
        slots: How many instances there is room for.
        script: Says what the next call of a guest does.
        script_within: Says what an export does that the host calls while the guest is halted, so many deep.
        functions: Functions of the embedder that guests call: each is given a number, and returns the next.
    """

    def __init__(
        self,
        world: World,
        slots: int,
        script: Callable[[_Guest], list[Op]],
        script_within: Callable[[int], list[Op]],
        functions: Sequence[Callable[..., object]],
    ) -> None:
        self.world = world
        self.guests: dict[int, _Guest] = {}
        self.futures: dict[int, _Guest] = {}
        self.capped: set[int] = set()
        self.refusals = 0
        self._script = script
        self.script_within = script_within
        self.functions = len(functions)
        self._functions = [
            HostFunction("env", f"f{number}", function, None) for number, function in enumerate(functions)
        ]
        engine = self.engine = Engine.__new__(Engine)
        engine.api = self
        engine.pointer = 1
        engine.new_store = ((1, None, None),)
        engine.ticker = Ticker(lambda: None)
        engine._live_instances = 0
        engine.idle = deque()
        engine._slots_left = slots

    def plan(self, plan: Plan) -> Plan:
        """The same plan with this engine."""
        linked: Any = _Linked(self.engine, ResourceCost(0, 1))
        woven = msgspec.structs.replace(plan.program.woven, host_exports={b"f": 0} if self._functions else {})
        return msgspec.structs.replace(
            plan, linked=linked, claim=linked.claim, loan=None, loan_for_streams=None, without_slots=lambda: linked,
            was_compiled=True, compile_seconds=0.0, program=msgspec.structs.replace(plan.program, woven=woven),
            functions=tuple(function.bound(plan.policy) for function in self._functions), pace=_AnyPace(self.world),
        )  # fmt: skip

    # -- the C API ----------------------------------------------------------------------------------------------------

    def _alive(self, context: int) -> _Guest:
        guest = self.guests.get(context)
        self.world.check(guest is not None and not guest.freed, f"store {context} is used after it was freed")
        assert guest is not None
        return guest

    def store_new(self, *_: object) -> int:
        number = len(self.guests) + 1
        self.guests[number] = _Guest(self, number)
        return number

    def store_context(self, store: int) -> int:
        return store

    def store_delete(self, store: int) -> None:
        guest = self._alive(store)
        self.world.check(not guest.polled, f"store {store} is freed while its guest is polled")
        self.world.check(guest.future is None, f"store {store} is freed before its future")
        guest.freed = True
        # What it took is gone, too; its numbers stay.
        guest.code = None
        del guest.state, guest.memory

    def store_delete_long(self, store: int) -> None:
        self.world.step()
        self.store_delete(store)

    def context_set_fuel(self, context: int, fuel: int) -> None:
        guest = self._alive(context)
        self.world.check(not guest.polled, "fuel is set while the guest runs")
        guest.fuel = guest.known_fuel = fuel

    def __getattr__(self, name: str) -> Any:
        if name.startswith("quick_"):
            return getattr(self, name.removeprefix("quick_"))
        raise AttributeError(name)

    def prepare(self, number: int) -> int:
        return number

    def context_get_fuel(self, context: int, out: int) -> None:
        guest = self._alive(context)
        ctypes.c_uint64.from_address(out).value = guest.known_fuel

    def context_fuel_async_yield_interval(self, context: int, _: int) -> None:
        self._alive(context)

    def context_epoch_deadline_async_yield_and_update(self, context: int, _: int) -> None:
        self._alive(context)

    def context_set_epoch_deadline(self, context: int, _: int) -> None:
        self.world.check(not self._alive(context).polled, "a store is used while its guest is polled")

    def store_limiter(self, store: int, *_: int) -> None:
        self._alive(store)

    def wasi_config_new(self) -> int:
        return 1

    def context_set_wasi(self, context: int, _: int) -> None:
        self._alive(context)

    def instance_pre_instantiate_async(self, _: int, context: int, *rest: int) -> int:
        guest = self._alive(context)
        if self.world.chance.randrange(1000) < self.refusals:
            ctypes.c_void_p.from_address(rest[2]).value = 1
        guest.code = iter(())
        # The instance's handle.
        (ctypes.c_uint64 * 2).from_address(rest[0])[:] = (context, 0)
        return self._future(guest)

    def _future(self, guest: _Guest) -> int:
        self.world.check(guest.future is None, "two calls of one store at once")
        guest.future = len(self.futures) + 1
        self.futures[guest.future] = guest
        return guest.future

    def instance_export_get(self, context: int, _: int, name: bytes, __: int, place: int) -> bool:
        self._alive(context)
        found = Extern.from_address(place)
        found.kind = 0 if name in (b"f", b"_start") else 3
        found.of.words[0] = context
        found.of.words[1] = 0
        found.of.words[2] = int(name == self.state_name)
        return True

    state_name = b""

    def memory_data(self, context: int, handle: bytes) -> int:
        guest = self._alive(context)
        return ctypes.addressof(guest.state if struct.unpack_from("<Q", handle, 16)[0] else guest.memory)

    def memory_data_size(self, context: int, handle: bytes) -> int:
        self.world.check(not self._alive(context).polled, "a memory is looked at while its guest runs")
        return _MEMORY_BYTES if struct.unpack_from("<Q", handle, 16)[0] else 65_536

    def func_call_async(self, context: int, *rest: Any) -> int:
        guest = self._alive(context)
        guest.trap_at = 0
        guest.code = guest.perform(self._script(guest))
        guest.place = rest[5]
        return self._future(guest)

    def call_future_poll_long(self, future: int) -> bool:
        world = self.world
        guest = self.futures[future]
        self._alive(guest.number)
        world.check(guest.future == future, "a future is polled after it was deleted")
        world.check(not guest.polled, f"guest {guest.number} is polled by two at once")
        instance = running.innermost[0]
        # None while it is instantiated.
        bed = instance.bed if instance is not None and instance._context == guest.number else None
        guest.polled = True
        guest.ticks = self.engine.ticker.count
        try:
            world.step()
            if bed is not None and bed.taken:
                return False
            assert guest.code is not None
            for parks in guest.code:
                if parks:
                    assert bed is not None
                    bed.taken = True
                    bed.awake[0] = b"\0"
                    guest.known_fuel = guest.fuel or 0
                return False
            guest.known_fuel = guest.fuel or 0
            if guest.trap_at:
                ctypes.c_void_p.from_address(guest.place).value = guest.trap_at
            world.step()
            return True
        finally:
            guest.polled = False
            guest.last_poll = world.now

    def call_future_delete(self, future: int) -> None:
        guest = self.futures[future]
        self._alive(guest.number)
        self.world.check(not guest.polled, "a future is deleted while it is polled")
        self.world.check(guest.future == future, "a future is deleted twice")
        guest.future = None


class _Linked:
    """What an instance is made of."""

    native = 1, 1, 1
    lends = True
    parks = True
    small = False

    def __init__(self, engine: Engine, claim: ResourceCost) -> None:
        self.engine = engine
        self.claim = claim
        self.memory_handles: dict[bytes, int] = {}
        self.table_handles: dict[bytes, int] = {}


class ModelFailure(Failure):
    """Traps of the model are their codes."""

    @classmethod
    def from_trap(cls, trap: int) -> Failure:
        return Failure(trap, "as the script says", ())


class ModelMemory(Memory):
    """A memory of the model, which knows whether its store is there."""

    library: Library

    def read(self, address: int, size: int) -> bytes:
        self.library._alive(self._context)
        return super().read(address, size)

    def write(self, address: int, data: bytes) -> None:
        self.library._alive(self._context)
        super().write(address, data)
