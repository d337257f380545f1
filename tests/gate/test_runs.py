"""P-GATE-1, P-GATE-5, P-GATE-6: what leaves a run passes the gate, by every way, in both places where runs happen."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import Credential, Policy, Sandbox
from stockade.gate import GateRules, Verdict, quarantined, quarantined_as
from stockade.policy import Network
from stockade.report import Outcome
from tests._small_guests import ECHO
from tests.conftest import wat
from tests.gate._guests import printer, source

if TYPE_CHECKING:
    from pathlib import Path

    from stockade import Report
    from stockade.execution import Isolation

_SECRET = "sk-live-9fJ2kQ_x7Lm3PzT8"
_SECRETS = {"api": _SECRET}
_LEAK = f"it is {_SECRET}!".encode()

pytestmark = pytest.mark.usefixtures("state")


def _policy(**rules: str) -> Policy:
    return Policy(gate=GateRules(**rules))  # type: ignore[arg-type]


def _told(report: Report) -> list[tuple[str, str, str, int]]:
    return [(each.kind, each.subject, each.action, each.count) for each in report.violations]


def test_without_a_gate_everything_leaves_as_it_came(isolation: Isolation) -> None:
    with Sandbox(isolation=isolation) as box:
        report = box.run(printer({1: _LEAK}))

    assert report.stdout == _LEAK
    assert not report.findings


def test_a_registered_secret_is_redacted_unless_the_policy_says_otherwise(isolation: Isolation) -> None:
    """The attack: a guest prints a secret that it has come to know, to both streams."""
    with Sandbox(isolation=isolation, secrets=_SECRETS) as box:
        report = box.run(printer({1: _LEAK, 2: _SECRET.encode().hex().encode()}))

    assert (report.outcome, report.stdout, report.stderr) == (Outcome.OK, b"it is [redacted:api]!", b"[redacted:api]")
    assert _told(report) == [
        ("gate", "the secret api in stdout", "deny", 1),
        ("gate", "the secret api in stderr", "deny", 1),
    ]
    assert _SECRET not in report.to_json()
    assert "found the secret api in stdout, which gate.registered keeps" in report.render()


@pytest.mark.parametrize("verdict", ["warn", "quarantine", "block"])
def test_each_verdict_does_what_it_says(isolation: Isolation, verdict: str) -> None:
    with Sandbox(_policy(registered=verdict), isolation, secrets=_SECRETS) as box:
        report = box.run(printer({1: _LEAK, 2: b"and more"}))

    assert report.findings[0].verdict == verdict
    if verdict == "warn":
        assert (report.outcome, report.stdout) == (Outcome.OK, _LEAK)
        assert _told(report) == [("gate", "the secret api in stdout", "audit", 1)]
        return
    assert (report.outcome, report.stdout, report.stderr) == (Outcome.DENIED, b"", b"")
    assert _told(report) == [("gate", "the secret api in stdout", "stop", 1)]
    assert report.summary() == (
        "stopped: policy violation: found the secret api in stdout, which gate.registered keeps back"
    )
    with pytest.raises(stockade.Denied):
        report.check()
    assert bool(report.quarantine) == (verdict == "quarantine")
    assert len(quarantined()) == (verdict == "quarantine")


def test_what_is_kept_aside_is_its_owners_alone_and_is_released_by_its_name(
    isolation: Isolation, state: Path, tmp_path: Path
) -> None:
    with Sandbox(_policy(registered="quarantine"), isolation, secrets=_SECRETS) as box:
        report = box.run(printer({1: _LEAK, 2: b"and more"}))
    (kept,) = quarantined()

    assert kept.id == report.quarantine
    assert kept.parts == {"stdout": len(_LEAK), "stderr": 8}
    assert kept.read("stdout") == _LEAK
    for path in (state / "quarantine").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert _SECRET not in json.dumps([str(finding) for finding in kept.findings])

    written = kept.release(tmp_path / "released")

    assert {path.name: path.read_bytes() for path in written} == {"stdout": _LEAK, "stderr": b"and more"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in written)
    assert quarantined() == []
    with pytest.raises(stockade.UsageError, match="nothing is kept aside"):
        quarantined_as(kept.id)


def test_what_cannot_be_kept_aside_is_blocked(state: Path) -> None:
    """The attack: the folder is somebody else's to read, so that what is kept in it is no secret."""
    (state / "quarantine").mkdir(parents=True)
    (state / "quarantine").chmod(0o755)

    with Sandbox(_policy(registered="quarantine"), secrets=_SECRETS) as box:
        report = box.run(printer({1: _LEAK}))

    assert (report.outcome, report.stdout, report.quarantine) == (Outcome.DENIED, b"", "")
    assert not list((state / "quarantine").iterdir())


