"""Whether a jailed worker may make a system call, by name or by number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade._text import printable
from stockade.errors import PolicyError, SyscallRefused
from stockade.syscalls._table import PLATFORMS, load_table, this_platform

if TYPE_CHECKING:
    from stockade.syscalls._table import Platform, Syscall, SyscallTable

__all__ = ["validate_syscall"]


def validate_syscall(
    call: str | int, *, platform: Platform | None = None, table: SyscallTable | None = None
) -> Syscall:
    """Says what a system call is that a jailed worker may make; refuses all others.

    Args:
        call: Its name, in any case, or its number.
        platform: `linux-x86_64`, `linux-aarch64` or `darwin`; by default the one that this process runs on.
        table: What is allowed; by default what the package allows.

    Returns:
        The call: its numbers, what it is, what needs it, and which of its uses are meant.

    Raises:
        SyscallRefused: It is forbidden, not allowed, or unknown.
        PolicyError: There is no such platform.
    """
    where = platform if platform is not None else this_platform()
    if where not in PLATFORMS:
        raise PolicyError(
            f"the platform is {printable(str(where))}: it must be {', '.join(PLATFORMS[:-1])} or {PLATFORMS[-1]}"
        )
    held = load_table() if table is None else table
    found = held.find(call, where)
    told = printable(call) if isinstance(call, str) else f"number {printable(str(call))}"
    if found is None:
        raise SyscallRefused(f"the system call {told} is unknown on {where}: what is not listed is refused", "unknown")
    named = found.name if isinstance(call, str) else f"{found.name} ({told})"
    kind = f"{found.category}: {held.categories[found.category]}"
    if found.worker == "forbid":
        except_ = ". Threads of the process alone may be started" if found.when == "threads" else ""
        raise SyscallRefused(f"the system call {named} is forbidden to every worker ({kind}){except_}", "forbidden")
    if found.worker == "unlisted":
        raise SyscallRefused(f"the system call {named} is not allowed ({kind})", "refused")
    return found
