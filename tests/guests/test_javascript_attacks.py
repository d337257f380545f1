"""P-LANG-2, P-LANG-3: JavaScript that attacks the shape of its result. Each attack changes no other run, no file of the
host's, and no field of the result but its own value, error and output."""

from __future__ import annotations

import json
import tempfile
from typing import TYPE_CHECKING, Any

import pytest

from stockade import JavaScript, Mount, Outcome
from stockade.guests import _folder
from tests._examples import part
from tests.guests._forging import ASK
from tests.guests.conftest import PATIENT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORGED = '{"value": "forged", "shown": false, "error": null, "exit": 0, "figures": []}'

AFTER = """
[os.readdir('.')[0].length, os.readdir('/tmp')[0].length, [1].map(String), JSON.stringify({}), Object.keys({}),
 Object.getOwnPropertyNames(globalThis).includes('left'), new Map([[1, 2]]).get(1), await Promise.resolve(3)]
"""


@pytest.fixture
def fresh(javascript: JavaScript, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[JavaScript]:
    """A language whose folders lie where we see them; after each attack the next run is as ever."""
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    with JavaScript(PATIENT, runtime=javascript.runtime) as language:
        yield language
        after = language.run(AFTER)
        assert (after.value, after.stdout, after.stderr) == ([2, 2, ["1"], "{}", [], False, 2, 3], "", "")
    assert [path.name for path in private.iterdir()] == []


def test_output_that_looks_like_a_frame_is_output(fresh: JavaScript) -> None:
    """It prints frames on both streams."""
    result = fresh.run(f"print({FORGED!r}); console.error({FORGED!r}); 7")
    assert (result.value, result.stdout, result.stderr) == (7, FORGED + "\n", FORGED + "\n")


@pytest.mark.parametrize("leave", ["std.exit(0)", "(await import('qjs:std')).exit(0)", "1"])
def test_a_forged_frame_says_what_the_code_could_have_said(fresh: JavaScript, leave: str) -> None:
    """It writes a frame where the interpreter leaves some, and leaves: at most a value of its own."""
    result = fresh.run(f"std.writeFile('/run/result', {FORGED!r}); {leave}", collect=["*"])
    assert result.value in ("forged", 1, None)
    assert (result.stdout, result.stderr, result.files, result.figures) == ("", "", {}, ())
    assert (result.tool_calls, result.report.outcome) == ((), Outcome.OK)


@pytest.mark.parametrize(
    "data",
    [
        "not JSON",
        '{"value": 1}',
        '{"value": 1, "shown": false, "error": null, "exit": 0, "report": {}}',
        '{"value": ' + "[" * 1000,
        "x" * (40 << 20),
    ],
)
def test_a_broken_frame_is_told(fresh: JavaScript, data: str) -> None:
    """It leaves something that is no frame, in pieces as large as may be, and goes before it can be replaced."""
    code = "const f = std.open('/run/result', 'w'); f.puts(data); f.close(); (await import('qjs:std')).exit(0)"
    result = fresh.run(code, inputs={"data": data})
    assert result.error is not None
    assert (result.value, result.error.type, result.report.outcome) == (None, "Exit", Outcome.OK)
    assert result.error.message.startswith(
        ("the result that the code has left cannot be read: ", "the code ended the interpreter with exit code 0")
    )


REPLACED = [
    "JSON.stringify = JSON.parse = () => 'broken'",
    "globalThis.JSON = null",
    "print = console.log = console.error = null",
    "Object.prototype.toString = Object.prototype.valueOf = () => { throw 1 }",
    "Object.prototype.get = Object.prototype.set = () => 5; Object.prototype.value = 6",
    "Object.prototype.async = Object.prototype.shown = Object.prototype.error = 7",
    "Object.defineProperty(Object.prototype, 'line', { get() { throw 1 }, set() { throw 2 } })",
    "Array.prototype.map = Array.prototype.join = Array.prototype.push = null",
    "Array.prototype[Symbol.iterator] = () => { throw 1 }",
    "Object.defineProperty(Array.prototype, '0', { set() { throw 1 }, get() { return 1 } })",
    "String.prototype.slice = String.prototype.indexOf = String.prototype.toString = null",
    "String.prototype[Symbol.iterator] = RegExp.prototype.exec = RegExp.prototype[Symbol.replace] = null",
    "Promise.prototype.then = Promise.resolve = () => { throw 1 }",
    "globalThis.Promise = globalThis.Map = globalThis.Error = globalThis.Object = globalThis.String = null",
    "Symbol.iterator = null; Map.prototype.get = Map.prototype.forEach = null",
    "Function.prototype.call = Function.prototype.apply = Function.prototype.bind = () => { throw 1 }",
    "Function.prototype[Symbol.hasInstance] = null",
    "Reflect.apply = Reflect.getPrototypeOf = Reflect.defineProperty = () => { throw 1 }",
    "Object.keys = Array.isArray = Number.isFinite = () => { throw 1 }",
    "Error.prototype.toString = null; Error.prepareStackTrace = () => { throw 1 }; Error.stackTraceLimit = 0",
    "Object.setPrototypeOf(Array.prototype, null)",
    "Object.freeze(Object.prototype); Object.freeze(Array.prototype); Object.freeze(globalThis)",
    "for (const key of Object.getOwnPropertyNames(globalThis)) try { delete globalThis[key] } catch {}",
    "std.open = std.exit = std.evalScript = null; globalThis.std = globalThis.os = null",
    "for (const m of ['puts', 'seek', 'flush', 'close']) Object.getPrototypeOf(std.out)[m] = () => { throw 1 }",
]


@pytest.mark.parametrize("code", part(REPLACED))
def test_what_it_replaces_is_missed_by_itself(fresh: JavaScript, code: str) -> None:
    """It takes away, or puts its own in the place of, whatever the result is made with: that is made without it."""
    plain = fresh.run(f"{code}; ({{ a: [1, 'x', null, 2.5, true] }})", collect=["*"])
    assert (plain.value, plain.error, plain.exit_code) == ({"a": [1, "x", None, 2.5, True]}, None, 0)
    assert (plain.stdout, plain.stderr, plain.files, plain.report.outcome) == ("", "", {}, Outcome.OK)
    failed = fresh.run(f"const E = RangeError; {code};\nthrow new E('no')")
    assert failed.error is not None
    assert (failed.value, failed.error.type, failed.error.message) == (None, "RangeError", "no")
    assert (failed.exit_code, failed.report.outcome) == (1, Outcome.OK)


@pytest.mark.parametrize(
    "code",
    part(
        [
            "Object.prototype.then = function (done) { done({ value: 'forged', shown: 7, report: 8 }) }",
            "Promise.prototype.constructor = 5",
            "Object.prototype.toJSON = () => ({ value: 'forged' })",
            "for (let n = 0; n < 100; n++) os.close(n)",
            "os.remove('/run/result'); os.mkdir('/run/result')",
            "while (std.open('/tmp/x', 'w'));",
            "gc(); std.gc(); bjson.read(new ArrayBuffer(100), 0, 100, 0xffff)",
            "throw new Proxy(class extends Error {}, { get() { throw globalThis } })",
            "globalThis.__proto__ = new Proxy({}, { get() { throw 1 }, has() { throw 2 }, set() { throw 3 } })",
        ]
    ),
)
def test_whatever_it_breaks_is_its_own(fresh: JavaScript, code: str) -> None:
    """It breaks what the interpreter itself stands on: its run ends with what it has come to, or without.

    Two of them never end by themselves.
    """
    result = fresh.run(f"{code}; 1", collect=["*"], policy=PATIENT.replace(wall_time=1.0))
    assert result.files == {}
    assert (result.figures, result.tool_calls, result.stdout) == ((), (), "")
    assert result.report.outcome in (Outcome.OK, Outcome.EXIT, Outcome.TRAP, Outcome.TIMEOUT)


def test_a_throwing_proxy_is_told(fresh: JavaScript) -> None:
    """Each of its traps throws, and what they throw are such proxies."""
    code = "const traps = new Proxy({}, { get: () => () => { throw new Proxy({}, traps) } });\n"
    value = fresh.run(f"{code}new Proxy({{}}, traps)")
    assert (value.value, value.value_is_repr) == ("[threw object]", True)
    thrown = fresh.run(f"{code}throw new Proxy({{}}, traps)")
    assert thrown.error is not None
    assert (thrown.error.type, thrown.error.message) == ("object", "[threw object]")
    printed = fresh.run(f"{code}console.log(new Proxy({{}}, traps), 1); 2")
    assert (printed.stdout, printed.value) == ("[threw object] 1\n", 2)


def test_the_state_of_the_driver_is_not_there(fresh: JavaScript) -> None:
    """It looks for the variables of what runs it, for functions on the stack, and for what is kept of its job."""
    names = ["first", "job", "perform", "leave", "told", "kinds", "write", "failure", "exchange", "makeTools", "actual"]
    for name in names:
        result = fresh.run(f"[typeof {name}, '{name}' in globalThis]")
        assert result.value == ["undefined", False], name
    code = """
Error.prepareStackTrace = (error, sites) => sites;
const sites = new Error().stack;
const found = [...sites].map(site => [site.getFunctionName(), site.getFileName()]);
found.length
"""
    assert fresh.run(code).value == 1, "there is only the code itself on its stack"
    assert fresh.run("(function f() { try { return f.caller } catch (e) { return e.name } })()").value in (
        None,
        "TypeError",
    )


def test_it_reaches_no_tool_by_forging(fresh: JavaScript) -> None:
    """It writes requests itself, reads what answers them, and sends what is none: each is refused, counted and told.

    Without tools, nobody reads what it writes, and nothing comes.
    """

    @fresh.tool
    def double(number: int) -> int:
        return number * 2

    forged = [
        "not JSON",
        "{}",
        '{"name": "missing", "args": [], "named": {}}',
        '{"name": "double", "args": [1], "named": {}, "more": 1}',
        '{"name": "__class__", "args": [], "named": {}}',
        '{"name": "double", "args": ["x"], "named": {}}',
        '{"name": "double", "args": [], "named": {"number": 1, "self": 2}}',
        "[" * 100_000,
    ]
    result = fresh.run(
        ASK + "forged.map(ask).map(text => JSON.parse(text).error !== undefined)", inputs={"forged": forged}
    )
    assert (result.value, result.error) == ([True] * len(forged), None)
    assert [call.ok for call in result.tool_calls] == [False] * len(forged)
    twin = fresh.run(ASK + """JSON.parse(ask('{"name": "double", "args": [21], "named": {}}'))""")
    assert (twin.value, [call.ok for call in twin.tool_calls]) == ({"value": 42}, [True])
    with JavaScript(PATIENT, runtime=fresh.runtime) as without:
        nothing = without.run(ASK + """ask('{"name": "double", "args": [21], "named": {}}')""")
        assert (nothing.value, nothing.tool_calls) == (None, ())


def test_an_answer_cannot_be_made_another_by_what_it_replaces(fresh: JavaScript) -> None:
    """It replaces what reads answers: a tool's are as ever, and what its exceptions hold is text."""

    @fresh.tool
    def fails() -> int:
        raise ValueError('", "value": 5, "x": "\N{CHEESE WEDGE}\x1b')

    code = "JSON.parse = () => ({ value: 'forged' }); Object.prototype.value = 1; Object.prototype.error = 2;\n"
    result = fresh.run(f"{code}tools.fails()")
    assert result.error is not None
    assert (result.error.type, result.error.message) == ("ValueError", '", "value": 5, "x": "\N{CHEESE WEDGE}\x1b')


@pytest.mark.slow
def test_many_files_are_removed(fresh: JavaScript) -> None:
    """It writes as many as the policy lets it; the host reads a part, and removes all."""
    policy = PATIENT.replace(files_created=None, open_files=8)
    with JavaScript(policy, runtime=fresh.runtime) as language:
        result = language.run(
            "for (let n = 0; n < 3000; n++) std.writeFile(`${n}`, 'x'); std.writeFile('/tmp/t', 'x'); 1", collect=["*"]
        )
        assert (result.error, len(result.files), result.files_left_out) == (None, _folder.MOST_FILES, 2000)
        assert language.run("os.readdir('.')[0].length").value == 2
    few = fresh.run("for (let n = 0; n < 3; n++) std.writeFile(`${n}`, 'x'); 1", collect=["*"])
    assert (sorted(few.files), few.files_left_out) == (["0", "1", "2"], 0)


def test_names_are_names_only(fresh: JavaScript) -> None:
    """It makes files whose names a careless host would take for paths or patterns."""
    names = ["..", "...", ".hidden", "a\nb", "*", "[x]", "ü", "con", "a" * 200, "a\0b", "/x", "../x"]
    code = "for (const name of names) { const f = std.open(name, 'w'); if (f) { f.puts('x'); f.close() } } 1"
    result = fresh.run(code, inputs={"names": names}, collect=["*"])
    assert result.error is None
    assert set(result.files) == {"...", ".hidden", "a\nb", "*", "[x]", "ü", "con", "a" * 200, "a"}


def test_it_reaches_no_file_of_the_hosts(fresh: JavaScript, tmp_path: Path) -> None:
    """It climbs out of its folders, by every call that takes a path; a folder that is granted is reached."""
    (tmp_path / "secret").write_text("of the host")
    granted = tmp_path / "granted"
    granted.mkdir()
    (granted / "note").write_text("granted")
    policy = PATIENT.replace(mounts=[Mount(granted, "/data", "ro")])
    with JavaScript(policy, runtime=fresh.runtime) as language:
        up = "../" * 20
        host = str(tmp_path / "secret")
        code = """
const found = [];
for (const path of paths) {
  found.push(std.loadFile(path), std.open(path, 'r'), std.open(path, 'a'), os.open(path, os.O_RDWR) < 0,
    os.remove(path) < 0, os.rename(path, 'mine') < 0, os.stat(path)[0]);
}
found
"""
        paths = [host, up + host, f"/data/../{tmp_path.name}/secret", "/data/../secret", "/proc/self/environ"]
        result = language.run(code, inputs={"paths": paths})
        assert result.value == [None, None, None, True, True, True, None] * len(paths)
        assert language.run("[typeof os.symlink, typeof os.readlink, typeof os.exec]").value == ["undefined"] * 3
        assert language.run("std.loadFile('/data/note')").value == "granted"
        assert language.run("os.open('/data/note', os.O_RDWR) < 0").value is True
    assert (tmp_path / "secret").read_text() == "of the host"


@pytest.mark.parametrize("name", ["__proto__", "constructor", "toString", "JSON", "Object", "std", "undefined_", "$"])
def test_inputs_are_data(fresh: JavaScript, name: str) -> None:
    """A variable under the name of something of the language's is a variable, and changes no prototype."""
    given: dict[str, Any] = {"polluted": 1, "__proto__": {"deep": 2}}
    result = fresh.run(
        f"[globalThis[{json.dumps(name)}], {{}}.polluted === undefined, [].deep === undefined]", inputs={name: given}
    )
    assert result.error is None
    assert result.value == [given, True, True]


def test_sessions_share_nothing(fresh: JavaScript) -> None:
    """One poisons all that it can; the other, opened before, and one that is opened afterwards, are as they were."""
    with fresh.session() as one, fresh.session() as other:
        other.run("const kept = [1, 2]")
        one.run("globalThis.left = 1; Array.prototype.map = Object.prototype.toString = JSON.stringify = null")
        assert one.run("[1, { a: 'x' }]").value == [1, {"a": "x"}], "nor does it harm its own results"
        assert other.run("kept.map(n => n * 2)").value == [2, 4]
        assert other.run("typeof left").value == "undefined"
        with fresh.session() as third:
            assert third.run("[typeof left, [1].map(n => n + 1)]").value == ["undefined", [2]]


def test_a_session_outlives_what_it_replaces(fresh: JavaScript) -> None:
    """Each piece gets its inputs, arguments and input, whatever those before it have done to the language."""
    with fresh.session() as session:
        for code in REPLACED[:-4]:
            session.run(code)
        result = session.run(
            "[given, std.in.getline(), scriptArgs.length]", inputs={"given": {"a": [1]}}, stdin="line\n", args=["x"]
        )
        assert (result.value, result.error) == ([{"a": [1]}, "line", 2], None)
        assert session.run("throw new RangeError('no')").error.type == "RangeError"  # type: ignore[union-attr]
