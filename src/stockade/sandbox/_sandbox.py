"""The facade: `Sandbox`."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast, overload

from stockade.errors import ModuleError, UsageError
from stockade.execution import NO_INPUTS, Inputs
from stockade.host import HTTP_MODULE, HostFunctions
from stockade.modules import Module
from stockade.policy import isolation_of, policy_of
from stockade.report import FuelSample, Report, history_of
from stockade.runner import NORMAL_PRIORITY, RunControl
from stockade.sandbox._checks import check_count, check_keywords, check_text
from stockade.sandbox._contexts import PolicyContexts
from stockade.sandbox._options import (
    auditor_of,
    checked_monitoring,
    checked_trace,
    client_under,
    finder_of,
    functions_of_http,
    secrets_given,
)
from stockade.sandbox._registry import RunRegistry
from stockade.sandbox._runs import (
    attempt_call,
    attempt_run,
    call_here,
    call_steps,
    drive_steps,
    open_here,
    open_steps,
    prepare_steps,
    run_here,
    run_steps,
)
from stockade.sandbox._session import AsyncSession, Session
from stockade.sandbox._snapshot import Snapshot, load_source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Never, Self

    from stockade.audit import AuditLog
    from stockade.egress import Credential
    from stockade.execution import (
        Argument,
        AsyncStdin,
        Monitoring,
        OnOutput,
        OnOutputAsync,
        OnProgress,
        OpenGuest,
        PolicyContext,
        ReadyPool,
        Returns,
        Stdin,
        Streams,
    )
    from stockade.modules import Source
    from stockade.policy import Policy, PolicyLike
    from stockade.report import FuelHistory, PolicyInfo, Progress, Trace
    from stockade.runner import RunCoroutine
    from stockade.sandbox._runs import Program
    from stockade.sandbox._session_auditing import SessionAuditor
    from stockade.secrets import Secret

__all__ = ["Sandbox"]

_MOST_WARM = 1_000
"""Instances that wait for one snapshot: more take more memory maps than a process may have."""

_Function = TypeVar("_Function", bound="Callable[..., object]")


_NO_ARGS: Final = ()
_NO_STDIN: Final = b""
_NOTHING_ELSE: Final = (None, None, None, None)


def _silent(step: str) -> None:
    """Reports no progress."""


class Sandbox:
    """Runs modules under one policy. Reusable, and safe to share between threads.

    What raises and what reports is one rule: **a mistake of the caller raises, before anything runs** (no such file, no
    WebAssembly, an impossible policy, an unfit argument), as a subclass of `StockadeError`; **what the guest did is
    reported**, whatever it was, in a `Report`, whose `check` raises for whoever wants that. So it is for `run`, `call`,
    the calls of a session, and `stockade.run`. `stockade.call` alone is for the value of a function: it checks the
    report, and returns the value or raises.

    Use it as a context manager, with `with` or `async with`: that closes it, which ends what is under way. In a
    coroutine use `async with`, which waits for that.

    Args:
        policy: A policy, the name of a preset, or the path of a policy file.
        isolation: Where runs happen: `inprocess`, or `process`, each run and each session in a jailed process of its
            own; by default, where the policy has them happen, than which nothing weaker is taken.
        monitoring: What is watched of all its runs: samples over time, and alerts.
        trace: What of the calls of guests is traced: True for all of it, in `Report.trace_calls`; or a `Trace`.
        audit: Is told of all that happens here: a log for as many sandboxes as you like.
        credentials: What the host adds to requests of guests, by names: guests come to see placeholders only.
        secrets: Secrets that are looked for in what leaves a run, by the names that are told of them: text or bytes, of
            8 bytes at least, or a `Secret`, which guests are given where their policy names it. So are the values of
            credentials. What becomes of it says the policy (`gate.registered`).

    Raises:
        PolicyError: There is no such preset, a mount cannot be granted, or the policy asks for what cannot be enforced;
            or there are credentials, and it permits no requests.
        IsolationError: The isolation mode is unavailable, or the policy demands a stronger one.
        UsageError: The log is closed.
    """

    def __init__(
        self,
        policy: PolicyLike = "default",
        isolation: Literal["inprocess", "process", "bubblewrap"] | None = None,
        monitoring: Monitoring | None = None,
        trace: Trace | bool | None = None,
        *,
        audit: AuditLog | None = None,
        credentials: Mapping[str, Credential] | None = None,
        secrets: Mapping[str, str | bytes | Secret] | None = None,
        **_unknown: Never,
    ) -> None:
        check_keywords("Sandbox()", _unknown)
        self.policy = policy_of(policy)
        self.isolation = isolation = isolation_of(self.policy, isolation)
        self._functions = HostFunctions({HTTP_MODULE: functions_of_http})
        client = client_under(self.policy, credentials)
        self._contexts = PolicyContexts(
            self.policy,
            self._functions,
            checked_monitoring(monitoring),
            checked_trace(trace),
            isolation,
            client,
            finder_of(credentials, secrets),
            given=secrets_given(secrets),
        )
        self._registry = RunRegistry()
        self._auditor = auditor_of(audit, isolation)

    def __enter__(self) -> Self:
        self._contexts.under()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._contexts.under()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close_async()

    def close(self) -> None:
        """Ends the sandbox: nothing can be run in it any more, and what is under way is cancelled and waited for.

        Sessions are closed by whoever opened them. Called from within one of its runs, by a host function or a
        callback, it does not wait, for that run would wait for it; nor does it wait for runs that the event loop of
        this thread awaits. The handler of a signal that has interrupted Stockade in the middle of something does not
        wait either, for what it would wait for may need that done: whoever closes it next does. Closing twice is
        harmless.
        """
        self._contexts.close()
        self._registry.close(sys._getframe(1))  # noqa: SLF001 - there is no other way

    async def close_async(self) -> None:
        """Does what `close` does, without blocking the event loop."""
        self._contexts.close()
        await self._registry.close_async()

    def tell_as(self, policy: PolicyInfo) -> None:
        """Has the audit log told another policy than the sandbox's own, and of tools in the place of functions.

        Args:
            policy: The policy.
        """
        if self._auditor is not None:
            self._auditor.told, self._auditor.tells_functions = policy, False

    def monitor(self) -> dict[str, Progress]:
        """Tells how far the runs under way and the open sessions are, by their names. May be called from any thread.

        Runs that wait for their turn, or for their module to be compiled, are left out. A session has a name of # and a
        number, as a run that was given none; between two calls it is `idle`, and what is told is what its last call
        used.
        """
        return self._registry.monitor()

    def cancel(self, run_id: str) -> bool:
        """Stops a run, or the call of a session: within a slice while it computes, at once while it waits.

        Args:
            run_id: Its name, as given to `run` or told by `monitor`.

        Returns:
            Whether there was such a run, or a session of that name with a call under way.
        """
        return self._registry.cancel(run_id)

    def fuel_history(self, module: Module) -> FuelHistory | None:
        """Tells what the latest runs of a module, under the sandbox's own policy, did with their fuel.

        Args:
            module: The module.

        Returns:
            The history of up to 64 runs; None where there was none, or none was metered.
        """
        if not isinstance(module, Module):
            raise UsageError(f"module is {type(module).__name__}: give a Module, as Module.load returns it")
        return history_of(FuelSample(*sample) for sample in self._contexts.under().history(module))

    def prepare(self, module: Source | Snapshot, progress: Callable[[str], None] = _silent) -> Module:
        """Loads and compiles a module ahead of its first run.

        Args:
            module: The module, or a snapshot of it.
            progress: Is told what is being done, before each step that may take long.

        Returns:
            The module, loaded: give it to `run` and `call`.

        Raises:
            ModuleError: It cannot be run.
        """
        context = self._contexts.under()
        try:
            loaded, _ = load_source(context, module)
            context.plan(loaded, progress)
        except ModuleError as problem:
            if self._auditor is not None:
                self._auditor.refused(context, problem)
            raise
        return loaded

    def warm(
        self,
        module: Source | Snapshot,
        args: Sequence[str | bytes] = (),
        *,
        env: Mapping[str, str] | None = None,
        pool_size: int = 8,
        memory_bytes: int = 256 << 20,
        policy: PolicyLike | None = None,
    ) -> None:
        """Keeps guests ready: later runs take one that waits.

        Of a snapshot, instances that begin with it wait for `open`, `call` and `run`. What the first guests wrote to is
        learned, and those that come later have their own copies of these pages beforehand, which is most of what a
        short call takes.

        Of a module, which is a command, guests wait that have begun, up to where they read their standard input: an
        interpreter that reads its program there has started. A `run` with the same arguments and environment, whose
        standard input is bytes or text, and which has no callbacks, takes one. Its time begins then; whatever else the
        guest had used before counts.

        Returns when so many wait. Each serves one run; others are made in the background when half of them are used.

        Where runs happen in processes of their own, such processes wait: jailed, with the machine code of the module,
        each for one run or call, whatever its arguments. What the guest does at its beginning it does then, and a
        session has a fresh process. At most 64 wait for a module, and `memory_bytes` is of no account.

        Args:
            module: The snapshot, or the module.
            args: Arguments of the command, as in `run`.
            env: Its environment.
            pool_size: How many wait; 0 for none any more.
            memory_bytes: How much memory of their own they may have together.
            policy: The policy of the runs that they are for, where that is not the sandbox's own.

        Raises:
            ModuleError: The module cannot be run.
            EngineError: There is no room for so many.
            IsolationError: There can be no processes, or not so many.
            UsageError: The snapshot or the command needs more than it may have, the command ends before it waits, or an
                argument is unfit.
        """
        check_count("pool_size", pool_size, 0, _MOST_WARM)
        check_count("memory_bytes", memory_bytes, 0)
        self._warm(module, Inputs(args, env=env), pool_size, memory_bytes, policy)

    def warm_one(
        self,
        module: Source | Snapshot,
        inputs: Inputs,
        tidy: Callable[[], object],
        memory_bytes: int = 256 << 20,
        hints: Sequence[bytes] = (),
    ) -> ReadyPool[Any]:
        """Keeps one guest ready, as `warm` does, but for that another one is made when the caller says so.

        Args:
            module: The snapshot, or the module.
            inputs: Arguments of the command, and its environment; of a snapshot, the environment that most runs have.
            tidy: What is done before another one is made.
            memory_bytes: How much memory of its own it may have.
            hints: What a command is given to read, piece by piece, before it waits for the input of a run.

        Returns:
            What waits; its `tend` has all put in order in the next pause, in the background: what was used freed,
            `tidy` called, and another one made where one is missing.
        """
        pool = self._warm(module, inputs, 1, memory_bytes, None, tidy, hints)
        assert pool is not None
        return pool

    def _warm(
        self,
        module: Source | Snapshot,
        inputs: Inputs,
        pool_size: int,
        memory_bytes: int,
        policy: PolicyLike | None,
        tidy: Callable[[], object] | None = None,
        hints: Sequence[bytes] = (),
    ) -> ReadyPool[Any] | None:
        context = self._contexts.under(policy)
        loaded, saved = load_source(context, module)
        if context.isolation != "inprocess":
            self._contexts.keep_ahead(context, loaded, pool_size)
            return None
        if saved is None:
            return context.park(loaded, inputs, pool_size, memory_bytes, tidy, hints)
        if tidy is None and (inputs.arguments() or inputs.env):
            raise UsageError("guests that begin with a snapshot are given arguments and environment when they run")
        return context.warm(saved, inputs, pool_size, memory_bytes, tidy)

    def host_function(
        self, module: str, name: str | None = None, *, requires: str | None = None
    ) -> Callable[[_Function], _Function]:
        """Registers a host function, as a decorator: guests import it and call it.

        Its type follows from its annotations: `int` is i32, `float` f64, `bool` an i32; `stockade.host.I64` and its
        like say more; `str` and `bytes` take two numbers, address and length, and read the guest's memory. A first
        parameter annotated `stockade.HostCall` gets the call itself, with the guest's memory. What the function raises
        ends the run that called it, as a trap. A coroutine function is awaited on the event loop that awaits the run,
        while the guest holds no thread; where none does, on a loop of the run's own.

        Args:
            module: The import module, such as `env`.
            name: The name of the import; by default, that of the function.
            requires: A custom capability: the run ends as denied where the policy does not grant it.

        Raises:
            UsageError: The annotations are not fit, or the name is taken.
        """
        if callable(module):
            raise UsageError(
                "host_function is given the function itself: write the import module, such as "
                '@sandbox.host_function("env")'
            )
        check_text("module", module)
        for what, text in (("name", name), ("requires", requires)):
            if text is not None:
                check_text(what, text)

        self._contexts.under()

        def register(function: _Function) -> _Function:
            named = getattr(function, "__name__", None) if name is None else name
            if named is None:
                raise UsageError("the function has no name of its own: give the name of the import")
            self._functions.add(module, named, function, requires)
            return function

        return register

    def run(
        self,
        module: Source | Snapshot,
        args: Sequence[str | bytes] = _NO_ARGS,
        *,
        stdin: Stdin = _NO_STDIN,
        env: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        on_progress: OnProgress | None = None,
        policy: PolicyLike | None = None,
        run_id: str | None = None,
        **_unknown: Never,
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
            run_id: What the run is called in `monitor` and `cancel`; by default, # and a number.

        Returns:
            What happened.

        Raises:
            ModuleError: The module cannot be run.
            PolicyError: The policy cannot be enforced.
            UsageError: The sandbox is closed, or an argument is unfit.
        """
        if _unknown:
            check_keywords("Sandbox.run()", _unknown)
        context = self._contexts.under(policy)
        inputs = NO_INPUTS
        if not (
            args is _NO_ARGS
            and stdin is _NO_STDIN
            and env is None
            and on_stdout is None
            and on_stderr is None
            and on_progress is None
        ):
            inputs = Inputs(args, stdin, env, on_stdout, on_stderr, on_progress)
        auditor = self._auditor
        if auditor is not None:
            here = auditor.here if run_id is None else auditor.whole
            return self._registry.here(run_id, here, run_here, "", context, module, inputs)
        return self._registry.here(run_id, run_here, context, module, inputs)

    @overload
    def call(
        self,
        module: Source | Snapshot,
        export: str,
        *args: Argument,
        returns: Literal["text"],
        policy: PolicyLike | None = None,
        run_id: str | None = None,
    ) -> Report[str | None]: ...

    @overload
    def call(
        self,
        module: Source | Snapshot,
        export: str,
        *args: Argument,
        returns: Literal["bytes"],
        policy: PolicyLike | None = None,
        run_id: str | None = None,
    ) -> Report[bytes | None]: ...

    @overload
    def call(
        self,
        module: Source | Snapshot,
        export: str,
        *args: Argument,
        returns: Returns | None = None,
        policy: PolicyLike | None = None,
        run_id: str | None = None,
    ) -> Report: ...

    def call(
        self,
        module: Source | Snapshot,
        export: str,
        *args: Argument,
        returns: Returns | None = None,
        policy: PolicyLike | None = None,
        run_id: str | None = None,
        **_unknown: object,
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
            run_id: What the call is called in `monitor` and `cancel`; by default, # and a number.

        Returns:
            What happened; `Report.value` is what the function returned.

        Raises:
            ModuleError: The module cannot be run, or has no such function.
            UsageError: The sandbox is closed, or the arguments do not fit the function.
        """
        if _unknown:
            check_keywords("Sandbox.call()", _unknown)
        context = self._contexts.under(policy)
        auditor = self._auditor
        if auditor is not None:
            here = auditor.here if run_id is None else auditor.whole
            return self._registry.here(run_id, here, call_here, export, context, module, export, args, returns)
        return self._registry.here(run_id, call_here, context, module, export, args, returns)

    def open(
        self,
        module: Source | Snapshot,
        args: Sequence[str | bytes] = (),
        *,
        stdin: Stdin = b"",
        env: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        forks: bool = False,
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
            forks: Whether it keeps its memory so that forks of it, and snapshots, copy next to nothing. Memory that is
                written to for the first time is then dearer. It makes no difference in a process of its own.
            policy: A policy for this session; both it and the sandbox's own must permit.

        Raises:
            ModuleError: The module cannot be run.
            GuestError: Its initialization failed.
        """
        inputs = Inputs(args, stdin, env, on_stdout, on_stderr, forks=forks)
        return self._open(self._contexts.under(policy), module, inputs)

    def _open(self, context: PolicyContext, module: Source | Snapshot, inputs: Inputs) -> Session:
        def again(snapshot: Snapshot, inputs: Inputs) -> Session:
            self._contexts.under()
            return self._open(context, snapshot, inputs)

        control = RunControl()
        try:
            loaded, saved = load_source(context, module)
            guest = open_here(context, control, loaded, inputs, saved=saved)
        except ModuleError as problem:
            if self._auditor is not None:
                self._auditor.refused(context, problem)
            raise
        self._registry.note_session(guest, control)
        given = module if isinstance(module, Snapshot) else loaded
        session = Session(loaded, guest, control, inputs, again, self.audited(control, given, context))
        session.has_secrets = context.provided.has_secrets
        return session

    def audited(
        self, control: RunControl, given: Module | Snapshot, context: PolicyContext | None = None
    ) -> SessionAuditor | None:
        """Tells the audit log that a live instance is opened.

        Args:
            control: Its control.
            given: What it begins with.
            context: Its policy made ready; None for the sandbox's own.

        Returns:
            What tells of it from now on; None where there is no log.
        """
        if self._auditor is None:
            return None
        return self._auditor.session(control, context or self._contexts.under(), given)

    def tell_refused(self, problem: ModuleError) -> None:
        """Tells the audit log that a module cannot be run.

        Args:
            problem: Why.
        """
        if self._auditor is not None:
            self._auditor.refused(self._contexts.under(), problem)

    def steps(
        self,
        module: Source | Snapshot,
        args: Sequence[Argument] = (),
        *,
        export: str | None = None,
        stdin: Stdin = b"",
        env: Mapping[str, str] | None = None,
        policy: Callable[[], Policy | None] | PolicyLike | None = None,
        run_id: str | None = None,
        tenant: str = "",
        returns: Returns | None = None,
        streams: Streams | None = None,
    ) -> tuple[RunCoroutine[Report], RunControl]:
        """Returns a run, or a call of an export, in steps that somebody else takes; and its control.

        All of it is done in the steps, loading and compiling the module included: they raise what `run` does.

        Args:
            module: As in `run`; so are `stdin`, `env` and `run_id`.
            args: Arguments of the command, or of the function.
            export: The function; None to run a command.
            stdin: Its standard input.
            env: Its environment.
            policy: A policy for this run, or what is asked for it when it begins.
            run_id: What it is called.
            tenant: For whom it runs.
            returns: What the result of the function is read as.
            streams: Serves the guest while it runs, in the place of callbacks.
        """
        run = self._registry.under_way(run_id)

        def steps() -> RunCoroutine[Report]:
            with run:
                return (yield from run.until_over(begun()))

        def begun() -> RunCoroutine[Report]:
            context = self._contexts.under(policy() if callable(policy) else policy)
            control = run.control
            if export is not None:
                given = Inputs((), stdin, env)

                def call(loaded: Source | Snapshot) -> RunCoroutine[Report]:
                    return call_steps(context, control, loaded, export, args, returns, tenant, given, streams)

                return (yield from self._told(control, context, module, tenant, export, call))
            # What is no list of arguments is told so when the run begins.
            texts = cast("Sequence[str | bytes]", args)
            if isinstance(args, list | tuple):
                texts = [str(arg) if isinstance(arg, int | float) else arg for arg in args]
            inputs = Inputs(texts, stdin, env)

            def command(loaded: Source | Snapshot) -> RunCoroutine[Report]:
                return run_steps(context, control, loaded, inputs, streams, tenant)

            return (yield from self._told(control, context, module, tenant, "", command))

        return steps(), run.control

    def drive(
        self,
        module: Source | Snapshot,
        program: Program[Report],
        inputs: Inputs = Inputs(),  # noqa: B008 - it is frozen
        *,
        run_id: str | None = None,
        tenant: str = "",
        streams: Callable[[RunControl], Streams | None] | None = None,
    ) -> tuple[RunCoroutine[Report], RunControl]:
        """Returns what a program does with a guest, in steps that somebody else takes; and its control.

        Args:
            module: The module.
            program: What is done with the guest, which is freed after it.
            inputs: What the guest is given.
            run_id: What the run is called.
            tenant: For whom it runs.
            streams: Makes what serves the guest while it runs, in the place of the callbacks among its inputs.
        """
        run = self._registry.under_way(run_id)

        def steps() -> RunCoroutine[Report]:
            with run:
                return (yield from run.until_over(begun()))

        def begun() -> RunCoroutine[Report]:
            served = None if streams is None else streams(run.control)
            context, control = self._contexts.under(), run.control

            def driven(loaded: Source | Snapshot) -> RunCoroutine[Report]:
                return drive_steps(context, control, loaded, program, inputs, served, tenant)

            return (yield from self._told(control, context, module, tenant, "", driven))

        return steps(), run.control

    def _told(
        self,
        control: RunControl,
        context: PolicyContext,
        module: Source | Snapshot,
        tenant: str,
        export: str,
        make: Callable[[Source | Snapshot], RunCoroutine[Report]],
    ) -> RunCoroutine[Report]:
        """Returns the steps of a run, told to the audit log where there is one.

        Args:
            control: Its control.
            context: Its policy made ready.
            module: The module.
            tenant: For whom it runs.
            export: The function that is called; empty for a command.
            make: Makes its steps, of the module, which an audit log has loaded.
        """
        auditor = self._auditor
        return make(module) if auditor is None else auditor.steps(control, context, module, tenant, export, make)

    def live(
        self,
        module: Source | Snapshot,
        inputs: Inputs = Inputs(),  # noqa: B008 - it is frozen
        streams: Streams | None = None,
    ) -> tuple[OpenGuest, RunControl]:
        """Returns a live instance, of which nothing has been called yet, and its control. Whoever asks closes it.

        Args:
            module: The module.
            inputs: What the guest is given.
            streams: What serves the guest while it runs, in the place of the callbacks among its inputs.

        Raises:
            ModuleError: The module cannot be run.
        """
        context, control = self._contexts.under(), RunControl()
        loaded, held = load_source(context, module)
        guest = open_here(context, control, loaded, inputs, streams, held)
        self._registry.note_session(guest, control)
        return guest, control

    # -- awaited ------------------------------------------------------------------------------------------------------

    async def run_async(
        self,
        module: Source | Snapshot,
        args: Sequence[str | bytes] = _NO_ARGS,
        *,
        stdin: AsyncStdin = _NO_STDIN,
        env: Mapping[str, str] | None = None,
        on_stdout: OnOutputAsync | None = None,
        on_stderr: OnOutputAsync | None = None,
        on_progress: OnProgress | None = None,
        policy: PolicyLike | None = None,
        run_id: str | None = None,
        priority: int = NORMAL_PRIORITY,
        tenant: str = "",
        **_unknown: Never,
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
        # What belongs to event loops takes longer to import than a small guest to run, and most never need it.
        from stockade.runner.loop import await_run
        from stockade.sandbox._awaiting import await_if_long, loop_streams

        check_keywords("Sandbox.run_async()", _unknown)
        check_count("priority", priority, 1, 100)
        check_text("tenant", tenant)
        context, auditor = self._contexts.under(policy), self._auditor
        with self._registry.under_way(run_id, awaited=True) as run:
            control = run.control
            if args is _NO_ARGS and stdin is _NO_STDIN and (env, on_stdout, on_stderr, on_progress) == _NOTHING_ELSE:
                attempt = partial(attempt_run, control, context, module)
                if auditor is not None:
                    attempt = partial(auditor.attempt, attempt_run, control, tenant, "", context, module)

                def steps() -> RunCoroutine[Report]:
                    return self._told(
                        control,
                        context,
                        module,
                        tenant,
                        "",
                        lambda loaded: run_steps(context, control, loaded, NO_INPUTS, None, tenant),
                    )

                return await await_if_long(attempt, steps, run, priority, tenant)
            inputs = Inputs(args, stdin, env, on_stdout, on_stderr, on_progress)
            streams = loop_streams(inputs, control)
            try:
                served = self._told(
                    control,
                    context,
                    module,
                    tenant,
                    "",
                    lambda loaded: run_steps(context, control, loaded, inputs, streams, tenant),
                )
                return await await_run(run.until_over(served), control, priority, tenant)
            finally:
                if streams is not None:
                    streams.close()

    @overload
    async def call_async(
        self,
        module: Source | Snapshot,
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
        module: Source | Snapshot,
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
        module: Source | Snapshot,
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
        module: Source | Snapshot,
        export: str,
        *args: Argument,
        returns: Returns | None = None,
        policy: PolicyLike | None = None,
        run_id: str | None = None,
        priority: int = NORMAL_PRIORITY,
        tenant: str = "",
        **_unknown: object,
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
        from stockade.sandbox._awaiting import await_if_long

        check_keywords("Sandbox.call_async()", _unknown)
        check_count("priority", priority, 1, 100)
        check_text("tenant", tenant)
        context, auditor = self._contexts.under(policy), self._auditor
        with self._registry.under_way(run_id, awaited=True) as run:
            control = run.control
            attempt = partial(attempt_call, control, context, module, export, args, returns)
            if auditor is not None:
                given = export, args, returns
                attempt = partial(auditor.attempt, attempt_call, control, tenant, export, context, module, *given)

            def steps() -> RunCoroutine[Report]:
                return self._told(
                    control,
                    context,
                    module,
                    tenant,
                    export,
                    lambda loaded: call_steps(context, control, loaded, export, args, returns, tenant),
                )

            return await await_if_long(attempt, steps, run, priority, tenant)

    async def open_async(
        self,
        module: Source | Snapshot,
        args: Sequence[str | bytes] = (),
        *,
        stdin: AsyncStdin = b"",
        env: Mapping[str, str] | None = None,
        on_stdout: OnOutputAsync | None = None,
        on_stderr: OnOutputAsync | None = None,
        forks: bool = False,
        policy: PolicyLike | None = None,
        priority: int = NORMAL_PRIORITY,
        tenant: str = "",
    ) -> AsyncSession:
        """Opens a session whose calls are awaited; see `open` and `run_async`.

        Args:
            module: As in `open`; so are `args`, `env`, `forks` and `policy`.
            args: Arguments that the guest sees.
            stdin: As in `run_async`.
            env: Its environment.
            on_stdout: Is given stdout in pieces as they are written.
            on_stderr: The same for stderr.
            forks: Whether it keeps its memory so that forks of it copy next to nothing.
            policy: A policy for this session.
            priority: Its share of the threads among the runs of its tenant, 1 to 100.
            tenant: For whom it runs.
        """
        check_count("priority", priority, 1, 100)
        check_text("tenant", tenant)
        inputs = Inputs(args, stdin, env, on_stdout, on_stderr, forks=forks)
        return await self._open_async(self._contexts.under(policy), module, inputs, priority, tenant)

    async def _open_async(
        self, context: PolicyContext, module: Source | Snapshot, inputs: Inputs, priority: int, tenant: str
    ) -> AsyncSession:
        from stockade.runner.loop import await_run
        from stockade.sandbox._awaiting import loop_streams

        async def again(snapshot: Snapshot, inputs: Inputs) -> AsyncSession:
            self._contexts.under()
            return await self._open_async(context, snapshot, inputs, priority, tenant)

        control = RunControl()
        steps = prepare_steps(context, control, module, tenant)
        try:
            loaded, saved = await await_run(steps, control, priority, tenant)
        except ModuleError as problem:
            if self._auditor is not None:
                self._auditor.refused(context, problem)
            raise
        streams = loop_streams(inputs, control)
        if context.isolation == "inprocess":
            guest: OpenGuest = context.guest(loaded, control, inputs, streams, saved)
        else:
            opening = open_steps(context, control, loaded, inputs, streams, saved, tenant)
            guest = await await_run(opening, control, priority, tenant)
        self._registry.note_session(guest, control)
        told = self.audited(control, module if isinstance(module, Snapshot) else loaded, context)
        session = AsyncSession(loaded, guest, control, inputs, again, told, streams, priority, tenant)
        session.has_secrets = context.provided.has_secrets
        await session.initialize()
        return session
