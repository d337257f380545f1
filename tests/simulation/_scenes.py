"""What happens in a simulated world: who runs, cancels, closes, drops and interrupts what, as the seed says."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from stockade import (
    I64,
    HostCall,
    Outcome,
    Pipe,
    Policy,
    Sandbox,
    Scheduler,
    SessionPool,
    StockadeError,
    Task,
    _bell,
    _locks,
    _outside,
)
from stockade.engine import Engine, _instance, _ticker
from stockade.execution import (
    _budget,
    _calling_out,
    _guest,
    _halted,
    _pipe,
    _reentry,
    _reporting,
    _run,
    _streams,
    _throttle,
    _timekeeper,
    bind_arguments,
    loop_streams,
)
from stockade.guard import _inputs, _state
from stockade.runner import _awaited, _coroutine, _executor, own_loop
from stockade.runner import loop as loop_room
from stockade.sandbox import _occupancy, _registry, _runs, _sandbox, _session
from stockade.scheduling import _fair_queue, _handle, _pool, _scheduler, _tellers
from tests.simulation._library import MODULE, Library, ModelFailure, ModelMemory, Op, real_plan
from tests.simulation._world import BrokenError, Over, Signal, World

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from stockade import Report
    from stockade.execution._plan import Plan
    from stockade.execution._run import Guest
    from stockade.runner._coroutine import RunCoroutine

__all__ = ["simulate"]

_LOOKED_AT = (
    _bell,
    _awaited,
    _executor,
    _pipe,
    _reentry,
    own_loop,
    _guest,
    _reporting,
    _halted,
    _calling_out,
    _run,
    _coroutine,
    _streams,
    loop_streams,
    _session,
    _occupancy,
    _registry,
    _runs,
    _pool,
    _scheduler,
    _handle,
    _fair_queue,
    _tellers,
    _ticker,
    _instance,
)
_TIMED = (*_LOOKED_AT[:-1], _budget, _throttle, _timekeeper)

_LATE_SECONDS = 1.0
"""How long after its deadline a run may be over: whose turn it is, is by chance, and one thread computes at a time."""

_PATIENT = 500.0

_SMALL = Policy().replace(stdout=2048, stderr=1024)
_POLICIES = (
    _SMALL.replace(wall_time=_PATIENT, fuel=None),
    _SMALL.replace(wall_time=_PATIENT, fuel=50_000_000),
    _SMALL.replace(wall_time=0.05, fuel=None),
    _SMALL.replace(wall_time=0.2, fuel=10**12),
    _SMALL.replace(wall_time=0.3, fuel=None, idle_time=0.05),
    _SMALL.replace(wall_time=_PATIENT, fuel=None, cpu_percent=30),
)

_plan = cache(real_plan)


_LASTING = "stockade-workers"

_awaited: ContextVar[list[bool]] = ContextVar("_awaited")


def _wait_for_real_threads() -> None:
    """Waits for threads that earlier runs have left lingering: the world's clock is not theirs.

    The thread that listens to workers lives as long as the process, and has nothing to do with runs in it.
    """
    while any(thread.name.startswith("stockade-") for thread in threading.enumerate() if thread.name != _LASTING):
        gc.collect()
        time.sleep(0.01)


class MineError(Exception):
    """What callbacks raise."""


class _Loop(asyncio.BaseEventLoop):
    """An event loop in a world."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._woken = False
        self._selector = self

    def time(self) -> float:
        return self._world.now

    def select(self, timeout: float | None) -> list[object]:
        self._world.wait(lambda: self._woken, timeout)
        self._woken = False
        return []

    def _write_to_self(self) -> None:
        self._woken = True

    def _process_events(self, events: object) -> None:
        pass


class _InOrder(dict[object, None]):
    """A set that keeps the order in which things came: that of their addresses is another one in each process."""

    def add(self, entry: object) -> None:
        self[entry] = None

    def discard(self, entry: object) -> None:
        self.pop(entry, None)


