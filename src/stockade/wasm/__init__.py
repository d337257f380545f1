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
from stockade.wasm._scan import Scan, code_figures, outline_figures, scan
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
    "Scan",
    "Section",
    "SectionId",
    "Site",
    "TableType",
    "all_sites",
    "code_figures",
    "outline_figures",
    "parse",
    "read_const_expression",
    "read_module_file",
    "scan",
    "sites",
    "type_name",
    "uleb",
    "vector",
]
