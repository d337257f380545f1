"""What the host, the fork server and its workers say to each other."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias, get_origin

import msgspec

from stockade.errors import EngineError, IsolationError, LinkError, SnapshotError, StockadeError, UsageError
from stockade.execution import StringCall  # noqa: TC001 - msgspec looks it up
from stockade.guard import Woven  # noqa: TC001 - likewise
from stockade.host import Signature  # noqa: TC001 - likewise
from stockade.policy import Features, Policy
from stockade.report import Progress, Report, Violation  # noqa: TC001 - likewise

__all__ = [
    "FAILURES",
    "FROM_SERVER",
    "FROM_TEMPLATE",
    "FROM_WORKER",
    "TO_SERVER",
    "TO_TEMPLATE",
    "TO_WORKER",
    "Answer",
    "Called",
    "Cancel",
    "Conclude",
    "Ended",
    "Enter",
    "Entered",
    "Expect",
    "Failed",
    "Finished",
    "Forget",
    "FromTemplate",
    "FromWorker",
    "Input",
    "Leave",
    "Left",
    "Looked",
    "Make",
    "MemoryTold",
    "Open",
    "Order",
    "Output",
    "Over",
    "Peek",
    "Poke",
    "Ready",
    "Refused",
    "Register",
    "Request",
    "Rest",
    "Returned",
    "Spawn",
    "Spawned",
    "Started",
    "StateTold",
    "Take",
    "Taken",
    "Told",
    "TraceTold",
    "Traced",
    "Turn",
    "Wants",
]

# -- to the fork server ----------------------------------------------------------------------------------------------


class Make(msgspec.Struct, frozen=True, tag=True):
    """A template is wanted. With it comes its socket."""


# -- from the fork server ----------------------------------------------------------------------------------------------


class Left(msgspec.Struct, frozen=True, tag=True):
    """A worker has ended whose template had ended before.

    Attributes:
        process: Its number as a process, as the fork server sees it.
        status: Its exit status; negative for the signal that ended it, or has stopped it.
    """

    process: int
    status: int


# -- to a template ---------------------------------------------------------------------------------------------------


class TraceTold(msgspec.Struct, frozen=True):
    """What of the calls of guests is traced, as `Trace` says it; who is told, and how much is kept, the host knows.

    Attributes:
        calls: The calls.
        string_bytes: How much is kept of a text.
        durations: Of which calls the duration is measured.
        on_overflow: What becomes of calls for which there is no room.
    """

    calls: tuple[str, ...]
    string_bytes: int
    durations: Literal["io", "all", "none"]
    on_overflow: Literal["wait", "count"]


class Register(msgspec.Struct, frozen=True, tag=True):
    """A module under a policy, for workers to come.

    With it come files with the module and with its machine code, unless it has these, and folders of mounts.

    Attributes:
        program: The number by which the host calls it.
        name: The module's name.
        sha256: Of the module.
        policy: The policy; its mounts say what the folders are called, and not where they are.
        config: What it was compiled for.
        woven: What the weaver told of it.
        figures: Figures of its code.
        features: Proposals under which it is valid.
        units: The units of fuel that the time in the policy comes to; None where it does not say.
        functions: Functions of the embedder that it imports.
        removed: System calls and categories of them that no worker may make.
        like: The number of the same module and machine code under another policy.
        trace: What of its calls is traced; None where nothing is.
    """

    program: int
    name: str
    sha256: str
    policy: Policy
    config: dict[str, bool | int]
    woven: Woven
    figures: dict[str, int]
    features: Features
    units: int | None = None
    functions: tuple[Signature, ...] = ()
    removed: tuple[str, ...] = ()
    like: int | None = None
    trace: TraceTold | None = None


class Forget(msgspec.Struct, frozen=True, tag=True):
    """There are no workers to come for it.

    Attributes:
        program: Its number.
    """

    program: int


class Spawn(msgspec.Struct, frozen=True, tag=True):
    """A worker is wanted. With it comes its socket.

    Attributes:
        worker: The number by which the host calls it.
        program: What it is to run.
        keeps: Whether its guest is called any number of times: the worker lives until it is ended.
        becomes: Whether the template becomes the worker itself, and makes no other.
    """

    worker: int
    program: int
    keeps: bool = False
    becomes: bool = False


# -- from a template -------------------------------------------------------------------------------------------------


class Refused(msgspec.Struct, frozen=True, tag=True):
    """There can be no template: the fork server says this on the socket that was for it.

    Attributes:
        errno: Why.
    """

    errno: int


class Over(msgspec.Struct, frozen=True, tag=True):
    """A template has ended, which the fork server says on its socket.

    Attributes:
        status: Its exit status; negative for the signal that ended it, or has stopped it.
    """

    status: int


class Spawned(msgspec.Struct, frozen=True, tag=True):
    """There is a worker, and a descriptor of its process comes with this; or there can be none.

    Attributes:
        worker: Its number.
        errno: Why there is none; 0 where there is one.
        process: Its number as a process, as the fork server sees it.
    """

    worker: int
    errno: int = 0
    process: int = 0


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A worker has ended.

    Attributes:
        worker: Its number.
        status: Its exit status; negative for the signal that ended it.
    """

    worker: int
    status: int


