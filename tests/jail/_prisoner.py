"""A process that is put into a jail and then does what native code would that got out of a guest.

`python _prisoner.py SPEC` with SPEC as JSON: `jail`, keywords of `Jail` (mounts as paths); `namespaces`, whether they
are entered; `without`, system calls that the machine is to be without; `user`, who it is to be; `attempts`, names of
functions below; `outside`, a file that is not there yet, `secret`, one that is, and `mountpoint`, a folder, all beside
the mounts, of which the first is writable and the second is not. It answers with JSON: the report, and of each attempt
what came of it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import struct
import sys
import threading
from contextlib import suppress

import msgspec

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "src"))

from stockade.jail import (
    Granted,
    Jail,
    JailError,
    ResourceLimits,
    confine,
    detach_folders,
    enter_namespaces,
    leave_root,
)
from stockade.jail._filter import _assemble, _give, _head
from stockade.jail._libc import syscall
from stockade.jail._seccomp import _install, _platform, _Program
from stockade.system import prctl

LIBC = ctypes.CDLL(None, use_errno=True)
ANY_LIBRARY = b"libm.so.6"


def without_calls(numbers: list[int]) -> None:
    """Has the kernel know some calls no more, as a container's filter or an old kernel would."""
    code = _head(_platform())
    for number in numbers:
        code += [(0x15, 0, 1, number), _give(0x50000 | errno.ENOSYS)]
    prctl(38, 1)
    _install(_assemble([*code, _give(0x7FFF0000)]))


def called(name: str, *arguments: object) -> None:
    syscall(name, *arguments)  # type: ignore[arg-type]


def open_passwd() -> None:
    os.close(os.open("/etc/passwd", os.O_RDONLY))


def open_passwd_from_mount() -> None:
    os.close(os.open("../../../../../../etc/passwd", os.O_RDONLY, dir_fd=MOUNTS[0]))


def stat_passwd() -> None:
    os.stat("/etc/passwd")


def look_at_parent() -> None:
    os.stat(f"/proc/{PARENT}")


def stat_above_mount() -> None:
    os.stat("../../../../../../../../etc/passwd", dir_fd=MOUNTS[0])


def touch_above_mount() -> None:
    os.utime("../beside", (1, 1), dir_fd=MOUNTS[0])


def touch_outside() -> None:
    os.utime(SPEC["outside"], (1, 1))


def list_root() -> None:
    os.listdir("/")


def write_outside() -> None:
    with open(SPEC["outside"], "w") as file:
        file.write("was here")


def link_outside() -> None:
    os.link(SPEC["secret"], "stolen", dst_dir_fd=MOUNTS[0])
    os.unlink("stolen", dir_fd=MOUNTS[0])


def rename_out() -> None:
    os.close(os.open("moved", os.O_CREAT | os.O_RDWR, dir_fd=MOUNTS[0]))
    try:
        os.rename("moved", "../moved", src_dir_fd=MOUNTS[0], dst_dir_fd=MOUNTS[0])
    finally:
        if "moved" in os.listdir(f"/proc/self/fd/{MOUNTS[0]}"):
            os.unlink("moved", dir_fd=MOUNTS[0])
            raise OSError(errno.EXDEV, "what is above is the same folder")
    os.unlink("../moved", dir_fd=MOUNTS[0])


def open_by_path_descriptor() -> None:
    """A descriptor that opens nothing is opened anew, by the way of /proc."""
    found = os.open("../secret", os.O_PATH, dir_fd=MOUNTS[0])
    os.close(os.open(f"/proc/self/fd/{found}", os.O_RDONLY))


def read_inherited() -> None:
    assert os.pread(INHERITED, 6, 0) == b"secret"


def write_own_code() -> None:
    """Pages that are not writable are, by way of that file."""
    with open("/proc/self/mem", "r+b"):
        pass


def lock_file() -> None:
    """So that whoever else wants to lock it waits."""
    descriptor = os.open("hello", os.O_RDWR, dir_fd=MOUNTS[0])
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def make_link() -> None:
    os.symlink("/etc/passwd", "shortcut", dir_fd=MOUNTS[0])
    os.unlink("shortcut", dir_fd=MOUNTS[0])