@pytest.mark.parametrize("name", ["../x", "20261130-0123456789ab", "x", "", ".."])
def test_only_what_was_kept_aside_is_found_by_a_name(name: str) -> None:
    """The attack: a name that leads out of the folder."""
    with pytest.raises(stockade.UsageError, match="nothing is kept aside as"):
        quarantined_as(name)


def test_a_secret_that_is_split_over_both_streams_is_found(isolation: Isolation) -> None:
    """The attack: half of a secret goes to stdout, and half to stderr."""
    first, second = _SECRET[:12].encode(), _SECRET[12:].encode()
    with Sandbox(isolation=isolation, secrets=_SECRETS) as box:
        report = box.run(printer([(1, b"so: " + first), (2, second + b" it is")]))
        other = box.run(printer([(2, b"so: " + first), (1, second + b" it is")]))

    assert first not in report.stdout
    assert second not in report.stderr
    assert first not in other.stderr
    assert second not in other.stdout
    assert _told(report) == [("gate", "the secret api in stdout and stderr", "deny", 1)]


@pytest.mark.parametrize("verdict", ["redact", "quarantine", "block"])
def test_what_is_passed_on_while_the_guest_runs_has_passed_the_gate(isolation: Isolation, verdict: str) -> None:
    """The attack: a secret in pieces, each written by itself, so that a terminal shows it before the report is made."""
    pieces = [(1, bytes((byte,))) for byte in b"> " + _SECRET.encode()]
    shown: list[bytes] = []
    with Sandbox(_policy(registered=verdict), isolation, secrets=_SECRETS) as box:
        report = box.run(
            printer([*pieces, (2, b"later"), (1, b" later")]), on_stdout=shown.append, on_stderr=shown.append
        )

    whole = b"".join(shown)
    assert _SECRET[5:].encode() not in whole
    if verdict == "redact":
        assert b"[redacted:api]" in whole
        assert b"later" in whole
        assert report.stdout == b"> [redacted:api] later"
    else:
        assert b"later" not in whole
        assert report.stdout == b""


_HOST = """
import sys
from stockade import Module, Sandbox

with Sandbox(isolation=sys.argv[1], secrets={"api": sys.argv[2]}) as box:
    printed = box.run(Module.load(sys.argv[3].encode(), text=True))
    echoed = box.run(Module.load(sys.argv[4].encode(), text=True))
print(printed.stdout, printed.stderr, echoed.stdout)
"""


def test_nothing_of_a_guest_reaches_the_streams_of_the_host_past_the_gate(isolation: Isolation, state: Path) -> None:
    """The attack: output that steers the host's terminal, and reads what is typed there."""
    leaking = source({1: b"\x1b[2J" + _LEAK, 2: _LEAK})
    done = subprocess.run(
        [sys.executable, "-c", _HOST, isolation, _SECRET, leaking, ECHO],
        input=b"typed by the user",
        capture_output=True,
        check=False,
        env={**os.environ, "STOCKADE_STATE": str(state)},
    )

    assert done.stderr == b""
    assert done.stdout.decode().strip() == repr(b"\x1b[2Jit is [redacted:api]!") + " b'it is [redacted:api]!' b''"


_THIRDS = [_SECRET[at : at + 3].encode() for at in range(0, len(_SECRET), 3)]

_SPLIT = {
    "halves": [(1, _SECRET[:12].encode()), (2, _SECRET[12:].encode())],
    "halves, the second one first to be read": [(2, _SECRET[:12].encode()), (1, _SECRET[12:].encode())],
    "halves, and more behind": [(1, b"a" + _SECRET[:12].encode()), (2, _SECRET[12:].encode()), (1, b"\nbye\n" * 9)],
    "in turns": [(1 + place % 2, piece) for place, piece in enumerate(_THIRDS)],
    "letter by letter": [(1 + place % 2, bytes((byte,))) for place, byte in enumerate(_SECRET.encode())],
    "in hex": [(1, _SECRET.encode().hex()[:20].encode()), (2, _SECRET.encode().hex()[20:].encode())],
}