class _Forgetful(dict[int, memoryview]):
    """Keeps nothing: where the memories of a world lie is by chance, and which of them lie where others have lain."""

    def __setitem__(self, key: int, value: memoryview) -> None:
        pass


class _Taker:
    """Callbacks for output: each piece comes once, in its order, and after the one before was taken."""

    def __init__(self, scene: _Scene, kind: str) -> None:
        self._scene = scene
        self._kind = kind
        self._under_way = False
        self.sizes = {"1": 0, "2": 0}
        self.guest = ""

    def _take(self, piece: bytes) -> None:
        check = self._scene.world.check
        check(not self._under_way, "two calls of one callback at once")
        number, stream, at = piece[1 : piece.index(b">")].decode().split(":")
        check(self.guest in ("", number), "output of another guest")
        self.guest = number
        check(self.sizes[stream] == int(at), f"output at {at} of stream {stream}, where {self.sizes[stream]} was next")
        self.sizes[stream] += len(piece)
        self._scene.world.step()
        if self._kind == "raises" and not self._scene.world.chance.randrange(3):
            raise MineError
        if self._kind == "cancelled":
            raise asyncio.CancelledError

    async def _later(self, piece: bytes) -> None:
        self._take(piece)
        self._under_way = True
        if self._kind == "never":
            await asyncio.get_running_loop().create_future()
        for _ in range(self._scene.world.chance.randrange(3)):
            await asyncio.sleep(self._scene.world.chance.choice((0, 0, 0.001)))
        self._under_way = False

    @property
    def well(self) -> bool:
        return self._kind in ("plain", "later")

    def callback(self) -> Callable[[bytes], Any] | None:
        if self._kind == "none":
            return None
        return self._later if self._kind in ("later", "never") else self._take


