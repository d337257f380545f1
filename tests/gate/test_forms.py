"""P-GATE-1: whatever may be registered is found in each form that is promised, and in no other text."""

from __future__ import annotations

import base64
import codecs
import html
import json
import quopri
import random
import re
import unicodedata
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus, unquote

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from stockade.errors import UsageError
from stockade.gate import Gate, SecretFinder
from stockade.gate._index import Index
from tests._examples import examples

if TYPE_CHECKING:
    from collections.abc import Callable


def _each(form: str) -> Callable[[bytes], bytes]:
    return lambda secret: "".join(form.format(byte) for byte in secret).encode()


def _of_text(write: Callable[[str], str]) -> Callable[[bytes], bytes]:
    return lambda secret: write(secret.decode()).encode()


def _words(secret: bytes) -> bytes:
    """As `hexdump` and `od -x` show them: numbers of two bytes, the low one first."""
    return b" ".join(f"{pair[::-1].hex():0>4}".encode() for pair in _pairs(secret))


def _pairs(secret: bytes) -> list[bytes]:
    return [secret[at : at + 2] for at in range(0, len(secret), 2)]


OF_BYTES: dict[str, Callable[[bytes], bytes]] = {
    "as it is": bytes,
    "base64": base64.b64encode,
    "base64 after one byte": lambda secret: base64.b64encode(b"<" + secret),
    "base64 after two bytes": lambda secret: base64.urlsafe_b64encode(b"<<" + secret + b">"),
    "base64 in lines": lambda secret: base64.encodebytes(b"x" * 50 + secret),
    "base32": base64.b32encode,
    **{
        f"base32 after {before} bytes": lambda secret, before=before: base64.b32encode(b"x" * before + secret + b"y")
        for before in (1, 2, 3, 4)
    },
    "hex": _each("{:02x}"),
    "hex in capitals with colons": lambda secret: secret.hex(":").upper().encode(),
    "numbers of a program": lambda secret: ", ".join(f"0x{byte:02X}" for byte in secret).encode(),
    "numbers of JavaScript": lambda secret: ",".join(map(hex, secret)).encode(),
    "words of two bytes": _words,
    "decimal": lambda secret: str(list(secret)).encode(),
    "decimal, of three digits": lambda secret: " ".join(f"{byte:03}" for byte in secret).encode(),
    "octal": lambda secret: " ".join(f"{byte:03o}" for byte in secret).encode(),
    "URL, every byte": _each("%{:02x}"),
    "octal escapes": _each("\\{:03o}"),
    "bytes of Python": lambda secret: repr(secret).encode(),
    "quoted-printable, every byte": _each("={:02X}"),
}

OF_TEXT: dict[str, Callable[[bytes], bytes]] = {
    "turned round": _of_text(lambda text: text[::-1]),
    "rot13": _of_text(lambda text: codecs.encode(text, "rot13")),
    "with spaces": _of_text(" ".join),
    "in lines": _of_text("\r\n".join),
    "with spaces that do not break": _of_text("\u00a0".join),
    "with spaces without width": _of_text("\u200b".join),
    "with soft hyphens": _of_text("\u00ad".join),
    "with wide spaces": _of_text("\u3000".join),
    "with zeros": _of_text("\0".join),
    "JSON": _of_text(lambda text: json.dumps(text)),
    "JSON with slashes": _of_text(lambda text: json.dumps(text, ensure_ascii=False).replace("/", "\\/")),
    "escapes of bytes": _each("\\x{:02x}"),
    "URL": lambda secret: quote(secret, safe="").encode(),
    "URL of a form": lambda secret: quote_plus(secret).encode(),
    "HTML": _of_text(html.escape),
    "HTML, every character": _of_text(lambda text: "".join(f"&#{ord(char)};" for char in text)),
    "HTML in hex": _of_text(lambda text: "".join(f"&#x{ord(char):X};" for char in text)),
    "long escapes": _of_text(lambda text: "".join(f"\\U{ord(char):08x}" for char in text)),
    "escapes in braces": _of_text(lambda text: "".join(f"\\u{{{ord(char):x}}}" for char in text)),
    "escapes of UTF-16": _of_text(
        lambda text: "".join(f"\\u{unit.hex()}" for unit in _pairs(text.encode("utf-16-be")))
    ),
    "quoted-printable": quopri.encodestring,
    "UTF-16": lambda secret: secret.decode().encode("utf-16-le"),
    "UTF-16, the other way": lambda secret: secret.decode().encode("utf-16-be"),
    "UTF-32": lambda secret: secret.decode().encode("utf-32-le"),
    "base64 of UTF-16": lambda secret: base64.b64encode(secret.decode().encode("utf-16-le")),
    "composed": _of_text(lambda text: unicodedata.normalize("NFC", text)),
    "decomposed": _of_text(lambda text: unicodedata.normalize("NFD", text)),
}
"""Which only text has."""

