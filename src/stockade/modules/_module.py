"""Modules as users hold them: loaded once, known by the hash of their bytes."""

from __future__ import annotations

import hashlib
import os
import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from stockade._bell import start_thread
from stockade._text import printable
from stockade.errors import InvalidModule, LinkError, UsageError
from stockade.policy import Limits
from stockade.wasm import (
    MOST_ITEMS,
    ExternKind,
    FuncType,
    ParsedModule,
    TooManyTypes,
    Unsupported,
    is_component,
    is_text_format,
    outline,
    parse,
    read_module_file,
    refuse_other_format,
)
from stockade.worker import check_figures, features_of, refuse_unrunnable, translate, translate_aside

if TYPE_CHECKING:
    from stockade.modules._inspection import Inspection
    from stockade.policy import ModuleLimits, Policy

__all__ = ["Entry", "Item", "Module", "Source", "load_module"]

_LARGE_BYTES = 4 << 20

_MOST_TEXT_BYTES = 16 << 20
"""Text up to this size is translated. Eighty bytes of memory for each byte of it can be needed."""

_TEXT_BYTES_HERE = 64 << 10
"""Text up to this size is translated in this process, in a twentieth of a second at worst: what it takes can grow with
the square, where many branches name the outermost of many blocks."""

_SHOWN_TYPES = 20
"""Parameters, and results, that a signature shows; a function may have a thousand."""


class Item(NamedTuple):
    """Something that a module imports or exports.

    Attributes:
        module: For an import: where it is asked from.
        name: Its name.
        kind: `func`, `table`, `memory`, `global` or `tag`.
        type: For a function: its type, as `(i32, i64) -> (i32)`.
    """

    module: str
    name: str
    kind: str
    type: str


class Entry(NamedTuple):
    """An exported function to call: its name and its type. As text it is its signature, `add: (i32, i32) -> (i32)`."""

    name: bytes
    type: FuncType

    def __str__(self) -> str:
        sides = []
        for types in self.type:
            rest = f", … ({len(types):,} in all)" if len(types) > _SHOWN_TYPES else ""
            sides.append(f"({', '.join(types[:_SHOWN_TYPES])}{rest})")
        return f"{printable(self.name)}: {' -> '.join(sides)}"


