"""P-GATE-2, P-GATE-3: keys, personal data, random text are found in their forms; ordinary output leaves as it came."""

import base64
import hashlib
import json
import random
import uuid
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.gate import Gate, GateRules, Verdict

_ALL = GateRules(keys="block", personal="block", entropy="block")

_LETTERS = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zAbCdEfGhIjKlMnOpQrStUvWxYz0123456789" * 4


def _made(length: int) -> str:
    return _LETTERS[:length]


def _hexed(length: int) -> str:
    return hashlib.sha512(b"of no use").hexdigest()[:length]


_PEM = "-----BEGIN {0}PRIVATE KEY{1}-----\n" + "\n".join([_made(64)] * 12) + "\n-----END {0}PRIVATE KEY{1}-----"

_KEYS = {
    # None of these is written as it is, so that nobody takes this file for a leak.
    "aws-access-key": ["AKIA" + "IOSFODNN7XY12345", "ASIA" + "IOSFODNN7XY12345"],
    "aws-secret-key": [
        "aws_secret_access_key = " + _made(40),
        '"SecretAccessKey": "' + _made(40) + '"',
        "AWS_SECRET_ACCESS_KEY=" + _made(40),
    ],
    "github-token": [f"gh{kind}_" + _made(36) for kind in "pousr"] + ["github_pat_" + _made(22) + "_" + _made(59)],
    "gitlab-token": ["glpat-" + _made(20)],
    "slack-token": ["xoxb-" + "123456789012-1234567890123-" + _made(24), "xapp-1-A12-" + _made(40)],
    "slack-webhook": ["https://hooks.slack.com/services/T00000000/B00000000/" + _made(24)],
    "stripe-key": ["sk_live_" + _made(24), "rk_test_" + _made(99)],
    "stripe-webhook": ["whsec_" + _made(32)],
    "anthropic-key": ["sk-ant-" + "api03-" + _made(93)],
    "openai-key": ["sk-proj-" + _made(120), "sk-" + _made(48)],
    "google-key": ["AIza" + _made(35)],
    "google-secret": ["GOCSPX-" + _made(28)],
    "google-token": ["ya29." + _made(120)],
    "npm-token": ["npm_" + _made(36)],
    "pypi-token": ["pypi-AgE" + _made(150)],
    "sendgrid-key": ["SG." + _made(22) + "." + _made(43)],
    "mailgun-key": ["key-" + _hexed(32)],
    "twilio-key": ["SK" + _hexed(32)],
    "shopify-token": ["shpat_" + _hexed(32)],
    "digitalocean-token": ["dop_v1_" + _hexed(64)],
    "huggingface-token": ["hf_" + _made(34)],
    "databricks-token": ["dapi" + _hexed(32)],
    "vault-token": ["hvs." + _made(90)],
    "doppler-token": ["dp.pt." + _made(43)],
    "linear-key": ["lin_api_" + _made(40)],
    "atlassian-token": ["ATATT3" + _made(180)],
    "age-key": ["AGE-SECRET-KEY-1" + _made(58).upper()],
    "azure-key": ["AccountKey=" + _made(86) + "==", "SharedAccessKey=" + _made(43) + "="],
    "telegram-token": ["1234567890" + ":AA" + _made(33)],
    "json-web-token": ["eyJ" + _made(33) + ".eyJ" + _made(40) + "." + _made(43)],
    "private-key": [_PEM.format(kind, "") for kind in ("", "RSA ", "EC ", "DSA ", "ENCRYPTED ", "OPENSSH ")]
    + [_PEM.format("PGP ", " BLOCK")],
    "url-password": [
        scheme + "://app:" + "s3cr3tpw" + "@db.example.com/x"
        for scheme in ("postgresql", "postgres", "mongodb+srv", "rediss", "redis", "amqp", "mysql", "https")
    ],
    "bearer-token": ["Authorization: Bearer " + _made(40)],
    "basic-credentials": ["Authorization: Basic " + base64.b64encode(b"user:of-no-use-1").decode()],
    "password": [
        "password=hunt3r2",
        "PASSWORD: 'tr0ub4dor&3'",
        "db_password = c0rrectH0rse",
        '{"api_key": "a1b2c3d4e5"}',
        "client_secret=>9f8e7d6c5b",
    ],
}


@pytest.mark.parametrize("detector", _KEYS)
def test_keys_are_found_in_the_forms_of_their_issuers(detector: str) -> None:
    gate = Gate(GateRules(keys="redact"))

    for key in _KEYS[detector]:
        for text in (key, f"before {key} after\n", f"x={key}\n" if "=" not in key[:30] else key, f"<{key}>\n"):
            found = gate.scan(text.encode()).findings

            assert detector in [finding.detector for finding in found], text


