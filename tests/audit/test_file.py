"""Files of audit logs: where they may be, and what becomes of writes that are broken off.

Holds P-AUDIT-2 and P-AUDIT-3.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import stockade
from stockade import AuditError, AuditLog, Mount, Policy, PolicyError, Sandbox
from stockade.audit import EventName, _places, verify
from stockade.audit import _chain_file as chain
from stockade.audit._places import find_place
from stockade.system import state_folder
from tests.audit._logs import GUEST, KEY, chain_file, denied, events, names, write


def ok(path: Path) -> bool:
    check = verify(path, key=KEY)
    assert check.findings == ()
    return check.ok


# -- where they may be ------------------------------------------------------------------------------------------------


def test_files_are_the_users_alone(tmp_path: Path) -> None:
    """The log, its head and the key."""
    path = tmp_path / "log"
    with AuditLog(path) as log:
        log.tell(EventName.DENIED)
    state = state_folder()
    assert state is not None

    assert [
        stat.S_IMODE(file.stat().st_mode)
        for file in (path, state / "audit" / find_place(path).head_name, state / "audit.key", state / "audit", state)
    ] == [0o600, 0o600, 0o600, 0o700, 0o700]
    assert verify(path).ok


def test_a_link_in_the_place_of_the_log_is_not_followed(tmp_path: Path) -> None:
    """Somebody wants lines added to a file of the user's."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "log").symlink_to(tmp_path / "precious")

    with pytest.raises(AuditError, match="log is a link: give another path, or remove what is there"):
        AuditLog(tmp_path / "log")
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_fifo_in_the_place_of_the_log_holds_nobody_up(tmp_path: Path) -> None:
    """Whoever opens it would wait for its other end."""
    os.mkfifo(tmp_path / "log", 0o600)

    with pytest.raises(AuditError, match=r"the audit log .*/log is no plain file: give another path"):
        AuditLog(tmp_path / "log")


def test_a_file_that_is_no_log_is_left_alone(tmp_path: Path) -> None:
    """Somebody gives the path of a module; a log whose head was lost is gone on with."""
    (tmp_path / "guest.wasm").write_bytes(b"\0asm")
    write(tmp_path / "log", [1])
    state = state_folder()
    assert state is not None
    (state / "audit" / find_place(tmp_path / "log").head_name).unlink()

    with pytest.raises(AuditError, match=r"guest.wasm is there already, and is no audit log: give another path"):
        AuditLog(tmp_path / "guest.wasm")
    assert (tmp_path / "guest.wasm").read_bytes() == b"\0asm"
    AuditLog(tmp_path / "log", key=KEY).close()


def test_a_file_with_another_name_is_refused(tmp_path: Path) -> None:
    """It may be reached by that, from elsewhere."""
    (tmp_path / "other").touch(0o600)
    (tmp_path / "log").hardlink_to(tmp_path / "other")

    with pytest.raises(AuditError, match="has another name, too, by which it may be reached elsewhere"):
        AuditLog(tmp_path / "log")


def test_a_log_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    """And one that they may read is not."""
    (tmp_path / "log").touch()
    (tmp_path / "log").chmod(0o620)

    with pytest.raises(AuditError, match="has mode 0620, so that others may write to it"):
        AuditLog(tmp_path / "log")
    (tmp_path / "log").chmod(0o640)
    AuditLog(tmp_path / "log").close()


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    """They could exchange the log; not where the sticky bit is set, as in /tmp."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)

    with pytest.raises(AuditError, match="has mode 0777: others may exchange the audit log in it"):
        AuditLog(folder / "log")
    folder.chmod(0o1777)
    AuditLog(folder / "log").close()


@pytest.mark.parametrize("path", ["", ".", "..", "missing/log", "a\0b"])
def test_a_path_without_a_file_is_told(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In words, whatever is wrong with it."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(AuditError, match="audit log"):
        AuditLog(path)


def test_the_path_is_shown_in_one_line(tmp_path: Path) -> None:
    """Whoever named the folder does not write into a terminal."""
    folder = tmp_path / "a\nb\x1b[2J"
    folder.mkdir()
    os.mkfifo(folder / "log", 0o600)

    with pytest.raises(AuditError) as told:
        AuditLog(folder / "log")
    assert str(told.value).isprintable()


def test_a_log_is_where_it_was_when_the_process_has_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is looked up once."""
    monkeypatch.chdir(tmp_path)
    with AuditLog("log", key=KEY) as log:
        monkeypatch.chdir("/")
        log.tell(EventName.DENIED)

    assert ok(tmp_path / "log")


