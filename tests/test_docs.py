"""The documentation is true: its blocks run as a reader would paste them, and its references are whole."""

from __future__ import annotations

import re
from importlib import metadata
from typing import TYPE_CHECKING

import pytest

from tests._pages import PAGES, ROOT, Reader, blocks_of

if TYPE_CHECKING:
    from pathlib import Path


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=_name)
def test_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    """Each block of the page, pasted one after another into an empty folder, does what the page says."""
    reader = Reader(tmp_path)
    try:
        for block in blocks_of(page):
            if block.language.startswith("{"):
                continue  # what the generator of the site reads, not the reader
            wrong = reader.read(block)
            assert not wrong, f"{_name(page)}:{block.line}: {wrong}"
    finally:
        reader.close()
