"""What looks for something in a stream: where it is, and what must be kept until more has come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Finder", "Hold", "Kind", "Span"]

Kind: TypeAlias = Literal["secret", "key", "personal", "entropy"]


class Span(NamedTuple):
    """Something that was found.

    Attributes:
        start: Where it begins.
        end: Where it ends.
        kind: What it is.
        detector: What has found it.
        is_piece: Whether it is a piece of something longer, which may go on behind it.
    """

    start: int
    end: int
    kind: Kind
    detector: str
    is_piece: bool = False


class Hold(NamedTuple):
    """What must be kept of data of which more may come.

    Attributes:
        keep_from: From where on it must be seen again with what comes.
        release_to: Up to where it may leave already.
    """

    keep_from: int
    release_to: int


class Finder(Protocol):
    """Looks for something."""

    def find(self, data: bytes, *, is_last: bool) -> Iterable[Span]:
        """Returns what is in data, in no order.

        Args:
            data: The data.
            is_last: Whether nothing comes behind it.
        """

    def hold(self, data: bytes) -> Hold:
        """Returns what must be kept of data, where more may come behind it.

        Args:
            data: The data.
        """
