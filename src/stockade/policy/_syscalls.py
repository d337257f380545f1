"""POSIX system calls as policies may name them: what each becomes in a guest.

A guest makes no system calls: it makes WASI calls, and the engine manages its memory. So a list of system calls, as
people write it for native programs, says something about a guest only through the WASI calls that stand for them.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, TypeAlias

from stockade.errors import PolicyError
from stockade.policy._units import shown
from stockade.syscalls import PLATFORMS, Syscall, load_table

__all__ = ["Classification", "find_syscall", "guest_syscalls"]

Classification: TypeAlias = Literal["allowed", "refused", "forbidden", "unknown"]


@cache
def guest_syscalls() -> dict[str, Syscall]:
    """Returns the system calls that policies may name, by their names; two names may stand for one."""
    table = load_table()
    calls = {call.name: call for call in table.calls if call.guest != "unknown"}
    return {**calls, **{alias: calls[name] for alias, name in table.aliases.items()}}


def find_syscall(call: str | int, platform: str) -> Syscall | None:
    """Finds a system call that policies may name and that exists on a platform.

    Args:
        call: Its name, in any case, or its number there.
        platform: One of `PLATFORMS`.

    Raises:
        PolicyError: There is no such platform.
    """
    where = next((known for known in PLATFORMS if known == platform), None)
    if where is None:
        raise PolicyError(
            f"the platform is {shown(platform)}: it must be {', '.join(PLATFORMS[:-1])} or {PLATFORMS[-1]}"
        )
    found = load_table().find(call, where)
    return None if found is None or found.guest == "unknown" else found
