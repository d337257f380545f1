"""The public names, and what importing them costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import stockade
from stockade import errors

PACKAGE = Path(stockade.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

PROMISED = {
    stockade.Sandbox: [
        "run",
        "call",
        "run_async",
        "call_async",
        "open",
        "close",
        "__enter__",
        "__exit__",
        "__aenter__",
        "__aexit__",
    ],
    stockade.Session: ["call", "close", "__enter__", "__exit__"],
    stockade.Module: ["load", "imports", "exports", "kind"],
    stockade.Policy: ["preset", "load", "loads", "replace", "digest"],
    stockade.Report: ["ok", "check", "to_json", "render"],
}

FIELDS = {
    stockade.Report: [
        "outcome",
        "exit_code",
        "value",
        "stdout",
        "stderr",
        "truncated",
        "usage",
        "violations",
        "trap",
        "module",
        "policy",
        "timings",
    ],
    stockade.Usage: [
        "fuel",
        "wall_seconds",
        "cpu_seconds",
        "idle_seconds",
        "memory_bytes",
        "memory_peak_bytes",
        "table_elements",
        "calls",
        "denied",
        "read_bytes",
        "written_bytes",
        "stdout_bytes",
        "stderr_bytes",
        "files_opened",
        "files_open_peak",
        "files_created",
        "files_deleted",
        "random_bytes",
        "host_calls",
        "network_sent_bytes",
        "network_received_bytes",
        "network_connections",
    ],
    stockade.Violation: ["kind", "subject", "limit", "observed", "call", "action", "at"],
    stockade.Timings: ["compile", "instantiate", "run", "total", "cache_hit"],
    stockade.TrapInfo: ["code", "message", "frames"],
    stockade.Policy: ["name", "limits", "filesystem"],
}


def in_a_fresh_process(code: str) -> object:
    """What a fresh interpreter prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_every_public_name_can_be_imported() -> None:
    """`__all__` is without doubles, and what `dir` shows; every name in it is there."""
    assert dir(stockade) == sorted(stockade.__all__) == sorted(set(stockade.__all__))
    for name in stockade.__all__:
        assert getattr(stockade, name) is not None
    assert set(errors.__all__) <= set(stockade.__all__)


ROOMS = {
    "stockade.policy": (
        "Amount Change Clock Environment Features Filesystem HostRule Limits ModuleLimits Mount Network Policy "
        "PolicyStatement PortRange Process Random Reason Score Wasi"
    ),
    "stockade.report": (
        "FuelAnomaly FuelHistory FuelStatistics Outcome Progress Report Timings TrapFrame TrapInfo Trend Truncated "
        "Usage Violation ViolationEvent"
    ),
    "stockade.host": "F32 F64 I32 I64 U32 U64 GuestMemory HostCall",
    "stockade.execution": "Calibration Pipe calibrate",
    "stockade.typing": (
        "Argument AsyncStdin BytesLike Json OnOutput OnOutputAsync OnProgress PolicyChanges PolicyLike Returns Source "
        "Stdin Value"
    ),
}


def test_the_package_offers_what_one_types_in_a_day() -> None:
    """About forty names; the rest is in public rooms."""
    assert len(stockade.__all__) == 55
    promised = (
        "Policy Sandbox Report Outcome Module run call StockadeError PolicyError ModuleError InvalidModule LinkError"
    )
    assert {*promised.split(), "IsolationError"} <= set(stockade.__all__)
    for room, names in ROOMS.items():
        module = importlib.import_module(room)
        assert set(names.split()) <= set(module.__all__)


def test_names_that_moved_are_still_found() -> None:
    """Code that was written before finds them where they were, and they are the same."""
    for room, names in ROOMS.items():
        for name in names.split() if room != "stockade.typing" else ():
            assert getattr(stockade, name) is getattr(importlib.import_module(room), name)
    for name in ("Need", "Grant", "Stdin"):  # never were
        assert not hasattr(stockade, name)


def test_unknown_names_are_attribute_errors() -> None:
    """The twin of the above: a misspelt name is told as Python does."""
    with pytest.raises(AttributeError) as caught:
        _ = stockade.Sandbag
    assert str(caught.value) == "module 'stockade' has no attribute 'Sandbag'"


@pytest.mark.parametrize("owner", PROMISED, ids=lambda owner: owner.__name__)
def test_promised_methods_exist(owner: type) -> None:
    """The names that the first release promises, each with its docstring."""
    for name in PROMISED[owner]:
        member = inspect.getattr_static(owner, name)
        assert name.startswith("__") or inspect.getdoc(getattr(member, "func", member))


@pytest.mark.parametrize("owner", FIELDS, ids=lambda owner: owner.__name__)
def test_promised_fields_exist(owner: Any) -> None:
    """The fields of what is handed out."""
    assert set(FIELDS[owner]) <= set(owner.__struct_fields__)


