"""Keys in the forms that their issuers give them, private keys, tokens, and passwords where they are named as such."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from stockade.gate._finder import Hold, Span

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["KeyFinder", "held_word"]

_MOST_WORD_BYTES: Final = 2048
"""How much of a word without a space is kept until its end is there."""

_LEAST_HELD: Final = 5
"""A word that is shorter may leave before it is known how it goes on, so that a prompt does."""

_LOOKED_BACK_BYTES: Final = 96
"""How far before a word it may stand what it is."""

_MOST_KEY_BYTES: Final = 16 << 10
"""How long a private key is looked for its end."""

_END: Final = rb"(?![A-Za-z0-9_])"


class _Form(NamedTuple):
    """A form of keys.

    Attributes:
        detector: What it is called.
        begins: Texts of which one stands at its beginning, or just before it.
        pattern: The form, from there on; where it has a group, that is the key.
    """

    detector: str
    begins: tuple[bytes, ...]
    pattern: re.Pattern[bytes]


def _form(detector: str, begins: str, pattern: bytes) -> _Form:
    return _Form(detector, tuple(begin.encode() for begin in begins.split()), re.compile(pattern))


_FORMS: Final = (
    _form("aws-access-key", "AKIA ASIA ABIA ACCA", rb"[A-Z0-9]{20}" + _END),
    _form(
        "aws-secret-key",
        "secret_access_key SecretAccessKey secretAccessKey SECRET_ACCESS_KEY",
        rb"\w{1,60}[\"']?\s{0,4}[:=]\s{0,4}[\"']?([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])",
    ),
    _form("github-token", "ghp_ gho_ ghu_ ghs_ ghr_", rb"gh[a-z]_[A-Za-z0-9]{36,255}" + _END),
    _form("github-token", "github_pat_", rb"github_pat_[A-Za-z0-9_]{22,255}"),
    _form("gitlab-token", "glpat- glptt- gldt- glrt- glcbt- glsoat-", rb"gl[a-z]{1,6}-[A-Za-z0-9_.-]{20,300}"),
    _form(
        "slack-token", "xoxb- xoxp- xoxa- xoxr- xoxs- xoxe- xoxo- xapp- xoxe.", rb"x[a-z]{1,4}[.-][A-Za-z0-9.-]{10,300}"
    ),
    _form("slack-webhook", "hooks.slack.com/", rb"[a-z.]{1,16}/(?:services|workflows)/[A-Za-z0-9/]{20,100}"),
    _form("stripe-key", "sk_live_ sk_test_ rk_live_ rk_test_", rb"[sr]k_[a-z]{4}_[A-Za-z0-9]{16,250}" + _END),
    _form("stripe-webhook", "whsec_", rb"whsec_[A-Za-z0-9+/=]{24,100}"),
    _form("anthropic-key", "sk-ant-", rb"sk-ant-[A-Za-z0-9_-]{20,300}"),
    _form("openai-key", "sk-proj- sk-svcacct- sk-admin- sk-None-", rb"sk-[A-Za-z]{1,9}-[A-Za-z0-9_-]{20,300}"),
    _form("openai-key", "sk-", rb"sk-(?:or-v1-)?[A-Za-z0-9]{40,120}(?![A-Za-z0-9_-])"),
    _form("google-key", "AIza", rb"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    _form("google-secret", "GOCSPX-", rb"GOCSPX-[A-Za-z0-9_-]{28}(?![A-Za-z0-9_-])"),
    _form("google-token", "ya29.", rb"ya29\.[A-Za-z0-9_.-]{20,2000}"),
    _form("npm-token", "npm_", rb"npm_[A-Za-z0-9]{36}" + _END),
    _form("pypi-token", "pypi-AgE", rb"pypi-AgE[A-Za-z0-9_-]{50,1000}"),
    _form("sendgrid-key", "SG.", rb"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}(?![A-Za-z0-9_-])"),
    _form("mailgun-key", "key-", rb"key-[0-9a-f]{32}" + _END),
    _form("twilio-key", "SK", rb"SK[0-9a-f]{32}" + _END),
    _form("shopify-token", "shpat_ shpca_ shppa_ shpss_", rb"shp[a-z]{2}_[A-Fa-f0-9]{32}" + _END),
    _form("digitalocean-token", "dop_v1_ doo_v1_ dor_v1_", rb"do[a-z]_v1_[a-f0-9]{64}" + _END),
    _form("huggingface-token", "hf_", rb"hf_[A-Za-z0-9]{34,40}" + _END),
    _form("databricks-token", "dapi", rb"dapi[a-f0-9]{32}(?:-\d)?" + _END),
    _form("vault-token", "hvs. hvb. hvr.", rb"hv[sbr]\.[A-Za-z0-9_-]{24,300}"),
    _form("doppler-token", "dp.pt. dp.st. dp.ct.", rb"dp\.[a-z]{2}\.[A-Za-z0-9._-]{40,80}"),
    _form("linear-key", "lin_api_", rb"lin_api_[A-Za-z0-9]{40}" + _END),
    _form("atlassian-token", "ATATT3", rb"ATATT3[A-Za-z0-9_=-]{100,300}"),
    _form("age-key", "AGE-SECRET-KEY-1", rb"AGE-SECRET-KEY-1[0-9A-Z]{58}" + _END),
    _form("azure-key", "AccountKey= SharedAccessKey=", rb"[A-Za-z]{1,16}=([A-Za-z0-9+/]{42,86}={1,2})"),
    _form("telegram-token", ":AA", rb":AA[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-])"),
    _form(
        "json-web-token",
        "eyJ",
        rb"eyJ[A-Za-z0-9_-]{10,2000}\.(?:[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,1000}"
        rb"|[A-Za-z0-9_-]{0,1000}\.[A-Za-z0-9_-]{10,100}\.[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,100})",
    ),
    _form(
        "private-key",
        "-----BEGIN",
        rb"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----[^-]{0,16384}(?:-{1,4}[^-]{1,100}){0,9}"
        rb"(?:-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----)?",
    ),
    _form("url-password", "://", rb"://[^\s/?#@:\"'<>]{0,100}:([^\s/?#@:\"'<>]{3,200})@[^\s]"),
    _form(
        "bearer-token",
        "Bearer bearer",
        rb"[Bb]earer ([A-Za-z0-9_.~+/-]{20,2000}=*)",
    ),
    _form("basic-credentials", "Basic", rb"Basic ([A-Za-z0-9+/]{16,400}={0,2})(?![A-Za-z0-9+/ ])"),
    _form(
        "password",
        "password passwd passphrase secret api_key apikey api-key access_token auth_token client_secret "
        "PASSWORD PASSWD PASSPHRASE SECRET API_KEY APIKEY ACCESS_TOKEN AUTH_TOKEN CLIENT_SECRET "
        "Password Secret Passphrase ApiKey apiKey",
        rb"[A-Za-z_-]{1,60}[\"']?\s{0,4}(?:=|:|=>|:=)\s{0,4}[\"'`]?"
        rb"((?=[^\s\"'`]{0,40}[0-9])(?=[^\s\"'`]{0,40}[A-Za-z])[A-Za-z0-9!@#$%^&*_+/=~?-]{6,200})(?![A-Za-z0-9.(\[{])",
    ),
)

_AT_BEGIN: Final[dict[bytes, list[_Form]]] = {}
for _each in _FORMS:
    for _begin in _each.begins:
        _AT_BEGIN.setdefault(_begin, []).append(_each)

_LONGEST_FIRST: Final = sorted(_AT_BEGIN, key=lambda begin: (-len(begin), begin))
_BEGINS: Final = re.compile(b"|".join(map(re.escape, _LONGEST_FIRST)))

_ANYWHERE: Final = frozenset(
    {b"://", b":AA", b"hooks.slack.com/", b"-----BEGIN"}
    | {begin for form in _FORMS if form.detector in ("password", "aws-secret-key") for begin in form.begins}
)
"""What may stand within a word, or at the end of a longer name, such as `DB_PASSWORD`."""

_WORD_BYTES: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_TOKEN_BYTES: Final = _WORD_BYTES | {45}

_PLACEHOLDER: Final = re.compile(
    rb"(?i)[*x.]{3,}|.{0,9}(?:example|changeme|change-me|placeholder|redacted|dummy|your[-_]|xxxx|\*\*\*).{0,200}"
)
"""What stands where a password would."""


class KeyFinder:
    """Looks for keys of known forms. Safe to share between threads.

    Args:
        named: Whether also for those that are told by what stands before them, such as passwords.
    """

    def __init__(self, *, named: bool = True) -> None:
        self._named = named

    def find(self, data: bytes, *, is_last: bool) -> Iterator[Span]:
        """Returns the keys in data.

        Args:
            data: The data.
            is_last: Whether nothing comes behind it.
        """
        # Where what was found of a form so far ends, so that the next one of it begins no earlier.
        ends: dict[str, int] = {}
        for match in _BEGINS.finditer(data):
            begin, at = match[0], match.start()
            if at and begin not in _ANYWHERE and data[at - 1] in (_TOKEN_BYTES if begin == b"eyJ" else _WORD_BYTES):
                continue
            for form in _AT_BEGIN[begin]:
                group = form.pattern.groups
                found = form.pattern.match(data, at) if self._named or not group else None
                if found is None:
                    continue
                start, end = found.span(group)
                if end == len(data) and not is_last:
                    # It may go on.
                    continue
                before = ends.get(form.detector, 0)
                if end <= before:
                    # It is a part of that.
                    break
                if not (group and _PLACEHOLDER.fullmatch(found[group])):
                    ends[form.detector] = end
                    yield Span(max(start, before), end, "key", form.detector)
                    break

    def hold(self, data: bytes) -> Hold:
        """Returns from where on a key may have begun.

        Args:
            data: The data.
        """
        hold = held_word(data)
        at = data.rfind(b"-----BEGIN", max(0, len(data) - _MOST_KEY_BYTES))
        if at >= 0 and _ENDS_KEY.search(data, at) is None:
            return Hold(min(hold.keep_from, at), min(hold.release_to, at))
        return hold


_ENDS_KEY: Final = re.compile(
    rb"-----END [A-Z0-9 ]{1,60}-----.|-----BEGIN (?!(?:[A-Z0-9]+ ){0,3}PRIVATE|[A-Z ]{0,30}\Z)", re.DOTALL
)
_WORD_AT_END: Final = re.compile(rb"[^\s\"'<>(){}\[\],;|`]*\Z")


def held_word(data: bytes) -> Hold:
    """Returns what must be kept of data that may end within a word.

    Args:
        data: The data.
    """
    tail = data[-_MOST_WORD_BYTES:]
    found = _WORD_AT_END.search(tail)
    length = 0 if found is None else len(found[0])
    if length == _MOST_WORD_BYTES:
        # That is no key: what has come of it is as long as any.
        return Hold(max(0, len(data) - _LOOKED_BACK_BYTES), len(data))
    begin = len(data) - length
    return Hold(max(0, begin - _LOOKED_BACK_BYTES), begin if length >= _LEAST_HELD else len(data))
