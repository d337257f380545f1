"""The fork server, its templates and their workers as seen from here: one server for each process of ours.

It is started when it is needed, and has a template for each module, in machine code, that runs. One thread listens to
all of them, and wakes the runs that have something to hear. Everything that a worker says is read by its run, in its
own steps. A forked child of this process starts a server of its own.
"""

from __future__ import annotations

import atexit
import itertools
import os
import select
import signal
import socket
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from stockade._bell import start_thread
from stockade._bounded import BoundedDict
from stockade._locks import reentrant_lock
from stockade.errors import IsolationError
from stockade.isolation._ahead import WorkersAhead
from stockade.isolation._frames import Garbled, Gone, receive, send
from stockade.isolation._handle import WorkerHandle
from stockade.isolation._messages import FROM_SERVER, Forget, Make, Open, Register
from stockade.isolation._template_handle import TemplateHandle
from stockade.worker import ServerProcess, socket_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stockade.engine import CompiledModule, SealedFile
    from stockade.execution import Isolation

__all__ = ["Hub", "hub", "hub_of"]

MOST_WORKERS: Final = 256
"""Workers at a time; a run beyond them waits for its turn."""

MOST_PROGRAMS: Final = 64
"""Modules under policies that templates have ready, those used last."""

MOST_TEMPLATES: Final = 16
"""Templates that stay although none of their workers is there: those used last."""

TEMPLATE_SECONDS: Final = 300.0
"""For so long they do; as long as the fork server itself. To load machine code anew takes longer than many runs."""

_LOOK_SECONDS: Final = 10.0
"""How often it is looked, while there are workers, whether some have waited for long."""

_BUSY_SECONDS: Final = 0.05
"""When that is looked at again where somebody is in the middle of something."""

_KIND: Final = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_STREAM)


class Registered(Protocol):
    """What a worker is to run, and what the fork server has to know of that.

    Attributes:
        key: By which it is known that it knows it.
        code: The machine code.
        is_large: Whether to make it ready takes longer than many runs.
    """

    key: tuple[int, str]
    code: CompiledModule
    is_large: bool

    def make(self, number: int, like: int | None) -> tuple[Register, Sequence[int]]:
        """Says what it has to know, and the descriptors that go with it.

        Args:
            number: The number by which the host calls it from now on.
            like: The number of the same module and machine code under another policy; None where it knows none.
        """


class _Watcher:
    """The thread that listens.

    Args:
        control: The socket to the server.
        hear: Takes what the server says; whether there is more to come.
        tend: Does what is due, and says in how many seconds something will be; None where nothing is.
    """

    def __init__(self, control: socket.socket, hear: Callable[[], bool], tend: Callable[[], float | None]) -> None:
        self._control = control
        self._hear = hear
        self._tend = tend
        self._poll = select.epoll()
        self._poll.register(control, select.EPOLLIN)
        self._templates: dict[int, TemplateHandle] = {}
        self._workers: dict[int, WorkerHandle] = {}
        self._thread = threading.Thread(target=self._run, name="stockade-workers", daemon=True)

    def start(self) -> None:
        start_thread(self._thread)

    def follow(self, template: TemplateHandle) -> None:
        """Listens to a template until it has ended; then its socket is closed."""
        template.listener = self._thread
        self._templates[template.line.fileno()] = template
        self._poll.register(template.line, select.EPOLLIN)

    def add(self, line: socket.socket, worker: WorkerHandle) -> None:
        """Listens to a worker, once it is armed."""
        self._workers[line.fileno()] = worker
        # That the other end is closed is told without being asked for: once, and not for ever.
        self._poll.register(line, select.EPOLLONESHOT)

    def arm(self, line: socket.socket) -> None:
        with suppress(OSError, ValueError):
            self._poll.modify(line, select.EPOLLIN | select.EPOLLONESHOT)

    def forget(self, line: socket.socket) -> None:
        descriptor = line.fileno()
        if descriptor >= 0:
            with suppress(OSError, ValueError):
                self._poll.unregister(descriptor)
            self._workers.pop(descriptor, None)

    def _run(self) -> None:
        control = self._control.fileno()
        while True:
            try:
                ready = self._poll.poll(self._tend())
            except (OSError, ValueError):
                return
            for descriptor, _ in ready:
                if descriptor == control:
                    if not self._hear():
                        return
                    continue
                template = self._templates.get(descriptor)
                if template is not None:
                    if not template.hear():
                        with suppress(OSError, ValueError):
                            self._poll.unregister(descriptor)
                        # Nobody else closes it, so that the number is not another's before this.
                        self._templates.pop(descriptor).close()
                    continue
                worker = self._workers.get(descriptor)
                if worker is not None:
                    worker.wake()

    def hear_templates(self) -> None:
        """On this thread: takes what templates have said."""
        for template in list(self._templates.values()):
            template.hear()

    def close(self) -> None:
        self._poll.close()
        while self._templates:
            self._templates.popitem()[1].close()


