"""A mapping that keeps what was used last."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from stockade._bounded import BoundedDict


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_it_keeps_what_was_used_last(most: int, steps: list[tuple[bool, int]]) -> None:
    """Whatever is put and looked for: the newest, and what was looked for lately, stays; there are never more."""
    kept: BoundedDict[int, str] = BoundedDict(most)
    used: OrderedDict[int, None] = OrderedDict()
    for puts, key in steps:
        if puts:
            kept.keep(key, str(key))
            used[key] = None
        else:
            assert kept.find(key) == (str(key) if key in list(used)[-most:] else None)
        if key in list(used)[-most:]:
            used.move_to_end(key)
        for old in list(used)[:-most]:
            del used[old]
        assert list(kept) == list(used)
