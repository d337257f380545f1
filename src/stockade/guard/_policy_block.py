"""The policy as numbers in the guard's state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stockade._pages import PAGE_BYTES
from stockade._wasi import ERRNO, WASI
from stockade.guard._granted import granted_paths
from stockade.guard._source import guard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stockade.guard._woven import Woven
    from stockade.policy import Limits, Policy

__all__ = ["heap_bytes", "memories_bytes", "policy_block", "rates_of"]

_UNLIMITED: Final = 2**64 - 1
_NANOSECONDS: Final = 1_000_000_000


def rates_of(limits: Limits) -> Mapping[str, int]:
    """Returns what may go in a second, by the names of the guard's tokens; nothing where the policy does not say."""
    pages = limits.memory_growth
    rates = {
        "call_tokens": limits.call_rate,
        "read_tokens": limits.read_rate,
        "write_tokens": limits.write_rate,
        "growth_tokens": None if pages is None else pages * PAGE_BYTES,
    }
    return {name: rate for name, rate in rates.items() if rate is not None}


def heap_bytes(woven: Woven, limits: Limits) -> int:
    """Returns how large the heap may become in which the engine keeps a guest's objects.

    It has what the memories leave. Where memories grow, neither could have what the other has not come to use, for the
    engine does not tell how large the heap is; so it is given a share: half, or an eighth for exceptions alone.
    """
    if not woven.collects:
        return 0
    left = max(0, limits.memory - woven.initial_memory_bytes)
    if not (woven.grown_memories or woven.grown_tables):
        return left
    return min(left, limits.memory // (8 if woven.throws_only else 2))


def memories_bytes(woven: Woven, limits: Limits) -> int:
    """Returns how many bytes memories and tables may come to have together."""
    return limits.memory - heap_bytes(woven, limits) if woven.grown_memories or woven.grown_tables else limits.memory


def policy_block(policy: Policy, woven: Woven, calls: Sequence[str], mounts: int, *, look_first: bool) -> bytes:
    """Returns the policy as the guard reads it: the state with which every run under it begins.

    Args:
        policy: The policy.
        woven: What the weaver tells of the module.
        calls: The WASI calls that the guest imports.
        mounts: How many folders it is granted: those of the policy, in their order, or none.
        look_first: Whether the guard has to look at each path before it opens it, for nobody lets go what waits at a
            FIFO.
    """
    layout = guard().layout
    constants = layout.constants
    limits, filesystem, clock, random = policy.limits, policy.filesystem, policy.clock, policy.random
    # A refused call that is only noted is made all the same: "none" then tells no more than a made-up clock.
    clock_mode = "virtual" if clock.mode == "none" and policy.on_violation == "audit" else clock.mode
    resolution = clock.resolution if clock.mode == "coarse" else max(clock.step, 1e-9)
    on_memory = 0
    if limits.on_memory_denied == "stop":
        on_memory = constants["STOP_MEMORY"]
    elif policy.on_violation == "stop":
        on_memory = constants["STOP_DENIED"]
    rates = rates_of(limits)
    # A second's worth may go at once, so that the first calls need not be looked at.
    credit = min(_UNLIMITED if limit is None else limit for limit in (limits.calls, limits.call_rate))
    fields: dict[str, int | None] = {
        **dict.fromkeys(("call_tokens", "read_tokens", "write_tokens", "growth_tokens")),
        **rates,
        "credit": credit,
        "calls_left": None if limits.calls is None else limits.calls - credit,
        "call_tokens": None if limits.call_rate is None else limits.call_rate - credit,
        "read_left": limits.read_bytes,
        "write_left": limits.write_bytes,
        "created_left": limits.files_created,
        "random_left": limits.random_bytes,
        "memory_limit": memories_bytes(woven, limits),
        "memory_used": woven.initial_memory_bytes,
        "table_limit": limits.table_elements,
        "table_used": woven.initial_table_elements,
        "calls_limit": limits.calls,
        "call_rate": limits.call_rate,
        "open_limit": limits.open_files,
        "created_limit": limits.files_created,
        "file_size_limit": limits.file_size,
        "read_limit": limits.read_bytes,
        "write_limit": limits.write_bytes,
        "read_rate": limits.read_rate,
        "write_rate": limits.write_rate,
        "random_limit": limits.random_bytes,
        "growth_rate": rates.get("growth_tokens"),
        "clock_resolution": round(resolution * _NANOSECONDS),
        "clock_step": round(clock.step * _NANOSECONDS),
        "clock_start": 0 if clock.mode == "none" else round(clock.start * _NANOSECONDS),
        "clock_mode": constants[f"CLOCK_{clock_mode.upper()}"],
        "random_mode": constants["RANDOM_NATIVE" if random.mode == "full" else "RANDOM_SEEDED"],
        "random_state": random.seed,
        "on_violation": constants[policy.on_violation.upper()],
        "on_rate": constants[limits.on_rate.upper()],
        "on_memory": on_memory,
        "may_create": filesystem.create,
        "may_delete": filesystem.delete,
        "may_link": filesystem.symlinks,
        "has_clock": not {"clock_time_get", "poll_oneoff"}.isdisjoint(calls),
        "look_first": look_first,
        "shares_heap": woven.shares_heap,
        "mounts": mounts,
    }
    block = bytearray(layout.size)
    for name, value in fields.items():
        layout.write(block, name, _UNLIMITED if value is None else int(value))
    refused = set(policy.wasi.refused())
    for section, group in ((clock, "clock"), (random, "random")):
        if section.mode == "none":
            refused |= {call.name for call in WASI if call.group == group}
    for call in WASI:
        if call.name in refused:
            block[layout.offsets["rules"] - layout.block + call.number] = ERRNO[policy.wasi.errno]
    # Behind the state: what it leads to there, no run writes anew.
    lists = granted_paths(filesystem.mounts[:mounts], layout.offsets["room"])
    if lists:
        layout.write(block, "granted", layout.offsets["room"])
    return bytes(block) + lists