class _Server:
    """A fork server that was started.

    Args:
        module: What it is.
        numbers: What its workers and programs are called.
        tend: What the thread that listens does from time to time; see there.

    Attributes:
        process: The process.
        programs: What templates know, by the keys of what is to run.
        templates: Those that have not ended.
        workers: Those that have not ended, by their numbers.
        lost: Whether it has ended, and all templates with it.
        ahead: Workers that wait.
        watcher: The thread that listens.
    """

    def __init__(self, module: str, numbers: Iterator[int], tend: Callable[[], float | None]) -> None:
        self._numbers = numbers
        self.process = ServerProcess(
            module,
            "there is no Python to run workers with, for sys.executable is not set: set it, or use "
            'isolation="inprocess"',
            _KIND,
        )
        self.programs: BoundedDict[tuple[int, str], int] = BoundedDict(MOST_PROGRAMS + 1)
        self.templates: set[TemplateHandle] = set()
        self._by_program: dict[int, TemplateHandle] = {}
        self._by_code: weakref.WeakKeyDictionary[CompiledModule, TemplateHandle] = weakref.WeakKeyDictionary()
        self.workers: dict[int, WorkerHandle] = {}
        # Workers whose template has ended, by the numbers of their processes.
        self._orphans: dict[int, WorkerHandle] = {}
        self.lost = False
        self.ahead = WorkersAhead(self.make)
        self.watcher = _Watcher(self.process.control, self._hear, tend)
        self.watcher.start()

    # -- programs ------------------------------------------------------------------------------------------------------

    def program(self, what: Registered, *, kept: bool) -> tuple[int, bool]:
        """Has a template know what is to run: that of its machine code, or a new one.

        Args:
            what: What is to run.
            kept: Whether workers are to wait for it in any case.

        Returns:
            Its number, and whether its template did not know it before.

        Raises:
            Gone: There is no template, or no server.
            OSError: There are no more descriptors.
        """
        program = self.programs.find(what.key)
        if program is not None and not self._by_program[program].spent:
            return program, False
        if program is None:
            program = next(self._numbers)
        template = self._by_code.get(what.code)
        if template is None or template.spent or not template.programs:
            # What has not run before may never do so again.
            template = self._new_template(alone=template is None and not (kept or what.is_large))
            self._by_code[what.code] = template
        template.order(*what.make(program, next(iter(template.programs), None)))
        template.programs.add(program)
        self._by_program[program] = template
        self.programs.keep(what.key, program)
        if len(self.programs) > MOST_PROGRAMS:
            self._drop(next(iter(self.programs)))
        return program, True

    def drop(self, policy: int) -> None:
        """Has templates forget what ran under a policy that is no more."""
        for key in [key for key in self.programs if key[0] == policy]:
            self._drop(key)

    def _drop(self, key: tuple[int, str]) -> None:
        program = self.programs.pop(key)
        self.ahead.drop(program)
        template = self._by_program.pop(program)
        template.programs.discard(program)
        # Where it has ended, it has forgotten it.
        with suppress(Gone):
            template.order(Forget(program))

    # -- templates -----------------------------------------------------------------------------------------------------

    def _new_template(self, *, alone: bool) -> TemplateHandle:
        if self.lost:
            raise Gone
        if not alone:
            self._make_room()
        template, theirs = TemplateHandle.pair(_KIND, time.monotonic, self._ended, self._orphaned, alone=alone)
        with theirs:
            self.watcher.follow(template)
            self.templates.add(template)
            try:
                send(self.process.control, Make(), descriptors=[theirs.fileno()])
            except BaseException:
                self._end(template)
                raise
        return template

    def _make_room(self) -> None:
        """Ends templates that nobody needs, the oldest first, where there are many."""
        made = [one for one in list(self.templates) if not one.spent]
        idle = sorted((one for one in made if not one.workers), key=lambda one: one.used)
        for template in idle[: max(0, len(made) - MOST_TEMPLATES + 1)]:
            self._end(template)

    def end_idle(self) -> None:
        """Ends templates that nobody needs."""
        now = time.monotonic()
        for template in [one for one in list(self.templates) if not one.workers and self._due(one) <= now]:
            self._end(template)

    def idle_at(self) -> float | None:
        """Returns when there is a template to end, by the clock; None where there is none. For any thread."""
        return min((self._due(one) for one in list(self.templates) if not one.workers), default=None)

    def _due(self, template: TemplateHandle) -> float:
        return template.used + TEMPLATE_SECONDS * (bool(template.programs) and not template.spent)

    def _end(self, template: TemplateHandle) -> None:
        self.templates.discard(template)
        template.end()

    # -- workers -------------------------------------------------------------------------------------------------------

    def make(self, program: int, *, keeps: bool = False) -> WorkerHandle:
        """Has a worker made, which waits to be told what to do.

        Args:
            program: What it is to run.
            keeps: Whether its guest is called any number of times.

        Raises:
            Gone: Its template is no more.
            OSError: There are no more descriptors.
        """
        template = self._by_program.get(program)
        if template is None:
            raise Gone
        number = next(self._numbers)
        ours, theirs = socket_pair(_KIND)
        worker = WorkerHandle(number, program, ours, self)
        try:
            with theirs:
                self.workers[number] = worker
                self.watcher.add(ours, worker)
                template.spawn(worker, theirs, keeps=keeps)
        except BaseException:
            self.workers.pop(number, None)
            self.watcher.forget(ours)
            ours.close()
            raise
        return worker

    def left(self, worker: WorkerHandle) -> None:
        """A run needs its worker no more. It stays known until it has ended, so that its descriptor is closed."""
        self.ahead.left(worker)
        if worker.refused or worker.status is not None or self.lost:
            self.workers.pop(worker.number, None)
            template = self._by_program.get(worker.program)
            if template is not None:
                template.drop(worker)

    def _ended(self, worker: WorkerHandle) -> None:
        """On the thread that listens: a worker has ended."""
        self.workers.pop(worker.number, None)

    def _orphaned(self, worker: WorkerHandle, process: int) -> None:
        """On the thread that listens: a worker goes on without its template; the server tells how it ends."""
        self._orphans[process] = worker

    def _hear(self) -> bool:
        """On the thread that listens: takes what the server says; whether there is more to come."""
        while True:
            try:
                found = receive(self.process.control, FROM_SERVER, waits=False)
            except (Gone, Garbled, OSError):
                self._lose()
                return False
            if found is None:
                return True
            left = found[0]
            if left.process not in self._orphans:
                # That its template has ended was said before, on another line.
                self.watcher.hear_templates()
            worker = self._orphans.pop(left.process, None)
            if worker is not None:
                self._ended(worker)
                worker.ended(left.status)

    def _lose(self) -> None:
        """The server has ended, and all templates and workers with it."""
        self.lost = True
        for template in list(self.templates):
            template.lose()
        for worker in list(self.workers.values()):
            self._ended(worker)
            worker.ended(-signal.SIGKILL)

    def close(self) -> None:
        self.lost = True
        self.ahead.close()
        for template in list(self.templates):
            template.end()
        self.process.close()
        self.watcher.close()
        for worker in list(self.workers.values()):
            worker.drop()

    def forget(self) -> None:
        """In a forked child: lets go of it."""
        for worker in list(self.workers.values()):
            worker.forget()
        self.watcher.close()
        self.process.forget()


