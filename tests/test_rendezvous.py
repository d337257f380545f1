"""A thread lets another one by: it goes on when that is done, or after a while."""

from __future__ import annotations

import threading

from stockade._rendezvous import Rendezvous
from tests._processes import until


def test_who_waits_goes_on_when_the_other_is_done() -> None:
    """Not before, also where it rang for somebody who did not wait for so long."""
    place = Rendezvous()
    place._over.ring()
    waiting = threading.Thread(target=place.let_by, args=(3600.0,))
    waiting.start()
    assert until(lambda: place._is_awaited)
    assert waiting.is_alive()

    place.is_done()

    waiting.join(60)
    assert not waiting.is_alive()


def test_the_other_is_woken_by_who_waits_already() -> None:
    """Whatever it does at once, it finds somebody who waits."""
    place = Rendezvous()

    # Else this would take an hour.
    place.let_by(3600.0, place.is_done)


def test_nobody_is_waited_for_longer_than_agreed() -> None:
    """And nobody rings for who does not wait any more."""
    place = Rendezvous()
    place.let_by(0.001)

    place.is_done()

    assert not place._over._silent.acquire(blocking=False)
