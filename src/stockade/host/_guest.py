"""What a host function sees of the guest that calls it."""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Protocol

from stockade._bytes import bytes_of
from stockade._locks import reentrant_lock
from stockade.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from threading import RLock
    from typing import Any, Literal

    from stockade._bytes import BytesLike
    from stockade.engine import GuestBytes
    from stockade.policy import Policy
    from stockade.report import Value, Violation

    Argument = int | float | bytes | bytearray | memoryview | str
    Ask = Callable[[str, Sequence[Any], Any], Awaitable[Value]]

__all__ = ["MEMORY_OVER", "CallRefused", "CapabilityMissing", "GuestMemory", "HaltedGuest", "HostCall", "network_of"]

_ADDRESS_BITS = 0xFFFF_FFFF
_ENDED = "the call of the host function is over, and its guest is not halted in it any more"
MEMORY_OVER = "the guest's memory is only there while the host function runs: copy what you need"


class HaltedGuest(Protocol):
    """A guest that is halted in a call of a function of the embedder."""

    @property
    def policy(self) -> Policy:
        """The policy that it runs under."""

    @property
    def halted_memory(self) -> GuestBytes | None:
        """The memory that it exports as `memory`; None where it exports none."""

    @property
    def network(self) -> object:
        """What it has of the network."""

    def call_back(self, export: str, args: Sequence[Any], returns: Any) -> Any:
        """Calls an export, on the thread of a plain function that the guest calls; returns its value."""


class CallRefused(Exception):  # noqa: N818 - says what happened; never leaves the run path
    """The policy ends a run for what the guest has asked of a function.

    Attributes:
        violation: What it has against it.
    """

    def __init__(self, violation: Violation) -> None:
        super().__init__(violation.subject)
        self.violation = violation


class CapabilityMissing(Exception):  # noqa: N818 - says what happened; never leaves the run path
    """A guest called a function that needs a capability which its policy does not grant.

    Attributes:
        capability: The capability.
        function: The function, as `env.log`; filled in on the way out.
    """

    def __init__(self, capability: str, function: str = "") -> None:
        super().__init__(capability)
        self.capability = capability
        self.function = function


class GuestMemory:
    """The memory that a guest exports, good while a host function runs, and for its thread.

    Addresses and sizes come from the guest: each is checked, and what is outside ends the run. A coroutine function may
    use it from any thread.
    """

    def __init__(self, memory: GuestBytes, thread: int | None, lock: RLock) -> None:
        self._memory: GuestBytes | None = memory
        self._thread = thread
        # Of whoever copies, and of who takes the memory away: a coroutine's call may end at any time.
        self._lock = lock

    @property
    def size_bytes(self) -> int:
        """How many bytes it has now."""
        with self._lock:
            return self._live().size_bytes

    def read(self, address: int, size: int) -> bytes:
        """Copies bytes out.

        Args:
            address: Where they begin; a negative i32 is taken as the unsigned number that it stands for.
            size: How many there are.

        Raises:
            IndexError: They are not all inside. The run ends, unless the function catches it.
        """
        with self._lock:
            return self._live().read(_unsigned(address), _unsigned(size))

    def read_text(self, address: int, size: int) -> str:
        """Copies text in UTF-8 out.

        Raises:
            IndexError: It is not all inside.
            UnicodeDecodeError: It is not UTF-8.
        """
        return self.read(address, size).decode()

    def write(self, address: int, data: BytesLike) -> None:
        """Copies bytes in.

        Args:
            address: Where they begin.
            data: Bytes, or a text, which is written as UTF-8.

        Raises:
            IndexError: They do not all fit inside.
            UsageError: They are neither.
        """
        piece = bytes_of(data, "data")
        with self._lock:
            self._live().write(_unsigned(address), piece)

    def _live(self) -> GuestBytes:
        if self._memory is None:
            raise UsageError(MEMORY_OVER)
        _check_thread(self._thread)
        return self._memory

    def end(self) -> None:
        """Takes the memory away: the call is over. Waits for a copy that is being made."""
        with self._lock:
            self._memory = None


def _check_thread(thread: int | None) -> None:
    # The call may end at any time for another thread, and the memory be gone in the middle of a copy.
    if thread is not None and get_ident() != thread:
        raise UsageError("the guest's memory is for the thread that the guest runs on: copy what you need")


