"""What is loaded when it is first used: a run from the cache does without what compiles and inspects modules."""

from __future__ import annotations

import sys
from importlib import import_module

# Type checkers take it for true; importing typing takes longer than all of this.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

__all__ = ["called_later", "found_later"]


def found_later(room: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """Returns the `__getattr__` of a room some of whose names are loaded when they are first asked for.

    Args:
        room: The room, a package.
        homes: Modules in it, and the names that are in each.
    """
    modules = {name: f"{room}.{module}" for module, names in homes.items() for name in names}

    def find(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name]), name)
        setattr(sys.modules[room], name, value)
        return value

    return find


def called_later(module: str, name: str) -> Callable[..., Any]:
    """Returns a function in the place of another one, whose module is loaded when it is first called.

    Args:
        module: Where the other one is.
        name: Its name.
    """
    function: Callable[..., Any] | None = None

    def call(*args: Any, **options: Any) -> Any:
        nonlocal function
        if function is None:
            function = getattr(import_module(module), name)
        return function(*args, **options)

    call.__name__ = call.__qualname__ = name
    return call
