"""Runs of a language: each piece of code in an interpreter of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade._later import called_later
from stockade.execution import Inputs
from stockade.guests._folder import check_files, check_patterns, is_untouched
from stockade.guests._keywords import of_languages
from stockade.guests._leaving import result_of
from stockade.guests._loaded import ENVIRONMENT
from stockade.guests._placed import PlacedLanguage
from stockade.guests._task import make_task
from stockade.guests._turns import JobStreams
from stockade.policy import policy_of
from stockade.runner import run_blocking
from stockade.sandbox import check_keywords

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Never

    from stockade._bytes import BytesLike
    from stockade.execution import OnOutput, OnOutputAsync, OpenGuest, Streams
    from stockade.guests._result import CodeResult
    from stockade.guests._task import Plain
    from stockade.policy import PolicyLike
    from stockade.report import Report
    from stockade.runner import RunControl, RunCoroutine

__all__ = ["RunningLanguage", "telling"]

# Most languages have no secrets, and load nothing for them.
_with_secrets = called_later("stockade.guests._secrets", "with_secrets")


class RunningLanguage(PlacedLanguage):
    """An interpreter that runs pieces of code, each in a guest of its own."""

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
            taken, control = place.box.steps(module, driver.arguments(task), stdin=job + stdin, env=ENVIRONMENT)
        else:
            taken, control = place.box.drive(
                beginning,
                program,
                Inputs(driver.arguments(task), job + stdin, ENVIRONMENT, on_stdout, on_stderr),
                streams=None if streams is None and exchange is None else served,
            )

        control.frames = True
        place.toolbox.on_call = telling(control)

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


def telling(control: RunControl) -> Callable[[str], object]:
    """Returns what tells of a call of a tool, where somebody wants to know of those of a run."""

    def tell(name: str) -> None:
        if control.on_tool is not None:
            control.on_tool(name)

    return tell