def _unsigned(number: int) -> int:
    return number & _ADDRESS_BITS if -(1 << 31) <= number < 0 else number


class HostCall:
    """A call of a guest to a host function.

    A host function gets it as its first argument, if that is annotated so.

    Attributes:
        policy: The policy that the guest runs under.
    """

    def __init__(self, guest: HaltedGuest, *, awaited: bool = False) -> None:
        self.policy = guest.policy
        self._guest: HaltedGuest | None = guest
        self._thread = None if awaited else get_ident()
        self._lock = reentrant_lock()
        # How a coroutine function has exports called.
        self._ask: Ask | None = None
        self._memory: GuestMemory | None = None

    @property
    def memory(self) -> GuestMemory:
        """The memory that the guest exports as `memory`.

        Raises:
            UsageError: It exports none, the call is over, or it goes on in another thread.
        """
        _check_thread(self._thread)
        with self._lock:
            if self._memory is None:
                if self._guest is None:
                    raise UsageError(MEMORY_OVER)
                memory = self._guest.halted_memory
                if memory is None:
                    raise UsageError("the guest exports no memory")
                self._memory = GuestMemory(memory, self._thread, self._lock)
            return self._memory

    def call(
        self,
        export: str,
        *args: float | bytes | bytearray | memoryview | str,
        returns: Literal["text", "bytes"] | None = None,
    ) -> Value:
        """Calls a function that the guest exports, in the middle of this call; for plain functions.

        It runs on the guest's stack, in the fuel and the time of the call around it. Such calls may be nested 32 deep.

        Args:
            export: Name of the function.
            *args: What is passed, as to `Sandbox.call`.
            returns: What the result is read as, as there.

        Returns:
            What the function returned.

        Raises:
            GuestError: The guest has ended in it. The call around it is over, too, whatever the host function does.
            LinkError: There is no such function.
            UsageError: The arguments do not fit, the calls are nested too deep, or this call is over.
        """
        _check_thread(self._thread)
        if self._guest is None:
            raise UsageError(_ENDED)
        if self._ask is not None:
            raise UsageError("a coroutine function awaits the guest's functions: await HostCall.call_async")
        value: Value = self._guest.call_back(export, args, returns)
        return value

    async def call_async(
        self,
        export: str,
        *args: float | bytes | bytearray | memoryview | str,
        returns: Literal["text", "bytes"] | None = None,
    ) -> Value:
        """Calls a function that the guest exports, in the middle of this call; for coroutine functions.

        Others of the loop go on meanwhile. One such call follows the other.

        Args:
            export: Name of the function.
            *args: What is passed, as to `Sandbox.call`.
            returns: What the result is read as, as there.

        Returns:
            What the function returned.

        Raises:
            GuestError: As for `call`; so is what follows.
            LinkError: There is no such function.
            UsageError: The arguments do not fit, the calls are nested too deep, or this call is over.
        """
        if self._guest is None:
            raise UsageError(_ENDED)
        if self._ask is None:
            raise UsageError("only a coroutine function can await the guest's functions: call HostCall.call")
        return await self._ask(export, args, returns)

    def grants(self, capability: str, asked: bool | float | str = True) -> bool:
        """Whether the policy grants a custom capability; see `Policy.grants`."""
        return self.policy.grants(capability, asked)

    def require(self, capability: str, asked: bool | float | str = True) -> None:
        """Ends the run as denied, unless the policy grants a custom capability."""
        if not self.grants(capability, asked):
            raise CapabilityMissing(capability)

    def asks(self, ask: Ask) -> None:
        """Says how exports are called for a coroutine function."""
        self._ask = ask

    def end(self) -> None:
        """Takes the memory away: the call is over."""
        # With it goes all that a call which is kept would keep: the instance, and its store.
        with self._lock:
            self._guest = None
            if self._memory is not None:
                self._memory.end()


def network_of(call: HostCall) -> object:
    """Returns what the guest that makes a call has of the network; for Stockade's own functions.

    Raises:
        UsageError: The call is over.
    """
    guest = call._guest  # noqa: SLF001 - not for functions of the embedder
    if guest is None:
        raise UsageError(_ENDED)
    return guest.network
