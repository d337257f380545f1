"""Tasks, quotas and results as plain data: what goes through JSON, what is refused, and what comes of a task."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stockade
from stockade import (
    Module,
    Outcome,
    Pipe,
    Policy,
    PolicyError,
    Quota,
    Sandbox,
    Scheduler,
    Task,
    TaskResult,
    Usage,
    UsageError,
)
from tests._small_guests import EXIT
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from collections.abc import Iterator

SPIN = '(module (func (export "_start") (loop br 0)))'
MEBIBYTE = 1 << 20

GUESTS = {
    "ok": HELLO,
    "exit": EXIT,
    "trap": '(module (func (export "_start") unreachable))',
    "spin": SPIN,
    "refused": '(module (import "env" "nobody" (func)) (func (export "_start")))',
    "add": '(module (func (export "add") (param i32 f64) (result f64)'
    " (f64.add (f64.convert_i32_s (local.get 0)) (local.get 1))))",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the guests as files, as tasks in JSON name them."""
    place = tmp_path_factory.mktemp("guests")
    for name, text in GUESTS.items():
        (place / f"{name}.wat").write_text(text)
    return place


@pytest.fixture(scope="module")
def scheduler() -> Iterator[Scheduler]:
    """One that all tests here share, under a patient policy."""
    with Sandbox(Policy().replace(wall_time=20.0)) as box, Scheduler(box) as found:
        yield found


# -- tasks ------------------------------------------------------------------------------------------------------------


def test_a_task_is_read_from_json() -> None:
    """Every field by its name; those that are left out are as in Python."""
    everything = {
        "module": "some/where.wasm",
        "id": "nightly-7",
        "export": "add",
        "args": [1, 2.5, "text"],
        "stdin": "in\n",
        "env": {"LANG": "C"},
        "policy": {"limits": {"memory": "1MiB"}},
        "quota": {"max_cpu_cores": 0.5, "max_memory_mb": 64, "max_execution_time_secs": 2, "max_network_mbps": 1},
        "priority": 90,
        "tenant": "acme",
    }
    task = Task.from_json(json.dumps(everything))

    assert task == Task(
        module="some/where.wasm",
        id="nightly-7",
        export="add",
        args=(1, 2.5, "text"),
        stdin="in\n",
        env={"LANG": "C"},
        policy={"limits": {"memory": "1MiB"}},
        quota=Quota(max_cpu_cores=0.5, max_memory_mb=64, max_execution_time_secs=2.0, max_network_mbps=1.0),
        priority=90,
        tenant="acme",
    )
    assert [type(arg) for arg in task.args] == [int, float, str]
    assert Task.from_json(json.dumps(everything).encode()) == task

    least, again = Task.from_json('{"module":"a"}'), Task.from_json('{"module":"a"}')
    assert least == Task(module="a", id=least.id)
    assert (least.args, least.stdin, least.env, least.priority, least.tenant) == ((), "", {}, 50, "")
    assert str(UUID(least.id)) == least.id != again.id


numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
quotas = st.builds(
    Quota,
    max_cpu_cores=st.floats(0.01, 100),
    max_memory_mb=st.integers(1, 2**40),
    max_execution_time_secs=st.floats(0.001, 315_360_000),
    max_network_mbps=st.floats(0, 1e12),
)
tasks = st.builds(
    Task,
    module=st.text(),
    id=st.text(),
    export=st.none() | st.text(),
    args=st.lists(numbers | st.text(), max_size=4).map(tuple),
    stdin=st.text(),
    env=st.dictionaries(st.text(), st.text(), max_size=3),
    policy=st.none() | st.text() | st.just({"limits": {"fuel": 5}}),
    quota=st.none() | quotas,
    priority=st.integers(1, 100),
    tenant=st.text(),
)


@given(tasks)
def test_tasks_go_through_json(task: Task) -> None:
    """What is written is read again, equal in every field."""
    assert Task.from_json(task.to_json()) == task
    assert Task.from_json(task.to_json().encode()) == task


