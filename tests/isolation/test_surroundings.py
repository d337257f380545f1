"""Workers of a user without privileges, in a container that lacks walls.

Holds P-JAIL-7 and P-JAIL-8.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from stockade.jail import NAMESPACES
from tests.jail._jailed import needs_linux

pytestmark = [needs_linux, pytest.mark.slow]

NOBODY = 65534
_PROGRAM = Path(__file__).with_name("_surroundings.py")
LANDLOCK = ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self")
SPACES = 0x7E02_0000
"""CLONE_NEW and all that there are."""


def told(**spec: object) -> dict[str, Any]:
    """What a process in some surroundings says."""
    done = subprocess.run(
        [sys.executable, str(_PROGRAM), json.dumps(spec)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module")
def here() -> dict[str, Any]:
    """What there is without anything in the way."""
    return told()


def test_a_user_without_privileges_has_the_same_walls(here: dict[str, Any]) -> None:
    """None of them takes root: where this user's namespaces stand, another user's do."""
    if os.geteuid() != 0:
        pytest.skip("it is one without privileges already")
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, NOBODY, NOBODY)

        other = told(user=NOBODY, home=home)

    assert (other["outcome"], other["stdout"]) == ("ok", "hello world\n")
    assert (other["walls"], other["strength"]) == (here["walls"], here["strength"])
    assert other["best"] == "process"


@pytest.mark.parametrize("how", ["EPERM", "ENOSYS"])
def test_a_container_without_namespaces_and_landlock_has_fewer_walls(here: dict[str, Any], how: str) -> None:
    """It runs, says which walls do not stand and what to change, and is worth less; who demands more is refused."""
    refused = [*((name, SPACES, how) for name in ("unshare", "clone")), ("clone3", 0, "ENOSYS")]
    refused += [(name, 0, how) for name in LANDLOCK]

    there = told(refused=refused)

    assert (there["outcome"], there["stdout"]) == ("ok", "hello world\n")
    lacking = {*NAMESPACES, "landlock"}
    assert set(there["walls"]) == set(here["walls"]) - lacking
    assert lacking <= set(there["missing"])
    assert lacking - set(NAMESPACES) | {"user"} <= set(there["advice"])
    assert there["strength"] <= here["strength"]
    assert there["scores"]["process"] <= here["scores"]["process"]
    # To bubblewrap they are refused, too.
    assert there["bubblewrap"] is None
    assert there["best"] == ("process" if there["strength"] else "inprocess")
    assert there["demanded"].startswith(f"no isolation of strength {there['strength'] + 1} is available here (")
    assert f"process: gives {there['strength']}" in there["demanded"]
    if lacking & set(here["walls"]):
        assert there["strength"] < here["strength"]
        assert there["scores"]["process"] < here["scores"]["process"]


def test_bubblewrap_gives_what_this_process_may_not_enter(here: dict[str, Any]) -> None:
    """A system that lets its own command enter namespaces, and no other process: what is inside is found out there."""
    if here["bubblewrap"] is None:
        pytest.skip("there is no bubblewrap that works")

    there = told(refused=[("unshare", SPACES, "EPERM")])

    assert not set(there["walls"]) & set(NAMESPACES)
    gained = set(there["bubblewrap"]) - set(there["walls"])
    assert gained == set(NAMESPACES) - {"mount"}
    assert there["best"] == "bubblewrap"
    # The twin: where all may be entered, it gives nothing more, and the simpler one is the best.
    assert (here["bubblewrap"], here["best"]) == (here["walls"], "process")


@pytest.mark.parametrize("missing", ["landlock", "namespaces"])
def test_one_kind_of_wall_does_not_need_the_other(here: dict[str, Any], missing: str) -> None:
    """The twins of the above: each alone is missing, and the other one stands."""
    refused = [("unshare", SPACES, "EPERM")] if missing == "namespaces" else [(name, 0, "ENOSYS") for name in LANDLOCK]

    there = told(refused=refused)

    assert there["outcome"] == "ok"
    gone = set(NAMESPACES) if missing == "namespaces" else {"landlock"}
    assert set(there["walls"]) == set(here["walls"]) - gone
