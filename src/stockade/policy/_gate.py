"""What becomes of secrets that are found in what leaves a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

from stockade.policy._fields import Choice, Part, Texts

if TYPE_CHECKING:
    from typing import Unpack

    from stockade.policy._changes import GateFields

__all__ = ["GATE_CHANNELS", "GATE_VERDICTS", "GateRules", "GateVerdict"]

GateVerdict: TypeAlias = Literal["allow", "warn", "redact", "quarantine", "block"]

GATE_VERDICTS: tuple[GateVerdict, ...] = ("allow", "warn", "redact", "quarantine", "block")
"""What may become of what was found, the mildest first."""

GATE_CHANNELS = ("files", "output", "requests", "value")


class _Channels(Texts):
    def __init__(self) -> None:
        super().__init__("channels", Choice(GATE_CHANNELS))

    def settle(self, path: str, value: object) -> tuple[object, ...]:
        return tuple(sorted(map(str, super().settle(path, value))))


class GateRules(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is looked for in what leaves a run, and what becomes of it.

    `allow`: it is not looked for. `warn`: it leaves, and is reported. `redact`: it is replaced by its name.
    `quarantine`: nothing leaves, and it is kept aside until somebody releases it. `block`: nothing leaves.

    Attributes:
        registered: Secrets that were registered where the run was begun, credentials among them: in every common form,
            and wherever something leaves. Without any, nothing is looked for.
        keys: Keys and tokens in the forms of their issuers, private keys, and passwords that are named as such.
        personal: Numbers of payment cards, bank accounts and social security.
        entropy: Text that is as random as a key.
        channels: Where keys, personal data and random text are looked for: `output` is stdout and stderr, `value` what
            is returned or raised, `files` what is collected, `requests` what is sent over the network.
    """

    PATH: ClassVar = "gate"

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[GateFields]) -> None: ...

    registered: GateVerdict = "redact"
    keys: GateVerdict = "allow"
    personal: GateVerdict = "allow"
    entropy: GateVerdict = "allow"
    channels: Annotated[tuple[str, ...], _Channels()] = GATE_CHANNELS

    @property
    def looks(self) -> bool:
        """Whether something is looked for without any registered secret."""
        return any(verdict != "allow" for verdict in (self.keys, self.personal, self.entropy)) and bool(self.channels)
