"""What has a secret, and is never written anywhere."""

from __future__ import annotations

from typing import NoReturn, Self

__all__ = ["NeverWritten"]


class NeverWritten:
    """What cannot be pickled, and of which there are no copies."""

    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled: make it where it is used")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self
