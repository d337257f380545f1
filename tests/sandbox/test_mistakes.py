"""Mistakes of the caller are ours to name: never a bare AttributeError or TypeError from somewhere inside."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Any

import pytest

import stockade
from stockade import (
    Limits,
    Module,
    Mount,
    Pipe,
    Policy,
    Quota,
    Sandbox,
    Scheduler,
    SessionPool,
    StockadeError,
    Task,
    UsageError,
)
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("everywhere")


BOX = Sandbox()
GUEST = wat('(module (memory (export "memory") 1) (func (export "_start")) (func (export "f") (param i32)))')
GIVE = "give a Policy, the name of a preset, or the path of a policy file"
A_MODULE = "give the path of a module, its bytes, or a Module as Module.load returns it"
BYTES = "give bytes, or text, which is passed on as UTF-8"
FUNCTION = "give a function, or None"
AWAIT = "and only an event loop can await it: give a plain function, or await run_async"


def done(function: Callable[..., Any], *args: Any, **named: Any) -> Callable[[], Any]:
    """A call of something that may have to be awaited."""

    def call() -> Any:
        result = function(*args, **named)
        return asyncio.run(result) if asyncio.iscoroutine(result) else result

    return call


MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (done(Sandbox, None), f"policy is None: {GIVE}"),
    (done(Sandbox, 5), f"policy is 5: {GIVE}"),
    (done(stockade.run, GUEST, policy=[]), f"policy is []: {GIVE}"),
    (done(stockade.run, GUEST, policy={}), f"policy is {{}}: {GIVE}; Policy.loads reads what a document says"),
    (done(stockade.call, GUEST, "f", 1, policy=b"x"), f"policy is b'x': {GIVE}"),
    (done(BOX.run, GUEST, policy=5), f"policy is 5: {GIVE}"),
    (done(BOX.open, GUEST, policy=5), f"policy is 5: {GIVE}"),
    (done(BOX.call_async, GUEST, "f", 1, policy=5), f"policy is 5: {GIVE}"),
    (done(stockade.run, None), f"module is NoneType: {A_MODULE}"),
    (done(BOX.run, 5), f"module is int: {A_MODULE}"),
    (done(BOX.call, ["x"], "f"), f"module is list: {A_MODULE}"),
    (done(BOX.run_async, {}), f"module is dict: {A_MODULE}"),
    (done(BOX.prepare, 5), f"module is int: {A_MODULE}"),
    (done(Module.load, 5), f"module is int: {A_MODULE}"),
    (done(BOX.fuel_history, "x"), "module is str: give a Module, as Module.load returns it"),
    (done(BOX.call, GUEST, 5), "export is int: give the name of an exported function"),
    (done(stockade.call, GUEST, None), "export is NoneType: give the name of an exported function"),
    (done(BOX.call_async, GUEST, b"f"), "export is bytes: give the name of an exported function"),
    (done(BOX.run, GUEST, 5), "args is int: give a list of arguments"),
    (done(BOX.run, GUEST, None), "args is NoneType: give a list of arguments"),
    (done(BOX.run, GUEST, {"a": 1}), "args is dict: give a list of arguments"),
    (done(BOX.run, GUEST, "abc"), "args is a single text: give a list of arguments"),
    (done(BOX.run, GUEST, [1]), f"an argument is int: {BYTES}"),
    (done(BOX.open, GUEST, 5), "args is int: give a list of arguments"),
    (done(BOX.run, GUEST, env=["A"]), "env is list: give a dict of variables, names and values as text"),
    (done(BOX.run, GUEST, env="A=B"), "env is str: give a dict of variables, names and values as text"),
    (done(BOX.run_async, GUEST, env=5), "env is int: give a dict of variables, names and values as text"),
    (done(BOX.run, GUEST, env={"A": None}), f"the variable A is NoneType: {BYTES}"),
    (done(BOX.run, GUEST, env={"A": 5}), f"the variable A is int: {BYTES}"),
    (done(BOX.run, GUEST, env={5: "A"}), "the name of a variable is int: it must be text"),
    (done(BOX.run, GUEST, on_stdout=5), f"on_stdout is int: {FUNCTION}"),
    (done(BOX.run, GUEST, on_stderr="x"), f"on_stderr is str: {FUNCTION}"),
    (done(BOX.run_async, GUEST, on_progress=[]), f"on_progress is list: {FUNCTION}"),
    (done(BOX.run, GUEST, on_stdout=asyncio.sleep), f"on_stdout is a coroutine function, {AWAIT}"),
    (done(BOX.open, GUEST, on_stderr=asyncio.sleep), f"on_stderr is a coroutine function, {AWAIT}"),
    (done(BOX.run, GUEST, run_id=[]), "run_id is list: it must be text"),
    (done(BOX.run_async, GUEST, tenant=[]), "tenant is list: it must be text"),
    (done(BOX.run_async, GUEST, priority="x"), "priority is 'x': it must be a whole number from 1 to 100"),
    (done(BOX.cancel, []), "run_id is list: it must be text"),
    (done(BOX.host_function, 5), "module is int: it must be text"),
    (
        done(BOX.host_function, print),
        'host_function is given the function itself: write the import module, such as @sandbox.host_function("env")',
    ),
    (done(BOX.host_function, "env", 5), "name is int: it must be text"),
    (done(Scheduler, None), "sandbox is NoneType: give a Sandbox"),
    (done(SessionPool, "x", GUEST), "sandbox is str: give a Sandbox"),
    (done(Scheduler(BOX).submit, "x"), "task is str: give a Task; Task.from_json reads one"),
    (done(Scheduler(BOX).submit, Task(module=GUEST, tenant=5)), "tenant is int: it must be text"),  # type: ignore[arg-type]
    (done(Scheduler(BOX).execute, 5), "this is not a task: it is int, where JSON is expected"),
    (done(stockade.TaskResult.from_json, 5), "this is not the result of a task: it is int, where JSON is expected"),
    (done(Pipe().write, 5), f"what is written to the pipe is int: {BYTES}"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=[message[:50] for _, message in MISTAKES])
def test_a_mistake_is_named(mistake: Callable[[], Any], message: str) -> None:
    """In words: which argument, what was given, and what is wanted."""
    with pytest.raises(UsageError) as caught:
        mistake()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"env": ["A"]}, "env is list: give a dict of variables, names and values as text"),
        ({"policy": 5}, f"policy is 5: {GIVE}"),
        ({"module": 5}, f"module is int: {A_MODULE}"),
        ({"export": 5}, "export is int: give the name of an exported function"),
        ({"id": 5}, "run_id is int: it must be text"),
    ],
    ids=str,
)
def test_a_mistake_in_a_task_is_told_by_its_handle(task: dict[str, Any], message: str) -> None:
    """A task is checked when its turn has come: the scheduler goes on."""
    with Scheduler(BOX) as scheduler:
        handle = scheduler.submit(Task(**{"module": GUEST, **task}))
        with pytest.raises(UsageError) as caught:
            handle.result(20)
        assert str(caught.value) == message
        assert scheduler.submit(Task(module=GUEST)).result(20).ok


def test_the_twins_of_these_mistakes() -> None:
    """What is right is taken: paths as text and as `Path`, arguments from a generator, text and bytes."""
    assert BOX.run(GUEST, (text for text in ("a", b"b")), env={"A": "1"}, policy="strict", run_id="x").ok
    assert BOX.call(bytearray(GUEST.data), "f", 1).ok
    with Scheduler(BOX) as scheduler:
        assert scheduler.submit(Task(module=memoryview(GUEST.data), args=(1, 2.5, "x"))).result(20).ok  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            lambda: Policy(wall_time=5),  # type: ignore[call-arg]
            "Policy has no field wall_time: write Policy(limits=Limits(wall_time=...))",
        ),
        (
            lambda: Policy(timeout=5),  # type: ignore[call-arg]
            "Policy has no field timeout: write Policy(limits=Limits(wall_time=...))",
        ),
        (
            lambda: Limits(mounts=[]),  # type: ignore[call-arg]
            "Limits has no field mounts: write Policy(filesystem=Filesystem(mounts=...))",
        ),
        (
            lambda: Limits(on_violation="stop"),  # type: ignore[call-arg]
            "Limits has no field on_violation: write Policy(on_violation=...)",
        ),
        (lambda: Limits(wal_time=5), "Limits has no field wal_time: did you mean wall_time?"),  # type: ignore[call-arg]
        (lambda: Mount("a", "/a", rights="ro"), "Mount has no field rights: known are host, guest, mode, only"),  # type: ignore[call-arg]
        (lambda: Mount("a"), "Missing required argument 'guest'"),  # type: ignore[call-arg]
        (
            lambda: Sandbox(memory="64MiB"),  # type: ignore[arg-type]
            (
                "Sandbox() got an unexpected keyword argument 'memory': it belongs to the policy, as in "
                "policy=Policy(limits=Limits(memory=...))"
            ),
        ),
        (
            lambda: BOX.run(HELLO.encode(), timeout=5),  # type: ignore[arg-type]
            (
                "Sandbox.run() got an unexpected keyword argument 'timeout': it belongs to the policy, as in "
                "policy=Policy(limits=Limits(wall_time=...))"
            ),
        ),
        (
            lambda: asyncio.run(BOX.run_async(HELLO.encode(), fuel=5)),  # type: ignore[arg-type]
            (
                "Sandbox.run_async() got an unexpected keyword argument 'fuel': it belongs to the policy, as in "
                "policy=Policy(limits=Limits(fuel=...))"
            ),
        ),
        (
            lambda: BOX.call(HELLO.encode(), "_start", fuel=5),  # type: ignore[call-overload]
            (
                "Sandbox.call() got an unexpected keyword argument 'fuel': it belongs to the policy, as in "
                "policy=Policy(limits=Limits(fuel=...))"
            ),
        ),
        (
            lambda: asyncio.run(BOX.call_async(HELLO.encode(), "_start", x=5)),  # type: ignore[call-overload]
            "Sandbox.call_async() got an unexpected keyword argument 'x'",
        ),
        (
            lambda: stockade.run(HELLO.encode(), mounts=[]),  # type: ignore[arg-type]
            (
                "run() got an unexpected keyword argument 'mounts': it belongs to the policy, as in "
                "policy=Policy(filesystem=Filesystem(mounts=...))"
            ),
        ),
        (
            lambda: stockade.call(HELLO.encode(), "_start", wall_time=1),  # type: ignore[call-overload]
            (
                "call() got an unexpected keyword argument 'wall_time': it belongs to the policy, as in "
                "policy=Policy(limits=Limits(wall_time=...))"
            ),
        ),
    ],
)
def test_a_keyword_in_the_wrong_place_is_told_the_right_one(mistake: Callable[[], Any], message: str) -> None:
    """A limit that is given to a run, or to the policy and not to its limits."""
    with pytest.raises(TypeError) as caught:
        mistake()

    assert str(caught.value) == message


def test_a_policy_file_is_taken_wherever_a_policy_is(tmp_path: Path) -> None:
    """As the command takes it."""
    path = tmp_path / "p.toml"
    path.write_text('name = "mine"\n')
    for given in (path, str(path)):
        assert stockade.run(GUEST, policy=given).policy.name == "mine"
        assert stockade.call(GUEST, "f", 1, policy=given) is None
        assert Sandbox(given).policy.name == "mine"
        assert BOX.run(GUEST, policy=given).policy.name == "default & mine"
        with BOX.open(GUEST, policy=given) as session:
            assert session.call("f", 1).policy.name == "default & mine"
    with Scheduler(BOX) as scheduler:
        assert scheduler.submit(Task(module=GUEST, policy=path)).result(20).policy.name == "default & mine"


def test_a_task_that_comes_as_json_names_presets_only(tmp_path: Path) -> None:
    """The attack: whoever sends tasks learns of the host's files by what is said of them as policies."""
    path = tmp_path / "secret.toml"
    path.write_text("password = 'x'")
    with Scheduler(BOX) as scheduler:
        result = scheduler.execute(f'{{"module": "none.wasm", "policy": "{path}"}}')
    assert result.error is not None
    assert result.error.startswith(f"there is no preset '{path}'")
    assert "password" not in result.error


