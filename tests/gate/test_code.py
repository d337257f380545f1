"""P-GATE-1, P-GATE-5, P-GATE-6: what code gives passes the gate: output, value, error, files; and its requests."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

from stockade import AuditLog, JavaScript, Policy, Sandbox
from stockade.egress import GuestNetwork, Request, RequestFailed
from stockade.gate import Gate, GateRules, GateRun, Given, _run, quarantined, quarantined_as
from stockade.gate._stream import PIECE_BYTES
from stockade.guests._leaving import gated
from stockade.guests._result import Frame
from stockade.policy import HostRule, Network
from stockade.report import ModuleInfo, Outcome, PolicyInfo, Report
from tests._folders import use_state
from tests.guests._forging import ASK

if TYPE_CHECKING:
    from pathlib import Path

    from stockade.audit import AuditEvent

_SECRET = "sk-live-9fJ2kQ_x7Lm3PzT8"
_SECRETS = {"api": _SECRET}


def _report(**fields: Any) -> Report:
    return Report(outcome=Outcome.OK, module=ModuleInfo("", "m"), policy=PolicyInfo("", "p"), **fields)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own for what is kept aside."""
    use_state(tmp_path / "state", monkeypatch)


def test_code_of_a_language_passes_the_gate() -> None:
    """The attack: code gives the secret as its value, prints it, and raises it."""
    with JavaScript(secrets=_SECRETS) as javascript:
        value = javascript.run(f"console.log('{_SECRET}'); ({{a: ['{_SECRET}', 1], b: {{'{_SECRET}': 2}}}})")
        raised = javascript.run(f"throw new Error('it is {_SECRET}')")
        clean = javascript.run("({a: ['x', 1]})")
        listed = javascript.run(f"[...'{_SECRET}'].map(c => c.charCodeAt(0))")

    assert value.value == {"a": ["[redacted:api]", 1], "b": {"[redacted:api]": 2}}
    assert value.stdout == "[redacted:api]\n"
    assert raised.error is not None
    assert _SECRET not in raised.to_json()
    assert "it is [redacted:api]" in raised.error.message
    assert (clean.value, clean.report.findings) == ({"a": ["x", 1]}, ())
    assert listed.value == "[redacted:api]"
    assert [(each.channel, each.detector) for each in value.report.findings] == [("stdout", "api"), ("value", "api")]


@pytest.mark.parametrize("session", [False, True], ids=["run", "session"])
def test_both_live_streams_of_code_are_looked_at_together(*, session: bool) -> None:
    """The attack: code writes parts of the secret to stdout and stderr in turns, which one terminal shows."""
    code = f"""
        let to = std.out, other = std.err;
        for (const c of '{_SECRET}') {{ to.puts(c); to.flush(); [to, other] = [other, to] }}
        1"""
    shown: list[bytes] = []
    with JavaScript(secrets=_SECRETS) as javascript:
        if session:
            with javascript.session(on_stdout=shown.append, on_stderr=shown.append) as opened:
                result = opened.run(code)
        else:
            result = javascript.run(code, on_stdout=shown.append, on_stderr=shown.append)

    whole = b"".join(shown)
    assert whole == b"sk-l[redacted:api][redacted:api]"
    assert [(each.channel, each.detector) for each in result.report.findings] == [("stdout and stderr", "api")]
    assert (result.value, result.stdout, result.stderr) == (1, "[redacted:api]", "[redacted:api]")


def test_sessions_of_a_language_pass_the_gate() -> None:
    with JavaScript(secrets=_SECRETS) as javascript, javascript.session() as session:
        assert session.run(f"var it = '{_SECRET}'; 1").value == 1
        assert session.run("it").value == "[redacted:api]"
        assert session.run("it.length").value == len(_SECRET)


