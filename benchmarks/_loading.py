"""Files that are made to be slow or large to load: one of each kind of section, as large as a module may be.

Each is loaded and told in a process of its own, so that its memory can be measured: hashed, taken apart, and kept. The
worst of all is what counts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks._measure import Promise
from stockade import Module
from stockade.errors import StockadeError
from stockade.wasm import outline, uleb

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

__all__ = ["HOSTILE", "hostile_files"]

_MIB = 1 << 20
_SIZE = 100 * _MIB
_MOST_BYTES = 1 << 30
_FUNCTIONS = 1_000_000
_ITEMS = 400_000 - 8
"""As many as are read, with some room for what comes before."""

_HEADER = b"\0asm\1\0\0\0"
_COMPONENT = b"\0asm\x0d\0\1\0"


def _section(number: int, content: bytes) -> bytes:
    return bytes([number]) + uleb(len(content)) + content


def _custom(name: str, content: bytes = b"") -> bytes:
    return _section(0, uleb(len(name)) + name.encode() + content)


def _fill(item: bytes, most: int = 1 << 40, size: int = _SIZE) -> bytes:
    """As many of an item as fit."""
    count = min(size // len(item), most)
    return uleb(count) + item * count


def _named(count: int, before: bytes, behind: bytes) -> bytes:
    """Items that each have a name of their own."""
    names = (b"%x" % number for number in range(count))
    return uleb(count) + b"".join(before + bytes([len(name)]) + name + behind for name in names)


_TYPE = _section(1, b"\1\x60\0\0")
_PADDED_FUNCTIONS = _section(3, _fill(b"\x80\x80\x80\x80\0", _FUNCTIONS))
_PADDED_CODE = _section(10, _fill(b"\x82\x80\x80\x80\0\0\x0b", _FUNCTIONS))
_LONG_VALUE = b"\x7f\0\x41\0" + b"\xfb\x9a\x80\x80\0" * 13_000 + b"\x0b"


def _distinct_types() -> bytes:
    kinds = b"\x7f\x7e\x7d\x7c\x7b\x70\x6f"
    types = []
    for number in range(130_000):
        params = bytes(kinds[number // 7**place % 7] for place in range(7))
        types.append(b"\x60\7" + params + b"\0")
    return uleb(len(types)) + b"".join(types)


_ONE = _section(3, b"\1\0"), _section(10, b"\1\2\0\x0b")
"""One function that does nothing: its type index, and its code."""

_PRODUCERS = _custom("producers", b"\1\1l\x64" + b"\1a\1b" * 100)
_LONG_TYPE = b"\x60" + uleb(500) + b"\x63\x70" * 500 + b"\0"
_LONG_NAME = b"\1a" + uleb(99_000) + b"x" * 99_000 + b"\0\0"


def _module(*sections: bytes) -> bytes:
    return b"".join((_HEADER, *sections))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty custom sections": lambda: _module(b"\0\1\0" * (_SIZE // 3)),
    "100,000 custom sections": lambda: _module(_custom("x" * 1000) * 100_000),
    "99,000 sections of producers": lambda: _module(_PRODUCERS * 99_000),
    "types": lambda: _module(_section(1, _fill(b"\x60\0\0", _ITEMS))),
    "distinct types": lambda: _module(_section(1, _distinct_types())),
    "types with long references": lambda: _module(_section(1, _fill(_LONG_TYPE, 1_999))),
    "types with supertypes": lambda: _module(_section(1, _fill(b"\x50\0\x60\0\0", _ITEMS))),
    "a group of structures": lambda: _module(_section(1, b"\1\x4e" + _fill(b"\x5f\1\x7f\0", 990_000))),
    "imported functions": lambda: _module(_TYPE, _section(2, _named(_ITEMS, b"\1a", b"\0\0"))),
    "imported globals": lambda: _module(_section(2, _named(_ITEMS, b"\1a", b"\3\x7f\0"))),
    "imports with long names": lambda: _module(_TYPE, _section(2, _fill(_LONG_NAME, size=32 * _MIB))),
    "functions": lambda: _module(_TYPE, _PADDED_FUNCTIONS, _PADDED_CODE),
    "more functions than there may be": lambda: _module(_TYPE, _section(3, _fill(b"\0"))),
    "tables": lambda: _module(_section(4, _fill(b"\x70\0\1"))),
    "memories": lambda: _module(_section(5, _fill(b"\0\1"))),
    "tags": lambda: _module(_TYPE, _section(13, _fill(b"\0\0", _ITEMS))),
    "globals": lambda: _module(_section(6, _fill(b"\x63\x70\0\xd0\x70\x0b", _ITEMS))),
    "one long initialiser": lambda: _module(
        _section(6, b"\1\x7f\0\x41\0" + b"\x41\0\x6a" * (_SIZE // 3) + b"\x0b"),
    ),
    "long initialisers": lambda: _module(_section(6, _fill(_LONG_VALUE, size=8 * _MIB - 8))),
    "exports of functions": lambda: _module(
        _TYPE, _ONE[0], _section(7, _named(_ITEMS, b"", b"\0\x80\x80\x80\x80\0")), _ONE[1]
    ),
    "exports of one global": lambda: _module(
        _section(6, b"\1\x7f\0\x41\0\x0b"), _section(7, _named(_ITEMS, b"", b"\3\0"))
    ),
    "exports of many globals": lambda: _module(
        _section(6, _fill(b"\x7f\0\x41\0\x0b", _ITEMS // 2)), _section(7, _named(_ITEMS // 2, b"", b"\3\0"))
    ),
    "elements": lambda: _module(_section(9, _fill(b"\5\x70\0"))),
    "one segment of elements": lambda: _module(_section(9, b"\1\5\x70" + _fill(b"\xd0\x70\x0b"))),
    "data": lambda: _module(_section(5, b"\1\0\1"), _section(11, _fill(b"\1\0"))),
    "one function": lambda: _module(
        _TYPE, _ONE[0], _section(10, b"\1" + uleb(_SIZE) + b"\0" + b"\1" * (_SIZE - 2) + b"\x0b")
    ),
    "as much as there may be of all": lambda: _module(
        _TYPE,
        _section(2, _named(_ITEMS - 1000, b"\1a", b"\3\x7f\0")),
        _PADDED_FUNCTIONS,
        _section(6, _fill(_LONG_VALUE, size=8 * _MIB - 8)),
        _PADDED_CODE,
    ),
    "imports of a component": lambda: _COMPONENT + _section(10, _named(_ITEMS, b"\0", b"\1\0")),
    "99,000 sections of imports": lambda: _COMPONENT + _section(10, _named(100, b"\0", b"\1\0")) * 99_000,
}
"""Files by what they are full of."""


def hostile_files(console: Console) -> list[Promise]:
    """Loads each file, and tells what is in it; what is refused counts, too."""
    worst_seconds = worst_bytes = 0.0
    for name in HOSTILE:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks._loading", name], capture_output=True, text=True, check=True
        )
        load, told, grown, said = done.stdout.rstrip("\n").split("\t")
        console.print(f"{name}: loaded in {load} s, told in {told} s, {int(grown) / _MIB:.0f} MiB {said}", style="dim")
        worst_seconds = max(worst_seconds, float(load), float(told))
        worst_bytes = max(worst_bytes, float(grown))
    return [
        Promise(f"the slowest of {len(HOSTILE)} hostile files to load or tell, s", worst_seconds, 3.0),
        Promise("the most memory that one takes, itself included, over 100 MiB", worst_bytes / _SIZE, 3.0),
    ]


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def _main(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.wasm"
        path.write_bytes(HOSTILE[name]())
        # What it took to make the file does not count.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _resident("VmRSS")
        said, taken, loaded = "", [], []
        for read in (
            lambda: loaded.append(Module.load(path, limit_bytes=_MOST_BYTES)),
            lambda: outline(loaded[0].data if loaded else path.read_bytes()),
        ):
            begun = time.process_time()
            try:
                read()
            except StockadeError as problem:
                said = f"({str(problem)[:70]})"
            taken.append(f"{time.process_time() - begun:.2f}")
        print(*taken, _resident("VmHWM") - before, said, sep="\t")


if __name__ == "__main__":
    _main(sys.argv[1])