# -- to a worker -----------------------------------------------------------------------------------------------------


class MemoryTold(msgspec.Struct, frozen=True):
    """What a memory of a guest holds: zeros wherever there is no extent.

    Attributes:
        size_bytes: How large it is.
        extents: Of each stretch its start, its size, its file by its number, and where it begins there.
    """

    size_bytes: int
    extents: tuple[tuple[int, int, int, int], ...]


class StateTold(msgspec.Struct, frozen=True):
    """What a guest holds between two calls. The contents of its memories are in sealed files.

    Attributes:
        memories: Its memories.
        globals: Its mutable globals.
        started: Whether what was the module's start function has run.
    """

    memories: tuple[MemoryTold, ...]
    globals: tuple[bytes, ...]
    started: bool


_Number: TypeAlias = int | float | bytes
"""A number that a function takes; a vector is bytes."""


class Request(msgspec.Struct, frozen=True, tag=True):
    """A call of an exported function.

    Attributes:
        export: The function.
        params: The types of what it takes.
        results: The types of what it returns.
        numbers: What it is passed.
        exchange: What else is passed and returned.
        is_driven: Whether the host says, function by function, what is called.
        is_command: Whether its result is an exit code.
        initializes: Whether a reactor is initialized before.
        renews: Whether its budget and its counters are fresh.
        depth: How many calls of functions of the embedder's it is made in.
    """

    export: bytes
    params: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    numbers: tuple[_Number, ...] = ()
    exchange: StringCall | None = None
    is_driven: bool = False
    is_command: bool = False
    initializes: bool = False
    renews: bool = False
    depth: int = 0


class Open(msgspec.Struct, frozen=True, tag=True):
    """What the guest is given, the first thing that a worker is told. What is behind it is the standard input.

    With it come the files of what it begins with.

    Attributes:
        args: Its arguments.
        env: Its whole environment.
        listens: Whether output is passed on as it comes.
        asks: Whether the standard input is asked for.
        watched: Whether somebody looks at how far it is in its course.
        saved: What it begins with, where that is not what the module begins with.
        call: What is called first, where that is known already.
        as_expected: Whether all but this, the call, and whether it is watched is what the worker was told to expect.
    """

    args: tuple[bytes, ...] = ()
    env: dict[bytes, bytes] = {}
    listens: bool = False
    asks: bool = False
    watched: bool = False
    saved: StateTold | None = None
    call: Request | None = None
    as_expected: bool = False

    @property
    def gives_nothing(self) -> bool:
        """Whether the guest is as any that is given nothing, the standard input left out, which stands behind this."""
        return not (self.args or self.env or self.listens or self.asks or self.saved)


class Expect(msgspec.Struct, frozen=True, tag=True):
    """What the guest of a worker that waits may come to be given: if it is, all is ready by then.

    With it come the files of what it begins with.

    Attributes:
        given: That.
    """

    given: Open


