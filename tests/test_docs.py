"""The documentation is true: its blocks run as a reader would paste them, and its references are whole."""

from __future__ import annotations

import re
from importlib import metadata
from typing import TYPE_CHECKING

import pytest

from tests._pages import PAGES, ROOT, Block, Reader, blocks_of

if TYPE_CHECKING:
    from pathlib import Path


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _readable(page: Path) -> list[Block]:
    """The blocks of a page without those that only the generator of the site reads."""
    return [block for block in blocks_of(page) if not block.language.startswith("{")]


@pytest.mark.parametrize("page", [page for page in PAGES if _readable(page)], ids=_name)
def test_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    """Each block of the page, pasted one after another into an empty folder, does what the page says."""
    reader = Reader(tmp_path)
    wrong = []
    try:
        for block in _readable(page):
            problem = reader.read(block)
            if problem:
                wrong.append(f"{_name(page)}:{block.line}: {problem}")
    finally:
        reader.close()
    assert not wrong, "\n\n".join(wrong)