def test_a_value_that_is_withheld_is_kept_aside_with_all_else() -> None:
    with JavaScript(Policy(gate=GateRules(registered="quarantine")), secrets=_SECRETS) as javascript:
        result = javascript.run(f"console.log('before'); '{_SECRET}'")

    assert (result.value, result.stdout, result.report.outcome) == (None, "", Outcome.DENIED)
    assert result.error is not None
    assert _SECRET not in result.to_json()
    kept = quarantined_as(result.report.quarantine)
    assert kept.read("value") == f'"{_SECRET}"'.encode()
    assert kept.read("stdout") == b"before\n"


def test_the_strongest_verdict_on_code_wins() -> None:
    """The attack: a key in the output is kept aside, and with it a value that has a secret, which is blocked."""
    rules = GateRules(registered="block", keys="quarantine")
    with JavaScript(Policy(gate=rules), secrets=_SECRETS) as javascript:
        result = javascript.run(f"console.log('password=hunt3r2 '); '{_SECRET}'")
        kept = javascript.run("console.log('password=hunt3r2 '); 'fine'")

    assert (result.report.outcome, result.report.quarantine) == (Outcome.DENIED, "")
    assert [str(finding.verdict) for finding in result.report.findings] == ["quarantine", "block"]
    (only,) = quarantined()
    assert only.id == kept.report.quarantine
    assert only.read("value") == b'"fine"'


def test_files_pass_the_gate_and_are_kept_aside_under_their_names(tmp_path: Path) -> None:
    files = {"a.txt": b"nothing", f"{_SECRET}/b.bin": _SECRET.encode().hex().encode()}
    run = GateRun(Gate(secrets=_SECRETS))
    given = Given(None, (), files)

    report = run.release_given(_report(), given)

    assert given.files == {"a.txt": b"nothing", "[redacted:api]/b.bin": b"[redacted:api]"}
    assert {each.channel for each in report.findings} == {"file", "file [redacted:api]/b.bin"}

    strict = GateRun(Gate(GateRules(registered="quarantine"), _SECRETS))
    given = Given(3, (), {"a.txt": _SECRET.encode(), "deep/b.txt": b"x"})
    report = strict.release_given(_report(stdout=b"out"), given)
    assert (given.value, given.files, report.stdout, report.outcome) == (None, {}, b"", Outcome.DENIED)
    written = quarantined_as(report.quarantine).release(tmp_path / "out")
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in written) == [
        *("files/a.txt", "files/deep/b.txt", "stderr", "stdout", "value")
    ]


def test_files_whose_names_are_replaced_alike_are_all_there() -> None:
    """The attack: names in two writings of the secret, of which the second file takes the place of the first."""
    files = {f"{_SECRET}.txt": b"1", f"{_SECRET.upper()}.txt": b"2", "[redacted:api].txt": b"3"}
    given = Given(None, (), files)

    GateRun(Gate(secrets=_SECRETS)).release_given(_report(), given)

    names = ["[redacted:api].txt", "[redacted:api].txt (2)", "[redacted:api].txt (3)"]
    assert given.files == dict(zip(names, (b"1", b"2", b"3"), strict=True))


_PNG = b"\x89PNG\r\n\x1a\n"


def _figures(verdict: str) -> tuple[Given, Report]:
    given = Given(1, (), {}, (_PNG + b"fine", _PNG + _SECRET.encode()))
    return given, _gate_run(verdict).release_given(_report(), given)


@pytest.mark.parametrize(("verdict", "left"), [("warn", 2), ("redact", 1), ("block", 0), ("quarantine", 0)])
def test_figures_pass_the_gate(verdict: str, left: int) -> None:
    """The attack: code gives the secret as a picture that it says it drew."""
    given, report = _figures(verdict)

    assert len(given.figures) == left
    assert [(each.channel, each.detector) for each in report.findings] == [("figure", "api")]
    assert (report.outcome is Outcome.OK) == (left > 0)
    if verdict == "quarantine":
        kept = quarantined_as(report.quarantine)
        assert kept.read("figures/2.png") == _PNG + _SECRET.encode()


