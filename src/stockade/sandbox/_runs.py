"""The runs of a sandbox: the context each stands on, its steps, and its name while it is under way."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

from stockade._bounded import BoundedDict
from stockade._text import printable
from stockade.errors import Cancelled, UsageError
from stockade.execution import Call, Inputs, PolicyContext, bind_arguments
from stockade.host import HostFunctions
from stockade.policy import Policy
from stockade.report import FuelSample, history_of
from stockade.runner import ASIDE, RunControl

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stockade.execution import Argument, Returns, Stdin, Streams
    from stockade.modules import Module, Source
    from stockade.report import FuelHistory, Progress, Report
    from stockade.runner import RunCoroutine

__all__ = ["Runs"]

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
        # Reentrant, for the handler of a signal may run or close something while its thread looks for a context.
        self._lock = threading.RLock()
        self._functions = HostFunctions()
        self._context: PolicyContext | None = PolicyContext(self.policy, self._functions)
        self._narrowed: BoundedDict[Policy, PolicyContext] = BoundedDict(_MAX_NARROWED)
        self._numbers = itertools.count(1)
        self._runs: dict[str, RunControl] = {}

    def close(self) -> None:
        """Ends the sandbox: nothing can be run in it any more. Closing twice is harmless."""
        self._context = None
        self._narrowed = BoundedDict(_MAX_NARROWED)

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
        return history_of(FuelSample(*sample) for sample in self._under(None).history(module))

    def steps(
        self,
        module: Source,
        args: Sequence[Argument] = (),
        *,
        export: str | None = None,
        stdin: Stdin = b"",
        env: Mapping[str, str] | None = None,
        policy: Callable[[], Policy | None] | Policy | str | None = None,
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
        control = RunControl()
        return self._listed(
            self._steps(control, module, args, export, stdin, env, policy, tenant, returns, streams), control, run_id
        ), control

    def _steps(
        self,
        control: RunControl,
        module: Source,
        args: Sequence[Argument],
        export: str | None,
        stdin: Stdin,
        env: Mapping[str, str] | None,
        policy: Callable[[], Policy | None] | Policy | str | None,
        tenant: str,
        returns: Returns | None,
        streams: Streams | None,
    ) -> RunCoroutine[Report]:
        context = self._under(policy() if callable(policy) else policy)
        if export is not None:
            inputs = Inputs((), stdin, env)
            return (yield from self._call(context, control, module, export, args, returns, tenant, inputs, streams))
        # One text is no list of arguments: it is told so when the run begins.
        texts = args if isinstance(args, str) else [arg if isinstance(arg, str | bytes) else str(arg) for arg in args]
        return (yield from self._run(context, control, module, Inputs(texts, stdin, env), streams, tenant))

    # -- what its methods share ---------------------------------------------------------------------------------------

    def _under(self, policy: Policy | str | None) -> PolicyContext:
        """Returns the context for a run: the sandbox's own, or a narrower one where the run has a policy of its own."""
        context = self._context
        if context is None:
            raise UsageError("the sandbox is closed: make a new one")
        if policy is None:
            return context
        asked = Policy.preset(policy) if isinstance(policy, str) else policy
        with self._lock:
            # Such a handler may have put others in the place of what was found.
            kept = self._narrowed
            found = kept.find(asked)
            if found is None:
                found = context.narrowed(asked)
                kept.keep(asked, found)
        return found

    def _enlist(self, run_id: str | None, control: RunControl) -> None:
        """Puts a run on the list; whoever does takes it off, also where this has raised."""
        if run_id is None:
            run_id = f"#{next(self._numbers)}"
        elif run_id.startswith("#") and run_id[1:].isdecimal():
            raise UsageError(f"a run cannot be called {printable(run_id)}: such names are for runs that are given none")
        # First: whoever takes it off finds it, if it was put there.
        control.name = run_id
        if self._runs.setdefault(run_id, control) is not control:
            raise UsageError(f"a run called {printable(run_id)} is under way: give each run a name of its own")

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
        try:
            self._enlist(run_id, control)
            return (yield from steps)
        finally:
            if self._runs.get(control.name) is control:
                del self._runs[control.name]

    def _run(
        self,
        context: PolicyContext,
        control: RunControl,
        module: Source,
        inputs: Inputs,
        streams: Streams | None = None,
        tenant: str = "",
    ) -> RunCoroutine[Report]:
        loaded = context.load(module)
        entry = loaded.command_entry
        if not (yield from context.prepare(loaded, control, tenant)):
            return context.cancelled(loaded)
        guest = context.guest(loaded, control, inputs, streams)
        control.progress = guest.progress
        try:
            if guest.calls_out:
                control.calls_out = True
                yield ASIDE
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
        inputs: Inputs = Inputs(),  # noqa: B008 - it is frozen
        streams: Streams | None = None,
    ) -> RunCoroutine[Report]:
        loaded = context.load(module)
        call = bind_arguments(loaded, export, args, returns)
        if not (yield from context.prepare(loaded, control, tenant)):
            return context.cancelled(loaded)
        guest = context.guest(loaded, control, inputs, streams)
        control.progress = guest.progress
        try:
            if guest.calls_out:
                control.calls_out = True
                yield ASIDE
            initializer = loaded.initializer
            if initializer is not None and initializer.name != call.entry.name:
                report = yield from guest.invoke(Call(initializer))
                if not report.ok or guest.ended:
                    return report
            return (yield from guest.invoke(call))
        finally:
            control.progress = None
            guest.close()
