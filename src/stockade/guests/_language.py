"""A language as users hold it: code in, what came of it out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar, overload

from stockade._later import called_later
from stockade._locks import new_lock
from stockade._text import printable
from stockade.errors import ModuleError, UsageError
from stockade.execution import Inputs, SavedGuest, check_monitoring
from stockade.guests._fit import fit, folders_of, roomy
from stockade.guests._folder import PrivateFolder, check_files, check_patterns, is_untouched
from stockade.guests._keywords import of_languages, of_runs
from stockade.guests._leaving import result_of
from stockade.guests._place import Place, at_hand, told_of
from stockade.guests._result import FRAME_ROOM_BYTES, CodeResult
from stockade.guests._runtime import Runtime, choose, installed
from stockade.guests._session import Interpreter, LanguageSession
from stockade.guests._task import MOST_SAFE_INTEGER, Task, check_variables, make_task
from stockade.guests._tools import Tool, Toolbox
from stockade.guests._turns import JobStreams
from stockade.modules import Module
from stockade.policy import Mount, Policy, isolation_of, policy_of
from stockade.runner import run_blocking
from stockade.sandbox import Sandbox, Snapshot, check_count, check_keywords

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Never, Self

    from stockade._bytes import BytesLike
    from stockade.audit import AuditLog
    from stockade.egress import Credential
    from stockade.execution import Monitoring, OnOutput, OnOutputAsync, OpenGuest, Streams
    from stockade.guests._driver import Driver
    from stockade.guests._network import NetworkDesk
    from stockade.guests._task import Plain
    from stockade.policy import PolicyLike
    from stockade.report import Report, Trace
    from stockade.runner import RunControl, RunCoroutine
    from stockade.secrets import GivenSecrets, Secret

__all__ = ["Language"]

# Most languages have no secrets, and load nothing for them.
_given_under = called_later("stockade.guests._secrets", "given_under")
_values_of = called_later("stockade.guests._secrets", "values_of")
_with_secrets = called_later("stockade.guests._secrets", "with_secrets")
_credentials_under = called_later("stockade.egress", "credentials_under")
_with_stdin = called_later("stockade.guests._secrets", "with_stdin")

_Function = TypeVar("_Function", bound="Callable[..., object]")

_PACKAGES = "/packages"
"""Where the guest finds wheels."""

_MOST_PLACES = 8
"""How many are kept for the next runs, where no more are asked for."""

_MOST_WARM = 1_000

_MOST_ANSWER_BYTES = 1 << 20
"""What an interpreter writes that is asked for something before there is code."""

_ENVIRONMENT = {"HOME": "/workspace", "TMPDIR": "/tmp"}  # noqa: S108 - in the guest


def _network_desk() -> NetworkDesk:
    """Returns what serves requests over the network. Most policies permit none, and nothing is loaded for it."""
    from stockade.guests._network import NetworkDesk

    return NetworkDesk()


def _silent(step: str) -> None:
    """Reports no progress."""


class Language:
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

    _language: ClassVar[str]
    _known: ClassVar[Sequence[Runtime]]
    _takes_bytes: ClassVar[bool]

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
        self._loaded: tuple[Module, Driver] | None = None
        self._tools: dict[str, Tool] = {}
        # Interpreters that were made ready, by the folders that they know of.
        self._bases: dict[tuple[str, ...], Snapshot] = {}
        # Where runs have been: with their folders emptied they serve the next ones, and keep machine code in memory.
        self._places: list[Place] = []
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

    def close(self) -> None:
        """Lets go of what is kept for further runs: no run and no session begins any more.

        What is under way goes on, and sessions are closed by whoever opened them. Closing twice is harmless.
        """
        with self._lock:
            self._closed = True
            places, self._places, self._loaded = self._places, [], None
            self._bases = {}
        for place in places:
            place.close()

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

    def prepare(self, progress: Callable[[str], None] = _silent) -> None:
        """Loads and compiles the interpreter ahead of its first run, under limits of its own.

        Args:
            progress: Is told what is being done, before each step that may take long.

        Raises:
            ModuleError: It is not there, or cannot be run.
        """
        module, driver = self._load()
        place = self._place(self.policy, module, driver)
        try:
            place.box.prepare(module, progress)
            if driver.has_base or self._pool_size:
                progress("starting")
                self._beginning(module, driver, place.box.policy, is_often=True)
        finally:
            self._leave(place)
        with self._lock:
            missing = self._pool_size - sum(place.policy == self.policy for place in self._places)
        for place in [self._make_place(self.policy, module, driver) for _ in range(missing)]:
            self._leave(place)

    def run(
        self,
        code: str,
        *,
        files: Mapping[str, BytesLike] | None = None,
        inputs: Mapping[str, Plain] | None = None,
        args: Sequence[str] = (),
        stdin: BytesLike = b"",
        env: Mapping[str, str] | None = None,
        collect: Sequence[str] = (),
        policy: PolicyLike | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        **_unknown: Never,
    ) -> CodeResult:
        """Runs code in an interpreter of its own.

        Args:
            code: The code.
            files: Files that it finds in its working folder, `/workspace`, by their names there.
            inputs: Variables that it finds, by their names: None, bool, int, float, str, list and dict; for Python
                bytes, too.
            args: Arguments, after the name of the code.
            stdin: What it reads from its standard input.
            env: Its environment, beside what the policy passes on.
            collect: Which of the files below `/workspace` are returned: patterns, in which `*` stands for anything.
                What was given, and is as it was, is returned only where a pattern is its name. At most 1,000 files of
                64 MiB together.
            policy: A policy for this run; both it and that of the language must permit.
            on_stdout: Is given stdout in pieces as they are written.
            on_stderr: The same for stderr.

        Returns:
            What came of it.

        Raises:
            UsageError: An argument is unfit.
            PolicyError: The policy cannot be enforced.
            ModuleError: The interpreter cannot be run.
        """
        check_keywords(f"{self._language}.run()", _unknown, of_languages(self._language))
        steps, control = self.steps(
            code,
            files=files,
            inputs=inputs,
            args=args,
            stdin=stdin,
            env=env,
            collect=collect,
            policy=policy,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
        )
        return run_blocking(steps, control)

    async def run_async(
        self,
        code: str,
        *,
        files: Mapping[str, BytesLike] | None = None,
        inputs: Mapping[str, Plain] | None = None,
        args: Sequence[str] = (),
        stdin: BytesLike = b"",
        env: Mapping[str, str] | None = None,
        collect: Sequence[str] = (),
        policy: PolicyLike | None = None,
        on_stdout: OnOutputAsync | None = None,
        on_stderr: OnOutputAsync | None = None,
        **_unknown: Never,
    ) -> CodeResult:
        """Does what `run` does, without blocking the event loop; cancelling the task stops the code.

        Args:
            code: As in `run`; so are all other arguments.
            files: Files that it finds.
            inputs: Variables that it finds.
            args: Arguments.
            stdin: Its standard input.
            env: Its environment.
            collect: Which files are returned.
            policy: A policy for this run.
            on_stdout: Is given stdout, on the event loop, and awaited if it can be.
            on_stderr: The same for stderr.
        """
        check_keywords(f"{self._language}.run_async()", _unknown, of_languages(self._language))
        import asyncio

        from stockade.execution.loop_streams import LoopStreams
        from stockade.runner import NORMAL_PRIORITY
        from stockade.runner.loop import await_run

        served: list[LoopStreams] = []
        # What makes a place, and an interpreter ready, takes its time.
        steps, control = await asyncio.to_thread(
            self.steps,
            code,
            files=files,
            inputs=inputs,
            args=args,
            stdin=stdin,
            env=env,
            collect=collect,
            policy=policy,
            streams=(lambda _: served[0]) if on_stdout is not None or on_stderr is not None else None,
        )
        if on_stdout is not None or on_stderr is not None:
            served.append(LoopStreams(Inputs(on_stdout=on_stdout, on_stderr=on_stderr), control))
        try:
            return await await_run(steps, control, NORMAL_PRIORITY, "")
        finally:
            for streams in served:
                streams.close()

    def steps(
        self,
        code: str,
        *,
        name: str = "<code>",
        files: Mapping[str, BytesLike] | None = None,
        inputs: Mapping[str, Plain] | None = None,
        args: Sequence[str] = (),
        stdin: BytesLike = b"",
        env: Mapping[str, str] | None = None,
        collect: Sequence[str] = (),
        policy: PolicyLike | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        streams: Callable[[RunControl], Streams | None] | None = None,
    ) -> tuple[RunCoroutine[CodeResult], RunControl]:
        """Returns a run in steps that somebody else takes; and its control.

        Args:
            code: As in `run`; so are all other arguments.
            name: What the code is called in tracebacks, and as the first of its arguments.
            files: Files that it finds.
            inputs: Variables that it finds.
            args: Arguments.
            stdin: Its standard input.
            env: Its environment.
            collect: Which files are returned.
            policy: A policy for this run.
            on_stdout: Is given stdout.
            on_stderr: Is given stderr.
            streams: Makes what serves the code while it runs, in the place of callbacks.
        """
        task = make_task(code, name, inputs, args, stdin, env, takes_bytes=self._takes_bytes)
        given, patterns = check_files(files), check_patterns(collect)
        module, driver = self._load()
        self._check_files(driver, given, patterns)
        allowed = self.policy if policy is None else self.policy.narrow(policy_of(policy))
        secrets = self._given(allowed)
        if secrets is not None:
            task = _with_secrets(task, secrets)
        place = self._place(allowed, module, driver)
        beginning = self._bases.get(place.folders) or self._beginning(module, driver, place.box.policy)
        place.folder.put(given)
        place.toolbox.begin()
        task = task._replace(
            preload=self._preload,
            most_bytes=allowed.limits.stdout,
            paths=self._wheels,
            reseed=driver.has_base,
            tools=self._described(),
            network=allowed.network.mode != "none",
        )
        exchange: JobStreams | None = None
        job, stdin = driver.job(task), task.stdin or b""
        if streams is not None:
            # It is served while the code runs.
            task = task._replace(stdin=None)

        def program(guest: OpenGuest) -> RunCoroutine[Report]:
            place.toolbox.reach(guest)
            return driver.start(guest, module, task)

        if place.toolbox.serves and driver.exchanges:
            # Requests, and what answers them, pass by a file and standard input.
            exchange = JobStreams(on_stdout, on_stderr, place.folder.take_request, place.toolbox)
            exchange.put(job)
            exchange.end()

        def served(control: RunControl) -> Streams | None:
            if exchange is not None:
                exchange.wake_by(control.wake)
                return exchange if streams is None else exchange.beside(streams(control))
            found = None if streams is None else streams(control)
            if found is not None and found.stdin is not None and job:
                found.stdin = _first(job, found.stdin)
            return found

        taken: RunCoroutine[Report]
        if driver.waits and streams is None and exchange is None and on_stdout is None and on_stderr is None:
            # One that has begun may wait for it.
            task = task._replace(is_ahead=self._pool_size > 0 and allowed == self.policy)
            taken, control = place.box.steps(module, driver.arguments(task), stdin=job + stdin, env=_ENVIRONMENT)
        else:
            taken, control = place.box.drive(
                beginning,
                program,
                Inputs(driver.arguments(task), job + stdin, _ENVIRONMENT, on_stdout, on_stderr),
                streams=None if streams is None and exchange is None else served,
            )

        control.frames = True
        place.toolbox.on_call = _telling(control)

        def steps() -> RunCoroutine[CodeResult]:
            is_clean = False
            try:
                report = yield from taken
                result = result_of(report, place.told, place.folder, place.toolbox, patterns, control)
                is_clean = not given and is_untouched(report.usage.calls)
                return result
            finally:
                self._leave(place, is_clean=is_clean)

        return steps(), control

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
            inputs = Inputs(driver.arguments(begun), b"", {**_ENVIRONMENT, **variables}, forks=forks)
            guest, control = box.live(beginning, inputs, streams)
            if control.gate is not None:
                control.gate.frames = True
            toolbox.on_call = _telling(control)
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

    def _place(self, policy: Policy, module: Module, driver: Driver) -> Place:
        """Takes a place where code can run under a policy, or makes one."""
        while (place := self._take_place(policy)) is not None:
            if place.folder.clear():
                return place
            place.close()
        return self._make_place(policy, module, driver)

    def _take_place(self, policy: Policy) -> Place | None:
        with self._lock:
            places = self._places
            if self._process != os.getpid():
                # Each process has places of its own: those that were made before it was forked are not.
                places = self._places = [place for place in places if place.folder.is_ours]
                self._process = os.getpid()
            at = at_hand(places, policy)
            return None if at is None else places.pop(at)

    def _make_place(self, policy: Policy, module: Module, driver: Driver) -> Place:
        folder = PrivateFolder()
        box, toolbox = self._sandbox(policy, driver, folder)
        ahead = None
        if self._pool_size and policy == self.policy and (driver.waits or driver.has_base):
            # One for each place, for its folder is its own.
            beginning = self._beginning(module, driver, box.policy, is_often=True)
            begun = driver.arguments(Task("", preload=self._preload, paths=self._wheels, is_ahead=True))
            if self._is_apart:
                box.warm(beginning, pool_size=1)
                return Place(policy, told_of(policy), box, folder, toolbox, folders_of(box.policy), None)
            ahead = box.warm_one(beginning, Inputs(begun, env=_ENVIRONMENT), folder.clear, hints=driver.hints)
        return Place(policy, told_of(policy), box, folder, toolbox, folders_of(box.policy), ahead)

    def _leave(self, place: Place, *, is_clean: bool = False) -> None:
        """Gives a place back: whoever takes it finds nothing of what was in it.

        Args:
            place: The place.
            is_clean: Whether nothing has come to be in it.
        """
        surplus: Place | None = place
        if not is_clean:
            place.folder.left()
        if place.folder.is_ours and (place.ahead is not None or place.folder.clear()):
            if place.ahead is not None:
                # In the next pause: what is done in the background would be done in the time of runs.
                place.ahead.tend()
            with self._lock:
                if self._loaded is not None:
                    # The one that was not needed for longest makes room.
                    self._places.append(place)
                    surplus = self._places.pop(0) if len(self._places) > max(_MOST_PLACES, self._pool_size) else None
        if surplus is not None:
            surplus.close()

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
        with Sandbox(roomy(policy).replace(stdout=_MOST_ANSWER_BYTES), isolation=self._isolation) as box:
            report = box.run(module, arguments, env=_ENVIRONMENT)
        return report.stdout if report.ok and not report.truncated.stdout else None

    def _make_base(self, module: Module, driver: Driver, policy: Policy) -> Snapshot:
        box = Sandbox(roomy(policy), isolation=self._isolation)
        driver.lend(box, Toolbox(self._tools, policy.grants, 0))
        with box:
            box.prepare(module)
            guest, control = box.live(module, Inputs(env=_ENVIRONMENT))
            try:
                report = run_blocking(driver.boot(guest, module, self._preload, self._wheels), control)
                if not report.ok or report.value:
                    text = report.stderr.decode("utf-8", "replace").strip() or report.summary()
                    why = ", for preload fails" if self._preload else ""
                    raise UsageError(f"the interpreter cannot be made ready{why}: {printable(text, 2000)}")
                return Snapshot(SavedGuest(guest.take_state().in_large_pages()))
            finally:
                guest.close()

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


def _first(job: bytes, rest: Callable[[int], bytes | None]) -> Callable[[int], bytes | None]:
    """Returns what fetches a job, and after it what there is besides."""
    left = memoryview(job)

    def fetch(size: int) -> bytes | None:
        nonlocal left
        if not left:
            return rest(size)
        piece, left = bytes(left[:size]), left[size:]
        return piece

    return fetch


def _telling(control: RunControl) -> Callable[[str], object]:
    """Returns what tells of a call of a tool, where somebody wants to know of those of a run."""

    def tell(name: str) -> None:
        if control.on_tool is not None:
            control.on_tool(name)

    return tell


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
