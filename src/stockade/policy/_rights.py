"""What a guest may reach in the host: files, environment, clocks, randomness, WASI calls, processes, proposals."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal

from stockade._wasi import WASI, WASI_BY_NAME
from stockade.errors import PolicyError
from stockade.policy._fields import (
    COUNT,
    SECONDS,
    Folder,
    Kind,
    Part,
    Plain,
    Quantity,
    SomeOrAll,
    Text,
    Texts,
    TextsByName,
)
from stockade.policy._frozen import FrozenDict
from stockade.policy._secrets import is_sensitive, names_a_secret
from stockade.policy._syscalls import Classification, find_syscall, guest_syscalls
from stockade.policy._units import shown

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from typing import Unpack

    from stockade.policy._changes import (
        ClockFields,
        EnvironmentFields,
        FeaturesFields,
        FilesystemFields,
        ProcessFields,
        RandomFields,
        WasiFields,
    )

__all__ = [
    "WELL_TRIED",
    "Clock",
    "Environment",
    "Features",
    "Filesystem",
    "Mount",
    "Process",
    "Random",
    "Wasi",
    "wasi_calls",
]

_MOST_PATH_BYTES = 4096

_MAX_SECONDS = 2**62 / 1e9  # what fits the guard's arithmetic in nanoseconds


def _is_guest_path(path: str) -> bool:
    parts = path.split("/")
    return path.startswith("/") and ".." not in parts and "." not in parts


def _is_path_below(path: str) -> bool:
    parts = path.removesuffix("/").split("/")
    return path == "." or (len(path.encode(errors="replace")) <= _MOST_PATH_BYTES and not {"", ".", ".."} & {*parts})


class Mount(Part, frozen=True, forbid_unknown_fields=True):
    """A host folder that the guest may reach.

    Attributes:
        host: Path of the folder on the host; in a policy file, relative to that file.
        guest: Absolute path under which the guest sees it.
        mode: `ro` for reading, `rw` for reading and writing.
        only: Paths below the folder, where the guest may not name all: `a/b.txt` for that one, of a folder also to
            list it; `out/` for a folder and everything below it; `.` to list the folder itself. Links that are there
            are followed as far as the folder goes. The guest makes no links there, and moves only plain files.
    """

    PATH: ClassVar = "mount"

    if TYPE_CHECKING:

        def __init__(
            self,
            host: str | os.PathLike[str],
            guest: str,
            mode: Literal["ro", "rw"] = "ro",
            only: Sequence[str] | None = None,
        ) -> None: ...

    host: Annotated[str, Folder("the path of a folder", example='"./data"')]
    guest: Annotated[str, Text("an absolute path without . or ..", check=_is_guest_path, example='"/data"')]
    mode: Literal["ro", "rw"] = "ro"
    only: Annotated[
        tuple[str, ...] | None,
        SomeOrAll(
            "paths below the folder",
            Text("a path below the folder without . or ..", check=_is_path_below, example='"a/b.txt" or "out/"'),
        ),
    ] = None

    def to_document(self) -> dict[str, Plain]:
        """Returns the mount as plain data; one for which all may be named has no list."""
        document = super().to_document()
        if self.only is None:
            del document["only"]
        return document


class Filesystem(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which folders a guest may reach, and what it may do there. None, unless they are named.

    Attributes:
        mounts: The folders.
        create: Whether files and folders may be created in writable mounts.
        delete: Whether files and folders may be removed there, or replaced by renaming.
        symlinks: Whether symbolic and hard links may be made there.
    """

    PATH: ClassVar = "filesystem"

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[FilesystemFields]) -> None: ...

    mounts: tuple[Mount, ...] = ()
    create: bool = True
    delete: bool = False
    symlinks: bool = False


_VARIABLE = Text("the name of a variable", check=lambda name: bool(name) and "=" not in name, example='"LANG"')


