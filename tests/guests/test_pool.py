"""Interpreters that wait, started, for the runs to come: each serves one, and none finds anything of another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stockade import JavaScript, Python, Random, UsageError
from stockade.engine import PAGE_BYTES_OF_HOST, touched_pages
from stockade.execution import ReadyPool
from stockade.execution._first_pages import FirstPages
from stockade.guests._boot_cache import BootCache
from stockade.guests._place import at_hand
from tests._processes import wait_for
from tests.guests.conftest import PATIENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.engine import Instance


def test_runs_are_served_by_what_waits(python: Python) -> None:
    """With their own files, input, environment and arguments; more runs than wait are served as ever."""
    with Python(PATIENT, runtime=python.runtime, pool_size=2, preload="base = 40") as language:
        language.prepare()
        found = "base + n, open('f').read(), input(), os.environ['A'], sys.argv[1:], 'old' in globals()"
        for number in range(5):
            result = language.run(
                f"import os, sys\n[{found}, globals().setdefault('old', 1)]",
                inputs={"n": number},
                files={"f": str(number)},
                stdin="line",
                env={"A": "b"},
                args=["x"],
            )
            assert result.value == [40 + number, str(number), "line", "b", ["x"], False, 1]


def test_a_guest_leaves_no_module_for_the_one_that_waits(python: Python) -> None:
    """It writes modules under the names of those that an interpreter imports while it starts: nobody imports them."""
    with Python(PATIENT, runtime=python.runtime, pool_size=1, preload="import csv") as language:
        language.prepare()
        names = ["csv", "json", "re", "math", "traceback", "linecache", "os", "base64", "io"]
        code = "import time\nfor name in names: open(f'{name}.py', 'w').write('print(666)')\ntime.sleep(1)"
        for _ in range(3):
            assert language.run(code, inputs={"names": names}).ok
            result = language.run("import csv, json, os\n[csv.__file__.startswith('/workspace'), os.listdir()]")
            assert (result.value, result.stdout) == ([False, []], "")


def _left_by(language: Python) -> list[str]:
    (place,) = language._places
    return [path.name for path in Path(place.folder.mounts()[0].host).iterdir()]


def test_what_a_run_has_left_is_removed_in_the_next_pause(python: Python) -> None:
    """A run that comes before that finds nothing either."""
    with Python(PATIENT, runtime=python.runtime, pool_size=1) as language:
        language.prepare()
        for _ in range(3):
            assert language.run("import os\nopen('marker', 'w').write('x')\nos.listdir()").value == ["marker"]
            wait_for(lambda: _left_by(language) == [])
            assert language.run("import os\nopen('marker', 'w').write('x')\nos.listdir()").value == ["marker"]
            assert language.run("import os\nos.listdir()").value == []


def test_runs_of_javascript_draw_their_own_numbers() -> None:
    """All begin with one snapshot, and none with its random numbers, whether it has waited or not; seeded, they do."""
    with JavaScript(PATIENT, pool_size=2) as language:
        language.prepare()
        drawn = [language.run("[Math.random(), Math.random()]").value for _ in range(4)]
        assert len({number for numbers in drawn for number in numbers}) == 8
    seeded = [
        JavaScript(PATIENT.replace(random=Random(mode="seeded", seed=seed))).run("[Math.random(), Math.random()]").value
        for seed in (0, 5, 5)
    ]
    assert seeded[0] != seeded[1] == seeded[2]


def test_a_run_of_javascript_finds_nothing_of_another_one() -> None:
    """It leaves a mark wherever code can reach: globals, prototypes, modules' objects, memory, files."""
    leave = """
    globalThis.marker = "MARKER".repeat(1000);
    Object.prototype.marker = marker; Array.prototype.push = () => marker; std.marker = marker; os.marker = marker;
    JSON.parse = JSON.stringify = Reflect.apply = Promise.prototype.then = () => marker;
    std.setenv("marker", marker);
    const kept = new Uint8Array(1 << 20).fill(77);
    const file = std.open("marker", "w"); file.puts(marker); file.close();
    kept.length
    """
    look = """
    [typeof marker, ({}).marker, [].push(1), std.marker, os.marker, JSON.stringify([1]), std.getenv("marker"),
     os.readdir(".")[0].length, new Uint8Array(1 << 20).some(byte => byte !== 0)]
    """
    clean = ["undefined", None, 1, None, None, "[1]", None, 2, False]
    for size in (0, 1):
        with JavaScript(PATIENT, pool_size=size) as language:
            language.prepare()
            for _ in range(3):
                assert language.run(leave).value == 1 << 20
                assert language.run(look).value == clean


def test_preload_of_javascript_that_fails_is_told() -> None:
    """It runs once, when the interpreter is made ready."""
    with pytest.raises(UsageError) as caught:
        JavaScript(PATIENT, preload="const a = 1;\nthrow new TypeError('no')").run("1")
    assert str(caught.value) == (
        "the interpreter cannot be made ready, for preload fails: TypeError: no\\x0a    at <eval> (<preload>:2:11)"
    )
    assert JavaScript(PATIENT, preload="var a = await 4").run("a").value == 4


