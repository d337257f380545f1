"""The smallest policy that permits what was seen in some runs."""

from __future__ import annotations

import posixpath
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from stockade._text import printable
from stockade.errors import UsageError
from stockade.learning._files import FilesUsed, paths_used, size_below, smallest_mount, used_below
from stockade.policy import Environment, Features, Mount, Network, Policy, runnable_features
from stockade.report import Trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stockade.learning._files import Access
    from stockade.modules import Module
    from stockade.report import Report

__all__ = ["LEARNING_TRACE", "Learned", "learn", "learning_policy", "merge"]

LEARNING_TRACE: Final = Trace(
    calls=(
        "path",
        "fd_close",
        "fd_renumber",
        "fd_readdir",
        "fd_write",
        "fd_pwrite",
        "fd_filestat_set_*",
        "fd_allocate",
    ),
    string_bytes=4096,
    durations="none",
    on_overflow="wait",
    most_calls=1_000_000,
)
"""What has to be traced of a run, so that something can be learned from it."""

_PATH_BYTES: Final = 4096
_MIB: Final = 1 << 20
_LEAST_BYTES: Final = 64 << 10
_FUEL: Final = 1 << 60
_SECONDS: Final = 3600.0
_FILES_TOLD: Final = 6
_NOT_MEASURED: Final = {
    "stack": "how deep a guest calls, the engine does not tell",
    "memory_growth": "how much it grew in its busiest second is not known",
    "read_rate": "how much it read in its busiest second is not known",
    "write_rate": "how much it wrote in its busiest second is not known",
    "call_rate": "how often it called in its busiest second is not known",
}
_MOST_PATHS: Final = 2000
"""So many paths of a folder are named, at most: people are to read them."""


class Learned(NamedTuple):
    """A policy that was learned.

    Attributes:
        policy: The policy.
        reasons: Why it says what it says: by the path of a field, such as `limits.memory`, or by the path of a file, as
            the guest sees it, such as `/data/a.txt`.
    """

    policy: Policy
    reasons: Mapping[str, str]

    def to_toml(self) -> str:
        """Returns it as a document in which a comment says of each field why."""
        from stockade.learning._document import learned_toml

        return learned_toml(self)


def learning_policy(base: Policy) -> Policy:
    """Returns a policy for a run from which something is to be learned: its rights as they are, limits out of the way.

    Args:
        base: What may be used: folders, variables, clock, randomness.
    """
    return base.replace(
        fuel=_FUEL,
        fuel_refill=0,
        fuel_refill_max=0,
        fuel_time=None,
        wall_time=_SECONDS,
        idle_time=None,
        cpu_percent=100,
        memory=max(base.limits.memory, 1 << 30),
        memory_growth=None,
        table_elements=max(base.limits.table_elements, 100_000),
        stdout=16 << 20,
        stderr=16 << 20,
        open_files=1000,
        files_created=None,
        file_size=None,
        read_bytes=None,
        write_bytes=None,
        read_rate=None,
        write_rate=None,
        random_bytes=None,
        calls=None,
        call_rate=None,
    )


def learn(
    module: Module,
    base: Policy,
    reports: Sequence[Report],
    variables: Iterable[str] = (),
    *,
    name: str = "",
    finds_folders: bool = False,
) -> Learned:
    """Returns the smallest policy that permits what was seen.

    Folders are as small as a policy can say it: the one of a mount in which all lies that was used, read-only where
    nothing was written, and only for the paths that were named (`Mount.only`), unless the program makes links, moves
    folders, or makes up names. A program that never asks for the names of its folders knows them by their numbers, and
    gets the mounts as they were, for the paths that it named. Limits have headroom of two at least, in round numbers.

    Args:
        module: What ran.
        base: The policy that was given; what cannot be learned stays as it is there.
        reports: The reports on the runs, each traced with `LEARNING_TRACE`.
        variables: The names of the variables that the runs were given.
        name: What the policy is called.
        finds_folders: Whether the program is known to find its folders by their names, though it does not ask for them
            in these runs.

    Raises:
        UsageError: There is no report, or calls are missing in a trace.
    """
    if not reports:
        raise UsageError("there is nothing to learn from: give the report of one run at least")
    for report in reports:
        if report.trace_lost:
            raise UsageError(
                f"{report.trace_lost:,} calls are missing in the trace, so the folders that were used are not known: "
                "trace with stockade.learning.LEARNING_TRACE, or let the program do less at a time"
            )
    learner = _Learner(module, base, reports, [*variables], finds_folders=finds_folders)
    return learner.learned(name or f"learned from {module.name}")


