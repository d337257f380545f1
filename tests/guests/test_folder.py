"""P-LANG-3: a run finds nothing of another one in the folders that it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stockade import Python
from stockade._wasi import WASI
from stockade.guests._folder import is_untouched
from tests._examples import part
from tests.guests.conftest import PATIENT

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK = 1_234_567_890
"""Seconds since the epoch, in 2009."""

_LOOK = """
import os
tops = ("/workspace", "/tmp", "/run")
found = [f"{top} {sorted(folders + files)}" for one in tops for top, folders, files in os.walk(one)]
for one in (*tops, "/run/result"):
    stat = os.stat(one)
    found += [int(time) for time in (stat.st_mtime, stat.st_atime) if abs(time - MARK) < 10]
[found, len(open("/run/result").read())]
"""

_CLEAN = [["/workspace []", "/tmp []", "/run ['result']"], 0]


@pytest.fixture(params=[0, 1], ids=["fresh", "waiting"], scope="module")
def one(python: Python, request: pytest.FixtureRequest) -> Iterator[Python]:
    """A language whose runs all find the same folder, for there is one at a time."""
    with Python(PATIENT, runtime=python.runtime, pool_size=request.param) as language:
        language.prepare()
        yield language


@pytest.mark.parametrize(
    "code",
    part(
        [
            "[os.utime(one, (MARK, MARK)) for one in ('/workspace', '/tmp', '/run', '/run/result')]",
            "[os.utime(os.open(one, os.O_RDONLY), (MARK, MARK)) for one in ('/workspace', '/tmp', '/run')]",
            "for fd in range(3, 64):\n try: os.utime(fd, (MARK, MARK))\n except OSError: pass",
            "open('marker', 'w').write('x')\nos.utime('marker', (MARK, MARK))",
            "os.mkdir('/tmp/marker')",
            "os.mkdir('/workspace/m')\nopen('m/n', 'w').write('x')\nos.rename('m/n', '/run/marker')",
            "open('/run/request', 'w').write('marker')",
            "open('/run/result', 'w').write('marker')\nos._exit(0)",
            "fd = os.open('/run/result', os.O_WRONLY)\nos.write(fd, b'marker' * 1000)\nos._exit(0)",
            "os.unlink('/run/result')",
            "os.rename('/run/result', '/run/marker')",
        ]
    ),
)
def test_a_run_leaves_no_mark_for_the_next_one(one: Python, code: str) -> None:
    """A guest leaves a mark by each way that there is into its folders: files, names, and times of folders and files.

    Without opening anything, too: the granted folders are open from the beginning.
    """
    assert one.run(_LOOK, inputs={"MARK": MARK}).value == _CLEAN
    for _ in range(2):
        one.run(f"import os\n{code}", inputs={"MARK": MARK})
        assert one.run(_LOOK, inputs={"MARK": MARK}).value == _CLEAN


def test_a_folder_that_nobody_touched_is_used_again(python: Python) -> None:
    """It is cleared only where a guest, or whoever calls, may have left something."""
    with Python(PATIENT, runtime=python.runtime) as language:
        files = [language.run("open('given').read()", files={"given": "1"}).value]
        files += language.run("import os\nos.listdir()").value
        assert files == ["1"]


def test_what_touches_a_folder_is_known() -> None:
    """Every WASI call is looked at: a guest that has made these alone has changed nothing that others could see."""
    harmless = {call.name for call in WASI if is_untouched([call.name])}
    assert {name for name in harmless if name.startswith("path_")} == set()
    # Those by descriptor come to nothing where nothing was opened; those about a folder itself are not among them.
    assert {call.name for call in WASI} - harmless == {
        *(call.name for call in WASI if call.group == "path"),
        "fd_filestat_set_times",
        "fd_readdir",
    }
    assert is_untouched([])
    assert not is_untouched(["fd_write", "path_open"])
