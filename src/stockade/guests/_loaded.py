"""The interpreter of a language, and what its guests have: a sandbox with tools, secrets, and what they begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from stockade._later import called_later
from stockade._text import printable
from stockade.errors import ModuleError, UsageError
from stockade.execution import Inputs, SavedGuest
from stockade.guests._fit import fit, folders_of, roomy
from stockade.guests._place import told_of
from stockade.guests._result import FRAME_ROOM_BYTES
from stockade.guests._runtime import Runtime, installed
from stockade.guests._task import MOST_SAFE_INTEGER
from stockade.guests._tools import Toolbox
from stockade.modules import Module
from stockade.runner import run_blocking
from stockade.sandbox import Sandbox, Snapshot

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Literal

    from stockade.audit import AuditLog
    from stockade.egress import Credential
    from stockade.execution import Monitoring
    from stockade.guests._driver import Driver
    from stockade.guests._folder import PrivateFolder
    from stockade.guests._network import NetworkDesk
    from stockade.guests._tools import Tool
    from stockade.policy import Mount, Policy
    from stockade.report import Trace
    from stockade.secrets import GivenSecrets, Secret

__all__ = ["ENVIRONMENT", "LoadedLanguage"]

# Most languages have no secrets, and load nothing for them.
_given_under = called_later("stockade.guests._secrets", "given_under")
_values_of = called_later("stockade.guests._secrets", "values_of")

_MOST_ANSWER_BYTES = 1 << 20
"""What an interpreter writes that is asked for something before there is code."""

ENVIRONMENT = {"HOME": "/workspace", "TMPDIR": "/tmp"}  # noqa: S108 - in the guest
"""What each interpreter finds there."""


def _network_desk() -> NetworkDesk:
    """Returns what serves requests over the network. Most policies permit none, and nothing is loaded for it."""
    from stockade.guests._network import NetworkDesk

    return NetworkDesk()


class LoadedLanguage:
    """The interpreter of a language; `Language` says what it is given."""

    policy: Policy
    _language: ClassVar[str]
    _known: ClassVar[Sequence[Runtime]]
    _takes_bytes: ClassVar[bool]
    _isolation: Literal["inprocess", "process", "bubblewrap"] | None
    _monitoring: Monitoring | None
    _trace: Trace | bool | None
    _audit: AuditLog | None
    _credentials: Mapping[str, Credential] | None
    _secrets: Mapping[str, str | bytes | Secret] | None
    _preload: str
    _runtime: Runtime | Path
    _wheels: tuple[str, ...]
    _packages: tuple[Mount, ...]
    _lock: threading.RLock
    _closed: bool
    _loaded: tuple[Module, Driver] | None
    _tools: dict[str, Tool]
    _bases: dict[tuple[str, ...], Snapshot]

    @classmethod
    def runtimes(cls) -> tuple[str, ...]:
        """Returns the names of the interpreters that are installed, the one that is taken by default first."""
        return installed(cls._known)

    @property
    def runtime(self) -> str:
        """The name of the interpreter, or the path of its module."""
        return self._runtime.name if isinstance(self._runtime, Runtime) else str(self._runtime)

    @property
    def module(self) -> Module:
        """The module of the interpreter.

        Raises:
            ModuleError: It is not there.
        """
        return self._load()[0]

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"this {self._language} is closed: make a new one")

    def _load(self) -> tuple[Module, Driver]:
        """Loads the interpreter, once."""
        with self._lock:
            self._check_open()
            if self._loaded is None:
                module = self._runtime.load() if isinstance(self._runtime, Runtime) else Module.load(self._runtime)
                module = self._fitted(module)
                self._loaded = module, self._driver_for(module)
            return self._loaded

    def _fitted(self, module: Module) -> Module:
        """Returns the interpreter as it is driven."""
        return module

    def _driver_for(self, module: Module) -> Driver:
        raise NotImplementedError

    def _check_files(self, driver: Driver, given: object, patterns: object) -> None:
        if (given or patterns) and not driver.has_files:
            raise UsageError(f"{self.runtime} has no files: give the code what it needs as inputs, and take its value")

    def _unfit(self, module: Module) -> ModuleError:
        return ModuleError(f"{module.name} is no interpreter for {self._language} that Stockade knows how to drive")

    def _given(self, policy: Policy) -> GivenSecrets | None:
        """Returns the secrets that code under a policy is given; None where there are none, as in most languages.

        Raises:
            PolicyError: The policy does not have secrets looked for in what leaves.
            UsageError: Two secrets are in the same place, or they are none.
        """
        if not self._secrets:
            return None
        given: GivenSecrets | None = _given_under(policy, self._secrets)
        return given

    def _described(self) -> list[dict[str, str]]:
        return [tool.described() for tool in self._tools.values()]

    def _sandbox(self, policy: Policy, driver: Driver, folder: PrivateFolder) -> tuple[Sandbox, Toolbox]:
        """Returns a sandbox for code under a policy, which grants a folder; and the tools that are lent there.

        Args:
            policy: The policy.
            driver: How the interpreter is driven.
            folder: The folder.
        """
        fitted = fit(policy, driver.stack_bytes, (*driver.mounts(), *self._packages, *folder.mounts()))
        box = Sandbox(
            fitted,
            isolation=self._isolation,
            monitoring=self._monitoring,
            trace=self._trace,
            audit=self._audit,
            # A run may have no network, whose language has.
            credentials=None if policy.network.mode == "none" else self._credentials,
            # Guests are given them with their jobs.
            secrets=_values_of(self._secrets, self._credentials) if self._secrets or self._credentials else None,
        )
        box.tell_as(told_of(policy))
        most_integer = None if self._takes_bytes else MOST_SAFE_INTEGER
        desk = None if policy.network.mode == "none" else _network_desk()
        most_bytes = policy.limits.stdout + FRAME_ROOM_BYTES
        toolbox = Toolbox(self._tools, policy.grants, most_bytes, most_integer, desk)
        driver.lend(box, toolbox)
        return box, toolbox

    def _beginning(
        self, module: Module, driver: Driver, policy: Policy, *, is_often: bool = False
    ) -> Module | Snapshot:
        """Returns what guests begin with: the module, or a snapshot of an interpreter that was made ready.

        What an interpreter has found out about its folders is in the snapshot, so there is one for each list of them.

        Args:
            module: The module.
            driver: How it is driven.
            policy: The policy, with the folders.
            is_often: Whether many guests are to be expected.

        Raises:
            UsageError: `preload` failed.
        """
        if not driver.has_base:
            driver.prepare(lambda arguments: self._ask(module, policy, arguments), is_often=is_often)
            return module
        key = folders_of(policy)
        with self._lock:
            if key not in self._bases:
                self._bases[key] = self._make_base(module, driver, policy)
            return self._bases[key]

    def _ask(self, module: Module, policy: Policy, arguments: Sequence[str]) -> bytes | None:
        """Runs an interpreter that is a command, without code of anybody's; returns its output, None if it fails."""
        # Whoever uses the interpreter later may be given what it says, so nothing of the policy's has a part in that.
        made = roomy(policy).replace(stdout=_MOST_ANSWER_BYTES, mounts=())
        with Sandbox(made, isolation=self._isolation) as box:
            report = box.run(module, arguments, env=ENVIRONMENT)
        is_whole = report.ok and not report.truncated.stdout and not report.findings
        return report.stdout if is_whole else None

    def _make_base(self, module: Module, driver: Driver, policy: Policy) -> Snapshot:
        box = Sandbox(roomy(policy), isolation=self._isolation)
        driver.lend(box, Toolbox(self._tools, policy.grants, 0))
        with box:
            box.prepare(module)
            guest, control = box.live(module, Inputs(env=ENVIRONMENT))
            try:
                report = run_blocking(driver.boot(guest, module, self._preload, self._wheels), control)
                if not report.ok or report.value:
                    text = report.stderr.decode("utf-8", "replace").strip() or report.summary()
                    why = ", for preload fails" if self._preload else ""
                    raise UsageError(f"the interpreter cannot be made ready{why}: {printable(text, 2000)}")
                return Snapshot(SavedGuest(guest.take_state().in_large_pages()))
            finally:
                guest.close()
