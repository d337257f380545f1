"""POSIX system calls as policies may name them: what each becomes in a guest.

A guest makes no system calls: it makes WASI calls, and the engine manages its memory. So a list of system calls, as
people write it for native programs, says something about a guest only through the WASI calls that stand for them.
Sources: the WASI specification, and the kernel's `unistd_64.h` and `asm-generic/unistd.h` for the numbers.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from stockade.errors import PolicyError
from stockade.policy._units import shown

__all__ = ["PLATFORMS", "SYSCALLS", "Classification", "Syscall", "find_syscall"]

Classification: TypeAlias = Literal["allowed", "refused", "forbidden", "unknown"]

PLATFORMS = ("linux-x86_64", "linux-aarch64", "darwin")
"""Platforms whose numbers are known; each has calls that the others lack."""


class Syscall(NamedTuple):
    """A system call.

    Attributes:
        name: Its name, in small letters.
        numbers: Its number on each platform; None where it does not exist there.
        wasi: The WASI calls that stand for it.
        never: Whether no guest can be given it. What is neither that nor has WASI calls is done by the engine, within
            the limits on memory, or is harmless.
    """

    name: str
    numbers: tuple[int | None, ...]
    wasi: tuple[str, ...]
    never: bool


# Name, numbers on the platforms in their order, WASI calls that stand for it.
_SERVED_BY_WASI = """
read 0 63 3 fd_read
readv 19 65 120 fd_read
pread64 17 67 - fd_pread
write 1 64 4 fd_write
writev 20 66 121 fd_write
pwrite64 18 68 - fd_pwrite
close 3 57 6 fd_close
fstat 5 80 189 fd_filestat_get fd_fdstat_get
stat 4 - - path_filestat_get
lstat 6 - - path_filestat_get
newfstatat 262 79 - path_filestat_get
statx 332 291 - path_filestat_get
open 2 - 5 path_open
openat 257 56 - path_open
lseek 8 62 199 fd_seek fd_tell
getdents64 217 61 - fd_readdir
fcntl 72 25 92 fd_fdstat_set_flags
dup2 33 - - fd_renumber
dup3 292 24 - fd_renumber
unlink 87 - - path_unlink_file
unlinkat 263 35 - path_unlink_file path_remove_directory
rmdir 84 - - path_remove_directory
mkdir 83 - - path_create_directory
mkdirat 258 34 - path_create_directory
rename 82 - - path_rename
renameat 264 38 - path_rename
renameat2 316 276 - path_rename
link 86 - - path_link
linkat 265 37 - path_link
symlink 88 - - path_symlink
symlinkat 266 36 - path_symlink
readlink 89 - - path_readlink
readlinkat 267 78 - path_readlink
fsync 74 82 - fd_sync
fdatasync 75 83 - fd_datasync
ftruncate 77 46 - fd_filestat_set_size
fallocate 285 47 - fd_allocate
fadvise64 221 223 - fd_advise
utimensat 280 88 - fd_filestat_set_times path_filestat_set_times
getrandom 318 278 - random_get
sched_yield 24 124 - sched_yield
poll 7 - - poll_oneoff
ppoll 271 73 - poll_oneoff
nanosleep 35 101 - poll_oneoff
clock_nanosleep 230 115 - poll_oneoff
clock_gettime 228 113 - clock_time_get
gettimeofday 96 169 116 clock_time_get
clock_getres 229 114 - clock_res_get
sendto 44 206 - sock_send
sendmsg 46 211 - sock_send
recvfrom 45 207 - sock_recv
recvmsg 47 212 - sock_recv
accept 43 202 - sock_accept
accept4 288 242 - sock_accept
shutdown 48 210 - sock_shutdown
exit 60 93 1 proc_exit
exit_group 231 94 - proc_exit
kill 62 129 - proc_raise
tgkill 234 131 - proc_raise
"""
_SERVED_BY_THE_ENGINE = """
mmap 9 222 197
munmap 11 215 73
mremap 25 216 -
brk 12 214 -
getpid 39 172 20
"""
_NEVER = """
fork 57 - 2
vfork 58 - 66
clone 56 220 -
clone3 435 435 -
execve 59 221 59
execveat 322 281 -
posix_spawn - - 244
setuid 105 146 23
setgid 106 144 181
setreuid 113 145 -
setregid 114 143 -
setresuid 117 147 -
setresgid 119 149 -
setgroups 116 159 -
chmod 90 - 15
fchmod 91 52 -
fchmodat 268 53 -
chown 92 - -
fchown 93 55 -
fchownat 260 54 -
lchown 94 - -
mount 165 40 167
umount2 166 39 -
unmount - - 159
pivot_root 155 41 -
chroot 161 51 61
unshare 272 97 -
setns 308 268 -
ptrace 101 117 -
process_vm_readv 310 270 -
process_vm_writev 311 271 -
io_uring_setup 425 425 -
io_uring_enter 426 426 -
io_uring_register 427 427 -
socket 41 198 -
socketpair 53 199 -
connect 42 203 -
bind 49 200 -
listen 50 201 -
clock_settime 227 112 -
settimeofday 164 170 -
mprotect 10 226 -
init_module 175 105 -
finit_module 313 273 -
delete_module 176 106 -
kexec_load 246 104 -
reboot 169 142 -
bpf 321 280 -
perf_event_open 298 241 -
userfaultfd 323 282 -
keyctl 250 219 -
prctl 157 167 -
seccomp 317 277 -
pidfd_open 434 434 -
mknod 133 - -
mknodat 259 33 -
"""
_ALIASES = {"umount": "umount2"}


def _parse(table: str, *, never: bool) -> dict[str, Syscall]:
    calls = {}
    for line in table.split("\n")[1:-1]:
        name, *rest = line.split()
        count = len(PLATFORMS)
        numbers = tuple(None if number == "-" else int(number) for number in rest[:count])
        calls[name] = Syscall(name, numbers, tuple(rest[count:]), never)
    return calls


SYSCALLS: dict[str, Syscall] = {
    **_parse(_SERVED_BY_WASI, never=False),
    **_parse(_SERVED_BY_THE_ENGINE, never=False),
    **_parse(_NEVER, never=True),
}
SYSCALLS.update({alias: SYSCALLS[name] for alias, name in _ALIASES.items()})


def find_syscall(call: str | int, platform: str) -> Syscall | None:
    """Finds a system call that exists on a platform.

    Args:
        call: Its name, in any case, or its number there.
        platform: One of `PLATFORMS`.

    Raises:
        PolicyError: There is no such platform.
    """
    if platform not in PLATFORMS:
        raise PolicyError(
            f"the platform is {shown(platform)}: it must be {', '.join(PLATFORMS[:-1])} or {PLATFORMS[-1]}"
        )
    place = PLATFORMS.index(platform)
    if isinstance(call, str):
        found = SYSCALLS.get(call.lower())
        return found if found is not None and found.numbers[place] is not None else None
    if type(call) is not int:  # None is the number of what a platform lacks, True equals 1
        return None
    return next((known for known in SYSCALLS.values() if known.numbers[place] == call), None)
