"""Whatever a session writes, how it grows and when it is forked: each of them holds what it alone has written.

Holds P-SNAP-1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stockade import Policy, Sandbox, Session
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("everywhere")

GUEST = wat("""
(module
  (memory (export "memory") 80)
  (data (i32.const 5000000) "begins so")
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "fill") (param i32 i32 i32) (memory.fill (local.get 0) (local.get 1) (local.get 2))))
""")
"""Five megabytes: long enough for large pages, in which some stretches come to lie and others not."""

PAGE = 65_536
SIZE = 80 * PAGE
_SIZES = (1, 5_000, 70_000, 3 << 20)
_MOST_SESSIONS = 6


class _One(NamedTuple):
    """A session, and what it is to hold."""

    session: Session
    held: bytearray


_Steps = list[tuple[str, int, int, int, int]]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["fill", "fill", "fork", "fork", "grow", "close", "snapshot"]),
        st.integers(0, _MOST_SESSIONS - 1),
        st.integers(0, SIZE - 1),
        st.sampled_from(_SIZES),
        st.integers(0, 255),
    ),
    min_size=4,
    max_size=14,
)


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(Policy().replace(memory="32MiB")) as made:
        yield made


def _fill(one: _One, at: int, size: int, byte: int) -> None:
    size = min(size, len(one.held) - at)
    one.session.call("fill", at, byte, size).check()
    one.held[at : at + size] = bytes([byte]) * size


@given(STEPS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_session_holds_what_it_has_written(box: Sandbox, steps: _Steps) -> None:
    """The attack: whoever shares pages with another looks for what that has written since."""
    held = bytearray(SIZE)
    held[5_000_000:5_000_009] = b"begins so"
    live = [_One(box.open(GUEST), held)]
    # More than a large page, so that the first fork puts some in.
    _fill(live[0], 300_000, 4_500_000, 7)
    try:
        for kind, which, at, size, byte in steps:
            one = live[which % len(live)]
            if kind == "fill":
                _fill(one, at, size, byte)
            elif kind == "grow":
                if one.session.call("grow", 1 + byte % 16).check().value != -1:
                    one.held.extend(bytes((1 + byte % 16) * PAGE))
            elif kind == "close":
                if len(live) > 1:
                    live.remove(one)
                    one.session.close()
            elif len(live) < _MOST_SESSIONS:
                made = one.session.fork() if kind == "fork" else box.open(one.session.snapshot())
                live.append(_One(made, bytearray(one.held)))
        for one in live:
            assert one.session.read_memory(0, len(one.held)) == one.held
    finally:
        for one in live:
            one.session.close()
