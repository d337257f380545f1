"""Functions of the host that guests may call."""

from stockade.host._functions import (
    F32,
    F64,
    HTTP_MODULE,
    I32,
    I64,
    MOST_TEXT_BYTES,
    U32,
    U64,
    BoundFunction,
    HostFunctionFailed,
    HostFunctions,
    Signature,
    ToldFailure,
    annotated,
)
from stockade.host._guest import CallRefused, CapabilityMissing, GuestMemory, HaltedGuest, HostCall, network_of

__all__ = [
    "F32",
    "F64",
    "HTTP_MODULE",
    "I32",
    "I64",
    "MOST_TEXT_BYTES",
    "U32",
    "U64",
    "BoundFunction",
    "CallRefused",
    "CapabilityMissing",
    "GuestMemory",
    "HaltedGuest",
    "HostCall",
    "HostFunctionFailed",
    "HostFunctions",
    "Signature",
    "ToldFailure",
    "annotated",
    "network_of",
]