def test_frames_with_figures_pass_the_gate() -> None:
    texts = [base64.b64encode(_PNG + data).decode() for data in (b"fine", _SECRET.encode())]
    frame = Frame(1, shown=False, error=None, exit=0, figures=texts)

    _, passed, _, _ = gated(_gate_run("redact"), _report(), frame, {})

    assert isinstance(passed, Frame)
    assert passed.figures == texts[:1]


def test_names_of_tools_that_are_not_there_are_not_told() -> None:
    """The attack: code calls a tool that it names like the secret."""
    with JavaScript(secrets=_SECRETS) as javascript:
        javascript.tool(_mended, name="mend")
        result = javascript.run(
            ASK
            + f"""ask('{{"name": "mend", "args": [], "named": {{}}}}');
            ask('{{"name": "{_SECRET}", "args": [], "named": {{}}}}'); 1"""
        )

    assert [(call.name, call.ok) for call in result.tool_calls] == [("mend", True), ("unknown tool", False)]
    assert _SECRET not in result.to_json()


def _mended() -> int:
    return 1


def test_what_is_blocked_takes_with_it_what_was_kept_aside() -> None:
    """The attack: a key in the output is kept aside, and the value has the secret, or the other way round."""
    key, rules = b"password=hunt3r2 ", GateRules(registered="block", keys="quarantine")
    for stdout, value in ((key, _SECRET), (_SECRET.encode(), key.decode())):
        run = GateRun(Gate(rules, _SECRETS))
        report = run.release(_report(stdout=stdout))
        given = Given(value, (), {"a": b"b"})

        report = run.release_given(report, given)

        assert (given.value, given.files, report.outcome) == (None, {}, Outcome.DENIED)
        assert report.quarantine == ""
        assert quarantined() == []


def test_a_file_with_a_name_that_is_no_text_is_kept_aside(tmp_path: Path) -> None:
    """The attack: names that cannot be written down, so that nothing is kept, and the run ends in an error."""
    given = Given(None, (), {"a\udcff": _SECRET.encode(), "a\\xff": b"2"})

    report = GateRun(Gate(GateRules(registered="quarantine"), _SECRETS)).release_given(_report(), given)

    kept = quarantined_as(report.quarantine)
    assert kept.read("files/a\\xff") == _SECRET.encode()
    assert kept.read("files/a\\xff (2)") == b"2"
    assert len(kept.release(tmp_path / "out")) == 4


def test_what_was_withheld_already_takes_the_rest_with_it() -> None:
    """The attack: the secret is in stdout alone, and the value tells the rest."""
    run = GateRun(Gate(GateRules(registered="quarantine"), _SECRETS))
    report = run.release(_report(stdout=_SECRET.encode()))
    given = Given("the rest", (), {"a": b"b"})

    again = run.release_given(report, given)

    assert (given.value, given.files) == (None, {})
    assert again.quarantine == report.quarantine
    assert set(quarantined_as(report.quarantine).parts) == {"stdout", "stderr", "value", "files/a"}


@pytest.mark.parametrize("verdict", ["warn", "redact", "block", "quarantine"])
@pytest.mark.parametrize("session", [False, True], ids=["run", "session"])
def test_an_audit_log_is_told_what_code_gives(verdict: str, *, session: bool) -> None:
    """The attack: what is found when the run is over and told already; and a file that is named like the secret."""
    events: list[AuditEvent] = []
    code = f"std.writeFile('/workspace/{_SECRET}.txt', '{_SECRET}'); console.log('{_SECRET}'); ['{_SECRET}']"
    policy = Policy(gate=GateRules(registered=verdict))  # type: ignore[arg-type]
    with AuditLog(sinks=[events.append]) as log, JavaScript(policy, secrets=_SECRETS, audit=log) as javascript:
        if session:
            with javascript.session() as opened:
                opened.run(code, collect=["*"])
                opened.run(f"throw new Error('{_SECRET}')")
        else:
            javascript.run(code, collect=["*"])
            javascript.run(f"throw new Error('{_SECRET}')")
        javascript.run("1")
        log.flush()

    told = [event for event in events if event.name == "gate"]
    # What is blocked has no value any more that could be looked at.
    channels = ["stdout", "file", "error", *(["value"] if verdict != "block" else [])]
    assert {event.subject for event in told} == {f"the secret api in {channel}" for channel in channels}
    assert {(str(event.event), event.reason) for event in told} == {("limit_reached", "gate.registered")}
    assert [event.count for event in told if event.subject.endswith("file")] == [2]
    runs = [event.run for event in events if str(event.event) == "run_ended"]
    assert len(runs) == 3
    assert {event.run for event in told} == set(runs[:2])
    assert _SECRET not in str(events)


