"""P-GATE-1: registered secrets are found in every common form, wherever pieces begin and end."""

import base64
import html
import json
import textwrap
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from stockade.errors import UsageError
from stockade.gate import Gate, Verdict

_SECRET = "sk-live/9fJ2kQ+x7Lm3Pz=T8"

_LONG = "\n".join(
    ["-----BEGIN KEY-----", *textwrap.wrap(base64.b64encode(bytes(range(7, 250))).decode(), 64), "-----END KEY-----"]
)

_SHORT = "p@$$-w0r!d"
"""With too few letters and digits to be looked for by them."""


def _mixed(text: str) -> str:
    return "".join(f"%{ord(char):02X}" if at % 2 else char for at, char in enumerate(text))


_FORMS = {
    "plain": str,
    "capitals": str.upper,
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 after one byte": lambda text: base64.b64encode(b"<" + text.encode() + b">!").decode(),
    "base64 after two bytes": lambda text: base64.b64encode(b"<<" + text.encode() + b">").decode(),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "base64 without padding": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "base64 in lines": lambda text: base64.encodebytes(text.encode() * 3).decode(),
    "base64 in short lines": lambda text: "\r\n".join(textwrap.wrap(base64.b64encode(text.encode()).decode(), 5)),
    "hex": lambda text: text.encode().hex(),
    "hex in capitals": lambda text: text.encode().hex().upper(),
    "hex with colons": lambda text: text.encode().hex(":"),
    "hex in words": lambda text: text.encode().hex(" ", 4),
    "a dump": lambda text: " ".join(f"0x{byte:02x}," for byte in text.encode()).replace("0x", ""),
    "decimal": lambda text: str(list(text.encode())),
    "URL": lambda text: quote(text, safe=""),
    "URL of a form": quote_plus,
    "URL, every byte": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "URL, some bytes": _mixed,
    "JSON": lambda text: json.dumps(text).replace("/", "\\/"),
    "JSON of lines": lambda text: json.dumps("\n".join(text)),
    "JSON escapes": lambda text: "".join(f"\\u{ord(char):04x}" for char in text),
    "escapes of Python": lambda text: "".join(f"\\x{byte:02x}" for byte in text.encode()),
    "HTML": html.escape,
    "HTML references": lambda text: "".join(f"&#{ord(char)};" for char in text),
    "HTML references in hex": lambda text: "".join(f"&#x{ord(char):x};" for char in text),
    "one character a line": "\n".join,
    "with spaces": " ".join,
    "with dots": ".".join,
    "in a table": " | ".join,
    "added in a program": lambda text: '" +\n      "'.join(textwrap.wrap(text, 6)),
    "UTF-16": lambda text: text.encode("utf-16-le").decode("latin-1"),
}


def _chunks(data: bytes, sizes: list[int]) -> list[bytes]:
    found, at = [], 0
    for size in sizes:
        found.append(data[at : at + size])
        at += size
    return [*found, data[at:]]


@pytest.mark.parametrize("form", _FORMS)
@pytest.mark.parametrize("before", ["", "x", "token: ", "é{"])
def test_a_secret_is_found_in_every_common_form(form: str, before: str) -> None:
    """The attack: code prints a secret that it was given, encoded or taken apart so that nobody sees it."""
    gate = Gate(secrets={"api": _SECRET})
    written = _FORMS[form](_SECRET).encode("latin-1")
    data = before.encode() + b" " + written + b" and more"

    scan = gate.scan(data)

    assert scan.verdict is Verdict.REDACT
    assert [(finding.kind, finding.detector, finding.evidence) for finding in scan.findings] == [("secret", "api", "")]
    assert b"[redacted:api]" in scan.data
    # What touches its neighbours in base64 is left.
    left = scan.data.replace(b"[redacted:api]", b"")
    assert len(left) <= len(data) - len(written) + 8


@pytest.mark.parametrize("form", _FORMS)
def test_what_is_printed_byte_by_byte_shows_no_more_than_four_characters(form: str) -> None:
    """The attack: code writes a secret one byte at a time, so that each piece looks harmless."""
    gate = Gate(secrets={"api": _SECRET})
    written = _FORMS[form](_SECRET).encode("latin-1")
    stream = gate.stream()

    passed = b"".join(stream.feed(bytes((byte,))) for byte in b"> " + written) + stream.finish()

    assert b"[redacted:api]" in passed
    # In what came out, no four characters of it stand together.
    assert not gate.scan(passed).findings
    shown = passed.removeprefix(b"> ").split(b"[redacted:api]", 1)[0]
    assert sum(chr(byte).isalnum() for byte in shown) <= len(written) // 4


@given(
    st.sampled_from(sorted(_FORMS)),
    st.binary(max_size=40).filter(lambda data: not data or not chr(data[-1]).isalnum()),
    st.lists(st.integers(0, 60), max_size=20),
)
def test_where_pieces_begin_and_end_changes_nothing_of_what_is_found(
    form: str, before: bytes, sizes: list[int]
) -> None:
    gate = Gate(secrets={"api": _SECRET, "short": _SHORT})
    data = before + b"  " + _FORMS[form](_SECRET).encode("latin-1") + b"  " + _SHORT.encode() + b"."
    found = []
    stream = gate.stream(found=lambda finding: found.append((finding.detector, finding.offset, finding.length)))
    whole = []
    other = gate.stream(found=lambda finding: whole.append((finding.detector, finding.offset, finding.length)))

    for piece in _chunks(data, sizes):
        stream.feed(piece)
    stream.finish()
    other.feed(data)
    other.finish()

    assert found == whole
    assert {"api", "short"} <= {detector for detector, _, _ in found}