@pytest.mark.parametrize("mode", ["ro", "rw"])
def test_no_guest_is_granted_the_folder_of_a_log(mode: str, tmp_path: Path) -> None:
    """It could read what is told of others, or write to it; a folder beside it is granted."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "data").mkdir()
    with AuditLog(tmp_path / "logs" / "log", key=KEY) as log:
        for folder in (tmp_path, tmp_path / "logs"):
            with pytest.raises(PolicyError, match=r"the mount /data covers .*/logs/log, an audit log, which no guest"):
                Sandbox(Policy().replace(mounts=[Mount(folder, "/data", mode)]), audit=log)
        Sandbox(Policy().replace(mounts=[Mount(tmp_path / "data", "/data", mode)]), audit=log).close()


@pytest.mark.parametrize("mode", ["ro", "rw"])
def test_no_log_is_opened_where_a_guest_is_granted_the_folder(mode: str, tmp_path: Path) -> None:
    """Else a guest of a sandbox that was there before the log could read it, or write to it; beside it, it is."""
    (tmp_path / "data" / "logs").mkdir(parents=True)
    policy = Policy().replace(mounts=[Mount(tmp_path / "data", "/data", mode)])
    with Sandbox(policy):
        for path in (tmp_path / "data" / "log", tmp_path / "data" / "logs" / "log"):
            with pytest.raises(
                AuditError, match=r"log would lie in .*/data, which guests of an open sandbox are granted"
            ):
                AuditLog(path, key=KEY)
            assert not path.exists()
        AuditLog(tmp_path / "log", key=KEY).close()
        # What was refused is no log: its folder is granted as before.
        Sandbox(Policy().replace(mounts=[Mount(tmp_path / "data", "/data", mode)])).close()

    AuditLog(tmp_path / "data" / "log", key=KEY).close()


def test_a_folder_that_was_refused_hinders_no_log(tmp_path: Path) -> None:
    """Nobody is granted it, also while somebody looks at why."""
    (tmp_path / "logs").mkdir()
    with AuditLog(tmp_path / "logs" / "log", key=KEY):
        with pytest.raises(PolicyError, match="an audit log, which no guest") as refused:
            Sandbox(Policy().replace(mounts=[Mount(tmp_path, "/data", "ro")]))
        AuditLog(tmp_path / "another", key=KEY).close()
    assert refused.value.__traceback__ is not None


@pytest.mark.parametrize("key", [b"", b"short", "text of sixteen characters"])
def test_a_key_that_can_be_guessed_is_refused(key: object, tmp_path: Path) -> None:
    """Or that is none."""
    with pytest.raises(AuditError, match="the key of an audit log is 16 to 4,096 bytes, kept secret"):
        AuditLog(tmp_path / "log", key=key)  # type: ignore[arg-type]


# -- writes that are broken off ---------------------------------------------------------------------------------------


def half(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """The next write to a log writes so many bytes, and then there is no room."""
    real, left = os.write, [size]

    def write_some(descriptor: int, data: memoryview) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = real(descriptor, data[: left[0]])
        left[0] -= done
        return done

    monkeypatch.setattr(chain.os, "write", write_some)


@pytest.mark.parametrize("size", [0, 1, 70, 150, 300])
def test_a_full_disk_breaks_off_a_write_and_the_next_puts_things_in_order(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of it is told, sealed, and no event."""
    path = tmp_path / "log"
    write(path, [2])
    file = chain_file(path)
    with monkeypatch.context() as patch:
        half(patch, size)
        with pytest.raises(OSError, match="No space left"):
            file.append([denied(3), denied(4)])

    # Before the next one, it is told of.
    check = verify(path, key=KEY)
    assert check.ok
    assert check.events == 2
    assert len(check.notes) == (size > 0)

    file.append([denied(3), denied(4)])

    check = verify(path, key=KEY)
    assert check.ok
    assert check.events == (5 if size else 4)
    assert names(path).count("log_interrupted") == (size > 0)
    assert [note.line for note in check.notes] == ([4] if size else [])


