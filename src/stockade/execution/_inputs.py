"""What a run is given: arguments, environment, standard input, and callbacks for its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from stockade._text import printable
from stockade.errors import UsageError
from stockade.execution._streams import Streams

__all__ = ["Inputs", "OnOutput", "Stdin", "environment"]

Stdin: TypeAlias = bytes | str | Callable[[int], bytes | None]
"""A guest's standard input: all of it, or a function that fetches it piece by piece."""

OnOutput: TypeAlias = Callable[[bytes], object]
"""Is given a piece of output."""


class Inputs(NamedTuple):
    """What a run is given, as callers say it.

    Attributes:
        args: Arguments, after the guest's own name.
        stdin: Its standard input.
        env: Its environment, beside what the policy passes on.
        on_stdout: Is given stdout in pieces as they are written.
        on_stderr: The same for stderr.
    """

    args: Sequence[str | bytes] = ()
    stdin: Stdin = b""
    env: Mapping[str, str] | None = None
    on_stdout: OnOutput | None = None
    on_stderr: OnOutput | None = None

    def arguments(self) -> list[bytes]:
        """Returns the arguments as a guest gets them.

        Raises:
            UsageError: One cannot be passed.
        """
        if isinstance(self.args, str | bytes):
            raise UsageError("args is a single text: give a list of arguments")
        return [_c_string(arg, "an argument") for arg in self.args]

    def input(self) -> bytes:
        """Returns the standard input, as far as it is there; what a function fetches is not."""
        if callable(self.stdin):
            return b""
        return self.stdin.encode() if isinstance(self.stdin, str) else bytes(self.stdin)

    def streams(self) -> Streams | None:
        """Returns the callbacks; None where there are none."""
        fetch = self.stdin if callable(self.stdin) else None
        if fetch is None and self.on_stdout is None and self.on_stderr is None:
            return None
        return Streams(fetch, self.on_stdout, self.on_stderr)


def environment(variables: Mapping[str, str]) -> dict[bytes, bytes]:
    """Returns an environment as a guest gets it.

    Raises:
        UsageError: A variable cannot be passed.
    """
    return {_variable(name): _c_string(value, "a variable's value") for name, value in variables.items()}


def _c_string(text: str | bytes, what: str) -> bytes:
    data = text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise UsageError(f"{what} contains a zero byte, which no WASI guest can receive: {printable(data)}")
    return data


def _variable(name: str) -> bytes:
    if not name or "=" in name:
        raise UsageError(f"{printable(name) or 'an empty text'} cannot be the name of a variable")
    return _c_string(name, "a variable's name")