@pytest.mark.parametrize("verdict", ["redact", "quarantine", "block"])
@pytest.mark.parametrize("writes", _SPLIT.values(), ids=_SPLIT)
def test_a_secret_that_is_split_over_both_live_streams_is_passed_on_by_none(
    isolation: Isolation, verdict: str, writes: list[tuple[int, bytes]]
) -> None:
    """The attack: each stream is passed on by itself, to the same terminal, which shows the secret as one."""
    shown: list[bytes] = []
    with Sandbox(_policy(registered=verdict), isolation, secrets=_SECRETS) as box:
        report = box.run(
            printer([(1, b"> "), *writes, (1, b" and"), (2, b" more")]), on_stdout=shown.append, on_stderr=shown.append
        )

    whole = b"".join(shown)
    told = [finding for finding in report.findings if " and " in finding.channel]
    assert [(finding.detector, str(finding.verdict), finding.count) for finding in told] == [("api", verdict, 1)]
    # At most four characters have left before it is known that a secret has begun.
    left = (
        whole.replace(b"[redacted:api]", b"").replace(b"> a", b"> ").replace(b"> sk-l", b"> ").replace(b"> sk-", b"> ")
    )
    if verdict == "redact":
        assert left.replace(b"\nbye\n", b"") == b">  and more"
        # Nor has the report what both streams have of it.
        assert _SECRET[:12].encode() not in report.stdout + report.stderr
        assert _SECRET[12:].encode() not in report.stdout + report.stderr
    else:
        assert left == b"> "
        assert (report.outcome, report.stdout, report.stderr) == (Outcome.DENIED, b"", b"")


def test_what_both_live_streams_have_without_a_secret_is_passed_on_as_it_was_written(isolation: Isolation) -> None:
    """And at once, but for what may be the beginning of one: nothing else waits."""
    writes = [
        (1, b"sk-live-"),
        (2, b"warning\n"),
        (1, b"9fJ2kQ"),
        (2, _SECRET[:-1].encode()),
        (1, b"\xff\x00"),
        (2, b"!"),
    ]
    shown: list[tuple[int, bytes]] = []
    with Sandbox(_policy(registered="block"), isolation, secrets=_SECRETS) as box:
        report = box.run(
            printer(writes),
            on_stdout=lambda piece: shown.append((1, piece)),
            on_stderr=lambda piece: shown.append((2, piece)),
        )

    assert (report.outcome, report.findings) == (Outcome.OK, ())
    for stream, kept in ((1, report.stdout), (2, report.stderr)):
        assert b"".join(piece for of, piece in shown if of == stream) == kept
        assert kept == b"".join(piece for of, piece in writes if of == stream)


def test_who_is_passed_one_stream_alone_does_not_see_what_is_in_both(isolation: Isolation) -> None:
    shown: list[bytes] = []
    with Sandbox(_policy(registered="block"), isolation, secrets=_SECRETS) as box:
        box.run(printer([*_SPLIT["in turns"], (1, b" more")]), on_stdout=shown.append)

    assert b"".join(shown) == b"".join(_THIRDS[::2]) + b" more"


@pytest.mark.parametrize("kept", [200, 1000])
def test_what_is_left_of_a_secret_in_both_live_streams_out_of_which_the_middle_was_cut(kept: int) -> None:
    """The attack: where its parts lie is known of all output, of which the report has the beginning and the end."""
    noise = b"." * 700
    writes = [*_SPLIT["halves"], (1, noise), (2, noise), *_SPLIT["halves"], (1, noise), (2, noise), *_SPLIT["halves"]]
    shown: list[bytes] = []
    with Sandbox(Policy().replace(stdout=kept, stderr=kept), secrets=_SECRETS) as box:
        report = box.run(printer(writes), on_stdout=shown.append, on_stderr=shown.append)

    assert b"".join(shown).count(b"[redacted:api]") == 6
    assert report.truncated.stdout > 0
    for half in (_SECRET[:12].encode(), _SECRET[12:].encode()):
        assert half not in b"".join(shown)
        assert half not in report.stdout + report.stderr


