"""What can become of a request, as guests are told it."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stockade.report import Violation

__all__ = ["FailureCode", "RequestFailed"]


class FailureCode(IntEnum):
    """Why there is no answer. The numbers are what compiled guests are given."""

    DENIED = -1
    """The policy does not permit the request."""
    NAME = -2
    """The name of the host stands for no address."""
    CONNECT = -3
    """There is no connection, or it broke."""
    TLS = -4
    """The host did not prove that it is the one that it should be."""
    TIMEOUT = -5
    """It took too long."""
    LIMIT = -6
    """A limit of the policy is reached."""
    INVALID = -7
    """The request is none that can be sent."""
    PROTOCOL = -8
    """The answer is none, or leads around in circles."""
    HANDLE = -9
    """There is no such response: it was closed, or never was."""
    UNAVAILABLE = -10
    """This installation has no HTTP client."""


class RequestFailed(Exception):  # noqa: N818 - says what happened; it is told to the guest
    """A request has come to nothing.

    Attributes:
        code: Why.
        violation: What the policy had against it; None where that was not the reason.
    """

    def __init__(self, code: FailureCode, reason: str, violation: Violation | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.violation = violation