@pytest.mark.parametrize("text", [HELLO, "\n\t;; a comment\n" + HELLO, "(; a (; nested ;) comment ;)" + HELLO])
def test_bytes_in_the_text_format_are_taken_alike_everywhere(text: str, tmp_path: Path) -> None:
    """One rule for `run` and `call`, of the package and of a sandbox: bytes that begin as text does are text.

    The twin, for whoever is sent modules: `Module.load` takes bytes for text only where it is told to.
    """
    path = tmp_path / "guest.wat"
    path.write_text(text)
    for module in (text.encode(), path, str(path)):
        for run in (stockade.run, BOX.run):
            assert run(module).stdout == b"hello world\n"
        assert asyncio.run(BOX.run_async(module)).ok
        assert stockade.call(module, "_start") is None
        assert BOX.call(module, "_start").ok
    assert Module.load(path).kind == Module.load(text.encode(), text=True).kind == "command"
    with pytest.raises(stockade.InvalidModule, match=r"^<bytes> is WebAssembly text"):
        Module.load(text.encode())
    for junk in (b"echo hello\n", b"", b"\x7fELF("):
        with pytest.raises(stockade.InvalidModule, match=r"^<bytes> is (not WebAssembly|empty)"):
            BOX.run(junk)


def test_everything_of_ours_is_one_kind_of_error() -> None:
    """What is named here is caught by one word."""
    assert issubclass(UsageError, StockadeError)
    assert Policy().name == "default"


