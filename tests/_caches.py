"""A cache whose entries are bytes, for tests that do not care where what is told ends and the code begins."""

from __future__ import annotations

from stockade.compilation import Cache

__all__ = ["BytesCache"]


class BytesCache(Cache):
    """The cache, with entries as bytes."""

    def put(self, name: str, told: bytes, code: bytes | None = None) -> bool:
        """Keeps bytes: without code, the first two are what is told."""
        return super().put(name, told[:2], told[2:]) if code is None else super().put(name, told, code)

    def get(self, name: str) -> bytes | None:  # type: ignore[override]
        """Returns them."""
        kept = super().get(name)
        if kept is None:
            return None
        try:
            with kept.looked_at() as code:
                return kept.told + bytes(code)
        finally:
            kept.close()
