"""WebAssembly modules as bytes: read, searched and written. No engine."""

from stockade.wasm._binary import Reader, Unsupported, uleb, vector
from stockade.wasm._cost import compile_cost
from stockade.wasm._customs import Producer
from stockade.wasm._inspect import ExportInfo, ImportInfo, Outline, SectionInfo, outline
from stockade.wasm._instructions import Kind, Site, all_sites, walk
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
from stockade.wasm._types import GlobalInfo, MemoryInfo, TableInfo

__all__ = [
    "SECTION_ORDER",
    "Export",
    "ExportInfo",
    "ExternKind",
    "FuncType",
    "GlobalInfo",
    "Import",
    "ImportInfo",
    "Kind",
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
    "Unsupported",
    "all_sites",
    "code_figures",
    "compile_cost",
    "outline",
    "outline_figures",
    "parse",
    "read_const_expression",
    "read_module_file",
    "scan",
    "type_name",
    "uleb",
    "vector",
    "walk",
]
