"""Templates: each has the machine code of one module and forks its workers; they know nothing of any other.

Holds P-ISO-17 and P-ISO-18.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stockade import EngineError, IsolationError, Mount, Outcome, Policy, Report, Sandbox
from stockade.engine import CompiledModule
from stockade.isolation import _hub, _template, backend
from stockade.isolation._frames import receive, send
from stockade.isolation._messages import FROM_TEMPLATE, TO_TEMPLATE, Ended, Forget, Spawn, Spawned
from stockade.isolation._template_handle import TemplateHandle
from stockade.policy import Filesystem
from stockade.system import _server_process
from tests._processes import descriptors, gone, until
from tests.conftest import HELLO, wat
from tests.execution.test_outcomes import imports
from tests.isolation._escaping import TOLD
from tests.isolation.test_behaviour import SLEEPER
from tests.isolation.test_misfortunes import dead, told
from tests.isolation.test_workers import (  # noqa: F401 - a fixture, too
    all_gone,
    none_made_ahead,
    number_of,
    server,
    started,
)
from tests.jail.test_escapes import REFUSED, folder, surroundings  # noqa: F401 - a fixture, too

if TYPE_CHECKING:
    from stockade.isolation._handle import WorkerHandle

HOUR = 3600

SECRET = "the words of another tenant"

HOLDER = f"""
(module
  {imports("poll_oneoff")}
  (memory (export "memory") 1)
  (data (i32.const 4096) "{SECRET}")
  (func (export "sleep") (param $wait i64)
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (local.get $wait))
    (drop (call $poll_oneoff (i32.const 0) (i32.const 1024) (i32.const 1) (i32.const 2048)))))
"""
"""What sleeps, and holds something in its module."""

RANDOM = f"""
(module
  {imports("random_get")}
  (memory (export "memory") 1)
  (func (export "draw") (result i64)
    (drop (call $random_get (i32.const 64) (i32.const 8)))
    (i64.load (i32.const 64))))
"""


@pytest.fixture(autouse=True)
def templates_from_the_first_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of modules that are made ready in no time."""
    monkeypatch.setattr("stockade.isolation._process._LARGE_BYTES", -1)


def parent(process: int) -> int:
    """Who has started a process, as this process sees both."""
    found = re.search(r"^PPid:\t(\d+)", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def readable(process: int, file: str) -> bytes:
    """A file of a process that may not be looked into, but by root."""
    try:
        return Path(f"/proc/{process}/{file}").read_bytes()
    except OSError:
        pytest.skip("to look into a worker takes root")


def memory_of(process: int) -> bytes:
    """All that a process has in its memory and can write to."""
    found = []
    with Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory:
        for line in readable(process, "maps").decode().splitlines():
            place, rights, *_ = line.split()
            start, end = (int(part, 16) for part in place.split("-"))
            if rights.startswith("r") and end - start < 1 << 28 and "[v" not in line:
                memory.seek(start)
                with suppress(OSError):
                    found.append(memory.read(end - start))
    return b"".join(found)


def code_of(process: int) -> set[str]:
    """The files in memory that a process has mapped, by their numbers."""
    lines = readable(process, "maps").decode().splitlines()
    return {line.split()[4] for line in lines if "memfd:" in line}


def files_of(process: int) -> set[int]:
    """The files and sockets that a process has open, but for what takes all."""
    readable(process, "maps")
    found = set()
    for entry in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):
            if entry.readlink() != Path("/dev/null"):
                found.add(entry.stat().st_ino)
    return found


PATIENT = Policy().replace(wall_time=600)
"""However busy the machine is, a run that is to last does."""


async def working(count: int) -> list[WorkerHandle]:
    """Waits until there are so many workers."""
    while _hub.hub._server is None or len([*server().workers.values()]) < count:
        await asyncio.sleep(0.01)
    return started(count)