def mark_file() -> None:
    """An extended attribute."""
    descriptor = os.open("hello", os.O_RDWR, dir_fd=MOUNTS[0])
    os.setxattr(descriptor, "user.mark", b"x")


# -- a mount that may be read ------------------------------------------------------------------------------------------


def write_readonly() -> None:
    os.close(os.open("kept", os.O_RDWR, dir_fd=MOUNTS[1]))


def cut_readonly() -> None:
    os.close(os.open("empty", os.O_RDONLY | os.O_TRUNC, dir_fd=MOUNTS[1]))


def cut_readonly_by_path() -> None:
    os.truncate(f"/proc/self/fd/{MOUNTS[1]}/empty", 0)


def reopen_with_more_rights() -> None:
    descriptor = os.open("kept", os.O_RDONLY, dir_fd=MOUNTS[1])
    os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR))


def reopen_by_path_descriptor() -> None:
    descriptor = os.open("kept", os.O_PATH, dir_fd=MOUNTS[1])
    os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR))


def make_in_readonly() -> None:
    os.close(os.open("made", os.O_CREAT | os.O_RDONLY, dir_fd=MOUNTS[1]))
    os.unlink("made", dir_fd=MOUNTS[1])


def remove_from_readonly() -> None:
    os.unlink("empty", dir_fd=MOUNTS[1])
    os.close(os.open("empty", os.O_CREAT | os.O_RDWR, dir_fd=MOUNTS[1]))


def rename_in_readonly() -> None:
    os.rename("kept", "other", src_dir_fd=MOUNTS[1], dst_dir_fd=MOUNTS[1])
    os.rename("other", "kept", src_dir_fd=MOUNTS[1], dst_dir_fd=MOUNTS[1])


def link_into_writable() -> None:
    """What has a name in the writable folder could be written to."""
    os.link("kept", "linked", src_dir_fd=MOUNTS[1], dst_dir_fd=MOUNTS[0])
    os.unlink("linked", dir_fd=MOUNTS[0])


def rename_into_writable() -> None:
    os.rename("kept", "moved", src_dir_fd=MOUNTS[1], dst_dir_fd=MOUNTS[0])
    os.rename("moved", "kept", src_dir_fd=MOUNTS[0], dst_dir_fd=MOUNTS[1])


def link_into_readonly() -> None:
    os.link("hello", "linked", src_dir_fd=MOUNTS[0], dst_dir_fd=MOUNTS[1])
    os.unlink("linked", dir_fd=MOUNTS[1])


def rename_into_readonly() -> None:
    os.rename("hello", "moved", src_dir_fd=MOUNTS[0], dst_dir_fd=MOUNTS[1])
    os.rename("moved", "hello", src_dir_fd=MOUNTS[1], dst_dir_fd=MOUNTS[0])


def exchange_with_readonly() -> None:
    """Each takes the place of the other (RENAME_EXCHANGE)."""
    names = [ctypes.create_string_buffer(name) for name in (b"hello", b"kept")]
    for _ in range(2):
        called("renameat2", MOUNTS[0], names[0], MOUNTS[1], names[1], 2)


def touch_readonly() -> None:
    os.utime("kept", (1, 1), dir_fd=MOUNTS[1])


def open_device() -> None:
    """A device file in a mount, and its memory."""
    descriptor = os.open("zero", os.O_RDONLY, dir_fd=MOUNTS[1])
    mmap.mmap(descriptor, 4096, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE).close()


def connect() -> None:
    with socket.socket() as line, suppress(ConnectionRefusedError):
        line.connect(("127.0.0.1", 9))


def unix_socket() -> None:
    with socket.socket(socket.AF_UNIX) as line:
        line.bind(b"\0stockade-test-%d" % os.getpid())


def netlink() -> None:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()


