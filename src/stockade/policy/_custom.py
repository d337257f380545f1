"""Capabilities that an embedder makes up, and its host functions ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, TypeAlias, cast

import msgspec

from stockade.errors import PolicyError
from stockade.policy._fields import Kind, Part, Plain, Text, TextsByName, each, places
from stockade.policy._units import shown

if TYPE_CHECKING:
    from stockade.policy._frozen import FrozenDict

__all__ = ["CUSTOM", "Amount", "Custom", "grants"]


class Amount(Part, frozen=True, forbid_unknown_fields=True):
    """A granted amount, and the bounds within which it makes sense.

    Attributes:
        value: How much is granted.
        min: The least that may be asked for.
        max: The most that may ever be granted.
    """

    PATH: ClassVar = "custom"

    value: float
    min: float
    max: float

    def __post_init__(self) -> None:
        for name in ("value", "min", "max"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= _MAX:
                raise PolicyError(f"{name} is {shown(number)}: it must be a number between -2^53 and 2^53")
            msgspec.structs.force_setattr(self, name, float(number))
        if not self.min <= self.value <= self.max:
            raise PolicyError(
                f"value is {self.value:,g}: it must be between min and max, {self.min:,g} and {self.max:,g}"
            )


_MAX = 2.0**53

Custom: TypeAlias = bool | Amount | str | tuple[str, ...]
"""A custom capability: on or off, an amount, a text, or a list of texts."""

_TEXT = Text(check=lambda _: True)


class _Capability(Kind):
    """A value of a custom capability."""

    def read(self, path: str, value: object, base: object = None) -> object:  # noqa: ARG002 - for parts
        if isinstance(value, Mapping):
            if set(value) != {"value", "min", "max"}:
                raise PolicyError(f"{path} is {shown(value)}: a number has value, min and max, and nothing else")
            try:
                return Amount(**value)
            except PolicyError as problem:
                raise PolicyError(f"{path}: {problem}") from None
        return self.settle(path, value)

    def settle(self, path: str, value: object) -> Custom:
        if isinstance(value, Mapping):
            return cast("Custom", self.read(path, value))
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise PolicyError(
                f"{path} is {shown(value)}: a number needs bounds, such as {{ value = 4, min = 1, max = 8 }}"
            )
        if isinstance(value, list | tuple):
            return tuple(dict.fromkeys(each(_TEXT.settle, places(path, value))))
        if isinstance(value, bool | Amount):
            return value
        if not isinstance(value, str):
            raise PolicyError(f"{path} is {shown(value)}: it must be {self.allowed()}")
        return _TEXT.settle(path, value)

    def write(self, value: object) -> Plain:
        if isinstance(value, Amount):
            return {name: _plain_number(getattr(value, name)) for name in ("value", "min", "max")}
        return list(value) if isinstance(value, tuple) else value  # type: ignore[return-value]

    def schema(self) -> dict[str, Plain]:
        number: dict[str, Plain] = {"type": "number", "minimum": -_MAX, "maximum": _MAX}
        told = {
            "value": "How much is granted.",
            "min": "The least that may be asked for.",
            "max": "The most that may ever be granted.",
        }
        return {
            "anyOf": [
                {"type": "boolean"},
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                {
                    "type": "object",
                    "properties": {name: {"description": text, **number} for name, text in told.items()},
                    "required": ["value", "min", "max"],
                    "additionalProperties": False,
                },
            ]
        }

    def allowed(self) -> str:
        return "true or false, text, a list of texts, or a table of value, min and max"


def _plain_number(number: float) -> int | float:
    return int(number) if number.is_integer() else number


CUSTOM = TextsByName("capabilities", Text("a name"), _Capability())


def grants(custom: FrozenDict[Custom], name: str, asked: bool | float | str = True) -> bool:
    """Whether a custom capability covers what is asked for; one that is not set covers nothing.

    Args:
        custom: The custom capabilities of a policy.
        name: Name of the capability.
        asked: For one that is on or off, True; for an amount, how much; for a text or list, one of the texts.
    """
    granted = custom.get(name, False)
    if isinstance(granted, bool):
        return granted and asked is True
    if isinstance(granted, Amount):
        is_number = isinstance(asked, int | float) and not isinstance(asked, bool)
        return is_number and granted.min <= asked <= granted.value  # type: ignore[operator]
    return isinstance(asked, str) and (asked == granted if isinstance(granted, str) else asked in granted)
