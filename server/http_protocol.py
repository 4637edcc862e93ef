"""uvicorn's HTTP protocol with bounds on what comes before there is a request to judge.

uvicorn's own reads a head of any length, and joins its pieces in a time that grows with the square of it: one
anonymous connection that sends a header of 60 MB stops the whole server for ten seconds.
"""

from asyncio import TimerHandle, Transport

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers, trailers, or one chunk's extension: four times what nginx takes by default."""

HEAD_SECONDS = 30.0
"""How long a client may take for the head of a request, from its first byte or from connecting."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """Ends a connection that sends too much, or takes too long, without a request coming of it."""

    _timer: TimerHandle | None = None
    _idle_bytes = 0
    _has_progressed = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override] # as uvicorn's
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._has_progressed = False
        super().data_received(data)
        self._idle_bytes = 0 if self._has_progressed else self._idle_bytes + len(data)
        if self._idle_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse("The request's head is too long.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_head()

    def on_headers_complete(self) -> None:
        self._has_progressed = True
        self._end_head()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_progressed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_progressed = True
        super().on_message_complete()

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
    """Have uvicorn use it wherever it is not told which protocol to use."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedHttpProtocol.__name__}"
