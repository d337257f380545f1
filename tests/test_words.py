"""Words of this project: nothing refers to what a reader cannot look up."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Put together here, so that this file does not contain what it looks for.
ELSEWHERE = re.compile("|".join((r"\bH" + r"[0-9]+\b", "item" + r"s? [0-9]+", "miss" + "ion", "seed " + "document")))


def test_nothing_refers_to_what_is_not_in_the_project() -> None:
    """A number of a list that only its authors have explains nothing: the reason does, or a promise's number."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for folder in ("src", "tests", "docs", "benchmarks", "demo")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in {".py", ".wat", ".md", ".txt", ".toml", ".yaml"}
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if ELSEWHERE.search(line)
    ]
    assert found == []
