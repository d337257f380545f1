"""`stockade run --secret`: given by name and from where it lies, and never told.

Holds P-SECRET-1.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests._commands import ran
from tests._small_guests import ENVIRONMENT

if TYPE_CHECKING:
    from pathlib import Path

VALUE = "v4lue-of-a-secret-97531"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a guest that writes its environment, and a policy that names a secret."""
    (tmp_path / "show.wat").write_text(ENVIRONMENT)
    (tmp_path / "policy.toml").write_text('[custom]\nsecrets = ["API_KEY"]\n')
    (tmp_path / "key").write_text(f"{VALUE}\n")
    (tmp_path / "key").chmod(0o600)
    return tmp_path


@pytest.mark.parametrize("source", ["env:KEY_OF_THE_HOST", "file:key"])
def test_a_guest_is_given_it_and_what_it_writes_is_redacted(folder: Path, source: str) -> None:
    words = ["run", "--policy", "policy.toml", "--secret", f"API_KEY={source}", "show.wat"]
    done = ran(words, cwd=folder, env={**os.environ, "KEY_OF_THE_HOST": VALUE})

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"API_KEY=[redacted:API_KEY]")
    assert VALUE.encode() not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("secret", "policy", "message"),
    [
        (VALUE, "policy.toml", b"--secret takes NAME=env:VAR or NAME=file:PATH, and never the secret itself"),
        (f"API_KEY={VALUE}", "policy.toml", b"and never the secret itself"),
        ("API_KEY=file:", "policy.toml", b"and never the secret itself"),
        ("API_KEY=env:NO_KEY", "policy.toml", b"there is no environment variable NO_KEY"),
        ("API_KEY=file:show.wat", "policy.toml", b"show.wat cannot be read as a secret"),
        ("OTHER=file:key", "policy.toml", b'the policy does not name it: add secrets = ["OTHER"] to [custom] there'),
        ("API_KEY=file:key", "default", b"--secret API_KEY: the policy does not name it"),
    ],
)
def test_what_cannot_be_given_is_told_without_it(folder: Path, secret: str, policy: str, message: bytes) -> None:
    """The attack: a value that was written in the wrong place, and is told to whoever reads the log."""
    done = ran(["run", "--policy", policy, "--secret", secret, "show.wat"], cwd=folder)

    assert done.returncode == 125
    assert message in done.stderr.replace(b"\n", b" ")
    assert VALUE.encode() not in done.stdout + done.stderr
