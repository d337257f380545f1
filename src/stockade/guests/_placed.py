"""Where runs of a language happen: folders and sandboxes that serve one run after another, with interpreters ahead."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from stockade.execution import Inputs
from stockade.guests._fit import folders_of
from stockade.guests._folder import PrivateFolder
from stockade.guests._loaded import ENVIRONMENT, LoadedLanguage
from stockade.guests._place import Place, at_hand, told_of
from stockade.guests._task import Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.guests._driver import Driver
    from stockade.modules import Module
    from stockade.policy import Policy

__all__ = ["PlacedLanguage"]

_MOST_PLACES = 8
"""How many are kept for the next runs, where no more are asked for."""


def _silent(step: str) -> None:
    """Reports no progress."""


class PlacedLanguage(LoadedLanguage):
    """An interpreter, and places where code can run in it."""

    _is_apart: bool
    _pool_size: int
    _places: list[Place]
    _process: int

    def prepare(self, progress: Callable[[str], None] = _silent) -> None:
        """Loads and compiles the interpreter ahead of its first run, under limits of its own.

        Args:
            progress: Is told what is being done, before each step that may take long.

        Raises:
            ModuleError: It is not there, or cannot be run.
        """
        module, driver = self._load()
        place = self._place(self.policy, module, driver)
        try:
            place.box.prepare(module, progress)
            if driver.has_base or self._pool_size:
                progress("starting")
                self._beginning(module, driver, place.box.policy, is_often=True)
        finally:
            self._leave(place)
        with self._lock:
            missing = self._pool_size - sum(place.policy == self.policy for place in self._places)
        for place in [self._make_place(self.policy, module, driver) for _ in range(missing)]:
            self._leave(place)

    def close(self) -> None:
        """Lets go of what is kept for further runs: no run and no session begins any more.

        What is under way goes on, and sessions are closed by whoever opened them. Closing twice is harmless.
        """
        with self._lock:
            self._closed = True
            places, self._places, self._loaded = self._places, [], None
            self._bases = {}
        for place in places:
            place.close()

    def _place(self, policy: Policy, module: Module, driver: Driver) -> Place:
        """Takes a place where code can run under a policy, or makes one."""
        while (place := self._take_place(policy)) is not None:
            if place.folder.clear():
                return place
            place.close()
        return self._make_place(policy, module, driver)

    def _take_place(self, policy: Policy) -> Place | None:
        with self._lock:
            places = self._places
            if self._process != os.getpid():
                # Each process has places of its own: those that were made before it was forked are not.
                places = self._places = [place for place in places if place.folder.is_ours]
                self._process = os.getpid()
            at = at_hand(places, policy)
            return None if at is None else places.pop(at)

    def _make_place(self, policy: Policy, module: Module, driver: Driver) -> Place:
        folder = PrivateFolder()
        box, toolbox = self._sandbox(policy, driver, folder)
        ahead = None
        if self._pool_size and policy == self.policy and (driver.waits or driver.has_base):
            # One for each place, for its folder is its own.
            beginning = self._beginning(module, driver, box.policy, is_often=True)
            begun = driver.arguments(Task("", preload=self._preload, paths=self._wheels, is_ahead=True))
            if self._is_apart:
                box.warm(beginning, pool_size=1)
                return Place(policy, told_of(policy), box, folder, toolbox, folders_of(box.policy), None)
            ahead = box.warm_one(beginning, Inputs(begun, env=ENVIRONMENT), folder.clear, hints=driver.hints)
        return Place(policy, told_of(policy), box, folder, toolbox, folders_of(box.policy), ahead)

    def _leave(self, place: Place, *, is_clean: bool = False) -> None:
        """Gives a place back: whoever takes it finds nothing of what was in it.

        Args:
            place: The place.
            is_clean: Whether nothing has come to be in it.
        """
        surplus: Place | None = place
        if not is_clean:
            place.folder.left()
        if place.folder.is_ours and (place.ahead is not None or place.folder.clear()):
            if place.ahead is not None:
                # In the next pause: what is done in the background would be done in the time of runs.
                place.ahead.tend()
            with self._lock:
                if self._loaded is not None:
                    # The one that was not needed for longest makes room.
                    self._places.append(place)
                    surplus = self._places.pop(0) if len(self._places) > max(_MOST_PLACES, self._pool_size) else None
        if surplus is not None:
            surplus.close()