def call(box: Sandbox, text: str, seconds: float) -> asyncio.Task[Report]:
    """Has a guest sleep."""
    return asyncio.ensure_future(box.call_async(wat(text), "sleep", int(seconds * 1e9)))


# -- who has what ------------------------------------------------------------------------------------------------------


def test_one_serves_all_runs_of_a_module() -> None:
    """Whatever their policies are; another module has another one."""
    modules = wat(HELLO), wat(SPINNER)
    boxes = [Sandbox(isolation="process"), Sandbox(Policy().replace(wall_time=50), isolation="process")]

    for module in modules:
        for box in boxes * 2:
            assert box.run(module).ok

    assert [len(template.programs) for template in server().templates] == [2, 2]
    assert until(all_gone)
    assert not any(template.workers for template in server().templates)


SPINNER = '(module (func (export "_start")))'


def test_workers_have_nothing_of_another_module() -> None:
    """Attack: a guest that got out reads, in its own process, what another tenant runs. P-ISO-17."""
    mine, other = Sandbox(isolation="process"), Sandbox(isolation="process")

    async def both() -> None:
        runs = [call(other, HOLDER, HOUR)]
        await working(1)
        runs.append(call(mine, SLEEPER, HOUR))
        theirs, own = await working(2)
        while not (other.monitor() and mine.monitor()):
            await asyncio.sleep(0.01)
        there, here = number_of(theirs), number_of(own)

        assert SECRET.encode() in memory_of(there)
        assert SECRET.encode() not in memory_of(here)
        assert SECRET.encode() not in memory_of(parent(here))
        assert code_of(there)
        assert code_of(here)
        assert not code_of(there) & code_of(here)
        assert not files_of(there) & files_of(here)
        for run in runs:
            run.cancel()

    try:
        asyncio.run(both())
    finally:
        mine.close()
        other.close()
        _hub.hub.end()


def test_nothing_that_a_worker_writes_is_seen_by_another() -> None:
    """Attack: a worker that writes to what its template, and so its successors, have in memory. P-ISO-17."""
    box = Sandbox(isolation="process")

    async def look() -> None:
        runs = [call(box, SLEEPER, HOUR) for _ in range(2)]
        first, second = await working(2)
        for process in (number_of(first), number_of(second), parent(number_of(first))):
            maps = readable(process, "maps").decode()
            assert re.findall(r"^\S+ .w.s .*$", maps, re.MULTILINE) == []
        assert parent(number_of(first)) == parent(number_of(second))
        for run in runs:
            run.cancel()

    try:
        asyncio.run(look())
    finally:
        _hub.hub.end()


def test_workers_of_one_template_draw_other_numbers() -> None:
    """Attack: to know what another run draws, from what one's own has drawn."""
    box = Sandbox(isolation="process")
    module = wat(RANDOM)

    drawn = [box.call(module, "draw") for _ in range(6)]

    assert len(server().templates) == 1
    assert len({report.value for report in drawn}) == len(drawn)


