"""A short run of the fuzzer, and what it must find. `make fuzz` runs it for minutes.

Holds P-GUARD-3.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import stockade
from stockade.guard import prove
from stockade.wasm import Reader, _scan
from tests._examples import examples
from tests.fuzz import _differential
from tests.fuzz.__main__ import one
from tests.fuzz._differential import check, check_run
from tests.fuzz._generator import Choices, generate
from tests.fuzz.undone import LIVE, PLACES, fate, losing_step


def _module(data: st.DataObject) -> bytes:
    return generate(Choices(lambda count: data.draw(st.integers(0, count - 1))))


_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@settings(max_examples=examples(40), suppress_health_check=_SLOW)
@given(st.data())
def test_decoders_and_engine_agree_on_any_module(data: st.DataObject) -> None:
    """The attack: any encoding of anything, anywhere. What goes wrong is made as small as it gets."""
    check(_module(data))


@settings(max_examples=examples(8), suppress_health_check=_SLOW)
@given(st.data())
def test_any_module_runs_as_without_a_guard(data: st.DataObject) -> None:
    """Every call of WASI is counted, and the value is that of a run with stand-ins."""
    check_run(_module(data))


@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in (40, 80))])
def test_seeds_and_their_mutants(first: int) -> None:
    """The same with modules that are larger, some of them with changed bytes."""
    valid = sum(one(seed)[1] for seed in range(first, first + 40))

    assert valid


def _first_problem(seeds: range) -> BaseException | None:
    """What is found with a reader that knows one encoding of each type, where it does not notice by itself."""
    for seed in seeds:
        source = random.Random(seed)
        try:
            check(generate(Choices(source.randrange)))
        except (AssertionError, stockade.InvalidModule) as problem:
            if isinstance(problem, AssertionError) or str(problem).startswith("not valid WebAssembly"):
                return problem
    return None


@pytest.fixture
def _losing_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_byte(reader: Reader) -> str:
        return f"{reader.byte():#x}"

    monkeypatch.setattr(_scan, "guest_value_type", one_byte)
    monkeypatch.setattr(_differential, "_check_readers", lambda module, second: None)


@pytest.mark.usefixtures("_losing_step")
def test_a_reader_that_loses_step_is_found_without_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fuzzer's own worth: it finds calls that were missed, by the decoder that it compares with."""
    monkeypatch.setattr(_differential, "prove", lambda original, woven: None)

    assert isinstance(_first_problem(range(1_000)), AssertionError)


@pytest.mark.usefixtures("_losing_step")
def test_a_reader_that_loses_step_is_found_by_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof's own worth: it finds them without another decoder."""
    monkeypatch.setattr(_differential, "check_woven", lambda data, woven: None)

    problem = _first_problem(range(1_000))

    assert _differential.prove is prove
    assert isinstance(problem, stockade.InvalidModule)
    assert str(problem).startswith("not valid WebAssembly: ")


@pytest.mark.parametrize(
    "place", [pytest.param(place, marks=() if place == "locals" else pytest.mark.slow) for place in PLACES]
)
def test_what_a_reader_that_loses_step_lets_through_the_proof_refuses(place: str) -> None:
    """The attack: calls of native WASI that the reader does not see. Not one of them is proven, wherever it stands.

    With readers as they are nothing is refused; and in code that never runs any call may stand.
    """
    found = 0
    for seed in range(950, 1_150):
        data = generate(Choices(random.Random(seed).randrange))
        with losing_step(place):
            told, refused = fate(data)
        assert refused or told != LIVE, f"seed {seed}"
        found += told == LIVE
        if told == LIVE or seed % 20 == 0:
            assert fate(data) == ("right", False)

    assert found or place != "locals"