# -- requests ----------------------------------------------------------------------------------------------------------


def _gate_run(verdict: str) -> GateRun:
    return GateRun(Gate(GateRules(registered=verdict), _SECRETS))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "headers", "body"),
    [
        (f"https://a.example/?q={_SECRET}", [], b""),
        ("https://a.example/", [("X-Key", _SECRET)], b""),
        ("https://a.example/", [], b"key=" + _SECRET.encode()),
        ("https://a.example/", [], _SECRET.encode().hex().encode()),
        ("https://a.example/", [(f"X-{_SECRET}", "1")], b""),
    ],
)
def test_requests_pass_the_gate(url: str, headers: list[tuple[str, str]], body: bytes) -> None:
    """The attack: a guest sends the secret to a host that its policy permits."""
    sent = _gate_run("redact").request(url, headers, body)
    refused = _gate_run("block").request(url, headers, body)

    assert isinstance(sent, tuple)
    assert _SECRET not in str(sent)
    assert "[redacted:api]" in str(sent)
    assert not isinstance(refused, tuple)
    assert refused.detector == "api"


def test_a_secret_that_is_split_among_headers_is_refused() -> None:
    """The attack: each header has a part of the secret, so that none of them has it."""
    headers = [("X-A", _SECRET[:9]), ("", _SECRET[9:17]), ("", _SECRET[17:])]

    assert not isinstance(_gate_run("redact").request("https://a.example/", headers, b""), tuple)


_HALVES = _SECRET[:12], _SECRET[12:]


@pytest.mark.parametrize("verdict", ["redact", "block"])
@pytest.mark.parametrize(
    ("url", "headers", "body"),
    [
        (f"https://a.example/?q={_HALVES[0]}", [], _HALVES[1].encode()),
        (f"https://a.example/?q={_HALVES[0]}", [("X-A", "b")], _HALVES[1].encode() + b"." * 100_000),
        (f"https://a.example/?q={_HALVES[0]}", [("X-A", "b"), ("X-B", _HALVES[1])], b"c"),
        ("https://a.example/", [("X-A", _HALVES[0]), ("X-B", "c")], _HALVES[1].encode()),
        ("https://a.example/", [("X-A", _HALVES[1]), ("X-B", "c")], b"." * 100_000 + _HALVES[0].encode()),
        ("https://a.example/", [("X-A", _HALVES[0]), ("X-B", _HALVES[1])], b""),
        ("https://a.example/", [(f"X-{_HALVES[0]}", "b"), (_HALVES[1], "c")], b""),
    ],
)
def test_a_request_is_looked_at_as_one(verdict: str, url: str, headers: list[tuple[str, str]], body: bytes) -> None:
    """The attack: a part of the secret is in the URL, and the rest in the body or a header of the same request."""
    run = _gate_run(verdict)
    refused = run.request(url, headers, body)

    assert not isinstance(refused, tuple)
    assert (refused.detector, refused.channel) == ("api", "request")
    assert [finding.count for finding in run.release(_report()).findings] == [1]