@given(st.binary(max_size=3000), st.lists(st.integers(0, 300), max_size=20))
def test_what_holds_no_secret_leaves_as_it_came(data: bytes, sizes: list[int]) -> None:
    stream = Gate(secrets={"api": _SECRET, "long": _LONG, "short": _SHORT}).stream()

    passed = b"".join(map(stream.feed, _chunks(data, sizes))) + stream.finish()

    assert passed == data


@example("0012'\\012", "HTML")
@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=90),
    st.sampled_from(sorted(_FORMS)),
)
def test_any_secret_is_found(secret: str, form: str) -> None:
    assume(len(set(secret)) >= 4)
    if sum(map(str.isalnum, secret)) < 7 and form not in ("plain", "URL", "base64", "hex"):
        # Of punctuation, only forms are found that are usual for it.
        form = "plain"
    data = b"<" + _FORMS[form](secret).encode("latin-1") + b">"

    assert Gate(secrets={"it": secret}).scan(data).findings, data


@pytest.mark.parametrize("form", ["plain", "base64", "hex", "one character a line", "JSON"])
def test_a_long_secret_is_found_whole_and_in_part(form: str) -> None:
    """The attack: code prints the middle of a private key, so that nothing of its head is there."""
    gate = Gate(secrets={"key": _LONG})
    whole = _FORMS[form](_LONG).encode()

    scan = gate.scan(b"<" + whole + b">")
    part = gate.scan(b"<" + _FORMS[form](_LONG[130:290]).encode() + b">")

    assert len(scan.data.replace(b"[redacted:key]", b"")) < 60
    assert part.findings


def test_a_secret_with_few_letters_is_found_as_it_is() -> None:
    gate = Gate(secrets={"short": _SHORT})

    for written in (_SHORT, quote(_SHORT), html.escape(_SHORT), base64.b64encode(_SHORT.encode()).decode()):
        assert gate.scan(f"it is {written}.".encode()).data.startswith(b"it is [redacted:short]"), written


def test_secrets_of_other_scripts_are_found() -> None:
    secret = "пароль-тайна"
    gate = Gate(secrets={"it": secret})

    for written in (secret, quote(secret), json.dumps(secret), secret.encode().hex(), " ".join(secret)):
        assert gate.scan(f"({written})".encode()).findings, written


def test_a_secret_that_begins_another_one_hides_nothing_of_it() -> None:
    """The attack: of two secrets one begins like the other, and the end of the longer one comes later."""
    gate = Gate(secrets={"user": "abcdefgh1234", "admin": "abcdefgh1234-the-rest-of-it"})
    stream = gate.stream()

    passed = stream.feed(b"it is abcdefgh1234") + stream.feed(b"-the-rest-of-it!") + stream.finish()

    assert passed in (b"it is [redacted:user]!", b"it is [redacted:admin]!")


def test_the_beginning_of_a_secret_waits_for_its_end_and_a_prompt_does_not() -> None:
    stream = Gate(secrets={"api": "abcdefgh1234"}).stream()

    assert stream.feed(b"password: ") == b"password: "
    assert stream.feed(b"abcd") == b""
    assert stream.held_bytes == 4
    assert stream.feed(b"efg? no") == b"abcdefg? no"
    assert stream.feed(b"abcdef") == b""
    assert stream.finish() == b"abcdef"


@pytest.mark.parametrize("filler", [b"\n", b"abcdefgh123\n", b"%61%62%63", b"\\u0061", b"abc" + b" " * 10, b"\0"])
def test_no_more_is_held_than_a_window(filler: bytes) -> None:
    """The attack: output is made so that it could go on as a secret for ever, for the host to keep all of it."""
    gate = Gate(secrets={"api": "abcdefgh1234", "long": _LONG})
    stream = gate.stream()
    most = came = left = 0

    while came < 200_000:
        piece = (filler * 300)[:1_000]
        left += len(stream.feed(piece))
        came += len(piece)
        most = max(most, stream.held_bytes)

    left += len(stream.finish())
    assert most <= 4_096
    assert left == came


def test_a_thousand_secrets_are_looked_for_at_once() -> None:
    secrets = {f"s{number}": f"secret-{number * number:020}-of-many" for number in range(1_000)}
    gate = Gate(secrets=secrets)

    assert gate.scan(f"a {secrets['s777']} b".encode()).data == b"a [redacted:s777] b"
    assert gate.scan(b"a secret-of-many b").verdict is Verdict.ALLOW


@pytest.mark.parametrize(
    ("secrets", "message"),
    [
        (
            {"pin": "1234567"},
            "the secret pin has 7 bytes: it must have 8 to 65,536, for what is shorter would be found where it is none",
        ),
        ({"pin": 12345678}, "the secret pin is int: give text or bytes"),
        ({"": "12345678"}, "the secret '' has a name that is none: use text of at most 100 characters"),
    ],
)
def test_what_is_no_secret_is_refused_without_its_value(secrets: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Gate(secrets=secrets)

    assert str(caught.value) == message


def test_a_gate_shows_no_secret() -> None:
    assert _SECRET not in repr(Gate(secrets={"api": _SECRET}))
