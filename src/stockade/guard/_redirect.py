"""The guest's code, written anew where it calls what the guard stands in for; all else is copied as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from stockade.guard._appended import AtomicWait
from stockade.wasm import Kind, sleb, uleb, wait_offset

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stockade.wasm import ParsedModule, Scan, Site

__all__ = ["WAITS", "Targets", "redirected"]

WAITS: Final = (Kind.WAIT_32, Kind.WAIT_64)
"""Instructions that wait for another thread."""

_CALL: Final = b"\x10"
_OPCODES: Final = {Kind.CALL: _CALL, Kind.RETURN_CALL: b"\x12", Kind.REF_FUNC: b"\xd2"}


class Targets(NamedTuple):
    """The functions that stand in for what the guest names.

    Attributes:
        functions: Those for imports, by the index of the import.
        memories: Those that grow a memory, by its index.
        tables: Those that grow a table, by its index.
        waits: Those that wait.
    """

    functions: Mapping[int, int]
    memories: Mapping[int, int]
    tables: Mapping[int, int]
    waits: Mapping[AtomicWait, int]


def redirected(module: ParsedModule, scan: Scan, targets: Targets) -> list[bytes | memoryview]:
    """Returns the bodies of the guest's functions, each with its size before it.

    Args:
        module: The guest.
        scan: Where its code names what is stood in for.
        targets: What stands in.
    """
    data = memoryview(module.data)
    parts: list[bytes | memoryview] = []
    for number, (start, end) in enumerate(module.bodies):
        sites = scan.sites.get(number)
        if sites is None:
            parts += [uleb(end - start), data[start:end]]
            continue
        code = bytearray()
        done = start
        for site in sites:
            code += data[done : site.start]
            code += _in_place_of(site, module, targets)
            done = site.end
        code += data[done:end]
        parts += [uleb(len(code)), bytes(code)]
    return parts


def _in_place_of(site: Site, module: ParsedModule, targets: Targets) -> bytes:
    if site.kind is Kind.MEMORY_GROW:
        return _CALL + uleb(targets.memories[site.target])
    if site.kind is Kind.TABLE_GROW:
        return _CALL + uleb(targets.tables[site.target])
    if site.kind in WAITS:
        return _wait(site, module, targets)
    return _OPCODES[site.kind] + uleb(targets.functions[site.target])


def _wait(site: Site, module: ParsedModule, targets: Targets) -> bytes:
    wide = module.memory_limits[site.target].wide
    offset = wait_offset(module.data, site)
    # The offset is passed as a constant of so many bits: as a signed number.
    bits = 64 if wide else 32
    signed = offset - (1 << bits) if offset >> (bits - 1) else offset
    wait = AtomicWait(site.target, wide, site.kind is Kind.WAIT_64)
    return (b"\x42" if wide else b"\x41") + sleb(signed) + _CALL + uleb(targets.waits[wait])
