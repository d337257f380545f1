"""Every type, section and encoding of the binary format runs under the guard, and does what it does without one.

What the text format does not say is said in bytes: padded numbers, long and short types, forms of segments and limits.
Each module calls WASI and grows its first memory around what it shows.

Holds P-LOAD-4 and P-NATIVE-1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import wasmtime

import stockade
from stockade import Outcome, Sandbox
from stockade.guard import guard, prove, weave
from stockade.wasm import outline, parse
from tests._bare import bare_engine
from tests._examples import part
from tests.guard._checks import check_woven
from tests.guard._modules import END, HEADER, call, custom, i32, leb, name, ref_func, section, vec
from tests.spec._check import everything

if TYPE_CHECKING:
    from collections.abc import Iterable

I32, I64, F32, F64, V128, FUNCREF, EXTERNREF = 0x7F, 0x7E, 0x7D, 0x7C, 0x7B, 0x70, 0x6F
_DROP = b"\x1a"
_NO_LOCALS = b"\x00"
_VALUE = b"\x60\x00\x01\x7f"  # (func (result i32))
_NOTHING = b"\x60\x00\x00"
_MEMORY = b"\x00\x01"
_SEVEN = i32(7) + END
_ORDER = (1, 2, 3, 4, 5, 13, 6, 7, 8, 9, 12, 10, 11)
_COUNTED = frozenset(_ORDER) - {8, 12}


def _module(
    code: bytes = i32(7),
    *,
    locals_: bytes = _NO_LOCALS,
    types: Iterable[bytes] = (),
    functions: Iterable[tuple[int, bytes]] = (),
    size: int = 1,
    between: bytes = b"",
    **sections: Iterable[bytes] | bytes,
) -> bytes:
    """A module. Its function 0 is sched_yield of WASI, 1 is `f`, which gives what `code` does; more follow.

    Args:
        code: What `f` does between a call of WASI and growth of memory 0.
        locals_: Its local variables.
        types: Types behind `(func (result i32))` and `(func)`.
        functions: More functions: the type and the code of each, local variables included.
        size: Bytes that counts and lengths take at least.
        between: Stands before every section: custom sections.
        sections: Items of other sections, by their names, or the whole content of one.
    """
    yields = call(0) + _DROP
    grows = i32(0) + b"\x40\x00" + _DROP
    bodies = [locals_ + yields + code + grows + yields + END, *(body for _, body in functions)]
    found: dict[int, Iterable[bytes] | bytes] = {
        1: [_VALUE, _NOTHING, *types],
        2: [name("wasi_snapshot_preview1") + name("sched_yield") + b"\x00\x00"],
        3: [leb(type_, size) for type_ in (0, *(type_ for type_, _ in functions))],
        5: [_MEMORY],
        7: [name("f") + b"\x00\x01", name("memory") + b"\x02\x00"],
        10: [leb(len(body), size) + body for body in bodies],
    }
    numbers = {
        "imports": 2, "tables": 4, "memories": 5, "tags": 13, "globals_": 6, "exports": 7, "start": 8, "elements": 9,
        "data_count": 12, "data": 11,
    }  # fmt: skip
    found |= {numbers[what]: items for what, items in sections.items()}
    out = HEADER
    for number in _ORDER:
        if number in found:
            items = found[number]
            content = items if isinstance(items, bytes) else vec(items, size)
            out += between + section(number, content, size)
    return out + between


def _bare(data: bytes) -> int | None:
    """What `f` returns on the bare engine; None where it traps."""
    module = wasmtime.Module(bare_engine(), data)
    linker = wasmtime.Linker(bare_engine())
    linker.define_wasi()
    store = wasmtime.Store(bare_engine())
    store.set_wasi(wasmtime.WasiConfig())
    function = linker.instantiate(store, module).exports(store)["f"]
    assert isinstance(function, wasmtime.Func)
    try:
        return int(function(store))
    except wasmtime.Trap:
        return None


def _null(heap: bytes) -> bytes:
    return b"\xd0" + heap + _DROP


# -- types -------------------------------------------------------------------------------------------------------------

_HEAPS = {0x74: "noexn", 0x73: "nofunc", 0x72: "noextern", 0x71: "none", 0x70: "func", 0x6F: "extern", 0x6E: "any",
          0x6D: "eq", 0x6C: "i31", 0x6B: "struct", 0x6A: "array", 0x69: "exn"}  # fmt: skip


def _types() -> dict[str, bytes]:
    """Types of the type section, and of variables."""
    structure = b"\x5f" + vec([b"\x7f\x00", b"\x7e\x01", b"\x78\x01", b"\x77\x00", b"\x63\x70\x01", b"\x7b\x00"])
    found = {
        "group of one": [b"\x4e\x01" + _NOTHING],
        "group of none": [b"\x4e\x00"],
        "group of three": [b"\x4e\x03" + structure + b"\x5e\x64\x02\x01" + b"\x60\x01\x63\x03\x00"],
        "group, its count padded": [b"\x4e\x82\x80\x80\x80\x00" + _NOTHING * 2],
        "group behind a group": [b"\x4e\x01" + _NOTHING, b"\x4e\x02\x5f\x00\x5f\x01\x63\x03\x00", _VALUE],
        "struct": [structure],
        "struct without fields": [b"\x5f\x00"],
        "array": [b"\x5e\x7f\x01"],
        "array of bytes": [b"\x5e\x78\x01"],
        "array of shorts": [b"\x5e\x77\x00"],
        "open": [b"\x50\x00" + structure],
        "final": [b"\x4f\x00" + structure],
        "below": [
            b"\x50\x00\x5f\x00",
            b"\x50\x01\x02\x5f\x01\x7f\x00",
            b"\x4f\x01\x83\x80\x00\x5f\x02\x7f\x00\x7e\x01",
        ],
        "function below": [b"\x50\x00" + _NOTHING, b"\x4f\x01\x02" + _NOTHING],
    }
    modules = {what: _module(types=types) for what, types in found.items()}
    for code, heap in _HEAPS.items():
        for what, type_ in (
            ("short", bytes([code])),
            ("null", bytes([0x63, code])),
            ("not null", bytes([0x64, code])),
        ):
            modules[f"{heap}, {what}, of a parameter"] = _module(types=[b"\x60" + vec([type_, b"\x7f"]) + vec([type_])])
            if what != "not null":
                locals_ = b"\x02\x01" + type_ + b"\x81\x80\x00" + type_
                read = b"\x20\x00" + _DROP + b"\x20\x81\x00" + _DROP
                modules[f"{heap}, {what}, of a variable"] = _module(read + i32(1), locals_=locals_)
    for padded in range(1, 6):
        index = leb(0, padded) if padded < 5 else b"\x80\x80\x80\x80\x00"
        modules[f"index in {padded} of a variable"] = _module(locals_=b"\x01\x01\x63" + index)
        modules[f"index in {padded} of a null"] = _module(_null(index) + i32(1))
    return modules


# -- code --------------------------------------------------------------------------------------------------------------


def _blocks() -> dict[str, bytes]:
    """Blocks of every type, and what catches."""
    modules = {}
    two = b"\x60\x01\x7f\x02\x7f\x7f"
    for opener, what in ((b"\x02", "block"), (b"\x03", "loop"), (b"\x1f", "try_table")):
        behind = b"\x00" if opener == b"\x1f" else b""
        modules[f"{what} of nothing"] = _module(opener + b"\x40" + behind + END + i32(5))
        for code, value in ((I32, i32(1)), (I64, b"\x42\x01"), (F32, b"\x43" + bytes(4)), (F64, b"\x44" + bytes(8)),
                            (V128, b"\xfd\x0c" + bytes(16)), (FUNCREF, b"\xd0\x70"), (EXTERNREF, b"\xd0\x6f"),
                            (0x69, b"\xd0\x69"), (0x6E, b"\xd0\x6e"), (0x71, b"\xd0\x71")):  # fmt: skip
            modules[f"{what} of {code:#x}"] = _module(opener + bytes([code]) + behind + value + END + _DROP + i32(5))
        modules[f"{what} of a long type"] = _module(opener + b"\x64\x00" + behind + ref_func(1) + END + _DROP + i32(3))
        for padded in range(1, 6):
            code = i32(9) + opener + leb(2, padded) + behind + i32(2) + END + b"\x6a"
            modules[f"{what} of an index in {padded}"] = _module(code, types=[two])
    modules["if of an index"] = _module(
        i32(9) + i32(0) + b"\x04\x02" + i32(2) + b"\x05" + i32(3) + END + b"\x6a", types=[two]
    )
    tags = [b"\x00\x01", b"\x00\x02"]
    types = [b"\x60\x01\x7f\x00", b"\x60\x00\x02\x7f\x69"]
    throw = i32(8) + b"\x08\x01"
    modules["catch"] = _module(b"\x02\x7f\x1f\x40\x01\x00\x01\x00" + throw + END + i32(0) + END, types=types, tags=tags)
    modules["catch_ref"] = _module(
        b"\x02\x03\x1f\x40\x01\x01\x01\x00" + throw + END + i32(0) + b"\xd0\x69" + END + _DROP, types=types, tags=tags
    )
    modules["catch_all"] = _module(b"\x02\x40\x1f\x40\x01\x02\x00" + throw + END + END + i32(4), types=types, tags=tags)
    modules["catch_all_ref"] = _module(
        b"\x02\x69\x1f\x40\x01\x03\x00" + throw + END + b"\xd0\x69" + END + b"\xd1", types=types, tags=tags
    )
    clauses = leb(2, 3) + b"\x00" + leb(1, 3) + leb(0, 5) + b"\x00" + leb(1, 5) + leb(0, 2)
    modules["catches, padded"] = _module(
        b"\x02\x7f\x1f\x40" + clauses + throw + END + i32(0) + END, types=types, tags=tags
    )
    return modules


def _immediates() -> dict[str, bytes]:
    """What follows opcodes: memory arguments, flags of casts, counts, numbers behind prefixes."""
    wide = b"\x05\x01\x08"
    two = [_MEMORY, _MEMORY]
    modules = {}
    for padded in (1, 5, 10):
        modules[f"offset in {padded}"] = _module(i32(0) + b"\x28\x02" + leb(8, padded))
        modules[f"memory, offset in {padded}"] = _module(i32(0) + b"\x28\x42\x01" + leb(8, padded), memories=two)
        wide_load = b"\x42\x04\x28\x42\x01" + leb(8, padded)
        modules[f"64-bit, offset in {padded}"] = _module(wide_load, memories=[_MEMORY, wide])
    modules["64-bit, offset beyond 32"] = _module(b"\x42\x04\x28\x42\x01" + leb(1 << 33), memories=[_MEMORY, wide])
    modules["64-bit, largest offset"] = _module(b"\x42\x04\x28\x42\x01" + leb((1 << 64) - 1), memories=[_MEMORY, wide])
    for padded in range(1, 6):
        modules[f"memory in {padded}"] = _module(
            i32(0) + b"\x28" + leb(0x42, padded) + leb(1, padded) + b"\x08", memories=two
        )
        modules[f"prefixed in {padded}"] = _module(b"\x44" + bytes(8) + b"\xfc" + leb(2, padded))
        modules[f"object in {padded}"] = _module(i32(5) + b"\xfb" + leb(28, padded) + b"\xfb" + leb(29, padded))
        modules[f"atomic in {padded}"] = _module(i32(8) + b"\xfe" + leb(16, padded) + b"\x02" + leb(0, padded))
        modules[f"vector in {padded}"] = _module(
            b"\xfd" + leb(12, padded) + bytes(range(16)) + b"\xfd" + leb(27, padded) + b"\x01"
        )
        modules[f"select of a long type, count in {padded}"] = _module(
            _null(b"\x70") + b"\xd0\x70\xd0\x70" + i32(0) + b"\x1c" + leb(1, padded) + b"\x63\x70\xd1"
        )
        modules[f"cast to an index in {padded}"] = _module(ref_func(1) + b"\xfb\x14" + leb(1, padded))
    # br_on_cast: which of the two references may be null stands in a byte of flags.
    for flags in range(4):
        first = b"\xd0\x6c" if flags & 1 else i32(3) + b"\xfb\x1c"
        if flags == 2:
            continue  # a reference that may be null is below none that may not
        type_ = b"\x63\x6c" if flags & 2 else b"\x64\x6c"
        modules[f"br_on_cast, flags {flags}"] = _module(
            b"\x02"
            + type_
            + first
            + b"\xfb\x18"
            + bytes([flags])
            + b"\x80\x00\x6e\x6c"
            + _DROP
            + i32(3)
            + b"\xfb\x1c"
            + END
            + b"\xfb\x1d"
        )
        rest = b"\x63\x6e" if flags == 1 else b"\x64\x6e"
        modules[f"br_on_cast_fail, flags {flags}"] = _module(
            b"\x02"
            + rest
            + first
            + b"\xfb\x19"
            + bytes([flags])
            + b"\x00\x6e\x6c"
            + _DROP
            + i32(3)
            + b"\xfb\x1c"
            + END
            + b"\xd1"
        )
    modules["fence"] = _module(b"\xfe\x03\x00" + i32(2))
    modules["br_table, padded"] = _module(
        b"\x02\x40\x02\x40" + i32(1) + b"\x0e" + leb(2, 5) + leb(1, 5) + leb(0, 3) + leb(1, 2) + END + END + i32(6)
    )
    modules["constants, padded"] = _module(
        b"\x41\x85\x80\x80\x80\x00\x42\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f\xa7\x6a"
    )
    return modules


# -- sections ----------------------------------------------------------------------------------------------------------


def _limits() -> dict[str, bytes]:
    """Memories and tables in every form of limits, numbers padded."""
    modules = {}
    for padded in (1, 5, 10):
        one, two = leb(1, padded), leb(2, padded)
        for flags, shape in ((0, one), (1, one + two), (3, one + two), (4, one), (5, one + two), (7, one + two)):
            wide = flags & 4
            memory = bytes([flags]) + shape
            modules[f"memory of the form {flags}, {padded}"] = _module(
                (b"\x42\x08" if wide else i32(8)) + b"\x28\x42\x01\x00", memories=[_MEMORY, memory]
            )
            grown = (b"\x42\x01" if wide else i32(1)) + b"\x40\x01" + (b"\xa7" if wide else b"") + b"\x3f\x01"
            modules[f"memory of the form {flags} that grows, {padded}"] = _module(
                grown + (b"\xa7" if wide else b"") + b"\x6a", memories=[_MEMORY, memory]
            )
            if not flags & 2:
                grown = b"\xd0\x70" + (b"\x42\x01" if wide else i32(1)) + b"\xfc\x0f\x00" + (b"\xa7" if wide else b"")
                modules[f"table of the form {flags}, {padded}"] = _module(
                    grown + b"\xfc\x10\x00" + (b"\xa7" if wide else b"") + b"\x6a", tables=[b"\x70" + memory]
                )
    return modules


def _sections() -> dict[str, bytes]:
    """Sections: segments in every form, what tables begin with, tags, exports of every kind, custom sections."""
    called = i32(0) + b"\x11\x00\x00"  # what element 0 of table 0 gives
    seven = [(0, _NO_LOCALS + _SEVEN)]
    table = [b"\x70\x00\x04"]
    items = vec([leb(2)])
    expressions = vec([ref_func(2) + END])
    at_zero = i32(0) + END
    initialised = i32(0) * 2 + i32(1) + b"\xfc\x0c\x00\x00" + called
    modules = {}
    for form, segment in {
        0: at_zero + items,
        1: b"\x00" + items,
        2: b"\x00" + at_zero + b"\x00" + items,
        3: b"\x00" + items,
        4: at_zero + expressions,
        5: b"\x70" + expressions,
        6: b"\x80\x00" + at_zero + b"\x63\x70" + expressions,
        7: b"\x70" + expressions,
    }.items():
        code = {1: initialised, 5: initialised, 3: ref_func(2) + b"\xd1", 7: ref_func(2) + b"\xd1"}.get(form, called)
        for padded in (1, 5):
            modules[f"elements of the form {form} in {padded}"] = _module(
                code, functions=seven, tables=table, elements=[leb(form, padded) + segment]
            )
    modules["elements of a typed reference"] = _module(
        i32(0) * 2 + i32(1) + b"\xfc\x0c\x00\x00" + i32(0) + b"\x25\x00\x14\x00",
        functions=seven,
        tables=[b"\x63\x00\x00\x02"],
        elements=[b"\x05\x64\x00" + expressions],
    )
    modules["elements of i31"] = _module(
        i32(1) + b"\x25\x00\xfb\x17\x6c\xfb\x1d",
        tables=[b"\x6e\x00\x04"],
        elements=[b"\x06\x00" + at_zero + b"\x6c" + vec([i32(8) + b"\xfb\x1c" + END, i32(9) + b"\xfb\x1c" + END])],
    )
    modules["elements that are WASI's"] = _module(called, tables=table, elements=[b"\x00" + at_zero + vec([b"\x00"])])
    modules["elements at 64 bits"] = _module(
        b"\x42\x01\x11\x00\x00", functions=seven, tables=[b"\x70\x04\x04"], elements=[b"\x00\x42\x01" + END + items]
    )
    # A table that says what its elements begin with.
    for what, value in (("a function", ref_func(2)), ("WASI's", ref_func(0)), ("a padded one", ref_func(2, 5))):
        modules[f"table of {what}"] = _module(called, functions=seven, tables=[b"\x40\x00\x70\x00\x04" + value + END])
    modules["table of references that are not null"] = _module(
        i32(1) + b"\x25\x00\x14\x00", functions=seven, tables=[b"\x40\x00\x64\x00\x01\x02\x05" + ref_func(2) + END]
    )
    load = i32(3) + b"\x28\x02\x01"
    text = name("a text")
    for padded in (1, 5):
        modules[f"data of the form 0 in {padded}"] = _module(load, data=[leb(0, padded) + i32(4) + END + text])
        modules[f"data of the form 2 in {padded}"] = _module(
            i32(3) + b"\x28\x42\x01\x01",
            memories=[_MEMORY] * 2,
            data=[leb(2, padded) + leb(1, padded) + i32(4) + END + text],
        )
        modules[f"data of the form 1 in {padded}"] = _module(
            i32(4) + i32(1) + i32(4) + b"\xfc\x08" + leb(0, padded) + leb(0, padded) + load,
            data=[leb(1, padded) + text],
            data_count=leb(1, padded),
        )
    modules["data at 64 bits"] = _module(
        b"\x42\x04\x28\x42\x01\x00", memories=[_MEMORY, b"\x04\x01"], data=[b"\x02\x01\x42\x04" + END + text]
    )
    modules["data count without data"] = _module(data_count=b"\x00")
    modules["global of every kind"] = _module(
        b"\x23\x00",
        globals_=[
            b"\x7f\x00" + i32(3) + END,
            b"\x7e\x01\x42\x05" + END,
            b"\x7d\x01\x43" + bytes(4) + END,
            b"\x7c\x00\x44" + bytes(8) + END,
            b"\x7b\x01\xfd\x0c" + bytes(16) + END,
            b"\x70\x01" + ref_func(0) + END,
            b"\x63\x6f\x00\xd0\x6f" + END,
            b"\x64\x00\x00" + ref_func(1) + END,
            b"\x69\x01\xd0\x69" + END,
            b"\x7f\x00\x23\x00\x41\x02\x6c\x41\x81\x00\x6a" + END,
            b"\x6e\x00\x41\x03\xfb\x9c\x80\x00" + END,
        ],
    )
    modules["tags"] = _module(types=[b"\x60\x01\x7f\x00"], tags=[b"\x00\x01", b"\x00\x82\x80\x00"])
    modules["exports of every kind"] = _module(
        tables=table,
        globals_=[b"\x7f\x00" + _SEVEN],
        tags=[b"\x00\x01"],
        exports=[
            name("f") + b"\x00\x01",
            name("wasi") + b"\x00\x00",
            name("table") + b"\x01\x00",
            name("memory") + b"\x02\x80\x00",
            name("global") + b"\x03\x00",
            name("tag") + b"\x04\x00",
            name("") + b"\x02\x00",
        ],
    )
    modules["a start function"] = _module(
        b"\x23\x00",
        functions=[(1, _NO_LOCALS + _SEVEN[:-1] + b"\x24\x00" + END)],
        globals_=[b"\x7f\x01" + i32(1) + END],
        start=b"\x02",
    )
    modules["custom sections anywhere"] = _module(between=custom("other", b"\x00\x01\x02") + custom(""))
    names = custom(
        "name", b"\x00" + leb(2) + name("m") + b"\x01" + leb(8) + vec([b"\x00" + name("one"), b"\x01" + name("")])
    )
    modules["names"] = _module() + names
    for size in range(1, 6):
        modules[f"lengths and counts in {size}"] = _module(
            size=size, tables=table, tags=[b"\x00\x01"], types=[b"\x5f\x00"]
        )
    return modules


_MODULES = _types() | _blocks() | _immediates() | _limits() | _sections()


@pytest.mark.parametrize("what", part(tuple(_MODULES)))
def test_every_encoding_does_under_the_guard_what_it_does_without(what: str) -> None:
    """Each calls WASI twice, and gives what it gives on the bare engine, or traps as there."""
    data = _MODULES[what]

    with Sandbox(everything()) as sandbox:
        report = sandbox.call(data, "f")

    expected = _bare(data)
    if expected is None:
        assert report.outcome is Outcome.TRAP
    else:
        assert (report.outcome, report.value) == (Outcome.OK, expected), report
        assert report.usage.calls["sched_yield"] >= 2


def test_every_encoding_is_woven_and_proven() -> None:
    """A second decoder finds everything of the guest where it was, and `inspect` reads all of it."""
    for data in part(tuple(_MODULES.values())):
        woven = weave(data, guard())
        check_woven(data, woven)
        prove(parse(data), woven)
        assert outline(data).unread == ()


_KINDS = {
    "table": b"\x01\x70\x00\x01",
    "typed table": b"\x01\x63\x00\x01\x01\x02",
    "memory": b"\x02\x00\x01",
    "memory of 64 bits": b"\x02\x04\x01",
    "shared memory": b"\x02\x03\x01\x02",
    "global": b"\x03\x7f\x00",
    "typed global": b"\x03\x64\x00\x01",
    "tag": b"\x04\x00\x01",
}


@pytest.mark.parametrize("what", _KINDS)
def test_imports_of_every_kind_are_read_and_refused_for_what_they_are(what: str) -> None:
    """The attack: something of the host's that is no function. It is told what it is, and nothing runs."""
    imported = (
        name("wasi_snapshot_preview1") + name("sched_yield") + b"\x00\x00",
        name("host") + name("it") + _KINDS[what],
    )
    data = _module(imports=imported)
    kind = what.split()[-1] if not what.startswith("memory") else "memory"

    with Sandbox(everything()) as sandbox, pytest.raises(stockade.LinkError, match=rf"host\.it \({kind}\)"):
        sandbox.call(data, "f")

    assert outline(data).unread == ()