def test_only_a_preload_is_said_to_fail() -> None:
    """Where the interpreter does not fit, nothing is said of what nobody gave."""
    with pytest.raises(UsageError) as caught:
        JavaScript(PATIENT.replace(memory="1MiB")).run("1")
    assert str(caught.value).startswith("the interpreter cannot be made ready: stopped: memory limit exceeded: ")


def test_javascript_is_served_by_what_waits(javascript: JavaScript) -> None:
    """With its own files, inputs, input and tools; what one leaves behind is not there for the next."""
    with JavaScript(PATIENT, runtime=javascript.runtime, pool_size=2, preload="globalThis.base = 40") as language:
        language.tool(name="double")(_double)
        language.prepare()
        drawn = set()
        for number in range(5):
            result = language.run(
                "const left = [typeof old, os.readdir('.')[0].length]; globalThis.old = 1; std.writeFile('g', 'x');\n"
                "const read = [std.loadFile('f'), std.in.getline(), std.getenv('A')];\n"
                "[base + n, ...read, tools.double(n), left, Math.random()]",
                inputs={"n": number},
                files={"f": str(number)},
                stdin="line",
                env={"A": "b"},
            )
            *found, random = result.value  # type: ignore[misc]
            assert found == [40 + number, str(number), "line", "b", 2 * number, ["undefined", 3]]
            drawn.add(random)
        assert len(drawn) == 5


def _double(number: int) -> int:
    return number * 2


def test_the_place_that_was_used_last_is_taken_again() -> None:
    """So that what a run looks at is in the processor's caches; where its interpreter is yet to come, another is."""
    with JavaScript(PATIENT, pool_size=3) as language:
        language.prepare()
        for _ in range(3):
            last = language._places[-1]
            assert language.run("1").ok
            assert language._places[-1] is last
            wait_for(lambda: all(place.ahead is not None and place.ahead.ready for place in language._places))
        assert last.ahead is not None
        taken = last.ahead.take()
        assert taken is not None
        assert language.run("1").ok
        assert language._places[-1] is not last
        taken.instance.close()


def test_fresh_runs_get_the_pages_at_once_that_all_write_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learned from the first four; with what the snapshot holds in them, and no others."""
    found: list[int] = []
    give = FirstPages.give_common

    def given(pages: FirstPages, instance: Instance, memories: Sequence[bytes]) -> None:
        before = touched_pages(instance, memories)
        give(pages, instance, memories)
        after = touched_pages(instance, memories)
        assert before is not None
        assert after is not None
        wanted = {
            (place, number)
            for place, start, end in pages._common
            for number in range(start // PAGE_BYTES_OF_HOST, end // PAGE_BYTES_OF_HOST)
        }
        assert len(wanted) > 20
        assert after[0] == before[0] | wanted
        found.append(len(wanted))

    monkeypatch.setattr(FirstPages, "give_common", given)
    with JavaScript(PATIENT, preload="globalThis.base = 40") as language:
        for number in range(6):
            assert language.run("base++ + n", inputs={"n": number}).value == 40 + number
        assert len(found) == 2
        with language.session() as session:
            assert session.run("base").value == 40
        assert len(found) == 2


def test_where_none_waits_the_place_is_taken_that_is_furthest_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes on there, and is not behind one that has just begun."""
    with JavaScript(PATIENT, pool_size=3) as language:
        language.prepare()
        steps = {id(place.ahead): number for place, number in zip(language._places, (2, 5, 1), strict=True)}
        monkeypatch.setattr(ReadyPool, "ready", 0)
        monkeypatch.setattr(ReadyPool, "steps_taken", property(lambda pool: steps[id(pool)]))
        for expected in (1, 0, 0):
            at = at_hand(language._places, language.policy)
            assert at == expected
            language._places.pop(at).close()


def test_our_program_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the interpreter itself, ahead of the second one, or of those that wait; each does the same as the first."""
    asked: list[int] = []
    ask = Python._ask

    def counted(language: Python, *given: Any) -> bytes | None:
        answer = ask(language, *given)
        asked.append(len(answer or b""))
        return answer

    monkeypatch.setattr(Python, "_ask", counted)
    monkeypatch.setattr(BootCache, "get", lambda _: b"")
    code = "import sys\n1 / 0"
    with Python(PATIENT, runtime="cpython-3.12") as language:
        first = language.run(code)
        assert asked == []
        later = [language.run(code) for _ in range(3)]
        assert len(asked) == 1
        assert asked[0] > 0
        for result in later:
            assert result.error == first.error
            assert result.stderr == first.stderr
        with language.session() as session:
            assert [session.run(text).value for text in ("a = 4", "a + 1")] == [None, 5]
    with Python(PATIENT, runtime="cpython-3.12", pool_size=2) as language:
        language.prepare()
        assert [language.run("6 * 7").value for _ in range(5)] == [42] * 5
    assert len(asked) == 2


def test_an_interpreter_that_cannot_compile_our_program_is_given_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Python, "_ask", lambda *_: None)
    monkeypatch.setattr(BootCache, "get", lambda _: b"")
    with Python(PATIENT, runtime="cpython-3.12", pool_size=1) as language:
        language.prepare()
        assert [language.run("6 * 7").value for _ in range(2)] == [42, 42]


def test_a_pool_has_bounds() -> None:
    """What is no number of interpreters is refused."""
    with pytest.raises(UsageError, match="pool_size is -1"):
        JavaScript(pool_size=-1)
