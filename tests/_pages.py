"""Pages of documentation, run as a reader would: their blocks are pasted one after another in an empty folder.

- A block of `python` is pasted into one interpreter for the whole page, line by line. An expression with a comment
  behind it has the value that the comment shows. What else the block prints, or the exception that ends it, is compared
  with a block of `text` that follows directly.
- A block of `sh` is run by bash, and must succeed. One of `console` has a command behind each `$ `; what follows is
  what it prints. Where nothing follows, it must succeed.
- `<!-- file: NAME -->` before a block: the reader saves it under this name.
- `<!-- not run: WHY -->` before a block: it is not run.
- `<!-- numbers differ: WHY -->` before what a block prints: one number is as good as another there.

In what is expected, `...` stands for anything.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import stockade

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```[ ]*$", re.MULTILINE | re.DOTALL
)
_MARK = re.compile(r"<!-- (?P<name>file|not run|numbers differ): (?P<text>[^>]+?) -->\s*\Z")
_COMMENT = re.compile("<!--.*?-->", re.DOTALL)
_NUMBER = re.compile(r"\d[\d.,]*( [µm]?s\b)?")
_COMMAND_END = "\x1e"


@dataclass
class Block:
    """A fenced block of a page.

    Attributes:
        line: Where it begins.
        language: What it is written in.
        text: What is in it.
        file: Under which name the reader saves it; or "".
        not_run: Why it is not run; or "".
        expected: What it prints, where a block that follows tells so.
        numbers_differ: Whether what it prints is compared without its numbers.
    """

    line: int
    language: str
    text: str
    file: str = ""
    not_run: str = ""
    expected: str | None = None
    numbers_differ: bool = False


def blocks_of(page: Path) -> list[Block]:
    """Finds the blocks of a page; those that show what another prints are part of that one."""
    source = page.read_text()
    blocks: list[Block] = []
    end = 0
    for match in _FENCE.finditer(source):
        indent = match["indent"]
        text = re.sub(f"^{indent}", "", match["text"], flags=re.MULTILINE)
        before, between = source[: match.start()], source[end : match.start()]
        end = match.end()
        block = Block(before.count("\n") + 1, match["language"].strip(), text)
        while (mark := _MARK.search(before)) is not None:
            why = " ".join(mark["text"].split())
            match mark["name"]:
                case "file":
                    block.file = why
                case "not run":
                    block.not_run = why
                case _:
                    block.numbers_differ = True
            before = before[: mark.start()]
        follows = not _COMMENT.sub("", between).strip() and not block.file and not block.not_run
        if block.language == "text" and follows and blocks and blocks[-1].language in ("python", "sh"):
            blocks[-1].expected = text
            blocks[-1].numbers_differ = block.numbers_differ
        else:
            blocks.append(block)
    return blocks


def matches(expected: str, actual: str, *, numbers_differ: bool = False) -> bool:
    """Whether a text is as expected, where `...` stands for anything; trailing blanks do not count."""
    if numbers_differ:
        expected, actual = _NUMBER.sub("0", expected), _NUMBER.sub("0", actual)
    pattern = ".*?".join(re.escape(part) for part in _stripped(expected).split("..."))
    return re.fullmatch(pattern, _stripped(actual), re.DOTALL) is not None


def _stripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


class Reader:
    """Somebody who pastes the blocks of one page.

    Args:
        folder: Where; it is empty.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "COLUMNS": "100",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONWARNINGS": "error::ResourceWarning,error::RuntimeWarning",
        }
        self._python: subprocess.Popen[str] | None = None

    def close(self) -> None:
        """Leaves the interpreter."""
        if self._python is not None:
            self._python.communicate()

    def read(self, block: Block) -> str:
        """Does with a block what the page says.

        Returns:
            What is not as the page says; or "".
        """
        if block.file:
            (self._folder / block.file).write_text(block.text)
            return ""
        if block.not_run:
            return ""
        if block.language == "python":
            return self._paste(block)
        if block.language == "sh":
            return self._script(block)
        if block.language == "console":
            return self._commands(block)
        if block.language == "toml":
            stockade.Policy.loads(block.text)
            return ""
        if block.language == "text":  # a picture, or the form of a message
            return ""
        language = block.language or "no language"
        return f"a block in {language} says neither under which name it is saved, nor why it is not run"

    def _paste(self, block: Block) -> str:
        if self._python is None:
            self._python = subprocess.Popen(
                [sys.executable, "-P", Path(__file__).with_name("_console.py")],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        print(json.dumps(block.text), file=self._python.stdin, flush=True)
        answer = self._python.stdout.readline()
        if not answer:
            return f"the interpreter has ended: {self._python.wait()}"
        printed, problem, shown = json.loads(answer)
        wrong = [f"a comment says {told}, but it is {value}" for told, value in shown if not matches(told, value)]
        if block.expected is not None:
            if not matches(block.expected, printed + problem, numbers_differ=block.numbers_differ):
                wrong.append(f"the page says\n{block.expected}\nbut it is\n{printed}{problem}")
        elif problem or printed:
            wrong.append(f"it prints, and the page does not say so:\n{printed}{problem}")
        return "\n".join(wrong)

    def _bash(self, script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-c", script],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def _script(self, block: Block) -> str:
        done = self._bash(f"set -e\n{block.text}")
        if done.returncode:
            return f"it ends with {done.returncode}:\n{done.stdout}"
        if block.expected is not None and not matches(block.expected, done.stdout, numbers_differ=block.numbers_differ):
            return f"the page says\n{block.expected}\nbut it is\n{done.stdout}"
        return ""

    def _commands(self, block: Block) -> str:
        first, *parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
        if first or not parts:
            return "a console block begins with `$ ` and a command"
        commands, expected = [], []
        for part in parts:
            lines = part.splitlines()
            count = 1
            while count < len(lines) and (lines[count - 1].endswith("\\") or lines[count].startswith("> ")):
                lines[count] = lines[count].removeprefix("> ")
                count += 1
            commands.append("\n".join(lines[:count]))
            expected.append("\n".join(lines[count:]))
        done = self._bash("".join(f"{command}\nprintf '{_COMMAND_END}%d\\n' $?\n" for command in commands))
        rest = done.stdout
        for command, wanted in zip(commands, expected, strict=True):
            printed, _, rest = rest.partition(_COMMAND_END)
            status, _, rest = rest.partition("\n")
            if wanted.strip():
                if not matches(wanted, printed, numbers_differ=block.numbers_differ):
                    return f"$ {command}\nthe page says\n{wanted}\nbut it is\n{printed}"
            elif status != "0":
                return f"$ {command}\nends with {status}:\n{printed}"
        return ""