def fork() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def raw_clone() -> None:
    child = syscall("clone", int(signal.SIGCHLD), 0, 0, 0, 0)
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def clone3_process() -> None:
    arguments = ctypes.create_string_buffer(struct.pack("<8Q", 0, 0, 0, 0, int(signal.SIGCHLD), 0, 0, 0), 64)
    child = syscall("clone3", arguments, 64)
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def reaches(code: int, name: str, *arguments: object) -> None:
    """A call that fails by its arguments, when it gets as far as that."""
    try:
        called(name, *arguments)
    except OSError as problem:
        if problem.errno != code:
            raise


def execve() -> None:
    reaches(errno.EFAULT, "execve", 0, 0, 0)


def execute_memory() -> None:
    """A program in a file that has no path: here it is none, which is found out when it is executed."""
    file = os.memfd_create("program")
    os.write(file, b"no program")
    os.fchmod(file, 0o700)
    empty = ctypes.create_string_buffer(b"")
    nothing = ctypes.create_string_buffer(bytes(8), 8)
    reaches(errno.ENOEXEC, "execveat", file, empty, nothing, nothing, 0x1000)


def execute_true() -> None:
    """In a child by vfork where it can be had: posix_spawn is that."""
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


def ptrace_parent() -> None:
    called("ptrace", 0x4206, PARENT, 0, 0)  # PTRACE_SEIZE
    with suppress(OSError):  # it was not stopped, so it is let go when this process ends
        called("ptrace", 17, PARENT, 0, 0)


def read_parent_memory() -> None:
    with open(f"/proc/{PARENT}/mem", "rb"):
        pass


def process_vm_readv() -> None:
    """What the parent has at an address at which this process has the same: it is its child."""
    taken = ctypes.create_string_buffer(6)
    ours = ctypes.create_string_buffer(struct.pack("<2Q", ctypes.addressof(taken), 6), 16)
    theirs = ctypes.create_string_buffer(struct.pack("<2Q", ctypes.addressof(SECRET), 6), 16)
    called("process_vm_readv", PARENT, ours, 1, theirs, 1, 0)
    assert taken.raw == b"secret"


def signal_parent() -> None:
    os.kill(PARENT, 0)


def signal_all() -> None:
    os.kill(-1, 0)


def signal_thread() -> None:
    called("tgkill", PARENT, PARENT, 0)


def signal_by_descriptor() -> None:
    signal.pidfd_send_signal(os.pidfd_open(PARENT), 0)


def steal_descriptor() -> None:
    os.close(syscall("pidfd_getfd", os.pidfd_open(PARENT), 0, 0))


def pin_parent() -> None:
    """To one processor, or as here to those that it has."""
    os.sched_setaffinity(PARENT, os.sched_getaffinity(0))


def slow_parent() -> None:
    os.setpriority(os.PRIO_PROCESS, PARENT, os.getpriority(os.PRIO_PROCESS, PARENT))


def schedule_parent() -> None:
    called("sched_setscheduler", PARENT, 0, ctypes.create_string_buffer(4))


def signal_group() -> None:
    os.kill(0, 0)


def queue_signal() -> None:
    information = ctypes.create_string_buffer(128)
    struct.pack_into("<3i", information, 0, 0, 0, -1)
    called("rt_sigqueueinfo", PARENT, 0, information)


def own_by_fcntl() -> None:
    """F_SETOWN: the kernel is to send signals to the parent."""
    fcntl.fcntl(MOUNTS_SOCKET.fileno(), 8, PARENT)


def open_init_memory() -> None:
    with open("/proc/1/mem", "rb"):
        pass


def open_own_environment() -> None:
    with open("/proc/self/environ", "rb") as file:
        assert file.read()


def enter_own_namespace() -> None:
    called("setns", os.open("/proc/self/ns/uts", os.O_RDONLY), 0)


def mount_by_descriptors() -> None:
    """The newer way to mount."""
    os.close(syscall("fsopen", ctypes.create_string_buffer(b"tmpfs"), 0))


def clone_root() -> None:
    os.close(syscall("open_tree", -100, ctypes.create_string_buffer(b"/"), 1))


def name_host() -> None:
    socket.sethostname(socket.gethostname())


def user_namespace() -> None:
    called("unshare", 0x1000_0000)


def network_namespace() -> None:
    called("unshare", 0x4000_0000)


