"""The facade: `Sandbox`."""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Literal, TypeVar, overload

from stockade.errors import IsolationError, UsageError
from stockade.execution import Inputs
from stockade.policy import policy_of
from stockade.runner import NORMAL_PRIORITY, RunControl, run_blocking
from stockade.sandbox._checks import check_count, check_text
from stockade.sandbox._runs import Runs
from stockade.sandbox._session import AsyncSession, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
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
    from stockade.policy import PolicyLike
    from stockade.report import Report
    from stockade.runner import RunCoroutine

__all__ = ["Sandbox"]

_Function = TypeVar("_Function", bound="Callable[..., object]")
_Result = TypeVar("_Result")


def _silent(step: str) -> None:
    """Reports no progress."""


class Sandbox(Runs):
    """Runs modules under one policy. Reusable, and safe to share between threads.

    What raises and what reports is one rule: **a mistake of the caller raises, before anything runs** (no such file, no
    WebAssembly, an impossible policy, an unfit argument), as a subclass of `StockadeError`; **what the guest did is
    reported**, whatever it was, in a `Report`, whose `check` raises for whoever wants that. So it is for `run`, `call`,
    the calls of a session, and `stockade.run`. `stockade.call` alone is for the value of a function: it checks the
    report, and returns the value or raises.

    Use it as a context manager, with `with` or `async with`: that closes it, which ends what is under way.

    Args:
        policy: A policy, the name of a preset, or the path of a policy file.
        isolation: Where runs happen: `inprocess`.

    Raises:
        PolicyError: There is no such preset, a mount cannot be granted, or the policy asks for what cannot be enforced.
        IsolationError: The isolation is not to be had.
    """

    def __init__(
        self, policy: PolicyLike = "default", isolation: Literal["inprocess", "process"] = "inprocess"
    ) -> None:
        if isolation != "inprocess":
            raise IsolationError(f'isolation {isolation!r} is not available in this release: use "inprocess"')
        super().__init__(policy_of(policy))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close_async()

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

        Its type follows from its annotations: `int` is i32, `float` f64, `bool` an i32; `stockade.host.I64` and its
        like say more; `str` and `bytes` take two numbers, address and length, and read the guest's memory. A first
        parameter annotated `stockade.HostCall` gets the call itself, with the guest's memory. What the function raises
        ends the run that called it, as a trap.

        Args:
            module: The import module, such as `env`.
            name: The name of the import; by default, that of the function.
            requires: A custom capability: the run ends as denied where the policy does not grant it.

        Raises:
            UsageError: The annotations are not fit, or the name is taken.
        """
        check_text("module", module)
        for what, text in (("name", name), ("requires", requires)):
            if text is not None:
                check_text(what, text)

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
        policy: PolicyLike | None = None,
        run_id: str | None = None,
    ) -> Report:
        """Runs a WASI command: `_start`, else `main`.

        Callbacks are called on this thread while the guest is halted, some hundred times a second; what one raises ends
        the run and is raised here. A guest that writes faster than they take waits for them.

        Args:
            module: Path of a module (`.wasm`, or `.wat` in the text format), its bytes in either format, or a loaded
                module.
            args: Arguments for the guest, after its name.
            stdin: What it reads from its standard input: bytes, text, a `Pipe`, a `queue.Queue` in which None is the
                end, a binary file, or a function that is called with a number of bytes and returns at most so many: no
                bytes at the end, None where there are none yet.
            env: Its environment, beside what the policy passes on.
            on_stdout: Is given stdout in pieces as they are written, in their order with those of stderr.
            on_stderr: The same for stderr.
            on_progress: Is told how far the run is, up to ten times a second.
            policy: A policy for this run, as for the sandbox. What it permits beyond the sandbox's own stays forbidden:
                both must permit.
            run_id: What the run is called in `monitor` and `cancel`; by default, a number.

        Returns:
            What happened.

        Raises:
            ModuleError: The module cannot be run.
            PolicyError: The policy cannot be enforced.
            UsageError: The sandbox is closed, or an argument is unfit.
        """
        context = self._under(policy)
        control, run_id = self._enlist(run_id)
        try:
            inputs = Inputs(args, stdin, env, on_stdout, on_stderr, on_progress)
            control.thread = get_ident()
            return run_blocking(self._run(context, control, module, inputs), control)
        finally:
            self._leave(run_id, control)

    @overload
    def call(
        self,
        module: Source,
        export: str,
        *args: Argument,
        returns: Literal["text"],
        policy: PolicyLike | None = None,
        run_id: str | None = None,
    ) -> Report[str | None]: ...

    @overload
    def call(
        self,
        module: Source,
        export: str,
        *args: Argument,
        returns: Literal["bytes"],
        policy: PolicyLike | None = None,
        run_id: str | None = None,
    ) -> Report[bytes | None]: ...

    @overload
    def call(
        self,
        module: Source,
        export: str,
        *args: Argument,
        returns: Returns | None = None,
        policy: PolicyLike | None = None,
        run_id: str | None = None,
    ) -> Report: ...

    def call(
        self,
        module: Source,
        export: str,
        *args: Argument,
        returns: Returns | None = None,
        policy: PolicyLike | None = None,
        run_id: str | None = None,
    ) -> Report:
        """Calls an exported function; a reactor is initialized first.

        Args:
            module: Path of a module (`.wasm`, or `.wat` in the text format), its bytes in either format, or a loaded
                module.
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
        context = self._under(policy)
        control, run_id = self._enlist(run_id)
        try:
            control.thread = get_ident()
            return run_blocking(self._call(context, control, module, export, args, returns), control)
        finally:
            self._leave(run_id, control)

    def open(
        self,
        module: Source,
        args: Sequence[str | bytes] = (),
        *,
        stdin: Stdin = b"",
        env: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        policy: PolicyLike | None = None,
    ) -> Session:
        """Opens a live instance that keeps its state between calls; a reactor is initialized first.

        Args:
            module: Path of a module (`.wasm`, or `.wat` in the text format), its bytes in either format, or a loaded
                module.
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
        policy: PolicyLike | None = None,
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
        check_text("tenant", tenant)
        context = self._under(policy)
        control, run_id = self._enlist(run_id)
        streams: LoopStreams | None = None
        try:
            inputs = Inputs(args, stdin, env, on_stdout, on_stderr, on_progress)
            streams = _loop_streams(inputs, control)
            steps = self._until_over(self._run(context, control, module, inputs, streams, tenant), run_id, control)
            return await _on_crew(steps, control, priority, tenant)
        finally:
            self._leave(run_id, control)
            if streams is not None:
                streams.close()

    @overload
    async def call_async(
        self,
        module: Source,
        export: str,
        *args: Argument,
        returns: Literal["text"],
        policy: PolicyLike | None = None,
        run_id: str | None = None,
        priority: int = NORMAL_PRIORITY,
        tenant: str = "",
    ) -> Report[str | None]: ...

    @overload
    async def call_async(
        self,
        module: Source,
        export: str,
        *args: Argument,
        returns: Literal["bytes"],
        policy: PolicyLike | None = None,
        run_id: str | None = None,
        priority: int = NORMAL_PRIORITY,
        tenant: str = "",
    ) -> Report[bytes | None]: ...

    @overload
    async def call_async(
        self,
        module: Source,
        export: str,
        *args: Argument,
        returns: Returns | None = None,
        policy: PolicyLike | None = None,
        run_id: str | None = None,
        priority: int = NORMAL_PRIORITY,
        tenant: str = "",
    ) -> Report: ...

    async def call_async(
        self,
        module: Source,
        export: str,
        *args: Argument,
        returns: Returns | None = None,
        policy: PolicyLike | None = None,
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
        check_text("tenant", tenant)
        context = self._under(policy)
        control, run_id = self._enlist(run_id)
        try:
            steps = self._call(context, control, module, export, args, returns, tenant)
            steps = self._until_over(steps, run_id, control)
            return await _on_crew(steps, control, priority, tenant)
        finally:
            self._leave(run_id, control)

    async def open_async(
        self,
        module: Source,
        args: Sequence[str | bytes] = (),
        *,
        stdin: AsyncStdin = b"",
        env: Mapping[str, str] | None = None,
        on_stdout: OnOutputAsync | None = None,
        on_stderr: OnOutputAsync | None = None,
        policy: PolicyLike | None = None,
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
        check_text("tenant", tenant)
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


async def _on_crew(steps: RunCoroutine[_Result], control: RunControl, priority: int, tenant: str) -> _Result:
    # What belongs to event loops takes longer to import than a small guest to run, and most never need it.
    from stockade.runner.loop import await_run

    return await await_run(steps, control, priority, tenant)


def _loop_streams(inputs: Inputs, control: RunControl) -> LoopStreams | None:
    if not inputs.served:
        return None
    from stockade.execution.loop_streams import LoopStreams

    return LoopStreams(inputs, control)
