"""Namespaces: another view of users, mounts, processes, networks (namespaces(7)).

To make a network namespace takes longer than a short run, so they are entered once, by what forks the workers.
"""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from stockade.jail._libc import syscall
from stockade.jail._model import NAMESPACES, JailReport, Step
from stockade.jail._mounts import start_mounter
from stockade.jail._privileges import drop_capabilities, hide_memory
from stockade.system import prctl

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stockade.jail._model import Wall

__all__ = ["enter_namespaces", "has_other_threads", "leave_root", "left_before", "namespaces_of_this_process"]

_FLAGS: Final[dict[Wall, int]] = {
    "user": 0x1000_0000,
    "mount": 0x0002_0000,
    "pid": 0x2000_0000,
    "network": 0x4000_0000,
    "ipc": 0x0800_0000,
    "uts": 0x0400_0000,
    "cgroup": 0x0200_0000,
}
_TOLD: Final[dict[Wall, str]] = {
    "user": "no rights over what belongs to the host's",
    "mount": "an empty root: no file of the host's has a path",
    "pid": "sees no process outside",
    "network": "no interfaces, no sockets of the host's",
    "ipc": "no queues or memory of the host's",
    "uts": "a host name of its own",
    "cgroup": "does not see the host's control groups",
}

_FILES: Final[dict[Wall, str]] = {
    "user": "user",
    "mount": "mnt",
    "pid": "pid",
    "network": "net",
    "ipc": "ipc",
    "uts": "uts",
    "cgroup": "cgroup",
}
"""What the kernel calls them."""

_PR_SET_PDEATHSIG: Final = 1
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_BIND, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x1000, 0x4000, 0x4_0000, 2
_PLACE: Final = b"/tmp"  # It is there; what is in it is covered, and not touched.
_MOST_PROCESSES: Final = Path("/proc/sys/kernel/pid_max")
_PROCESSES: Final = 8192
_TASKS: Final = Path("/proc/self/task")
_ALONE: Final = 3
"""Links of that folder where there is one thread: its own two, and one of each thread."""


def has_other_threads() -> bool:
    """Whether this process has threads beside the one that asks; where nobody tells, it is taken to."""
    try:
        return _TASKS.stat().st_nlink != _ALONE
    except OSError:
        return True


def enter_namespaces(
    wanted: frozenset[Wall] = frozenset(NAMESPACES), *, require: frozenset[Wall] = frozenset()
) -> tuple[Step, ...]:
    """Enters new namespaces, each where the machine lets this process.

    With a namespace of processes it returns in another process, the first one there, for that is whose children are in
    it. The one that called it waits for that one, ends as it does, and has it ended when it is ended itself. What it
    had open, the other one has.

    Args:
        wanted: Those to be entered.
        require: Those without which it fails.

    Returns:
        What came of each.

    Raises:
        JailError: One that is required cannot be entered.
    """
    steps = []
    users = os.geteuid(), os.getegid()
    for wall in NAMESPACES:
        if wall not in wanted:
            continue
        try:
            if wall == "user":
                _rehearse(*users)
            syscall("unshare", _FLAGS[wall])
            if wall == "user":
                _map_user(*users)
            elif wall == "mount":
                _keep_mounts()
        except OSError as problem:
            steps.append(Step(wall, active=False, detail=_why_not(wall, problem)))
        else:
            steps.append(Step(wall, active=True, detail=_TOLD[wall]))
    JailReport(tuple(steps)).check(require)
    if "pid" in JailReport(tuple(steps)).active:
        _become_first()
    return tuple(steps)


def namespaces_of_this_process() -> dict[str, str]:
    """Returns which namespaces this process is in, by their walls; those that the kernel tells."""
    found: dict[str, str] = {}
    for wall, name in _FILES.items():
        with suppress(OSError):
            found[wall] = str(Path(f"/proc/self/ns/{name}").readlink())
    return found


def left_before(steps: tuple[Step, ...], outside: Mapping[str, str]) -> tuple[Step, ...]:
    """Counts namespaces that something else has entered around this process, where it could enter none itself.

    Args:
        steps: What came of those that it has tried to enter.
        outside: The namespaces of a process outside, by walls; what is not told there is not counted.

    Returns:
        The same steps. Mounts are not counted: those of somebody else may show the host's files.
    """
    here = namespaces_of_this_process()
    told = {step.wall: step for step in steps}
    for wall in NAMESPACES:
        if wall == "mount" or (wall in told and told[wall].active) or wall not in outside:
            continue
        if here.get(wall, outside[wall]) != outside[wall]:
            told[wall] = Step(wall, active=True, detail=f"{_TOLD[wall]}: entered by what started it")
    return tuple(told[wall] for wall in NAMESPACES if wall in told)