@pytest.mark.parametrize("written", ["as its bytes", "as its letters"])
def test_a_header_is_looked_at_as_it_is_sent(written: str) -> None:
    """The attack: letters beyond ASCII, which are written as Latin-1, so that their bytes are those of the secret."""
    secret = "p\u00e4ssw\u00f6rter-4711"
    text = secret.encode().decode("latin-1") if written == "as its bytes" else secret
    for verdict in ("redact", "block"):
        run = GateRun(Gate(GateRules(registered=verdict), {"api": secret}))  # type: ignore[arg-type]
        found = run.request("https://a.example/", [("X-A", f"it is {text}!")], b"")
        if isinstance(found, tuple):
            assert (verdict, found[1]) == ("redact", [("X-A", "it is [redacted:api]!")])
        else:
            assert found.detector == "api"
            assert verdict == "block" or written == "as its letters"

    given = "https://a.example/", [("X-A", "\u00e4\u00ff"), ("X-B", "\u20ac")], b""
    assert GateRun(Gate(secrets={"api": secret})).request(*given) == given


def test_a_method_passes_the_gate() -> None:
    """The attack: a secret in the place of GET, which a policy that names no methods permits."""
    for verdict in ("redact", "block"):
        assert not isinstance(_gate_run(verdict).request("https://a.example/", [], b"", _SECRET), tuple)
    assert isinstance(_gate_run("block").request("https://a.example/", [], b"", "GET"), tuple)


@pytest.mark.parametrize("url", [f"https://a.example/?q={_SECRET}", f"HTTPS://A.example/a/../?q={_SECRET}"])
def test_what_is_found_in_a_url_is_counted_once(url: str) -> None:
    """Both as the guest wrote it and as it leaves, it is one."""
    run = _gate_run("warn")
    network = GuestNetwork(None, Policy(network=Network(mode="full")), lambda: 0.0, lambda: run)  # type: ignore[arg-type]

    request = Request("GET", url, (("X-A", "b"),), b"c")
    assert network._released(run, request) == request._replace(headers=[("X-A", "b")])

    assert [(each.detector, each.count) for each in run.release(_report()).findings] == [("api", 1)]


def test_a_request_without_a_secret_is_made_as_it_is() -> None:
    given = "https://a.example/?q=1", [("X-A", "b")], b"\xff\x00body"

    assert _gate_run("block").request(*given) == given


def test_a_request_that_is_refused_opens_nothing_and_is_told() -> None:
    """The attack: a request with a secret, which must not come as far as a name that is looked up."""
    policy = Policy(network=Network(mode="hosts", hosts=(HostRule("a.example"),)))
    run = _gate_run("block")
    network = GuestNetwork(None, policy, lambda: 0.0, lambda: run)  # type: ignore[arg-type]

    with pytest.raises(RequestFailed) as caught:
        network.begin(Request("POST", "https://a.example/", (), _SECRET.encode()))

    assert str(caught.value) == "there is the secret api in request, which gate.registered keeps back"
    assert caught.value.violation is not None
    assert caught.value.violation.action == "deny"
    report = run.release(_report(stdout=b"fine"))
    assert (report.outcome, report.stdout) == (Outcome.OK, b"fine")
    assert [(each.subject, each.action) for each in report.violations] == [("the secret api in request", "deny")]


@pytest.mark.parametrize(
    "url",
    [
        "http://\uff4e\uff4f\uff54\uff41\uff52\uff45\uff41\uff4c\uff4b\uff45\uff59\uff14\uff17\uff11\uff11.a.example/",
        "http://notare\u00adalkey4711.a.example/",
        "http://\u24dd\u24de\u24e3\u24d0\u24e1\u24d4\u24d0\u24db\u24da\u24d4\u24e84711.a.example/",
        "http://a.example/notare/so-much-that-no-separator-is-as-long-as-it/../../notarealkey4711",
        "http://a.example/n\u00f6/notarea%6Ckey4711",
    ],
)
@pytest.mark.parametrize("verdict", ["block", "redact"])
def test_a_url_is_looked_at_as_it_leaves(url: str, verdict: str) -> None:
    """The attack: a secret as the name of a host in other letters, which are the usual ones once it is looked up."""
    run = GateRun(Gate(GateRules(registered=verdict), {"api": "notarealkey4711"}))  # type: ignore[arg-type]
    network = GuestNetwork(None, Policy(network=Network(mode="full")), lambda: 0.0, lambda: run)  # type: ignore[arg-type]

    request = Request("GET", url, (), b"")

    if verdict == "block":
        with pytest.raises(RequestFailed) as caught:
            network.begin(request)
        assert caught.value.violation is not None
        assert caught.value.violation.subject == "the secret api in request"
    else:
        assert "[redacted:api]" in network._released(run, request).url

    assert {each.detector for each in run.release(_report()).findings} == {"api"}


