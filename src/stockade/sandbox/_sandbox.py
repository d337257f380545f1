"""The facade: `Sandbox`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

from stockade.errors import IsolationError, UsageError
from stockade.execution import Inputs
from stockade.policy import Policy
from stockade.runner import NORMAL_PRIORITY, RunControl, run_blocking
from stockade.sandbox._runs import Runs
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
        Stdin,
    )
    from stockade.execution.loop_streams import LoopStreams
    from stockade.modules import Module, Source
    from stockade.report import Report
    from stockade.runner import RunCoroutine

__all__ = ["Sandbox"]

_Function = TypeVar("_Function", bound="Callable[..., object]")
_Result = TypeVar("_Result")


def _silent(step: str) -> None:
    """Reports no progress."""


class Sandbox(Runs):
    """Runs modules under one policy. Reusable, and safe to share between threads.

    `run` and `call` return a report whatever the guest did; they raise only for what the caller did wrong.

    Args:
        policy: A policy, or the name of a preset.
        isolation: Where runs happen: `inprocess`.

    Raises:
        PolicyError: There is no such preset, a mount cannot be granted, or the policy asks for what cannot be enforced.
        IsolationError: The isolation mode is unavailable.
    """

    def __init__(
        self, policy: Policy | str = "default", isolation: Literal["inprocess", "process"] = "inprocess"
    ) -> None:
        if isolation != "inprocess":
            raise IsolationError(f'isolation {isolation!r} is not available in this release: use "inprocess"')
        super().__init__(Policy.preset(policy) if isinstance(policy, str) else policy)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

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
        context = self._under(None)
        loaded = context.load(module)
        context.plan(loaded, progress)
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
            run_id: What the run is called in `monitor` and `cancel`; by default, # and a number.

        Returns:
            What happened.

        Raises:
            ModuleError: The module cannot be run.
            PolicyError: The policy cannot be enforced.
            UsageError: The sandbox is closed, or an argument is unfit.
        """
        context = self._under(policy)
        control = RunControl()
        try:
            self._enlist(run_id, control)
            inputs = Inputs(args, stdin, env, on_stdout, on_stderr, on_progress)
            return run_blocking(self._run(context, control, module, inputs), control)
        finally:
            if self._runs.get(control.name) is control:
                del self._runs[control.name]

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
            run_id: What the call is called in `monitor` and `cancel`; by default, # and a number.

        Returns:
            What happened; `Report.value` is what the function returned.

        Raises:
            ModuleError: The module cannot be run, or has no such function.
            UsageError: The sandbox is closed, or the arguments do not fit the function.
        """
        context = self._under(policy)
        control = RunControl()
        try:
            self._enlist(run_id, control)
            return run_blocking(self._call(context, control, module, export, args, returns), control)
        finally:
            if self._runs.get(control.name) is control:
                del self._runs[control.name]

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
        context = self._under(policy)
        loaded = context.load(module)
        control = RunControl()
        return Session(loaded, context.guest(loaded, control, Inputs(args, stdin, env, on_stdout, on_stderr)), control)

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
        context = self._under(policy)
        control = RunControl()
        streams: LoopStreams | None = None
        try:
            self._enlist(run_id, control)
            inputs = Inputs(args, stdin, env, on_stdout, on_stderr, on_progress)
            streams = _loop_streams(inputs, control)
            steps = self._run(context, control, module, inputs, streams, tenant)
            return await _on_crew(steps, control, priority, tenant)
        finally:
            if self._runs.get(control.name) is control:
                del self._runs[control.name]
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
        context = self._under(policy)
        control = RunControl()
        try:
            self._enlist(run_id, control)
            steps = self._call(context, control, module, export, args, returns, tenant)
            return await _on_crew(steps, control, priority, tenant)
        finally:
            if self._runs.get(control.name) is control:
                del self._runs[control.name]

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
        context = self._under(policy)
        control = RunControl()
        loaded = await _on_crew(self._prepare(context, control, module, tenant), control, priority, tenant)
        inputs = Inputs(args, stdin, env, on_stdout, on_stderr)
        streams = _loop_streams(inputs, control)
        session = AsyncSession(
            loaded, context.guest(loaded, control, inputs, streams), control, streams, priority, tenant
        )
        await session.initialize()
        return session


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


async def _on_crew(steps: RunCoroutine[_Result], control: RunControl, priority: int, tenant: str) -> _Result:
    # What belongs to event loops takes longer to import than a small guest to run, and most never need it.
    from stockade.runner.loop import await_run

    return await await_run(steps, control, priority, tenant)


def _loop_streams(inputs: Inputs, control: RunControl) -> LoopStreams | None:
    if not inputs.served:
        return None
    from stockade.execution.loop_streams import LoopStreams

    return LoopStreams(inputs, control)
