"""A real name server on this machine, by UDP and TCP, that answers from a script."""

from __future__ import annotations

import ipaddress
import selectors
import socket
import struct
import threading
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

__all__ = ["DnsServer"]


def _bound(port: int) -> tuple[socket.socket, socket.socket]:
    """Two sockets with one number, for UDP and TCP. What is free for one may be taken for the other."""
    while True:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(("127.0.0.1", port))
            return udp, socket.create_server(udp.getsockname())
        except OSError:
            udp.close()
            if port:
                raise


class DnsServer:
    """Answers on a thread of its own, until it is left.

    Args:
        names: What names stand for, with spaces between: addresses, `@name` for what it is another name of; or one of
            `nxdomain`, `servfail`, `empty`, `silent`, `garbage`, `forged` (an answer to another question before the
            right one), `truncated` (by UDP; the whole by TCP). Several of these, for one question after the other, are
            a list: the last one stays. A name that is not there is none.
        port: The port; 0 for any.

    Attributes:
        asked: What was asked for: names and types.
    """

    def __init__(self, names: Mapping[str, str | Sequence[str]] | None = None, port: int = 0) -> None:
        self.names: dict[str, str | Sequence[str]] = dict(names or {})
        self.asked: list[tuple[str, str]] = []
        self._turns: dict[tuple[str, str], int] = {}
        self._udp, self._tcp = _bound(port)
        self.port: int = self._udp.getsockname()[1]
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._wake.send(b"x")
        self._thread.join()
        for each in (self._udp, self._tcp, self._wake, self._woken):
            each.close()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            for each in (self._udp, self._tcp, self._woken):
                selector.register(each, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if self._woken in ready:
                    return
                if self._udp in ready:
                    data, place = self._udp.recvfrom(4096)
                    for answer in self._answers(data, whole=False):
                        self._udp.sendto(answer, place)
                if self._tcp in ready:
                    line, _ = self._tcp.accept()
                    with line, line.makefile("rb") as reading:
                        (size,) = struct.unpack("!H", reading.read(2))
                        for answer in self._answers(reading.read(size), whole=True):
                            line.sendall(struct.pack("!H", len(answer)) + answer)

    def _answers(self, data: bytes, *, whole: bool) -> list[bytes]:
        question = dns.message.from_wire(data)
        (asked,) = question.question
        name, kind = asked.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(asked.rdtype)
        self.asked.append((name, kind))
        answer = dns.message.make_response(question)
        answer.flags |= dns.flags.RA
        say = self._turn(name, kind)
        match say:
            case "silent":
                return []
            case "garbage":
                return [b"\xff" * 40, data[:2] + b"\xff" * 40]
            case "servfail":
                answer.set_rcode(dns.rcode.SERVFAIL)
            case "nxdomain":
                answer.set_rcode(dns.rcode.NXDOMAIN)
            case "empty":
                pass
            case _:
                before, *records = say.split() if say.startswith(("forged", "truncated")) else ("", *say.split())
                self._fill(answer, name, kind, records)
                if before == "truncated" and not whole:
                    answer.answer.clear()
                    answer.flags |= dns.flags.TC
                if before == "forged":
                    forged = dns.message.make_response(question)
                    forged.id ^= 1
                    self._fill(forged, name, kind, ["127.0.0.1", "::1"])
                    return [forged.to_wire(), answer.to_wire()]
        return [answer.to_wire(max_size=65_535)]

    def _turn(self, name: str, kind: str) -> str:
        says = self.names.get(name, "nxdomain")
        if isinstance(says, str):
            return says
        turn = self._turns.get((name, kind), 0)
        self._turns[name, kind] = turn + 1
        return says[min(turn, len(says) - 1)]

    def _fill(self, answer: dns.message.Message, name: str, kind: str, records: Sequence[str]) -> None:
        for _ in range(40):
            other = next((record[1:] for record in records if record.startswith("@")), None)
            if other is None:
                break
            answer.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", "CNAME", f"{other}."))
            name, say = other, self.names.get(other, "")
            assert isinstance(say, str)
            records = say.split()
        wanted = [
            record
            for record in records
            if not record.startswith("@") and (ipaddress.ip_address(record).version == 4) == (kind == "A")
        ]
        if wanted:
            answer.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", kind, *wanted))