class _Learner:
    """The work on one policy."""

    def __init__(
        self,
        module: Module,
        base: Policy,
        reports: Sequence[Report],
        variables: Sequence[str],
        *,
        finds_folders: bool,
    ) -> None:
        self._module = module
        self._base = base
        self._reports = reports
        self._variables = variables
        self._reasons: dict[str, str] = {}
        self._calls: dict[str, int] = {}
        for report in reports:
            for call, count in report.usage.calls.items():
                if report.usage.denied.get(call, 0) < count:
                    self._calls[call] = self._calls.get(call, 0) + count
        self._finds_folders = finds_folders or "fd_prestat_dir_name" in self._calls

    def learned(self, name: str) -> Learned:
        runs = f"{len(self._reports)} run{'s' if len(self._reports) > 1 else ''}"
        self._reasons["name"] = f"learned from {runs} of {self._module.name}, sha256 {self._module.sha256}"
        policy = msgspec.structs.replace(self._base, name=printable(name), on_violation="deny")
        policy = policy.replace(**self._limits())  # type: ignore[arg-type]
        policy = policy.replace(**self._rights())  # type: ignore[arg-type]
        return Learned(policy, self._reasons)

    # -- limits -------------------------------------------------------------------------------------------------------

    def _most(self, name: str) -> float:
        """The most that a run used, or a session until the end of a call."""
        return max((getattr(report.usage, name) or 0) + getattr(report.earlier, name, 0) for report in self._reports)

    def _why(self, field: str, used: str) -> None:
        self._reasons[f"limits.{field}"] = used

    def _limits(self) -> dict[str, object]:
        found: dict[str, object] = {}
        fuel = int(self._most("fuel"))
        if fuel:
            found["fuel"] = round_number(2 * fuel)
            self._why("fuel", f"{fuel:,} units were used")
        wall = self._most("wall_seconds")
        found["wall_time"] = float(round_number(max(5.0, 10 * wall)))
        self._why("wall_time", f"the longest run took {wall:.3g} s; a busier machine takes longer")
        idle = self._most("idle_seconds")
        found["idle_time"] = float(round_number(max(5.0, 5 * idle)))
        self._why("idle_time", f"it waited for {idle:.3g} s" if idle else "it never waited")
        memory = int(self._most("memory_peak_bytes"))
        found["memory"] = min(round_bytes(memory + memory // 4, least=65_536), 4 << 30)
        self._why("memory", f"{memory:,} bytes were used")
        elements = int(self._most("table_elements"))
        found["table_elements"] = min(round_number(elements + elements // 4), 10_000_000)
        self._why("table_elements", f"{elements:,} elements were used")
        size, parsed = len(self._module.data), self._module.parsed
        found["module_size"] = min(round_bytes(size), self._base.limits.module_size)
        self._why("module_size", f"the module has {size:,} bytes")
        found["memories"], found["tables"] = len(parsed.memories), len(parsed.tables)
        self._why("memories", "as the module declares")
        self._why("tables", "as the module declares")
        for stream in ("stdout", "stderr"):
            written = int(self._most(f"{stream}_bytes"))
            found[stream] = min(max(_LEAST_BYTES, round_bytes(2 * written)), 256 << 20)
            self._why(stream, f"{written:,} bytes were written" if written else "nothing was written; for messages")
        for field, counter, what in (
            ("open_files", "files_open_peak", "open at a time"),
            ("files_created", "files_created", "created"),
        ):
            count = int(self._most(counter))
            found[field] = count if count < 2 else round_number(count + count // 4)
            self._why(field, f"{count:,} files and folders were {what}" if count else f"nothing was {what}")
        for field, counter, what in (
            ("read_bytes", "read_bytes", "read from files"),
            ("write_bytes", "written_bytes", "written to files"),
            ("random_bytes", "random_bytes", "handed out"),
        ):
            amount = int(self._most(counter))
            found[field] = round_bytes(2 * amount) if amount else 0
            self._why(field, f"{amount:,} bytes were {what}" if amount else f"nothing was {what}")
        largest = self._largest_file()
        # A file that was made has no more than was written; one that was there before counts as a whole.
        most = max(largest, int(self._most("written_bytes")))
        found["file_size"] = round_bytes(2 * most) if most else 0
        self._why("file_size", f"the largest file that it has written, and left, has {largest:,} bytes")
        if not most:
            self._why("file_size", "nothing was written to files")
        for field, why in _NOT_MEASURED.items():
            self._why(field, f"not measured, so it is as it was given: {why}")
        calls = max(
            sum(report.usage.calls.values()) + report.usage.host_calls + report.earlier.calls
            for report in self._reports
        )
        found["calls"] = round_number(2 * calls)
        self._why("calls", f"{calls:,} calls were made")
        return found

    def _largest_file(self) -> int:
        """How many bytes the largest of the files has that were written, as they are now."""
        sizes = [0]
        for mount in self._base.filesystem.mounts:
            for path, access in used_below(mount, self._followed[0]).items():
                if access.wrote and (size := size_below(mount, path)) is not None:
                    sizes.append(size)
        return max(sizes)

    # -- rights -------------------------------------------------------------------------------------------------------

    def _rights(self) -> dict[str, object]:
        reasons = self._reasons
        allow = sorted(self._calls)
        counts = ", ".join(f"{call} {self._calls[call]:,}" for call in allow)
        reasons["wasi.allow"] = f"what was called, and how often: {counts}" if allow else "nothing was called"
        reasons["wasi.deny"] = "nothing beyond what is not allowed"
        found: dict[str, object] = {"allow": allow, "deny": []}
        found["mounts"] = self._mounts()
        # To rename is to make one name and to remove another.
        renames = "path_rename" in self._calls and self._base.filesystem.create and self._base.filesystem.delete
        for field, counter, what in (("create", "files_created", "created"), ("delete", "files_deleted", "removed")):
            found[field] = bool(self._most(counter)) or renames
            also = ", and path_rename was called" if renames else ""
            reasons[f"filesystem.{field}"] = f"{int(self._most(counter)):,} files and folders were {what}{also}"
        links = [call for call in ("path_symlink", "path_link") if call in self._calls]
        found["symlinks"] = self._base.filesystem.symlinks and bool(links)
        reasons["filesystem.symlinks"] = f"{' and '.join(links)} were called" if links else "no link was made"
        asked = "environ_get" in self._calls
        names = sorted({*self._variables}) if asked else []
        found["environment"] = Environment(mode="allow", names=tuple(names)) if names else Environment()
        reasons["environment.mode"] = "it asks for its environment" if asked else "it never asks for its environment"
        if names:
            reasons["environment.names"] = "the variables that it was given"
        found["clock"] = self._mode("clock", ("clock_time_get", "clock_res_get"))
        found["random"] = self._mode("random", ("random_get",))
        if not self._most("network_connections") and self._base.network.mode != "none":
            found["network"] = Network()
            reasons["network.mode"] = "no connection was made"
        found["features"] = self._features()
        return found

    def _mode(self, section: str, calls: Sequence[str]) -> object:
        """The clock, or randomness: as it was given where it was used."""
        part = getattr(self._base, section)
        called = [call for call in calls if call in self._calls]
        if called:
            self._reasons[f"{section}.mode"] = f"{' and '.join(called)} were called"
            return part
        self._reasons[f"{section}.mode"] = "it was never asked for"
        return type(part)(mode="none")

    def _features(self) -> Features:
        used = {*self._module.inspect().features}
        if "relaxed_simd" in used:
            used.add("simd")
        if "gc" in used:
            used.add("function_references")
        for feature in runnable_features():
            self._reasons[f"features.{feature}"] = "the module uses it" if feature in used else "the module does not"
        return Features(**{feature: feature in used for feature in runnable_features()})

    @cached_property
    def _followed(self) -> tuple[dict[str, Access], dict[str, str]]:
        """What was done with which paths, and why folders cannot have a list of paths."""
        given = self._base.filesystem.mounts
        accesses: dict[str, Access] = {}
        unlistable: dict[str, str] = {}
        files = FilesUsed(given)
        for report in self._reports:
            if not report.earlier.calls:
                # Not a later call of the same session, in which descriptors are still open.
                files = FilesUsed(given)
            files.accesses, files.unlistable = accesses, unlistable
            files.follow(report.trace_calls)
            for mount in given:
                if why := files.why_unlistable(mount.guest):
                    unlistable[mount.guest] = why
        return accesses, unlistable

    def _mounts(self) -> list[Mount]:
        given = self._base.filesystem.mounts
        accesses, unlistable = self._followed
        found: list[Mount] = []
        told: list[str] = []
        if not self._finds_folders:
            while given and not used_below(given[-1], accesses):
                given = given[:-1]
        for mount in given:
            if not self._finds_folders:
                used = used_below(mount, accesses)
                mode: Literal["ro", "rw"] = "rw" if any(access.wrote for access in used.values()) else "ro"
                same = Mount(mount.host, mount.guest, mode)
                found.append(self._listed(same, mount, used, unlistable, told))
                told.append(_used(used) or f"nothing of {printable(mount.guest)} was used, but it is counted")
                continue
            smallest = smallest_mount(mount, accesses)
            if smallest is None:
                told.append(f"nothing of {printable(mount.guest)} was used, so it is left out")
                continue
            found.append(self._listed(smallest[0], mount, smallest[1], unlistable, told))
            told.append(_used(smallest[1]))
        self._reasons["filesystem.mounts"] = "\n".join(told) if told else "no folder was given"
        return found

    def _listed(
        self,
        granted: Mount,
        given: Mount,
        used: dict[str, Access],
        unlistable: Mapping[str, str],
        told: list[str],
    ) -> Mount:
        """Returns a mount with the list of the paths that were used, and no others that were given.

        Args:
            granted: The mount, or a folder of it.
            given: The mount as it was given.
            used: What was used of it.
            unlistable: Why there cannot be a list, by the guest's paths of mounts.
            told: Is told why there is none.
        """
        shown = printable(granted.guest)
        varies = not {"random_get", "clock_time_get"}.isdisjoint(self._calls)
        paths = paths_used(granted.guest, used, names_vary=varies)
        why = unlistable.get(given.guest, "")
        if not why and paths is None:
            why = "it makes files there and removes them again, by names that may be others the next time"
        if not why and paths is not None and len(paths) > _MOST_PATHS:
            why = f"it uses {len(paths):,} paths of it"
        if (why or paths is None) and given.only is None:
            told.append(f"all of {shown} is granted, for {why}")
            return granted
        if why or paths is None:
            # What was given is a list: no more of it than lies in this folder.
            prefix = _below(granted.guest, given.guest)
            paths = {
                path.removeprefix(prefix): "as it was given" for path in given.only or () if path.startswith(prefix)
            }
        names = [path for path in paths if _can_be_listed(path) and _was_given(path, granted, given)]
        for path in names:
            self._reasons[posixpath.join(granted.guest, path)] = paths[path]
        return Mount(granted.host, granted.guest, granted.mode, names)


def _below(inner: str, outer: str) -> str:
    """What paths begin with that lie in a folder of a mount: "" for the mount itself."""
    below = posixpath.relpath(inner, outer)
    return "" if below == "." else f"{below}/"


def _was_given(path: str, granted: Mount, given: Mount) -> bool:
    """Whether a path of a folder may be named under the mount that was given."""
    if given.only is None:
        return True
    prefix = _below(granted.guest, given.guest)
    whole = posixpath.normpath(prefix + path) + ("/" if path.endswith("/") else "")
    return whole in given.only or any(
        whole.startswith(entry) or f"{whole}/" == entry for entry in given.only if entry.endswith("/")
    )


def _can_be_listed(path: str) -> bool:
    """Whether a path can be one of a list: what the guest has named can be anything, and is no file then."""
    return (
        "\0" not in path and "\ufffd" not in path and ".." not in path.split("/") and len(path.encode()) <= _PATH_BYTES
    )


def _used(accesses: Mapping[str, Access]) -> str:
    """Tells what was used of a mount."""
    groups = {
        "written": sorted(path for path, access in accesses.items() if access.wrote),
        "read": sorted(path for path, access in accesses.items() if access.exists and not access.wrote),
        "looked for": sorted(path for path, access in accesses.items() if not access.exists),
    }
    parts = []
    for what, paths in groups.items():
        if paths:
            more = f" and {len(paths) - _FILES_TOLD:,} more" if len(paths) > _FILES_TOLD else ""
            parts.append(f"{what}: {', '.join(map(printable, paths[:_FILES_TOLD]))}{more}")
    return "; ".join(parts)


def round_number(number: float) -> int:
    """Returns the next number of 1, 2 and 5 with zeros behind it.

    Args:
        number: The least that it may be.
    """
    unit = 1
    while True:
        for digit in (1, 2, 5):
            if digit * unit >= number:
                return digit * unit
        unit *= 10


def round_bytes(number: int, least: int = 4096) -> int:
    """Returns the next power of two; from 4 MiB on, the next multiple of a quarter of one.

    Args:
        number: The least that it may be.
        least: The least that is returned.
    """
    power = max(least, 1 << max(0, number - 1).bit_length())
    step = power // 8
    return -(-number // step) * step if power > 4 * _MIB else power


def merge(before: Policy, learned: Learned) -> Learned:
    """Returns a policy that permits what either does: what was learned before, and what is learned now.

    Args:
        before: What was learned before.
        learned: What is learned now.

    Raises:
        PolicyError: Their folders cannot be granted together.
    """
    new, reasons = learned.policy, dict(learned.reasons)
    limits = {}
    for name in new.limits.__struct_fields__:
        old, now = getattr(before.limits, name), getattr(new.limits, name)
        more = old is None or (isinstance(old, int | float) and isinstance(now, int | float) and old > now)
        limits[name] = old if more else now
        if more and f"limits.{name}" in reasons:
            reasons[f"limits.{name}"] = "as it was learned before"
    seen: dict[str, object] = {
        "limits": type(new.limits)(**limits),
        "allow": sorted({*before.wasi.allow, *new.wasi.allow}),
        "mounts": _together([*before.filesystem.mounts, *new.filesystem.mounts]),
    }
    reasons["wasi.allow"] += "; the others as they were learned before"
    reasons["filesystem.mounts"] += "\nand what was learned before"
    for name in ("create", "delete", "symlinks"):
        seen[name] = getattr(before.filesystem, name) or getattr(new.filesystem, name)
    names = {*before.environment.names, *new.environment.names}
    seen["environment"] = Environment(mode="allow", names=tuple(sorted(names))) if names else new.environment
    for section in ("clock", "random"):
        if getattr(new, section).mode == "none":
            seen[section] = getattr(before, section)
    features = {name: getattr(before.features, name) or getattr(new.features, name) for name in runnable_features()}
    seen["features"] = Features(**features)
    return Learned(new.replace(**seen), reasons)  # type: ignore[arg-type]


def _together(mounts: Sequence[Mount]) -> list[Mount]:
    """Folders of two policies: one that lies in another is granted with that."""
    found: list[Mount] = []
    for mount in sorted(mounts, key=lambda mount: len(mount.guest)):
        for place, outer in enumerate(found):
            below = posixpath.relpath(mount.guest, outer.guest)
            if not below.startswith("..") and posixpath.normpath(posixpath.join(outer.host, below)) == mount.host:
                mode = max(outer.mode, mount.mode)
                found[place] = Mount(outer.host, outer.guest, mode, _both_lists(outer, mount))
                break
        else:
            found.append(mount)
    return found


def _both_lists(outer: Mount, inner: Mount) -> Sequence[str] | None:
    """The paths of a mount and of a folder of it, from the mount on; None where that is all of it."""
    prefix = _below(inner.guest, outer.guest)
    if outer.only is None or (inner.only is None and not prefix):
        return None
    if inner.only is None:
        return [*outer.only, prefix]
    # What is listed in the inner folder is one that has a name in the outer one.
    inside = [(prefix.rstrip("/") or ".") if path == "." else prefix + path for path in inner.only]
    return [*outer.only, *inside]