def test_the_strongest_verdict_on_a_run_wins() -> None:
    """The attack: a key that is only kept aside stands before the secret, so that this is kept, and can be released."""
    key, rules = b"password=hunt3r2 ", GateRules(registered="block", keys="quarantine")
    leaks = {
        "in one stream": [(1, key + _SECRET.encode())],
        "in the other stream": [(1, key), (2, _SECRET.encode())],
        "over both streams": [(1, key + _SECRET[:12].encode()), (2, _SECRET[12:].encode())],
        "far behind": [(1, key + b"." * 200_000 + _SECRET.encode())],
        "before it": [(1, _SECRET.encode() + b" " + key)],
    }
    shown: list[bytes] = []
    with Sandbox(Policy(gate=rules), secrets=_SECRETS) as box:
        for where, writes in leaks.items():
            report = box.run(printer(writes))
            live = box.run(printer(writes), on_stdout=shown.append, on_stderr=shown.append)
            for each in (report, live):
                assert each.findings[0].verdict is Verdict.BLOCK, where
                assert (each.outcome, each.quarantine, each.stdout) == (Outcome.DENIED, "", b""), where
        assert quarantined() == []
        assert b"hunt3r2" not in b"".join(shown)
        assert _SECRET[5:12].encode() not in b"".join(shown)

        # The twin: what nothing worse is behind is kept.
        report = box.run(printer([(1, key)]))
        assert quarantined_as(report.quarantine).read("stdout") == key


def test_awaited_runs_pass_the_gate_with_their_output(isolation: Isolation) -> None:
    async def run() -> tuple[Report, Report, bytes]:
        shown: list[bytes] = []

        async def show(piece: bytes) -> None:
            await asyncio.sleep(0)
            shown.append(piece)

        async with Sandbox(isolation=isolation, secrets=_SECRETS) as box:
            module = printer({1: _LEAK[:-1]})
            plain = await box.run_async(module)
            again = await box.run_async(module)
            assert again.stdout == plain.stdout
            return plain, await box.run_async(module, on_stdout=show), b"".join(shown)

    plain, streamed, shown = asyncio.run(run())

    assert plain.stdout == streamed.stdout == shown == b"it is [redacted:api]"


_RETURNS = wat(
    f"""
    (module
      (memory (export "memory") 1)
      (data (i32.const 64) "{_SECRET}")
      (data (i32.const 128) "{_SECRET}\\00")
      (func (export "alloc") (param i32) (result i32) i32.const 1024)
      (func (export "leak") (result i32 i32) i32.const 64 i32.const {len(_SECRET)})
      (func (export "number") (result i64) i64.const 4539148803436467)
      (func (export "boom") unreachable))
    """
)


def test_values_pass_the_gate(isolation: Isolation) -> None:
    """The attack: a function returns the secret, as text or as bytes; and a number that is one of a card."""
    with Sandbox(_policy(personal="redact"), isolation, secrets=_SECRETS) as box:
        text = box.call(_RETURNS, "leak", returns="text")
        data = box.call(_RETURNS, "leak", returns="bytes")
        number = box.call(_RETURNS, "number")

    assert text.value == "[redacted:api]"
    assert data.value == b"[redacted:api]"
    assert str(number.value) == "[redacted:card-number]"
    assert _told(text) == [("gate", "the secret api in value", "deny", 1)]


def test_sessions_pass_the_gate_call_by_call(isolation: Isolation) -> None:
    with Sandbox(isolation=isolation, secrets=_SECRETS) as box, box.open(_RETURNS) as session:
        assert session.call("leak", returns="text").value == "[redacted:api]"
        clean = session.call("number")
        again = session.call("leak", returns="text")

    assert (clean.value, clean.findings) == (4539148803436467, ())
    assert [finding.count for finding in again.findings] == [1]


def _opening(path: str) -> stockade.Module:
    """Returns a command that opens a file."""
    return wat(
        f"""
        (module
          (import "wasi_snapshot_preview1" "path_open"
            (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (data (i32.const 64) "{path}")
          (func (export "_start")
            (drop (call $open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const {len(path)}) (i32.const 1)
              (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 8)))))
        """
    )


