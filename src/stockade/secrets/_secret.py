"""A secret, and where it is read from."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, Self

from stockade._text import is_utf8, printable
from stockade.errors import UsageError
from stockade.secrets._never_written import NeverWritten
from stockade.system import open_file

if TYPE_CHECKING:
    from stockade._bytes import BytesLike

__all__ = ["Secret", "read_private", "read_variable"]

_LEAST_BYTES: Final = 8
"""What is shorter would be found where it is none."""

_MOST_BYTES: Final = 64 << 10
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")


def read_private(path: str | os.PathLike[str], most_bytes: int, what: str) -> bytes:
    """Reads a secret from a file, which nobody else may read or write. Line breaks at its end are left out.

    Args:
        path: The file: a regular one, of this user's, with mode 0600 or less, and no link.
        most_bytes: How many bytes are read at most.
        what: What it should hold, as messages call it.

    Raises:
        UsageError: It is none of that, or cannot be read.
    """
    try:
        with open_file(os.fspath(path), own=True) as file:
            data = file.read(most_bytes) or b""
    except OSError as problem:
        shown = printable(os.fsdecode(path), 400)
        raise UsageError(f"{shown} cannot be read as a {what}: {problem.strerror}") from None
    return data.rstrip(b"\r\n")


def read_variable(name: str, what: str) -> str:
    """Reads a secret from an environment variable of this process.

    Args:
        name: The variable.
        what: What it should hold, as messages call it.

    Raises:
        UsageError: There is none.
    """
    value = os.environ.get(name)
    if value is None:
        raise UsageError(f"there is no environment variable {printable(name)}, which should hold a {what}")
    return value


class Secret(NeverWritten):
    """A secret that guests are given, where their policy names it: as a variable of their environment, or as stdin.

    The policy names it in `custom`, as one of `secrets`; how it is called is said where it is given:
    `Sandbox(policy, secrets={"api": Secret(...)})`. Whatever leaves a run is looked through for it. It is shown by no
    `repr`, and cannot be pickled. Where an API is all that it is for, `Credential` is better: guests never see those.

    >>> import stockade
    >>> stockade.Secret("not-a-real-key", env="API_KEY")
    Secret(env='API_KEY')

    Args:
        value: The secret, of 8 bytes to 64 KiB: text, or bytes where it is given as stdin.
        env: The variable that guests find it in.
        stdin: Whether it is what they read from their standard input.

    Raises:
        UsageError: An argument does not fit.

    Attributes:
        env: The variable; None where it is none.
        stdin: Whether it is stdin.
    """

    __slots__ = ("_value", "env", "stdin")

    def __init__(self, value: str | BytesLike, *, env: str | None = None, stdin: bool = False) -> None:
        # No message has the value.
        if not isinstance(value, str | bytes | bytearray | memoryview):
            raise UsageError(f"the value of a secret is {type(value).__name__}: give text or bytes")
        data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value)
        if not _LEAST_BYTES <= len(data) <= _MOST_BYTES:
            raise UsageError(f"the value of a secret must have {_LEAST_BYTES} to {_MOST_BYTES:,} bytes")
        if env is not None and not _VARIABLE.fullmatch(str(env)):
            raise UsageError(f"env is {printable(str(env))!r}: give the name of a variable, in letters, digits and _")
        if (env is None) == (not stdin):
            raise UsageError('say where guests find the secret, in one place: env="NAME" or stdin=True')
        if env is not None and (b"\0" in data or not is_utf8(data)):
            raise UsageError("the value of a secret that is a variable must be text without NUL characters")
        self._value = data
        self.env = env
        self.stdin = bool(stdin)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, env: str | None = None, stdin: bool = False) -> Self:
        """Reads a secret from a file, which nobody else may read or write. Line breaks at its end are left out.

        Args:
            path: The file: a regular one, of this user's, with mode 0600 or less, and no link.
            env: As for a secret; so is the rest.
            stdin: Whether it is what guests read from their standard input.

        Raises:
            UsageError: It is none of that, cannot be read, or holds no secret.
        """
        return cls(read_private(path, _MOST_BYTES + 3, "secret"), env=env, stdin=stdin)

    @classmethod
    def from_environment(cls, name: str, *, env: str | None = None, stdin: bool = False) -> Self:
        """Reads a secret from an environment variable of this process.

        Args:
            name: The variable.
            env: As for a secret; so is the rest.
            stdin: Whether it is what guests read from their standard input.

        Raises:
            UsageError: There is none, or it holds no secret.
        """
        return cls(read_variable(name, "secret"), env=env, stdin=stdin)

    def value(self) -> bytes:
        """Returns the secret: for the guest, and for what looks for it in what leaves."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(stdin=True)" if self.stdin else f"Secret(env={self.env!r})"