def test_a_path_is_written_as_text() -> None:
    """The twin of what cannot be written: a path is text in JSON."""
    assert Task.from_json(Task(module=Path("a") / "b.wasm", id="x").to_json()) == Task(module="a/b.wasm", id="x")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"module": b"\0asm"}, "module is bytes, which JSON has no way to say: give the path of a module"),
        ({"module": wat(HELLO)}, "module is Module, which JSON has no way to say: give the path of a module"),
        ({"module": "a", "stdin": b"x"}, "stdin is bytes, which JSON has no way to say: give text"),
        ({"module": "a", "stdin": Pipe()}, "stdin is Pipe, which JSON has no way to say: give text"),
        (
            {"module": "a", "policy": Policy()},
            "policy is Policy, which JSON has no way to say: give the name of a preset, or what a document says",
        ),
        (
            {"module": "a", "policy": {"x": object()}},
            "JSON has no way to say this task: Encoding objects of type object is unsupported",
        ),
        (
            {"module": "a", "args": (math.inf,)},
            "this is not a task: Expected `int | float | str`, got `null` - at `$.args[0]`",
        ),
    ],
)
def test_tasks_that_json_cannot_say(fields: dict[str, Any], message: str) -> None:
    """Python can say more than JSON; what would come back as something else is refused."""
    with pytest.raises(UsageError) as caught:
        Task(**fields).to_json()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("args", "message"),
    [("12", "args is a single text: give a list of arguments"), (12, "args is int: give a list of arguments")],
)
def test_arguments_are_a_list(args: Any, message: str) -> None:
    """A single text would be taken for its characters."""
    with pytest.raises(UsageError) as caught:
        Task(module="a", args=args)
    assert str(caught.value) == message
    assert Task(module="a", args=["12"]).args == ["12"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "Object missing required field `module`"),
        ('{"module":"a","x":1}', "Object contains unknown field `x`"),
        ('{"module":"a","quota":{"cpus":1}}', "Object contains unknown field `cpus` - at `$.quota`"),
        ('{"module":5}', "Expected `str`, got `int` - at `$.module`"),
        ('{"module":"a","args":"text"}', "Expected `array`, got `str` - at `$.args`"),
        ('{"module":"a","args":[true]}', "Expected `int | float | str`, got `bool` - at `$.args[0]`"),
        ('{"module":"a","stdin":null}', "Expected `str`, got `null` - at `$.stdin`"),
        ('{"module":"a","env":{"a":1}}', "Expected `str`, got `int` - at `$.env[...]`"),
        ('{"module":"a","policy":5}', "Expected `str | object | null`, got `int` - at `$.policy`"),
        ('{"module":"a","quota":5}', "Expected `object | null`, got `int` - at `$.quota`"),
        ('{"module":"a","quota":{"max_memory_mb":1.5}}', "Expected `int`, got `float` - at `$.quota.max_memory_mb`"),
        ('{"module":"a","quota":{"max_cpu_cores":"1"}}', "Expected `float`, got `str` - at `$.quota.max_cpu_cores`"),
        ('{"module":"a","quota":{"max_cpu_cores":1e999}}', "Number out of range - at `$.quota.max_cpu_cores`"),
        ('{"module":"a","priority":"high"}', "Expected `int`, got `str` - at `$.priority`"),
        ("[]", "Expected `object`, got `array`"),
        ("{", "Input data was truncated"),
        ("", "Input data was truncated"),
        (b'{"module":"\xff"}', "it is not UTF-8, from position 11 on"),
        ("\ud800", "it is not UTF-8, from position 0 on"),
    ],
)
def test_what_is_not_a_task(text: str | bytes, message: str) -> None:
    """Where it is wrong is told, whatever was sent."""
    with pytest.raises(UsageError) as caught:
        Task.from_json(text)
    assert str(caught.value) == f"this is not a task: {message}"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"module":"a","module":"b"}', "module"),
        ('{"module":"a","env":{"A":"1","A":"2"}}', "A"),
        ('{"module":"a","quota":{"max_memory_mb":1,"max_memory_mb":2}}', "max_memory_mb"),
        ('{"module":"a","policy":{"limits":{"fuel":1,"\\u0066uel":2}}}', "fuel"),
        (b'{"module":"a","\\u001b":1,"tenant":"x","tenant":"y"}', None),
        ('{"tenant":"x","module":"a","tenant":"\\u001b[2J"}', "tenant"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(text: str | bytes, key: str | None) -> None:
    """The attack: whoever checks a task sees one value, and what runs it another."""
    with pytest.raises(UsageError) as caught:
        Task.from_json(text)
    if key is not None:
        assert str(caught.value) == f"this is not a task: the key {key} is there twice"
    assert Task.from_json('{"module":"a","env":{"A":"1"},"policy":{"limits":{"fuel":1}}}').env == {"A": "1"}


def test_nested_json_is_no_crash() -> None:
    """The attack: a document so deep that reading it would exhaust the stack."""
    with pytest.raises(UsageError, match=r"^this is not a task: (maximum recursion depth exceeded|Stack overflow)"):
        Task.from_json('{"module":"a","policy":' + '{"a":' * 100_000)


def test_a_long_key_does_not_flood_the_log() -> None:
    """The attack: an unknown key of megabytes, with control characters, is shown short and escaped."""
    with pytest.raises(UsageError) as caught:
        Task.from_json('{"module":"a","\\u001b[31m' + "x" * 1_000_000 + '":1}')
    assert len(str(caught.value)) < 200
    assert "\x1b" not in str(caught.value)


# -- quotas -----------------------------------------------------------------------------------------------------------


def test_quota_has_the_defaults_of_the_seed() -> None:
    """Quota has the defaults of the seed."""
    assert Quota() == Quota(max_cpu_cores=1.0, max_memory_mb=512, max_execution_time_secs=300.0, max_network_mbps=10.0)


@pytest.mark.parametrize(
    ("field", "values", "bounds"),
    [
        ("max_memory_mb", [0, -1, True, 1.0, "1", None], "a whole number from 1 on"),
        (
            "max_cpu_cores",
            [0, 0.0, -1.0, 0.0099, math.nan, math.inf, -math.inf, True, "1", None],
            "a number from 0.01 on",
        ),
        (
            "max_execution_time_secs",
            [0, 0.0009, -1, 315_360_001, math.nan, math.inf, 10**400, False, "1", None],
            "a number from 0.001 to 315,360,000",
        ),
        ("max_network_mbps", [-0.1, -1, math.nan, math.inf, True, "1", None], "a number from 0 on"),
    ],
)
def test_a_quota_out_of_range_names_its_field(field: str, values: list[Any], bounds: str) -> None:
    """The message names the field as the user wrote it, not the limit behind it."""
    for value in values:
        with pytest.raises(UsageError) as caught:
            Quota(**{field: value})
        assert str(caught.value) == f"quota.{field} is {value!r}: it must be {bounds}"


def test_a_quota_out_of_range_in_json_names_its_field() -> None:
    """The same where the task is read, before anything runs; the twin is in range."""
    with pytest.raises(UsageError) as caught:
        Task.from_json('{"module":"a","quota":{"max_memory_mb":0}}')
    assert str(caught.value) == "quota.max_memory_mb is 0: it must be a whole number from 1 on"
    task = Task.from_json('{"module":"a","quota":{"max_memory_mb":1}}')
    assert task.quota is not None
    assert task.quota.max_memory_mb == 1


limits_of_policies: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    memory=st.integers(65_536, 4 << 30),
    wall_time=st.none() | st.floats(0.001, 315_360_000),
    cpu_percent=st.integers(1, 100),
)