def mount_nothing() -> None:
    path = ctypes.create_string_buffer(SPEC["mountpoint"].encode())
    called("mount", ctypes.create_string_buffer(b"none"), path, ctypes.create_string_buffer(b"tmpfs"), 0, None)
    called("umount2", path, 0)


def chroot() -> None:
    os.chroot("/")


def become_nobody() -> None:
    os.setgroups([])


def change_mode() -> None:
    os.chmod(".", 0o700, dir_fd=MOUNTS[0])


def load_library() -> None:
    """A library that nobody has loaded yet."""
    ctypes.CDLL(SPEC["library"])


def write_and_run() -> None:
    """Code of its own: written, then made executable."""
    memory = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    called("mprotect", address, 4096, 5)


def write_and_execute_at_once() -> None:
    called("mmap", 0, 4096, 7, 0x22, -1, 0)


def io_uring() -> None:
    called("io_uring_setup", 8, ctypes.create_string_buffer(120))


def old_rings() -> None:
    """Reading and writing in the kernel's own time, as it was before rings."""
    context = ctypes.create_string_buffer(bytes(8), 8)
    called("io_setup", 1, context)
    called("io_destroy", struct.unpack("<q", context.raw)[0])


def watch_files() -> None:
    os.close(syscall("inotify_init1", 0))


def watch_all_files() -> None:
    os.close(syscall("fanotify_init", 0, 0))


def read_kernel_log() -> None:
    called("syslog", 10, 0, 0)


def make_timer() -> None:
    """One of many, which the kernel counts for the user."""
    timer = ctypes.create_string_buffer(4)
    called("timer_create", 1, None, timer)


def other_segments() -> None:
    """modify_ldt, which few programs have called, and few have looked at."""
    called("modify_ldt", 0, ctypes.create_string_buffer(16), 16)


def shared_segment() -> None:
    called("shmctl", syscall("shmget", 0, 4096, 0o1600), 0, None)


def semaphores() -> None:
    called("semctl", syscall("semget", 0, 1, 0o1600), 0, 0, 0)


def message_queue() -> None:
    called("msgctl", syscall("msgget", 0, 0o1600), 0, None)


def named_queue() -> None:
    name = ctypes.create_string_buffer(b"stockade-test-%d" % os.getpid())
    os.close(syscall("mq_open", name, os.O_CREAT | os.O_RDWR, 0o600, None))
    called("mq_unlink", name)


def type_into_terminal() -> None:
    """TIOCSTI: as if somebody had typed it."""
    fcntl.ioctl(TERMINAL, 0x5412, b"x")


def switch_terminal() -> None:
    """TIOCSCTTY: it becomes this process's own, where that leads its session."""
    with suppress(OSError):
        os.setsid()
    fcntl.ioctl(TERMINAL, 0x540E, 0)


def become_traceable() -> None:
    prctl(4, 1)


def let_anybody_trace() -> None:
    prctl(0x59616D61, 2**64 - 1)


def drop_filter() -> None:
    """PR_SET_SECCOMP with another mode: the kernel says that it is none."""
    try:
        prctl(22, 99)
    except OSError as problem:
        if problem.errno != errno.EINVAL:
            raise


def report_to_another() -> None:
    """A filter that hands calls to a process (SECCOMP_FILTER_FLAG_NEW_LISTENER)."""
    prctl(38, 1)
    program = ctypes.create_string_buffer(_assemble([_give(0x7FFF0000)]), 8)
    os.close(syscall("seccomp", 1, 8, _Program(1, ctypes.addressof(program))))


def data_is_code() -> None:
    """READ_IMPLIES_EXEC."""
    called("personality", 0x0400000)


def share_memory() -> None:
    """No limit on memory of its own counts it."""
    called("mmap", 0, 4096, 3, 0x21, -1, 0)


def bpf() -> None:
    called("bpf", 0, ctypes.create_string_buffer(struct.pack("<4I", 2, 4, 8, 1), 128), 128)


def userfaultfd() -> None:
    os.close(syscall("userfaultfd", 1))


