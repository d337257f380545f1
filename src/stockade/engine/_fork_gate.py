"""Nobody is in the library while the process is forked, or the child says so.

A child has the parent's memory, and of its threads only the one that forked. A lock of the library that another thread
has at that moment is never given back there, and whoever comes to it waits for ever, where no limit ends it. The
library takes such locks in calls for which the interpreter lock is released, and in no other. So whoever makes one is
on a list here meanwhile. Before a fork nobody may begin one, and those that go on have a while to end: guests yield at
the next ticks. Then nothing that the child has is in the middle of something, and it needs nothing anew.

Waiting has an end on both sides, for who waits may hold what others wait for. What was promised does not depend on it:
the lists are copied with everything else, so the child knows whether somebody was inside. There, nobody may call the
library again.
"""

from __future__ import annotations

import os
import time
import weakref
from functools import partial, update_wrapper
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

from stockade.engine._runtime_threads import look_before_fork

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["counted", "delete_aside", "forks", "inside", "keep_list", "others_were_inside", "stand_back"]

MOST_WAITED_SECONDS = 2.0
"""How long a fork waits for the calls under way, and a call for a fork."""

_STEP_SECONDS: Final = 0.001

forks: Final[list[None]] = []
"""One entry for each fork that is about to be made. While there are some, no call begins."""

inside: Final[dict[object, int]] = {}
"""The calls under way, but for those of guests, each with its thread: 0 where that is not known."""

_lists: Final[dict[int, dict[object, int]]] = {}
"""The same for guests, by the identities of the lists: each engine has one."""

_forking: Final[set[int]] = set()
"""Threads that fork. What is called there meanwhile, such as what frees something, must not wait for them."""

_lost = False


def others_were_inside() -> bool:
    """Whether this process was forked while another thread of its parent was in the library."""
    return _lost


def keep_list(owner: object) -> dict[object, int]:
    """Makes a list of calls under way.

    Args:
        owner: The list is looked at as long as this exists.

    Returns:
        The list: whoever is on it is in the library. It is to be put there, with its thread, before `forks` is looked
        at.
    """
    made: dict[object, int] = {}
    _lists[id(made)] = made
    weakref.finalize(owner, _lists.pop, id(made), None).atexit = False
    return made


def stand_back(calls: dict[object, int], call: object) -> None:
    """Waits while there are forks to be made, a while at most: is not on the list meanwhile, and is afterwards.

    Args:
        calls: The list.
        call: Who is on it.
    """
    thread = calls[call]
    try:
        _stand_back(calls, call, thread)
    finally:
        calls[call] = thread


def _stand_back(calls: dict[object, int], call: object, thread: int) -> None:
    end = time.monotonic() + MOST_WAITED_SECONDS
    while forks and thread not in _forking and time.monotonic() < end:
        calls.pop(call, None)
        time.sleep(_STEP_SECONDS)
        # Before the look at the forks.
        calls[call] = thread


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of the library that is on the list while it is called."""

    def call(*arguments: object) -> object:
        me = object()
        inside[me] = get_ident()
        try:
            if forks:
                stand_back(inside, me)
            return function(*arguments)
        finally:
            inside.pop(me, None)

    return update_wrapper(call, function, (), ())


def delete_aside(delete: Callable[[int], object], pointer: int) -> None:
    """Calls a function of the library that frees what nobody else knows; it is on the list meanwhile.

    Whatever the handler of a signal raises, it is called, if only this function begins without looking for signals.

    Args:
        delete: The function.
        pointer: What is freed.
    """
    thread = 0
    try:
        thread = get_ident()
    finally:
        inside[pointer] = thread
        try:
            if forks:
                stand_back(inside, pointer)
        finally:
            try:
                delete(pointer)
            finally:
                inside.pop(pointer, None)


def _others() -> bool:
    """Whether another thread is in the library."""
    me = get_ident()
    return any(thread != me for calls in (inside, *_lists.values()) for thread in tuple(calls.values()))


def _wait_for_others() -> None:
    try:
        _forking.add(get_ident())
        _wait_until_alone()
    finally:
        look_before_fork()


def _wait_until_alone() -> None:
    end = time.monotonic() + MOST_WAITED_SECONDS
    while _others() and time.monotonic() < end:
        time.sleep(_STEP_SECONDS)


def _after_in_parent() -> None:
    _forking.discard(get_ident())


def _after_in_child() -> None:
    global _lost
    _lost = _lost or _others()
    _forking.clear()
    # A handler of a signal may have forked, in the middle of a call that goes on here.
    me = get_ident()
    for calls in (inside, *_lists.values()):
        for call in [call for call, thread in calls.items() if thread != me]:
            del calls[call]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait_for_others, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
    # By calls in C that are whole for signals, so that each entry goes that has come. What is registered last is called
    # first before a fork.
    os.register_at_fork(
        before=partial(forks.append, None),
        after_in_parent=partial(forks.__delitem__, slice(-1, None)),
        after_in_child=forks.clear,
    )
