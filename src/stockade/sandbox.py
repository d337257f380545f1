"""The facade: `Sandbox` and `Session`, and the one-call forms `run` and `call`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Literal, TypeVar

from stockade.errors import IsolationError, UsageError
from stockade.execution import Call, Ground, Inputs, Module, Watch, fit
from stockade.host import HostFunctions
from stockade.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

    from stockade.execution import Argument, Guest, OnOutput, Returns, Source, Stdin
    from stockade.report import Report, Value

__all__ = ["Sandbox", "Session", "call", "run"]

_Function = TypeVar("_Function", bound="Callable[..., object]")

_MAX_NARROWED = 16
"""Policies of single runs that are kept ready."""


def _silent(step: str) -> None:
    """Reports no progress."""


class Sandbox:
    """Runs modules under one policy. Reusable, and safe to share between threads.

    `run` and `call` return a report whatever the guest did; they raise only for what the caller did wrong.

    Args:
        policy: A policy, or the name of a preset.
        isolation: Where runs happen: `inprocess`.

    Raises:
        PolicyError: There is no such preset, a mount cannot be granted, or the policy asks for what cannot be enforced.
        IsolationError: The isolation is not to be had.
    """

    def __init__(
        self, policy: Policy | str = "default", isolation: Literal["inprocess", "process"] = "inprocess"
    ) -> None:
        self.policy = Policy.preset(policy) if isinstance(policy, str) else policy
        if isolation != "inprocess":
            raise IsolationError(f'isolation {isolation!r} is not available in this release: use "inprocess"')
        self._lock = threading.Lock()
        self._functions = HostFunctions()
        self._ground: Ground | None = Ground(self.policy, self._functions)
        self._narrowed: OrderedDict[Policy, Ground] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the sandbox: nothing can be run in it any more. Closing twice is harmless."""
        self._ground = None
        with self._lock:
            self._narrowed.clear()

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
        ground = self._under(None)
        loaded = ground.load(module)
        ground.plan(loaded, progress)
        return loaded

    def host_function(
        self, module: str, name: str | None = None, *, requires: str | None = None
    ) -> Callable[[_Function], _Function]:
        """Lends a function to guests, as a decorator: guests import it and call it.

        Its type follows from its annotations: `int` is i32, `float` f64, `bool` an i32; `stockade.I64` and its like say
        more; `str` and `bytes` take two numbers, address and length, and read the guest's memory. A first parameter
        annotated `stockade.HostCall` gets the call itself, with the guest's memory. What the function raises ends the
        run that called it, as a trap.

        Args:
            module: The import module, such as `env`.
            name: The name of the import; by default, that of the function.
            requires: A custom capability: the run ends as denied where the policy does not grant it.

        Raises:
            UsageError: The annotations are not fit, or the name is taken.
        """

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
        policy: Policy | str | None = None,
    ) -> Report:
        """Runs a WASI command: `_start`, else `main`.

        Callbacks are called on this thread while the guest is halted, some hundred times a second; what one raises ends
        the run and is raised here. A guest that writes faster than they take waits for them.

        Args:
            module: Path of a module, its bytes, or a loaded module.
            args: Arguments for the guest, after its name.
            stdin: What it reads from its standard input: bytes, or a function that is called with a number of bytes and
                returns at most so many: no bytes at the end, None where there are none yet.
            env: Its environment, beside what the policy passes on.
            on_stdout: Is given stdout in pieces as they are written, in their order with those of stderr.
            on_stderr: The same for stderr.
            policy: A policy for this run. What it permits beyond the sandbox's own stays forbidden: both must permit.

        Returns:
            What happened.

        Raises:
            ModuleError: The module cannot be run.
            PolicyError: The policy cannot be enforced.
            UsageError: The sandbox is closed, or an argument is unfit.
        """
        return self._run(self._under(policy), Watch(), module, Inputs(args, stdin, env, on_stdout, on_stderr))

    def call(
        self,
        module: Source,
        export: str,
        *args: Argument,
        returns: Returns | None = None,
        policy: Policy | str | None = None,
    ) -> Report:
        """Calls an exported function; a reactor is initialized first.

        Args:
            module: Path of a module, its bytes, or a loaded module.
            export: Name of the function.
            *args: A number for each parameter; a text (UTF-8) or bytes for two i32, address and length, where the
                module exports an allocator.
            returns: Reads the result as `text` or `bytes`, whose address and length it is; at most `limits.stdout`.
            policy: A policy for this call; both it and the sandbox's own must permit.

        Returns:
            What happened; `Report.value` is what the function returned.

        Raises:
            ModuleError: The module cannot be run, or has no such function.
            UsageError: The sandbox is closed, or the arguments do not fit the function.
        """
        return self._call(self._under(policy), Watch(), module, export, args, returns)

    async def run_async(
        self,
        module: Source,
        args: Sequence[str | bytes] = (),
        *,
        stdin: Stdin = b"",
        env: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        policy: Policy | str | None = None,
    ) -> Report:
        """Does what `run` does without blocking the event loop. Cancelling the task stops the guest."""
        watch, ground = Watch(), self._under(policy)
        inputs = Inputs(args, stdin, env, on_stdout, on_stderr)
        return await _aside(watch, lambda: self._run(ground, watch, module, inputs))

    async def call_async(
        self,
        module: Source,
        export: str,
        *args: Argument,
        returns: Returns | None = None,
        policy: Policy | str | None = None,
    ) -> Report:
        """Does what `call` does without blocking the event loop. Cancelling the task stops the guest."""
        watch, ground = Watch(), self._under(policy)
        return await _aside(watch, lambda: self._call(ground, watch, module, export, args, returns))

    def open(
        self,
        module: Source,
        args: Sequence[str | bytes] = (),
        *,
        stdin: bytes | str = b"",
        env: Mapping[str, str] | None = None,
        policy: Policy | str | None = None,
    ) -> Session:
        """Opens a live instance that keeps its state between calls; a reactor is initialized first.

        Args:
            module: Path of a module, its bytes, or a loaded module.
            args: Arguments that the guest sees, after its name.
            stdin: What it reads from its standard input.
            env: Its environment.
            policy: A policy for this session; both it and the sandbox's own must permit.

        Raises:
            ModuleError: The module cannot be run.
            GuestError: Its initialization failed.
        """
        ground = self._under(policy)
        loaded = ground.load(module)
        watch = Watch()
        return Session(loaded, ground.guest(loaded, watch, Inputs(args, stdin, env)), watch)

    # -- what the methods share -----------------------------------------------------------------------------------

    def _run(self, ground: Ground, watch: Watch, module: Source, inputs: Inputs) -> Report:
        loaded = ground.load(module)
        entry = loaded.command_entry
        guest = ground.guest(loaded, watch, inputs)
        try:
            return guest.invoke(Call(entry), command=True)
        finally:
            guest.close()

    def _call(
        self,
        ground: Ground,
        watch: Watch,
        module: Source,
        export: str,
        args: Sequence[Argument],
        returns: Returns | None,
    ) -> Report:
        loaded = ground.load(module)
        call = fit(loaded, export, args, returns)
        guest = ground.guest(loaded, watch)
        try:
            initializer = loaded.initializer
            if initializer is not None and initializer.name != call.entry.name:
                report = guest.invoke(Call(initializer))
                if not report.ok or guest.ended:
                    return report
            return guest.invoke(call)
        finally:
            guest.close()

    def _under(self, policy: Policy | str | None) -> Ground:
        """Returns the ground for a run: the sandbox's own, or a narrower one where the run has a policy of its own."""
        ground = self._ground
        if ground is None:
            raise UsageError("the sandbox is closed: make a new one")
        if policy is None:
            return ground
        asked = Policy.preset(policy) if isinstance(policy, str) else policy
        with self._lock:
            found = self._narrowed.get(asked)
            if found is None:
                found = self._narrowed[asked] = Ground(self.policy.narrow(asked), self._functions)
            self._narrowed.move_to_end(asked)
            while len(self._narrowed) > _MAX_NARROWED:
                self._narrowed.popitem(last=False)
        return found