class Environment(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which environment variables the guest sees. None of the host's, unless they are named.

    Attributes:
        mode: What of the host's environment is passed on: `none`; `allow`, the variables in `names`; `deny`, all but
            those; `full`. Where they are not named one by one, variables are withheld that look like secrets by their
            name (words such as TOKEN, KEY, PASSWORD or AUTH, AWS_*, SSH_*, KUBECONFIG, *_PROXY, DATABASE_URL) or by
            their value (a URL with a user, a private key, a JWT, a known kind of token), or that steer loaders and
            interpreters (LD_*, PYTHON*).
        names: Names for `allow` and `deny`, matched exactly.
        secrets: Which of the variables in `names` are passed on under `allow` although they look like secrets: those
            that are `named`, so all; or `never` one.
        set: Variables with their values, whatever the host has.
    """

    PATH: ClassVar = "environment"
    FOLLOW_MODE: ClassVar = ("names", "secrets")

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[EnvironmentFields]) -> None: ...

    mode: Literal["none", "allow", "deny", "full"] = "none"
    names: Annotated[tuple[str, ...], Texts("names of variables", _VARIABLE)] = ()
    secrets: Literal["named", "never"] = "named"
    set: Annotated[FrozenDict[str], TextsByName("variables", _VARIABLE, Text(check=lambda _: True))] = FrozenDict()

    def __post_init__(self) -> None:
        Part.__post_init__(self)
        idle = [
            *(["names"] if self.names and self.mode in ("none", "full") else ()),
            *(["secrets"] if self.secrets != "named" and self.mode != "allow" else ()),
        ]
        if idle:
            raise PolicyError.several(
                [f'environment.{name} has no effect where the mode is "{self.mode}": leave it out' for name in idle]
            )

    def passes(self, name: str, value: str = "") -> bool:
        """Whether a variable of the host's environment is passed on.

        Args:
            name: Its name.
            value: Its value; without it, what counts is the name.
        """
        if self.mode == "none" or (name in self.names) != (self.mode == "allow"):
            return False
        return (self.mode == "allow" and self.secrets == "named") or not is_sensitive(name, value)

    def named_secrets(self) -> list[str]:
        """Returns the names of host variables that are passed on although they look like secrets by their names."""
        return [name for name in self.names if self.passes(name) and names_a_secret(name)]

    def of(self, host: Mapping[str, str]) -> dict[str, str]:
        """Returns what a guest sees of a host's environment.

        Args:
            host: The host's variables.
        """
        return {**{name: value for name, value in host.items() if self.passes(name, value)}, **self.set}


class Clock(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What time the guest sees, on clocks and on files. It can never set a clock.

    Attributes:
        mode: `real`; `coarse`, cut to `resolution`; `virtual`, which starts at `start`, moves on by `step` whenever it
            is read and by the time of every wait, which then takes none; or `none`, clocks are refused.
        resolution: Seconds to which a coarse clock is cut.
        start: Seconds since 1970 at which the virtual time of day starts.
        step: Seconds by which a virtual clock moves on when it is read.
    """

    PATH: ClassVar = "clock"

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[ClockFields]) -> None: ...

    mode: Literal["real", "coarse", "virtual", "none"] = "real"
    resolution: Annotated[float, Quantity(SECONDS, 1e-9, _MAX_SECONDS)] = 1e-3
    start: Annotated[float, Quantity(SECONDS, 0, _MAX_SECONDS)] = 946_684_800.0
    step: Annotated[float, Quantity(SECONDS, 0, _MAX_SECONDS)] = 1e-6


class Random(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What randomness the guest gets.

    Attributes:
        mode: `full`, the host's entropy; `seeded`, SplitMix64 from `seed`, the same in every run; `none`, refused.
        seed: Where the seeded generator starts.
    """

    PATH: ClassVar = "random"
    FOLLOW_MODE: ClassVar = ("seed",)

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[RandomFields]) -> None: ...

    mode: Literal["none", "seeded", "full"] = "full"
    seed: Annotated[int, Quantity(COUNT, 0, 2**64 - 1)] = 0

    def __post_init__(self) -> None:
        Part.__post_init__(self)
        if self.seed and self.mode != "seeded":
            raise PolicyError(
                f'random.seed has no effect where the mode is "{self.mode}": leave it out, or set the mode to "seeded"'
            )


class Process(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which commands of the host the guest may start. None: WASI preview 1 has no call for it.

    Attributes:
        mode: `none`; `commands`, those in `commands`; `full`, any.
        commands: Absolute paths of programs, matched exactly.
    """

    PATH: ClassVar = "process"
    FOLLOW_MODE: ClassVar = ("commands",)

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[ProcessFields]) -> None: ...

    mode: Literal["none", "commands", "full"] = "none"
    commands: Annotated[
        tuple[str, ...],
        Texts("paths of programs", Text("an absolute path", check=_is_guest_path, example='"/usr/bin/git"')),
    ] = ()

    def __post_init__(self) -> None:
        Part.__post_init__(self)
        if (self.mode == "commands") != bool(self.commands):
            raise PolicyError(
                'process.commands is empty: name the commands, or set the mode to "none"'
                if self.mode == "commands"
                else f'process.commands has no effect where the mode is "{self.mode}": leave it out'
            )

    def permits(self, command: str) -> bool:
        """Whether a command may be started.

        Args:
            command: Absolute path of the program.
        """
        return self.mode == "full" or (self.mode == "commands" and command in self.commands)