class Module:
    """A WebAssembly module, read once: what was hashed is what will run.

    Make one with `load`, keep it, and give it to every run: that skips reading and hashing the file again.
    """

    def __init__(self, data: bytes, name: str, sha256: str = "") -> None:
        self.data = data
        self.name = printable(name)
        self.sha256 = sha256 or hashlib.sha256(data).hexdigest()

    def __repr__(self) -> str:
        return f"<Module {self.name} sha256={self.sha256[:16]}>"

    @staticmethod
    def load(
        source: str | os.PathLike[str] | bytes | bytearray | memoryview | Module,
        *,
        limit_bytes: int = Limits().module_size,
        text: bool = False,
    ) -> Module:
        """Reads a module.

        Args:
            source: Path of a `.wasm` file, or of a `.wat` file in the text format; or the bytes of a module.
            limit_bytes: The most bytes it may have.
            text: Whether bytes, and a file with another name, may be in the text format, too. Runs and calls that are
                given bytes take both; here, what somebody sent does not reach the translator unless it is to.

        A module that uses what this release cannot run is loaded, so that `inspect` can tell of it; it is refused when
        it is to run. Text of more than 64 KiB is translated in a process of its own, within the time and memory that
        the default policy gives to compiling.

        Raises:
            ModuleNotFound: There is no file at the path.
            InvalidModule: It is not a regular file, too large, not WebAssembly, or damaged.
        """
        if not isinstance(limit_bytes, int):
            raise UsageError(f"limit_bytes is {type(limit_bytes).__name__}: it must be a whole number")
        return _load(source, limit_bytes, Limits(), None, text=text)

    def drop_data(self) -> None:
        """Lets go of its bytes, in a process that only runs it. Whoever looks for them there raises."""
        self.parsed.drop_data()
        del self.data

    @property
    def _is_component(self) -> bool:
        return is_component(self.data)

    @cached_property
    def parsed(self) -> ParsedModule:
        """The module taken apart.

        Raises:
            InvalidModule: It is a component, or uses proposals that this release cannot run.
        """
        refuse_other_format(self.data, self.name)
        try:
            return parse(self.data)
        except Unsupported:
            refuse_unrunnable(self.name, features_of(self.name, self.data))
            raise

    @property
    def kind(self) -> Literal["command", "reactor", "plain", "component"]:
        """What it is: a `command` has `_start`, a `reactor` has `_initialize`, a `plain` module neither."""
        if self._is_component:
            return "component"
        if "parsed" not in self.__dict__:
            kind = outline(self.data).kind
            assert kind != "unknown"  # it would not have been loaded
            return kind
        if self.function_type(b"_start") is not None:
            return "command"
        return "reactor" if self.function_type(b"_initialize") is not None else "plain"

    @cached_property
    def imports(self) -> tuple[Item, ...]:
        """What it asks for."""
        module = self.parsed
        return tuple(
            Item(
                _text(entry.module),
                _text(entry.name),
                entry.kind.name.lower(),
                str(module.types[entry.type_index]) if entry.kind is ExternKind.FUNC else "",
            )
            for entry in module.imports
        )

    @cached_property
    def exports(self) -> tuple[Item, ...]:
        """What it offers."""
        module = self.parsed
        return tuple(
            Item(
                "",
                _text(name),
                export.kind.name.lower(),
                str(module.function_type(export.place)) if export.kind is ExternKind.FUNC else "",
            )
            for name, export in module.exports.items()
        )

    def inspect(self) -> Inspection:
        """Describes what the module is made of, what it uses and imports, and what a policy must allow for it.

        Nothing of it runs, and nothing is compiled; the engine validates it a few times.

        Raises:
            InvalidModule: It is damaged where only inspection looks.
        """
        from stockade.modules._inspection import inspect

        return inspect(self.data, self.name, self.sha256)

    def function_type(self, name: bytes) -> FuncType | None:
        """Returns the type of an exported function; None where there is none of that name."""
        export = self.parsed.exports.get(name)
        if export is None or export.kind is not ExternKind.FUNC:
            return None
        return self.parsed.function_type(export.place)

    @cached_property
    def command_entry(self) -> Entry:
        """What a run calls: `_start`, else `main` without parameters, whose result is the exit code.

        Raises:
            LinkError: There is neither.
        """
        start = self.function_type(b"_start")
        if start == FuncType((), ()):
            return Entry(b"_start", start)
        main = self.function_type(b"main")
        if start is None and main in (FuncType((), ("i32",)), FuncType((), ())):
            assert main is not None
            return Entry(b"main", main)
        if start is not None:
            raise LinkError(f"_start of {self.name} has the type {start}; a command's is () -> ()")
        if main is not None:
            raise LinkError(f"main of {self.name} has the type {main}; it can be run as () -> (i32), or called")
        offers = self._offers()
        raise LinkError(
            f"{self.name} exports neither _start nor main, so there is nothing to run"
            + (f". Call one of its functions instead: {offers}" if offers else ": it exports no functions")
        )

    def function_entry(self, name: str) -> Entry:
        """Returns an exported function by its name.

        Raises:
            LinkError: There is none.
        """
        if not isinstance(name, str):
            raise UsageError(f"export is {type(name).__name__}: give the name of an exported function")
        try:
            encoded = name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            encoded = name.encode("utf-8", "surrogatepass")  # which no module has
        type_ = self.function_type(encoded)
        if type_ is None:
            offers = self._offers(name)
            others = f"; it has {offers}" if offers else "; it exports no functions"
            raise LinkError(f"{self.name} exports no function {printable(name)}{others}")
        return Entry(encoded, type_)

    @property
    def initializer(self) -> Entry | None:
        """A reactor's `_initialize`, which comes before every other call; None where there is none."""
        type_ = self.function_type(b"_initialize")
        return Entry(b"_initialize", type_) if type_ == FuncType((), ()) else None

    def _offers(self, near: str = "") -> str:
        """Names some exported functions, the ones most like `near` first; "" where there are none."""
        import difflib

        # A hostile module may export a hundred thousand names of a megabyte each.
        names = []
        for name, export in self.parsed.exports.items():
            if export.kind is ExternKind.FUNC:
                names.append(printable(name, 60))
                if len(names) == 500:
                    break
        if not names:
            return ""
        close = difflib.get_close_matches(near, names, n=3) if near else []
        shown = [*close, *(name for name in names if name not in close)][:5]
        return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


