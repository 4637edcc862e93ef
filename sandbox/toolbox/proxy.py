"""The sandbox's way out: an HTTP proxy on its loopback address. The host makes connections, or refuses to."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

from sandbox.toolbox.connections import Connection
from sandbox.toolbox.frames import (
    CHUNK_BYTES,
    CLOSE,
    CONNECTED,
    CREDIT,
    DIAL,
    STREAM,
    STREAMS,
    TARGET_BYTES,
    WINDOW_BYTES,
    FrameError,
    pack,
    pack_amount,
    parse_amount,
    parse_json,
)
from sandbox.toolbox.reactor import READABLE, WRITABLE, Reactor

ADDRESS = ("127.0.0.1", 3128)
"""The port is the usual one of a proxy. It is taken before any other code runs in the sandbox."""

_CLIENTS = 2 * STREAMS
_HEAD_BYTES = 8 << 10
_HEAD_SECONDS = 10
_DRAIN_SECONDS = 30
_SWEEP_SECONDS = 2
_REASON_CHARACTERS = 200
_NEVER = float("inf")
_LAST_NUMBER = (1 << 32) - 1


class Proxy:
    """Takes connections from programs in the sandbox, and has any one open connection's host make theirs."""

    def __init__(self, reactor: Reactor, address: tuple[str, int] = ADDRESS) -> None:
        self._reactor = reactor
        self._hosts: list[Connection] = []
        self._clients: set[_Client] = set()
        self._streams: dict[int, _Client] = {}
        self._last_number = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(address)
        self._socket.listen(_CLIENTS)
        self._socket.setblocking(False)
        reactor.watch(self._socket.fileno(), READABLE, self._accept)

    def joined(self, host: Connection) -> None:
        """Know a connection that is open now."""
        self._hosts.append(host)

    def left(self, host: Connection) -> None:
        """Forget a connection, and end what goes over it."""
        self._hosts.remove(host)
        for number, client in list(self._streams.items()):
            if client.host is host:
                del self._streams[number]
                client.lost()

    def take(self, host: Connection, kind: int, number: int, payload: bytes) -> None:
        """Take a frame of a stream.

        Raises:
            FrameError: there is no such stream, or it does not belong there.
        """
        client = self._streams.get(number)
        if client is None or client.host is not host:
            raise FrameError("no such stream")
        if kind == CONNECTED:
            client.connected()
        elif kind == STREAM:
            client.deliver(payload)
        elif kind == CREDIT:
            client.credit(parse_amount(payload))
        elif kind == CLOSE:
            del self._streams[number]
            client.closed(parse_json(payload))
        else:
            raise FrameError("not to be expected")

    def dial(self, client: _Client, target: bytes) -> None:
        """Have a host connect a client, or tell it at once why not."""
        if not self._hosts:
            client.refuse(502, "no server is there to connect this sandbox")
        elif len(self._streams) >= STREAMS:
            client.refuse(503, "too many connections at once")
        else:
            number = self._next_number()
            self._streams[number] = client
            client.host, client.number = self._hosts[-1], number
            client.host.send(pack(DIAL, number, target))

    def forget(self, client: _Client) -> None:
        self._clients.discard(client)

    def _next_number(self) -> int:
        while True:
            self._last_number = self._last_number % _LAST_NUMBER + 1
            if self._last_number not in self._streams:
                return self._last_number

    def _accept(self) -> None:
        with suppress(OSError):
            client, _ = self._socket.accept()
            if len(self._clients) >= _CLIENTS:
                client.close()
                return
            if not self._clients:
                self._reactor.later(_SWEEP_SECONDS, self._sweep)
            self._clients.add(_Client(self._reactor, self, client))

    def _sweep(self) -> None:
        """Close what takes too long. One timer for all: those of a flood of clients would take memory."""
        now = time.monotonic()
        for client in list(self._clients):
            if client.deadline < now:
                client.expire()
        if self._clients:
            self._reactor.later(_SWEEP_SECONDS, self._sweep)