@given(quotas, limits_of_policies)
def test_a_quota_narrows_and_never_widens(quota: Quota, limits: dict[str, Any]) -> None:
    """Each limit is the lesser of both, and nothing else of the policy changes."""
    policy = Policy.preset("strict").replace(**limits)
    narrowed = quota.narrowed(policy)

    assert narrowed.is_subset(policy)
    assert narrowed.limits.memory == min(limits["memory"], quota.max_memory_mb * MEBIBYTE)
    seconds = math.inf if limits["wall_time"] is None else limits["wall_time"]
    assert narrowed.limits.wall_time == min(seconds, quota.max_execution_time_secs)
    percent = narrowed.limits.cpu_percent
    assert percent <= limits["cpu_percent"]
    assert percent <= quota.max_cpu_cores * 100 + 1e-6
    assert percent == limits["cpu_percent"] or percent > quota.max_cpu_cores * 100 - 1
    own = policy.limits
    assert narrowed.replace(memory=own.memory, wall_time=own.wall_time, cpu_percent=own.cpu_percent) == policy


@pytest.mark.parametrize("percent", range(1, 101))
def test_hundredths_of_a_core_are_kept_exactly(percent: int) -> None:
    """0.57 is 57 percent, although 0.57 * 100 is less than 57 to a computer."""
    assert Quota(max_cpu_cores=percent / 100).narrowed(Policy()).limits.cpu_percent == percent


def test_the_longest_quota_is_what_a_policy_can_say() -> None:
    """A quota in range is never refused by the policy behind it, also where that is unlimited."""
    unlimited = Policy().replace(wall_time=None)
    assert Quota(max_execution_time_secs=315_360_000).narrowed(unlimited).limits.wall_time == 315_360_000
    assert Quota(max_execution_time_secs=0.001).narrowed(unlimited).limits.wall_time == 0.001
    with pytest.raises(PolicyError):
        unlimited.replace(wall_time=315_360_001.0)