@pytest.mark.parametrize("fails", [False, True])
def test_many_events_become_several_batches_each_once(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that whoever checks them has few in memory; also where the disk is full after the first batch."""
    path = tmp_path / "log"
    file = chain_file(path)
    noted = [denied(number) for number in range(1, 1_001)]
    monkeypatch.setattr(chain, "MOST_BATCH_BYTES", 10_000)
    if fails:
        with monkeypatch.context() as patch:
            half(patch, 60_000)
            with pytest.raises(OSError, match="No space left"):
                file.append(noted)
        assert 0 < len(noted) < 1_000
    file.append(noted)

    assert noted == []
    check = verify(path, key=KEY)
    # Lines of the write that was broken off are no events; the one that tells of it is.
    assert (check.findings, check.events, len(check.notes)) == ((), 1_000 + fails, fails)
    assert {event["seq"] for event in events(path) if event["event"] == "denied"} == set(range(1, 1_001))
    assert path.read_text().count('{"seal":') >= 4


def test_what_is_added_by_others_is_no_interrupted_write(tmp_path: Path) -> None:
    """A line that looks like an event, behind the last seal; the next writer tells, and goes on."""
    path = tmp_path / "log"
    write(path, [2])
    with path.open("a") as file:
        file.write('{"event":"denied","time":1,"seq":1,"writer":"me"}\n')

    assert not verify(path, key=KEY).ok
    chain_file(path).append([denied(3)])

    damaged = next(told for told in events(path) if told["event"] == "log_damaged")
    assert damaged["reason"] == "bytes were added that no writer of this log has written"
    assert damaged["count"] == 50


def test_a_log_that_was_cut_goes_on_and_tells(tmp_path: Path) -> None:
    """As rotation does that copies and truncates; verify misses what is not there any more."""
    path = tmp_path / "log"
    file = chain_file(path)
    file.append([denied(1), denied(2)])
    os.truncate(path, 0)
    file.append([denied(3)])

    assert [told["event"] for told in events(path)] == ["log_continued", "denied"]
    assert events(path)[0]["reason"].endswith("bytes fewer than were written")
    assert verify(path, key=KEY).findings[0].what.startswith("before this line, events 1 to 2 are missing")


def test_a_log_that_is_rotated_goes_on_in_a_new_file(tmp_path: Path) -> None:
    """Under a writer that has it open."""
    path, old = tmp_path / "log", tmp_path / "log.1"
    file = chain_file(path)
    file.append([denied(1)])
    path.rename(old)
    file.append([denied(2)])
    file.append([denied(3)])

    assert names(old) == ["denied"]
    assert names(path) == ["log_continued", "denied", "denied"]
    assert verify([old, path], key=KEY).ok


def test_a_log_without_its_head_goes_on_and_tells(tmp_path: Path) -> None:
    """What was before is not tied to what comes."""
    path = tmp_path / "log"
    write(path, [2])
    state = state_folder()
    assert state is not None
    (state / "audit" / find_place(path).head_name).unlink()
    chain_file(path).append([denied(3)])

    assert names(path) == ["denied", "denied", "log_damaged", "denied"]
    assert [finding.what for finding in verify(path, key=KEY).findings] == [
        "a new chain begins here: what was before is not tied to it"
    ]


def test_a_head_that_is_removed_under_a_writer_is_made_anew(tmp_path: Path) -> None:
    """Else it would write to one that nobody else sees."""
    path = tmp_path / "log"
    file = chain_file(path)
    file.append([denied(1)])
    state = state_folder()
    assert state is not None
    (state / "audit" / find_place(path).head_name).unlink()
    file.append([denied(2)])

    assert names(path) == ["denied", "log_damaged", "denied"]


def test_a_clock_that_goes_back_breaks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order is by the chain, and by the numbers of events."""
    path = tmp_path / "log"
    times = iter([3.0, 2.0, 1.0])
    monkeypatch.setattr("stockade.audit._log.time.time", lambda: next(times))
    with AuditLog(path, key=KEY) as log:
        for _ in range(3):
            log.tell(EventName.DENIED)

    assert [(told["time"], told["seq"]) for told in events(path)] == [(3.0, 1), (2.0, 2), (1.0, 3)]
    assert ok(path)


_KILLED = """
import os, signal, sys
from stockade.audit import _chain_file
from tests.audit._logs import chain_file, denied
from pathlib import Path
file = chain_file(Path(sys.argv[1]))
file.append([denied(1), denied(2)])
real = os.write
def write_some(descriptor, data):
    real(descriptor, data[:int(sys.argv[2])])
    os.kill(os.getpid(), signal.SIGKILL)
_chain_file.os.write = write_some
file.append([denied(3), denied(4)])
"""


@pytest.mark.parametrize("size", [0, 100, 10_000])
def test_a_process_that_is_killed_in_a_write_leaves_a_log_that_can_be_checked(size: int, tmp_path: Path) -> None:
    """Nothing of it is written, some, or all but the head."""
    path = tmp_path / "log"
    done = subprocess.run([sys.executable, "-c", _KILLED, str(path), str(size)], check=False)
    assert done.returncode == -9

    before = verify(path, key=KEY)
    chain_file(path).append([denied(5)])
    after = verify(path, key=KEY)

    assert after.ok
    if size == 10_000:
        # The head is behind by a batch that its writer has sealed.
        assert after.events == 5
        assert names(path).count("log_interrupted") == 0
    else:
        assert before.ok
        assert after.events == (4 if size else 3)
        assert names(path).count("log_interrupted") == (size > 0)


_ONE_OF_EIGHT = """
import sys
import stockade
from tests.audit._logs import GUEST, KEY
with stockade.AuditLog(sys.argv[1], key=KEY) as log, stockade.Sandbox("strict", audit=log) as box:
    for number in range(100):
        assert box.call(GUEST, "add", number, 1).value == number + 1
        if number % 20 == 0:
            log.flush()
"""


@pytest.mark.parametrize("count", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_processes_write_one_chain(tmp_path: Path, count: int) -> None:
    """At once; every event is there, once."""
    path = tmp_path / "log"
    processes = [subprocess.Popen([sys.executable, "-c", _ONE_OF_EIGHT, str(path)]) for _ in range(count)]
    assert [process.wait(100) for process in processes] == [0] * count

    told = events(path)

    assert ok(path)
    assert names(path).count("run_started") == names(path).count("run_ended") == 100 * count
    assert len({event["writer"] for event in told}) == count
    assert len({(event["writer"], event["seq"]) for event in told}) == len(told) == count * 203


def test_two_logs_of_one_process_write_one_chain(tmp_path: Path) -> None:
    """Also from several threads."""
    path = tmp_path / "log"
    with AuditLog(path, key=KEY) as first, AuditLog(path, key=KEY) as second:

        def tell(log: AuditLog) -> None:
            for number in range(100):
                log.tell(EventName.DENIED, count=number)
                if number % 10 == 0:
                    log.flush()

        threads = [threading.Thread(target=tell, args=(log,)) for log in (first, second, first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len(events(path)) == 400
    assert ok(path)


def test_a_writer_that_keeps_the_lock_is_waited_for_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was stopped in the middle holds up the log, and no run."""
    path = tmp_path / "log"
    monkeypatch.setattr(_places, "_LOCK_SECONDS", 0.0)
    holder = os.open(Path(str(state_folder())) / "audit" / find_place(path).head_name, os.O_RDWR | os.O_CREAT, 0o600)
    chain.flock(holder, chain.LOCK_EX)
    with AuditLog(path, key=KEY) as log, Sandbox(audit=log) as box:
        assert box.call(GUEST, "add", 1, 2).value == 3
        assert not log.flush(0.5)
        assert log.failing
        assert log.last_error == "another process keeps the audit log locked"
        os.close(holder)

    assert "run_ended" in names(path)
    assert ok(path)


_FORKED = """
import os, sys
import stockade
from tests.audit._logs import GUEST, KEY
log = stockade.AuditLog(sys.argv[1], key=KEY)
box = stockade.Sandbox("strict", audit=log)
for number in range(50):
    box.call(GUEST, "add", number, 1)
child = os.fork()
for number in range(50):
    box.call(GUEST, "add", number, 1)
log.close()
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_process_writes_what_is_its_own(tmp_path: Path) -> None:
    """What waited in the parent is written by the parent, once."""
    path = tmp_path / "log"
    subprocess.run([sys.executable, "-W", "ignore", "-c", _FORKED, str(path)], check=True)

    assert names(path).count("run_ended") == 150
    assert len({event["writer"] for event in events(path)}) == 2
    assert ok(path)


def test_what_is_told_at_the_end_of_a_process_is_written(tmp_path: Path) -> None:
    """Also where nobody closes the log."""
    path = tmp_path / "log"
    code = (
        "import sys, stockade; from tests.audit._logs import GUEST, KEY\n"
        "stockade.Sandbox(audit=stockade.AuditLog(sys.argv[1], key=KEY)).call(GUEST, 'add', 1, 2)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)

    assert names(path)[-1] == "run_ended"
    assert ok(path)


def test_the_end_of_a_process_needs_no_new_thread(tmp_path: Path) -> None:
    """From Python 3.12 on there is none any more: a log whose thread has gone writes what it has, and says nothing."""
    path = tmp_path / "log"
    code = (
        "import sys, threading, time, stockade; from tests.audit._logs import KEY\n"
        "from stockade.audit import EventName, _outlet\n"
        "_outlet._LINGER_SECONDS = 0.0\n"
        "log = stockade.AuditLog(sys.argv[1], key=KEY)\n"
        "log.tell(EventName.DENIED)\n"
        "log.flush()\n"
        "while threading.active_count() > 1: time.sleep(0.01)\n"
        "_outlet.Outlet._wake = lambda outlet, wake=_outlet.Outlet._wake: outlet.process_ends and wake(outlet)\n"
        "log.tell(EventName.DENIED)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)

    assert done.stderr == ""
    assert names(path) == ["denied", "denied"]
    assert ok(path)


def test_fsync_brings_each_run_to_the_disk_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run`: the log has its start when the guest's first instruction runs, and its end when the report is returned."""
    path = tmp_path / "log"
    synced: list[list[str]] = []
    real = os.fsync
    monkeypatch.setattr(chain.os, "fsync", lambda descriptor: (real(descriptor), synced.append(names(path))))
    with AuditLog(path, key=KEY, fsync="run") as log, Sandbox(audit=log) as box:
        seen: list[list[str]] = []

        @box.host_function("env", "look")
        def look() -> None:
            seen.append(names(path))

        module = stockade.Module.load(
            b'(module (import "env" "look" (func $look)) (func (export "_start") (call $look)))', text=True
        )
        box.run(module)
        assert names(path)[-1] == "run_ended"
    assert seen[0][-1] == "run_started"
    assert seen[0] in synced
