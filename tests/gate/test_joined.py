"""P-GATE-1: both live streams are looked at as one, wherever they take turns, and wherever pieces begin and end."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.gate import Gate, GateRules, GateRun
from stockade.gate._secrets import SecretFinder
from stockade.report import ModuleInfo, Outcome, PolicyInfo, Report, Truncated
from tests._examples import examples

if TYPE_CHECKING:
    from collections.abc import Sequence


_SECRET = b"sk-live-9fJ2kQ_x7Lm3PzT8"
_LONG = bytes(range(33, 127)) * 3
_SECRETS = {"api": _SECRET, "long": _LONG}

_Writes = list[tuple[str, bytes]]

_STREAM = st.sampled_from(["stdout", "stderr"])
_NOISE = st.lists(
    st.tuples(_STREAM, st.sampled_from([b"", b"\n", b"noise ", b"sk-live", b"x" * 5000, b"%73k", b"\xff"]))
)


def _run(verdict: str) -> GateRun:
    run = GateRun(Gate(GateRules(registered=verdict), _SECRETS))  # type: ignore[arg-type]
    run.joins = True
    return run


def _passed(run: GateRun, writes: Sequence[tuple[str, bytes]]) -> _Writes:
    passed = [each for stream, piece in writes for each in run.pass_on(stream, piece)]
    return [*passed, *run.rest()]


def _of(stream: str, writes: Sequence[tuple[str, bytes]]) -> bytes:
    return b"".join(piece for each, piece in writes if each == stream)


@st.composite
def _split(draw: st.DrawFn, secret: bytes) -> _Writes:
    """A secret in pieces, each of which is written to one of both streams."""
    cuts = sorted(draw(st.sets(st.integers(1, len(secret) - 1), max_size=12)))
    edges = [0, *cuts, len(secret)]
    return [(draw(_STREAM), secret[start:end]) for start, end in pairwise(edges)]


@settings(max_examples=examples(200), deadline=None)
@given(_NOISE, _split(_SECRET), _NOISE)
def test_no_secret_is_passed_on_however_it_is_split(before: _Writes, split: _Writes, behind: _Writes) -> None:
    """The attack: a secret of which each piece goes to another stream, with all sorts of things around it."""
    writes = [*before, ("stdout", b" \n" * 40), *split, ("stderr", b" \n" * 40), *behind, ("stdout", b"END")]
    finder = SecretFinder({"api": _SECRET})
    run = _run("redact")

    passed = _passed(run, writes)

    whole = b"".join(piece for _, piece in passed)
    assert b"[redacted:api]" in whole
    assert not list(finder.find(whole.replace(b"[redacted:api]", b"?"), is_last=True))
    report = run.release(_report(_of("stdout", writes), _of("stderr", writes)))
    for kept in (report.stdout, report.stderr):
        assert not list(finder.find(kept, is_last=True))
    assert _of("stdout", passed).count(b"[redacted:api]") == report.stdout.count(b"[redacted:api]")

    blocked = b"".join(piece for _, piece in _passed(_run("block"), writes))
    assert not list(finder.find(blocked, is_last=True))
    assert b"END" not in blocked


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(st.tuples(_STREAM, st.binary(max_size=40) | st.sampled_from([b"sk-live-9fJ2", b"kQ_x7Lm3", b"%6c"]))))
def test_what_holds_no_secret_is_passed_on_as_it_was_written(writes: _Writes) -> None:
    """Each stream has what was written to it, whatever the other one has."""
    whole = b"".join(piece for _, piece in writes)
    finder = SecretFinder(_SECRETS)
    texts = [whole, _of("stdout", writes), _of("stderr", writes)]
    if any(list(finder.find(text, is_last=True)) for text in texts):
        return

    passed = _passed(_run("redact"), writes)

    for stream in ("stdout", "stderr"):
        assert _of(stream, passed) == _of(stream, writes)


@pytest.mark.parametrize("verdict", ["warn", "redact", "quarantine", "block"])
def test_a_secret_that_both_have_is_told_once(verdict: str) -> None:
    run = _run(verdict)
    half = len(_SECRET) // 2
    writes = [("stderr", b"so: " + _SECRET[:half]), ("stdout", _SECRET[half:]), ("stdout", b" it is")]

    passed = _passed(run, writes)

    report = run.release(_report(_of("stdout", writes), _of("stderr", writes)))
    assert [(each.detector, each.channel, each.count) for each in report.findings] == [("api", "stderr and stdout", 1)]
    if verdict == "warn":
        assert (_of("stderr", passed), _of("stdout", passed)) == (_of("stderr", writes), _of("stdout", writes))
    elif verdict == "redact":
        assert (_of("stderr", passed), _of("stdout", passed)) == (b"so: [redacted:api]", b"[redacted:api] it is")
        assert (report.stderr, report.stdout) == (b"so: [redacted:api]", b"[redacted:api] it is")
    else:
        assert b"".join(piece for _, piece in passed) == b"so: "
        assert (report.stdout, report.outcome) == (b"", Outcome.DENIED)


_TOKEN = b"ghp_" + b"aB3dE6gH9j" * 3 + b"kL2mN5"
_CARD = b"4539 5787 6362 1486"


def _looking(**rules: str) -> GateRun:
    run = GateRun(Gate(GateRules(**rules)))  # type: ignore[arg-type] # as they come
    run.joins = True
    return run


@pytest.mark.parametrize(
    ("rules", "leak", "detector"),
    [({"keys": "redact"}, _TOKEN, "github-token"), ({"personal": "redact"}, _CARD, "card-number")],
)
@pytest.mark.parametrize("at", [2, 9, 16])
@pytest.mark.parametrize("is_live", [True, False], ids=["live", "report"])
def test_keys_and_personal_data_are_found_in_both_streams(
    rules: dict[str, str], leak: bytes, detector: str, at: int, is_live: bool
) -> None:
    """P-GATE-2. The attack: a part stands in one stream, and the rest in the other, which one terminal shows."""
    run = _looking(**rules)
    writes = [("stderr", b"so: " + leak[:at]), ("stdout", leak[at:] + b" it is\n")]

    passed = _passed(run, writes) if is_live else []
    report = run.release(_report(_of("stdout", writes), _of("stderr", writes)))

    for kept in [report.stderr + report.stdout, *([b"".join(piece for _, piece in passed)] if is_live else [])]:
        before, _, behind = kept.partition(b"[redacted:" + detector.encode() + b"]")
        # Three letters may have left before it was known what they begin.
        assert before in (b"so: ", b"so: " + leak[: min(at, 3)] if is_live else b"")
        assert behind.endswith(b" it is\n")
        assert leak[at:] not in behind
    assert [(each.detector, each.channel, each.count) for each in report.findings] == [
        (detector, "stderr and stdout", 1)
    ]


@pytest.mark.parametrize(
    "writes",
    [
        [("stdout", b"Enter password: "), ("stderr", b"abc123 is no command\n")],
        [("stderr", b"https://me:"), ("stdout", b"some12word@x is none\n")],
        [("stdout", b"aB3dE6gH9jkL2"), ("stderr", b"mN5pQ8rS1tU4vW7x\n")],
        [("stdout", b"done: 4539"), ("stderr", b" warnings\n")],
    ],
)
def test_what_only_stands_side_by_side_in_both_streams_leaves(writes: _Writes) -> None:
    """The twin: nothing says that these belong together."""
    run = _looking(keys="block", personal="block", entropy="block")

    passed = _passed(run, writes)
    report = run.release(_report(_of("stdout", writes), _of("stderr", writes)))

    for stream in ("stdout", "stderr"):
        assert _of(stream, passed) == _of(stream, writes)
    assert (report.findings, report.outcome) == ((), Outcome.OK)


def test_no_more_is_held_than_a_window() -> None:
    """The attack: output that always looks like the beginning of a secret, in turns, so that all of it is kept."""
    run = _run("redact")
    written = passed = 0
    for number in range(4000):
        piece = b"sk-live-9fJ2kQ_x7Lm3PzT" if number % 2 else b" " * 30
        written += len(piece)
        passed += sum(len(each) for _, each in run.pass_on("stdout" if number % 3 else "stderr", piece))
        assert written - passed < 16 << 10


@pytest.mark.parametrize("dropped", [1, 10, 1000])
def test_what_is_left_of_both_is_known_where_the_middle_was_cut(dropped: int) -> None:
    """The attack: parts of the secret stand before, in and behind what was cut out of a stream."""
    run = _run("redact")
    half = len(_SECRET) // 2
    leak = [("stdout", _SECRET[:half]), ("stderr", _SECRET[half:])]
    writes = [*leak, ("stdout", b"." * (dropped + 100)), *leak, ("stdout", b"." * 100), *leak]
    _passed(run, writes)
    stdout, stderr = _of("stdout", writes), _of("stderr", writes)
    left = len(stdout) - dropped
    at = left - left // 2
    cut = stdout[:at] + stdout[at + dropped :]

    report = run.release(_report(cut, stderr, dropped))

    assert _SECRET[:half] not in report.stdout
    assert report.stderr == b"[redacted:api]" * 3


def _report(stdout: bytes, stderr: bytes, dropped: int = 0) -> Report:
    return Report(
        outcome=Outcome.OK,
        module=ModuleInfo("", "m"),
        policy=PolicyInfo("", "p"),
        stdout=stdout,
        stderr=stderr,
        truncated=Truncated(dropped, 0),
    )
