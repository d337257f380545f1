"""Where runs happen: backends behind one small interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from stockade.execution import NO_INPUTS, Inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.execution import Argument, Returns, Streams
    from stockade.modules import Module

__all__ = ["Task"]


class Task(NamedTuple):
    """A run.

    Attributes:
        module: The module.
        inputs: What the guest is given.
        streams: What serves its output and input in the place of the callbacks among its inputs.
        export: The function that is called; None for a command.
        args: What it is passed.
        returns: What its result is read as.
    """

    module: Module
    inputs: Inputs = NO_INPUTS
    streams: Streams | None = None
    export: str | None = None
    args: Sequence[Argument] = ()
    returns: Returns | None = None
