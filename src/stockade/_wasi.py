"""The functions of WASI preview 1: the one table that guard, weaver, trace, report and policy read.

Source: `wasi_snapshot_preview1.witx` of the WASI specification. Each function takes and returns plain numbers; all
but `proc_exit` return an errno.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "ERRNO",
    "ERRNO_NAMES",
    "FLAGS",
    "GROUPS",
    "MODULE",
    "NAMES",
    "WASI",
    "WASI_BY_NAME",
    "WasiArgument",
    "WasiCall",
]

MODULE = "wasi_snapshot_preview1"
"""The import module under which guests ask for these functions."""

ERRNO = {"nosys": 52, "perm": 63, "notcapable": 76}
"""Errnos with which a policy may refuse a call, by their names in the specification."""

# fmt: off
ERRNO_NAMES = (
    "ESUCCESS", "E2BIG", "EACCES", "EADDRINUSE", "EADDRNOTAVAIL", "EAFNOSUPPORT", "EAGAIN", "EALREADY", "EBADF",
    "EBADMSG", "EBUSY", "ECANCELED", "ECHILD", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EDEADLK",
    "EDESTADDRREQ", "EDOM", "EDQUOT", "EEXIST", "EFAULT", "EFBIG", "EHOSTUNREACH", "EIDRM", "EILSEQ",
    "EINPROGRESS", "EINTR", "EINVAL", "EIO", "EISCONN", "EISDIR", "ELOOP", "EMFILE", "EMLINK", "EMSGSIZE",
    "EMULTIHOP", "ENAMETOOLONG", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENFILE", "ENOBUFS", "ENODEV", "ENOENT",
    "ENOEXEC", "ENOLCK", "ENOLINK", "ENOMEM", "ENOMSG", "ENOPROTOOPT", "ENOSPC", "ENOSYS", "ENOTCONN", "ENOTDIR",
    "ENOTEMPTY", "ENOTRECOVERABLE", "ENOTSOCK", "ENOTSUP", "ENOTTY", "ENXIO", "EOVERFLOW", "EOWNERDEAD", "EPERM",
    "EPIPE", "EPROTO", "EPROTONOSUPPORT", "EPROTOTYPE", "ERANGE", "EROFS", "ESPIPE", "ESRCH", "ESTALE",
    "ETIMEDOUT", "ETXTBSY", "EXDEV", "ENOTCAPABLE",
)
# fmt: on
"""The names of errnos, by their numbers, as POSIX spells them."""

FLAGS = {
    "fdflags": ("APPEND", "DSYNC", "NONBLOCK", "RSYNC", "SYNC"),
    "oflags": ("CREAT", "DIRECTORY", "EXCL", "TRUNC"),
    "lookupflags": ("SYMLINK_FOLLOW",),
    "fstflags": ("ATIM", "ATIM_NOW", "MTIM", "MTIM_NOW"),
}
"""The names of flags, the lowest bit first."""

NAMES = {
    "clock": ("REALTIME", "MONOTONIC", "PROCESS_CPUTIME_ID", "THREAD_CPUTIME_ID"),
    "advice": ("NORMAL", "SEQUENTIAL", "RANDOM", "WILLNEED", "DONTNEED", "NOREUSE"),
    "whence": ("SEEK_SET", "SEEK_CUR", "SEEK_END"),
    "filetype": (
        "UNKNOWN",
        "BLOCK_DEVICE",
        "CHARACTER_DEVICE",
        "DIRECTORY",
        "REGULAR_FILE",
        "SOCKET_DGRAM",
        "SOCKET_STREAM",
        "SYMBOLIC_LINK",
    ),
}
"""The names of what is one of several, by its number."""

GROUPS = {
    "args": "read its arguments",
    "environ": "read the environment variables that the policy grants",
    "clock": "read the time",
    "fd": "read and write what is open: stdin, stdout, stderr and files in the mounts",
    "path": "open, create and remove files in the mounts",
    "poll": "wait for a time, or for input",
    "proc": "end itself with an exit code",
    "random": "get random bytes",
    "sched": "let others go first",
    "sock": "accept and use network connections",
}
"""What each group of calls lets a guest do, where the policy grants it."""


class WasiArgument(NamedTuple):
    """What a function of WASI is given.

    Attributes:
        name: Its name in the specification.
        kind: What it is: a key of `FLAGS` or `NAMES`, or `fd`, `path`, `text`, `buffers`, `subscriptions`, `address`,
            `u32`, `u64`, `s64`, `rights`, `filestat`, `fdstat` or `prestat`.
        is_answer: Whether the call answers it: the parameter is the address where.
        place: The first of its parameters.
        types: The types of its parameters: a path, a text and buffers have two, an address and how much is there.
    """

    name: str
    kind: str
    is_answer: bool
    place: int
    types: tuple[str, ...]


class WasiCall(NamedTuple):
    """One function of WASI preview 1.

    Attributes:
        number: Its place in this table, which is also its place in the guard's arrays of counters.
        name: Its name in the specification.
        group: The capability it belongs to, a key of `GROUPS`.
        arguments: What it is given.
        results: The types of its results.
    """

    number: int
    name: str
    group: str
    arguments: tuple[WasiArgument, ...]
    results: tuple[str, ...]

    @property
    def params(self) -> tuple[str, ...]:
        """The types of its parameters, `i32` or `i64`."""
        return tuple(type_ for argument in self.arguments for type_ in argument.types)


_KINDS = {"path": "ii", "text": "ii", "buffers": "ii", "u64": "I", "s64": "I", "rights": "I"}
"""The WebAssembly types of arguments, by what they are; those of all others are one i32."""

_TYPES = {"i": "i32", "I": "i64"}

# What each call is given: names as in the specification, and what they are. A > stands before what the call answers:
# the argument is an address then, and what is there is known afterwards.
_ARGUMENTS = {
    "args_get": "argv:address argv_buf:address",
    "args_sizes_get": "argc:>u32 argv_buf_size:>u32",
    "environ_get": "environ:address environ_buf:address",
    "environ_sizes_get": "environc:>u32 environ_buf_size:>u32",
    "clock_res_get": "id:clock resolution:>u64",
    "clock_time_get": "id:clock precision:u64 time:>u64",
    "fd_advise": "fd:fd offset:u64 len:u64 advice:advice",
    "fd_allocate": "fd:fd offset:u64 len:u64",
    "fd_close": "fd:fd",
    "fd_datasync": "fd:fd",
    "fd_fdstat_get": "fd:fd stat:>fdstat",
    "fd_fdstat_set_flags": "fd:fd flags:fdflags",
    "fd_fdstat_set_rights": "fd:fd fs_rights_base:rights fs_rights_inheriting:rights",
    "fd_filestat_get": "fd:fd buf:>filestat",
    "fd_filestat_set_size": "fd:fd size:u64",
    "fd_filestat_set_times": "fd:fd atim:u64 mtim:u64 fst_flags:fstflags",
    "fd_pread": "fd:fd iovs:>buffers offset:u64 nread:>u32",
    "fd_prestat_get": "fd:fd buf:>prestat",
    "fd_prestat_dir_name": "fd:fd path:>text",
    "fd_pwrite": "fd:fd iovs:buffers offset:u64 nwritten:>u32",
    "fd_read": "fd:fd iovs:>buffers nread:>u32",
    "fd_readdir": "fd:fd buf:address buf_len:u32 cookie:u64 bufused:>u32",
    "fd_renumber": "fd:fd to:fd",
    "fd_seek": "fd:fd offset:s64 whence:whence newoffset:>u64",
    "fd_sync": "fd:fd",
    "fd_tell": "fd:fd offset:>u64",
    "fd_write": "fd:fd iovs:buffers nwritten:>u32",
    "path_create_directory": "fd:fd path:path",
    "path_filestat_get": "fd:fd flags:lookupflags path:path buf:>filestat",
    "path_filestat_set_times": "fd:fd flags:lookupflags path:path atim:u64 mtim:u64 fst_flags:fstflags",
    "path_link": "old_fd:fd old_flags:lookupflags old_path:path new_fd:fd new_path:path",
    "path_open": "fd:fd dirflags:lookupflags path:path oflags:oflags fs_rights_base:rights "
    "fs_rights_inheriting:rights fdflags:fdflags opened_fd:>fd",
    "path_readlink": "fd:fd path:path buf:>text bufused:>u32",
    "path_remove_directory": "fd:fd path:path",
    "path_rename": "fd:fd old_path:path new_fd:fd new_path:path",
    "path_symlink": "old_path:path fd:fd new_path:path",
    "path_unlink_file": "fd:fd path:path",
    "poll_oneoff": "in:subscriptions out:address nsubscriptions:u32 nevents:>u32",
    "proc_exit": "rval:u32",
    "proc_raise": "sig:u32",
    "random_get": "buf:address buf_len:u32",
    "sched_yield": "",
    "sock_accept": "fd:fd flags:fdflags accepted_fd:>fd",
    "sock_recv": "fd:fd ri_data:>buffers ri_flags:u32 ro_datalen:>u32 ro_flags:>u32",
    "sock_send": "fd:fd si_data:buffers si_flags:u32 so_datalen:>u32",
    "sock_shutdown": "fd:fd how:u32",
}


def _arguments(text: str) -> tuple[WasiArgument, ...]:
    found, place = [], 0
    for argument in text.split():
        name, kind = argument.split(":")
        is_answer, kind = kind.startswith(">"), kind.removeprefix(">")
        types = "i" if is_answer and kind == "u64" else _KINDS.get(kind, "i")
        found.append(WasiArgument(name, kind, is_answer, place, tuple(_TYPES[letter] for letter in types)))
        place += len(types)
    return tuple(found)


WASI: tuple[WasiCall, ...] = tuple(
    WasiCall(
        number,
        name,
        name.split("_", 1)[0],
        _arguments(text),
        () if name == "proc_exit" else ("i32",),
    )
    for number, (name, text) in enumerate(_ARGUMENTS.items())
)
"""Every function of WASI preview 1, in the order of the specification."""

WASI_BY_NAME: dict[str, WasiCall] = {call.name: call for call in WASI}
"""The same functions by their names."""