def test_quotas_are_enforced(scheduler: Scheduler) -> None:
    """Memory and time of a quota end a run; without it, the sandbox's own policy holds."""
    grow = wat(
        '(module (memory 1) (func (export "grow") (result i32) (memory.grow (i32.const 31)))'
        ' (func (export "_start") (loop br 0)))'
    )

    def pages(quota: Quota | None) -> object:
        return scheduler.execute(Task(module=grow, export="grow", quota=quota)).output

    assert pages(None) == 1
    assert pages(Quota(max_memory_mb=2)) == 1
    assert pages(Quota(max_memory_mb=1)) == -1
    result = scheduler.execute(Task(module=grow, quota=Quota(max_execution_time_secs=0.05)))
    assert result.outcome is Outcome.TIMEOUT


def test_a_share_of_a_core_is_kept(scheduler: Scheduler) -> None:
    """A quota of a tenth of a core leaves a spinning guest far less than half of one."""
    result = scheduler.execute(
        Task(module=wat(SPIN), quota=Quota(max_cpu_cores=0.1, max_execution_time_secs=0.6), policy="permissive")
    )
    assert result.outcome is Outcome.TIMEOUT
    assert result.resource_usage.cpu_seconds < 0.3


# -- the policy of a task ---------------------------------------------------------------------------------------------


def test_the_policy_of_a_task_holds_beside_the_sandboxs_own() -> None:
    """The attack: a task asks for more than the sandbox grants. It gets what both grant, however it says it."""
    own = Policy().replace(memory=2 * MEBIBYTE, wall_time=1.0)
    wider = {"limits": {"memory": "1GiB", "wall_time": "unlimited"}}
    for policy in (wider, "permissive", Policy().replace(memory=1 << 30, wall_time=None)):
        limits = Task(module="a", policy=policy).narrowed(own).limits
        assert (limits.memory, limits.wall_time) == (2 * MEBIBYTE, 1.0)
    narrower = {"limits": {"memory": "1MiB"}}
    assert Task(module="a", policy=narrower).narrowed(own).limits.memory == MEBIBYTE
    both = Task(module="a", policy=narrower, quota=Quota(max_execution_time_secs=0.5)).narrowed(own).limits
    assert (both.memory, both.wall_time) == (MEBIBYTE, 0.5)
    assert Task(module="a").narrowed(own) == own


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"x": object()}, "the policy of the task is not plain data: Encoding objects of type object is unsupported"),
        ({"limits": {"memory": 0}}, "limits.memory is 0: it must be between 65,536 and 4,294,967,296"),
    ],
)
def test_what_is_no_policy_for_a_task(policy: Any, message: str) -> None:
    """What is wrong with it is told; nothing runs under a policy that was meant otherwise."""
    with pytest.raises(PolicyError) as caught:
        Task(module="a", policy=policy).narrowed(Policy())
    assert str(caught.value) == message


# -- results ----------------------------------------------------------------------------------------------------------

EXPECTED: dict[str, dict[str, Any]] = {
    "ok": {"success": True, "outcome": "ok", "output": "hello world\n", "error": None},
    "exit": {"success": False, "outcome": "exit", "output": "", "error": "exit.wat: exited with code 3"},
    "trap": {
        "success": False,
        "outcome": "trap",
        "output": "",
        "error": "trap.wat: trapped: unreachable instruction executed",
    },
    "refused": {
        "success": False,
        "outcome": None,
        "output": None,
        "error": "nothing provides what the module imports: env.nobody (function () -> ()). Guests get WASI preview 1 "
        "(wasi_snapshot_preview1). Run the module from Python and provide these with Sandbox.host_function(...), or "
        "rebuild it without them",
    },
}


@pytest.mark.parametrize("name", ["ok", "exit", "trap", "refused"])
def test_json_in_and_json_out(scheduler: Scheduler, folder: Path, name: str) -> None:
    """A task in JSON, its result in JSON, whatever became of it."""
    before = datetime.now(UTC)
    result = scheduler.execute(json.dumps({"id": f"task-{name}", "module": str(folder / f"{name}.wat")}))
    told = json.loads(result.to_json())

    assert TaskResult.from_json(result.to_json()) == result
    assert list(told) == [
        "task_id",
        "success",
        "outcome",
        "output",
        "execution_time_ms",
        "resource_usage",
        "error",
        "completed_at",
    ]
    assert {key: told[key] for key in EXPECTED[name]} == EXPECTED[name]
    assert told["task_id"] == f"task-{name}"
    assert before <= result.completed_at <= datetime.now(UTC)
    assert told["completed_at"] == result.completed_at.isoformat().replace("+00:00", "Z")
    assert result.execution_time_ms == result.resource_usage.wall_seconds * 1e3
    assert (result.execution_time_ms > 0) == (name != "refused")
    assert told["resource_usage"]["stdout_bytes"] == (12 if name == "ok" else 0)