class Hub:
    """Has workers made. For any number of threads.

    Args:
        module: What makes them: its `main` is the process that does.

    Attributes:
        stale: Policies made ready that are no more, by the first part of the keys of what ran under them: it is to be
            forgotten.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self.stale: deque[int] = deque()
        # How many workers are to wait, by the keys of what they are to run.
        self._kept: dict[tuple[int, str], int] = {}
        self._lock = reentrant_lock()
        self._server: _Server | None = None
        self._numbers = itertools.count(1)
        self._closed = False
        self._free = MOST_WORKERS
        self._waiting: deque[Callable[[], object]] = deque()

    # -- turns --------------------------------------------------------------------------------------------------------

    def acquire(self, wake: Callable[[], object]) -> bool:
        """Takes a place for a worker; whoever has got one releases it.

        Args:
            wake: What is called, where there was none, when there may be one; whoever does not come then leaves.

        Returns:
            Whether there was one.
        """
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            self._waiting.append(wake)
            return False

    def leave(self, wake: Callable[[], object]) -> None:
        """Waits for a place no longer: if it was this one's turn, it is another's."""
        with self._lock:
            try:
                self._waiting.remove(wake)
            except ValueError:
                self._wake_next()

    def is_waiting(self, wake: Callable[[], object]) -> bool:
        """Whether somebody still waits for a place, and has not been woken for one."""
        with self._lock:
            return wake in self._waiting

    def release(self) -> None:
        """Gives a place back, and wakes who waits for one."""
        with self._lock:
            self._free += 1
            self._wake_next()

    def _wake_next(self) -> None:
        if self._free and self._waiting:
            self._waiting.popleft()()

    # -- workers ------------------------------------------------------------------------------------------------------

    def spawn(
        self,
        what: Registered,
        given: tuple[Open, bytes, Sequence[SealedFile]],
        wake: Callable[[], object],
        *,
        keeps: bool = False,
    ) -> WorkerHandle:
        """Has a worker made, and tells it what its guest is given.

        Args:
            what: What it is to run.
            given: What the guest is given, what stands behind that, and the files of what it begins with.
            wake: Is called, from any thread, when it has said something, or has ended.
            keeps: Whether its guest is called any number of times.

        Raises:
            IsolationError: There is no fork server, and there can be none.
        """
        for _ in range(3):
            try:
                with self._lock:
                    return self._spawn(what, given, wake, keeps=keeps)
            except Gone:
                continue
        raise IsolationError("the process that makes workers ends again and again: see that there is memory for it")

    def _spawn(
        self,
        what: Registered,
        given: tuple[Open, bytes, Sequence[SealedFile]],
        wake: Callable[[], object],
        *,
        keeps: bool,
    ) -> WorkerHandle:
        server = self._found()
        program = self._program(server, what)
        worker = None if keeps else server.ahead.take(program)
        if worker is None:
            worker = server.make(program, keeps=keeps)
        worker.hub = self
        try:
            worker.begin(*given, wake)
            if not keeps:
                server.ahead.took(worker)
        except BaseException:
            worker.close()
            raise
        return worker

    def tell_waiting(
        self,
        key: tuple[int, str],
        message: bytes,
        wake: Callable[[], object],
        taken: list[WorkerHandle],
    ) -> bool:
        """Tells a worker that waits what its guest is given, if one does, and there is a place for it.

        Args:
            key: By which the server knows what is to run.
            message: What the guest is given, put together.
            wake: As for `spawn`.
            taken: Gets the worker, once it has a place: who has it there ends it, and gives that back.

        Returns:
            Whether it was told.
        """
        with self._lock:
            server = self._server
            if server is None or server.lost or self.stale or not self._free:
                return False
            program = server.programs.find(key)
            worker = None if program is None else server.ahead.take(program)
            if worker is None:
                return False
            worker.hub = self
            # Nowhere between these two does Python look for signals.
            self._free -= 1
            taken.append(worker)
            try:
                worker.tell_first(message, wake)
            except Gone:
                return False
            server.ahead.took(worker)
        return True

    def _program(self, server: _Server, what: Registered) -> int:
        """The number by which a server knows what is to run."""
        self._drop_stale(server)
        kept = self._kept.get(what.key, 0)
        program, is_new = server.program(what, kept=kept > 0)
        if is_new and kept:
            server.ahead.keep(program, kept)
        return program

    def _drop_stale(self, server: _Server) -> None:
        while self.stale:
            policy = self.stale.popleft()
            for key in [key for key in self._kept if key[0] == policy]:
                del self._kept[key]
            server.drop(policy)

    def keep(self, what: Registered, size: int) -> Sequence[WorkerHandle]:
        """Has so many workers wait at least, whether anybody asks for them or not, until it is told otherwise.

        Args:
            what: What they are to run.
            size: How many; 0 for as many as are made anyway.

        Returns:
            Those that wait now, or are about to.

        Raises:
            IsolationError: There is no fork server, and there can be none.
        """
        for _ in range(3):
            with suppress(Gone), self._lock:
                self._kept.pop(what.key, None)
                if size:
                    self._kept[what.key] = size
                elif self._server is None or what.key not in self._server.programs:
                    return ()
                server = self._found()
                return server.ahead.keep(self._program(server, what), size)
        raise IsolationError("the process that makes workers ends again and again: see that there is memory for it")

    def forget(self, policy: int) -> None:
        """Ends the workers that wait for runs under a policy, of which there are to be no more.

        Args:
            policy: The first part of the keys of what ran under it.
        """
        with self._lock:
            self.stale.append(policy)
            if self._server is not None and not self._server.lost:
                with suppress(Gone):
                    self._drop_stale(self._server)

    def has_ahead(self, worker: WorkerHandle) -> bool:
        """Whether a worker still waits for a run to take it."""
        with self._lock:
            return self._server is not None and self._server.ahead.has(worker)

    def refill(self, worker: WorkerHandle) -> None:
        """Has others made for runs that follow, while a run is under way.

        Args:
            worker: The worker of the run.
        """
        with self._lock:
            server = self._server
            if server is not None and not server.lost and worker.number in server.workers:
                server.ahead.refill(worker.program)

    def _tend(self) -> float | None:
        """On the thread that listens: makes and ends what waits; in how many seconds there is something to do.

        It comes here when a worker has ended, for one: then the next one is made, and nobody waits for that.
        """
        server = self._server
        if server is None or not (server.workers or server.templates or server.ahead.is_short):
            # Whatever comes to be wanted is heard of.
            return None
        if not (server.ahead.is_short or self.stale):
            due = [at for at in (server.ahead.idle_at(), server.idle_at()) if at is not None]
            left = min(due) - time.monotonic() if due else _LOOK_SECONDS
            if left > 0:
                return min(left, _LOOK_SECONDS) if server.workers else left
        # Whoever has the lock may wait for the server, and that for what it says to be heard here.
        if not self._lock.acquire(blocking=False):
            return _BUSY_SECONDS
        try:
            with suppress(Gone):
                self._drop_stale(server)
            server.ahead.refill_all()
            server.ahead.end_idle()
            server.end_idle()
        finally:
            self._lock.release()
        return _BUSY_SECONDS

    def _found(self) -> _Server:
        """The server, started if there is none."""
        if self._closed:
            raise IsolationError("nothing is run any more: this process is ending")
        server = self._server
        if server is not None and server.lost:
            self._server = None
            server.close()
            server = None
        if server is None:
            server = self._server = _Server(self._module, self._numbers, self._tend)
        return server

    def close(self) -> None:
        """Ends the server, and all workers, at the end of this process."""
        self._closed = True
        self.end()

    def end(self) -> None:
        """Ends the server, and all workers; who wants a worker afterwards has another started."""
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.close()

    def after_fork(self) -> None:
        """Begins anew in a forked child."""
        self._lock = reentrant_lock()
        self._free = MOST_WORKERS
        self._waiting.clear()
        self._kept.clear()
        server, self._server = self._server, None
        if server is not None:
            server.forget()


hub = Hub("stockade.isolation._server")
"""Of workers that have what walls this process can raise."""

_in_bubblewrap = Hub("stockade.isolation._bubblewrap")


def hub_of(isolation: Isolation) -> Hub:
    """Returns who has the workers of an isolation made.

    Args:
        isolation: One that has workers.
    """
    return _in_bubblewrap if isolation == "bubblewrap" else hub


atexit.register(hub.close)
atexit.register(_in_bubblewrap.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=hub.after_fork)
    os.register_at_fork(after_in_child=_in_bubblewrap.after_fork)
