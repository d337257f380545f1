"""The jail itself: walls, raised one after the other around a process of one thread."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from stockade.jail._landlock import landlock_version, restrict_files
from stockade.jail._leftovers import close_descriptors, empty_environment, find_environment, leave_session, set_limits
from stockade.jail._model import JailError, JailReport, Step
from stockade.jail._namespaces import has_other_threads
from stockade.jail._privileges import drop_capabilities, forgo_new_privileges, hide_memory
from stockade.jail._seccomp import install_filter, prepare_filters
from stockade.jail._verify import load_checks, verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.jail._model import Jail, Wall

__all__ = ["confine", "warm_up"]


def warm_up(jail: Jail) -> None:
    """Makes what `confine` needs, in a process whose children are going to be confined: each would make it anew.

    Args:
        jail: One that differs from theirs in descriptors and limits alone.
    """
    prepare_filters(jail)
    load_checks()
    with suppress(OSError):
        find_environment()


def confine(jail: Jail, inherited: tuple[Step, ...] = ()) -> JailReport:
    """Raises all walls around this process that the machine gives, and tries whether they hold.

    In this order, so that each step still may what it needs: environment, session, descriptors, limits, no new
    privileges, capabilities, memory hidden, Landlock, seccomp. Namespaces come before, by `enter_namespaces`.

    Args:
        jail: What the process is left with.
        inherited: What came of the namespaces that it is in.

    Returns:
        Which walls stand.

    Raises:
        JailError: One that is required is not there, one does not hold, or the process has other threads, which would
            stay outside: it must end at once.
    """
    if has_other_threads():
        raise JailError(
            "this process has other threads, which would stay outside the jail: confine it before they start"
        )
    steps = [*inherited]
    walls: tuple[tuple[Wall, Callable[[], str]], ...] = (
        ("environment", empty_environment),
        ("session", leave_session),
        ("descriptors", lambda: close_descriptors(jail)),
        ("limits", lambda: set_limits(jail.limits)),
        ("privileges", forgo_new_privileges),
        ("capabilities", drop_capabilities),
        ("undumpable", hide_memory),
        ("landlock", lambda: restrict_files(jail)),
        ("seccomp", lambda: _install(jail)),
    )
    for wall, raise_it in walls:
        try:
            steps.append(Step(wall, active=True, detail=raise_it()))
        except (OSError, ValueError) as problem:
            told = getattr(problem, "strerror", None) or str(problem)
            if wall == "landlock" and landlock_version():
                raise JailError(f"this kernel has Landlock, and does not confine this process by it: {told}") from None
            steps.append(Step(wall, active=False, detail=told))
    report = JailReport(tuple(steps))
    report.check(jail.require)
    report = JailReport(report.steps, verify(report.active))
    if "seccomp" in report.active and _kills(jail):
        # So far what it tried has failed; from now on it would be the end of this process.
        try:
            install_filter(jail, trial=False)
        except OSError as problem:
            raise JailError(f"the second filter cannot be installed: {problem.strerror}") from None
    return report


def _install(jail: Jail) -> str:
    install_filter(jail, trial=_kills(jail))
    ends = [f"{kind} calls" for kind in ("forbidden", "unlisted") if getattr(jail, f"on_{kind}") == "kill"]
    return (
        f"system calls that are listed; {' and '.join(ends)} end the process"
        if ends
        else "system calls that are listed"
    )


def _kills(jail: Jail) -> bool:
    return "kill" in (jail.on_forbidden, jail.on_unlisted)