OF_LETTERS: dict[str, Callable[[bytes], bytes]] = {
    "with dots": _of_text(".".join),
    "in a table": _of_text(" | ".join),
    "with quotes of print": _of_text("\u201d + \u201c".join),
    "added in a program": _of_text(lambda text: '" + "'.join(text[at : at + 3] for at in range(0, len(text), 3))),
}
"""Of secrets that have seven letters and digits at least."""

_TEXTS = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=8, max_size=80),
    st.text(st.sampled_from("ab1-/+=!$&'\"<> \\%"), min_size=8, max_size=30),
    st.text(st.characters(exclude_categories=("Cs",)), min_size=4, max_size=40),
    st.text(st.characters(categories=("Lu", "Ll", "Nd", "Pd"), max_codepoint=0x4FF), min_size=6, max_size=150),
)
_SECRETS = st.one_of(_TEXTS.map(str.encode), st.binary(min_size=8, max_size=100))


def _gate(secret: bytes) -> Gate:
    try:
        return Gate(secrets={"it": secret})
    except UsageError:
        # It may not be registered.
        assume(False)
        raise


def _is_found(secret: bytes, data: bytes, sizes: list[int]) -> bool:
    found: list[object] = []
    stream = _gate(secret).stream(found=found.append)
    at = 0
    for size in sizes:
        stream.feed(data[at : at + size])
        at += size
    stream.feed(data[at:])
    stream.finish()
    return bool(found)


_WORDS = [
    "password",
    "key",
    "0x41",
    "&amp;",
    "%20",
    "\\u0041",
    "naïve",
    "пароль",
    "id=",
    "12:30:01",
    "{}",
    "&nbsp;",
    "=3D",
    "\\n",
]
_MARKS = (" ", "=", ": ", "\n", "\t", "-", "\0", "\u200b")

_SIZES = st.one_of(st.lists(st.integers(0, 40), max_size=20), st.just([1] * 2_000))
_BEFORE = st.sampled_from([b"", b"it is: ", b'{"a": "', b"x ", b"\xff\xd8", "schön: ".encode()])


@settings(max_examples=examples(400))
@given(_SECRETS, st.sampled_from(sorted(OF_BYTES)), _BEFORE, _SIZES)
def test_whatever_may_be_registered_is_found_in_its_forms(
    secret: bytes, form: str, before: bytes, sizes: list[int]
) -> None:
    """The attack: code prints what it was given, encoded, in pieces of any size."""
    data = before + OF_BYTES[form](secret) + b"\n"

    assert _is_found(secret, data, sizes), data


@settings(max_examples=examples(600))
@example("000000::::::::;<0", "UTF-32", b"", [1] * 100)
@example("abcdefg" + "-" * 140 + "hijk", "UTF-16", b"", [])
@example("abcdefg" + "-" * 140 + "hijk", "JSON", b"", [7] * 30)
@example("pass\U0001f600word-1234", "JSON", b"", [])
@example("pässword-wörter-x", "UTF-16", b"", [])
@example("ab-cd_12!$%&", "HTML in hex", b"", [1] * 100)
@given(_TEXTS, st.sampled_from(sorted(OF_TEXT)), _BEFORE, _SIZES)
def test_text_that_may_be_registered_is_found_in_its_forms(
    text: str, form: str, before: bytes, sizes: list[int]
) -> None:
    """The attack: the same of passwords of few letters, of other scripts, and with marks."""
    # Of what has fewer that are seen, nothing but its bytes is looked for.
    assume(sum(len(char.encode()) for char in text if unicodedata.category(char)[0] not in "CZ") >= 7)
    data = before + OF_TEXT[form](text.encode()) + b"\n"

    assert _is_found(text.encode(), data, sizes), data


@settings(max_examples=examples(200))
@given(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=8, max_size=80),
    st.sampled_from(sorted(OF_LETTERS)),
    _SIZES,
)
def test_what_has_letters_is_found_however_it_is_split(text: str, form: str, sizes: list[int]) -> None:
    assume(sum(map(str.isalnum, text)) >= 7)
    # Where much stands between two letters, less may be put between them.
    assume(re.search(r"[^A-Za-z0-9]{3}", text) is None)

    assert _is_found(text.encode(), OF_LETTERS[form](text.encode()), sizes)


@settings(max_examples=examples(300))
@given(_SECRETS, st.integers(0, 2**32), _SIZES)
def test_text_that_was_made_without_it_leaves_as_it_came(secret: bytes, seed: int, sizes: list[int]) -> None:
    made = random.Random(seed)
    words = " ".join(f"{made.choice(_WORDS)}{made.choice(_MARKS)}{made.getrandbits(40)}" for _ in range(100))
    data = made.choice([made.randbytes(2_000), words.encode(), base64.encodebytes(words.encode())])
    stream = _gate(secret).stream()
    passed, at = b"", 0
    for size in sizes:
        passed += stream.feed(data[at : at + size])
        at += size
    passed += stream.feed(data[at:]) + stream.finish()

    assert passed == data


