"""The facade: `Sandbox`."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Literal, TypeVar

from stockade._text import printable
from stockade.errors import IsolationError, UsageError
from stockade.execution import NORMAL_PRIORITY, Call, Ground, Inputs, Module, Watch, drive, fit
from stockade.host import HostFunctions
from stockade.policy import Policy
from stockade.report import FuelSample, history_of
from stockade.sandbox._session import AsyncSession, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

    from stockade.execution import (
        Argument,
        AsyncStdin,
        OnOutput,
        OnOutputAsync,
        OnProgress,
        Returns,
        Source,
        Stdin,
        Steps,
    )
    from stockade.execution.awaited import LoopStreams
    from stockade.report import FuelHistory, Progress, Report

__all__ = ["Sandbox"]

_Function = TypeVar("_Function", bound="Callable[..., object]")

_MAX_NARROWED = 16
"""Policies of single runs that are kept ready."""


def _silent(step: str) -> None:
    """Reports no progress."""


class Sandbox:
    """Runs modules under one policy. Reusable, and safe to share between threads.

    `run` and `call` return a report whatever the guest did; they raise only for what the caller did wrong.

    Args:
        policy: A policy, or the name of a preset.
        isolation: Where runs happen: `inprocess`.

    Raises:
        PolicyError: There is no such preset, a mount cannot be granted, or the policy asks for what cannot be enforced.
        IsolationError: The isolation is not to be had.
    """

    def __init__(
        self, policy: Policy | str = "default", isolation: Literal["inprocess", "process"] = "inprocess"
    ) -> None:
        self.policy = Policy.preset(policy) if isinstance(policy, str) else policy
        if isolation != "inprocess":
            raise IsolationError(f'isolation {isolation!r} is not available in this release: use "inprocess"')
        self._lock = threading.Lock()
        self._functions = HostFunctions()
        self._ground: Ground | None = Ground(self.policy, self._functions)
        self._narrowed: OrderedDict[Policy, Ground] = OrderedDict()
        self._numbers = itertools.count(1)
        self._runs: dict[str, Watch] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the sandbox: nothing can be run in it any more. Closing twice is harmless."""
        self._ground = None
        with self._lock:
            self._narrowed.clear()

    def prepare(self, module: Source, progress: Callable[[str], None] = _silent) -> Module:
        """Loads and compiles a module ahead of its first run.

        Args:
            module: The module.
            progress: Is told what is being done, before each step that may take long.

        Returns:
            The module, loaded: give it to `run` and `call`.

        Raises:
            ModuleError: It cannot be run.
        """
        ground = self._under(None)
        loaded = ground.load(module)
        ground.plan(loaded, progress)
        return loaded

    def host_function(
        self, module: str, name: str | None = None, *, requires: str | None = None
    ) -> Callable[[_Function], _Function]:
        """Lends a function to guests, as a decorator: guests import it and call it.

        Its type follows from its annotations: `int` is i32, `float` f64, `bool` an i32; `stockade.I64` and its like say
        more; `str` and `bytes` take two numbers, address and length, and read the guest's memory. A first parameter
        annotated `stockade.HostCall` gets the call itself, with the guest's memory. What the function raises ends the
        run that called it, as a trap.

        Args:
            module: The import module, such as `env`.
            name: The name of the import; by default, that of the function.
            requires: A custom capability: the run ends as denied where the policy does not grant it.

        Raises:
            UsageError: The annotations are not fit, or the name is taken.
        """

        def lend(function: _Function) -> _Function:
            named = getattr(function, "__name__", None) if name is None else name
            if named is None:
                raise UsageError("what is lent has no name of its own: give the name of the import")
            self._functions.add(module, named, function, requires)
            return function

        return lend

    def run(
        self,
        module: Source,
        args: Sequence[str | bytes] = (),
        *,
        stdin: Stdin = b"",
        env: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        on_progress: OnProgress | None = None,
        policy: Policy | str | None = None,
        run_id: str | None = None,
    ) -> Report:
        """Runs a WASI command: `_start`, else `main`.

        Callbacks are called on this thread while the guest is halted, some hundred times a second; what one raises ends
        the run and is raised here. A guest that writes faster than they take waits for them.

        Args:
            module: Path of a module, its bytes, or a loaded module.
            args: Arguments for the guest, after its name.
            stdin: What it reads from its standard input: bytes, text, a `Pipe`, a `queue.Queue` in which None is the
                end, a binary file, or a function that is called with a number of bytes and returns at most so many: no
                bytes at the end, None where there are none yet.
            env: Its environment, beside what the policy passes on.
            on_stdout: Is given stdout in pieces as they are written, in their order with those of stderr.
            on_stderr: The same for stderr.
            on_progress: Is told how far the run is, up to ten times a second.
            policy: A policy for this run. What it permits beyond the sandbox's own stays forbidden: both must permit.
            run_id: What the run is called in `monitor` and `cancel`; by default, a number.

        Returns:
            What happened.

        Raises:
            ModuleError: The module cannot be run.
            PolicyError: The policy cannot be enforced.
            UsageError: The sandbox is closed, or an argument is unfit.
        """
        ground = self._under(policy)
        watch, run_id = self._enlist(run_id)
        try:
            inputs = Inputs(args, stdin, env, on_stdout, on_stderr, on_progress)
            return drive(self._run(ground, watch, module, inputs), watch)
        finally:
            del self._runs[run_id]

    def call(
        self,
        module: Source,
        export: str,
        *args: Argument,
        returns: Returns | None = None,
        policy: Policy | str | None = None,
        run_id: str | None = None,
    ) -> Report:
        """Calls an exported function; a reactor is initialized first.

        Args:
            module: Path of a module, its bytes, or a loaded module.
            export: Name of the function.
            *args: A number for each parameter; a text (UTF-8) or bytes for two i32, address and length, where the
                module exports an allocator.
            returns: Reads the result as `text` or `bytes`, whose address and length it is; at most `limits.stdout`.
            policy: A policy for this call; both it and the sandbox's own must permit.
            run_id: What the call is called in `monitor` and `cancel`; by default, a number.

        Returns:
            What happened; `Report.value` is what the function returned.

        Raises:
            ModuleError: The module cannot be run, or has no such function.
            UsageError: The sandbox is closed, or the arguments do not fit the function.
        """
        ground = self._under(policy)
        watch, run_id = self._enlist(run_id)
        try:
            return drive(self._call(ground, watch, module, export, args, returns), watch)
        finally:
            del self._runs[run_id]

    def open(
        self,
        module: Source,
        args: Sequence[str | bytes] = (),
        *,
        stdin: Stdin = b"",
        env: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        policy: Policy | str | None = None,
    ) -> Session:
        """Opens a live instance that keeps its state between calls; a reactor is initialized first.

        Args:
            module: Path of a module, its bytes, or a loaded module.
            args: Arguments that the guest sees, after its name.
            stdin: What it reads from its standard input, as in `run`.
            env: Its environment.
            on_stdout: Is given stdout in pieces as they are written.
            on_stderr: The same for stderr.
            policy: A policy for this session; both it and the sandbox's own must permit.

        Raises:
            ModuleError: The module cannot be run.
            GuestError: Its initialization failed.
        """
        ground = self._under(policy)
        loaded = ground.load(module)
        watch = Watch()
        return Session(loaded, ground.guest(loaded, watch, Inputs(args, stdin, env, on_stdout, on_stderr)), watch)

    # -- awaited ------------------------------------------------------------------------------------------------------

    async def run_async(
        self,
        module: Source,
        args: Sequence[str | bytes] = (),
        *,
        stdin: AsyncStdin = b"",
        env: Mapping[str, str] | None = None,
        on_stdout: OnOutputAsync | None = None,
        on_stderr: OnOutputAsync | None = None,
        on_progress: OnProgress | None = None,
        policy: Policy | str | None = None,
        run_id: str | None = None,
        priority: int = NORMAL_PRIORITY,
        tenant: str = "",
    ) -> Report:
        """Does what `run` does, without blocking the event loop.

        A few threads take turns with all runs of the process; a guest that waits, in a sleep or for its input, holds
        none. Cancelling the task stops the guest, also in its sleep. Output callbacks are called on the event loop, and
        awaited if they can be.

        Args:
            module: As in `run`; so are `args`, `env`, `on_progress`, `policy` and `run_id`.
            args: Arguments for the guest.
            stdin: As in `run`; or an `asyncio.Queue` in which None is the end, an `asyncio.StreamReader`, an
                asynchronous iterator, or a coroutine function. A plain function is called on another thread.
            env: Its environment.
            on_stdout: Is given stdout in pieces as they are written.
            on_stderr: The same for stderr.
            on_progress: Is told how far the run is.
            policy: A policy for this run.
            run_id: What the run is called.
            priority: Its share of the threads among the runs of its tenant, 1 to 100.
            tenant: For whom it runs: tenants have equal shares.
        """
        check_count("priority", priority, 1, 100)
        ground = self._under(policy)
        watch, run_id = self._enlist(run_id)
        streams: LoopStreams | None = None
        try:
            loaded = await self._ready(ground, module)
            inputs = Inputs(args, stdin, env, on_stdout, on_stderr, on_progress)
            streams = _loop_streams(inputs, watch)
            return await _on_crew(self._run(ground, watch, loaded, inputs, streams), watch, priority, tenant)
        finally:
            del self._runs[run_id]
            if streams is not None:
                streams.close()

    async def call_async(
        self,
        module: Source,
        export: str,
        *args: Argument,
        returns: Returns | None = None,
        policy: Policy | str | None = None,
        run_id: str | None = None,
        priority: int = NORMAL_PRIORITY,
        tenant: str = "",
    ) -> Report:
        """Does what `call` does, without blocking the event loop; see `run_async`.

        Args:
            module: As in `call`; so are `export`, `args`, `returns`, `policy` and `run_id`.
            export: Name of the function.
            *args: What is passed.
            returns: What the result is read as.
            policy: A policy for this call.
            run_id: What the call is called.
            priority: Its share of the threads among the runs of its tenant, 1 to 100.
            tenant: For whom it runs.
        """
        check_count("priority", priority, 1, 100)
        ground = self._under(policy)
        watch, run_id = self._enlist(run_id)
        try:
            loaded = await self._ready(ground, module)
            return await _on_crew(self._call(ground, watch, loaded, export, args, returns), watch, priority, tenant)
        finally:
            del self._runs[run_id]

    async def open_async(
        self,
        module: Source,
        args: Sequence[str | bytes] = (),
        *,
        stdin: AsyncStdin = b"",
        env: Mapping[str, str] | None = None,
        on_stdout: OnOutputAsync | None = None,
        on_stderr: OnOutputAsync | None = None,
        policy: Policy | str | None = None,
        priority: int = NORMAL_PRIORITY,
        tenant: str = "",
    ) -> AsyncSession:
        """Opens a session whose calls are awaited; see `open` and `run_async`.

        Args:
            module: As in `open`; so are `args`, `env` and `policy`.
            args: Arguments that the guest sees.
            stdin: As in `run_async`.
            env: Its environment.
            on_stdout: Is given stdout in pieces as they are written.
            on_stderr: The same for stderr.
            policy: A policy for this session.
            priority: Its share of the threads among the runs of its tenant, 1 to 100.
            tenant: For whom it runs.
        """
        check_count("priority", priority, 1, 100)
        ground = self._under(policy)
        loaded = await self._ready(ground, module)
        watch = Watch()
        inputs = Inputs(args, stdin, env, on_stdout, on_stderr)
        streams = _loop_streams(inputs, watch)
        session = AsyncSession(loaded, ground.guest(loaded, watch, inputs, streams), watch, streams, priority, tenant)
        await session.initialize()
        return session

    # -- runs under way -----------------------------------------------------------------------------------------------

    def monitor(self) -> dict[str, Progress]:
        """Tells how far the runs under way are, by their names. May be called from any thread.

        Runs that wait for their turn, or for their module to be compiled, are left out.
        """
        found = {}
        for run_id, watch in tuple(self._runs.items()):
            progress = watch.progress
            told = None if progress is None else progress()
            if told is not None:
                found[run_id] = told
        return found

    def cancel(self, run_id: str) -> bool:
        """Stops a run, and no other: within a slice while it computes, at once while it waits.

        Args:
            run_id: Its name, as given to `run` or told by `monitor`.

        Returns:
            Whether there was such a run.
        """
        watch = self._runs.get(run_id)
        if watch is None:
            return False
        watch.cancel()
        return True

    def fuel_history(self, module: Module) -> FuelHistory | None:
        """Tells what the latest runs of a module, under the sandbox's own policy, did with their fuel.

        Args:
            module: The module.

        Returns:
            The history of up to 64 runs; None where there was none, or none was metered.
        """
        return history_of(FuelSample(*sample) for sample in self._under(None).history(module))

    # -- for whoever has the crew take the steps --------------------------------------------------------------------

    def is_ready(self, module: Source) -> bool:
        """Whether a module runs at once, without being loaded or compiled first.

        Args:
            module: The module.
        """
        return isinstance(module, Module) and self._under(None).is_ready(module)

    def steps(
        self,
        module: Source,
        args: Sequence[Argument] = (),
        *,
        export: str | None = None,
        stdin: Stdin = b"",
        env: Mapping[str, str] | None = None,
        policy: Policy | str | None = None,
        run_id: str | None = None,
    ) -> tuple[Steps[Report], Watch]:
        """Returns a run, or a call of an export, in steps that somebody else takes; and its watch.

        Args:
            module: As in `run`; so are `stdin`, `env`, `policy` and `run_id`.
            args: Arguments of the command, or of the function.
            export: The function; None to run a command.
            stdin: Its standard input.
            env: Its environment.
            policy: A policy for this run.
            run_id: What it is called.

        Raises:
            ModuleError: The module cannot be run.
            PolicyError: The policy cannot be enforced.
            UsageError: The sandbox is closed, or an argument is unfit.
        """
        ground = self._under(policy)
        loaded = ground.load(module)
        ground.plan(loaded)
        watch, run_id = self._enlist(run_id)
        if export is None:
            texts = [arg if isinstance(arg, str | bytes) else str(arg) for arg in args]
            steps = self._run(ground, watch, loaded, Inputs(texts, stdin, env))
        else:
            steps = self._call(ground, watch, loaded, export, args, None)
        return self._listed(steps, run_id), watch

    def _listed(self, steps: Steps[Report], run_id: str) -> Steps[Report]:
        try:
            return (yield from steps)
        finally:
            del self._runs[run_id]

    # -- what the methods share -----------------------------------------------------------------------------------

    def _enlist(self, run_id: str | None) -> tuple[Watch, str]:
        """Puts a run on the list; whoever does takes it off."""
        watch = Watch()
        if run_id is None:
            run_id = str(next(self._numbers))
        if self._runs.setdefault(run_id, watch) is not watch:
            raise UsageError(f"a run called {printable(run_id)} is under way: give each run a name of its own")
        return watch, run_id

    async def _ready(self, ground: Ground, module: Source) -> Module:
        """Loads and compiles a module; on another thread, if there is anything to do."""
        if isinstance(module, Module) and ground.is_ready(module):
            return module
        import asyncio

        def prepare() -> Module:
            loaded = ground.load(module)
            ground.plan(loaded)
            return loaded

        return await asyncio.to_thread(prepare)

    def _run(
        self, ground: Ground, watch: Watch, module: Source, inputs: Inputs, streams: LoopStreams | None = None
    ) -> Steps[Report]:
        loaded = ground.load(module)
        entry = loaded.command_entry
        guest = ground.guest(loaded, watch, inputs, streams)
        watch.progress = guest.progress
        try:
            return (yield from guest.invoke(Call(entry), command=True))
        finally:
            watch.progress = None
            guest.close()

    def _call(
        self,
        ground: Ground,
        watch: Watch,
        module: Source,
        export: str,
        args: Sequence[Argument],
        returns: Returns | None,
    ) -> Steps[Report]:
        loaded = ground.load(module)
        call = fit(loaded, export, args, returns)
        guest = ground.guest(loaded, watch)
        watch.progress = guest.progress
        try:
            initializer = loaded.initializer
            if initializer is not None and initializer.name != call.entry.name:
                report = yield from guest.invoke(Call(initializer))
                if not report.ok or guest.ended:
                    return report
            return (yield from guest.invoke(call))
        finally:
            watch.progress = None
            guest.close()

    def _under(self, policy: Policy | str | None) -> Ground:
        """Returns the ground for a run: the sandbox's own, or a narrower one where the run has a policy of its own."""
        ground = self._ground
        if ground is None:
            raise UsageError("the sandbox is closed: make a new one")
        if policy is None:
            return ground
        asked = Policy.preset(policy) if isinstance(policy, str) else policy
        with self._lock:
            found = self._narrowed.get(asked)
            if found is None:
                found = self._narrowed[asked] = Ground(self.policy.narrow(asked), self._functions)
            self._narrowed.move_to_end(asked)
            while len(self._narrowed) > _MAX_NARROWED:
                self._narrowed.popitem(last=False)
        return found


def check_count(name: str, number: object, least: int, most: int | None = None) -> None:
    """Checks that an argument is a whole number within its bounds.

    Args:
        name: What the argument is called.
        number: What was given.
        least: The least that it may be.
        most: The most; None where there is no such bound.

    Raises:
        UsageError: It is not.
    """
    if type(number) is not int or number < least or (most is not None and number > most):
        bounds = f"from {least} on" if most is None else f"from {least} to {most}"
        raise UsageError(f"{name} is {number!r}: it must be a whole number {bounds}")


async def _on_crew(steps: Steps[Report], watch: Watch, priority: int, tenant: str) -> Report:
    # What belongs to event loops takes longer to import than a small guest to run, and most never need it.
    from stockade.execution.awaited import on_crew

    return await on_crew(steps, watch, priority, tenant)


def _loop_streams(inputs: Inputs, watch: Watch) -> LoopStreams | None:
    if not inputs.served:
        return None
    from stockade.execution.awaited import LoopStreams

    return LoopStreams(inputs, watch)