@pytest.mark.parametrize(
    ("limits", "outcome", "error"),
    [
        ({"fuel": 100_000}, Outcome.FUEL, "spin.wat: stopped: out of fuel"),
        ({"fuel": "unlimited", "wall_time": 0.05}, Outcome.TIMEOUT, "spin.wat: stopped: time limit reached"),
    ],
)
def test_limits_in_json(
    scheduler: Scheduler, folder: Path, limits: dict[str, Any], outcome: Outcome, error: str
) -> None:
    """A run that its own policy ended is told with the limit."""
    result = scheduler.execute(json.dumps({"module": str(folder / "spin.wat"), "policy": {"limits": limits}}))

    assert (result.success, result.outcome, result.output) == (False, outcome, "")
    assert result.error == error
    assert TaskResult.from_json(result.to_json()) == result


def test_a_function_in_json(scheduler: Scheduler, folder: Path) -> None:
    """Numbers go in and come out as numbers."""
    task = {"module": str(folder / "add.wat"), "export": "add", "args": [1, 2.5]}
    result = scheduler.execute(json.dumps(task))
    assert (result.success, result.output, result.error) == (True, 3.5, None)


@pytest.mark.parametrize(
    ("results", "body", "output", "read"),
    [
        ("i64", "(i64.const -9223372036854775808)", -(2**63), -(2**63)),
        ("f64", "(f64.const inf)", math.inf, None),
        ("v128", "(v128.const i64x2 1 2)", "01" + "00" * 7 + "02" + "00" * 7, ...),
        ("i32 v128 f32", "(i32.const 1) (v128.const i64x2 0 0) (f32.const nan)", ..., [1, "00" * 16, None]),
    ],
)
def test_every_value_has_a_json(scheduler: Scheduler, results: str, body: str, output: object, read: object) -> None:
    """Whatever a function returns can be written and read; JSON has no infinities and no NaN."""
    result = scheduler.execute(Task(module=wat(f'(module (func (export "f") (result {results}) {body}))'), export="f"))
    assert output in (..., result.output)
    found = TaskResult.from_json(result.to_json())
    assert found.output == (output if read is ... else read)
    assert found.task_id == result.task_id


def test_output_that_is_no_text_is_told_all_the_same(scheduler: Scheduler) -> None:
    """The attack: bytes that no JSON can hold; they are replaced, the result is read again."""
    text = HELLO.replace("hello world", r"\ff\fe\00\1b lo wor")
    result = scheduler.execute(Task(module=wat(text)))
    assert result.success
    assert isinstance(result.output, str)
    assert result.output.startswith("\ufffd\ufffd\0\x1b lo")
    assert TaskResult.from_json(result.to_json()) == result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "Object contains unknown field `extra`"),
        ({"success": "yes"}, "Expected `bool`, got `str` - at `$.success`"),
        ({"outcome": "great"}, "Invalid enum value 'great' - at `$.outcome`"),
        ({"completed_at": "noon"}, "Invalid RFC3339 encoded datetime - at `$.completed_at`"),
        ({"resource_usage": None}, "Expected `object`, got `null` - at `$.resource_usage`"),
    ],
)
def test_what_is_not_a_result(change: dict[str, Any], message: str) -> None:
    """The twin is what `to_json` wrote."""
    result = TaskResult(
        task_id="a",
        success=True,
        outcome=Outcome.OK,
        output="",
        execution_time_ms=1.0,
        resource_usage=Usage(),
        error=None,
        completed_at=datetime.now(UTC),
    )
    assert TaskResult.from_json(result.to_json()) == result
    with pytest.raises(UsageError) as caught:
        TaskResult.from_json(json.dumps({**json.loads(result.to_json()), **change}))
    assert str(caught.value) == f"this is not the result of a task: {message}"


def test_python_may_give_more_than_json(scheduler: Scheduler) -> None:
    """A module as bytes or loaded, and stdin as bytes or a pipe: all that `Sandbox.run` takes."""
    binary = stockade.Module.load(GUESTS["add"].encode(), text=True)
    assert isinstance(binary, Module)
    assert scheduler.execute(Task(module=binary, export="add", args=(1, 1))).output == 2.0
    with Pipe() as pipe:
        pipe.write(b"unread")
        assert scheduler.execute(Task(module=wat(HELLO), stdin=pipe)).success
    assert scheduler.execute(Task(module=wat(HELLO), stdin=b"\xff")).success
