"""`stockade:http`: what compiled guests import to make requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast

from stockade.egress._exchange import Request
from stockade.egress._failure import FailureCode, RequestFailed
from stockade.egress._headers import read_headers
from stockade.host import U32, CallRefused, HostCall, network_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.egress._exchange import Exchange
    from stockade.egress._guest import GuestNetwork

__all__ = ["HttpFunction", "http_functions"]

_FOLLOW: Final = 1
"""The flag that has redirects followed."""

_MOST_READ: Final = 16 << 20


class HttpFunction(NamedTuple):
    """A function of `stockade:http`.

    Attributes:
        name: Its name there.
        function: What is called.
    """

    name: str
    function: Callable[..., object]


def _network(call: HostCall) -> GuestNetwork:
    return cast("GuestNetwork", network_of(call))


def _failed(network: GuestNetwork, problem: RequestFailed) -> int:
    """Tells a guest what has become of its request, or ends its run, where the policy says so."""
    if problem.violation is not None and problem.violation.action == "stop":
        raise CallRefused(problem.violation)
    network.reason = str(problem)
    return int(problem.code)


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise RequestFailed(FailureCode.INVALID, f"the {what} is no text in UTF-8") from None


def _given(call: HostCall, data: bytes, address: int, room: int) -> int:
    """Writes what fits; returns how many bytes there are, so that a guest can come back with more room."""
    if data and room:
        call.memory.write(address, data[:room])
    return len(data)


def _head(exchange: Exchange) -> bytes:
    answer = exchange.head()
    lines = [f"{name}: {value}\n" for name, value in answer.headers]
    return "".join(lines).encode()


async def _send(
    call: HostCall, method: bytes, url: bytes, headers: bytes, body: bytes, flags: U32, milliseconds: U32
) -> int:
    network = _network(call)
    number = None
    try:
        request = Request(
            _text(method, "method"),
            _text(url, "URL"),
            read_headers(_text(headers, "header")),
            body,
            follow=bool(flags & _FOLLOW),
            seconds=milliseconds / 1000 if milliseconds else None,
        )
        number, exchange = network.begin(request)
        await exchange.answered()
    except RequestFailed as problem:
        if number is not None:
            network.close(number)
        return _failed(network, problem)
    except BaseException:
        if number is not None:
            network.close(number)
        raise
    return number


async def _read(call: HostCall, response: int, address: U32, room: U32) -> int:
    network = _network(call)
    try:
        piece = await network.exchange(response).read(min(room, _MOST_READ))
    except RequestFailed as problem:
        return _failed(network, problem)
    return _given(call, piece, address, room)


def _status(call: HostCall, response: int) -> int:
    network = _network(call)
    try:
        return network.exchange(response).head().status
    except RequestFailed as problem:
        return _failed(network, problem)


def _headers(call: HostCall, response: int, address: U32, room: U32) -> int:
    network = _network(call)
    try:
        return _given(call, _head(network.exchange(response)), address, room)
    except RequestFailed as problem:
        return _failed(network, problem)


def _url(call: HostCall, response: int, address: U32, room: U32) -> int:
    network = _network(call)
    try:
        return _given(call, network.exchange(response).head().url.encode(), address, room)
    except RequestFailed as problem:
        return _failed(network, problem)


def _reason(call: HostCall, address: U32, room: U32) -> int:
    return _given(call, _network(call).reason.encode(), address, room)


def _close(call: HostCall, response: int) -> None:
    _network(call).close(response)


def http_functions() -> Sequence[HttpFunction]:
    """Returns the functions of the module."""
    return (
        HttpFunction("send", _send),
        HttpFunction("read", _read),
        HttpFunction("status", _status),
        HttpFunction("headers", _headers),
        HttpFunction("url", _url),
        HttpFunction("error", _reason),
        HttpFunction("close", _close),
    )