def test_names_that_a_guest_chooses_pass_the_gate(tmp_path: Path, isolation: Isolation) -> None:
    """The attack: a guest opens a file that is called like the secret, for the report to tell of it."""
    module = _opening(f"/{_SECRET}")
    (tmp_path / "data").mkdir()
    mounts = [stockade.Mount(str(tmp_path / "data"), "/data", "ro")]
    with Sandbox(Policy().replace(mounts=mounts), isolation, secrets=_SECRETS, trace=True) as box:
        report = box.run(module)

    assert report.violations
    assert _SECRET not in report.to_json()
    assert _SECRET not in report.render()


def test_calls_that_are_told_as_they_are_made_pass_the_gate(isolation: Isolation) -> None:
    """The attack: a guest writes the secret, and a trace that somebody follows shows what is written."""
    told: list[stockade.report.TracedCall] = []
    with Sandbox(isolation=isolation, secrets=_SECRETS, trace=stockade.Trace(sink=told.append)) as box:
        box.run(printer({1: _LEAK}))

    assert _SECRET not in str(told)
    assert "[redacted:api]" in str(told)


@pytest.mark.parametrize("size", [1, 5, 12])
def test_calls_that_are_told_as_they_are_made_are_looked_at_together(isolation: Isolation, size: int) -> None:
    """The attack: a guest writes the secret in several writes, each of which is told by itself."""
    pieces = [_SECRET[at : at + size] for at in range(0, len(_SECRET), size)]
    told: list[stockade.report.TracedCall] = []
    with Sandbox(isolation=isolation, secrets=_SECRETS, trace=stockade.Trace(sink=told.append)) as box:
        box.run(printer([(1, b"so: "), *((1, piece.encode()) for piece in pieces), (1, b"it is")]))

    texts = [str(call.arguments["iovs"]) for call in told]
    assert "".join(texts).replace("[...]", "").replace("[redacted:api]", "") in ("so: it is", "so: sk-lit is")
    assert any("[redacted:api]" in text for text in texts)


@pytest.mark.parametrize("left", [9, 12, 20, 23])
def test_what_is_left_of_a_secret_in_calls_whose_texts_were_cut_is_not_told(isolation: Isolation, left: int) -> None:
    """The attack: so much is written that a trace cuts the text within the secret, of which all but the end is kept."""
    text = ("." * (256 - left)).encode() + _SECRET.encode()
    with Sandbox(isolation=isolation, secrets=_SECRETS, trace=True) as box:
        kept = box.run(printer([(1, text)])).trace_calls[0]
        clean = box.run(printer([(1, b"." * 300)])).trace_calls[0]
    told: list[stockade.report.TracedCall] = []
    with Sandbox(isolation=isolation, secrets=_SECRETS, trace=stockade.Trace(sink=told.append)) as box:
        box.run(printer([(1, text)]))

    assert kept.cut == ("iovs",)
    assert kept.arguments["iovs"] == "." * (256 - left) + "[redacted:api]"
    assert told[0].arguments["iovs"] == "." * (256 - left) + "[...]"
    assert clean.arguments["iovs"] == "." * 256


def test_calls_without_a_secret_are_told_as_they_are(isolation: Isolation) -> None:
    told: list[stockade.report.TracedCall] = []
    with Sandbox(isolation=isolation, secrets=_SECRETS, trace=stockade.Trace(sink=told.append)) as box:
        box.run(printer([(1, b"one"), (2, b"password=hunt3r2"), (1, b"sk-")]))

    assert [call.arguments["iovs"] for call in told] == ["one", "password=hunt3r2", "sk-"]


_ECHOES = wat(
    """
    (module
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 0) "\\40\\00\\00\\00\\40\\00\\00\\00")
      (func (export "_start")
        (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
        (i32.store (i32.const 4) (i32.load (i32.const 8)))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)))))
    """
)


def test_guests_that_were_made_ahead_pass_the_gate() -> None:
    """The attack: a guest that has begun before its run, under another control, echoes the secret."""
    with Sandbox(secrets=_SECRETS) as box:
        with box.open(_ECHOES) as session:
            snapshot = session.snapshot()
        box.warm(_ECHOES, pool_size=2)
        box.warm(snapshot, pool_size=2)
        reports = [box.run(what, stdin=_SECRET) for what in (_ECHOES, _ECHOES, _ECHOES, snapshot, snapshot, snapshot)]

    assert {report.stdout for report in reports} == {b"[redacted:api]"}