@pytest.mark.parametrize("text", ["пароль-тайна", "PÄSSWÖRT-übung", "密码是安全的吗", "pässword-wörter-x"])
def test_secrets_of_other_scripts_are_found_in_any_case(text: str) -> None:
    gate = Gate(secrets={"it": text})

    for written in (text.upper(), text.lower(), "\u200b".join(text.upper()), text.encode("utf-16")):
        data = written if isinstance(written, bytes) else written.encode()
        assert gate.scan(b"(" + data + b")").findings, written


def test_wide_letters_are_found() -> None:
    wide = "".join(chr(ord(char) + 0xFEE0) for char in "not-a-real-key")

    assert Gate(secrets={"it": "not-a-real-key"}).scan(f"<{wide}>".encode()).data == b"<[redacted:it]>"


def test_named_references_are_found() -> None:
    gate = Gate(secrets={"it": "a/b+c-pässword"})

    assert gate.scan(b"<a&sol;b&plus;c&hyphen;p&auml;ssword>").findings
    assert not gate.scan(b"<a&nosuch;b&plus;c>").findings


@pytest.mark.parametrize("text", ["p@$$-w0r!d", "!!?$%&/()", "--abc--"])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_marks_around_a_secret_are_replaced_with_it(text: str, size: int) -> None:
    """The attack: a secret that ends with marks, cut before them."""
    for secret in (text + "-xyz-12345-$$", "==" + text * 3 + "=="):
        for written in (secret, html.escape(secret), quote(secret, safe="")):
            stream = Gate(secrets={"it": secret}).stream()
            data = f"(a) {written} (b)".encode()
            passed = b"".join(stream.feed(data[at : at + size]) for at in range(0, len(data), size)) + stream.finish()

            assert passed.endswith(b"[redacted:it] (b)")
            # What has left before it was known has no more than three of its letters.
            assert sum(map(str.isalnum, html.unescape(unquote(passed[4:-17].decode())))) <= 3


def test_a_secret_that_repeats_itself_is_replaced_whole() -> None:
    """The attack: of a text whose pieces overlap each other, the end stays."""
    secret = "s3cr3t/Value+of&some" * 5
    gate = Gate(secrets={"it": secret})

    assert gate.scan(f"<{secret}>".encode()).data == b"<[redacted:it]>"
    assert gate.scan(f"<{quote(secret, safe='')}>".encode()).data == b"<[redacted:it]>"


@pytest.mark.parametrize("secret", ["aaaaaaaaaa", "--------", "1212121212", " \t \t \t \t", b"\0" * 16])
def test_what_would_be_found_where_it_is_none_is_refused(secret: str | bytes) -> None:
    with pytest.raises(UsageError) as caught:
        Gate(secrets={"it": secret})

    assert str(caught.value) == (
        "the secret it has fewer than 4 different characters: it would be found where it is none"
    )


def test_many_secrets_that_begin_alike_are_looked_for_as_one_is() -> None:
    """The attack: output full of what a thousand tokens of one issuer begin with, so that looking takes long."""
    many = {f"s{at}": f"acme_prod_sk_{at:06}_{at * at % 9973:05}_tail".encode() for at in range(1_000)}
    data = (b"acme_prod_sk_00" * 2_000)[: 16 << 10]

    for secrets in ({"one": many["s7"]}, many):
        finder = SecretFinder(secrets)
        assert list(finder.find(data, is_last=True)) == []
    # What is compared does not grow with how many there are.
    (look,) = finder._looks
    words = [(each, word) for each in look.index._words for word in sorted(each._known)[::50]]
    assert max(len(each._placed(word)) for each, word in words) <= 64

    assert Gate(secrets=many).scan(data + many["s778"]).data == data + b"[redacted:s778]"


@given(
    st.lists(st.binary(min_size=7, max_size=40) | st.text("ab", min_size=7, max_size=20).map(str.encode), max_size=12),
    st.data(),
)
def test_an_index_finds_what_a_search_for_each_text_finds(texts: list[bytes], data: st.DataObject) -> None:
    """Wherever they stand, however long and alike they are; words that were met before are known."""
    index = Index(texts)
    for _ in range(2):
        parts = data.draw(st.lists(st.sampled_from([*texts, b"a", b"bb", b"\0" * 5]), max_size=12))
        through = b"".join(parts)
        expected = {
            (at, text) for text in set(texts) for at in range(len(through)) if through[at : at + len(text)] == text
        }
        assert set(index.find(through)) == expected