class Session:
    """One live instance: its memory and globals are kept between calls. Use it as a context manager.

    Each call has its own budget of fuel and time, and its own report. When the guest traps, exits or is stopped, the
    session is over: what is left of it is not to be trusted.

    Attributes:
        initialization: The report on a reactor's `_initialize`; None for a guest that has none.
    """

    def __init__(self, module: Module, guest: Guest, watch: Watch) -> None:
        self._module = module
        self._guest = guest
        self._watch = watch
        self._lock = threading.Lock()
        self._closed = False
        self.initialization: Report | None = None
        try:
            if guest.ended:
                guest.obituary().check()
            if module.initializer is not None:
                self.initialization = self._invoke(Call(module.initializer)).check()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def call(self, export: str, *args: Argument, returns: Returns | None = None) -> Report:
        """Calls an exported function.

        Args:
            export: Name of the function.
            *args: What is passed, as to `Sandbox.call`.
            returns: What the result is read as, as there.

        Raises:
            LinkError: There is no such function.
            UsageError: The session is over, in use by another thread, or the arguments do not fit.
        """
        return self._invoke(fit(self._module, export, args, returns))

    def read_memory(self, address: int, size: int) -> bytes:
        """Copies bytes out of the guest's exported memory.

        Raises:
            UsageError: They are not all inside it, or the session is over.
        """
        with self._exclusive():
            try:
                return self._guest.memory(b"memory").read(address, size)
            except IndexError as problem:
                raise UsageError(f"outside the guest's memory: {problem}") from None

    def write_memory(self, address: int, data: bytes) -> None:
        """Copies bytes into the guest's exported memory.

        Raises:
            UsageError: They do not all fit inside it, or the session is over.
        """
        with self._exclusive():
            try:
                self._guest.memory(b"memory").write(address, data)
            except IndexError as problem:
                raise UsageError(f"outside the guest's memory: {problem}") from None

    def cancel(self) -> None:
        """Stops a call that is under way, and ends the session. May be called from any thread."""
        self._watch.cancel()

    def close(self) -> None:
        """Ends the session and frees the instance. Closing twice is harmless.

        Raises:
            UsageError: A call is under way in another thread: cancel it first.
        """
        if not self._lock.acquire(blocking=False):
            raise UsageError("a call is under way in another thread: cancel it first")
        try:
            self._closed = True
            self._guest.close()
        finally:
            self._lock.release()

    def _invoke(self, call: Call) -> Report:
        with self._exclusive():
            if self._guest.ended:
                raise UsageError("the guest has ended, so the session is over: open a new one")
            # A cancellation is for the call under way; there is none.
            self._watch.cancelled = False
            self._guest.renew()
            return self._guest.invoke(call)

    def _exclusive(self) -> _Exclusive:
        return _Exclusive(self._lock, self._check_open)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the session is closed: open a new one")