@pytest.mark.parametrize("detector", _KEYS)
@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 7, pytest.param(64, marks=pytest.mark.slow)])
def test_keys_are_found_across_the_borders_of_pieces(detector: str, size: int) -> None:
    """The attack: code writes a key in pieces, none of which looks like one."""
    for key in _KEYS[detector]:
        data = f"some output, and then {key} and the end\n".encode()
        stream = Gate(GateRules(keys="redact")).stream()

        passed = b"".join(stream.feed(data[at : at + size]) for at in range(0, len(data), size)) + stream.finish()

        assert b"[redacted:" in passed
        # Four characters may have left before there was more.
        assert _made(12).encode() not in passed
        assert _hexed(12).encode() not in passed
        assert not Gate(GateRules(keys="redact")).scan(passed).findings


def test_evidence_shows_four_characters_at_each_end_and_never_more_than_half() -> None:
    key = "AKIA" + "IOSFODNN7XY12345"
    (finding,) = Gate(GateRules(keys="warn")).scan(f"it is {key}.".encode()).findings

    assert (finding.evidence, finding.offset, finding.length) == ("AKIA…2345", 6, 20)
    (short,) = Gate(GateRules(keys="warn")).scan(b"password=hunt3r2 ").findings
    assert short.evidence == "h…2"
    assert "hunt3r2" not in str(short)


def test_keys_that_follow_each_other_are_told_one_by_one() -> None:
    """The attack: passwords without anything between them, so that all of the output becomes one placeholder."""
    found: list[tuple[int, int]] = []
    stream = Gate(GateRules(keys="redact")).stream(found=lambda each: found.append((each.offset, each.length)))
    data = b"password=a1" * 2_000 + b" "

    passed = stream.feed(data) + stream.finish()

    assert passed.count(b"[redacted:password]") == len(found) > 1_000
    assert b"a1" not in passed
    assert sum(length for _, length in found) <= len(data)
    assert all(begin + length <= after for (begin, length), (after, _) in pairwise(found))


@pytest.mark.parametrize(
    ("text", "detector"),
    [
        ("card 4111 1111 1111 1111", None),
        ("card 4539 1488 0343 6467.", "card-number"),
        ("card 4539-1488-0343-6467", "card-number"),
        ("4539148803436467", "card-number"),
        ("5425233430109903", "card-number"),
        ("2223000048410010", "card-number"),
        ("374245455400126", "card-number"),
        ("3742 454554 00126", "card-number"),
        ("6011000991300009", "card-number"),
        ("4539148803436468", None),
        ("DE89 3704 0044 0532 0130 00", "bank-account"),
        ("GB29NWBK60161331926819", "bank-account"),
        ("FR1420041010050500013M02606", "bank-account"),
        ("DE89 3704 0044 0532 0130 01", None),
        ("ssn 536-90-4399", "social-security-number"),
        ("ssn 000-90-4399", None),
        ("ssn 987-65-4321", None),
    ],
)
def test_personal_numbers_are_found_where_their_sum_is_right(text: str, detector: str | None) -> None:
    found = Gate(GateRules(personal="redact")).scan(f"{text}\n".encode()).findings

    assert [finding.detector for finding in found] == ([] if detector is None else [detector])


def test_text_as_random_as_a_key_is_found() -> None:
    gate = Gate(GateRules(entropy="redact"))
    made = random.Random(5)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    keys = ["".join(made.choices(alphabet, k=length)) for length in (24, 32, 40, 64) for _ in range(50)]

    missed = [key for key in keys if not gate.scan(f"the key is {key} today".encode()).findings]

    assert len(missed) <= len(keys) // 10, missed


@pytest.mark.parametrize("verdict", ["warn", "redact", "quarantine", "block"])
def test_volume_never_lowers_severity(verdict: str) -> None:
    """The attack: a thousand harmless findings, so that the one that counts is not kept."""
    cards = "\n".join(f"user{number} password=pass{number}word" for number in range(2_000))
    rules = GateRules(keys="warn", personal=verdict)  # type: ignore[arg-type]

    for text in (f"{cards}\nssn 536-90-4399\n", f"ssn 536-90-4399\n{cards}\n"):
        scan = Gate(rules).scan(text.encode())

        assert scan.verdict == verdict
        assert scan.findings[0].verdict == verdict
        if verdict not in ("quarantine", "block"):
            # What is withheld is not looked at any more.
            assert sum(finding.count for finding in scan.findings) + scan.dropped == 2_001


def test_many_kinds_of_findings_keep_the_most_severe() -> None:
    secrets_given = {f"s{number}": f"secret-number-{number:06}-of-many" for number in range(200)}
    text = "\n".join(secrets_given.values()) + "\nssn 536-90-4399\n"

    scan = Gate(GateRules(registered="warn", personal="redact"), secrets_given).scan(text.encode())

    assert scan.verdict is Verdict.REDACT
    assert len(scan.findings) == 64
    assert scan.findings[0].detector == "social-security-number"
    assert sum(finding.count for finding in scan.findings) + scan.dropped == 201


