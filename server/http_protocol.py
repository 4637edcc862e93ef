"""uvicorn's HTTP protocol with bounds on what comes before there is a request to judge, and after its answer.

uvicorn's own reads a head of any length, and joins its pieces in a time that grows with the square of it: one
anonymous connection that sends a header of 60 MB stops the whole server for ten seconds. It takes as many
connections as there are descriptors, of which Postgres and sandboxes need some. And it keeps an answer for as
long as its client leaves it unread.
"""

import resource
from asyncio import TimerHandle, Transport
from collections import Counter
from typing import ClassVar

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from auth.addresses import UNKNOWN, is_trusted, subject_of

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers, trailers, or one chunk's extension: four times what nginx takes by default."""

HEAD_SECONDS = 30.0
"""How long a client may take for the head of a request, from its first byte or from connecting."""

STALL_SECONDS = 60.0
STALL_BYTES = 60 << 10
"""A client that leaves an answer waiting must take this much of it in each such time, or is left."""

MAX_CONNECTIONS = 4096
"""Connections at once, unless that is more than half of the descriptors that this process may have."""

SHARES = 4
"""One address has at most one such part of them, a trusted proxy as many as there are."""

DESCRIPTORS = 65_536
"""What a server asks the system for; it gives less if its hard limit is lower."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """Ends a connection that sends too much, or takes too long, without a request coming of it."""

    most: ClassVar[int] = MAX_CONNECTIONS
    _open: ClassVar[Counter[str]] = Counter()
    _timer: TimerHandle | None = None
    _address = ""
    _has_head = False
    _idle_bytes = 0
    _has_progressed = False
    _stall: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override] # as uvicorn's
        super().connection_made(transport)
        self._begin_head()
        peer = self.client[0] if self.client else UNKNOWN
        self._address = subject_of(peer)
        self._open[self._address] += 1
        is_greedy = self._open[self._address] > self.most // SHARES and not is_trusted(peer)
        if is_greedy or self._open.total() > self.most:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        self._end_stall()
        self._open[self._address] -= 1
        if not self._open[self._address]:
            del self._open[self._address]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._has_progressed = False
        super().data_received(data)
        self._idle_bytes = 0 if self._has_progressed else self._idle_bytes + len(data)
        if self._idle_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse("The request's head is too long.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_head = False
        self._begin_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come after the body, from the client, past what a proxy has to say in the head.
        if not self._has_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._has_progressed = True
        self._has_head = True
        self._end_head()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_progressed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_progressed = True
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._begin_stall()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_stall()
        if self._has_answered:
            self._begin_stall()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._begin_stall()

    @property
    def _has_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _begin_stall(self) -> None:
        self._end_stall()
        if unsent := self.transport.get_write_buffer_size():
            self._stall = self.loop.call_later(STALL_SECONDS, self._look_if_read, unsent)

    def _look_if_read(self, unsent: int) -> None:
        left = self.transport.get_write_buffer_size()
        # In the middle of an answer a little may be unsent that has just been written.
        if left > unsent - STALL_BYTES and left and (self.flow.write_paused or self._has_answered):
            self.transport.abort()
        else:
            self._begin_stall()

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _begin_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._refuse, "The request took too long.")

    def _end_head(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, reason: str) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.send_400_response(reason)
        else:
            # An answer is under way on this connection: anything written now would be taken for a part of it.
            self.transport.abort()


def install() -> None:
    """Have uvicorn use it wherever it is not told which protocol to use, with descriptors to spare."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    BoundedHttpProtocol.most = min(MAX_CONNECTIONS, wanted // 2)
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedHttpProtocol.__name__}"