def test_values_of_credentials_are_registered(isolation: Isolation) -> None:
    credential = Credential(_SECRET, hosts=["api.example.com"])
    policy = Policy(network=Network(mode="loopback"))
    with Sandbox(policy, isolation, credentials={"api": credential}) as box:
        report = box.run(printer({1: _LEAK}))

    assert report.stdout == b"it is [redacted:api]!"


def test_a_policy_of_a_run_narrows_the_gate_and_never_widens_it() -> None:
    """The attack: a run brings a policy that would let everything leave."""
    lax, strict = _policy(registered="allow"), _policy(registered="block", keys="block")
    with Sandbox(secrets=_SECRETS) as box:
        assert box.run(printer({1: _LEAK}), policy=lax).stdout == b"it is [redacted:api]!"
        assert box.run(printer({1: _LEAK}), policy=strict).outcome is Outcome.DENIED
        assert box.run(printer({1: b"password=hunt3r2 "}), policy=strict).outcome is Outcome.DENIED
        assert box.run(printer({1: b"password=hunt3r2 "})).stdout == b"password=hunt3r2 "


def test_an_audit_log_is_told_what_was_found(tmp_path: Path, isolation: Isolation) -> None:
    path = tmp_path / "audit.log"
    with stockade.AuditLog(path) as log, Sandbox(isolation=isolation, secrets=_SECRETS, audit=log) as box:
        box.run(printer({1: _LEAK}))

    text = path.read_text()
    assert "the secret api in stdout" in text
    assert "gate.registered" in text
    assert _SECRET not in text


@pytest.mark.parametrize("verdict", ["warn", "redact", "block"])
def test_an_audit_log_has_no_secret_that_a_guest_names(verdict: str, tmp_path: Path) -> None:
    """The attack: a path that is called like the secret, and is refused, in a log of what leaves and is reported."""
    module = _opening(f"../{_SECRET}")
    (tmp_path / "data").mkdir()
    policy = _policy(registered=verdict).replace(mounts=[stockade.Mount(str(tmp_path / "data"), "/data", "ro")])
    path = tmp_path / "audit.log"
    with stockade.AuditLog(path) as log, Sandbox(policy, secrets=_SECRETS, audit=log) as box:
        report = box.run(module)

    assert (_SECRET in report.to_json()) == (verdict == "warn")
    assert _SECRET not in path.read_text()
    assert '"name":"path"' in path.read_text()


def test_a_thousand_findings_hide_no_severe_one() -> None:
    """The attack: much that is harmless is printed, so that there is no room for what is not."""
    many = b"".join(b"password=pass%dword\n" % number for number in range(2_000))
    rules = GateRules(keys="warn", personal="block")
    with Sandbox(Policy(gate=rules)) as box:
        report = box.run(printer({1: many + b"ssn 536-90-4399\n"}))

    assert (report.outcome, report.stdout) == (Outcome.DENIED, b"")
    assert report.findings[0].verdict is Verdict.BLOCK


@pytest.mark.parametrize(
    ("secrets", "message"),
    [
        ({"pin": "1234"}, "the secret pin has 4 bytes"),
        ({"pin": None}, "the secret pin is NoneType: give text or bytes"),
    ],
)
def test_what_is_no_secret_is_refused(secrets: dict[str, str], message: str) -> None:
    with pytest.raises(stockade.UsageError, match=message):
        Sandbox(secrets=secrets)


@pytest.mark.parametrize("kept", [1000, 128 << 10, pytest.param(200_001, marks=pytest.mark.slow)])
def test_a_secret_out_of_which_the_middle_was_cut_is_found(isolation: Isolation, kept: int) -> None:
    """The attack: output is made so long that it is cut within a secret, of which all but a character is kept."""
    with Sandbox(Policy().replace(stdout=kept), isolation, secrets=_SECRETS) as box:
        cut = kept - kept // 2
        for before in (cut - len(_SECRET) + 1, cut - 10, cut):
            text = "." * before + _SECRET + "." * (kept + 1 - before - len(_SECRET))
            report = box.run(printer({1: text.encode()}))

            assert report.truncated.stdout == 1
            left = report.stdout.replace(b"[redacted:api]", b"")
            assert len(left.strip(b".")) < 9, (before, left.strip(b"."))
            assert b"[redacted:api]" in report.stdout
            assert report.findings[0].detector == "api"

        report = box.run(printer({1: b"." * (cut - 7) + b"sk-live" + b"." * kept}))
        assert not report.findings
