"""The policy that an interpreter runs under: the caller's, and what the interpreter itself needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stockade.errors import PolicyError
from stockade.policy import MAX_MODULE_BYTES, Clock, Random, Wasi

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.policy import Mount, Policy

__all__ = ["fit", "folders_of", "roomy"]

_COMPILE_SECONDS: Final = 3600.0
_COMPILE_BYTES: Final = 16 << 30
_TABLE_ELEMENTS: Final = 100_000
_FUEL: Final = 1 << 60
_OPEN_FILES: Final = 64


def roomy(policy: Policy) -> Policy:
    """Returns a policy for making an interpreter ready: the operator's own code runs, once, and takes its time.

    Args:
        policy: The policy under which it is used. What decides its machine code stays, and memory.
    """
    # What a policy refuses to code, its interpreter may need to begin. Where equal runs are to be equal, they stay so.
    clock, random = policy.clock, policy.random
    if clock.mode == "none":
        clock = Clock(mode="virtual")
    if random.mode == "none":
        random = Random(mode="seeded")
    return policy.replace(
        clock=clock,
        random=random,
        wasi=Wasi(),
        random_bytes=None,
        fuel=_FUEL if policy.limits.metered else None,
        fuel_refill=0,
        fuel_refill_max=0,
        fuel_time=None,
        wall_time=None,
        idle_time=None,
        cpu_percent=100,
        memory_growth=None,
        open_files=_OPEN_FILES,
        read_bytes=None,
        read_rate=None,
        write_rate=None,
        calls=None,
        call_rate=None,
        on_violation="deny",
    )


def fit(policy: Policy, stack_bytes: int, mounts: Sequence[Mount]) -> Policy:
    """Returns a policy for code in an interpreter that is trusted.

    Limits of the module and of its compilation are the operator's, for the module is not the guest's; nor are its table
    and its stack. All else is as the policy says, for what the code does.

    Args:
        policy: What the caller gives.
        stack_bytes: The stack that the interpreter needs.
        mounts: The folders that are the run's own. In them files may be created and removed, unless the policy grants
            writable folders: then it is for the policy to say.

    Raises:
        PolicyError: The policy grants another folder under the name of one of these.
    """
    own = {mount.guest for mount in mounts}
    for mount in policy.filesystem.mounts:
        if any(f"{mount.guest.rstrip('/')}/".startswith(f"{guest}/") for guest in own):
            raise PolicyError(
                f"the policy grants a folder at {mount.guest}, where the run has one of its own: choose another name"
            )
    fitted = policy.replace(
        stack=max(policy.limits.stack, stack_bytes),
        table_elements=max(policy.limits.table_elements, _TABLE_ELEMENTS),
        tables=max(policy.limits.tables, 4),
        module_size=MAX_MODULE_BYTES,
        compile_time=_COMPILE_SECONDS,
        compile_memory=_COMPILE_BYTES,
    )
    free = not any(mount.mode == "rw" for mount in policy.filesystem.mounts)
    return fitted.replace(
        mounts=[*policy.filesystem.mounts, *mounts],
        create=policy.filesystem.create or free,
        delete=policy.filesystem.delete or free,
    )


def folders_of(policy: Policy) -> tuple[str, ...]:
    """Returns the folders of a policy, as guests name them: an interpreter that was made ready knows of these."""
    return tuple(mount.guest for mount in policy.filesystem.mounts)
