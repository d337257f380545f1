"""What callers give, looked at before anything runs: a mistake is told by the name of its argument."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from stockade._text import printable
from stockade.errors import UsageError
from stockade.policy import place_in_python

if TYPE_CHECKING:
    from collections.abc import Mapping

NOWHERE: Final[Mapping[str, str]] = MappingProxyType({})

__all__ = ["check_count", "check_keywords", "check_text", "check_whole"]


def check_count(name: str, number: object, least: int, most: int | None = None) -> None:
    """Checks that an argument is a whole number within its bounds.

    Args:
        name: What the argument is called.
        number: What was given.
        least: The least that it may be.
        most: The most; None where there is no such bound.

    Raises:
        UsageError: It is not.
    """
    if type(number) is not int or number < least or (most is not None and number > most):
        bounds = f"from {least} on" if most is None else f"from {least} to {most}"
        raise UsageError(f"{name} is {printable(repr(number))}: it must be a whole number {bounds}")


def check_whole(name: str, number: object) -> None:
    """Checks that an argument is a whole number.

    Args:
        name: What the argument is called.
        number: What was given.

    Raises:
        UsageError: It is not.
    """
    if not isinstance(number, int) or isinstance(number, bool):
        raise UsageError(f"{name} is {printable(repr(number))}: it must be a whole number")


def check_keywords(function: str, unknown: Mapping[str, object], places: Mapping[str, str] = NOWHERE) -> None:
    """Refuses keywords that a function does not take, and says where the first belongs, if that is known.

    Args:
        function: What the function is called.
        unknown: The keywords that it does not take.
        places: Which calls take keywords that this one does not; else they may belong in a policy.

    Raises:
        TypeError: There are any.
    """
    for name in unknown:
        hint = f": give it to {places[name]}" if name in places else ""
        if not hint and (place := place_in_python(name)):
            hint = f": it belongs to the policy, as in policy={place}"
        raise TypeError(f"{function} got an unexpected keyword argument {name!r}{hint}")


def check_text(name: str, text: object) -> None:
    """Checks that an argument is text.

    Args:
        name: What the argument is called.
        text: What was given.

    Raises:
        UsageError: It is not.
    """
    if not isinstance(text, str):
        raise UsageError(f"{name} is {type(text).__name__}: it must be text")