class Features(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which proposals a guest may use, beside multi-value, bulk memory and reference types, which all may.

    A guest that uses another one is refused.

    Attributes:
        simd: Instructions on vectors of 128 bits.
        relaxed_simd: Vector instructions whose results may differ between machines; here they are always the same.
        tail_call: Calls that take the place of their caller.
        multi_memory: More than one memory, as far as `limits.memories` goes.
        extended_const: Sums and products in constant expressions.
        exceptions: Throwing and catching.
        function_references: References to functions whose types are known, and calls by them.
        gc: Structures and arrays that the engine collects; needs `function_references`.
        memory64: Memories and tables with addresses of 64 bits. WASI preview 1 has addresses of 32.
        threads: Shared memories and atomic instructions. No thread can be started, so a wait lasts as long as it may.
    """

    PATH: ClassVar = "features"

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[FeaturesFields]) -> None: ...

    simd: bool = True
    relaxed_simd: bool = False
    tail_call: bool = True
    multi_memory: bool = True
    extended_const: bool = True
    exceptions: bool = True
    function_references: bool = True
    gc: bool = False
    memory64: bool = False
    threads: bool = False

    def __post_init__(self) -> None:
        Part.__post_init__(self)
        if self.relaxed_simd and not self.simd:
            raise PolicyError("features.relaxed_simd is true and features.simd is false: it needs simd, too")
        if self.gc and not self.function_references:
            raise PolicyError(
                "features.gc is true and features.function_references is false: it needs function_references, too"
            )


WELL_TRIED = frozenset({"simd", "tail_call", "multi_memory", "extended_const", "exceptions", "function_references"})
"""Proposals that compilers use every day, and that widen little of what the engine must get right."""


class _CallPattern(Kind):
    """A WASI call, a group or pattern of them, or a POSIX system call that some of them stand for."""

    def settle(self, path: str, value: object) -> str:
        if not isinstance(value, str) or (not wasi_calls(value) and value.lower() not in guest_syscalls()):
            raise PolicyError(
                f"{path} is {shown(value)}, which is no WASI call, group or pattern of calls: "
                "write names such as fd_write, path_* or clock"
            )
        return value

    def schema(self) -> dict[str, Plain]:
        return {"type": "string"}

    def allowed(self) -> str:
        return 'a WASI call, group, pattern or POSIX name, such as "fd_write", "clock", "path_*" or "READ"'


_Calls = Annotated[tuple[str, ...], Texts("calls, groups, patterns or POSIX names", _CallPattern())]


class Wasi(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which WASI calls the guest may make.

    Attributes:
        allow: Calls, by name (`fd_write`), pattern (`path_*`), group (`clock`), or the name of the POSIX system call
            that they stand for (`READ`); what is not allowed is refused.
        deny: Calls that are refused all the same.
        errno: How they are refused: `notcapable`, `perm` or `nosys`.
    """

    PATH: ClassVar = "wasi"

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[WasiFields]) -> None: ...

    allow: _Calls = ("*",)
    deny: _Calls = ("sock_*",)
    errno: Literal["notcapable", "perm", "nosys"] = "notcapable"

    def __post_init__(self) -> None:
        Part.__post_init__(self)
        for pattern in self.allow:
            if not wasi_calls(pattern) and guest_syscalls()[pattern.lower()].never:
                raise PolicyError(
                    f"wasi.allow has {shown(pattern)}, which no guest can be given: WASI has no such call. Leave it out"
                )

    def refused(self) -> frozenset[str]:
        """Returns the names of the WASI calls that are refused."""
        allowed = {name for pattern in self.allow for name in wasi_calls(pattern)}
        denied = {name for pattern in self.deny for name in wasi_calls(pattern)}
        return frozenset(WASI_BY_NAME) - allowed | denied

    def refused_by(self, call: str) -> Literal["allow", "deny"]:
        """Returns which of the two lists refuses a WASI call that is refused.

        Args:
            call: Its name.
        """
        return "deny" if any(call in wasi_calls(pattern) for pattern in self.deny) else "allow"

    def syscall(self, call: str | int, platform: str = "linux-x86_64") -> Classification:
        """Says what becomes of a POSIX system call that a native program would make, when a guest wants the same.

        Args:
            call: Its name, in any case, or its number.
            platform: For numbers: `linux-x86_64`, `linux-aarch64` or `darwin`.

        Returns:
            `allowed`, `refused` by this policy, `forbidden` to every guest, or `unknown`, which is refused, too.

        Raises:
            PolicyError: There is no such platform.
        """
        found = find_syscall(call, platform)
        if found is None:
            return "unknown"
        if found.never:
            return "forbidden"
        refused = self.refused()
        return "refused" if found.wasi and all(name in refused for name in found.wasi) else "allowed"


_WORDS: Final = frozenset((*WASI_BY_NAME, *(call.group for call in WASI)))
"""Names and groups of WASI: only for what is none of them is the table of system calls loaded."""

_WILD: Final = frozenset("*?[")


def wasi_calls(pattern: str) -> list[str]:
    """Returns the names of the WASI calls that a pattern stands for.

    Args:
        pattern: A name (`fd_write`), a pattern (`path_*`), a group (`clock`), or the name of the POSIX system call that
            they stand for (`READ`).
    """
    posix: tuple[str, ...] = ()
    if pattern not in _WORDS and not _WILD & set(pattern):
        known = guest_syscalls().get(pattern.lower())
        posix = known.wasi if known is not None else ()
    return [
        call.name
        for call in WASI
        if call.group == pattern or fnmatchcase(call.name, pattern) or (call.name in posix and pattern != call.name)
    ]