class Enter(msgspec.Struct, frozen=True, tag=True):
    """A function is called, of those that a driven call is made of.

    Attributes:
        export: The function.
        arguments: Type and value of each argument.
        results: The types of what it returns.
    """

    export: bytes
    arguments: tuple[tuple[str, _Number], ...]
    results: tuple[str, ...]


class Leave(msgspec.Struct, frozen=True, tag=True):
    """A driven call is over."""


class Peek(msgspec.Struct, frozen=True, tag=True):
    """Bytes of the guest's memory are wanted, while it is halted or between two calls.

    Attributes:
        address: Where they begin.
        size: How many there are.
    """

    address: int
    size: int


class Poke(msgspec.Struct, frozen=True, tag=True):
    """Bytes are put into the guest's memory, likewise. They are behind it.

    Attributes:
        address: Where they begin.
    """

    address: int


class Take(msgspec.Struct, frozen=True, tag=True):
    """A snapshot is wanted of what the guest holds between two calls."""


class Conclude(msgspec.Struct, frozen=True, tag=True):
    """The report is wanted on a guest that had ended before anything of it was called."""


class Rest(msgspec.Struct, frozen=True, tag=True):
    """A turn is over, of a call that goes on later: the guest waits for its standard input."""


class Turn(msgspec.Struct, frozen=True, tag=True):
    """Another turn begins, with a fresh budget."""


class Input(msgspec.Struct, frozen=True, tag=True):
    """More of the standard input, which is behind it; nothing is its end."""


class Answer(msgspec.Struct, frozen=True, tag=True):
    """What came of a call of a function of the embedder's.

    Attributes:
        values: What it has returned, a number for each result.
        problem: What it has raised, in words; "" where it has returned.
        capability: The capability that it has missed.
        refused: What it has refused, where the policy ends the run for that.
        late: Whether nothing has come of it before the run was to end.
    """

    values: tuple[int | float, ...] = ()
    problem: str = ""
    capability: str = ""
    refused: Violation | None = None
    late: bool = False


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """The run is to end."""


# -- from a worker ---------------------------------------------------------------------------------------------------


class Ready(msgspec.Struct, frozen=True, tag=True):
    """A worker that was made ahead waits to be told what its guest is given.

    If that is nothing, and what is called is said with it, the guest's time begins with that, and nothing is said until
    it is over.

    Attributes:
        walls: What stands between the worker and the host.
    """

    walls: tuple[str, ...]


class Started(msgspec.Struct, frozen=True, tag=True):
    """All is ready: the guest's time begins with its call.

    Attributes:
        walls: What stands between the worker and the host, where that was not said before.
        over: Whether the guest has ended already, for it needs more than it may have.
    """

    walls: tuple[str, ...] = ()
    over: bool = False


class Output(msgspec.Struct, frozen=True, tag=True):
    """A piece of output, which is behind it.

    Attributes:
        stream: Which.
    """

    stream: Literal["stdout", "stderr"]


class Wants(msgspec.Struct, frozen=True, tag=True):
    """The guest waits for more of its standard input."""


class Called(msgspec.Struct, frozen=True, tag=True):
    """The guest calls a function of the embedder's.

    Attributes:
        function: Its number.
        values: What it is called with.
    """

    function: int
    values: tuple[Any, ...] = ()


class Told(msgspec.Struct, frozen=True, tag=True):
    """How far the run is.

    Attributes:
        progress: That.
    """

    progress: Progress


class Traced(msgspec.Struct, frozen=True, tag=True):
    """Calls that were traced: entries of the guard's ring are behind it, as they are.

    Attributes:
        ended: Whether the guest has ended, in whatever calls it was; then there are no entries.
    """

    ended: bool = False


class Finished(msgspec.Struct, frozen=True, tag=True):
    """The run is over. What is behind it is stdout, stderr, and the value where that is a text or bytes.

    Attributes:
        report: What happened, without these.
        stdout: How many bytes stdout has.
        stderr: The same of stderr.
        value: The same of the value.
        kind: What the value is.
        over: Whether the guest has ended with it.
        depth: How many calls of functions of the embedder's the call was made in.
    """

    report: Report
    stdout: int = 0
    stderr: int = 0
    value: int = 0
    kind: Literal["", "text", "bytes"] = ""
    over: bool = False
    depth: int = 0


