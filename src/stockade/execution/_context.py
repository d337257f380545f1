"""A policy made ready for runs: checked, its mounts open, its modules planned."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from stockade._bounded import BoundedDict
from stockade._locks import new_lock
from stockade._text import printable
from stockade.compilation import MadeProgram, PendingProgram
from stockade.execution._gates import gates_of
from stockade.execution._inputs import NO_INPUTS, Inputs, environment
from stockade.execution._mounts import OpenMounts
from stockade.execution._parked import ParkedPool, ParkedRun, check_may_wait
from stockade.execution._plan import Plan, ask_for, make_plan
from stockade.execution._provided import Provided
from stockade.execution._run import Guest
from stockade.execution._snapshot import SavedGuest, plan_and_pool
from stockade.execution._waiting import units_for_seconds, waited_for
from stockade.execution._where import check_lives_here, compiled_as
from stockade.modules import Module, Source, load_module
from stockade.policy import Isolation, Policy, check_enforceable, isolation_of, stronger
from stockade.report import ModuleInfo, Outcome, PolicyInfo, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stockade.egress import Client
    from stockade.execution._monitoring import Monitoring
    from stockade.execution._streams import Streams
    from stockade.execution._warm import WarmPool
    from stockade.gate import SecretFinder
    from stockade.host import HostFunctions
    from stockade.report import Trace
    from stockade.runner import RunControl, RunCoroutine
    from stockade.secrets import Secret

__all__ = ["PolicyContext"]

_MAX_PLANS = 64


class PolicyContext:
    """Where modules run under one policy. Safe to share between threads.

    It needs no closing: what it holds open is let go of with the last run that stands on it.

    Args:
        policy: The policy.
        functions: The host functions.
        grants: The folders of its mounts, where they are open already.
        monitoring: What is watched of its runs.
        trace: What of the calls of guests is traced.
        units_for: Estimates the fuel for some seconds of computing; by default, it is measured.
        isolation: Where its runs happen, no weaker than the policy demands.
        client: What makes the requests of guests; None where none may make any.
        secrets: What looks for secrets that were registered; None where none were.
        given: The secrets that guests may be given, by their names: those that the policy names are.

    Raises:
        PolicyError: A mount cannot be granted, or the policy asks for what cannot be enforced.
        IsolationError: The policy demands a stronger isolation.

    Attributes:
        provided: What guests are given.
        isolation: Where its runs happen.
        mounts: The folders that its guests may reach, open.
        policy: The policy.
        info: What reports say of it.
        functions: The host functions.
        client: What makes the requests of guests; None where none may make any.
        gates: What looks at what leaves its runs; None where nothing is looked for.
    """

    def __init__(
        self,
        policy: Policy,
        functions: HostFunctions,
        grants: OpenMounts | None = None,
        monitoring: Monitoring | None = None,
        trace: Trace | None = None,
        units_for: Callable[[float], int] = units_for_seconds,
        isolation: Isolation = "inprocess",
        client: Client | None = None,
        secrets: SecretFinder | None = None,
        given: Mapping[str, Secret] | None = None,
    ) -> None:
        check_enforceable(policy)
        self.policy, self.functions = policy, functions
        self.monitoring, self.trace = monitoring, trace
        self._units_for = units_for
        self.isolation = isolation_of(policy, isolation)
        self._compiles_as = compiled_as(policy, isolation)
        self.client, self._secrets = client, secrets
        self.gates = gates_of(policy, secrets)
        self.provided = Provided(policy, given)
        self.info = PolicyInfo(policy.digest, printable(policy.name))
        self.mounts = OpenMounts(policy.filesystem.mounts) if grants is None else grants
        # Reentrant, for the handler of a signal may run something while its thread keeps a plan.
        self._lock = new_lock()
        self._plans: BoundedDict[str, Plan] = BoundedDict(_MAX_PLANS)
        self._parked: dict[object, ParkedPool] = {}

    def narrowed(self, policy: Policy) -> PolicyContext:
        """Returns the context for runs that a policy of their own, too, must permit. The folders are the same.

        Args:
            policy: That policy.

        Raises:
            PolicyError: The two cannot be enforced together.
        """
        both = self.policy.narrow(policy)
        grants = self.mounts.narrowed(both.filesystem.mounts)
        isolation = stronger(self.isolation, both.isolation)
        same = self._units_for, isolation, self.client, self._secrets, self.provided.secrets
        return PolicyContext(both, self.functions, grants, self.monitoring, self.trace, *same)

    def load(self, source: Source) -> Module:
        """Loads a module, as large as the policy allows.

        Raises:
            ModuleError: It cannot be loaded.
        """
        return load_module(source, self.policy)

    def plan(self, module: Module, progress: Callable[[str], None] | None = None) -> Plan:
        """Makes a module ready to run, or returns what was made before.

        Args:
            module: The module.
            progress: Is told what is being done, before each step that may take long.

        Raises:
            ModuleError: It cannot be run.
            PolicyError: It imports what makes requests, and the library for that is not installed.
        """
        plan = self._plans.get(module.sha256)
        if plan is None:
            made = self._ask(module, progress, "")
            plan = self.adopt(module, made.wait() if isinstance(made, PendingProgram) else made)
        return plan

    def _ask(self, module: Module, progress: Callable[[str], None] | None, tenant: str) -> MadeProgram | PendingProgram:
        if self.client is not None:
            self.client.check(module.name, (entry.module for entry in module.parsed.imports), self.policy)
        return ask_for(module, self._compiles_as, self.functions, progress, tenant, traced=self.trace is not None)

    def find(self, module: Module) -> Plan | None:
        """Returns what was made of a module; None where it is to be made, or runs begin elsewhere, or began ahead."""
        return None if self._parked or self.isolation != "inprocess" else self._plans.get(module.sha256)

    def find_apart(self, module: Module) -> Plan | None:
        """Returns what was made of a module whose runs begin in workers, and need nothing set up; None of others."""
        plan = None if self.isolation == "inprocess" or self._parked else self._plans.get(module.sha256)
        return plan if plan is not None and plan.is_bare and plan.was_compiled else None

    def prepare(self, module: Module, control: RunControl, tenant: str = "") -> RunCoroutine[bool]:
        """Makes a module ready to run, in steps: while it is compiled, or waits for its turn, no thread is held.

        Args:
            module: The module.
            control: The control of the run that it is made for.
            tenant: For whom it runs.

        Returns:
            Whether it is ready; else the run was cancelled meanwhile.

        Raises:
            ModuleError: It cannot be run.
            PolicyError: It imports what makes requests, and the library for that is not installed.
        """
        if module.sha256 in self._plans:
            return True
        made = self._ask(module, None, tenant)
        found = (yield from waited_for(made, control)) if isinstance(made, PendingProgram) else made
        if found is None:
            return False
        self.adopt(module, found)
        return True

    def cancelled(self, module: Module) -> Report:
        """Returns the report on a run of a module that was cancelled before it began."""
        info = ModuleInfo(module.sha256, module.name)
        return Report(outcome=Outcome.CANCELLED, module=info, policy=self.info, isolation=self.isolation)

    def adopt(self, module: Module, made: MadeProgram) -> Plan:
        """Makes a module ready to run whose program is there.

        Args:
            module: The module.
            made: Its program.
        """
        folders = self.mounts.directories
        plan = make_plan(module, self.policy, folders, self.functions, self._units_for, made, self.trace)
        with self._lock:
            self._plans.keep(plan.module.sha256, plan)
        return plan

    def history(self, module: Module) -> Sequence[tuple[int, float]]:
        """Returns the units and the seconds of the latest runs of a module."""
        plan = self._plans.get(module.sha256)
        return () if plan is None else tuple(plan.history)

    def ready(self, module: Module) -> Plan:
        """Returns what was made of a module, for a run that begins now.

        Args:
            module: The module.

        Raises:
            ModuleError: It cannot be run.
            PolicyError: The folder of a mount was removed.
        """
        plan = self._plans.get(module.sha256) or self.plan(module)
        if self.mounts.directories:
            self.mounts.check()
        if not plan.was_compiled:
            # The first run tells what compiling took; for every later one it was done before.
            with self._lock:
                self._plans.keep(module.sha256, plan.at_hand())
        return plan

    def guest(
        self,
        module: Module,
        control: RunControl,
        inputs: Inputs = NO_INPUTS,
        streams: Streams | None = None,
        saved: SavedGuest | None = None,
    ) -> Guest:
        """Makes a live instance of a module.

        Args:
            module: The module.
            control: Says when it must stop.
            inputs: What it is given.
            streams: Serves it while it runs; by default, the callbacks of its inputs.
            saved: What it begins with, where that is not what the module begins with.

        Raises:
            ModuleError: It cannot be run.
            UsageError: The inputs do not fit.
        """
        check_lives_here(self.isolation)
        plan = self.ready(module)
        warm = waiting = None
        if saved is not None or inputs.forks:
            plan, warm = plan_and_pool(self, plan, saved, forks=inputs.forks)
        env, stdin = self.provided.variables(inputs), self.provided.input(inputs)
        streams = streams or (inputs.streams(control) if inputs.served else None)
        if self.gates is not None:
            self.gates.begin(control, streams)
        if warm is not None:
            is_usual = env == warm.env and not (inputs.args or stdin or streams)
            found = warm.begin(control, self.monitoring, is_usual=is_usual)
            if isinstance(found, Guest):
                return found.reach(self.client)
            waiting = found
        guest = Guest(
            *(plan, self.info, self.mounts, control),
            args=inputs.arguments() if inputs.args != () else (),
            env=environment(env) if env else {},
            stdin=stdin,
            streams=streams,
            waiting=waiting,
        )
        guest.pool = warm
        if self.monitoring is not None:
            guest.watch(self.monitoring)
        return guest.reach(self.client)

    def find_brief(self, module: object) -> Plan | None:
        """Returns what was made of a module whose runs are over within a moment, where they are given nothing; or None.

        Args:
            module: The module; for anything else, None is returned.
        """
        plan = self.find(module) if isinstance(module, Module) else None
        return None if plan is None or self.provided.has_variables or not plan.is_bare or plan.pace.wary else plan

    def bare_guest(self, plan: Plan, control: RunControl) -> Guest:
        """Makes a live instance that is given nothing.

        Args:
            plan: What was found of its module.
            control: Says when it must stop.
        """
        if self.provided.has_variables or not (plan.is_bare and plan.was_compiled):
            return self.guest(plan.module, control)
        if self.gates is not None:
            self.gates.begin(control, None)
        guest = Guest(plan, self.info, self.mounts, control)
        if self.monitoring is not None:
            guest.watch(self.monitoring)
        return guest

    def park(
        self,
        module: Module,
        inputs: Inputs,
        pool_size: int,
        memory_bytes: int,
        tidy: Callable[[], object] | None = None,
        hints: Sequence[bytes] = (),
    ) -> ParkedPool | None:
        """Has commands begun ahead, up to where they wait for their standard input.

        Args:
            module: The module.
            inputs: Their arguments and environment.
            pool_size: How many are to wait; none where it is 0.
            memory_bytes: How much memory they may have together.
            tidy: What is done in pauses, before others are made. Where it is given, that is when `tend` of what is
                returned is called, and not when one is taken.
            hints: What they are given to read before they wait for the input of a run.

        Returns:
            What waits; None where nothing is to.

        Raises:
            ModuleError: The module cannot be run.
            EngineError: There is no room for so many.
            UsageError: It ends before it waits, or needs more memory.
        """
        check_may_wait(self.policy)
        key = self._parked_key(module, inputs)
        if (before := self._parked.pop(key, None)) is not None:
            before.close()
        if pool_size:
            self.plan(module)
            pool = ParkedPool(
                module, pool_size, memory_bytes, lambda run, io: self.guest(module, run, inputs, io), tidy, hints
            )
            pool.fill()
            self._parked[key] = pool
            return pool
        return None

    def parked(self, module: Module, inputs: Inputs) -> ParkedRun | None:
        """Returns a command that waits for its standard input, or comes to, for a run; None where none are kept for it.

        Args:
            module: The module.
            inputs: What the run is given.
        """
        if not self._parked or inputs.served or self.provided.has_secrets:
            return None
        if (pool := self._parked.get(self._parked_key(module, inputs))) is None:
            return None
        if self.mounts.directories:
            self.mounts.check()
        return pool.take()

    def _parked_key(self, module: Module, inputs: Inputs) -> object:
        """What tells whether a command that waits has what a run is given, its standard input left out."""
        return module.sha256, tuple(inputs.arguments()), tuple(sorted(self.provided.variables(inputs).items()))

    def close(self) -> None:
        """Ends the commands that wait."""
        while self._parked:
            with suppress(KeyError):
                self._parked.popitem()[1].close()

    def warm(
        self,
        saved: SavedGuest,
        inputs: Inputs,
        pool_size: int,
        memory_bytes: int,
        tidy: Callable[[], object] | None = None,
    ) -> WarmPool | None:
        """Has guests made ahead, for guests that begin with what another one held.

        Args:
            saved: What that one held.
            inputs: The environment that most of them are given.
            pool_size: How many are to wait; none where it is 0.
            memory_bytes: How much memory of their own they may have together.
            tidy: What is done in pauses, before others are made. Where it is given, that is when `tend` of what is
                returned is called, and not when one is taken.

        Returns:
            What waits; None where nothing is to.

        Raises:
            ModuleError: The module cannot be run.
            EngineError: There is no room for so many.
            UsageError: It needs more than the policy allows.
        """
        if (before := saved.warm.pop(self, None)) is not None:
            before.close()
        if pool_size:
            from stockade.execution._warm import make_pool

            plan, env = saved.plan(self, self.plan(saved.state.module)), dict(self.provided.variables(inputs))
            given = plan, self.info, self.mounts, env, saved.pages, pool_size, memory_bytes, tidy
            saved.warm[self] = make_pool(*given)
        return saved.warm.get(self)
