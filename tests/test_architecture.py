"""ARCHITECTURE.md: what it names exists, and a run goes the way that it tells."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import stockade
from stockade import Sandbox
from stockade.engine import assemble
from tests.conftest import HELLO

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = Path(stockade.__file__).parent
PAGE = (ROOT / "ARCHITECTURE.md").read_text()
PREPARED, ANEW = (
    re.findall(r"^\d+\. `([\w/]+\.py)`", part, re.MULTILINE)
    for part in PAGE.partition("## A run, file by file")[2].partition("\n## ")[0].split("A path given anew")
)


def entered(action: Callable[[], object]) -> set[str]:
    """The files of ours of which something is called."""
    found: set[str] = set()

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            found.add(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        action()
    finally:
        sys.setprofile(before)
    return {Path(name).relative_to(SOURCES).as_posix() for name in found if name.startswith(f"{SOURCES}/")}


def test_what_it_names_exists() -> None:
    """A file by its room, or by its name alone right after another one of the same room."""
    named = set(re.findall(r"`((?:[\w]+/)*_?\w+\.(?:py|wat))`", PAGE))
    assert len(named) > 50
    files = [path.relative_to(SOURCES).as_posix() for path in SOURCES.rglob("*")]
    assert [
        name for name in named if not (ROOT / name).exists() and not any(f"/{f}".endswith(f"/{name}") for f in files)
    ] == []


def test_every_room_is_named() -> None:
    """Rooms are folders of the package."""
    rooms = {path.parent.name for path in SOURCES.glob("*/__init__.py")}
    assert rooms == set(re.findall(r"\b(\w+)/", PAGE.partition("```")[2].partition("```")[0]))


def test_a_run_goes_the_way_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 12 files for a prepared module, 8 more for a path given anew: each is passed, but the last."""
    monkeypatch.setenv("STOCKADE_CACHE", "off")
    assert len(PREPARED) <= 12
    assert len(PREPARED) + len(ANEW) <= 20
    paths = [tmp_path / name for name in ("one.wasm", "two.wasm")]
    for path in paths:
        path.write_bytes(assemble(HELLO.replace("hello", f"architecture {path.stem}")))
    box = Sandbox()
    prepared = box.prepare(paths[0])
    box.run(prepared)

    again = entered(lambda: box.run(prepared))
    anew = entered(lambda: box.run(paths[1]))

    assert {name for name in PREPARED if name not in again} == {"report/_model.py"}
    assert {name for name in (*PREPARED, *ANEW) if name not in anew} == {"report/_model.py"}
    assert not set(ANEW) - {"modules/_module.py", "compilation/_programs.py"} & again


def test_rooms_and_files_stay_small() -> None:
    """The largest room has less than 18% of the lines, and none of its files more than 400."""
    files = {path: len(path.read_text().splitlines()) for path in SOURCES.rglob("*") if path.suffix in {".py", ".wat"}}
    rooms = {room: sum(files[path] for path in files if path.parent == room) for room in SOURCES.iterdir()}
    largest = max(rooms, key=rooms.__getitem__)

    assert rooms[largest] < 0.18 * sum(files.values())
    for room in (largest, SOURCES / "execution", SOURCES / "guard"):
        assert {path.name: lines for path, lines in files.items() if path.parent == room and lines > 400} == {}