class _Client:
    """A program's connection to the proxy.

    It is read only as far as the host has room for it, so that nobody ever holds more than WINDOW_BYTES.
    """

    def __init__(self, reactor: Reactor, proxy: Proxy, program: socket.socket) -> None:
        self.host: Connection | None = None
        self.number = 0
        self.deadline = time.monotonic() + _HEAD_SECONDS
        self._reactor = reactor
        self._proxy = proxy
        self._socket = program
        self._head = bytearray()
        self._unsent = bytearray()
        self._room = WINDOW_BYTES
        self._delivered = 0
        self._is_open = True
        self._is_connected = False
        self._is_paused = False
        self._is_ending = False
        program.setblocking(False)
        reactor.watch(program.fileno(), READABLE, self._receive_head)

    def connected(self) -> None:
        """Be connected to what it has asked for."""
        if self._is_open and not self._is_connected:
            self._is_connected = True
            self._say(b"HTTP/1.1 200 Connection established\r\n\r\n")
            if self._head:
                self._pass_on(bytes(self._head))
                self._head.clear()
            self._watch()

    def deliver(self, data: bytes) -> None:
        """Give the program what has come for it."""
        if self._is_open:
            self._unsent += data
            self._write()

    def credit(self, amount: int) -> None:
        """Be allowed to send more."""
        self._room += amount
        self._watch()

    def closed(self, why: dict[str, object]) -> None:
        """Hear that the host has closed the stream, or refused it."""
        if not self._is_open:  # it was closed here first
            return
        if self.host is not None:
            self.host.send(pack(CLOSE, self.number))
        if self._is_connected:
            self._end()
        else:
            status = why.get("status")
            self.refuse(status if isinstance(status, int) else 502, str(why.get("message")))

    def lost(self) -> None:
        """Hear that the stream is gone with the host's connection."""
        if self._is_connected:
            self._end()
        else:
            self.refuse(502, "the server that was to connect this sandbox is gone")

    def refuse(self, status: int, message: str) -> None:
        """Tell the program why not, also where most programs show it: in the first line."""
        reason = "".join(it if " " <= it <= "~" else "?" for it in message[:_REASON_CHARACTERS])
        self._say(
            b"HTTP/1.1 %d %b\r\nAllow: CONNECT\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n"
            b"Connection: close\r\n\r\n%b\n" % (status, reason.encode(), len(reason) + 1, reason.encode())
        )
        self._close()

    def expire(self) -> None:
        """Have had enough time to say what it wants, or to take what is there for it."""
        self._close()

    def pause(self) -> None:
        """Read no more of the program for now."""
        self._is_paused = True

    def resume(self) -> None:
        self._is_paused = False
        self._watch()

    def _receive_head(self) -> None:
        try:
            received = self._socket.recv(_HEAD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._close()
            return
        self._head += received
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if len(head) > _HEAD_BYTES:
            self.refuse(431, "the request is too long")
        elif end:
            self.deadline = _NEVER  # the host sees to it that there is an answer
            self._reactor.watch(self._socket.fileno(), 0, self._hang_up)
            self._head = rest
            self._begin(bytes(head.partition(b"\r\n")[0]).split(b" "))

    def _begin(self, request: list[bytes]) -> None:
        if len(request) != 3 or not request[2].startswith(b"HTTP/1."):  # noqa: PLR2004 - method, target, version
            self.refuse(400, "not an HTTP request")
        elif request[0] != b"CONNECT":
            self.refuse(405, "only https goes out of this sandbox, by CONNECT")
        elif len(request[1]) > TARGET_BYTES:
            self.refuse(400, "the host's name is too long")
        else:
            self._proxy.dial(self, request[1])

    def _ready(self) -> None:
        """Write and read what can be; with neither to be done, hear that the program is gone."""
        is_waiting = self._unsent or self._may_read()
        if not is_waiting:
            self._hang_up()
            return
        self._write()
        if self._is_open and self._may_read():
            self._read()

    def _may_read(self) -> bool:
        return self._is_connected and not self._is_ending and not self._is_paused and self._room > 0

    def _read(self) -> None:
        try:
            data = self._socket.recv(min(CHUNK_BYTES, self._room))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._pass_on(data)
            self._watch()
        else:
            self._hang_up()

    def _pass_on(self, data: bytes) -> None:
        self._room -= len(data)
        if self.host is not None:
            self.host.send(pack(STREAM, self.number, data), self)

    def _write(self) -> None:
        try:
            sent = self._socket.send(self._unsent) if self._unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._hang_up()
            return
        del self._unsent[:sent]
        self._delivered += sent
        if self._is_ending:
            if not self._unsent:
                self._close()
                return
        elif self._delivered >= WINDOW_BYTES // 2 and self.host is not None:
            delivered, self._delivered = self._delivered, 0
            self.host.send(pack_amount(CREDIT, self.number, delivered))
        self._watch()

    def _watch(self) -> None:
        if self._is_open and self._is_connected:
            events = (READABLE if self._may_read() else 0) | (WRITABLE if self._unsent else 0)
            self._reactor.watch(self._socket.fileno(), events, self._ready)

    def _say(self, line: bytes) -> None:
        with suppress(OSError):  # it is short, and the first that is sent: there is room for it
            self._socket.send(line)

    def _end(self) -> None:
        """Close when the program has taken what is there for it, if it does so soon."""
        self._is_ending = True
        self.deadline = time.monotonic() + _DRAIN_SECONDS
        self._write()

    def _hang_up(self) -> None:
        """Close, and tell the host, which will answer."""
        if self._is_open:
            self._close()
            if self.host is not None and not self._is_ending:
                self.host.send(pack(CLOSE, self.number))

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._reactor.forget(self._socket.fileno())
            self._socket.close()
            self._head.clear()
            self._unsent.clear()
            self._proxy.forget(self)
