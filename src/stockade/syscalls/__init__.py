"""System calls as data: which there are, what each is for, and which a jailed worker may make.

`syscalls.yaml` is the list. What is not in it is refused.
"""

from stockade.syscalls._table import (
    PLATFORMS,
    Platform,
    Syscall,
    SyscallTable,
    calls_removed_by_user,
    load_table,
    read_table,
    this_platform,
)
from stockade.syscalls._validate import validate_syscall

__all__ = [
    "PLATFORMS",
    "Platform",
    "Syscall",
    "SyscallTable",
    "calls_removed_by_user",
    "load_table",
    "read_table",
    "this_platform",
    "validate_syscall",
]
