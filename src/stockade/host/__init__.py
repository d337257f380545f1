"""What the embedder lends to guests: functions of its own."""

from stockade.host._functions import F32, F64, I32, I64, U32, U64, HostFunctionFailed, HostFunctions
from stockade.host._guest import CapabilityMissing, GuestMemory, HostCall

__all__ = [
    "F32",
    "F64",
    "I32",
    "I64",
    "U32",
    "U64",
    "CapabilityMissing",
    "GuestMemory",
    "HostCall",
    "HostFunctionFailed",
    "HostFunctions",
]
