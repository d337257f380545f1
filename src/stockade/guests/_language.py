"""A language as users hold it: code in, what came of it out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, overload

from stockade._later import called_later
from stockade._locks import new_lock
from stockade._text import printable
from stockade.errors import UsageError
from stockade.execution import Inputs, check_monitoring
from stockade.guests._folder import PrivateFolder
from stockade.guests._keywords import of_languages, of_runs
from stockade.guests._leaving import result_of
from stockade.guests._loaded import ENVIRONMENT
from stockade.guests._place import told_of
from stockade.guests._runs import RunningLanguage, telling
from stockade.guests._runtime import choose
from stockade.guests._session import Interpreter, LanguageSession
from stockade.guests._task import Task, check_variables
from stockade.guests._tools import Tool
from stockade.guests._turns import JobStreams
from stockade.policy import Mount, isolation_of, policy_of
from stockade.sandbox import check_count, check_keywords

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Never, Self

    from stockade.audit import AuditLog
    from stockade.egress import Credential
    from stockade.execution import Monitoring, OnOutput
    from stockade.guests._result import CodeResult
    from stockade.policy import PolicyLike
    from stockade.report import Report, Trace
    from stockade.secrets import Secret

__all__ = ["Language"]

_credentials_under = called_later("stockade.egress", "credentials_under")
# Most languages have no secrets, and load nothing for them.
_with_stdin = called_later("stockade.guests._secrets", "with_stdin")

_Function = TypeVar("_Function", bound="Callable[..., object]")

_PACKAGES = "/packages"
"""Where the guest finds wheels."""

_MOST_WARM = 1_000


class Language(RunningLanguage):
    """Runs code of one language, each piece in an interpreter of its own.

    What raises and what reports is one rule, as for `Sandbox`: a mistake of the caller raises, before anything runs;
    what the code did is in the `CodeResult`. Safe to share between threads.

    Args:
        policy: What the code may do: a policy, the name of a preset, or the path of a policy file.
        runtime: The interpreter: `auto`, a name that `runtimes()` lists, or the path of a module of yours, which is
            then trusted as it is.
        preload: Code that runs before each run's own, such as imports; what it names is there.
        isolation: Where runs happen, as for `Sandbox`.
        monitoring: What is watched of all its runs: samples over time, and alerts.
        packages: A folder with wheels of pure Python that the code may import.
        pool_size: How many interpreters wait, started, for runs under the language's own policy. Each serves one run;
            others are started in the background. In processes of their own, processes wait for runs.
        trace: What of the calls of the interpreter is traced, as for `Sandbox`: in `result.report.trace_calls`.
        audit: Is told of all that happens here: a log for as many languages and sandboxes as you like.
        credentials: What the host adds to requests of the code, by names, as for `Sandbox`.
        secrets: Secrets that are looked for in what leaves the code, by names, as for `Sandbox`.

    Raises:
        PolicyError: The policy is none, or cannot be enforced.
        IsolationError: There is no such isolation, or the policy demands a stronger one.
        ModuleNotFound: The interpreter is not installed.
        UsageError: The folder holds a wheel that is not pure Python.
    """

    def __init__(
        self,
        policy: PolicyLike = "default",
        *,
        runtime: str | os.PathLike[str] = "auto",
        preload: str = "",
        isolation: Literal["inprocess", "process", "bubblewrap"] | None = None,
        monitoring: Monitoring | None = None,
        packages: str | os.PathLike[str] | None = None,
        pool_size: int = 0,
        trace: Trace | bool | None = None,
        audit: AuditLog | None = None,
        credentials: Mapping[str, Credential] | None = None,
        secrets: Mapping[str, str | bytes | Secret] | None = None,
        **_unknown: Never,
    ) -> None:
        check_keywords(f"{self._language}()", _unknown, of_runs(self._language))
        check_count("pool_size", pool_size, 0, _MOST_WARM)
        self.policy = policy_of(policy)
        self._is_apart = isolation_of(self.policy, isolation) != "inprocess"
        self._pool_size = pool_size
        self._isolation = isolation
        self._monitoring = check_monitoring(monitoring)
        self._trace = trace
        self._audit = audit
        self._credentials = credentials
        self._secrets = secrets
        if credentials:
            _credentials_under(self.policy, credentials)
        self._given(self.policy)
        self._preload = preload
        self._runtime = choose(self._known, runtime, self._language)
        self._wheels = () if packages is None else _wheels(Path(packages))
        self._packages = () if packages is None else (Mount(packages, _PACKAGES, "ro"),)
        self._lock = new_lock()
        self._closed = False
        self._loaded = None
        self._tools = {}
        # Interpreters that were made ready, by the folders that they know of.
        self._bases = {}
        # Where runs have been: with their folders emptied they serve the next ones, and keep machine code in memory.
        self._places = []
        self._process = os.getpid()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.close)

    @overload
    def tool(self, function: _Function, /, *, name: str | None = None, requires: str | None = None) -> _Function: ...

    @overload
    def tool(
        self, function: None = None, /, *, name: str | None = None, requires: str | None = None
    ) -> Callable[[_Function], _Function]: ...

    def tool(
        self, function: _Function | None = None, /, *, name: str | None = None, requires: str | None = None
    ) -> _Function | Callable[[_Function], _Function]:
        """Offers a function to code, as a decorator: it is called there as `tools.name(...)`.

        Arguments and what is returned are JSON, and are checked against the annotations. The code sees the signature
        and the docstring, also by `help(tools)`. What the function raises is raised there, by its type and text. It may
        be a coroutine function. Runs that begin afterwards have it.

        Args:
            function: The function, with an annotation for each parameter and for what it returns.
            name: What it is called in the code; by default, its own name.
            requires: A custom capability: the call is refused where the policy does not grant it.

        Raises:
            UsageError: The annotations are not fit, the name is taken, or the interpreter cannot call tools.
        """
        if function is None:
            return lambda given: self._offer(given, name, requires)
        return self._offer(function, name, requires)

    def _offer(self, function: _Function, name: str | None, requires: str | None) -> _Function:
        _, driver = self._load()
        if not driver.calls_tools:
            raise UsageError(f"{self.runtime} cannot call tools: give the code what it needs as inputs or files")
        named = getattr(function, "__name__", "") if name is None else name
        made = Tool(function, named, requires)
        with self._lock:
            if named in self._tools:
                raise UsageError(f"there is a tool {named} already: choose another name")
            self._tools = {**self._tools, named: made}
            places, self._places = self._places, []
        for place in places:
            place.close()
        return function

    def session(
        self,
        *,
        policy: PolicyLike | None = None,
        env: Mapping[str, str] | None = None,
        idle: float | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        forks: bool = False,
        **_unknown: Never,
    ) -> LanguageSession:
        """Opens a session: one interpreter, in which pieces of code run one after another.

        Args:
            policy: A policy for the session; both it and that of the language must permit. Fuel and time are for each
                piece, all else for the session.
            env: The environment.
            idle: Seconds without use after which it is closed; by default, never.
            on_stdout: Is given stdout in pieces as they are written.
            on_stderr: The same for stderr.
            forks: Whether it keeps its memory so that forks of it copy next to nothing. Memory that is written to for
                the first time is then dearer. It makes no difference in a process of its own.

        Raises:
            PolicyError: The policy cannot be enforced.
            ModuleError: The interpreter cannot be run.
        """
        check_keywords(f"{self._language}.session()", _unknown, of_languages(self._language))
        allowed = self.policy if policy is None else self.policy.narrow(policy_of(policy))
        told, variables = told_of(allowed), check_variables(env) or {}
        _, loaded = self._load()
        secrets = self._given(allowed)
        if secrets is not None:
            variables = {**secrets.variables, **variables}

        def opened(other: Interpreter | None = None, forks: bool = forks) -> Interpreter:
            module, driver = self._load()
            if other is not None and not driver.has_base:
                raise UsageError(
                    f"{self.runtime} cannot be forked, for it waits in the middle of a call: use one that is called "
                    "for each piece of code, such as cpython-3.15"
                )
            folder = PrivateFolder()
            box, toolbox = self._sandbox(allowed, driver, folder)
            streams = JobStreams(on_stdout, on_stderr, folder.take_request, toolbox)
            if other is None:
                beginning = self._beginning(module, driver, box.policy)
            else:
                beginning = other.take()
                other.folder.copy_to(folder)
            begun = Task("", session=True)
            inputs = Inputs(driver.arguments(begun), b"", {**ENVIRONMENT, **variables}, forks=forks)
            guest, control = box.live(beginning, inputs, streams)
            if control.gate is not None:
                control.gate.frames = True
            toolbox.on_call = telling(control)
            toolbox.reach(guest)
            streams.wake_by(control.wake)
            turns = driver.turns(guest, module, streams, folder.has_result)
            auditor = box.audited(control, beginning)
            interpreter = Interpreter(box, folder, toolbox, guest, control, turns, read, auditor)
            interpreter.has_secrets = secrets is not None
            if other is None and driver.has_base:
                # What it begins with was made under no environment.
                interpreter.variables = variables
            return interpreter

        def read(report: Report, interpreter: Interpreter, patterns: Sequence[str]) -> CodeResult:
            parts = interpreter.folder, interpreter.toolbox
            return result_of(report, told, *parts, patterns, interpreter.control, survived=not interpreter.over)

        def prepared(task: Task) -> Task:
            given: Task = task if secrets is None else _with_stdin(task, secrets)
            return given._replace(
                preload=self._preload,
                most_bytes=allowed.limits.stdout,
                paths=self._wheels,
                reseed=True,
                tools=self._described(),
                network=allowed.network.mode != "none",
            )

        def checked(given: object, patterns: object) -> None:
            self._check_files(loaded, given, patterns)

        return LanguageSession(opened, opened, prepared, checked, takes_bytes=self._takes_bytes, idle_seconds=idle)


def _wheels(folder: Path) -> tuple[str, ...]:
    """Returns where the guest finds the wheels of a folder.

    Raises:
        UsageError: It is no folder, or one is not pure Python.
    """
    if not folder.is_dir():
        raise UsageError(f"packages is {printable(str(folder))}, which is no folder")
    names = sorted(path.name for path in folder.glob("*.whl"))
    for name in names:
        if not name.endswith("-none-any.whl"):
            raise UsageError(f"{printable(name)} is built for a platform: only wheels of pure Python can be imported")
    return tuple(f"{_PACKAGES}/{name}" for name in names)
