"""Types by name, for annotations in code that uses Stockade: what its functions take and return."""

from stockade._bytes import BytesLike
from stockade._json import Json
from stockade.execution import Argument, AsyncStdin, OnOutput, OnOutputAsync, OnProgress, Returns, Stdin
from stockade.modules import Source
from stockade.policy import PolicyChanges, PolicyLike
from stockade.report import Value

__all__ = [
    "Argument",
    "AsyncStdin",
    "BytesLike",
    "Json",
    "OnOutput",
    "OnOutputAsync",
    "OnProgress",
    "PolicyChanges",
    "PolicyLike",
    "Returns",
    "Source",
    "Stdin",
    "Value",
]
