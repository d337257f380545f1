"""How large a page of WebAssembly memory is."""

from typing import Final

__all__ = ["PAGE_BYTES"]

PAGE_BYTES: Final = 65_536
"""Of the core specification; other sizes of pages are a proposal that no guest may use."""