def test_outcomes_are_those_promised() -> None:
    """The words that reports use for how a run ended."""
    assert [str(outcome) for outcome in stockade.Outcome] == (
        ["ok", "exit", "trap", "fuel", "timeout", "idle", "memory", "stack", "output", "denied", "cancelled", "crashed"]
    )


def test_module_tells_what_it_is() -> None:
    """`sha256` is that of the bytes as they came; imports, exports and kind are read from them."""
    import hashlib

    module = stockade.Module.load(b'(module (func (export "f") (param i32)))', text=True)

    assert module.sha256 == hashlib.sha256(module.data).hexdigest()
    assert (module.kind, module.imports) == ("plain", ())
    assert [tuple(item) for item in module.exports] == [("", "f", "func", "(i32) -> ()")]


def test_import_alone_is_cheap() -> None:
    """Importing loads neither the engine nor a face, starts no thread, and makes no engine."""
    code = (
        "import json, sys, threading\n"
        "import stockade\n"
        "heavy = {'wasmtime', 'rich', 'click', 'ctypes', 'msgspec', 'asyncio'} & set(sys.modules)\n"
        "with open('/proc/self/status') as file:\n"
        "    threads = [int(line.split()[1]) for line in file if line.startswith('Threads:')]\n"
        "print(json.dumps([sorted(heavy), threading.active_count(), threads]))"
    )

    assert in_a_fresh_process(code) == [[], 1, [1]]


def test_engine_is_loaded_on_first_use() -> None:
    """The twin of the above."""
    code = (
        "import json, sys\n"
        "import stockade\n"
        "value = stockade.call('(module (func (export \"one\") (result i32) i32.const 1))'.encode(), 'one')\n"
        "print(json.dumps([value, 'ctypes' in sys.modules, 'rich' in sys.modules, 'click' in sys.modules]))"
    )

    assert in_a_fresh_process(code) == [1, True, False, False]


@pytest.mark.parametrize("name", ["stockade.policy", "stockade.report", "stockade.wasm"])
def test_plain_data_needs_no_engine(name: str) -> None:
    """Policies and reports can be used, sent and stored where there is no engine."""
    code = (
        f"import json, sys, {name}; print(json.dumps([n for n in ('wasmtime', 'ctypes', 'click') if n in sys.modules]))"
    )

    assert in_a_fresh_process(code) == []


def test_every_module_says_what_it_is_and_offers() -> None:
    """Each source file has a docstring and an `__all__` whose names exist."""
    assert len(SOURCES) > 300
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text())), path
        if path.name == "__main__.py":
            continue
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
        assert isinstance(module.__all__, list), path
        assert len(module.__all__) == len(set(module.__all__)), path
        for name in module.__all__:
            assert hasattr(module, name), (path, name)


def test_package_is_typed() -> None:
    """Type checkers read the annotations of an installed package only where it says so."""
    assert (PACKAGE / "py.typed").is_file()


def test_every_error_is_a_stockade_error() -> None:
    """One `except` catches all that Stockade raises on purpose, and the tree is that of the documentation."""
    tree = {name: getattr(errors, name).__base__.__name__ for name in errors.__all__}

    assert tree == {
        "StockadeError": "Exception",
        "PolicyError": "StockadeError",
        "SnapshotError": "StockadeError",
        "AuditError": "StockadeError",
        "ModuleError": "StockadeError",
        "ModuleNotFound": "ModuleError",
        "InvalidModule": "ModuleError",
        "LinkError": "ModuleError",
        "IsolationError": "StockadeError",
        "EngineError": "IsolationError",
        "SyscallRefused": "IsolationError",
        "UsageError": "StockadeError",
        "QueueFull": "StockadeError",
        "GuestError": "StockadeError",
        "GuestExit": "GuestError",
        "GuestTrap": "GuestError",
        "LimitExceeded": "GuestError",
        "Denied": "GuestError",
        "Cancelled": "GuestError",
        "CodeFailed": "GuestError",
    }
    assert all(issubclass(getattr(errors, name), stockade.StockadeError) for name in errors.__all__)
    for name in errors.__all__:
        assert f"  {name} " in str(errors.__doc__) or f"{name}  " in str(errors.__doc__)


def test_errors_of_guests_carry_the_report() -> None:
    """What `check` raises holds the whole report."""
    error = trapped()

    assert error.report.outcome is stockade.Outcome.TRAP
    assert str(error) == "<bytes>: trapped: unreachable instruction executed"


def test_errors_of_guests_can_be_sent_to_another_process() -> None:
    """Pools of worker processes hand exceptions back pickled: one that cannot be read again breaks the whole pool."""
    error = trapped()

    again = pickle.loads(pickle.dumps(error))

    assert type(again) is stockade.GuestTrap
    assert again.report == error.report
    assert str(again) == str(error)


def trapped() -> stockade.GuestTrap:
    """The error of a guest that traps."""
    module = stockade.Module.load(b'(module (func (export "_start") unreachable))', text=True)
    with pytest.raises(stockade.GuestTrap) as caught:
        stockade.run(module).check()
    return caught.value
