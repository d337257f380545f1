"""A policy that was learned as a document: each field with why it says what it says."""

from __future__ import annotations

import posixpath
from textwrap import wrap
from typing import TYPE_CHECKING

from stockade.policy import Policy, write_value

if TYPE_CHECKING:
    from stockade.learning._learn import Learned
    from stockade.policy import Mount, Plain

__all__ = ["learned_toml"]

_WIDTH = 100


def learned_toml(learned: Learned) -> str:
    """Returns a learned policy as a document: what was learned, and what differs from the default.

    Args:
        learned: The policy, and why it says what it says.
    """
    document, default = learned.policy.to_document(), Policy().to_document()
    head: list[str] = []
    sections: list[str] = []
    for name, value in document.items():
        if not isinstance(value, dict):
            if name in learned.reasons or value != default[name]:
                head += _field(name, name, value, learned)
            continue
        usual = default[name]
        assert isinstance(usual, dict)
        lines = []
        for key, inner in value.items():
            path = f"{name}.{key}"
            if path in learned.reasons or inner != usual.get(key):
                lines += _field(path, key, inner, learned)
        if lines:
            sections += ["", f"[{name}]", *lines]
    return "\n".join([*head, *sections]) + "\n"


def _field(path: str, key: str, value: Plain, learned: Learned) -> list[str]:
    why = learned.reasons.get(path, "as it was given")
    comments = [f"# {line}" for text in why.split("\n") for line in wrap(text, _WIDTH)]
    if path == "filesystem.mounts" and learned.policy.filesystem.mounts:
        return [
            *comments,
            f"{key} = [",
            *(line for mount in learned.policy.filesystem.mounts for line in _mount(mount, learned)),
            "]",
        ]
    return [*comments, f"{key} = {write_value(value)}"]


def _mount(mount: Mount, learned: Learned) -> list[str]:
    """A mount, with each path that may be named on a line of its own, and why."""
    document = mount.to_document()
    paths = document.pop("only", None)
    fields = ", ".join(f"{name} = {write_value(value)}" for name, value in document.items())
    if not isinstance(paths, list) or not paths:
        return [f"    {{ {fields}{'' if paths is None else ', only = []'} }},"]
    lines = []
    for path in mount.only or ():
        why = learned.reasons.get(posixpath.join(mount.guest, path), "as it was learned before")
        lines.append(f"        {write_value(path)},  # {why}")
    return [f"    {{ {fields}, only = [", *lines, "    ] },"]
