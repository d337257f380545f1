"""What leaves a run of code: made a result of, as its policy lets it leave."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import msgspec

from stockade.guests._result import CodeResult, Frame, FrameError, pictures, read_frame
from stockade.report import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.gate import GateRun
    from stockade.guests._folder import PrivateFolder
    from stockade.guests._tools import Toolbox
    from stockade.report import PolicyInfo, Report
    from stockade.runner import RunControl

__all__ = ["gated", "result_of"]


def result_of(
    report: Report,
    told: PolicyInfo,
    folder: PrivateFolder,
    toolbox: Toolbox,
    patterns: Sequence[str],
    control: RunControl,
    *,
    survived: bool = False,
) -> CodeResult:
    """Makes a result of a report, and of what the guest left in its folder, as it may leave."""
    handed = report.value
    report = msgspec.structs.replace(report, policy=told, value=None)
    files, left_out = folder.collect(patterns)
    frame = None
    if report.outcome in (Outcome.OK, Outcome.EXIT) or report.quarantine:
        data, most = toolbox.take_frame(), toolbox.most_bytes
        if data is None and isinstance(handed, bytes):
            data = handed
        if data is None:
            data = folder.take_result(most, again=survived)
        frame = read_frame(data if data is not None and len(data) <= most else None)
    if control.gate is not None:
        before = len(report.findings)
        report, frame, files, late = gated(control.gate, report, frame, files)
        left_out += late
        if control.on_found is not None:
            control.on_found(report.findings[before:])
        toolbox.forget_unknown()
    return CodeResult.of(report, frame, files, left_out, toolbox, survived=survived)


def gated(
    gate: GateRun, report: Report, frame: Frame | str | None, files: dict[str, bytes]
) -> tuple[Report, Frame | str | None, dict[str, bytes], int]:
    """Has what code gives looked at, and returns it as it may leave, and how many files could not be looked at."""
    from stockade.gate import Given

    if not isinstance(frame, Frame):
        given = Given(None, () if frame is None else (frame,), files)
        report = gate.release_given(report, given)
        return report, given.texts[0] if given.texts else None, given.files, given.left_out
    error = frame.error
    given = Given(
        frame.value,
        () if error is None else (error.type, error.message, error.traceback),
        files,
        pictures(frame.figures),
    )
    report = gate.release_given(report, given)
    if error is not None:
        kind, message, traceback = given.texts
        error = FrameError(kind, message, traceback, error.line)
    figures = [base64.b64encode(data).decode() for data in given.figures]
    frame = msgspec.structs.replace(frame, value=given.value, error=error, figures=figures)
    return report, frame, given.files, given.left_out
