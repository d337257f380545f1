"""Requests over the network that code makes: by messages to the host, as it calls tools."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from stockade.egress import FailureCode, Request, RequestFailed
from stockade.guests._tools import NETWORK_MARK
from stockade.host import CallRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.egress import Exchange, GuestNetwork

__all__ = ["NetworkDesk", "PendingAnswer"]

_MOST_PIECE_BYTES: Final = 4 << 20


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What code asks for.

    Attributes:
        do: What is to be done.
        response: Which answer it is about.
        method: The method of a request.
        url: Its URL.
        headers: Its headers.
        follow: Whether redirects are followed.
        seconds: How long the code would wait.
        most: How many bytes of the body it would take.
        form: What it can hold: bytes, a text with a character for each of them, or the text that they are in UTF-8.
    """

    do: Literal["send", "read", "close"]
    response: int = 0
    method: str = "GET"
    url: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    follow: bool = False
    seconds: float | None = None
    most: int = _MOST_PIECE_BYTES
    form: Literal["bytes", "characters", "text"] = "bytes"


class PendingAnswer:
    """What code has asked for, until there is an answer.

    Args:
        is_ready: Says whether there is one.
        take: Takes it: what is said, and bytes.
        waiters: What is called, from any thread, when there may be one.
    """

    def __init__(
        self,
        is_ready: Callable[[], bool],
        take: Callable[[], tuple[dict[str, object], bytes]],
        waiters: list[Callable[[], object]],
    ) -> None:
        self.is_ready = is_ready
        self._take = take
        self.waiters = waiters

    def answer(self) -> bytes:
        """Returns what is told to the code.

        Raises:
            CallRefused: The policy ends the run for what was asked.
        """
        try:
            said, data = self._take()
        except RequestFailed as problem:
            if problem.violation is not None and problem.violation.action == "stop":
                raise CallRefused(problem.violation) from None
            said, data = {"error": str(problem), "code": int(problem.code)}, b""
        return msgspec.json.encode(said) + b"\n" + data


class NetworkDesk:
    """Serves the code of one interpreter, which is given a guest each time that it runs."""

    def __init__(self) -> None:
        self._network: GuestNetwork | None = None
        self._decoders: dict[int, codecs.IncrementalDecoder] = {}

    def reach(self, network: GuestNetwork) -> None:
        """Has requests made as those of a guest.

        Args:
            network: What it has of the network.
        """
        self._network = network
        self._decoders = {}

    def begin(self, message: bytes) -> PendingAnswer:
        """Begins what code asks for.

        Args:
            message: What it has called the host with.
        """
        try:
            return self._begin(message)
        except RequestFailed as problem:
            return _at_once(problem)

    def _begin(self, message: bytes) -> PendingAnswer:
        head, _, body = message.removeprefix(NETWORK_MARK).partition(b"\n")
        try:
            asked = msgspec.json.decode(head, type=_Message)
        except (msgspec.MsgspecError, RecursionError) as problem:
            raise RequestFailed(FailureCode.INVALID, f"the request is none: {problem}") from None
        network = self._network
        if network is None:
            raise RequestFailed(FailureCode.HANDLE, "there is no guest that could ask")
        if asked.do == "close":
            network.close(asked.response)
            self._decoders.pop(asked.response, None)
            return _at_once({})
        if asked.do == "send":
            return self._send(network, asked, body)
        exchange = network.exchange(asked.response)
        return PendingAnswer(exchange.is_readable, lambda: self._piece(exchange, asked), exchange.waiters)

    def _send(self, network: GuestNetwork, asked: _Message, body: bytes) -> PendingAnswer:
        if asked.form == "characters":
            try:
                body = body.decode().encode("latin-1")
            except UnicodeError:
                raise RequestFailed(FailureCode.INVALID, "the body has characters that are no bytes") from None
        seconds = None if asked.seconds is None else max(0.0, asked.seconds)
        request = Request(asked.method, asked.url, asked.headers, body, follow=asked.follow, seconds=seconds)
        number, exchange = network.begin(request)

        def head() -> tuple[dict[str, object], bytes]:
            try:
                answer = exchange.head()
            except RequestFailed:
                network.close(number)
                raise
            return {**answer._asdict(), "response": number}, b""

        return PendingAnswer(exchange.is_answered, head, exchange.waiters)

    def _piece(self, exchange: Exchange, asked: _Message) -> tuple[dict[str, object], bytes]:
        data = exchange.take(max(1, min(asked.most, _MOST_PIECE_BYTES)))
        said: dict[str, object] = {"end": not data}
        if asked.form == "characters":
            return said, data.decode("latin-1").encode()
        if asked.form == "text":
            decoder = self._decoders.setdefault(asked.response, codecs.getincrementaldecoder("utf-8")("replace"))
            return said, decoder.decode(data, final=not data).encode()
        return said, data


def _at_once(what: dict[str, object] | RequestFailed) -> PendingAnswer:
    def take() -> tuple[dict[str, object], bytes]:
        if isinstance(what, RequestFailed):
            raise what
        return what, b""

    return PendingAnswer(lambda: True, take, [])