def perf_event() -> None:
    attributes = ctypes.create_string_buffer(128)
    struct.pack_into("<IIQ", attributes, 0, 1, 128, 0)
    struct.pack_into("<Q", attributes, 40, 0x61)
    os.close(syscall("perf_event_open", attributes, 0, -1, -1, 0))


def keyring() -> None:
    called("keyctl", 0, -3 & 0xFFFFFFFF, 1)


def personality() -> None:
    called("personality", 0xFFFFFFFF)


def raise_limit() -> None:
    called("prlimit64", 0, 7, ctypes.create_string_buffer(struct.pack("<2Q", 10, 10), 16), None)


def limit_of_parent() -> None:
    called("prlimit64", PARENT, 7, None, ctypes.create_string_buffer(16))


def make_device() -> None:
    os.mknod("device", 0o600 | 0o020000, os.makedev(1, 3), dir_fd=MOUNTS[0])


def make_fifo() -> None:
    os.mkfifo("fifo", dir_fd=MOUNTS[0])


def open_by_handle() -> None:
    """A number of a file leads to it from any folder of its file system."""
    handle = ctypes.create_string_buffer(struct.pack("<Ii", 128, 0), 136)
    called(
        "name_to_handle_at", MOUNTS[0], ctypes.create_string_buffer(b"hello"), handle, ctypes.create_string_buffer(4), 0
    )
    folder = os.open(".", os.O_RDONLY, dir_fd=MOUNTS[0])
    os.close(syscall("open_by_handle_at", folder, handle, os.O_RDONLY))


def x32() -> None:
    syscall(0x4000_0000 + 39)


# -- what is still to work --------------------------------------------------------------------------------------------


def read_mount() -> None:
    descriptor = os.open("hello", os.O_RDONLY, dir_fd=MOUNTS[0])
    assert os.read(descriptor, 100) == b"hello"


def read_mount_by_proc() -> None:
    descriptor = os.open(f"/proc/self/fd/{MOUNTS[0]}", os.O_RDONLY | os.O_DIRECTORY)
    assert "hello" in os.listdir(descriptor)


def write_mount() -> None:
    descriptor = os.open("written", os.O_CREAT | os.O_RDWR, dir_fd=MOUNTS[0])
    assert os.write(descriptor, b"x") == 1
    with suppress(OSError):  # where nothing may be deleted
        os.unlink("written", dir_fd=MOUNTS[0])


def rename_in_mount() -> None:
    os.close(os.open("before", os.O_CREAT | os.O_RDWR, dir_fd=MOUNTS[0]))
    os.rename("before", "after", src_dir_fd=MOUNTS[0], dst_dir_fd=MOUNTS[0])
    os.unlink("after", dir_fd=MOUNTS[0])


def start_thread() -> None:
    done: list[int] = []
    thread = threading.Thread(target=done.append, args=(1,))
    thread.start()
    thread.join()
    assert done == [1]


def start_many_threads() -> None:
    """More than a machine of some size has processes."""
    threading.stack_size(1 << 15)
    over = threading.Lock()
    over.acquire()
    try:
        for _ in range(9000):
            threading.Thread(target=over.acquire, daemon=True).start()
    except RuntimeError:
        raise OSError(errno.EAGAIN, "no more threads") from None


def signal_itself() -> None:
    os.kill(os.getpid(), 0)
    signal.raise_signal(signal.SIGURG)


def find_environment() -> None:
    with open("/proc/self/environ", "rb") as file:
        assert not file.read().strip(b"\0")
    assert not os.environ
    assert LIBC.getenv(b"PATH") == 0


def reserve_gigabytes() -> None:
    mmap.mmap(-1, 8 << 30, prot=0, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)