def test_mounts_are_those_of_their_own_module(tmp_path: Path) -> None:
    """Attack: two templates ask for their mounts at once, and one would get what is the other's."""
    boxes = []
    for name in ("one", "two", "three", "four"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
        mounted = Filesystem(mounts=(Mount(tmp_path / name, "/here"),))
        boxes.append((name, Sandbox(Policy(filesystem=mounted), isolation="process")))

    async def all_at_once() -> list[Report]:
        return await asyncio.gather(*(box.run_async(wat(opens(name))) for name, box in boxes))

    assert [report.outcome for report in asyncio.run(all_at_once())] == [Outcome.OK] * 4
    assert len(server().templates) == 4
    assert boxes[0][1].run(wat(opens("two"))).exit_code == 44


def opens(name: str) -> str:
    """A command that opens a file of its mount, and says how that went."""
    return f"""
    (module
      {imports("path_open", "proc_exit")}
      (memory (export "memory") 1)
      (data (i32.const 32) "{name}")
      (func (export "_start")
        (call $proc_exit (call $path_open (i32.const 3) (i32.const 0) (i32.const 32) (i32.const {len(name)})
          (i32.const 0) (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 64)))))
    """


def test_native_code_in_a_worker_is_refused_what_it_tries(
    folder: Path,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Attack: out of the guest and the engine, in a worker as runs have it, forked from a template. P-JAIL-2."""
    spec = json.dumps(surroundings(folder))
    here = str(Path(__file__).parents[2])

    def booted(module: str, control: int, *_: object) -> str:
        return (
            f"import sys; sys.path[:0] = {[here, *sys.path]!r}; from {module} import main; "
            f"main({control}, {os.getpid()}, {spec!r}, {sorted(attempts)!r})"
        )

    attempts = set(REFUSED) - NEED_MORE
    hub = _hub.Hub("tests.isolation._escaping")
    monkeypatch.setattr(_server_process, "_boot", booted)
    monkeypatch.setattr("stockade.isolation._process.hub_of", lambda _: hub)
    rights = {"create": True, "delete": True}
    mounts = (Mount(folder / "mount", "/mount", mode="rw"), Mount(folder / "readonly", "/readonly"))
    box = Sandbox(Policy(filesystem=Filesystem(mounts=mounts, **rights)), isolation="process")
    try:
        report = box.run(wat(HELLO))
        found = json.loads((folder / "mount" / TOLD).read_text())
    finally:
        hub.end()
        with suppress(FileNotFoundError):
            (folder / "mount" / TOLD).unlink()

    assert report.outcome is Outcome.CRASHED
    assert found.keys() == attempts
    met = {name: came for name, came in found.items() if not re.search(rf"(?:^|: )(?:{REFUSED[name]})$", came)}
    assert met == {}
    assert not (folder / "outside").exists()


NEED_MORE = {"read_inherited", "type_into_terminal", "switch_terminal"}
"""Attempts on what the process has from the one that started it, which the fork server has not."""


# -- what befalls them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("befalls", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_workers_outlive_their_template(befalls: signal.Signals) -> None:
    """Attack, or want of memory, in the middle of 20 runs: they go on, and are told as any others. P-ISO-18."""
    box, other = Sandbox(PATIENT, "process"), Sandbox(PATIENT, "process")
    box.prepare(wat(HOLDER))
    other.prepare(wat(SLEEPER))
    outlive = "pid" in backend("process").check()
    assert until(all_gone)
    before, dead_before, files = server().process.popen.pid, dead(), descriptors() - len(server().watcher._templates)

    async def many() -> tuple[list[Report], list[Report]]:
        spared = call(other, SLEEPER, HOUR)
        (first,) = await working(1)
        victims = [call(box, HOLDER, HOUR) for _ in range(2)]
        killed, stopped = (worker for worker in await working(3) if worker is not first)
        runs = [call(box, HOLDER, 2) for _ in range(18)]
        await working(21)
        template = parent(number_of(killed))
        assert template != parent(number_of(first))
        os.kill(template, befalls)
        assert until(lambda: gone(template))
        if outlive:
            os.kill(number_of(killed), signal.SIGKILL)
            os.kill(number_of(stopped), signal.SIGSTOP)
        lost = await asyncio.wait_for(asyncio.gather(*victims), 60)
        over = await asyncio.wait_for(asyncio.gather(*runs), 60)
        assert not spared.done()
        spared.cancel()
        return lost, over

    lost, over = asyncio.run(many())

    if outlive:
        assert sorted(map(told, lost)) == [
            (Outcome.CRASHED, "the worker was ended by SIGKILL"),
            (Outcome.CRASHED, "the worker was stopped by SIGSTOP, and ended for that"),
        ]
        assert all(report.ok for report in over)
    else:
        assert {told(report) for report in lost} == {(Outcome.CRASHED, "the worker was ended by SIGKILL")}
    assert box.call(wat(HOLDER), "sleep", 1).ok
    assert server().process.popen.pid == before
    assert until(all_gone)
    assert until(lambda: server().watcher._templates.keys() == {one.line.fileno() for one in server().templates})
    assert set(dead()) <= set(dead_before)
    assert until(lambda: descriptors() - len(server().watcher._templates) <= files)


def test_a_fork_that_the_system_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """There can be no template: the run says so, and nothing is run elsewhere."""
    box = Sandbox(isolation="process")
    assert box.run(wat(HELLO)).ok
    sends = _hub.send

    def refused(line: socket.socket, message: object, descriptors: list[int]) -> None:
        if isinstance(message, _hub.Make):
            from stockade.isolation._messages import Refused

            with socket.socket(fileno=os.dup(descriptors[0])) as theirs:
                sends(theirs, Refused(11))
        else:
            sends(line, message, descriptors=descriptors)

    monkeypatch.setattr(_hub, "send", refused)

    with pytest.raises(IsolationError, match=r"see that (this user may have more processes|there is memory)"):
        box.run(wat(SPINNER))
    monkeypatch.undo()
    assert box.run(wat(SPINNER)).ok


def test_machine_code_that_cannot_be_loaded_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the run that is for it, and the next one finds what can be."""
    box = Sandbox(isolation="process")
    with monkeypatch.context() as patch:
        patch.setattr(CompiledModule, "to_bytes", lambda _: b"no machine code")
        with pytest.raises(EngineError, match="the machine code cannot be loaded"):
            box.run(wat(HELLO))
    _hub.hub.end()

    assert box.run(wat(HELLO)).ok


def test_a_template_with_other_threads_forks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child would lack them. It is looked at before each fork; there are none."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    template = _template._Template.__new__(_template._Template)
    template._control = theirs
    monkeypatch.setattr(_template, "has_other_threads", lambda: True)
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("it has forked"))
    with ours, theirs:
        template._spawn(Spawn(7, 1), None, theirs)  # type: ignore[arg-type]
        assert receive(ours, FROM_TEMPLATE) == (Spawned(7, 35), b"", ())


def test_who_listens_never_waits_for_room() -> None:
    """A template that waits for what it says to be heard takes no order meanwhile: neither waits for the other."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    template = TemplateHandle(ours, time.monotonic, lambda _: None, lambda *_: None)
    many = 2_000
    orders = []

    def be_template() -> None:
        for number in range(many):
            send(theirs, Ended(number, 0))
        while len(orders) < many:
            found = receive(theirs, TO_TEMPLATE)
            assert found is not None
            orders.append(found[0])

    def listen() -> None:
        template.listener = threading.current_thread()
        for number in range(many):
            template.order(Forget(number))

    with ours, theirs:
        threads = [threading.Thread(target=work, daemon=True) for work in (be_template, listen)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert orders == [Forget(number) for number in range(many)]


# -- what runs once ----------------------------------------------------------------------------------------------------


def test_what_runs_once_has_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It becomes the worker itself: two would take twice as long. What runs again has a template from then on."""
    monkeypatch.setattr("stockade.isolation._process._LARGE_BYTES", 1 << 20)
    box = Sandbox(isolation="process")

    async def thrice() -> list[int]:
        runs, found = [], []
        for count in (1, 2, 3):
            runs.append(call(box, SLEEPER, HOUR))
            found.append(parent(number_of((await working(count))[-1])))
        for run in runs:
            run.cancel()
        return found

    first, *others = asyncio.run(thrice())

    assert len(set(others)) == 1
    assert first not in others
    # Both were forked by the same process.
    assert until(all_gone)


@pytest.mark.parametrize(
    ("befalls", "message"),
    [
        (signal.SIGKILL, "the worker was ended by SIGKILL"),
        (signal.SIGSTOP, "the worker was stopped by SIGSTOP, and ended for that"),
    ],
)
def test_what_befalls_such_a_process_is_told(
    befalls: signal.Signals, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack, or want of memory: as of any worker. P-ISO-4."""
    monkeypatch.setattr("stockade.isolation._process._LARGE_BYTES", 1 << 20)
    box = Sandbox(PATIENT, "process")

    async def one() -> Report:
        run = call(box, SLEEPER, HOUR)
        (worker,) = await working(1)
        os.kill(number_of(worker), befalls)
        return await asyncio.wait_for(run, 60)

    assert told(asyncio.run(one())) == (Outcome.CRASHED, message)
    assert until(all_gone)
    assert until(lambda: not server().watcher._templates)
    assert box.call(wat(SLEEPER), "sleep", 1).ok


# -- how long they stay ------------------------------------------------------------------------------------------------


async def template_of(box: Sandbox, text: str) -> int:
    """Has a template made, and returns its process, while one of its runs is under way."""
    assert _hub.hub._server is None or until(all_gone)
    run = call(box, text, HOUR)
    (worker,) = await working(1)
    found = parent(number_of(worker))
    run.cancel()
    return found


def test_a_template_that_nobody_needs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a while; not while one of its workers is there. The next run has another. P-ISO-18."""
    monkeypatch.setattr(_hub, "TEMPLATE_SECONDS", 0.01)
    box = Sandbox(isolation="process")

    process = asyncio.run(template_of(box, SLEEPER))

    assert until(lambda: gone(process))
    assert until(lambda: not server().templates)
    assert box.call(wat(SLEEPER), "sleep", 1).ok


def test_a_template_ends_with_the_last_policy_that_it_is_for() -> None:
    """Not before: what is asked for again and again stays."""
    box = Sandbox(isolation="process")
    other = Sandbox(Policy().replace(wall_time=50), isolation="process")
    assert other.call(wat(SLEEPER), "sleep", 1).ok
    process = asyncio.run(template_of(box, SLEEPER))
    assert len(server().templates) == 1

    other.close()
    del other
    assert box.call(wat(SLEEPER), "sleep", 1).ok
    assert not gone(process)
    box.close()
    del box
    # Tasks that were cancelled may still know it.
    gc.collect()

    assert Sandbox(isolation="process").run(wat(HELLO)).ok
    assert until(lambda: gone(process))


def test_there_are_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was not used for longest goes first, and none of which a worker is there."""
    monkeypatch.setattr(_hub, "MOST_TEMPLATES", 2)
    box = Sandbox(isolation="process")

    async def many() -> None:
        run = call(box, SLEEPER, 1)
        await working(1)
        for number in range(4):
            assert (await box.run_async(wat(f'(module (global i32 (i32.const {number})) (func (export "_start")))'))).ok
        # One that ends is there until that is heard.
        while len([one for one in server().templates if not one.spent]) > 2:
            await asyncio.sleep(0.01)
        assert (await run).ok

    asyncio.run(many())


def test_nothing_is_left_at_the_end() -> None:
    """Templates end with their server, and workers with them, whatever they do."""
    box = Sandbox(PATIENT, "process")
    assert box.run(wat(HELLO)).ok

    async def leave() -> set[int]:
        run = call(box, SLEEPER, HOUR)
        # One that has not begun is begun again.
        while not box.monitor():
            await asyncio.sleep(0.01)
        (worker,) = await working(1)
        found = {number_of(worker), parent(number_of(worker))}
        os.kill(server().process.popen.pid, signal.SIGKILL)
        assert (await run).outcome is Outcome.CRASHED
        return found

    for process in asyncio.run(leave()):
        assert until(lambda process=process: gone(process))


def test_what_a_template_knows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many policies, those that ran last; the next run of any other is as the first."""
    monkeypatch.setattr(_hub, "MOST_PROGRAMS", 2)
    boxes = [Sandbox(Policy().replace(wall_time=50 + number), isolation="process") for number in range(4)]

    for box in boxes * 2:
        assert box.run(wat(HELLO)).ok

    assert len(server().programs) == 2
    assert [len(template.programs) for template in server().templates] == [2]
