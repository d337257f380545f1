"""What the embedder lends to guests: functions of its own."""

from stockade.host._functions import F32, F64, I32, I64, U32, U64, BoundFunction, HostFunctionFailed, HostFunctions
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
]
