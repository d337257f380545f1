"""WebAssembly modules as bytes: read, searched and written. No engine."""

from stockade.wasm._binary import Reader, uleb, vector
from stockade.wasm._instructions import Kind, Site, all_sites, sites
from stockade.wasm._reader import (
    SECTION_ORDER,
    Export,
    ExternKind,
    FuncType,
    Import,
    ParsedModule,
    Section,
    SectionId,
    TableType,
    parse,
    read_const_expression,
    type_name,
)
from stockade.wasm._source import read_module_file

__all__ = [
    "SECTION_ORDER",
    "Export",
    "ExternKind",
    "FuncType",
    "Import",
    "Kind",
    "ParsedModule",
    "Reader",
    "Section",
    "SectionId",
    "Site",
    "TableType",
    "all_sites",
    "parse",
    "read_const_expression",
    "read_module_file",
    "sites",
    "type_name",
    "uleb",
    "vector",
]
