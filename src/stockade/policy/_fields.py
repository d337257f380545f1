"""What a field of a policy may be: the one place from which reading, checking, writing, schema and docs come.

Each field of a policy's parts has a `Kind`. Most follow from the annotation (a bool, a choice of words, a part);
numbers and lists say more in an `Annotated`. A kind knows how a value is read from a document, what is allowed, how it
is written back, and how JSON Schema says the same.
"""

from __future__ import annotations

import math
import os
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from functools import cache
from inspect import get_annotations
from typing import (
    TYPE_CHECKING,
    Annotated,
    ClassVar,
    Final,
    Literal,
    NamedTuple,
    TypeAlias,
    TypeVar,
    cast,
    get_args,
    get_origin,
)

import msgspec

from stockade._docstrings import attributes_told
from stockade._text import printable, quoted
from stockade.errors import PolicyError
from stockade.policy._frozen import FrozenDict
from stockade.policy._units import (
    UNLIMITED,
    parse_count,
    parse_rate,
    parse_seconds,
    parse_size,
    shown,
    write_rate,
    write_seconds,
    write_size,
)

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "ABOUT_SECONDS",
    "BYTES",
    "COUNT",
    "RATE",
    "SECONDS",
    "Choice",
    "Field",
    "Folder",
    "Items",
    "Kind",
    "Part",
    "Plain",
    "Quantity",
    "Section",
    "Text",
    "Texts",
    "TextsByName",
    "Unit",
    "closest",
    "each",
    "fields_of",
    "meant",
    "places",
    "suggestion",
]

_T = TypeVar("_T")

Plain: TypeAlias = "bool | int | float | str | list[Plain] | dict[str, Plain] | None"
"""The data of a document: what TOML, YAML and JSON have in common."""

_MAX_ITEMS = 10_000
"""Entries that a list or table of a policy may have."""


def closest(word: object, known: tuple[str, ...]) -> str:
    """Returns which of the known words was probably meant; "" where none is close."""
    from difflib import get_close_matches

    if not isinstance(word, str):
        return ""
    asked = word[:200].strip().lower()
    if (other := meant(asked)) in known:
        return other
    folded = {name.lower(): name for name in known}
    close = get_close_matches(asked, folded, n=1)
    return folded[close[0]] if close else ""


def meant(word: str) -> str:
    """Returns what a field is called that goes by this name elsewhere; "" where there is none."""
    return _MEANT.get(word, "")


_MEANT = {
    "timeout": "wall_time",
    "time_limit": "wall_time",
    "max_time": "wall_time",
    "deadline": "wall_time",
    "time": "wall_time",
    "wall": "wall_time",
    "idle_timeout": "idle_time",
    "cpu": "cpu_percent",
    "max_memory": "memory",
    "memory_limit": "memory",
    "max_fuel": "fuel",
    "gas": "fuel",
    "volumes": "mounts",
    "dirs": "mounts",
    "preopens": "mounts",
    "env": "environment",
    "fs": "filesystem",
    "net": "network",
    "syscalls": "wasi",
}
"""What things are called elsewhere; what is spelled much like that, as stdout is like timeout, is not meant."""


def suggestion(word: str, known: tuple[str, ...]) -> str:
    """Returns what to say of a word that is not known: what it is close to, or all that there is."""
    close = closest(word, known)
    return f"did you mean {close}?" if close else f"known are {', '.join(known)}"


def _hint(word: str, known: tuple[str, ...]) -> str:
    """Returns what to say of a key that is not known where it stands."""
    from stockade.policy._misplaced import place_in_document

    elsewhere = "" if closest(word, known) else place_in_document(word)
    return elsewhere or suggestion(word, known)