def leave_root(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Has this process, and those that it forks, see no file by its path: in the root are `/proc` and `/dev/null`.

    Landlock knows opening, and not what is told of a path, nor its times: these are out of reach, too. What is open
    stays open, and leads out: folders go through `detach_folders`. It is called when everything is loaded, in the
    process that `enter_namespaces` has returned in; then that one gives its capabilities up, and none looks into it.

    Args:
        steps: What came of the namespaces.

    Returns:
        The same, with what is left of mounts.
    """
    told, own = [], True
    for step in steps:
        if step.wall == "mount" and step.active:
            try:
                _limit_processes()
                start_mounter()
                # The one that has just been forked keeps the mounts that there are.
                syscall("unshare", _FLAGS["mount"])
                own = _empty_root()
                step = Step("mount", active=True, detail=_TOLD["mount"])
            except OSError as problem:
                detail = f"mounts are its own, but the host's files are still seen ({problem.strerror})"
                step = Step("mount", active=False, detail=detail)
        elif step.wall == "pid" and step.active and not own:
            step = Step("pid", active=False, detail="its processes are its own, but /proc shows those outside, too")
        told.append(step)
    with suppress(OSError):  # each worker tries it anew, and says what came of it
        drop_capabilities()
    with suppress(OSError):  # a worker that got round Landlock would find its memory under /proc
        hide_memory()
    return tuple(told)


def _empty_root() -> bool:
    """Leaves the root for an empty one; whether `/proc` shows the processes of this namespace alone there."""
    place = _PLACE
    _mount(b"none", place, b"tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, b"size=64k,mode=0755")
    root = Path(os.fsdecode(place))
    (root / "proc").mkdir()
    (root / "dev").mkdir()
    (root / "dev" / "null").touch()
    own = _mount_processes(place + b"/proc")
    _mount(b"/dev/null", place + b"/dev/null", None, _MS_BIND, None)
    os.chdir(place)
    here = ctypes.create_string_buffer(b".")
    # SAFETY: paths end with a zero and outlive the calls. The new root is put over the old one, which is taken off.
    syscall("pivot_root", here, here)
    syscall("umount2", here, _MNT_DETACH)
    os.chdir("/")
    _mount(None, b"/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, None)
    return own


def _limit_processes() -> None:
    """Has the namespace of processes be full before the machine is: of threads, no limit counts those of root."""
    # Where all namespaces share the number (before Linux 6.14), it is not this process's to change.
    with suppress(OSError):
        _MOST_PROCESSES.write_bytes(b"%d" % _PROCESSES)


def _mount_processes(place: bytes) -> bool:
    """Mounts `/proc` anew, where each process sees itself; the host's where the kernel, or a container, refuses."""
    for options in (b"hidepid=4,subset=pid", b"hidepid=4", b"hidepid=2", None):
        with suppress(OSError):
            _mount(b"proc", place, b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options)
            return True
    _mount(b"/proc", place, None, _MS_BIND | _MS_REC, None)
    # What calls this process as it calls itself is of the same namespace.
    return str(Path("/proc/self").readlink()) == str(os.getpid())


def _mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int, data: bytes | None) -> None:
    texts = [None if text is None else ctypes.create_string_buffer(text) for text in (source, target, kind, data)]
    # SAFETY: texts end with a zero, and `texts` holds them until the call returns.
    syscall("mount", texts[0], texts[1], texts[2], flags, texts[3])


def _rehearse(user: int, group: int) -> None:
    """Enters a namespace of users in a child first: one whose numbers cannot be mapped could not be left again."""
    child = os.fork()
    if not child:
        code = 1
        try:
            syscall("unshare", _FLAGS["user"])
            _map_user(user, group)
            code = 0
        except OSError as problem:
            code = problem.errno or 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(max(code, 0), os.strerror(max(code, 0)))


def _map_user(user: int, group: int) -> None:
    """Has the user keep its number, which is all that may be mapped without privileges."""
    Path("/proc/self/setgroups").write_bytes(b"deny")
    Path("/proc/self/uid_map").write_bytes(b"%d %d 1" % (user, user))
    Path("/proc/self/gid_map").write_bytes(b"%d %d 1" % (group, group))


def _keep_mounts() -> None:
    """Has nothing that is mounted here appear outside."""
    _mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None)


def _why_not(wall: Wall, problem: OSError) -> str:
    told = os.strerror(problem.errno) if problem.errno else str(problem)
    if wall != "user":
        return f"the kernel refuses it ({told}): it needs a user namespace, or privileges"
    for setting, meaning in (
        ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
        ("/proc/sys/user/max_user_namespaces", "0"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):
        with suppress(OSError):
            if Path(setting).read_text().strip() == meaning:
                return f"switched off ({setting} is {meaning})"
    return f"the kernel refuses it ({told}): a container's own filter may do so"


def _become_first() -> None:
    """Goes on in a child, the first process of the new namespace; this one ends as that one does."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(reading)
        _wait_for(child)
    os.close(writing)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent's number cannot be seen from here; that it lives shows in its end of the pipe.
    os.set_blocking(reading, False)
    try:
        if not os.read(reading, 1):
            os._exit(1)
    except BlockingIOError:
        pass
    os.close(reading)


def _wait_for(child: int) -> NoReturn:
    """Ends as a child does."""
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _, status = os.waitpid(child, 0)
    finally:
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            with suppress(OSError, ValueError):
                signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code & 0xFF)
