"""What callers may give for the fields of a policy, for type checkers: what a policy then keeps is narrower.

Wherever a document takes a unit, Python does, too: `"64MiB"`, `"2s"`, a `timedelta`; a path is text or a `Path`. A test
holds these against the fields themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from stockade.policy._custom import Custom
    from stockade.policy._gate import GateRules
    from stockade.policy._limits import Limits
    from stockade.policy._network import HostRule, Network, PortRange
    from stockade.policy._rights import Clock, Environment, Features, Filesystem, Mount, Process, Random, Wasi
    from stockade.policy._structure import ModuleLimits

__all__ = [
    "ClockFields",
    "EnvironmentFields",
    "FeaturesFields",
    "FilesystemFields",
    "GateFields",
    "LimitsFields",
    "ModuleLimitsFields",
    "NetworkFields",
    "PolicyChanges",
    "PolicyFields",
    "ProcessFields",
    "RandomFields",
    "WasiFields",
]

Count: TypeAlias = "int | str"
Size: TypeAlias = "int | str"
Seconds: TypeAlias = "float | str | timedelta"
Ports: TypeAlias = "int | str | PortRange"


class LimitsFields(TypedDict, total=False):
    """What `Limits` takes."""

    fuel: Count | None
    fuel_refill: Count
    fuel_refill_interval: Seconds
    fuel_refill_max: Count
    fuel_time: Seconds | None
    wall_time: Seconds | None
    idle_time: Seconds | None
    cpu_percent: Count
    memory: Size
    memory_growth: Count | None
    on_memory_denied: Literal["fail", "stop"]
    table_elements: Count
    stack: Size
    instances: Count
    memories: Count
    tables: Count
    module_size: Size
    compile_time: Seconds
    compile_memory: Size
    compile_process: Literal["auto", "always", "never"]
    stdout: Size
    stderr: Size
    open_files: Count
    files_created: Count | None
    file_size: Size | None
    read_bytes: Size | None
    write_bytes: Size | None
    read_rate: Size | None
    write_rate: Size | None
    random_bytes: Size | None
    calls: Count | None
    call_rate: Count | None
    on_rate: Literal["wait", "refuse"]
    connections: Count
    requests: Count | None
    request_time: Seconds | None
    sent_bytes: Size | None
    received_bytes: Size | None
    network_rate: Size | None


class FilesystemFields(TypedDict, total=False):
    """What `Filesystem` takes."""

    mounts: Sequence[Mount]
    create: bool
    delete: bool
    symlinks: bool


class _EnvironmentFields(TypedDict, total=False):
    names: Sequence[str]
    secrets: Literal["named", "never"]
    set: Mapping[str, str]


class EnvironmentFields(_EnvironmentFields, total=False):
    """What `Environment` takes."""

    mode: Literal["none", "allow", "deny", "full"]


class _ClockFields(TypedDict, total=False):
    resolution: Seconds
    start: Seconds
    step: Seconds


class ClockFields(_ClockFields, total=False):
    """What `Clock` takes."""

    mode: Literal["real", "coarse", "virtual", "none"]


class _RandomFields(TypedDict, total=False):
    seed: Count


class RandomFields(_RandomFields, total=False):
    """What `Random` takes."""

    mode: Literal["none", "seeded", "full"]


class _NetworkFields(TypedDict, total=False):
    hosts: Sequence[HostRule]
    ports: Sequence[Ports]


class NetworkFields(_NetworkFields, total=False):
    """What `Network` takes."""

    mode: Literal["none", "loopback", "hosts", "ports", "full"]


class _ProcessFields(TypedDict, total=False):
    commands: Sequence[str]


class ProcessFields(_ProcessFields, total=False):
    """What `Process` takes."""

    mode: Literal["none", "commands", "full"]


class GateFields(TypedDict, total=False):
    """What `GateRules` takes."""

    registered: Literal["allow", "warn", "redact", "quarantine", "block"]
    keys: Literal["allow", "warn", "redact", "quarantine", "block"]
    personal: Literal["allow", "warn", "redact", "quarantine", "block"]
    entropy: Literal["allow", "warn", "redact", "quarantine", "block"]
    channels: Sequence[str]


class ModuleLimitsFields(TypedDict, total=False):
    """What `ModuleLimits` takes."""

    functions: Count
    function_size: Size
    locals: Count
    types: Count
    imports: Count
    exports: Count
    globals: Count
    data_segments: Count
    element_segments: Count
    br_table: Count
    nesting: Count


class FeaturesFields(TypedDict, total=False):
    """What `Features` takes."""

    simd: bool
    relaxed_simd: bool
    tail_call: bool
    multi_memory: bool
    extended_const: bool
    exceptions: bool
    function_references: bool
    gc: bool
    memory64: bool
    threads: bool


class WasiFields(TypedDict, total=False):
    """What `Wasi` takes."""

    allow: Sequence[str]
    deny: Sequence[str]
    errno: Literal["notcapable", "perm", "nosys"]


class PolicyFields(TypedDict, total=False):
    """What `Policy` takes."""

    name: str
    on_violation: Literal["deny", "stop", "audit"]
    isolation: Literal["inprocess", "process"]
    limits: Limits
    filesystem: Filesystem
    environment: Environment
    clock: Clock
    random: Random
    network: Network
    process: Process
    gate: GateRules
    structure: ModuleLimits
    features: Features
    wasi: Wasi
    custom: Mapping[str, Custom | Sequence[str] | Mapping[str, float]]


class PolicyChanges(
    PolicyFields,
    LimitsFields,
    FilesystemFields,
    _EnvironmentFields,
    _ClockFields,
    _RandomFields,
    _NetworkFields,
    _ProcessFields,
    ModuleLimitsFields,
    FeaturesFields,
    WasiFields,
    total=False,
):
    """What `Policy.replace` takes: fields of the policy and of its parts, but for `mode`, which several parts have."""
