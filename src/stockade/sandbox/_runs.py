"""The runs of a sandbox: the context each stands on, its steps, and its name while it is under way."""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from contextvars import ContextVar
from typing import TYPE_CHECKING, cast

from stockade._text import printable
from stockade.errors import Cancelled, UsageError
from stockade.execution import Call, Inputs, PolicyContext, bind_arguments
from stockade.host import HostFunctions
from stockade.modules import Module
from stockade.policy import Policy, policy_of
from stockade.report import FuelSample, history_of
from stockade.runner import RunControl
from stockade.sandbox._checks import check_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stockade.execution import Argument, Returns, Stdin
    from stockade.execution.loop_streams import LoopStreams
    from stockade.modules import Source
    from stockade.policy import PolicyLike
    from stockade.report import FuelHistory, Progress, Report
    from stockade.runner import RunCoroutine

__all__ = ["Runs"]

_CLOSED = "the sandbox is closed: make a new one"

_inside: ContextVar[tuple[object, ...]] = ContextVar("stockade_inside", default=())
"""The marks of the sandboxes in whose runs on the executor we are, in a function of the embedder that a guest calls."""

_MAX_NARROWED = 16
"""Policies of single runs that are kept ready."""


class Runs:
    """What a sandbox knows of its runs. Safe to share between threads.

    Args:
        policy: What they may do.

    Raises:
        PolicyError: A mount cannot be granted, or the policy asks for what cannot be enforced.

    Attributes:
        policy: What they may do.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._mark = object()
        self._process = os.getpid()
        # What is called whenever a run is over, once the sandbox is closed.
        self._waiters: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._functions = HostFunctions()
        self._context: PolicyContext | None = PolicyContext(self.policy, self._functions)
        self._narrowed: OrderedDict[Policy, PolicyContext] = OrderedDict()
        self._numbers = itertools.count(1)
        self._runs: dict[str, RunControl] = {}

    def close(self) -> None:
        """Ends the sandbox: nothing can be run in it any more, and what is under way is cancelled and waited for.

        Sessions are closed by whoever opened them. Called from within one of its runs, by a host function or a
        callback, it does not wait, for that run would wait for it. Closing twice is harmless.
        """
        self._end()
        if self._is_not_to_wait():
            return
        over = threading.Event()
        self._waiters.append(over.set)
        try:
            while self._runs:
                over.wait()
                over.clear()
        finally:
            self._waiters.remove(over.set)

    async def close_async(self) -> None:
        """Does what `close` does, without blocking the event loop."""
        self._end()
        if self._is_not_to_wait():
            return
        from stockade.runner.loop import wait_until

        await wait_until(lambda: not self._runs, self._waiters)

    def _is_not_to_wait(self) -> bool:
        # In a forked child, runs of the parent's threads are on the list for ever.
        if not self._runs or os.getpid() != self._process:
            return True
        thread = threading.get_ident()
        return self._mark in _inside.get() or any(run.thread == thread for run in tuple(self._runs.values()))

    def _end(self) -> None:
        """Lets nothing begin any more, and cancels what is under way."""
        self._context = None
        with self._lock:
            self._narrowed.clear()
        for control in tuple(self._runs.values()):
            control.cancel()

    def monitor(self) -> dict[str, Progress]:
        """Tells how far the runs under way are, by their names. May be called from any thread.

        Runs that wait for their turn, or for their module to be compiled, are left out.
        """
        found = {}
        for run_id, control in tuple(self._runs.items()):
            progress = control.progress
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
        check_text("run_id", run_id)
        control = self._runs.get(run_id)
        if control is None:
            return False
        control.cancel()
        return True

    def fuel_history(self, module: Module) -> FuelHistory | None:
        """Tells what the latest runs of a module, under the sandbox's own policy, did with their fuel.

        Args:
            module: The module.

        Returns:
            The history of up to 64 runs; None where there was none, or none was metered.
        """
        if not isinstance(module, Module):
            raise UsageError(f"module is {type(module).__name__}: give a Module, as Module.load returns it")
        return history_of(FuelSample(*sample) for sample in self._under(None).history(module))

    def steps(
        self,
        module: Source,
        args: Sequence[Argument] = (),
        *,
        export: str | None = None,
        stdin: Stdin = b"",
        env: Mapping[str, str] | None = None,
        policy: Callable[[], Policy | None] | PolicyLike | None = None,
        run_id: str | None = None,
        tenant: str = "",
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
        """
        control = RunControl()
        return self._listed(
            self._steps(control, module, args, export, stdin, env, policy, tenant), control, run_id
        ), control

    def _steps(
        self,
        control: RunControl,
        module: Source,
        args: Sequence[Argument],
        export: str | None,
        stdin: Stdin,
        env: Mapping[str, str] | None,
        policy: Callable[[], Policy | None] | PolicyLike | None,
        tenant: str,
    ) -> RunCoroutine[Report]:
        context = self._under(policy() if callable(policy) else policy)
        if export is not None:
            return (yield from self._call(context, control, module, export, args, None, tenant=tenant))
        # What is no list of arguments is told so when the run begins.
        texts = cast("Sequence[str | bytes]", args)
        if isinstance(args, list | tuple):
            texts = [str(arg) if isinstance(arg, int | float) else arg for arg in args]
        return (yield from self._run(context, control, module, Inputs(texts, stdin, env), tenant=tenant))

    # -- what its methods share ---------------------------------------------------------------------------------------

    def _under(self, policy: PolicyLike | None) -> PolicyContext:
        """Returns the context for a run: the sandbox's own, or a narrower one where the run has a policy of its own."""
        context = self._context
        if context is None:
            raise UsageError(_CLOSED)
        if policy is None:
            return context
        asked = policy_of(policy)
        with self._lock:
            found = self._narrowed.get(asked)
            if found is None:
                found = self._narrowed[asked] = context.narrowed(asked)
            self._narrowed.move_to_end(asked)
            while len(self._narrowed) > _MAX_NARROWED:
                self._narrowed.popitem(last=False)
        return found

    def _enlist(self, run_id: str | None, control: RunControl | None = None) -> tuple[RunControl, str]:
        """Puts a run on the list; whoever does takes it off."""
        control = control or RunControl()
        if run_id is None:
            run_id = str(next(self._numbers))
        else:
            check_text("run_id", run_id)
        if self._runs.setdefault(run_id, control) is not control:
            raise UsageError(f"a run called {printable(run_id)} is under way: give each run a name of its own")
        # Whoever closes the sandbox sees the run on the list, or is seen here.
        if self._context is None:
            self._leave(run_id, control)
            raise UsageError(_CLOSED)
        return control, run_id

    def _leave(self, run_id: str, control: RunControl) -> None:
        """Takes a run off the list; it may be off already."""
        if self._runs.get(run_id) is control:
            del self._runs[run_id]
        if self._context is None:
            for waiter in tuple(self._waiters):
                waiter()

    def _until_over(self, steps: RunCoroutine[Report], run_id: str, control: RunControl) -> RunCoroutine[Report]:
        """Takes steps, and the run off the list with the last of them: not only when somebody looks at its report."""
        _inside.set((*_inside.get(), self._mark))
        try:
            return (yield from steps)
        finally:
            self._leave(run_id, control)

    def _prepare(
        self, context: PolicyContext, control: RunControl, module: Source, tenant: str
    ) -> RunCoroutine[Module]:
        """Loads and compiles a module, in steps."""
        loaded = context.load(module)
        if not (yield from context.prepare(loaded, control, tenant)):
            report = context.cancelled(loaded)
            raise Cancelled(f"{loaded.name}: {report.summary()}", report)
        return loaded

    def _listed(self, steps: RunCoroutine[Report], control: RunControl, run_id: str | None) -> RunCoroutine[Report]:
        """Takes steps as a run that is under way from the first of them on."""
        _, run_id = self._enlist(run_id, control)
        return (yield from self._until_over(steps, run_id, control))

    def _run(
        self,
        context: PolicyContext,
        control: RunControl,
        module: Source,
        inputs: Inputs,
        streams: LoopStreams | None = None,
        tenant: str = "",
    ) -> RunCoroutine[Report]:
        loaded = context.load(module)
        entry = loaded.command_entry
        if not (yield from context.prepare(loaded, control, tenant)):
            return context.cancelled(loaded)
        guest = context.guest(loaded, control, inputs, streams)
        control.progress = guest.progress
        try:
            return (yield from guest.invoke(Call(entry), command=True))
        finally:
            control.progress = None
            guest.close()

    def _call(
        self,
        context: PolicyContext,
        control: RunControl,
        module: Source,
        export: str,
        args: Sequence[Argument],
        returns: Returns | None,
        tenant: str = "",
    ) -> RunCoroutine[Report]:
        loaded = context.load(module)
        call = bind_arguments(loaded, export, args, returns)
        if not (yield from context.prepare(loaded, control, tenant)):
            return context.cancelled(loaded)
        guest = context.guest(loaded, control)
        control.progress = guest.progress
        try:
            initializer = loaded.initializer
            if initializer is not None and initializer.name != call.entry.name:
                report = yield from guest.invoke(Call(initializer))
                if not report.ok or guest.ended:
                    return report
            return (yield from guest.invoke(call))
        finally:
            control.progress = None
            guest.close()