_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]


class Returned(msgspec.Struct, frozen=True, tag=True):
    """The run is over as most are: the guest has returned, and there is little to tell.

    It says what a report has of such a run that the host does not know: to say all of a report takes longer than most
    guests run. Behind it are stdout and stderr.

    Attributes:
        wall_seconds: From the first instruction to the last.
        cpu_seconds: Processor time.
        memory_bytes: What the guest's memories and tables have at the end.
        grown_bytes: By how much they grew.
        table_elements: Elements of its tables.
        calls: WASI call -> how often the guest made it.
        stdout: How many bytes stdout has.
        stderr: The same of stderr.
        fuel: Units that it consumed, and that are left; None where it was not metered.
        exit_code: Its exit code, where what it has returned is one.
        values: What it has returned, where that is none.
    """

    wall_seconds: _Seconds
    cpu_seconds: _Seconds
    memory_bytes: _Count
    grown_bytes: _Count
    table_elements: _Count
    calls: dict[str, _Count]
    stdout: _Count = 0
    stderr: _Count = 0
    fuel: tuple[_Count, _Count, bool] | None = None
    exit_code: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)] | None = None
    values: tuple[_Number, ...] = ()

    depth: ClassVar[int] = 0
    over: ClassVar[bool] = False


class Entered(msgspec.Struct, frozen=True, tag=True):
    """A function has returned, of those that a driven call is made of; or such a call has begun.

    Attributes:
        values: What it has returned.
    """

    values: tuple[_Number, ...] = ()


class Looked(msgspec.Struct, frozen=True, tag=True):
    """The guest's memory was looked at, or written to. What was read is behind it.

    Attributes:
        size_bytes: How large the memory is; None where there is none.
        problem: Why that cannot be; "" where it was.
    """

    size_bytes: int | None
    problem: str = ""


class Taken(msgspec.Struct, frozen=True, tag=True):
    """A snapshot. With it comes the file of what is new in it; files of earlier ones are known by their numbers.

    Attributes:
        state: What the guest holds.
        keeps: The files that count for the next one, by their numbers.
    """

    state: StateTold
    keeps: tuple[int, ...] = ()


FAILURES: Final[dict[str, type[StockadeError]]] = {
    kind.__name__: kind for kind in (EngineError, UsageError, LinkError, IsolationError, SnapshotError)
}
"""The kinds of errors that a worker hands over."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """There is no report, or no snapshot, for something went wrong that is not the guest's doing.

    Attributes:
        kind: The kind of error.
        message: What went wrong.
    """

    kind: Literal["EngineError", "UsageError", "LinkError", "IsolationError", "SnapshotError"]
    message: str


ToTemplate: TypeAlias = Register | Forget | Spawn
FromTemplate: TypeAlias = Refused | Over | Spawned | Ended
Order: TypeAlias = Request | Enter | Leave | Take | Conclude | Rest | Turn
ToWorker: TypeAlias = Open | Expect | Order | Input | Answer | Cancel | Peek | Poke
FromWorker: TypeAlias = (
    Ready | Started | Output | Wants | Called | Told | Traced | Finished | Returned | Failed | Entered | Looked | Taken
)


def _frozen(kind: type, value: object) -> object:
    # Policies have dicts that cannot be changed.
    if (get_origin(kind) or kind) is _FROZEN_DICT and isinstance(value, dict):
        return _FROZEN_DICT(value)
    raise NotImplementedError


_FROZEN_DICT: Final = type(Policy().custom)


TO_SERVER: Final = msgspec.msgpack.Decoder(Make)
FROM_SERVER: Final = msgspec.msgpack.Decoder(Left)
TO_TEMPLATE: Final = msgspec.msgpack.Decoder(ToTemplate, dec_hook=_frozen)
FROM_TEMPLATE: Final = msgspec.msgpack.Decoder(FromTemplate)
TO_WORKER: Final = msgspec.msgpack.Decoder(ToWorker)
FROM_WORKER: Final = msgspec.msgpack.Decoder(FromWorker)
