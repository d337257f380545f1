"""The functions of WASI preview 1: the one table that the guard, the weaver, the report and the policy read.

Source: `wasi_snapshot_preview1.witx` of the WASI specification. Each function takes and returns plain numbers; all
but `proc_exit` return an errno.
"""

from typing import NamedTuple

__all__ = ["ERRNO", "GROUPS", "MODULE", "WASI", "WASI_BY_NAME", "WasiCall"]

MODULE = "wasi_snapshot_preview1"
"""The import module under which guests ask for these functions."""

ERRNO = {"nosys": 52, "perm": 63, "notcapable": 76}
"""Errnos with which a policy may refuse a call, by their names in the specification."""

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


class WasiCall(NamedTuple):
    """One function of WASI preview 1.

    Attributes:
        number: Its place in this table, which is also its place in the guard's arrays of counters.
        name: Its name in the specification.
        group: The capability it belongs to, a key of `GROUPS`.
        params: The types of its parameters, `i32` or `i64`.
        results: The types of its results.
    """

    number: int
    name: str
    group: str
    params: tuple[str, ...]
    results: tuple[str, ...]


_TYPES = {"i": "i32", "I": "i64"}

# A small letter is an i32, a capital an i64.
_SIGNATURES = {
    "args_get": "ii",
    "args_sizes_get": "ii",
    "environ_get": "ii",
    "environ_sizes_get": "ii",
    "clock_res_get": "ii",
    "clock_time_get": "iIi",
    "fd_advise": "iIIi",
    "fd_allocate": "iII",
    "fd_close": "i",
    "fd_datasync": "i",
    "fd_fdstat_get": "ii",
    "fd_fdstat_set_flags": "ii",
    "fd_fdstat_set_rights": "iII",
    "fd_filestat_get": "ii",
    "fd_filestat_set_size": "iI",
    "fd_filestat_set_times": "iIIi",
    "fd_pread": "iiiIi",
    "fd_prestat_get": "ii",
    "fd_prestat_dir_name": "iii",
    "fd_pwrite": "iiiIi",
    "fd_read": "iiii",
    "fd_readdir": "iiiIi",
    "fd_renumber": "ii",
    "fd_seek": "iIii",
    "fd_sync": "i",
    "fd_tell": "ii",
    "fd_write": "iiii",
    "path_create_directory": "iii",
    "path_filestat_get": "iiiii",
    "path_filestat_set_times": "iiiiIIi",
    "path_link": "iiiiiii",
    "path_open": "iiiiiIIii",
    "path_readlink": "iiiiii",
    "path_remove_directory": "iii",
    "path_rename": "iiiiii",
    "path_symlink": "iiiii",
    "path_unlink_file": "iii",
    "poll_oneoff": "iiii",
    "proc_exit": "i",
    "proc_raise": "i",
    "random_get": "ii",
    "sched_yield": "",
    "sock_accept": "iii",
    "sock_recv": "iiiiii",
    "sock_send": "iiiii",
    "sock_shutdown": "ii",
}

WASI: tuple[WasiCall, ...] = tuple(
    WasiCall(
        number,
        name,
        name.split("_", 1)[0],
        tuple(_TYPES[letter] for letter in params),
        () if name == "proc_exit" else ("i32",),
    )
    for number, (name, params) in enumerate(_SIGNATURES.items())
)
"""Every function of WASI preview 1, in the order of the specification."""

WASI_BY_NAME: dict[str, WasiCall] = {call.name: call for call in WASI}
"""The same functions by their names."""
