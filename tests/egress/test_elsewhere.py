"""The decision table, against real servers at every address of the world and a real name server.

That is so in a network namespace, in which all addresses are local. The kernel counts who begins a connection, and the
servers who arrives. Holds P-NET-1 and P-NET-2.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stockade.egress import BadUrl, FailureCode, parse_url
from tests._examples import part
from tests.egress._table import ROWS

_TREE = Path(__file__).parents[2]
_UNSHARED = ["unshare", "--map-root-user", "--net", "--mount", "--"]


def _is_possible() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run([*_UNSHARED, "ip", "link", "set", "lo", "up"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not _is_possible(), reason="this machine lets nobody make a network namespace")

Row = tuple[str, str, str, str]


def _name(url: str) -> str:
    try:
        host = parse_url(url).host
    except BadUrl:
        return ""
    return host if isinstance(host, str) else ""


Told = dict[tuple[Row, bool], dict[str, Any]]

TABLE: list[Row] = [(mode, url, answers, host) for mode, url, answers, host in part(ROWS)]
REFUSED = [row for row in TABLE if row[3] == "-"]
GRANTED = [row for row in TABLE if row[3] != "-"]


def _ways(row: Row) -> tuple[bool, ...]:
    """Whether its name is looked up by the system, at a name server, or both: where one is looked up at all."""
    name = _name(row[1])
    # No name server is asked for this machine, for it could lead elsewhere.
    is_asked_for = name and row[2] != "-" and name != "localhost" and not name.endswith(".localhost")
    return (False, True) if is_asked_for else (False,)


@pytest.fixture(scope="module")
def told() -> Told:
    """What became of all of them."""
    cases = [(row, by_servers) for row in TABLE for by_servers in _ways(row)]
    asked = [
        (mode, url, _name(url), answers.replace(",", " ").removeprefix("-"), by_servers)
        for (mode, url, answers, _), by_servers in cases
    ]
    done = subprocess.run(
        [*_UNSHARED, sys.executable, "-m", "tests.egress._elsewhere"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=_TREE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, json.loads(done.stdout), strict=True))


def _id(row: Row) -> str:
    return " ".join(row[:3])


@pytest.mark.parametrize("row", REFUSED, ids=_id)
def test_what_is_refused_opens_no_socket(told: Told, row: Row) -> None:
    """The attack: any of the table. The name is looked up by the system, and at a name server that is named."""
    for by_servers in _ways(row):
        became = told[row, by_servers]
        assert (became["begun"], became["met"], became["reached"]) == (0, 0, []), became
        assert became["code"] in (FailureCode.DENIED, FailureCode.INVALID), became


@pytest.mark.parametrize("row", GRANTED, ids=_id)
def test_what_is_granted_is_connected_to_where_its_name_leads(told: Told, row: Row) -> None:
    """The positive twin: one connection, to an address that was checked, and one look at the name."""
    _, url, answers, host = row
    addresses = {host} if answers == "-" else {answer.removeprefix("::ffff:") for answer in answers.split(",")}
    for by_servers in _ways(row):
        became = told[row, by_servers]
        assert (became["begun"], became["met"]) == (1, 1), became
        (reached,) = became["reached"]
        assert reached in addresses
        assert became["asked"] == ([] if answers == "-" else [_name(url)])
        # Some of the servers prove who they are.
        assert became["code"] in (200, FailureCode.TLS), became


def test_some_of_what_is_granted_is_answered(told: Told) -> None:
    answered = [row for row in GRANTED if told[row, False]["code"] == 200]

    assert {row[0] for row in answered} >= {"loopback", "hosts"}
    assert any(row[1].startswith("https:") for row in answered)
