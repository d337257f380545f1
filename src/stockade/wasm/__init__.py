"""WebAssembly modules as bytes: read, searched and written. No engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade._later import called_later, found_later
from stockade.wasm._binary import Excess, Reader, TooManyTypes, Unsupported, sleb, uleb, vector
from stockade.wasm._figures import outline_figures
from stockade.wasm._formats import is_component, is_text_format, refuse_other_format
from stockade.wasm._reader import (
    MOST_ITEMS,
    SECTION_ORDER,
    Export,
    ExternKind,
    Import,
    ParsedModule,
    Section,
    SectionId,
    has_initial_value,
    parse,
)
from stockade.wasm._source import read_module_file
from stockade.wasm._types import (
    DataType,
    FuncType,
    GlobalInfo,
    Limits,
    MemoryInfo,
    TableInfo,
    TableType,
    encode_func_type,
    encode_limits,
    encode_type_group,
    encode_value_type,
    guest_table_type,
    guest_type_group,
    guest_value_type,
)

if TYPE_CHECKING:
    from stockade.wasm._constants import rewrite_const_expression, skip_const_expression
    from stockade.wasm._cost import compile_cost
    from stockade.wasm._customs import Producer
    from stockade.wasm._extended_const import uses_extended_const
    from stockade.wasm._inspect import ExportInfo, ImportInfo, Outline, SectionInfo, outline
    from stockade.wasm._instructions import Site, all_sites, wait_offset, walk
    from stockade.wasm._opcodes import Kind
    from stockade.wasm._scan import Scan, code_figures, scan, skip_locals
else:
    outline = called_later("stockade.wasm._inspect", "outline")
    __getattr__ = found_later(
        __name__,
        {
            "_constants": ("rewrite_const_expression", "skip_const_expression"),
            "_customs": ("Producer",),
            "_inspect": ("ExportInfo", "ImportInfo", "Outline", "SectionInfo"),
            "_instructions": ("Site", "all_sites", "wait_offset", "walk"),
            "_opcodes": ("Kind",),
            "_scan": ("Scan", "code_figures", "scan", "skip_locals"),
            "_cost": ("compile_cost",),
            "_extended_const": ("uses_extended_const",),
        },
    )

__all__ = [
    "MOST_ITEMS",
    "SECTION_ORDER",
    "DataType",
    "Excess",
    "Export",
    "ExportInfo",
    "ExternKind",
    "FuncType",
    "GlobalInfo",
    "Import",
    "ImportInfo",
    "Kind",
    "Limits",
    "MemoryInfo",
    "Outline",
    "ParsedModule",
    "Producer",
    "Reader",
    "Scan",
    "Section",
    "SectionId",
    "SectionInfo",
    "Site",
    "TableInfo",
    "TableType",
    "TooManyTypes",
    "Unsupported",
    "all_sites",
    "code_figures",
    "compile_cost",
    "encode_func_type",
    "encode_limits",
    "encode_type_group",
    "encode_value_type",
    "guest_table_type",
    "guest_type_group",
    "guest_value_type",
    "has_initial_value",
    "is_component",
    "is_text_format",
    "outline",
    "outline_figures",
    "parse",
    "read_module_file",
    "refuse_other_format",
    "rewrite_const_expression",
    "scan",
    "skip_const_expression",
    "skip_locals",
    "sleb",
    "uleb",
    "uses_extended_const",
    "vector",
    "wait_offset",
    "walk",
]