@pytest.mark.parametrize(
    "data",
    [
        b"-----BEGIN RSA PRIVATE KEY-----\n" + b"a" * 100_000,
        b"eyJ-" * 20_000,
        b"secret_access_key" * 5_000,
        b"password" * 10_000,
        b"://:" * 20_000,
        b"sk-" * 30_000,
        b"4539 " * 20_000,
        b"DE89 3704 " * 10_000,
        b"aB3dE5gH7" * 10_000,
    ],
    ids=lambda data: data[:20].decode(),
)
@pytest.mark.parametrize("size", [1_000, 100_000])
def test_no_more_is_held_than_a_window(data: bytes, size: int) -> None:
    """The attack: output that may go on as a key for ever."""
    stream = Gate(GateRules(keys="warn", personal="warn", entropy="warn")).stream()
    most = left = 0

    for at in range(0, len(data), size):
        left += len(stream.feed(data[at : at + size]))
        most = max(most, stream.held_bytes)

    assert left + len(stream.finish()) == len(data)
    assert most <= 20_000


# -- ordinary output ---------------------------------------------------------------------------------------------------

_ORDINARY = (Path(__file__).parent / "ordinary.txt").read_text()


@pytest.mark.parametrize("line", [line for line in _ORDINARY.splitlines() if line.strip()])
def test_a_line_of_ordinary_output_leaves_as_it_came(line: str) -> None:
    scan = Gate(_ALL, {"api": "sk-live-9fJ2kQ_x7Lm3PzT8"}).scan(f"{line}\n".encode())

    assert not scan.findings


def test_in_ordinary_output_no_registered_secret_is_found() -> None:
    """Two hundred secrets of all kinds, in text that has letters, digits, escapes and sums like theirs."""
    made = random.Random(11)
    secrets_given: dict[str, str | bytes] = {f"hex{at}": f"{made.getrandbits(128):032x}" for at in range(50)}
    secrets_given |= {f"token{at}": base64.b64encode(made.randbytes(24)).decode() for at in range(50)}
    secrets_given |= {f"password{at}": f"Summer-{made.getrandbits(30)}!" for at in range(50)}
    secrets_given |= {f"marks{at}": "".join(made.choices("!$%&/()=?+*#-_.:;", k=12)) for at in range(25)}
    secrets_given |= {f"bytes{at}": made.randbytes(16) for at in range(25)}
    gate = Gate(secrets=secrets_given)
    sums = [f"{made.getrandbits(160):040x} {uuid.UUID(int=made.getrandbits(128))} {at}" for at in range(2_000)]

    for text in (_ORDINARY, "\n".join(sums), *(path.read_text() for path in Path(__file__).parent.glob("*.py"))):
        assert not gate.scan(text.encode()).findings


def test_the_projects_own_texts_leave_as_they_came() -> None:
    root = Path(__file__).parents[2]
    gate = Gate(GateRules(keys="warn", personal="warn", entropy="warn"))

    for path in [
        *sorted(root.glob("*.md")),
        *sorted((root / "src").rglob("*.py")),
        *sorted((root / "src").rglob("*.wat")),
    ]:
        found = gate.scan(path.read_bytes()).findings

        assert not found, (path, found)


@given(st.integers(0, 2**64), st.datetimes(), st.floats(), st.ip_addresses())
def test_numbers_times_and_sums_leave_as_they_came(number: int, when: object, real: float, address: object) -> None:
    made = random.Random(number)
    data = made.randbytes(40)
    lines = [
        f"{when} INFO pid={number % 99999} request {uuid.UUID(int=made.getrandbits(128), version=4)} took {real}",
        f"commit {hashlib.sha1(data).hexdigest()}",
        f"sha256:{hashlib.sha256(data).hexdigest()}",
        f'"integrity": "sha512-{base64.b64encode(hashlib.sha512(data).digest()).decode()}"',
        f"{when:%Y%m%d%H%M%S%f} {address} {made.random()} 1.{number % 50}.{number % 70}",  # type: ignore[str-format]
        f"+1 (555) {made.randrange(100, 999)}-{made.randrange(1000, 9999)}, 555{made.randrange(10**6, 10**7)}",
        f"{1_700_000_000_000 + number % 10**11} {1_700_000_000_000_000 + number % 10**14}",
        json.dumps({"id": number, "at": str(when), "hex": data.hex()}),
        f"data:image/png;base64,{base64.b64encode(data * 5).decode()}",
    ]

    for line in lines:
        assert not Gate(_ALL).scan(f"{line}\n".encode()).findings, line


def test_images_and_random_bytes_leave_as_they_came() -> None:
    gate = Gate(GateRules(keys="warn", personal="warn", entropy="warn"))
    made = random.Random(3)

    for _ in range(20):
        data = made.randbytes(20_000)
        for written in (data, base64.b64encode(data), base64.encodebytes(data)):
            assert not [found for found in gate.scan(written).findings if found.kind != "entropy"], written[:100]
        assert not gate.scan(base64.b64encode(data)).findings