class _Scene:
    """One world with its sandbox, and what was begun in it."""

    def __init__(self, seed: int) -> None:
        chance_of_fine = (0, 20, 80, 250)[seed % 4]
        self.world = World(seed, _LOOKED_AT, chance_of_fine)
        self.chance = self.world.chance
        self.fine = chance_of_fine > 0
        self.policy = self.chance.choice(_POLICIES)
        assert self.policy.limits.wall_time is not None
        self.patient = self.policy.limits.wall_time == _PATIENT
        self.reports = 0
        self.has_functions = False
        self.box: Sandbox
        self.library: Library

    # -- the world around ---------------------------------------------------------------------------------------------

    @contextmanager
    def patched(self) -> Iterator[None]:
        world = self.world
        _wait_for_real_threads()
        with pytest.MonkeyPatch.context() as patch:
            for module in (*_TIMED, _locks):
                for name in ("time", "threading"):
                    if hasattr(module, name):
                        patch.setattr(module, name, getattr(world, name))
            # Locks of the world are no business of children that other tests fork.
            patch.setattr(_locks, "_made", set())
            patch.setattr(_tellers, "_tellers", _tellers._Tellers())
            patch.setattr(_outside, "get_ident", world.threading.get_ident)
            patch.setattr(Engine, "_counts_lock", world.threading.RLock())
            patch.setattr(_executor, "_executor", _executor.Executor())
            patch.setattr(loop_room, "threading", world.threading)
            patch.setattr(loop_room, "_background", loop_room.BackgroundLoop())
            for room in (loop_room, own_loop):
                patch.setattr(room, "new_loop", lambda: _Loop(world))
            patch.setattr(_instance, "_views", _Forgetful())
            patch.setattr(_instance, "Failure", ModelFailure)
            patch.setattr(_instance, "error_text", lambda _: "as the model says")
            patch.setattr(_instance, "Memory", ModelMemory)
            for room in (_state, _inputs):
                patch.setattr(room, "OUTPUT_RING_BYTES", 1024)
            for name in ("run_steps", "call_steps", "attempt_run", "attempt_call"):
                patch.setattr(_sandbox, name, self._watched(getattr(_sandbox, name)))
            patch.setattr(_run.Guest, "_report", self._checked(_run.Guest._report))
            patch.setattr(_run.Guest, "renew", self._renewed(_run.Guest.renew))
            yield

    def _renewed(self, renew: Callable[[Guest], None]) -> Callable[[Guest], None]:
        def renewed(guest: Guest) -> None:
            renew(guest)
            if guest._instance is not None and not guest.ended:
                self.library.guests[guest._instance._context].begin_anew()

        return renewed

    def _checked(self, report: Callable[..., Report]) -> Callable[..., Report]:
        def checked(guest: Guest, *args: Any) -> Report:
            made = report(guest, *args)
            if guest._instance is not None:
                self._check(guest, made)
            return made

        return checked

    def _check(self, guest: Guest, report: Report) -> None:
        self.reports += 1
        assert guest._instance is not None
        model, usage, check = self.library.guests[guest._instance._context], report.usage, self.world.check
        check(not model.polled, "a report is made while the guest is polled")
        for numbers in (usage.cpu_seconds, usage.wall_seconds, usage.idle_seconds, report.timings.instantiate):
            check(numbers >= 0, "a time is negative")
        # What is over at once is told its time on the wall.
        exact = abs(usage.cpu_seconds - model.computed) < 1e-6 or usage.cpu_seconds == usage.wall_seconds < 1e-4
        check(exact, f"{usage.cpu_seconds} s of {model.computed} s computed")
        check(usage.idle_seconds <= usage.wall_seconds + 1e-3, "more idle than there was time")
        if model.number not in self.library.capped:
            check(report.stdout == model.written[1], "stdout is not what was written")
            check(report.stderr == model.written[2], "stderr is not what was written")
        if report.fuel is not None and report.fuel.exact and report.outcome is not Outcome.FUEL:
            burned = min(model.burned, report.fuel.initial)
            check(report.fuel.consumed == burned, f"{report.fuel.consumed} of {model.burned} units were burned")
        late = self.world.now - guest._control.deadline
        check(late < _LATE_SECONDS, f"a run is over {late} s after its deadline")
        if self.patient:
            check(report.outcome is not Outcome.TIMEOUT, "a run had all that it needed, and did not come to its end")

    # -- what guests do -----------------------------------------------------------------------------------------------

    def script(self, _: Any) -> list[Op]:
        chance = self.chance
        kinds = ["compute", "compute", "write", "write", "write", "look", "sleep", "read", "read"]
        if not self.has_functions and chance.randrange(2):
            # It is over before it halts, as most are.
            kinds = ["write", "look"]
        kinds += ["call"] * self.has_functions
        ops = []
        for _ in range(chance.randrange(1, 12)):
            what = chance.choice(kinds)
            amount = {"compute": chance.choice((0.0005, 0.004, 0.02)), "sleep": chance.choice((0.0, 0.003, 0.03))}.get(
                what, chance.choice((20, 100, 400))
            )
            ops.append(Op(what, amount))
        if not chance.randrange(12):
            ops.append(Op("trap"))
        if not self.patient and not chance.randrange(4):
            ops.append(Op("compute", float("inf")))
        return ops

    def script_within(self, depth: int) -> list[Op]:
        """What an export does that a host function calls."""
        chance = self.chance
        kinds = ["compute", "write", "look", "sleep"] + ["call"] * (depth < 3)
        ops = [Op(chance.choice(kinds), chance.choice((0.0005, 0.004))) for _ in range(chance.randrange(3))]
        if not chance.randrange(20):
            ops.append(Op("trap"))
        return [Op(op.what, 30 if op.what == "write" else op.amount) for op in ops]

    def called(self, call: HostCall, number: I64) -> I64:
        """What a plain function of the embedder does."""
        for _ in range(self.chance.randrange(3)):
            self.world.step()
        if not self.chance.randrange(4):
            self.world.time.sleep(self.chance.choice((0.001, 0.02)))
        if not self.chance.randrange(4):
            with suppress(StockadeError) if self.chance.randrange(2) else nullcontext():
                call.call("f")
        if not self.chance.randrange(25):
            raise self.chance.choice((MineError, asyncio.CancelledError))
        return number + 1

    async def awaited(self, call: HostCall, number: I64) -> I64:
        """What a coroutine function of the embedder does."""
        chance = self.chance
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(chance.choice((0, 0, 0.001, 0.02)))
        if not chance.randrange(4):
            with suppress(StockadeError) if chance.randrange(2) else nullcontext():
                await call.call_async("f")
        if not (self.patient or chance.randrange(10)):
            with suppress(asyncio.CancelledError):
                await asyncio.get_running_loop().create_future()
            # It was cancelled, and takes its time.
            await asyncio.sleep(chance.choice((0, 0.01, 0.2)))
        if not chance.randrange(25):
            raise chance.choice((MineError, asyncio.CancelledError))
        return number + 1

    # -- who does what ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """On the main thread of the world."""
        world, chance = self.world, self.chance
        world.unstartable = chance.choice((0, 0, 0, 100))
        # Without functions of the embedder, a run that is given nothing may be done on the thread of the loop.
        functions: list[Callable[..., Any]] = [self.called, self.awaited] if chance.randrange(4) else []
        self.has_functions = bool(functions)
        self.library = Library(world, chance.choice((2, 6, 1000)), self.script, self.script_within, functions)
        self.library.refusals = chance.choice((0, 0, 100))
        ModelMemory.library = self.library
        plan = _plan(self.policy)
        assert plan.program.woven.state_export is not None
        self.library.state_name = plan.program.woven.state_export
        self.plan: Plan = self.library.plan(plan)
        self.box = Sandbox(self.policy)
        assert self.box._contexts._own is not None
        self.box._contexts._own._plans[MODULE.sha256] = self.plan
        scenes = [self.runs, self.session, self.loop, self.loop, self.pool, self.scheduler, self.dropped, self.looks]
        if not self.has_functions:
            scenes += [self.loop] * 8
        threads = []
        for number in range(chance.randrange(1, 5)):
            scene = chance.choice(scenes)
            thread = world.threading.Thread(scene, f"{scene.__name__}-{number}")
            with suppress(RuntimeError):
                thread.start()
                threads.append(thread)
        if self.fine and chance.randrange(2):
            self.interrupted()
        for thread in threads:
            thread.join()
        self.library.world.unstartable = 0
        self.end()

    def end(self) -> None:
        """When all is done, nothing is left."""
        world, engine = self.world, self.library.engine
        gc.collect()
        # The executor's threads and the ticker go away by themselves.
        world.time.sleep(30)
        gc.collect()
        left = [guest.number for guest in self.library.guests.values() if not guest.freed]
        world.check(not left, f"stores {left} are left")
        world.check(engine.live_instances == 0, f"{engine.live_instances} instances are counted that are not there")
        world.check(not engine.ticker.running, "the ticker has runs on its list that do not run")
        names = [actor.name for actor in world.actors if actor.number]
        world.check(not names, f"threads are left: {names}")
        executor = _executor.executor()
        world.check(not executor._items, "the executor has runs on its list that are over")
        world.check(not executor._tenants, "the executor has tenants on its list that have no runs")
        world.check(not self.box._registry.runs, f"names are left: {list(self.box._registry.runs)}")

    def _watched(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """Steps that tell when they are taken although nobody awaits them any more."""

        def watched(steps: RunCoroutine[Report], over: list[bool]) -> RunCoroutine[Report]:
            while True:
                self.world.check(not over, "a guest goes on that nobody awaits any more")
                try:
                    until = next(steps)
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]
                yield until

        def made(*args: Any, **named: Any) -> Any:
            # What was attempted may be over, or not begun.
            steps = make(*args, **named)
            return watched(steps, _awaited.get([])) if isinstance(steps, Generator) else steps

        return made

    async def _until_over(self, run: Awaitable[Report]) -> Report:
        over: list[bool] = []
        _awaited.set(over)
        try:
            report = await run
        except GeneratorExit:
            # The loop is no more: nobody can wait for it.
            raise
        except BaseException:
            over.append(True)
            raise
        over.append(True)
        return report

    def _accept(self, problem: BaseException) -> None:
        """What may come of a run, beside a report."""
        if not isinstance(problem, StockadeError | MineError):
            raise problem

    def runs(self) -> None:
        for _ in range(self.chance.randrange(1, 4)):
            self.one_run()

    def one_run(self) -> None:
        kind = self.chance.choice(("none", "plain", "raises"))
        taker = _Taker(self, kind)
        stdin, fed = self.stdin()
        try:
            report = self.box.run(MODULE, stdin=stdin, on_stdout=taker.callback(), on_stderr=taker.callback())
            self._taken(taker, report)
        except (StockadeError, MineError, asyncio.CancelledError):
            pass
        fed()

    def _taken(self, taker: _Taker, report: Report) -> None:
        if report.ok and taker.guest:
            model = self.library.guests[int(taker.guest)]
            for stream in (1, 2):
                wanted, got = len(model.written[stream]), taker.sizes[str(stream)]
                self.world.check(got == wanted, f"{got} bytes of stream {stream} were taken, {wanted} written")

    def stdin(self) -> tuple[Any, Callable[[], None]]:
        """A source of stdin, and what waits until all of it was given."""
        if not self.chance.randrange(3):
            return bytes(number % 251 for number in range(self.chance.randrange(600))), lambda: None
        pipe = Pipe()
        sizes = [self.chance.randrange(1, 200) for _ in range(self.chance.choice((0, 0, 1, 3, 5)))]
        patience = self.chance.randrange(40)

        def feed() -> None:
            at = 0
            for _ in range(patience):
                self.world.step()
            for size in sizes:
                if not self.chance.randrange(3):
                    self.world.time.sleep(self.chance.choice((0.0001, 0.01)))
                pipe.write(bytes((at + place) % 251 for place in range(size)))
                at += size
                self.world.step()
            pipe.close()

        thread = self.world.threading.Thread(feed, "feeder")
        try:
            thread.start()
        except RuntimeError:
            feed()
            return pipe, lambda: None
        return pipe, thread.join

    def looks(self) -> None:
        """Whoever looks at runs from outside, and stops some."""
        for _ in range(self.chance.randrange(1, 20)):
            self.world.time.sleep(self.chance.choice((0.0005, 0.005)))
            for name, progress in self.box.monitor().items():
                self.world.check(progress.seconds >= 0, "a time is negative")
                if not self.chance.randrange(6):
                    self.box.cancel(name)

    def session(self) -> None:
        """A session that several want something of."""
        try:
            session = self.box.open(MODULE, stdin=b"\0\1\2")
        except StockadeError:
            return
        rivals = []
        for _ in range(self.chance.randrange(3)):
            rival = self.world.threading.Thread(lambda: self.rival(session), "rival")
            with suppress(RuntimeError):
                rival.start()
                rivals.append(rival)
        for _ in range(self.chance.randrange(1, 4)):
            with suppress(StockadeError, MineError, asyncio.CancelledError):
                session.call("f")
            self.world.step()
        for rival in rivals:
            rival.join()
        session.close()

    def rival(self, session: Any) -> None:
        for _ in range(self.chance.randrange(1, 6)):
            self.world.time.sleep(self.chance.choice((0.0, 0.001, 0.01)))
            what = self.chance.choice(("cancel", "cancel", "close", "call", "read"))
            with suppress(StockadeError, MineError, asyncio.CancelledError):
                if what == "call":
                    session.call("f")
                elif what == "read":
                    session.read_memory(0, 1)
                elif what == "cancel":
                    self.cancel_under_way(session)
                else:
                    session.close()

    def cancel_under_way(self, session: Any) -> None:
        """A call that is under way is stopped: what is cancelled does not come back as if nothing had been."""
        holder = session._occupancy.holder
        session.cancel()
        # The call may go on in between.
        self.world.step()
        if holder is not None and session._occupancy.holder is holder and not session._closed:
            self.world.check(session._control.cancelled, "a cancellation is lost")

    def dropped(self) -> None:
        """Sessions that nobody closes."""
        for _ in range(self.chance.randrange(1, 3)):
            with suppress(StockadeError, MineError, asyncio.CancelledError):
                session = self.box.open(MODULE)
                if self.chance.randrange(2):
                    session.itself = session  # type: ignore[attr-defined]
                if self.chance.randrange(2):
                    session.call("f")
                else:
                    # A call that was begun and is never gone on with, in a cycle with its session.
                    steps = session._steps(bind_arguments(MODULE, "f", ()))
                    session.itself = steps  # type: ignore[attr-defined]
                    for _ in range(self.chance.randrange(1, 8)):
                        next(steps, None)
                    self._silence(session._guest)
                    steps = None  # type: ignore[assignment]
            session = None  # type: ignore[assignment]
            self.world.step()
            if self.chance.randrange(2):
                gc.collect()

    def _silence(self, guest: Guest) -> None:
        """A coroutine function that asks for the guest is dropped with the steps that would answer it, and with its
        loop. Only here are steps dropped: who takes them closes them, and so cancels it. asyncio would tell of it.
        """
        own = guest._own_loop
        if own is not None and own._loop is not None:
            for task in asyncio.all_tasks(own._loop):
                task._log_destroy_pending = False  # type: ignore[attr-defined]

    def pool(self) -> None:
        try:
            pool = SessionPool(self.box, MODULE, size=self.chance.randrange(1, 4))
        except (StockadeError, MineError, RuntimeError):
            return

        def use() -> None:
            for _ in range(self.chance.randrange(1, 4)):
                with suppress(StockadeError, MineError, asyncio.CancelledError), pool.lease() as session:
                    session.call("f")
                    if not self.chance.randrange(4):
                        raise MineError

        users = [self.world.threading.Thread(use, "user") for _ in range(self.chance.randrange(1, 3))]
        started = []
        for user in users:
            with suppress(RuntimeError):
                user.start()
                started.append(user)
        if not self.chance.randrange(3):
            pool.close()
        for user in started:
            user.join()
        pool.close()

    def scheduler(self, handled: bool = False) -> None:
        chance = self.chance
        scheduler = Scheduler(self.box, concurrency=chance.randrange(1, 5), queue_size=chance.randrange(1, 10))
        scheduler._running = _InOrder()  # type: ignore[assignment]
        told: list[str] = []
        jobs: list[Any] = []

        def task() -> Task:
            return Task(module=MODULE, tenant=chance.choice("ab"), priority=chance.choice((1, 50, 100)), stdin="")  # type: ignore[arg-type]

        def tell(job: Any) -> None:
            if not chance.randrange(4):
                # That is closed by now, or it is waited for.
                with suppress(StockadeError, MineError, asyncio.CancelledError):
                    scheduler.submit(task()).result()
            told.append(job.task.id)

        def handler() -> None:
            what = chance.randrange(6)
            if jobs and what < 3:
                chance.choice(jobs).cancel()
            elif what == 3:
                scheduler.cancel_all()
            elif what == 4:
                self.box.monitor()
            elif not chance.randrange(4):
                scheduler.close(cancel=bool(chance.randrange(2)))

        if handled:
            self.world.signals(chance.randrange(1, 6), handler if chance.randrange(2) else None)
        for _ in range(chance.randrange(1, 8)):
            try:
                jobs.append(scheduler.submit(task()))
                jobs[-1].on_done(tell)
                if not chance.randrange(4):
                    self.world.time.sleep(0.002)
                if not chance.randrange(4):
                    chance.choice(jobs).cancel()
                if handled and not chance.randrange(3):
                    jobs[-1].wait(0.001)
            except StockadeError:
                continue
            except Signal:
                pass
        if handled:
            with suppress(Signal):
                scheduler.close()
            self.world.signals(0)
        scheduler.close(cancel=not chance.randrange(4))
        self.world.check(all(job.done for job in jobs), "a scheduler is closed, and a job is not done")
        for job in jobs:
            problem = job._run.report.problem
            if problem is not None and not (handled and isinstance(problem, Signal)):
                self._accept(problem)
        if not handled:
            self.world.wait(lambda: len(told) == len(jobs))
            told.sort()
            self.world.check(told == sorted(job.task.id for job in jobs), "who was told of jobs is not who had any")
        self.world.check(not scheduler._unfinished and not scheduler._late, "a scheduler has something left to do")
        self.world.check(not scheduler.running and not scheduler.waiting, "a scheduler has runs that are over")

    # -- awaited ------------------------------------------------------------------------------------------------------

    def loop(self) -> None:
        """An event loop with tasks that run guests, are cancelled, and cancelled again."""
        loop = _Loop(self.world)
        loop.set_exception_handler(lambda _, context: self._unhandled(context))
        try:
            if self.chance.randrange(8):
                loop.run_until_complete(self.tasks())
            else:
                self._thrown_away(loop)
        finally:
            loop.close()

    def _thrown_away(self, loop: _Loop) -> None:
        """The loop stops in the midst of it, and what awaits runs is closed where it is."""
        main = loop.create_task(self.tasks())
        loop.run_until_complete(asyncio.sleep(self.chance.choice((0, 0.001, 0.01))))
        for task in sorted(asyncio.all_tasks(loop), key=lambda task: int(task.get_name().removeprefix("Task-"))):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            # That a coroutine awaits in its farewell, and may not, is how it is with loops that are no more.
            with suppress(StockadeError, RuntimeError, MineError):
                task.get_coro().close()  # type: ignore[union-attr]
        del main

    def _unhandled(self, context: dict[str, Any]) -> None:
        problem = context.get("exception")
        if isinstance(problem, BrokenError | Over):
            return
        if not isinstance(problem, StockadeError | MineError | asyncio.CancelledError | None):
            self.world.fail(BrokenError(f"{context}"))

    async def tasks(self) -> None:
        chance = self.chance
        tasks: list[asyncio.Task[None]] = []
        cancelled = set()
        for _ in range(chance.randrange(1, 5)):
            one = chance.choice((self.run_awaited, self.run_awaited, self.call_awaited, self.session_awaited))
            tasks.append(asyncio.ensure_future(self._bounded(one)))
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(chance.choice((0, 0, 0, 0.001, 0.02)))
            if chance.randrange(2):
                cancelled.add(task := chance.choice(tasks))
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            self.world.check(not task.cancelled() or task in cancelled, "a task is cancelled, and nobody has done that")
            if not task.cancelled() and (problem := task.exception()) is not None:
                self._accept(problem)
        # What was dropped with an exception may be in a cycle with it.
        del task
        tasks.clear()
        cancelled.clear()
        gc.collect()
        for _ in range(3):
            await asyncio.sleep(0)
        left = [task for task in asyncio.all_tasks() if "LoopStreams" in repr(task)]
        self.world.check(not left, f"tasks of runs are left that are over: {left}")

    async def _bounded(self, one: Callable[[], Awaitable[None]]) -> None:
        chance = self.chance
        if chance.randrange(3):
            await one()
            return
        with suppress(TimeoutError):
            async with (
                asyncio.timeout(chance.choice((0, 0.002, 0.02))),
                asyncio.timeout(chance.choice((0, 0.002, 0.01))),
            ):
                await one()

    def source(self) -> Any:
        kind = self.chance.choice(("bytes", "queue", "coroutine", "pipe"))
        if kind in ("bytes", "pipe"):
            return self.stdin()[0]
        at = 0
        left = self.chance.randrange(5)

        def next_piece() -> bytes | None:
            nonlocal at, left
            if not left:
                return None
            left -= 1
            piece = bytes((at + place) % 251 for place in range(self.chance.randrange(1, 200)))
            at += len(piece)
            return piece

        if kind == "queue":
            queue: asyncio.Queue[bytes | None] = asyncio.Queue()
            loop = asyncio.get_running_loop()

            def put() -> None:
                piece = next_piece()
                queue.put_nowait(piece)
                if piece is not None:
                    loop.call_later(self.chance.choice((0, 0.001, 0.01)), put)

            loop.call_soon(put)
            return queue

        async def fetch(_: int) -> bytes | None:
            await asyncio.sleep(self.chance.choice((0, 0, 0.003)))
            return next_piece()

        return fetch

    async def run_awaited(self) -> None:
        kinds = ["none", "plain", "later", "later", "raises", "cancelled"] + ["never"] * (not self.patient)
        if not self.chance.randrange(6 if self.has_functions else 2):
            await self._until_over(self.box.run_async(MODULE))
            return
        taker = _Taker(self, self.chance.choice(kinds))
        report = await self._until_over(
            self.box.run_async(
                MODULE,
                stdin=self.source(),
                on_stdout=taker.callback(),
                on_stderr=taker.callback(),
                priority=self.chance.choice((1, 50, 100)),
                tenant=self.chance.choice("ab"),
            )
        )
        self._taken(taker, report)

    async def call_awaited(self) -> None:
        await self._until_over(self.box.call_async(MODULE, "f"))

    async def session_awaited(self) -> None:
        session = await self.box.open_async(MODULE, stdin=self.source())
        rival = None if self.chance.randrange(3) else asyncio.ensure_future(self.calls(session, 8))
        try:
            await self.calls(session, self.chance.randrange(1, 4))
        except GeneratorExit:
            if rival is not None:
                rival._log_destroy_pending = False  # type: ignore[attr-defined]
            raise
        except BaseException:
            await self._without(rival)
            self.world.check(session._occupancy.holder is None, "nobody awaits a call any more, and it has the session")
            raise
        else:
            await self._without(rival)
        finally:
            # Whatever was cancelled, and however often: its guest has halted. Some drop it, and do not close it.
            if self.chance.randrange(4):
                await session.close()

    async def _without(self, rival: asyncio.Task[None] | None) -> None:
        """Waits until another task is over, whatever comes."""
        while rival is not None and not rival.done():
            rival.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([rival])

    async def calls(self, session: Any, many: int) -> None:
        for _ in range(many):
            with suppress(StockadeError, MineError):
                await session.call("f")
            await asyncio.sleep(0)

    # -- signals ------------------------------------------------------------------------------------------------------

    def handler(self) -> None:
        """The handler of a signal, which cancels what it finds, or looks at it."""
        for name in self.box.monitor():
            if self.chance.randrange(2):
                self.box.cancel(name)

    def interrupted(self) -> None:
        """The main thread runs guests, and handlers of signals raise in the midst of it."""
        for _ in range(self.chance.randrange(1, 4)):
            kind = self.chance.randrange(6)
            if kind == 0:
                self.scheduler(handled=True)
                continue
            self.world.signals(self.chance.randrange(1, 3), self.handler if kind < 3 else None)
            try:
                if self.chance.randrange(2):
                    self.one_run()
                else:
                    with self.box.open(MODULE) as session:
                        session.call("f")
            except (Signal, StockadeError, MineError, asyncio.CancelledError):
                pass
            finally:
                self.world.signals(0)


def simulate(seed: int) -> tuple[int, int]:
    """Lets a world go by. Returns its steps, and how many reports were made in it.

    Args:
        seed: Decides all that happens.

    Raises:
        BrokenError: Something does not hold that must.
    """
    for policy in _POLICIES:
        # Made before: what is done once for the process is no part of any world.
        _plan(policy)
    # What an earlier world has left to be used again.
    Engine._let_idle_go()
    Engine.settle()
    scene = _Scene(seed)
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    # Collected where the seed says, and only what is of this world.
    gc.disable()
    gc.freeze()
    try:
        with warnings.catch_warnings(), scene.patched():
            warnings.simplefilter("ignore")
            scene.world.run(scene.begin)
    except BaseException as problem:
        problem.add_note(f"replay it with STOCKADE_SEED={seed} make simulate")
        raise
    finally:
        gc.unfreeze()
        gc.enable()
        sys.unraisablehook = hook
    return scene.world.steps, scene.reports
