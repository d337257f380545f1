"""The one-call forms `run_python` and `run_javascript`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.guests._javascript import JavaScript
from stockade.guests._keywords import LANGUAGE_KEYWORDS
from stockade.guests._python import Python
from stockade.sandbox import check_keywords

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Never

    from stockade._bytes import BytesLike
    from stockade.audit import AuditLog
    from stockade.egress import Credential
    from stockade.guests._result import CodeResult
    from stockade.guests._task import Plain
    from stockade.policy import PolicyLike
    from stockade.secrets import Secret

__all__ = ["run_javascript", "run_python"]


def run_python(
    code: str,
    *,
    files: Mapping[str, BytesLike] | None = None,
    inputs: Mapping[str, Plain] | None = None,
    args: Sequence[str] = (),
    stdin: BytesLike = b"",
    env: Mapping[str, str] | None = None,
    collect: Sequence[str] = (),
    policy: PolicyLike = "default",
    audit: AuditLog | None = None,
    credentials: Mapping[str, Credential] | None = None,
    secrets: Mapping[str, str | bytes | Secret] | None = None,
    **_unknown: Never,
) -> CodeResult:
    """Runs Python code once, in the interpreter that is installed.

    Args:
        code: As to `Python.run`; so are all other arguments.
        files: Files that it finds in `/workspace`.
        inputs: Variables that it finds.
        args: Arguments.
        stdin: Its standard input.
        env: Its environment.
        collect: Which files below `/workspace` are returned.
        policy: What it may do.
        audit: Is told of what happens.
        credentials: What the host adds to its requests.
        secrets: Secrets that are looked for in what leaves it.

    Returns:
        What came of it.

    Raises:
        StockadeError: The caller did something wrong.
    """
    check_keywords("run_python()", _unknown, {name: f"Python({name}=...)" for name in LANGUAGE_KEYWORDS})
    interpreter = Python(policy, audit=audit, credentials=credentials, secrets=secrets)
    return interpreter.run(code, files=files, inputs=inputs, args=args, stdin=stdin, env=env, collect=collect)


def run_javascript(
    code: str,
    *,
    files: Mapping[str, BytesLike] | None = None,
    inputs: Mapping[str, Plain] | None = None,
    args: Sequence[str] = (),
    stdin: BytesLike = b"",
    env: Mapping[str, str] | None = None,
    collect: Sequence[str] = (),
    policy: PolicyLike = "default",
    audit: AuditLog | None = None,
    credentials: Mapping[str, Credential] | None = None,
    secrets: Mapping[str, str | bytes | Secret] | None = None,
    **_unknown: Never,
) -> CodeResult:
    """Runs JavaScript code once, in the interpreter that is installed.

    Args:
        code: As to `JavaScript.run`; so are all other arguments.
        files: Files that it finds in `/workspace`.
        inputs: Variables that it finds.
        args: Arguments.
        stdin: Its standard input.
        env: Its environment.
        collect: Which files below `/workspace` are returned.
        policy: What it may do.
        audit: Is told of what happens.
        credentials: What the host adds to its requests.
        secrets: Secrets that are looked for in what leaves it.

    Returns:
        What came of it.

    Raises:
        StockadeError: The caller did something wrong.
    """
    check_keywords("run_javascript()", _unknown, {name: f"JavaScript({name}=...)" for name in LANGUAGE_KEYWORDS})
    interpreter = JavaScript(policy, audit=audit, credentials=credentials, secrets=secrets)
    return interpreter.run(code, files=files, inputs=inputs, args=args, stdin=stdin, env=env, collect=collect)