def test_a_url_without_a_secret_is_asked_for_as_it_was_written() -> None:
    run = _gate_run("block")
    network = GuestNetwork(None, Policy(network=Network(mode="full")), lambda: 0.0, lambda: run)  # type: ignore[arg-type]

    for url in ("HTTP://B\u00fccher.example/a/../b?q=\u00e9#x", "no URL", "http://[/"):
        request = Request("GET", url, (("X-A", "b"),), b"c")
        assert network._released(run, request)[:2] == request[:2]


def test_without_a_gate_a_sandbox_loads_nothing_of_it() -> None:
    with Sandbox() as box:
        assert box._contexts.under().gates is None


class _Clock:
    """Processor time, of which a second has gone by whenever somebody asks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize("verdict", ["warn", "redact", "quarantine", "block"])
def test_files_that_take_too_long_to_be_looked_at_do_not_leave(verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a file that is slow to be looked at, so that the host looks at it for ever, or lets the rest pass."""
    monkeypatch.setattr(_run, "thread_time", _Clock())
    monkeypatch.setattr(_run, "MOST_FILES_SECONDS", 4.0)
    files = {"few": b"x", "long": b"." * (PIECE_BYTES * 5), "leak": _SECRET.encode(), "more": b"y"}
    given = Given(1, (), files, (_PNG,))

    report = _gate_run(verdict).release_given(_report(), given)

    assert (given.value, given.files, given.figures, given.left_out) == (1, {"few": b"x"}, [], 3)
    assert report.findings == ()
    (violation,) = report.violations
    assert (violation.kind, violation.subject, violation.action, violation.count, violation.limit) == (
        "gate",
        "files that took too long to look at",
        "deny",
        4,
        4.0,
    )


def test_files_that_are_looked_at_in_time_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""
    monkeypatch.setattr(_run, "thread_time", _Clock())
    files = {"few": b"x", "long": b"." * (PIECE_BYTES * 5)}
    given = Given(None, (), files)

    report = _gate_run("block").release_given(_report(), given)

    assert (given.files, given.left_out, report) == (files, 0, _report())


def test_what_was_not_looked_at_is_not_kept_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: what is blocked is kept aside beside what is quarantined, for nobody has looked at it."""
    monkeypatch.setattr(_run, "thread_time", _Clock())
    monkeypatch.setattr(_run, "MOST_FILES_SECONDS", 2.0)
    given = Given(None, (), {"leak": _SECRET.encode(), "long": b"." * (PIECE_BYTES * 5)})

    report = _gate_run("quarantine").release_given(_report(), given)

    kept = quarantined_as(report.quarantine)
    assert [*kept.parts] == ["stdout", "stderr", "files/leak"]
    assert (given.files, given.left_out) == ({}, 1)


def test_a_result_counts_files_that_took_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_run, "MOST_FILES_SECONDS", 0.0)
    with JavaScript(secrets=_SECRETS) as javascript:
        result = javascript.run("const f = std.open('a', 'w'); f.puts('x'); f.close()", collect=["*"])

    assert (result.files, result.files_left_out) == ({}, 1)
    assert [each.subject for each in result.report.violations] == ["files that took too long to look at"]
