"""Each promise of the specification names what holds it, and each test that cites a promise cites one that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NUMBER = r"P-[A-Z]+-\d+"
ROW = re.compile(rf"^\| ({NUMBER}) \| (.+) \| (.+) \|$", re.MULTILINE)


def promises() -> list[tuple[str, str]]:
    """Every promise: its number, and what holds it."""
    return [(number, held) for number, _, held in ROW.findall((ROOT / "SPECIFICATION.md").read_text())]


def files(held: str) -> list[Path]:
    """The tests that a promise names: a name without a folder lies where the one before it does."""
    found: list[Path] = []
    folder = ROOT
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", held.replace("`tests/fuzz`", "`tests/fuzz/`")):
        path = ROOT / name if "/" in name else folder / name
        folder = path if name.endswith("/") else path.parent
        found.append(path)
    return found


def cited() -> dict[str, list[Path]]:
    """Which tests cite which promise."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path != Path(__file__):
            for number in set(re.findall(rf"\b{NUMBER}\b", path.read_text())):
                found.setdefault(number, []).append(path)
    return found


def test_numbers_are_given_once() -> None:
    """Two promises of one number could not be told apart."""
    numbers = [number for number, _ in promises()]
    assert len(numbers) > 50
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(("number", "held"), promises(), ids=[number for number, _ in promises()])
def test_a_promise_is_held_by_tests_that_cite_it(number: str, held: str) -> None:
    """A promise without a test is a wish. What is a ratio of speeds is held by `make bench`."""
    named = files(held)
    assert named or "make bench" in held
    for path in named:
        assert path.exists()
        sources = path.rglob("*.py") if path.is_dir() else [path]
        assert any(re.search(rf"\b{number}\b", source.read_text()) for source in sources), f"{path} does not cite it"


def test_what_is_cited_exists() -> None:
    """A citation that leads nowhere misleads."""
    assert set(cited()) <= {number for number, _ in promises()}
