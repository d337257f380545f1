"""What a command line grants: options for limits, folders and variables, and the policy that they make."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import click

from stockade._text import printable
from stockade.policy import Mount, parse_count, parse_seconds, parse_size
from stockade.secrets import CAPABILITY, Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.policy import Policy

__all__ = [
    "environment_of",
    "folder_options",
    "isolation_option",
    "limit_options",
    "long_folder_options",
    "policy_with",
    "secret_option",
    "secrets_of",
]


def _all(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns what adds several options, in their order in the help."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_folders = (
    click.option(
        "--dir",
        "directories",
        multiple=True,
        metavar="HOST::GUEST[::rw]",
        help="Grant a folder: read-only, or read-write with ::rw. May be repeated.",
    ),
    click.option(
        "--volume",
        "-v",
        "volumes",
        multiple=True,
        metavar="HOST:GUEST[:ro|rw]",
        help="The same, as docker spells it; read-only unless :rw is given.",
    ),
)


def _variables(*names: str) -> Callable[[Any], Any]:
    return click.option(
        *names,
        "variables",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="Set a variable, or pass on yours of that name. May be repeated.",
    )


folder_options = _all(*_folders, _variables("--env", "-e"))
"""Options for folders and variables, given as `directories`, `volumes` and `variables`."""

long_folder_options = _all(*_folders, _variables("--env", "-E"))
"""The same for a command where -e stands for something else, as `strace` has it."""

secret_option = click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="NAME=env:VAR|file:PATH",
    help="Give the guest a secret as the variable NAME, where the policy names it in custom.secrets: from a variable "
    "of yours, or from a file that is yours alone. What the guest writes of it is redacted. May be repeated.",
)
"""The option for secrets, given as `secrets`."""

limit_options = _all(
    click.option("--fuel", metavar="UNITS", help='Fuel limit: units; "~2s", an estimate; or "unlimited".'),
    click.option("--memory", "-m", metavar="SIZE", help="Memory limit, such as 64MiB or 64m."),
    click.option("--timeout", metavar="TIME", help='Wall-clock limit, such as 500ms or 5s, or "unlimited".'),
)
"""Options for limits, given as `fuel`, `memory` and `timeout`."""


isolation_option = click.option(
    "--isolation",
    type=click.Choice(["inprocess", "process", "bubblewrap"]),
    help="Where it runs: in this process, or in a jailed one of its own, which bubblewrap may be around; by default as "
    "the policy says.",
)
"""The option that says where a run happens."""


def policy_with(
    policy: Policy,
    directories: Sequence[str],
    volumes: Sequence[str],
    *,
    fuel: str | None,
    memory: str | None,
    timeout: str | None,
) -> Policy:
    """Returns a policy with what options change in it.

    Args:
        policy: The policy.
        directories: Folders, as `--dir` takes them.
        volumes: Folders, as `--volume` takes them.
        fuel: A limit of fuel.
        memory: A limit of memory.
        timeout: A limit of time.

    Raises:
        UsageError: An option is not as it should be.
    """
    mounts = [*map(_mount, directories), *map(_volume, volumes)]
    changes: dict[str, Any] = {}
    for option, field, text, parse in (
        ("--fuel", "fuel", fuel, parse_count),
        ("--memory", "memory", memory, _memory),
        ("--timeout", "wall_time", timeout, parse_seconds),
    ):
        if text is not None:
            try:
                # An estimate is for the policy to read.
                changes[field] = text if field == "fuel" and text.startswith("~") else parse(text)
                if changes[field] is None and field == "memory":
                    raise ValueError("memory cannot be unlimited: give a limit, such as 1GiB")
            except ValueError as problem:
                raise click.UsageError(f"{option}: {problem}") from None
    if mounts:
        changes["mounts"] = [*policy.filesystem.mounts, *mounts]
    return policy.replace(**changes)


def _memory(text: str) -> int | None:
    # Docker's units are one small letter, and binary.
    short = re.fullmatch(r"([0-9]+)([bkmg])", text)
    return parse_size(short[1] + {"b": "B", "k": "KiB", "m": "MiB", "g": "GiB"}[short[2]] if short else text)


def _mount(text: str) -> Mount:
    host, separator, rest = text.partition("::")
    guest, _, mode = rest.partition("::")
    if not separator or not host or not guest:
        raise click.UsageError(f"--dir {printable(text)}: write HOST::GUEST, such as ./data::/data, or HOST::GUEST::rw")
    if guest.endswith((":ro", ":rw")):
        raise click.UsageError(f"--dir {printable(text)}: write the rights after two colons, as in HOST::GUEST::rw")
    if mode not in ("", "ro", "rw"):
        raise click.UsageError(f"--dir {printable(text)}: the rights are ro or rw, not {printable(mode)}")
    return Mount(host, guest, "rw" if mode == "rw" else "ro")


def _volume(text: str) -> Mount:
    rest, _, mode = text.rpartition(":")
    if mode.startswith("/"):
        rest, mode = text, "ro"
    host, _, guest = rest.rpartition(":")
    if not host or not guest.startswith("/") or host.endswith(":"):
        first, _, second = text.removesuffix(":ro").removesuffix(":rw").partition(":")
        if first and second and not second.startswith("/") and second not in ("ro", "rw"):
            raise click.UsageError(f"-v {printable(text)}: the path in the guest must be absolute, as in ./data:/data")
        raise click.UsageError(f"-v {printable(text)}: write HOST:GUEST, such as ./data:/data, or HOST:GUEST:rw")
    if mode not in ("ro", "rw"):
        raise click.UsageError(f"-v {printable(text)}: the rights are ro or rw, not {printable(mode)}")
    return Mount(host, guest, "rw" if mode == "rw" else "ro")


def environment_of(variables: Sequence[str]) -> dict[str, str]:
    """Returns the environment that `--env` gives.

    Raises:
        UsageError: A variable is not set.
    """
    environment = {}
    for text in variables:
        name, separator, value = text.partition("=")
        if not separator:
            if name not in os.environ:
                shown = printable(name)
                raise click.UsageError(f"--env {shown}: {shown} is not set in the environment: write NAME=VALUE")
            value = os.environ[name]
        environment[name] = value
    return environment


def secrets_of(entries: Sequence[str], policy: Policy) -> dict[str, Secret]:
    """Returns the secrets that `--secret` gives, by their names.

    Args:
        entries: What it was given.
        policy: The policy that is to name them.

    Raises:
        UsageError: One is none, cannot be read, or is none that the policy names.
    """
    secrets = {}
    for text in entries:
        name, _, source = text.partition("=")
        kind, _, place = source.partition(":")
        if kind not in ("env", "file") or not place:
            # What stands there may be the secret itself, and is not told.
            raise click.UsageError("--secret takes NAME=env:VAR or NAME=file:PATH, and never the secret itself")
        if not policy.grants(CAPABILITY, name):
            raise click.UsageError(
                f'--secret {printable(name)}: the policy does not name it: add secrets = ["{printable(name)}"] to '
                "[custom] there"
            )
        read = Secret.from_environment if kind == "env" else Secret.from_file
        secrets[name] = read(place, env=name)
    return secrets