class Kind(ABC):
    """What a field may be."""

    def read(self, path: str, value: object, base: object = None) -> object:  # noqa: ARG002 - for parts
        """Reads a value of a document.

        Args:
            path: Where it stands, such as `limits.memory`.
            value: What stands there.
            base: What the policy that is extended has there.

        Raises:
            PolicyError: It is not allowed.
        """
        return self.settle(path, value)

    @abstractmethod
    def settle(self, path: str, value: object) -> object:
        """Checks a value given in Python, and returns it as it is kept.

        Raises:
            PolicyError: It is not allowed.
        """

    def write(self, value: object) -> Plain:
        """Returns a value as a document has it."""
        return value  # type: ignore[return-value]

    @abstractmethod
    def schema(self) -> dict[str, Plain]:
        """Returns the JSON Schema of what a document may have."""

    @abstractmethod
    def allowed(self) -> str:
        """Says in words what a document may have."""


class Flag(Kind):
    """True or false."""

    def settle(self, path: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise PolicyError(f"{path} is {shown(value)}: it must be true or false")
        return value

    def schema(self) -> dict[str, Plain]:
        return {"type": "boolean"}

    def allowed(self) -> str:
        return "true or false"


class Text(Kind):
    """Text in one line that UTF-8 can hold."""

    def __init__(self, what: str = "text", *, check: Callable[[str], bool] = bool, example: str = "") -> None:
        self.what, self._check, self.example = what, check, example

    def settle(self, path: str, value: object) -> str:
        if not isinstance(value, str) or not self._check(value) or "\0" in value or not _encodable(value):
            raise PolicyError(f"{path} is {shown(value)}: it must be {self.allowed()}")
        return value

    def schema(self) -> dict[str, Plain]:
        return {"type": "string"}

    def allowed(self) -> str:
        return f"{self.what}, such as {self.example}" if self.example else self.what


class Folder(Text):
    """The path of a folder, as text or as anything that has a path."""

    def settle(self, path: str, value: object) -> str:
        return super().settle(path, os.fsdecode(value) if isinstance(value, os.PathLike) else value)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Choice(Kind):
    """One of some words."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words

    def settle(self, path: str, value: object) -> str:
        if not isinstance(value, str) or value not in self.words:
            close = closest(value, self.words)
            hint = f'; did you mean "{close}"?' if close else ""
            raise PolicyError(f"{path} is {shown(value)}: it must be {self.allowed()}{hint}")
        return value

    def schema(self) -> dict[str, Plain]:
        return {"enum": list(self.words)}

    def allowed(self) -> str:
        *others, last = (f'"{word}"' for word in self.words)
        return f"{', '.join(others)} or {last}"


class Unit(NamedTuple):
    """How quantities of one sort are read and written.

    Attributes:
        name: What a bare number counts.
        parse: Reads one.
        write: Writes one.
        pattern: What its text looks like, for JSON Schema.
    """

    name: str
    parse: Callable[[object], int | float | None]
    write: Callable[..., str | int | float]
    pattern: str


_NUMBER = r"^\s*[0-9][0-9_]*(\.[0-9]+)?\s*"
_SIZE = r"(B|kB|KB|MB|GB|KiB|MiB|GiB)?"
BYTES: Final = Unit("bytes", parse_size, write_size, _NUMBER + _SIZE + r"\s*$")
RATE: Final = Unit("bytes per second", parse_rate, write_rate, _NUMBER + _SIZE + r"\s*(/s)?$")
_TIME = r"(s|ms|us|m|min|h)"
SECONDS: Final = Unit("seconds", parse_seconds, write_seconds, _NUMBER + _TIME + r"?\s*$")
COUNT: Final = Unit("", parse_count, lambda count: count, _NUMBER + "$")
ABOUT_SECONDS: Final = _NUMBER.replace("^", "^~", 1) + _TIME + r"\s*$"
"""What an estimate looks like, such as `~2s`; its unit must be named, for where it stands a bare number is none."""


class Quantity(Kind):
    """A number with bounds, written with a unit or bare.

    Args:
        unit: What it counts.
        least: The least that is allowed.
        most: The most that is allowed.
        unlimited: Whether None, in documents "unlimited", is allowed.
        what: What it counts, where the unit does not say.
    """

    def __init__(self, unit: Unit, least: float, most: float, *, unlimited: bool = False, what: str = "") -> None:
        self.unit, self.least, self.most, self.unlimited = unit, least, most, unlimited
        self.what = what or unit.name
        self.whole = unit is not SECONDS

    def read(self, path: str, value: object, base: object = None) -> object:  # noqa: ARG002 - for parts
        if isinstance(value, float) and not math.isfinite(value):
            raise PolicyError(f"{path} is {value}: it must be {self.allowed()}")
        try:
            number = self.unit.parse(value)
            if number is None and not self.unlimited:
                raise ValueError("it cannot be unlimited: give a limit")
        except ValueError as problem:
            raise PolicyError(f"{path}: {problem}") from None
        return self.settle(path, number)

    def settle(self, path: str, value: object) -> int | float | None:
        if value is None and self.unlimited:
            return None
        if isinstance(value, str):
            # With a unit, as documents have it.
            return cast("int | float | None", self.read(path, value))
        if isinstance(value, timedelta) and self.unit is SECONDS:
            value = value.total_seconds()
        infinite = isinstance(value, float) and not math.isfinite(value)
        fits = isinstance(value, int) or (isinstance(value, float) and not self.whole)
        if isinstance(value, bool) or not fits or infinite:
            also = " or unlimited (None)" if self.unlimited else ""
            raise PolicyError(f"{path} is {shown(value)}: it must be a {'whole ' * self.whole}number{also}")
        assert isinstance(value, int | float)
        if not self.least <= value <= self.most:
            figure = f"{value:,}" if abs(value) < 10**30 else shown(value)
            only = f"{self.least:,}" if self.least == self.most else f"between {self.least:,} and {self.most:,}"
            raise PolicyError(f"{path} is {figure}: it must be {only}{self._unit_meant(value)}")
        return value if self.whole else float(value) + 0.0  # not -0.0, which is equal and written otherwise

    def _unit_meant(self, value: float) -> str:
        """Asks whether a number of bytes that is too small was meant in a larger unit."""
        if self.unit is not BYTES or self.least < 1 << 10 or not 0 < value <= 1 << 10:
            return ""
        for unit, factor in (("MiB", 1 << 20), ("KiB", 1 << 10)):
            if self.least <= value * factor <= self.most:
                return f'; did you mean "{value}{unit}"?'
        return ""

    def write(self, value: object) -> Plain:
        return UNLIMITED if value is None else self.unit.write(value)

    def schema(self) -> dict[str, Plain]:
        number: dict[str, Plain] = {
            "type": "integer" if self.whole else "number",
            "minimum": self.least,
            "maximum": self.most,
        }
        text: dict[str, Plain] = {"type": "string", "pattern": self.unit.pattern}
        unlimited: list[Plain] = [{"const": UNLIMITED}] if self.unlimited else []
        return {"anyOf": [number, text, *unlimited]}

    def allowed(self) -> str:
        least, most = (self._bound(bound) for bound in (self.least, self.most))
        span = f"{least} to {most}" if least != most else f"{least} only"
        has_unit = most[-1].isalpha() and self.what == self.unit.name
        what = "" if has_unit else self.what
        return f"{span} {what}".rstrip() + (', or "unlimited"' if self.unlimited else "")

    def _bound(self, bound: float) -> str:
        if bound >= _HUGE or (bound and not self.whole and not 0.001 <= bound <= _HUGE):
            return _power(int(bound)) if self.whole else f"{bound:.3g}"
        written = self.unit.write(int(bound) if self.whole else bound)
        return written if isinstance(written, str) else f"{written:,.0f}"


_HUGE = 1 << 40


def _power(value: int) -> str:
    for number, text in ((value, ""), (value + 1, " - 1")):
        if number.bit_count() == 1:
            return f"2^{number.bit_length() - 1}{text}"
    return f"{value:,}"


def each(read: Callable[[str, object], _T], entries: Iterable[tuple[str, object]]) -> list[_T]:
    """Reads each entry, and tells all that is wrong with them.

    Raises:
        PolicyError: One or more are not allowed.
    """
    kept: list[_T] = []
    problems: list[str] = []
    for name, entry in entries:
        try:
            kept.append(read(name, entry))
        except PolicyError as problem:
            problems += problem.problems
    if problems:
        raise PolicyError.several(problems)
    return kept


def places(path: str, entries: Iterable[object]) -> Iterator[tuple[str, object]]:
    """Returns each entry of a list with where it stands, such as `wasi.allow[2]`."""
    return ((f"{path}[{place}]", entry) for place, entry in enumerate(entries))


class Texts(Kind):
    """A list of texts without repetition.

    Args:
        what: What each of them is.
        item: What each may be.
    """

    def __init__(self, what: str, item: Kind) -> None:
        self.what, self.item = what, item

    def settle(self, path: str, value: object) -> tuple[object, ...]:
        if not isinstance(value, list | tuple) or len(value) > _MAX_ITEMS:
            raise PolicyError(f"{path} is {shown(value)}: it must be {self.allowed()}")
        return tuple(dict.fromkeys(each(self.item.settle, places(path, value))))

    def write(self, value: object) -> Plain:
        assert isinstance(value, tuple)
        return [self.item.write(entry) for entry in value]

    def schema(self) -> dict[str, Plain]:
        return {"type": "array", "items": self.item.schema(), "maxItems": _MAX_ITEMS}

    def allowed(self) -> str:
        return f"a list of {self.what}"


class SomeOrAll(Texts):
    """A list of texts, or none, which stands for all there are."""

    def settle(self, path: str, value: object) -> tuple[object, ...] | None:  # type: ignore[override]
        return None if value is None else tuple(sorted(map(str, super().settle(path, value))))

    def write(self, value: object) -> Plain:
        return None if value is None else super().write(value)


class TextsByName(Kind):
    """A table of values by their names.

    Args:
        what: What it holds, in the plural.
        name: What each name may be.
        item: What each value may be.
    """

    def __init__(self, what: str, name: Kind, item: Kind) -> None:
        self.what, self.name, self.item = what, name, item

    def settle(self, path: str, value: object) -> FrozenDict[object]:
        return self._read(path, value, self.item.settle)

    def read(self, path: str, value: object, base: object = None) -> object:  # noqa: ARG002 - for parts
        return self._read(path, value, self.item.read)

    def _read(self, path: str, value: object, item: Callable[[str, object], object]) -> FrozenDict[object]:
        if not isinstance(value, Mapping) or len(value) > _MAX_ITEMS:
            raise PolicyError(f"{path} is {shown(value)}: it must be {self.allowed()}")

        def pair(name: str, entry: object) -> tuple[str, object]:
            self.name.settle(f"a name in {path}", name)
            return name, item(f"{path}.{printable(name)}", entry)

        return FrozenDict(each(pair, value.items()))

    def write(self, value: object) -> Plain:
        assert isinstance(value, dict)
        return {name: self.item.write(entry) for name, entry in value.items()}

    def schema(self) -> dict[str, Plain]:
        return {"type": "object", "additionalProperties": self.item.schema()}

    def allowed(self) -> str:
        return f"a table of {self.what}"


class _PartType(msgspec.StructMeta):
    """The type of parts: says of a field that there is not where it is to be found."""

    # Type checkers know the fields from the parts themselves.
    if not TYPE_CHECKING:

        def __call__(cls, *args: object, **given: object) -> object:  # noqa: N805 - of a type
            try:
                return super().__call__(*args, **given)
            except TypeError:
                for name in given:
                    if name not in cls.__struct_fields__:
                        raise TypeError(_no_such_field(cls, name)) from None
                raise


def _no_such_field(part: type[Part], name: str) -> str:
    from stockade.policy._misplaced import place_in_python

    known = tuple(fields_of(part))
    elsewhere = "" if closest(name, known) else place_in_python(name)
    return f"{part.__name__} has no field {name}: {f'write {elsewhere}' if elsewhere else suggestion(name, known)}"


class Part(msgspec.Struct, metaclass=_PartType, frozen=True, forbid_unknown_fields=True):
    """A part of a policy: every field is checked when it is made, in Python as from a document."""

    PATH: ClassVar[str]
    """Where it stands in a document."""

    FOLLOW_MODE: ClassVar[tuple[str, ...]] = ()
    """Fields that mean something under one mode only: a document that sets the mode sets them anew."""

    def __post_init__(self) -> None:
        for field in fields_of(type(self)).values():
            given: object = getattr(self, field.name)
            kept = field.kind.settle(f"{self.PATH}.{field.name}" if self.PATH else field.name, given)
            if kept is not given:
                msgspec.structs.force_setattr(self, field.name, kept)

    def to_document(self) -> dict[str, Plain]:
        """Returns the part as plain data, as a document has it."""
        return {field.name: field.kind.write(getattr(self, field.name)) for field in fields_of(type(self)).values()}

    @classmethod
    def spelled_out(cls, given: dict[str, object]) -> dict[str, object]:
        """Returns the fields that somebody sets, with what is short for several of them written as those.

        Args:
            given: The fields by their names: only those that are set, for what is short for others sets them anew.

        Raises:
            PolicyError: It cannot be told what is meant.
        """
        return given

    @classmethod
    def from_document(cls, path: str, table: object, base: Self | None = None) -> Self:
        """Reads the part from a document.

        Args:
            path: Where it stands.
            table: What stands there.
            base: What is changed; by default, the defaults.

        Raises:
            PolicyError: It is not allowed; all that is wrong with it is told.
        """
        fields = fields_of(cls)
        required = [field.name for field in fields.values() if field.required]
        if not isinstance(table, Mapping):
            keys = f" with {', '.join(required)}" if required else ""
            example = ""
            if isinstance(table, str) and len(required) == 1:
                example = f", as in {{ {required[0]} = {quoted(table)} }}"
            raise PolicyError(f"{path} is {shown(table)}: it must be a table{keys}{example}")
        problems: list[str] = []
        values: dict[str, object] = {}
        dot = f"{path}." if path else ""
        unread = looks_like_another = False
        for key, value in table.items():
            if key not in fields:
                name = printable(key) if isinstance(key, str) else shown(key)
                problems.append(f"{dot}{name} is not known: {_hint(str(key), tuple(fields))}")
                looks_like_another = looks_like_another or bool(closest(key, tuple(fields)))
                continue
            if value is None:
                problems.append(
                    f"{dot}{key} is null: it must be {fields[key].kind.allowed()}; leave it out for the default"
                )
                unread = True
                continue
            try:
                values[key] = fields[key].kind.read(f"{dot}{key}", value, None if base is None else getattr(base, key))
            except PolicyError as problem:
                problems += problem.problems
                unread = True
        missing = [
            f"{path} has no {name}: it must be {fields[name].kind.allowed()}" for name in required if name not in table
        ]
        problems += missing
        try:
            values = cls.spelled_out(values)
        except PolicyError as problem:
            problems += problem.problems
            unread = True
        # What does not go together is told beside the rest, where it can be known.
        if unread or missing or looks_like_another:
            raise PolicyError.several(problems)
        try:
            part = cls._made_of(path, values, base)
        except PolicyError as problem:
            raise PolicyError.several([*problems, *problem.problems]) from None
        if problems:
            raise PolicyError.several(problems)
        return part

    @classmethod
    def _made_of(cls, path: str, values: dict[str, object], base: Self | None) -> Self:
        if base is None:
            try:
                return cls(**values)
            except PolicyError as problem:  # told without the place in a list
                raise PolicyError.several([f"{path}: {text}" for text in problem.problems]) from None
        if "mode" in values:
            fields = fields_of(cls)
            values = {**{name: fields[name].default for name in cls.FOLLOW_MODE}, **values}
        return msgspec.structs.replace(base, **values)


class Section(Kind):
    """A part of a policy as a table of a document."""

    def __init__(self, part: type[Part]) -> None:
        self.part = part

    def read(self, path: str, value: object, base: object = None) -> object:
        assert base is None or isinstance(base, self.part)
        return self.part.from_document(path, value, base)

    def settle(self, path: str, value: object) -> object:
        if not isinstance(value, self.part):
            raise PolicyError(f"{path} is {shown(value)}: it must be {self.part.__name__}")
        return value

    def write(self, value: object) -> Plain:
        assert isinstance(value, Part)
        return dict(value.to_document())

    def schema(self) -> dict[str, Plain]:
        fields = fields_of(self.part)
        properties: dict[str, Plain] = {}
        for field in fields.values():
            described: dict[str, Plain] = {"description": field.description, **field.kind.schema()}
            if not field.required and not isinstance(field.kind, Section):
                default = field.kind.write(field.default)
                if default is not None:
                    described["default"] = default
            properties[field.name] = described
        table: dict[str, Plain] = {"type": "object", "properties": properties, "additionalProperties": False}
        if required := [field.name for field in fields.values() if field.required]:
            table["required"] = list(required)
        return table

    def allowed(self) -> str:
        return "a table"


class Items(Texts):
    """A list of parts, each a table of the document."""

    def __init__(self, part: type[Part]) -> None:
        super().__init__(part.__name__, Section(part))
        self.part = part

    def read(self, path: str, value: object, base: object = None) -> object:  # noqa: ARG002 - a list is set as a whole
        if not isinstance(value, list):
            raise PolicyError(f"{path} is {shown(value)}: it must be a list of tables")
        return self.settle(path, each(self.item.read, places(path, value)))

    def allowed(self) -> str:
        return "a list of tables"


class Field(NamedTuple):
    """A field of a part.

    Attributes:
        name: Its name.
        kind: What it may be.
        default: What it is where nothing is said.
        required: Whether something must be said.
        description: What it means, from the docstring of its part.
    """

    name: str
    kind: Kind
    default: object
    required: bool
    description: str


@cache
def fields_of(part: type[Part]) -> Mapping[str, Field]:
    """Returns the fields of a part by their names, in their order."""
    # As `typing.get_type_hints` and `msgspec.structs.fields` do, which take many times as long.
    hints = get_annotations(part, eval_str=True)
    told = attributes_told(part.__doc__ or "")
    names, defaults = part.__struct_fields__, part.__struct_defaults__
    fields = {}
    for name, default in zip(names, (msgspec.NODEFAULT,) * (len(names) - len(defaults)) + defaults, strict=True):
        fields[name] = Field(name, _kind(hints[name]), default, default is msgspec.NODEFAULT, told.get(name, ""))
    return types.MappingProxyType(fields)


def _kind(hint: object) -> Kind:
    if get_origin(hint) is Annotated:
        (kind,) = (extra for extra in get_args(hint)[1:] if isinstance(extra, Kind))
        return kind
    if get_origin(hint) is Literal:
        return Choice(get_args(hint))
    if get_origin(hint) is tuple:
        return Items(get_args(hint)[0])
    if hint is bool:
        return Flag()
    if hint is str:
        return Text()
    assert isinstance(hint, type) and issubclass(hint, Part), hint  # noqa: PT018 - one fact
    return Section(hint)