def fill_memory() -> None:
    mmap.mmap(-1, 300 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()


def open_many() -> None:
    for _ in range(100):
        os.open("hello", os.O_RDONLY, dir_fd=MOUNTS[0])


def write_much() -> None:
    descriptor = os.open("large", os.O_CREAT | os.O_RDWR, dir_fd=MOUNTS[0])
    os.lseek(descriptor, 1 << 20, os.SEEK_SET)
    os.write(descriptor, b"x")


def burn() -> None:
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    while True:
        pass


def outcome(name: str) -> str:
    try:
        globals()[name]()
    except OSError as problem:
        return errno.errorcode.get(problem.errno or 0, str(problem))
    except MemoryError:
        return "MemoryError"
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"
    return "worked"


def apart(name: str) -> str:
    """The same in a child, so that no attempt is in the way of the next."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, outcome(name).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:
        told = answer.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return told or f"ended: {status}"


SPEC = json.loads(sys.argv[1])
MOUNTS: list[int] = []
PARENT = 0
MOUNTS_SOCKET = socket.socketpair()[0]
SECRET = ctypes.create_string_buffer(b"secret", 6)
INHERITED = 77
TERMINAL = os.openpty()[1] if SPEC.get("secret") else -1


def main() -> None:
    global PARENT
    if SPEC.get("secret"):
        os.dup2(os.open(SPEC["secret"], os.O_RDONLY), INHERITED)
    # Whom it may harm is a process of its own, which waits for it, and where there is Yama lets anybody trace it.
    with suppress(OSError):
        let_anybody_trace()
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    if SPEC.get("user"):
        os.setgroups([])
        os.setresgid(SPEC["user"], SPEC["user"], SPEC["user"])
        os.setresuid(SPEC["user"], SPEC["user"], SPEC["user"])
        prctl(4, 1)  # to change the user makes a process one that cannot be looked into, nor map users
    PARENT = os.getppid()
    answer = os.dup(1)
    keywords = SPEC.get("jail")
    report = None
    if SPEC.get("without"):
        without_calls(SPEC["without"])
    if SPEC.get("thread"):
        threading.Thread(target=signal.pause, daemon=True).start()
    granted = (keywords or {"mounts": SPEC.get("mounts", [])}).get("mounts", ())
    MOUNTS.extend(os.open(mount["path"], os.O_PATH | os.O_DIRECTORY) for mount in granted)
    try:
        if keywords is None and SPEC.get("namespaces"):
            enter_namespaces()
            called("mount", None, ctypes.create_string_buffer(b"/proc"), ctypes.create_string_buffer(b"proc"), 0, None)
        if keywords is not None:
            steps = (
                enter_namespaces(require=frozenset(SPEC.get("require_namespaces", ())))
                if SPEC.get("namespaces")
                else ()
            )
            if steps:
                steps = leave_root(steps)
                folders = [
                    (folder, mount.get("writable", False)) for folder, mount in zip(MOUNTS, granted, strict=True)
                ]
                MOUNTS[:], steps = detach_folders(folders, steps)
                # What was forked for it is the worker; the first process of a namespace is the server.
                child = os.fork()
                if child:
                    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                    os._exit(code if code >= 0 else 128 - code)
                PARENT = os.getppid()
        if keywords is not None:
            rights = [
                Granted(descriptor, **{name: value for name, value in mount.items() if name != "path"})
                for descriptor, mount in zip(MOUNTS, keywords.pop("mounts", ()), strict=True)
            ]
            keep = (0, 2, answer, MOUNTS_SOCKET.fileno(), *(() if TERMINAL < 0 else (TERMINAL,)))
            limits = ResourceLimits(**keywords.pop("limits", {}))
            keywords["require"] = frozenset(keywords.pop("require", ()))
            keywords["remove"] = frozenset(keywords.pop("remove", ()))
            jail = Jail(mounts=tuple(rights), limits=limits, keep=keep, **keywords)
            if SPEC.get("memory_file"):
                jail = msgspec.structs.replace(jail, files=(os.memfd_create("code"),))
            report = confine(jail, steps)
    except JailError as problem:
        os.write(answer, json.dumps({"refused": str(problem)}).encode())
        os._exit(0)
    told = {
        "steps": {step.wall: [step.active, step.detail] for step in report.steps} if report else {},
        "tried": list(report.tried) if report else [],
        "attempts": {},
    }
    for name in SPEC.get("attempts", ()):
        os.write(answer, b".")  # so that it shows which one was the end
        told["attempts"][name] = outcome(name) if report else apart(name)
    os.write(answer, b"\n" + json.dumps(told).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
