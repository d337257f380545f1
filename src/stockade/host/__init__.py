"""Functions of the host that guests may call."""

from stockade.host._functions import (
    F32,
    F64,
    I32,
    I64,
    U32,
    U64,
    BoundFunction,
    HostFunctionFailed,
    HostFunctions,
    annotated,
)
from stockade.host._guest import CapabilityMissing, GuestMemory, HaltedGuest, HostCall

__all__ = [
    "F32",
    "F64",
    "I32",
    "I64",
    "U32",
    "U64",
    "BoundFunction",
    "CapabilityMissing",
    "GuestMemory",
    "HaltedGuest",
    "HostCall",
    "HostFunctionFailed",
    "HostFunctions",
    "annotated",
]
