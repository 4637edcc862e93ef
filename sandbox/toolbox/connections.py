"""The host's connections: what it asks for over one, and its answers in fair turns."""

from __future__ import annotations

import os
import socket
from collections import deque

from sandbox.toolbox.commands import CANCELLED, Command
from sandbox.toolbox.frames import (
    BEGUN,
    CANCEL,
    CHUNK_BYTES,
    DATA,
    DIAL,
    FAILURE,
    PING,
    PONG,
    REQUEST,
    RESULT,
    FrameError,
    FrameReader,
    pack,
    pack_json,
    parse_json,
)
from sandbox.toolbox.operations import OPERATIONS
from sandbox.toolbox.reactor import READABLE, WRITABLE, Reactor
from sandbox.toolbox.supervisors import Supervisors
from sandbox.toolbox.workers import Workers

TYPE_CHECKING = False  # importing `typing` would cost memory
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Streams(Protocol):
        """What has streams go over the connections."""

        def joined(self, host: Connection) -> None: ...
        def left(self, host: Connection) -> None: ...
        def take(self, host: Connection, kind: int, number: int, payload: bytes) -> None: ...

    class Source(Protocol):
        """What sends more than the host takes at times, and can wait."""

        def pause(self) -> None: ...
        def resume(self) -> None: ...


REQUEST_BYTES = 64 << 20
"""The most data that a request may bring."""

_REQUESTS = 256
_CONGESTED_BYTES = 4 * CHUNK_BYTES


class _Incoming:
    """A request whose data has not all come."""

    def __init__(self, operation: str, arguments: dict[str, object], size: int, confirm: bool) -> None:
        self.operation = operation
        self.arguments = arguments
        self.size = size
        self.confirm = confirm
        self.data = bytearray()


class _Job:
    """An operation that waits for a worker or is in one."""

    is_cancelled = False


