"""The compiling process: that it is one, warm, knows nothing of its host, and leaves nothing behind.

Holds P-COMPILE-6.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stockade import EngineError, Module, Policy, Sandbox, StockadeError
from stockade.compilation import _programs
from stockade.execution import _plan
from stockade.system import _server_process
from stockade.worker import _fork_server, _frames, _process, _subprocess
from stockade.worker._compile_queue import Turn
from tests._processes import busy, children, descriptors, fork, gone, until
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from collections.abc import Iterator

ALWAYS = Policy().replace(compile_process="always")
NEVER = Policy().replace(compile_process="never")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is at hand: what runs in these tests was compiled in them."""
    monkeypatch.setenv("STOCKADE_CACHE", "off")
    monkeypatch.setattr(_plan, "programs", _programs._Programs())


def hello(greeting: str) -> Module:
    """A module of its own."""
    return wat(HELLO.replace("hello", greeting))


def server_of(worker: _process.Worker) -> int:
    """The number of the compiling process."""
    assert worker._process is not None
    return worker._process.popen.pid


def script(code: str, *, environment: dict[str, str] | None = None, prefix: tuple[str, ...] = ()) -> list[str]:
    """Runs code that has `ALWAYS`, `hello` and the like; returns the lines that it prints, where it ends well."""
    preamble = f"""
import os, signal, sys, threading, time
from contextlib import suppress
from pathlib import Path
from stockade import *
from stockade.worker import _process
os.environ["STOCKADE_CACHE"] = "off"
ALWAYS, NEVER = (Policy().replace(compile_process=where) for where in ("always", "never"))
def hello(greeting, more=0):
    text = {HELLO!r}.replace("hello", greeting).replace("(drop", "(drop (i32.const 1)) " * more + "(drop")
    return Module.load(text.encode(), text=True)
def server():
    return _process.worker._process.popen.pid
"""
    ended = subprocess.run(
        # From 3.12 on Python warns of a fork where there are threads.
        [*prefix, sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", preamble + code],
        capture_output=True,
        text=True,
        timeout=100,
        env=None if environment is None else {**os.environ, **environment},
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


# -- one process, for all --------------------------------------------------------------------------------------------


def test_one_process_does_all_jobs(own_worker: _process.Worker) -> None:
    """It is started when it is first needed, and kept."""
    assert own_worker._process is None
    box = Sandbox(ALWAYS)
    assert box.run(hello("one")).ok
    server = server_of(own_worker)

    assert box.run(hello("two")).ok
    assert server_of(own_worker) == server
    assert until(lambda: len(children(server)) == 1)  # one child waits for the next job


def test_the_process_has_one_thread_and_no_engine(own_worker: _process.Worker) -> None:
    """What is forked must have no threads that its children would wait for."""
    assert Sandbox(ALWAYS).run(hello("one")).ok

    server = server_of(own_worker)
    assert len(list(Path(f"/proc/{server}/task").iterdir())) == 1
    # An engine keeps memory for the stacks and memories of guests, terabytes of it.
    assert until(lambda: len(children(server)) == 1)
    (spare,) = children(server)
    assert len(list(Path(f"/proc/{spare}/task").iterdir())) == 1


@pytest.mark.slow
def test_threads_have_their_modules_compiled_at_once(own_worker: _process.Worker) -> None:
    """20 threads, 60 modules, and some that are refused in between; nothing is mixed up."""
    box = Sandbox(ALWAYS.replace(locals=1))
    outputs: dict[str, bytes] = {}
    refused: list[str] = []

    def work(number: int) -> None:
        for turn in range(3):
            greeting = f"{number:02}-{turn}!"
            outputs[greeting] = box.run(hello(greeting)).stdout
        try:
            box.run(wat(f'(module (memory {number}) (func (export "_start") (local i32 i32)))'))
        except StockadeError as problem:
            refused.append(str(problem))

    assert box.run(hello("first")).ok
    before = descriptors()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert outputs == {
        f"{number:02}-{turn}!": f"{number:02}-{turn}! world\n"[:12].encode()
        for number in range(20)
        for turn in range(3)
    }
    refusal = "<bytes> has a function with 2 local variables; the policy allows 1 (structure.locals)"
    assert refused == [refusal] * 20
    assert descriptors() == before
    assert until(lambda: not busy(server_of(own_worker)))


# -- what it knows of its host ---------------------------------------------------------------------------------------


def test_nothing_of_the_hosts_environment_gets_there() -> None:
    """The attack: a compiler that a module has taken over reads the keys of the host from its environment."""
    code = """
Sandbox(ALWAYS).run(hello("hello")).check()
print(Path(f"/proc/{server()}/environ").read_bytes())
# A spare may end, and another one be made, between two looks.
seen = set()
while not any(seen):
    for pid in Path(f"/proc/{server()}/task/{server()}/children").read_text().split():
        with suppress(OSError):
            seen.add(Path(f"/proc/{pid}/environ").read_bytes())
    time.sleep(0.01)
for found in seen:
    print(found)
"""
    told = script(code, environment={"AWS_SECRET_ACCESS_KEY": "hunter2", "LD_LIBRARY_PATH": "/nowhere"})

    # One that has done its job may not be quite gone yet: then its environment is empty.
    assert told[0] == r"b'LD_LIBRARY_PATH=/nowhere\x00'"
    assert set(told[1:]) <= {told[0], "b''"}
    assert told[0] in told[1:]


def test_no_descriptor_of_the_host_gets_there(own_worker: _process.Worker, tmp_path: Path) -> None:
    """The attack: the same reads what the host has open."""
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        assert Sandbox(ALWAYS).run(hello("one")).ok
        server = server_of(own_worker)
        for process in (server, *children(server)):
            held: set[str] = set()
            # What is closed between being listed and being read is not held; each of the others is looked at.
            for number in os.listdir(f"/proc/{process}/fd"):  # noqa: PTH208 - names, before any of them is read
                with suppress(FileNotFoundError):
                    held.add(os.readlink(f"/proc/{process}/fd/{number}"))  # noqa: PTH115
            # A child that has done its job holds nothing.
            assert held or process != server
            # A library through which Python makes callbacks holds its own file open.
            kinds = {link.split(":")[0] for link in held if not Path(link).name.startswith("libffi.so")}
            assert kinds <= {"/dev/null", "socket", "pipe", "anon_inode", "/memfd"}


def test_children_have_their_limits_and_no_way_to_more_rights(
    own_worker: _process.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time, memory, no core, no huge file; and nothing that they execute has more rights than they."""
    seen: dict[str, str] = {}
    wait = _process._wait

    def look(line: socket.socket, seconds: float, turn: Turn) -> int | None:
        server = server_of(own_worker)
        assert until(lambda: bool(busy(server)))
        (child,) = busy(server)
        for line_ in Path(f"/proc/{child}/limits").read_text().splitlines():
            seen[line_[:26].strip()] = " ".join(line_[26:].split()[:2])
        seen["rights"] = Path(f"/proc/{child}/status").read_text().split("NoNewPrivs:")[1].split()[0]
        os.kill(child, signal.SIGKILL)
        return wait(line, seconds, turn)

    monkeypatch.setattr(_process, "_wait", look)
    many = "(func)" * 5000
    with pytest.raises(EngineError):
        Sandbox(ALWAYS.replace(compile_memory=512 << 20)).run(wat(f'(module (func (export "_start")) {many})'))

    seconds = 60 * max(2, os.cpu_count() or 1) + 1
    assert seen["Max data size"] == f"{512 << 20} {512 << 20}"
    assert seen["Max core file size"] == "0 0"
    assert seen["Max file size"] == f"{4 << 30} {4 << 30}"
    assert seen["Max cpu time"] == f"{seconds} {seconds + 5}"
    assert seen["rights"] == "1"


# -- when it is killed -----------------------------------------------------------------------------------------------


def test_it_is_started_again_when_it_was_killed(own_worker: _process.Worker) -> None:
    """Between two jobs nobody notices."""
    box = Sandbox(ALWAYS)
    assert box.run(hello("one")).ok
    first = server_of(own_worker)
    os.kill(first, signal.SIGKILL)
    assert until(lambda: gone(first))

    assert box.run(hello("two")).ok
    assert server_of(own_worker) != first


def test_a_job_is_done_again_when_it_was_killed_meanwhile(
    own_worker: _process.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once; its child ends with it."""
    killed: list[int] = []
    wait = _process._wait

    def kill(line: socket.socket, seconds: float, turn: Turn) -> int | None:
        if not killed:
            killed.append(server_of(own_worker))
            os.kill(killed[0], signal.SIGKILL)
        return wait(line, seconds, turn)

    monkeypatch.setattr(_process, "_wait", kill)

    assert Sandbox(ALWAYS).run(hello("one")).ok
    assert server_of(own_worker) != killed[0]
    assert until(lambda: gone(killed[0]))


def test_a_part_of_an_answer_is_not_taken_for_one(
    own_worker: _process.Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is done again begins with an empty file, whatever the first attempt has left."""
    torn, setup = tmp_path / "torn", tmp_path / "setup"
    setup.write_text(f"""
import os, signal
from stockade.worker import _child
genuine = _child._work
def work(source, target):
    if not os.path.exists({str(torn)!r}):
        os.mkdir({str(torn)!r})
        os.write(target, bytes(100))
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    genuine(source, target)
_child._work = work
""")
    changed = _server_process._BOOT.replace("; from", f"; exec(open({str(setup)!r}).read()); from")
    monkeypatch.setattr(_server_process, "_BOOT", changed)

    assert Sandbox(ALWAYS).run(hello("again")).stdout == b"again world\n"
    assert torn.exists()


def test_it_is_told_when_it_is_killed_every_time(own_worker: _process.Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time is an error, in words; the next job begins anew."""
    wait = _process._wait

    def kill(line: socket.socket, seconds: float, turn: Turn) -> int | None:
        os.kill(server_of(own_worker), signal.SIGKILL)
        return wait(line, seconds, turn)

    box = Sandbox(ALWAYS)
    with monkeypatch.context() as patch:
        patch.setattr(_process, "_wait", kill)
        with pytest.raises(EngineError) as failure:
            box.run(hello("one"))
    assert str(failure.value) == ("the compiling process was ended by SIGKILL, and so was the one that took its place")
    assert own_worker._process is None
    assert box.run(hello("one")).ok


@pytest.mark.parametrize("status", [0, 3])
def test_a_python_that_does_not_serve_is_told(
    status: int, own_worker: _process.Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else stands in the place of Python."""
    fake = tmp_path / "fake"
    fake.write_text(f"#!/bin/sh\nexit {status}\n")
    fake.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(fake))

    with pytest.raises(EngineError) as failure:
        Sandbox(ALWAYS).run(hello("one"))

    gone_ = "the compiling process is gone, and so is the one that took its place"
    failed = (
        f"the compiling process failed with exit status 3: check that {fake} is a sound Python with this Stockade and "
        "its packages"
    )
    assert str(failure.value) == (failed if status else gone_)


def test_a_spare_child_that_was_killed_is_replaced(own_worker: _process.Worker) -> None:
    """The one that waits for the next job."""
    box = Sandbox(ALWAYS)
    assert box.run(hello("one")).ok
    server = server_of(own_worker)
    assert until(lambda: len(children(server)) == 1)
    (spare,) = children(server)
    os.kill(spare, signal.SIGKILL)
    assert until(lambda: gone(spare) and children(server) != {spare})

    assert box.run(hello("two")).ok
    assert server_of(own_worker) == server


def test_another_release_on_disk_is_told(own_worker: _process.Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack of an update: the guard that is woven in there is not the one that is driven here."""
    monkeypatch.setattr(_subprocess, "release", lambda: "another")

    with pytest.raises(EngineError) as failure:
        Sandbox(ALWAYS).run(hello("one"))

    assert str(failure.value) == (
        "Stockade or wasmtime was exchanged on disk since this process began: start the process again"
    )


# -- when it ends ----------------------------------------------------------------------------------------------------


def test_nothing_is_left_after_the_host() -> None:
    """At the interpreter's exit, with threads that still want to compile: no complaint, no process, no wait."""
    code = """
def work(number):
    try:
        for turn in range(1000):
            Sandbox(ALWAYS).run(hello(f"{number}{turn:04}"))
    except EngineError:
        pass
Sandbox(ALWAYS).run(hello("hello")).check()
for number in range(4):
    threading.Thread(target=work, args=(number,), daemon=True).start()
print(server())
"""
    (server,) = script(code)

    assert until(lambda: gone(int(server)))


@pytest.mark.parametrize("how", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_it_ends_with_a_host_that_ends_without_a_word(how: str, own_worker: _process.Worker) -> None:
    """Also where a child of the host, forked by a library of C, still holds the host's end of the socket."""
    code = f"""
import ctypes, os, signal, sys
from stockade import Module, Policy, Sandbox
from stockade.worker import _process
os.environ["STOCKADE_CACHE"] = "off"
Sandbox(Policy().replace(compile_process="always")).run(Module.load({HELLO!r}.encode(), text=True))
if not ctypes.CDLL(None).fork():
    signal.pause()
print(_process.worker._process.popen.pid, flush=True)
{how}
"""
    host = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert host.stdout is not None
        server = int(host.stdout.readline())
        assert until(lambda: gone(server))
    finally:
        os.killpg(host.pid, signal.SIGKILL)
        host.communicate()


def test_it_ends_when_it_has_nothing_to_do(own_worker: _process.Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next job starts another."""
    changed = "; from stockade.worker import _fork_loop; _fork_loop.IDLE_SECONDS = 0.01; from"
    monkeypatch.setattr(_server_process, "_BOOT", _server_process._BOOT.replace("; from", changed))
    box = Sandbox(ALWAYS)
    assert box.run(hello("one")).ok
    first = server_of(own_worker)
    assert until(lambda: gone(first))

    assert box.run(hello("two")).ok
    assert server_of(own_worker) != first


def test_nothing_is_compiled_after_the_end() -> None:
    """Closing is final: nobody would end what is started then."""
    worker = _process.Worker()
    worker.close()

    with _frames.scratch() as file, pytest.raises(EngineError) as failure:
        worker.run(file, 1.0, Turn(lambda: 0.0))

    assert str(failure.value) == "nothing is compiled any more: this process is ending"


# -- forked hosts ----------------------------------------------------------------------------------------------------

FORKED = """
def child(name):
    before = server() if _process.worker._process else None
    assert before is None
    for number, policy in enumerate((Policy(), NEVER, ALWAYS, Policy().replace(multi_memory=True))):
        for more in (0, 60_000):
            Sandbox(policy).run(hello(f"{name}{number}", more)).check()
    os.kill(parents, 0)
    assert server() != parents
    print("done", flush=True)
for policy in (Policy(), NEVER, ALWAYS):
    for more in (0, 60_000):
        Sandbox(policy).run(hello("outer", more)).check()
parents = server()
"""


@pytest.mark.slow
def test_a_forked_child_compiles_what_its_parent_has_not() -> None:
    """A server that forks its workers after it has compiled something: small modules and large ones, here and aside.

    Threads of the library do not exist in the child, which would wait for them for ever.
    """
    code = """
pid = os.fork()
if pid == 0:
    child("child")
    sys.exit()
print(os.waitpid(pid, 0)[1])
Sandbox(ALWAYS).run(hello("again")).check()
assert server() == parents
"""
    assert script(FORKED + code) == ["done", "0"]


@pytest.mark.slow
def test_a_child_of_multiprocessing_compiles_what_its_parent_has_not() -> None:
    """The same by the way that libraries take."""
    code = """
import multiprocessing
process = multiprocessing.get_context("fork").Process(target=child, args=("child",))
process.start()
process.join()
print(process.exitcode)
"""
    assert script(FORKED + code) == ["done", "0"]


def test_a_process_that_compiled_here_has_no_threads_of_the_librarys() -> None:
    """Validating and compiling small modules starts none, so whoever forks afterwards loses none."""
    code = """
before = len(os.listdir("/proc/self/task"))
Sandbox().prepare(hello("hello"))
Sandbox(Policy().replace(multi_memory=True)).prepare(hello("hello"))
print(len(os.listdir("/proc/self/task")) - before)
"""
    assert script(code) == ["0"]


@pytest.mark.slow
def test_a_child_does_not_end_its_parents_jobs() -> None:
    """One that is forked while a job is under way, and ends."""
    code = """
box = Sandbox(ALWAYS.replace(functions=1_000_000))
large = hello("hello", 300_000)
thread = threading.Thread(target=box.prepare, args=(large,))
thread.start()
while not _process.worker._lines:
    time.sleep(0.001)
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        sys.exit()
    os.waitpid(pid, 0)
thread.join()
print(box.run(large).stdout)
"""
    assert script(code) == [r"b'hello world\n'"]


# -- surroundings ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_works_in_little_address_space() -> None:
    """Under `ulimit -v`, with less than the memory of a guest takes."""
    code = """
Sandbox(ALWAYS).prepare(hello("hello"))
print("compiled")
try:
    Sandbox(ALWAYS).prepare(hello("hello", 300_000))
    print("compiled")
except InvalidModule as problem:
    print(str(problem)[:35])
"""
    small, large = script(code, prefix=("/bin/sh", "-c", 'ulimit -v 600000; exec "$@"', "sh"))

    assert small == "compiled"
    assert large in {"compiled", "the compiler was ended by SIGABRT, "}


def test_signals_that_the_host_blocks_or_ignores_are_not_its_childrens_loss() -> None:
    """The end of a child is told by a signal."""
    code = """
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 30))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for number in range(3):
    print(Sandbox(ALWAYS).run(hello(f"{number:05}")).stdout)
try:
    Sandbox(ALWAYS.replace(compile_memory=64 << 20)).prepare(hello("hello", 300_000))
except InvalidModule as problem:
    print(str(problem)[:35])
"""
    *outputs, refusal = script(code)

    assert outputs == [rf"b'{number:05} world\n'" for number in range(3)]
    assert refusal == "the compiler was ended by SIGABRT, "


# -- the protocol ----------------------------------------------------------------------------------------------------


class Line:
    """A job as the other side sees it."""

    def __init__(self, control: socket.socket, gate: int) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(30)
        with theirs, Path(os.devnull).open("w") as nothing:
            socket.send_fds(control, [b"j"], [gate, nothing.fileno(), theirs.fileno()])

    def next(self) -> tuple[int, int]:
        message = self.socket.recv(_fork_server.MESSAGE.size)
        return _fork_server.MESSAGE.unpack(message)  # type: ignore[return-value]

    def silent(self) -> bool:
        return not select.select([self.socket], [], [], 0)[0]


class Serving:
    """A server, and jobs for it: each reads a byte from a pipe, and ends with that status."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.gate, self.key = os.pipe()
        self.lines: list[Line] = []

    def job(self) -> Line:
        self.lines.append(Line(self.control, self.gate))
        return self.lines[-1]

    def end(self, *statuses: int) -> None:
        os.write(self.key, bytes(statuses))

    def close(self) -> None:
        os.close(self.gate)
        os.close(self.key)
        for line in self.lines:
            line.socket.close()


@pytest.fixture
def serving() -> Iterator[Serving]:
    """A server that has no job yet; it ends with its socket."""
    ours, theirs = socket.socketpair()
    host = os.getpid()
    pid = fork()
    if pid == 0:
        ours.close()
        work = _fork_server.Work(lambda _: None, lambda: None, lambda gate, _: os._exit(os.read(gate, 1)[0]))
        _fork_server.serve(theirs.detach(), host, work)
    theirs.close()
    with ours, contextlib.closing(Serving(ours)) as serving:
        yield serving
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_job_is_taken_started_and_ended(serving: Serving) -> None:
    """Whatever it ends with."""
    for status in (0, 7):
        line = serving.job()
        assert line.next() == (_fork_server.TAKEN, 0)
        what, child = line.next()
        assert what == _fork_server.STARTED
        os.kill(child, 0)
        assert line.silent()
        serving.end(status)
        assert line.next() == (_fork_server.ENDED, status)


def test_more_jobs_than_there_is_room_for_wait_for_their_turn(serving: Serving) -> None:
    """They are taken, and not started until another has ended: their time does not run yet."""
    most = (os.cpu_count() or 1) + 4
    for line in [serving.job() for _ in range(most)]:
        assert [line.next()[0], line.next()[0]] == [_fork_server.TAKEN, _fork_server.STARTED]
    waiting, last = serving.job(), serving.job()
    assert [waiting.next(), last.next()] == [(_fork_server.TAKEN, 0)] * 2
    assert waiting.silent()

    # One that gives up while it waits is not started.
    waiting.socket.close()
    serving.end(0)
    assert last.next()[0] == _fork_server.STARTED
    serving.end(*[0] * most)
    assert last.next() == (_fork_server.ENDED, 0)


def test_closing_a_jobs_socket_ends_the_job(serving: Serving) -> None:
    """However long it would go on."""
    line = serving.job()
    line.next()
    _, child = line.next()
    line.socket.close()

    assert until(lambda: gone(child))


def test_a_job_without_descriptors_is_dropped(serving: Serving) -> None:
    """As where there is no room for them; the next job is done."""
    serving.control.send(b"j")
    socket.send_fds(serving.control, [b"j"], [serving.gate])
    line = serving.job()
    serving.end(0)

    assert [line.next()[0] for _ in range(3)] == [_fork_server.TAKEN, _fork_server.STARTED, _fork_server.ENDED]
