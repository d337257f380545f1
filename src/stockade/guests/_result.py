"""What running code gave, and how it is read from a guest that may lie."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated, cast

import msgspec

from stockade._json import Json, JsonRecord
from stockade._text import printable
from stockade.errors import CodeFailed
from stockade.guests._tools import ToolCall  # noqa: TC001 - the type of a field is asked for by who reads the class
from stockade.report import Outcome, Report

if TYPE_CHECKING:
    from typing import Self

    from stockade.guests._tools import Toolbox

__all__ = ["FRAME_ROOM_BYTES", "CodeError", "CodeResult", "Frame", "FrameError", "pictures", "read_frame"]

FRAME_ROOM_BYTES = 16 << 20
"""What a frame may have beside its value: texts of an error, figures, and escapes."""

_Line = Annotated[int, msgspec.Meta(ge=-1, le=1 << 31)]


class FrameError(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A problem of the user's code, as the guest tells it."""

    type: str
    message: str
    traceback: str
    line: _Line | None


class Frame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a guest leaves behind for one piece of code. It says nothing about anything but this code.

    Attributes:
        value: What the last expression is.
        shown: Whether that is shown as text, because JSON does not know it.
        error: What it raised.
        exit: The exit code that it asked for.
        figures: Pictures that it drew, in base64.
    """

    value: object
    shown: bool
    error: FrameError | None
    exit: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
    figures: Annotated[list[str], msgspec.Meta(max_length=100)] = []


_decoder: msgspec.json.Decoder[Frame] = msgspec.json.Decoder(Frame, strict=True)


def read_frame(data: bytes | None) -> Frame | str | None:
    """Returns the frame that a guest has left; or what is wrong with it; None where there is none.

    Args:
        data: Its bytes; None where they cannot be read, or are too many.
    """
    if data is None:
        return "it is no file, or too long"
    if not data:
        return None
    try:
        return _decoder.decode(data)
    except RecursionError:
        return "it is nested too deep"
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as problem:
        return printable(str(problem))


class CodeError(msgspec.Struct, frozen=True):
    """Why code did not come to its end.

    Attributes:
        type: The name of the exception, such as `ValueError`; `Stopped`, where the run was stopped by a limit, by the
            policy or by the caller; `Exit`, where it ended itself before it had come to its end.
        message: What the exception says.
        traceback: The traceback as the language tells it, with the lines of the user's code only; may be empty.
        line: The last line of the user's code in it; None where there is none.
    """

    type: str
    message: str
    traceback: str = ""
    line: int | None = None

    def __str__(self) -> str:
        if self.type == "Stopped":
            return self.message
        return self.traceback.rstrip("\n") or f"{self.type}: {self.message}"


class CodeResult(msgspec.Struct, JsonRecord, frozen=True):
    """What running code gave. All of it but the report is what the guest says, and holds for this run only.

    Attributes:
        value: What the last expression of the code is, as JSON knows it: None, bool, int, float, str, list and dict.
            What JSON does not know is its `repr`; so is what would be longer than `limits.stdout`, cut.
        value_is_repr: Whether it is such a text.
        stdout: What it wrote to stdout; bytes that are not UTF-8 are replaced.
        stderr: The same of stderr.
        error: Why it did not come to its end; None where it did.
        exit_code: 0; what it gave to `sys.exit`; 1 after an exception; None where the run was stopped.
        files: The files under `/workspace` that `collect` asked for, by their names there.
        files_left_out: How many more matched that were too many, too long, or no plain files of their own, or that the
            gate of the policy could not look at in time.
        figures: Figures that matplotlib drew, as PNG.
        tool_calls: The calls of tools, as they began; at most 1,000.
        tool_call_count: How many there were.
        survived: For a session: whether its state is still there, so that it can go on.
        report: What the run did and used.
    """

    value: Json
    value_is_repr: bool
    stdout: str
    stderr: str
    error: CodeError | None
    exit_code: int | None
    files: dict[str, bytes]
    files_left_out: int
    figures: tuple[bytes, ...]
    tool_calls: tuple[ToolCall, ...]
    tool_call_count: int
    survived: bool
    report: Report

    def __repr__(self) -> str:
        """Shows what there is, and of the report the outcome only."""
        shown = {
            name: value
            for name in self.__struct_fields__
            if name not in ("value", "files", "figures", "report") and (value := getattr(self, name))
        }
        shown = {"value": self.value, **shown}
        if self.files:
            shown["files"] = sorted(self.files)
        if self.figures:
            shown["figures"] = len(self.figures)
        fields = "".join(f"{name}={value!r}, " for name, value in shown.items())
        return f"CodeResult({fields}report=<Report: {self.report.summary()}>)"

    @property
    def ok(self) -> bool:
        """Whether the code came to its end."""
        return self.error is None

    def check(self) -> Self:
        """Returns the result if the code came to its end.

        Raises:
            GuestError: It did not. `CodeFailed` where it raised an exception or left before its end: the message has
                the end of the traceback, and the exception has the `result`. `LimitExceeded`, `Denied`, `Cancelled` or
                `GuestTrap` where it was stopped, as `Report.check` raises them, but that the message names the code,
                not the interpreter.
        """
        if self.error is None:
            return self
        if self.report.outcome not in (Outcome.OK, Outcome.EXIT):
            self.report.check(_SUBJECT)
        raise CodeFailed(f"{_said(self.error)}{_last_lines(self.error)}", self)

    def to_json(self) -> str:
        """Returns the result as JSON: files and figures in base64, the report as `Report.to_json` writes it."""
        document = {name: getattr(self, name) for name in self.__struct_fields__ if name != "report"}
        document["report"] = msgspec.Raw(self.report.to_json().encode())
        return msgspec.json.encode({"ok": self.ok, **document}).decode()

    @classmethod
    def of(
        cls,
        report: Report,
        frame: Frame | str | None,
        files: dict[str, bytes],
        left_out: int,
        toolbox: Toolbox,
        *,
        survived: bool = False,
    ) -> CodeResult:
        """Makes a result of what the host knows and what the guest has left.

        Args:
            report: What the host knows.
            frame: What the guest has left.
            files: What was collected.
            left_out: How many files were not.
            toolbox: Which tools it called.
            survived: Whether the state of a session is still there.
        """
        value: Json = None
        is_repr, error, code = False, None, report.exit_code
        figures: tuple[bytes, ...] = ()
        if report.outcome not in (Outcome.OK, Outcome.EXIT):
            error = CodeError("Stopped", f"{report.summary()}")
        elif isinstance(frame, Frame):
            value, is_repr, code = cast("Json", frame.value), frame.shown, frame.exit
            figures = pictures(frame.figures)
            if frame.error is not None:
                told = frame.error
                error = CodeError(told.type, told.message, told.traceback, told.line)
            elif frame.exit:
                error = CodeError("SystemExit", str(frame.exit))
            elif report.outcome is Outcome.EXIT:
                code, error = report.exit_code, _ended(report)
        elif frame is None:
            error = _ended(report)
        else:
            error = CodeError("Exit", f"the result that the code has left cannot be read: {frame}")
        if error is not None and code == 0 and error.type != "SystemExit":
            code = 1
        return cls(
            value=value,
            value_is_repr=is_repr,
            stdout=report.stdout.decode("utf-8", "replace"),
            stderr=report.stderr.decode("utf-8", "replace"),
            error=error,
            exit_code=code,
            files=files,
            files_left_out=left_out,
            figures=figures,
            tool_calls=tuple(toolbox.calls),
            tool_call_count=toolbox.count,
            survived=survived,
            report=report,
        )


def _ended(report: Report) -> CodeError:
    return CodeError("Exit", f"the code ended the interpreter with exit code {report.exit_code or 0}")


def _said(error: CodeError) -> str:
    """Says in one line why code did not come to its end."""
    where = "" if error.line is None else f", in line {error.line}"
    if error.type == "Exit":
        return printable(error.message, _LAST_SHOWN)
    if error.type == "SystemExit":
        return f"the code left with exit code {printable(error.message, _LAST_SHOWN)}"
    message = f": {printable(error.message, _LAST_SHOWN)}" if error.message else ""
    return f"the code raised {printable(error.type)}{message}{where}"


def _last_lines(error: CodeError) -> str:
    """Returns the end of a traceback, each line marked, so that it can forge none."""
    lines = [line for line in error.traceback.splitlines() if line.strip()]
    return "".join(f"\n  | {printable(line, _LAST_SHOWN)}" for line in lines[-_LAST_LINES:])


_SUBJECT = "the code"
_LAST_LINES = 12
_LAST_SHOWN = 200

_MOST_PICTURE_BYTES = 32 << 20


def pictures(texts: list[str]) -> tuple[bytes, ...]:
    """Returns those of the pictures that are PNG.

    Args:
        texts: What the guest gives as such, in base64.
    """
    found = []
    for text in texts:
        try:
            data = base64.b64decode(text, validate=True)
        except ValueError:
            continue
        if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) <= _MOST_PICTURE_BYTES:
            found.append(data)
    return tuple(found)