# -- a sweep ----------------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    None,
    5,
    -1,
    1.5,
    math.nan,
    True,
    "x",
    "\ud800",
    "\0",
    b"x",
    [],
    {},
    [1],
    {"a": 1},
    object(),
    GUEST,
    (),
]
SCHEDULER = Scheduler(Sandbox())


def in_session(use: Callable[[stockade.Session], object]) -> None:
    """Opens a session for it: one that stays open would be seen by tests that count instances."""
    with BOX.open(GUEST) as session:
        use(session)


def run_task(**fields: Any) -> object:
    """What comes of a task."""
    return SCHEDULER.submit(Task(**{"module": GUEST, **fields})).result(30)


ANYTHING: dict[str, Callable[[Any], Any]] = {
    "Sandbox": Sandbox,
    "isolation": lambda odd: Sandbox("default", odd),
    "run": BOX.run,
    "args": lambda odd: BOX.run(GUEST, odd),
    "an argument": lambda odd: BOX.run(GUEST, [odd]),
    "stdin": lambda odd: BOX.run(GUEST, stdin=odd),
    "env": lambda odd: BOX.run(GUEST, env=odd),
    "a variable": lambda odd: BOX.run(GUEST, env={"A": odd}),
    "on_stdout": lambda odd: BOX.run(GUEST, on_stdout=odd),
    "on_progress": lambda odd: BOX.run(GUEST, on_progress=odd),
    "policy": lambda odd: BOX.run(GUEST, policy=odd),
    "run_id": lambda odd: BOX.run(GUEST, run_id=odd),
    "export": lambda odd: BOX.call(GUEST, odd),
    "what is passed": lambda odd: BOX.call(GUEST, "f", odd),
    "returns": lambda odd: BOX.call(GUEST, "f", 1, returns=odd),
    "open": lambda odd: BOX.open(odd).close(),
    "stdin, awaited": lambda odd: asyncio.run(BOX.run_async(GUEST, stdin=odd)),
    "priority": lambda odd: asyncio.run(BOX.run_async(GUEST, priority=odd)),
    "tenant": lambda odd: asyncio.run(BOX.run_async(GUEST, tenant=odd)),
    "export, awaited": lambda odd: asyncio.run(BOX.call_async(GUEST, odd)),
    "host_function": BOX.host_function,
    "the function": lambda odd: Sandbox().host_function("env", "f")(odd),
    "requires": lambda odd: BOX.host_function("env", "n", requires=odd),
    "cancel": BOX.cancel,
    "fuel_history": BOX.fuel_history,
    "prepare": BOX.prepare,
    "session.call": lambda odd: in_session(lambda session: session.call(odd)),
    "address": lambda odd: in_session(lambda session: session.read_memory(odd, 1)),
    "size": lambda odd: in_session(lambda session: session.read_memory(0, odd)),
    "data": lambda odd: in_session(lambda session: session.write_memory(0, odd)),
    "Module.load": Module.load,
    "limit_bytes": lambda odd: Module.load(GUEST.data, limit_bytes=odd),
    "Policy.load": Policy.load,
    "Policy.loads": Policy.loads,
    "format": lambda odd: Policy.loads("", odd),
    "Policy.preset": Policy.preset,
    "narrow": Policy().narrow,
    "diff": Policy().diff,
    "is_subset": Policy().is_subset,
    "score": Policy().score,
    "grants": Policy().grants,
    "asked": lambda odd: Policy(custom={"a": True, "b": "x"}).grants("b", odd),
    "permits": lambda odd: Policy().network.permits(odd, 1, secure=True),
    "syscall": Policy().wasi.syscall,
    "Scheduler": Scheduler,
    "concurrency": lambda odd: Scheduler(BOX, concurrency=odd),
    "submit": SCHEDULER.submit,
    "execute": SCHEDULER.execute,
    "map": lambda odd: list(SCHEDULER.map(odd)),
    "as_completed": lambda odd: list(SCHEDULER.as_completed(odd)),
    "timeout_seconds": lambda odd: SCHEDULER.submit(Task(module=GUEST)).wait(odd and abs(odd) if odd == -1 else odd),
    "on_done": lambda odd: SCHEDULER.submit(Task(module=GUEST)).on_done(odd),
    "SessionPool": lambda odd: SessionPool(odd, GUEST),
    "SessionPool's module": lambda odd: SessionPool(BOX, odd).close(),
    "SessionPool's env": lambda odd: SessionPool(BOX, GUEST, env=odd, size=1).close(),
    "Task.module": lambda odd: run_task(module=odd),
    "Task.args": lambda odd: run_task(args=odd),
    "Task.stdin": lambda odd: run_task(stdin=odd),
    "Task.env": lambda odd: run_task(env=odd),
    "Task.policy": lambda odd: run_task(policy=odd),
    "Task.quota": lambda odd: run_task(quota=odd),
    "Task.priority": lambda odd: run_task(priority=odd),
    "Task.tenant": lambda odd: run_task(tenant=odd),
    "Task.id": lambda odd: run_task(id=odd),
    "Task.export": lambda odd: run_task(export=odd),
    "to_json": lambda odd: Task(module=odd).to_json(),
    "from_json": Task.from_json,
    "Quota": lambda odd: Quota(max_memory_mb=odd, max_cpu_cores=odd),
    "Pipe": lambda odd: Pipe().write(odd),
    "Limits": lambda odd: Limits(memory=odd, wall_time=odd, fuel=odd),
    "Mount": lambda odd: Mount(odd, odd, odd),
    "replace": lambda odd: Policy().replace(limits=odd, memory=1 << 20),
    "mounts": lambda odd: Policy().replace(mounts=odd),
    "custom": lambda odd: Policy().replace(custom=odd),
    "names": lambda odd: Policy().replace(allow=odd),
    "stockade.call": lambda odd: stockade.call(odd, "f"),
}


@pytest.mark.parametrize("place", ANYTHING)
def test_nothing_odd_is_answered_by_an_error_from_inside(place: str) -> None:
    """Whatever is given wherever: it is taken, or refused as a mistake of the caller's."""
    for odd in ODD:
        with contextlib.suppress(StockadeError, TimeoutError):
            ANYTHING[place](odd)