class _Digest:
    """A SHA-256 in the making. For a large module it takes as long as taking it apart, and other threads can run."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._sha256 = ""
        self._thread = threading.Thread(target=self._make) if len(data) >= _LARGE_BYTES else None
        if self._thread is not None:
            start_thread(self._thread)

    def _make(self) -> None:
        self._sha256 = hashlib.sha256(self._data).hexdigest()

    def result(self) -> str:
        """Returns it in hexadecimal."""
        if self._thread is not None:
            self._thread.join()
        return self._sha256 or hashlib.sha256(self._data).hexdigest()


def load_module(source: Source, policy: Policy, *, text: bool | None = None, name: str = "<bytes>") -> Module:
    """Reads a module within the limits of a policy; `Module.load` does so within the default ones.

    Args:
        source: Where it comes from.
        policy: How large it may be, and how many types it may have; how long, and with how much memory, text may take
            to translate.
        text: Whether bytes may be in the text format, too; None where they may if they begin like it.
        name: What bytes are called in reports and messages.

    Raises:
        ModuleError: It cannot be loaded.
    """
    limits = policy.limits
    return _load(source, limits.module_size, limits, policy.structure, text=text, name=name)


def _load(
    source: Source,
    limit_bytes: int,
    limits: Limits,
    structure: ModuleLimits | None,
    *,
    text: bool | None,
    name: str = "<bytes>",
) -> Module:
    if isinstance(source, Module):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        if len(data) > limit_bytes:
            raise InvalidModule(
                f"the module has {len(data):,} bytes; modules may have {limit_bytes:,} (limits.module_size)"
            )
        text = text is None or text
    elif isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        data, name = read_module_file(path, limit_bytes), Path(path).name
        text = text or path.endswith(".wat")
    else:
        raise UsageError(
            f"module is {type(source).__name__}: give the path of a module, its bytes, or a Module as Module.load "
            "returns it"
        )
    shown = printable(name)
    if text and is_text_format(data):
        data = _to_binary(shown, data, limits)
    if not is_component(data):
        refuse_other_format(data, shown)
    digest = _Digest(data)
    try:
        parsed = _take_apart(data, structure)
    except InvalidModule as problem:
        if isinstance(problem, TooManyTypes) and structure is not None:
            check_figures(shown, {"types": problem.found}, structure)
        raise InvalidModule(f"{shown}: {problem}") from None
    finally:
        sha256 = digest.result()
    module = Module(data, name, sha256)
    if parsed is not None:
        # Where functools keeps it: a module that can run is taken apart once.
        module.__dict__["parsed"] = parsed
    return module


def _to_binary(name: str, text: bytes, limits: Limits) -> bytes:
    """Translates text, in a process of its own if there is much of it."""
    if len(text) > _MOST_TEXT_BYTES:
        raise InvalidModule(
            f"{name} has {len(text):,} bytes of WebAssembly text; at most {_MOST_TEXT_BYTES:,} are translated here. "
            "Translate it with wat2wasm or wasm-tools, and load the binary"
        )
    if len(text) <= _TEXT_BYTES_HERE or limits.compile_process == "never":
        return translate(name, text)
    return translate_aside(name, text, limits)


def _take_apart(data: bytes, structure: ModuleLimits | None) -> ParsedModule | None:
    """Takes a module apart; None where it is one that cannot run, and so is only for inspection."""
    if is_component(data):
        return None
    # Each takes time and memory, in this process, so more of them than a policy allows are not even read.
    most_types = MOST_ITEMS if structure is None else structure.types
    try:
        return parse(data, most_types)
    except Unsupported:
        outline(data, most_types)
        return None


Source: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Module
"""Where a module comes from: a path, its bytes, or a loaded module."""
