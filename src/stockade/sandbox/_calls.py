"""The one-call forms `run` and `call`."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from stockade.sandbox._checks import check_keywords
from stockade.sandbox._sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal, Never

    from stockade.audit import AuditLog
    from stockade.execution import Argument, OnOutput, Returns, Stdin
    from stockade.modules import Source
    from stockade.policy import PolicyLike
    from stockade.report import Report, Value
    from stockade.sandbox._snapshot import Snapshot

__all__ = ["call", "run"]


def run(
    module: Source | Snapshot,
    args: Sequence[str | bytes] = (),
    *,
    stdin: Stdin = b"",
    env: Mapping[str, str] | None = None,
    on_stdout: OnOutput | None = None,
    on_stderr: OnOutput | None = None,
    policy: PolicyLike = "default",
    audit: AuditLog | None = None,
    **_unknown: Never,
) -> Report:
    """Runs a WASI command once. What the guest did is reported, whatever it was; the caller's mistakes are raised.

    Args:
        module: Path of a module (`.wasm`, or `.wat` in the text format), its bytes in either format, or a loaded
            module; or a snapshot.
        args: Arguments for the guest, after its name.
        stdin: What it reads from its standard input.
        env: Its environment.
        on_stdout: Is given stdout in pieces as they are written.
        on_stderr: The same for stderr.
        policy: A policy, the name of a preset, or the path of a policy file.
        audit: Is told of what happens.

    Returns:
        What happened.

    Raises:
        StockadeError: The caller did something wrong: no such file, not WebAssembly, an impossible policy.
    """
    check_keywords("run()", _unknown)
    with Sandbox(policy, audit=audit) as sandbox:
        return sandbox.run(module, args, stdin=stdin, env=env, on_stdout=on_stdout, on_stderr=on_stderr)


@overload
def call(
    module: Source | Snapshot,
    export: str,
    *args: Argument,
    returns: Literal["text"],
    policy: PolicyLike = "default",
    audit: AuditLog | None = None,
) -> str: ...


@overload
def call(
    module: Source | Snapshot,
    export: str,
    *args: Argument,
    returns: Literal["bytes"],
    policy: PolicyLike = "default",
    audit: AuditLog | None = None,
) -> bytes: ...


@overload
def call(
    module: Source | Snapshot,
    export: str,
    *args: Argument,
    returns: Returns | None = None,
    policy: PolicyLike = "default",
    audit: AuditLog | None = None,
) -> Value: ...


def call(
    module: Source | Snapshot,
    export: str,
    *args: Argument,
    returns: Returns | None = None,
    policy: PolicyLike = "default",
    audit: AuditLog | None = None,
    **_unknown: object,
) -> Value:
    """Calls an exported function once and returns its value.

    It is for the value, so it raises for what the guest did, too; `run`, and everything else, reports that (see
    `Sandbox`).

    Args:
        module: As to `run`.
        export: Name of the function.
        *args: What is passed, as to `Sandbox.call`.
        returns: What the result is read as, as there.
        policy: A policy, the name of a preset, or the path of a policy file.
        audit: Is told of what happens.

    Returns:
        What `Report.value` says; a text or bytes where `returns` asks for them.

    Raises:
        GuestError: The guest failed; it carries the report.
        StockadeError: The caller did something wrong.
    """
    check_keywords("call()", _unknown)
    with Sandbox(policy, audit=audit) as sandbox:
        return sandbox.call(module, export, *args, returns=returns).check().value
