"""A file that is no module is called what it is."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib

import pytest

from stockade import InvalidModule
from stockade.wasm import is_text_format, refuse_other_format

CORE = b"\0asm\1\0\0\0"
COMPILE = "compile the program for the target wasm32-wasip1"


def a_zip() -> bytes:
    """A ZIP archive, as wheels are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.wasm"), CORE)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "empty"),
        (
            b"\n<!DOCTYPE html><html></html>",
            "not WebAssembly but an HTML page: check the address it was downloaded from",
        ),
        (b"<html lang=en>", "not WebAssembly but an HTML page: check the address it was downloaded from"),
        (
            b'<?xml version="1.0"?><Error/>',
            "not WebAssembly but an XML document: check the address it was downloaded from",
        ),
        (a_zip(), "not WebAssembly but a ZIP archive, such as a wheel: unpack it and take the .wasm file"),
        (gzip.compress(CORE, mtime=0), "not WebAssembly but compressed with gzip: unpack it first"),
        (b"\x28\xb5\x2f\xfd\x20\x08A", "not WebAssembly but compressed with zstd: unpack it first"),
        (b"\xfd7zXZ\0\0\4", "not WebAssembly but compressed with xz: unpack it first"),
        (b"BZh91AY&SY", "not WebAssembly but compressed with bzip2: unpack it first"),
        (b"\x7fELF\2\1\1\0", f"not WebAssembly but an ELF file, a program for Linux: {COMPILE}"),
        (struct.pack("<I", 0xFEEDFACF), f"not WebAssembly but a Mach-O file, a program for macOS: {COMPILE}"),
        (struct.pack(">I", 0xFEEDFACE), f"not WebAssembly but a Mach-O file, a program for macOS: {COMPILE}"),
        (
            struct.pack(">I", 0xCAFEBABE),
            f"not WebAssembly but a Mach-O file for several processors, or a Java class: {COMPILE}",
        ),
        (b"MZ\x90\0", f"not WebAssembly but a program for Windows: {COMPILE}"),
        (b"!<arch>\n//", "not WebAssembly but a static library: link it to a module"),
        (b"BC\xc0\xde5\x14", "not WebAssembly but LLVM bitcode: link it to a module"),
        (
            b"#!/usr/bin/env python3\n",
            "not WebAssembly but a script: run its interpreter, built for WebAssembly, with the script as an argument",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            "not WebAssembly but a Git LFS pointer: run git lfs pull to get the file itself",
        ),
        (
            b" \n(module)",
            "WebAssembly text, not a binary module: name the file .wat, or load it with text=True",
        ),
        (b"fn main() {}\n", "not WebAssembly but text: compile source code to WebAssembly first"),
        ("é".encode() * 400, "not WebAssembly but text: compile source code to WebAssembly first"),
        (b"x" + "é".encode() * 400, "not WebAssembly but text: compile source code to WebAssembly first"),
        (zlib.compress(CORE), "not WebAssembly: it does not begin with \\0asm"),
        (b"msa\0\1\0\0\0", "not WebAssembly: it does not begin with \\0asm"),
        (b"\0asm\1\0\0", "not a WebAssembly module: it has only 7 bytes"),
        (
            b"\0asm\x0d\0\1\0",
            (
                "a WebAssembly component, and Stockade runs core modules: build it for the target wasm32-wasip1 "
                "instead of wasm32-wasip2"
            ),
        ),
    ],
)
def test_a_file_is_called_what_it_is(data: bytes, what: str) -> None:
    """By its name, with what to do about it; a core module passes, whatever comes after its header."""
    with pytest.raises(InvalidModule) as caught:
        refuse_other_format(data, "a.wasm")

    assert str(caught.value) == f"a.wasm is {what}"
    refuse_other_format(CORE + data, "a.wasm")


def test_the_version_of_a_core_module_is_one() -> None:
    """Another one is told as it stands in the file."""
    with pytest.raises(InvalidModule) as caught:
        refuse_other_format(b"\0asm\2\0\0\0")

    assert str(caught.value) == "the module has WebAssembly version 02000000, which is not known; core modules have 1"


def test_looking_at_a_large_file_takes_its_beginning_only() -> None:
    """The attack: megabytes of white space, or of text, that are read again and again to find out what they are."""
    assert not is_text_format(b" " * (8 << 20))
    assert is_text_format(b" " * (8 << 20) + b"(module)")
    with pytest.raises(InvalidModule, match=r"is not WebAssembly but text"):
        refuse_other_format(b" " * (8 << 20), "a.wasm")


def test_a_tar_archive_is_no_text() -> None:
    """Its zeros are no text, though its names are."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.wasm"))

    with pytest.raises(InvalidModule, match=r"does not begin with"):
        refuse_other_format(file.getvalue())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.py", "a.py is not WebAssembly but Python code: run it by stockade.Python, or `stockade python`"),
        ("a.mjs", "a.mjs is not WebAssembly but JavaScript code: run it by stockade.JavaScript, or `stockade js`"),
        ("a.rs", "a.rs is not WebAssembly but text: compile source code to WebAssembly first"),
    ],
)
def test_code_of_an_interpreter_is_told_where_it_runs(name: str, message: str) -> None:
    """A script that is given in the place of a module."""
    with pytest.raises(InvalidModule) as caught:
        refuse_other_format(b"print(1)\n", name)
    assert str(caught.value) == message


def test_a_script_with_its_interpreter_in_the_first_line_is_told_where_it_runs() -> None:
    """The name says more than the first line."""
    with pytest.raises(InvalidModule, match=r"^a\.py is not WebAssembly but Python code: "):
        refuse_other_format(b"#!/usr/bin/env python3\n", "a.py")
