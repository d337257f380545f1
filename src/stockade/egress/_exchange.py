"""One request and its answer: sent to the address that was checked, over a connection of its own."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, Final, NamedTuple

from stockade._locks import new_lock
from stockade._text import printable
from stockade.egress._decision import Refusal, pin, refusal_of
from stockade.egress._failure import FailureCode, RequestFailed
from stockade.egress._headers import Headers, checked_headers, for_another_origin, headers_sent, told_headers
from stockade.egress._messages import Gathered, redirect_of, told, written
from stockade.egress._scrubber import Scrubber
from stockade.egress._url import BadUrl, Target, parse_url
from stockade.runner import AwaitedCall
from stockade.runner.loop import background_loop, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import h11

    from stockade.egress._client import Client
    from stockade.egress._decision import RequestPlan
    from stockade.egress._meter import Meter
    from stockade.policy import Address, Network

__all__ = ["Answer", "Exchange", "Request"]

_PIECE_BYTES: Final = 64 << 10
_AHEAD_BYTES: Final = 256 << 10
"""How much of an answer is taken before the guest has asked for it."""

_VERSIONS: Final = (b"1.1", b"1.0")
_PARTIAL: Final = 206
_MOST_ADDRESSES: Final = 8
"""How many addresses of a name are tried: it may stand for thousands, of hosts that a guest should not knock at."""

_MOST_REDIRECTS: Final = 10
_MOST_INTERIM: Final = 20
_METHOD_SHOWN: Final = 20
"""Characters of a refused method that a report tells."""

_UNSEARCHABLE: Final = frozenset({"accept-encoding", "range", "if-range"})
"""Headers that ask for an answer in which no secret would be found."""

_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})


class Request(NamedTuple):
    """What a guest asks for.

    Attributes:
        method: The method.
        url: The URL, as the guest wrote it.
        headers: The headers, likewise.
        body: The body.
        follow: Whether redirects are followed.
        seconds: How long the guest would wait; None for as long as its policy permits.
    """

    method: str
    url: str
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    follow: bool = True
    seconds: float | None = None


class Answer(NamedTuple):
    """The head of an answer.

    Attributes:
        status: The status code.
        reason: What follows it.
        headers: The headers, without those of how the message was sent.
        url: Where it comes from, after redirects.
    """

    status: int
    reason: str
    headers: Headers
    url: str


class Exchange:
    """A request under way. It is made on the network's loop; whoever asks may be on any thread.

    Args:
        client: What it has in common with others.
        network: What the policy permits.
        meter: Counts what it uses.
        request: What is asked for.
        most_seconds: How long it may take.

    Attributes:
        waiters: What is called, on the network's thread, when there is something new.
        answer: The head of the answer, once it is there.
        problem: Why there is no answer, or no more of it.
    """

    def __init__(
        self, client: Client, network: Network, meter: Meter, request: Request, most_seconds: float | None
    ) -> None:
        self._client = client
        self._network = network
        self._meter = meter
        self._request = request
        self._most_seconds = most_seconds
        self.waiters: list[Callable[[], object]] = []
        self.answer: Answer | None = None
        self.problem: RequestFailed | None = None
        # Of the pieces, which one thread puts and another takes.
        self._lock = new_lock()
        self._pieces: deque[bytes] = deque()
        self._ahead = 0
        self._is_whole = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_room: asyncio.Event | None = None
        self._call = AwaitedCall(self._perform, (), Context(), self._tell)
        self._subject = ""
        self._moved = False
        # Looks for all credentials in every answer: an API may have been told those of another request.
        self._scrubber = Scrubber(client.credentials.finder) if client.credentials else None

    def begin(self) -> None:
        """Begins it.

        Raises:
            EngineError: There is no thread for it.
        """
        background_loop().begin(self._call)

    def close(self) -> None:
        """Ends it: its connection is closed, and what is left of the answer dropped. May be called at any time."""
        background_loop().stop(self._call)
        with self._lock:
            self._pieces.clear()

    def is_kept(self) -> bool:
        """Whether it has a connection, or something that the guest has not taken."""
        return bool(self._pieces) or not self._call.is_over()

    def is_answered(self) -> bool:
        """Whether there is the head of an answer, or there will be none."""
        return self.answer is not None or self.problem is not None or self._call.is_over()

    def is_readable(self) -> bool:
        """Whether something of the answer can be taken, or there is no more of it."""
        return bool(self._pieces) or self._is_whole or self.problem is not None or self._call.is_over()

    async def answered(self) -> Answer:
        """Waits for the head of the answer.

        Raises:
            RequestFailed: There is none.
        """
        await wait_until(self.is_answered, self.waiters)
        return self.head()

    async def read(self, most_bytes: int) -> bytes:
        """Waits for more of the body; returns none at its end.

        Raises:
            RequestFailed: It broke off.
        """
        await wait_until(self.is_readable, self.waiters)
        return self.take(most_bytes)

    def head(self) -> Answer:
        """Returns the head of the answer, where `is_answered`.

        Raises:
            RequestFailed: There is none.
        """
        if self.answer is None:
            raise self._failed()
        return self.answer

    def take(self, most_bytes: int) -> bytes:
        """Returns more of the body, where `is_readable`; nothing at its end.

        Raises:
            RequestFailed: It broke off.
        """
        with self._lock:
            if self._pieces:
                piece = self._pieces.popleft()
                if len(piece) > most_bytes:
                    self._pieces.appendleft(piece[most_bytes:])
                    piece = piece[:most_bytes]
                self._ahead -= len(piece)
                loop, room = self._loop, self._has_room
                if loop is not None and room is not None and self._ahead < _AHEAD_BYTES and not self._call.is_over():
                    loop.call_soon_threadsafe(room.set)
                return piece
        if self._is_whole:
            return b""
        raise self._failed()

    def _failed(self) -> RequestFailed:
        # A new one each time: an exception that is raised twice comes to know two callers.
        if self.problem is None:
            return RequestFailed(FailureCode.HANDLE, "the request was closed")
        return RequestFailed(self.problem.code, str(self.problem), self.problem.violation)

    def _tell(self) -> None:
        for waiter in tuple(self.waiters):
            waiter()

    async def _perform(self) -> None:
        """On the network's loop: makes the request, and takes the answer as it is asked for."""
        self._loop, self._has_room = asyncio.get_running_loop(), asyncio.Event()
        asked, allowed = self._request.seconds, self._most_seconds
        seconds = min((limit for limit in (asked, allowed) if limit is not None), default=None)
        try:
            async with asyncio.timeout(seconds):
                await self._follow()
        except RequestFailed as problem:
            self._fail(problem)
        except TimeoutError:
            is_theirs = asked is not None and (allowed is None or asked < allowed)
            late = RequestFailed(FailureCode.TIMEOUT, f"no answer within {asked:g} s") if is_theirs else None
            self._fail(late or self._meter.late(self._subject))
        except ssl.SSLError as problem:
            self._fail(RequestFailed(FailureCode.TLS, _told_tls(problem)))
        except (OSError, EOFError) as problem:
            self._fail(RequestFailed(FailureCode.CONNECT, f"the connection broke: {told(problem)}"))

    def _fail(self, problem: RequestFailed) -> None:
        # What it came from knows frames, and these what was asked.
        reason = str(problem) if self._scrubber is None else self._scrubber.text(str(problem))
        self.problem = RequestFailed(problem.code, reason, problem.violation)
        self._tell()

    async def _follow(self) -> None:
        """Makes the request, and those that redirects lead to."""
        request = self._request
        try:
            target = parse_url(request.url)
        except BadUrl as problem:
            raise RequestFailed(FailureCode.INVALID, str(problem)) from None
        method, headers, body = request.method, checked_headers(request.headers), request.body
        for _ in range(_MOST_REDIRECTS + 1):
            self._subject = target.origin
            moved = await self._attempt(method, target, headers, body)
            if moved is None:
                return
            status, place = moved
            try:
                after = parse_url(place, target)
            except BadUrl as problem:
                raise RequestFailed(FailureCode.PROTOCOL, f"the redirect leads nowhere: {problem}") from None
            self._check_taken_along(place, target, after)
            if after.origin != target.origin:
                headers = for_another_origin(headers)
            if (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST"):
                method, body = "GET", b""
                headers = tuple(entry for entry in headers if not entry[0].lower().startswith("content-"))
            target, self._moved = after, True
        raise RequestFailed(FailureCode.PROTOCOL, f"there are more than {_MOST_REDIRECTS} redirects")

    async def _attempt(self, method: str, target: Target, headers: Headers, body: bytes) -> tuple[int, str] | None:
        """Makes one request, and takes the whole answer.

        Returns:
            Status and place of a redirect that is to be followed, of which no more is taken.
        """
        meter = self._meter
        refusal = refusal_of(self._network, method, target)
        if refusal is not None:
            raise self._denied(refusal, method, target)
        credentials = self._client.credentials.of(target)
        ours = {credential.header.lower() for credential in credentials.values()}
        headers = tuple(entry for entry in headers if entry[0].lower() not in ours)
        if self._scrubber is not None:
            # In what is compressed, nothing can be found, and in parts, no whole.
            headers = tuple(entry for entry in headers if entry[0].lower() not in _UNSEARCHABLE)
        sent = headers_sent(headers, target, body, has_body=method in _WITH_BODY)
        sent += [(credential.header, credential.written()) for credential in credentials.values()]
        connection, message = written(method, target, sent, body)
        reserved = len(message)
        meter.open(reserved)
        writer: asyncio.StreamWriter | None = None
        try:
            plan = pin(self._network, method, target, await self._looked_up(target))
            if isinstance(plan, Refusal):
                raise self._denied(plan, method, target)
            reader, writer = await self._connected(plan)
            reserved = 0
            return await self._converse(reader, writer, connection, message, target)
        finally:
            meter.closed(reserved)
            if writer is not None:
                # At once: what is left of it is of no use, and nobody is to wait for the other side.
                writer.transport.abort()

    def _denied(self, refusal: Refusal, method: str, target: Target) -> RequestFailed:
        subject = printable(target.origin)
        if refusal.part == "method":
            subject = f"{printable(method, _METHOD_SHOWN)} {subject}"
        elif refusal.part == "path" and not self._moved:
            # Without its query. Where a redirect leads is the server's word, and a credential may be in it.
            path = target.path if self._scrubber is None else self._scrubber.text(target.path)
            subject = f"{subject}{printable(path)}"
        if refusal.address and isinstance(target.host, str):
            subject = f"{subject} ({refusal.address})"
        return self._meter.denied(refusal.reason, subject, refusal.field)

    async def _looked_up(self, target: Target) -> Sequence[Address]:
        if not isinstance(target.host, str):
            return (target.host,)
        try:
            found = await self._client.resolve(target.host, target.port, self._meter.lookups)
        except (OSError, UnicodeError):
            found = ()
        if not found:
            raise RequestFailed(FailureCode.NAME, f"the name {printable(target.host)} stands for no address")
        return found

    async def _connected(self, plan: RequestPlan) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connects to one of the addresses that were checked, and to nothing else."""
        target = plan.target
        context = self._client.tls() if target.is_secure else None
        name = str(target.host) if target.is_secure else None
        problem: OSError | None = None
        for address in plan.addresses[:_MOST_ADDRESSES]:
            try:
                return await asyncio.open_connection(
                    str(address), target.port, ssl=context, server_hostname=name, limit=_PIECE_BYTES
                )
            except ssl.SSLError:
                raise
            except OSError as raised:
                problem = raised
        # Not what the problem says itself, which names the address.
        text = "it has no address" if problem is None else os.strerror(problem.errno) if problem.errno else "it failed"
        raise RequestFailed(FailureCode.CONNECT, f"there is no connection to {printable(target.origin)}: {text}")

    async def _converse(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        connection: h11.Connection,
        message: bytes,
        target: Target,
    ) -> tuple[int, str] | None:
        import h11

        await self._send(writer, message)
        gathered = Gathered(self._put if self._scrubber is None else self._put_scrubbed)
        try:
            interim = 0
            while True:
                event = await self._next(connection, reader, gathered)
                if isinstance(event, h11.InformationalResponse):
                    interim += 1
                    if interim > _MOST_INTERIM or event.status_code == 101:
                        raise RequestFailed(FailureCode.PROTOCOL, "the answer is none: it never begins")
                elif isinstance(event, h11.Response):
                    if event.http_version not in _VERSIONS:
                        raise RequestFailed(FailureCode.PROTOCOL, "the answer is of no version of HTTP that is known")
                    place = redirect_of(event) if self._request.follow else None
                    if place is not None:
                        return event.status_code, place
                    self.answer = self._told_answer(event, target)
                    self._tell()
                elif isinstance(event, h11.Data):
                    await gathered.add(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    await gathered.flush()
                    if self._scrubber is not None:
                        await self._put(self._scrubber.finish())
                    self._is_whole = True
                    self._tell()
                    return None
                else:
                    raise RequestFailed(FailureCode.CONNECT, "the connection was closed before the answer was there")
        except h11.RemoteProtocolError as problem:
            raise RequestFailed(FailureCode.PROTOCOL, f"the answer is none: {told(problem)}") from None

    def _told_answer(self, event: h11.Response, target: Target) -> Answer:
        """Returns the head of an answer as the guest is told it.

        Raises:
            RequestFailed: Its body is compressed, or a part of one, so that no secret would be found in it.
        """
        answer = Answer(
            event.status_code, event.reason.decode("latin-1"), told_headers(list(event.headers)), target.url
        )
        scrubber = self._scrubber
        if scrubber is None:
            return answer
        if any(name.lower() == "content-encoding" and value.lower() != "identity" for name, value in answer.headers):
            raise RequestFailed(
                FailureCode.PROTOCOL, "the answer is compressed, which was not asked for, so that it cannot be searched"
            )
        if answer.status == _PARTIAL or any(name.lower() == "content-range" for name, _ in answer.headers):
            raise RequestFailed(
                FailureCode.PROTOCOL, "the answer is a part, which was not asked for, so that it cannot be searched"
            )
        return Answer(
            answer.status, scrubber.text(answer.reason), scrubber.headers(answer.headers), scrubber.text(answer.url)
        )

    def _check_taken_along(self, place: str, before: Target, after: Target) -> None:
        """Checks that a redirect takes no secret to another host.

        Raises:
            RequestFailed: It does.
        """
        scrubber = self._scrubber
        if scrubber is not None and after.origin != before.origin and scrubber.text(place) != place:
            raise RequestFailed(FailureCode.PROTOCOL, "the redirect would take a credential to another host")

    async def _send(self, writer: asyncio.StreamWriter, message: bytes) -> None:
        for at in range(0, len(message), _PIECE_BYTES):
            piece = message[at : at + _PIECE_BYTES]
            await self._meter.pace(len(piece))
            writer.write(piece)
            await writer.drain()

    async def _next(
        self, connection: h11.Connection, reader: asyncio.StreamReader, gathered: Gathered
    ) -> h11.Event | None:
        """Returns the next event of the answer; None where there are no more."""
        import h11

        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                await gathered.flush()
                data = await reader.read(_PIECE_BYTES)
                if data:
                    await self._meter.receive(len(data))
                connection.receive_data(data)
            elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                return None
            else:
                assert isinstance(event, h11.Event)
                return event

    async def _put_scrubbed(self, piece: bytes) -> None:
        assert self._scrubber is not None
        await self._put(self._scrubber.feed(piece))

    async def _put(self, piece: bytes) -> None:
        """Keeps a piece of the body for the guest, and waits where it has not taken what was before."""
        if not piece:
            return
        room = self._has_room
        assert room is not None
        with self._lock:
            self._pieces.append(piece)
            self._ahead += len(piece)
        self._tell()
        while self._ahead >= _AHEAD_BYTES:
            room.clear()
            if self._ahead >= _AHEAD_BYTES:
                await room.wait()


def _told_tls(problem: ssl.SSLError) -> str:
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"the host does not prove its name: {printable(problem.verify_message, 200)}"
    return f"there is no encrypted connection: {printable(str(problem.reason or problem), 200)}"
