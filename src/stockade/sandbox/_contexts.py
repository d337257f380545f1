"""The policies under which a sandbox runs: its own, and narrower ones of single runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade._bounded import BoundedDict
from stockade._locks import new_lock
from stockade.errors import UsageError
from stockade.execution import PolicyContext
from stockade.policy import policy_of
from stockade.sandbox._registry import CLOSED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stockade.egress import Client
    from stockade.execution import Monitoring
    from stockade.gate import SecretFinder
    from stockade.host import HostFunctions
    from stockade.modules import Module
    from stockade.policy import Isolation, Policy, PolicyLike
    from stockade.report import Trace
    from stockade.secrets import Secret

__all__ = ["PolicyContexts"]

_MAX_NARROWED = 16
"""Policies of single runs that are kept ready."""


class PolicyContexts:
    """Policies made ready for runs. Safe to share between threads.

    Args:
        policy: The sandbox's own.
        functions: The host functions.
        monitoring: What is watched of runs.
        trace: What of the calls of guests is traced.
        isolation: Where runs happen.
        client: What makes the requests of guests.
        secrets: What looks for secrets that were registered; None where none were.
        given: The secrets that guests may be given, by their names.

    Raises:
        PolicyError: A mount cannot be granted, or the policy asks for what cannot be enforced.
    """

    def __init__(
        self,
        policy: Policy,
        functions: HostFunctions,
        monitoring: Monitoring | None = None,
        trace: Trace | None = None,
        isolation: Isolation = "inprocess",
        client: Client | None = None,
        secrets: SecretFinder | None = None,
        given: Mapping[str, Secret] | None = None,
    ) -> None:
        # Reentrant, for the handler of a signal may run or close something while its thread looks for a context.
        self._lock = new_lock()
        self._own: PolicyContext | None = PolicyContext(
            *(policy, functions, None, monitoring, trace),
            isolation=isolation,
            client=client,
            secrets=secrets,
            given=given,
        )
        # Those for whose runs workers wait.
        self._ahead: set[PolicyContext] = set()
        self._narrowed: BoundedDict[Policy, PolicyContext] = BoundedDict(_MAX_NARROWED)

    def under(self, policy: PolicyLike | None = None) -> PolicyContext:
        """Returns the context for a run.

        Args:
            policy: A policy of the run's own, which narrows the sandbox's; None for that one alone.

        Raises:
            UsageError: The sandbox is closed.
        """
        own = self._own
        if own is None:
            raise UsageError(CLOSED)
        if policy is None:
            return own
        asked = policy_of(policy)
        with self._lock:
            # Such a handler may have put others in the place of what was found.
            kept = self._narrowed
            found = kept.find(asked)
            if found is None:
                found = own.narrowed(asked)
                kept.keep(asked, found)
        return found

    def keep_ahead(self, context: PolicyContext, module: Module, size: int) -> None:
        """Has workers wait for runs of a module, until all is closed.

        Args:
            context: The policy made ready, which is one of these.
            module: The module.
            size: How many; 0 for as many as are made anyway.

        Raises:
            IsolationError: There can be none, or not so many.
            ModuleError: The module cannot be run.
            UsageError: That is too many.
        """
        from stockade.isolation import workers_of

        self._ahead.add(context)
        workers_of(context.isolation).keep_ahead(context, module, size)

    def close(self) -> None:
        """Lets go of them: nothing can be run any more."""
        if self._ahead:
            from stockade.isolation import workers_of

            while self._ahead:
                context = self._ahead.pop()
                workers_of(context.isolation).forget(context)
        own, narrowed = self._own, self._narrowed
        self._own, self._narrowed = None, BoundedDict(_MAX_NARROWED)
        for context in ([] if own is None else [own]) + list(narrowed.values()):
            context.close()
