"""What a host function sees of the guest that calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.errors import UsageError

if TYPE_CHECKING:
    from stockade.engine import FindMemory, Memory
    from stockade.policy import Policy

__all__ = ["CapabilityMissing", "GuestMemory", "HostCall"]

_ADDRESS_BITS = 0xFFFF_FFFF


class CapabilityMissing(Exception):  # noqa: N818 - says what happened; never leaves the run path
    """A guest called a function that needs a capability which its policy does not grant.

    Attributes:
        capability: The capability.
        function: The function, as `env.log`; filled in on the way out.
    """

    def __init__(self, capability: str) -> None:
        super().__init__(capability)
        self.capability = capability
        self.function = ""


class GuestMemory:
    """The memory that a guest exports, good while a host function runs.

    Addresses and sizes come from the guest: each is checked, and what is outside ends the run.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory: Memory | None = memory

    @property
    def size_bytes(self) -> int:
        """How many bytes it has now."""
        return self._live().size_bytes

    def read(self, address: int, size: int) -> bytes:
        """Copies bytes out.

        Args:
            address: Where they begin; a negative i32 is taken as the unsigned number that it stands for.
            size: How many there are.

        Raises:
            IndexError: They are not all inside. The run ends, unless the function catches it.
        """
        return self._live().read(_unsigned(address), _unsigned(size))

    def read_text(self, address: int, size: int) -> str:
        """Copies text in UTF-8 out.

        Raises:
            IndexError: It is not all inside.
            UnicodeDecodeError: It is not UTF-8.
        """
        return self.read(address, size).decode()

    def write(self, address: int, data: bytes) -> None:
        """Copies bytes in.

        Raises:
            IndexError: They do not all fit inside.
        """
        self._live().write(_unsigned(address), data)

    def _live(self) -> Memory:
        if self._memory is None:
            raise UsageError("the guest's memory is only there while the host function runs: copy what you need")
        return self._memory

    def end(self) -> None:
        """Takes the memory away: the call is over."""
        self._memory = None


def _unsigned(number: int) -> int:
    return number & _ADDRESS_BITS if -(1 << 31) <= number < 0 else number


class HostCall:
    """A call of a guest to a host function.

    A host function gets it as its first argument, if that is annotated so.

    Attributes:
        policy: The policy that the guest runs under.
    """

    def __init__(self, policy: Policy, find_memory: FindMemory) -> None:
        self.policy = policy
        self._find = find_memory
        self._memory: GuestMemory | None = None

    @property
    def memory(self) -> GuestMemory:
        """The memory that the guest exports as `memory`.

        Raises:
            UsageError: It exports none.
        """
        if self._memory is None:
            try:
                self._memory = GuestMemory(self._find(b"memory"))
            except KeyError:
                raise UsageError("the guest exports no memory") from None
        return self._memory

    def grants(self, capability: str, asked: bool | float | str = True) -> bool:
        """Whether the policy grants a custom capability; see `Policy.grants`."""
        return self.policy.grants(capability, asked)

    def require(self, capability: str, asked: bool | float | str = True) -> None:
        """Ends the run as denied, unless the policy grants a custom capability."""
        if not self.grants(capability, asked):
            raise CapabilityMissing(capability)

    def end(self) -> None:
        """Takes the memory away: the call is over."""
        self._find = _gone
        if self._memory is not None:
            self._memory.end()


def _gone(name: bytes) -> Memory:
    raise KeyError(name)