class _Exclusive:
    """Holds the session's lock; a second thread is told so instead of waiting (H86)."""

    def __init__(self, lock: threading.Lock, check: Callable[[], None]) -> None:
        self._lock = lock
        self._check = check

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise UsageError("the session is in use by another thread: give each thread a session of its own")
        try:
            self._check()
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


def run(
    module: Source,
    args: Sequence[str | bytes] = (),
    *,
    stdin: Stdin = b"",
    env: Mapping[str, str] | None = None,
    on_stdout: OnOutput | None = None,
    on_stderr: OnOutput | None = None,
    policy: Policy | str = "default",
) -> Report:
    """Runs a WASI command once.

    Args:
        module: Path of a module, its bytes, or a loaded module.
        args: Arguments for the guest, after its name.
        stdin: What it reads from its standard input.
        env: Its environment.
        on_stdout: Is given stdout in pieces as they are written.
        on_stderr: The same for stderr.
        policy: A policy, or the name of a preset.

    Returns:
        What happened.

    Raises:
        StockadeError: The caller did something wrong: no such file, not WebAssembly, an impossible policy.
    """
    with Sandbox(policy) as sandbox:
        return sandbox.run(module, args, stdin=stdin, env=env, on_stdout=on_stdout, on_stderr=on_stderr)


def call(
    module: Source, export: str, *args: Argument, returns: Returns | None = None, policy: Policy | str = "default"
) -> Value:
    """Calls an exported function once and returns its value.

    Args:
        module: Path of a module (`.wat` text is fine here), its bytes, or a loaded module.
        export: Name of the function.
        *args: What is passed, as to `Sandbox.call`.
        returns: What the result is read as, as there.
        policy: A policy, or the name of a preset.

    Raises:
        GuestError: The guest failed.
        StockadeError: The caller did something wrong.
    """
    with Sandbox(policy) as sandbox:
        loaded = Module.load(module, limit_bytes=sandbox.policy.limits.module_size, text=True)
        return sandbox.call(loaded, export, *args, returns=returns).check().value


async def _aside(watch: Watch, work: Callable[[], Report]) -> Report:
    """Does the work in a thread. A cancelled task stops the guest and waits until it has stopped."""
    # Takes longer to import than a small guest to run, and most never need it.
    import asyncio
    from contextvars import copy_context

    started = threading.Event()

    def begin() -> Report:
        started.set()
        return work()

    future = asyncio.get_running_loop().run_in_executor(None, copy_context().run, begin)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        watch.cancel()
        if started.is_set():
            await asyncio.wait([future])
        else:
            future.cancel()
        raise