class Connection:
    """One server's connection. Its end ends its commands."""

    def __init__(  # noqa: PLR0913, PLR0917 - each is a part of it
        self,
        reactor: Reactor,
        workers: Workers,
        supervisors: Supervisors,
        streams: Streams | None,
        relay: socket.socket | None,
        incoming: int,
        outgoing: int,
    ) -> None:
        self._reactor = reactor
        self._workers = workers
        self._supervisors = supervisors
        self._streams = streams
        self._relay = relay
        self._incoming = incoming
        self._outgoing = outgoing
        self._is_open = True
        self._is_blocked = False
        self._reader = FrameReader()
        self._requests: dict[int, _Incoming | _Job | Command] = {}
        self._paused: list[Source] = []
        self._bodies: deque[tuple[int, memoryview, bytes]] = deque()
        self._unsent = bytearray()
        os.set_blocking(incoming, False)
        os.set_blocking(outgoing, False)
        if relay is not None:
            reactor.watch(relay.fileno(), READABLE, self.close)
        reactor.watch(outgoing, 0, self.close)  # without any event it still tells that nobody reads any more
        reactor.watch(incoming, READABLE, self._receive)
        if streams is not None:
            streams.joined(self)

    def send(self, frame: bytes, source: Source | None = None) -> None:
        """Send a frame, and have its source wait if too many have not been taken yet."""
        self._send(frame)
        if source is not None and len(self._unsent) > _CONGESTED_BYTES:
            source.pause()
            self._paused.append(source)

    def close(self) -> None:
        """End the connection and its commands. Safe to repeat."""
        if not self._is_open:
            return
        self._is_open = False
        for descriptor in (self._incoming, self._outgoing):
            self._reactor.forget(descriptor)
            os.close(descriptor)
        if self._relay is not None:
            self._reactor.forget(self._relay.fileno())
            self._relay.close()
        self._bodies.clear()
        self._unsent.clear()
        for request in list(self._requests.values()):
            self._cancel(request)
        if self._streams is not None:
            self._streams.left(self)

    def _receive(self) -> None:
        try:
            received = os.read(self._incoming, CHUNK_BYTES)
            if not received:
                self.close()
                return
            for kind, number, payload in self._reader.feed(received):
                if kind >= DIAL and self._streams is not None:
                    self._streams.take(self, kind, number, payload)
                else:
                    self._take(kind, number, payload)
        except BlockingIOError:
            return
        except (FrameError, OSError):
            self.close()

    def _take(self, kind: int, request: int, payload: bytes) -> None:
        known = self._requests.get(request)
        if kind == REQUEST and known is None:
            self._begin(request, parse_json(payload))
        elif kind == DATA and isinstance(known, _Incoming):
            known.data += payload
            if len(known.data) > known.size:
                raise FrameError("more data than announced")
            if len(known.data) == known.size:
                self._perform(request, known)
        elif kind == CANCEL:
            if isinstance(known, _Incoming):
                del self._requests[request]
                self._answer(request, pack_json(FAILURE, request, {"message": "cancelled"}))
            elif known is not None:
                self._cancel(known)
        elif kind == PING:
            self._send(pack(PONG, request))
        elif kind != DATA or known is not None:  # data may still come for a request that was refused
            raise FrameError("not to be expected")

    def _begin(self, request: int, head: dict[str, object]) -> None:
        operation, arguments, size = head.get("operation"), head.get("args"), head.get("size")
        if not (isinstance(operation, str) and isinstance(arguments, dict) and isinstance(size, int)):
            raise FrameError("not a request")
        if not 0 <= size <= REQUEST_BYTES or len(self._requests) >= _REQUESTS:
            self._fail(request, "too much at once")
            return
        incoming = _Incoming(operation, arguments, size, confirm=head.get("confirm") is True)
        if size:
            self._requests[request] = incoming
        else:
            self._perform(request, incoming)

    def _perform(self, request: int, incoming: _Incoming) -> None:
        if incoming.confirm:
            self._send(pack(BEGUN, request))
        if incoming.operation == "exec":
            self._execute(request, incoming)
            return
        operation = OPERATIONS.get(incoming.operation)
        if operation is None:
            self._fail(request, "there is no such operation")
            return
        job = self._requests[request] = _Job()

        def work() -> object:
            # It may have waited for a worker until nobody wants it any more.
            if job.is_cancelled:
                return None
            return _outcome(operation, incoming.arguments, bytes(incoming.data))

        self._workers.submit(work, lambda outcome: self._done(request, job, outcome))

    def _execute(self, request: int, incoming: _Incoming) -> None:
        try:
            command = Command(
                self._reactor,
                self._supervisors,
                bytes(incoming.data),
                {
                    name: _whole_number(incoming.arguments, name)
                    for name in ("seconds", "keep", "flood", "files", "file_bytes")
                },
                lambda data: self._pass_on(request, data),
                lambda end: self._ended(request, end),
            )
        except OSError as error:
            self._ended(
                request, {"ended": "unstartable", "status": error.errno, "written": 0, "survived": False}
            )
        else:
            self._requests[request] = command

    def _cancel(self, known: object) -> None:
        if isinstance(known, Command):
            known.end(CANCELLED)
        elif isinstance(known, _Job):
            known.is_cancelled = True

    def _pass_on(self, request: int, output: bytes) -> None:
        if self._is_open:
            command = self._requests.get(request)
            self.send(pack(DATA, request, output), command if isinstance(command, Command) else None)

    def _ended(self, request: int, end: dict[str, object]) -> None:
        self._requests.pop(request, None)
        self._send(pack_json(RESULT, request, end))

    def _done(self, request: int, job: _Job, outcome: object) -> None:
        del self._requests[request]
        if job.is_cancelled or not self._is_open:
            outcome = "cancelled"
        if isinstance(outcome, tuple):
            head, body = outcome
            try:
                self._answer(request, pack_json(RESULT, request, head), body)
            except (FrameError, TypeError, ValueError):
                self._fail(request, "the answer is too long")
        else:
            self._fail(request, str(outcome))

    def _fail(self, request: int, message: str) -> None:
        self._requests.pop(request, None)
        self._answer(request, pack_json(FAILURE, request, {"message": message[:10_000]}))

    def _answer(self, request: int, last: bytes, body: bytes = b"") -> None:
        if body:
            self._bodies.append((request, memoryview(body), last))
            self._flush()
        else:
            self._send(last)

    def _send(self, frame: bytes) -> None:
        if self._is_open:
            self._unsent += frame
            self._flush()

    def _flush(self) -> None:
        """Write what can be written now; take one chunk of each body in turn when there is room for more."""
        if not self._is_open:
            return
        try:
            self._write()
        except BlockingIOError:
            if not self._is_blocked:
                self._is_blocked = True
                self._reactor.watch(self._outgoing, WRITABLE, self._flush)
        except OSError:
            self.close()
            return
        else:
            if self._is_blocked:
                self._is_blocked = False
                self._reactor.watch(self._outgoing, 0, self.close)
        if len(self._unsent) < _CONGESTED_BYTES:
            paused, self._paused = self._paused, []
            for source in paused:
                source.resume()

    def _write(self) -> None:
        while True:
            while self._bodies and len(self._unsent) < CHUNK_BYTES:
                self._take_chunk()
            if not self._unsent:
                return
            written = os.write(self._outgoing, self._unsent)
            del self._unsent[:written]

    def _take_chunk(self) -> None:
        request, body, last = self._bodies.popleft()
        self._unsent += pack(DATA, request, bytes(body[:CHUNK_BYTES]))
        if len(body) > CHUNK_BYTES:
            self._bodies.append((request, body[CHUNK_BYTES:], last))
        else:
            self._unsent += last


def _outcome(
    operation: Callable[[dict[str, object], bytes], tuple[dict[str, object], bytes]],
    arguments: dict[str, object],
    data: bytes,
) -> tuple[dict[str, object], bytes] | str:
    try:
        return operation(arguments, data)
    except Exception as error:  # noqa: BLE001 - nothing that a file system does may end the toolbox
        return type(error).__name__ + ": " + str(error)


def _whole_number(arguments: dict[str, object], name: str) -> int:
    value = arguments.get(name)
    if not isinstance(value, int) or not 0 <= value < 1 << 40:
        raise FrameError("not an amount: " + name)
    return value
