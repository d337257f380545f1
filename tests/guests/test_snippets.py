"""P-LANG-1: one table of snippets, which every runtime that is installed passes with exactly the result it tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stockade import JavaScript, Python
from tests._examples import part
from tests.guests._javascript_snippets import FILES, JAVASCRIPT
from tests.guests._snippets import PYTHON, Snippet
from tests.guests.conftest import PATIENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stockade.guests import CodeResult


def ran(language: Python | JavaScript, snippet: Snippet) -> CodeResult:
    """What comes of a snippet, with what all of them are given."""
    inputs: dict[str, object] = {"number": 42, "text": "käse", "nested": {"list": [1, 2.5, None, True]}}
    files = {"given.csv": "a,b\n1,2\n"}
    if isinstance(language, Python):
        inputs["data"] = b"\xff"
    else:
        files |= FILES
    return language.run(
        snippet.code,
        inputs=inputs,  # type: ignore[arg-type]
        files=files,
        args=["one", "two words"],
        env={"GIVEN": "yes"},
        stdin=snippet.stdin,
        policy=PATIENT.replace(**snippet.limits) if snippet.limits else None,
    )


def check(result: CodeResult, snippet: Snippet) -> None:
    """Compares all that a snippet tells."""
    error = result.error
    assert (None if error is None else error.type) == snippet.error, error
    if error is not None:
        assert snippet.message is None or error.message == snippet.message
        assert error.line == snippet.line
        assert "<stockade>" not in error.traceback
    assert (result.value, result.value_is_repr) == (snippet.value, snippet.shown)
    assert (result.stdout, result.stderr) == (snippet.stdout, snippet.stderr)
    assert result.exit_code == snippet.exit_code
    assert snippet.outcome is None or str(result.report.outcome) == snippet.outcome
    assert result.ok is (snippet.error is None)


def test_there_are_a_hundred() -> None:
    """No code stands there twice."""
    assert len({(s.code, s.stdin) for s in PYTHON}) == len(PYTHON) >= 100
    assert len({(s.code, s.stdin) for s in JAVASCRIPT}) == len(JAVASCRIPT) >= 100


@pytest.mark.parametrize("snippet", part(PYTHON), ids=lambda snippet: repr(snippet.code)[:60])
def test_python(python: Python, snippet: Snippet) -> None:
    """Values, output, input, errors, ends, limits, files and libraries."""
    check(ran(python, snippet), snippet)


@pytest.mark.parametrize("snippet", JAVASCRIPT, ids=lambda snippet: repr(snippet.code)[:60])
def test_javascript(javascript: JavaScript, snippet: Snippet) -> None:
    """The same, with what is peculiar to the language."""
    check(ran(javascript, snippet), snippet)


# -- in workers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python_apart(python: Python) -> Iterator[Python]:
    """The same runtime, in processes of its own."""
    with Python(PATIENT, runtime=python.runtime, isolation="process") as language:
        yield language


@pytest.fixture(scope="module")
def javascript_apart(javascript: JavaScript) -> Iterator[JavaScript]:
    """The same."""
    with JavaScript(PATIENT, runtime=javascript.runtime, isolation="process") as language:
        yield language


@pytest.mark.slow
@pytest.mark.parametrize("snippet", PYTHON[::5], ids=lambda snippet: repr(snippet.code)[:60])
def test_python_in_workers(python_apart: Python, snippet: Snippet) -> None:
    """A fifth of the table comes to the same there."""
    check(ran(python_apart, snippet), snippet)


@pytest.mark.slow
@pytest.mark.parametrize("snippet", JAVASCRIPT[::5], ids=lambda snippet: repr(snippet.code)[:60])
def test_javascript_in_workers(javascript_apart: JavaScript, snippet: Snippet) -> None:
    """The same, with what is peculiar to the language."""
    check(ran(javascript_apart, snippet), snippet)
