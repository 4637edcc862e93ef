"""What becomes of an answer that is under way when the access it was given for ends.

A token or key that merely expires lets a stream that has begun go on to its end; the next request is
refused. One that was revoked (logout everywhere, new password, deleted key) or whose user was disabled
has its streams closed within about `CHECK_SECONDS` and the second for which a look-up is remembered.
"""

import asyncio

import psycopg
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from auth.credentials import identify
from auth.errors import InvalidTokenError
from server.requests import answer
from storage.errors import StorageError

CHECK_SECONDS = 2.0
"""How long a request may take before its credential is looked at again, and the time between looks."""

_CREDENTIAL_HEADERS = frozenset({b"authorization", b"x-api-key"})
# These end by themselves, and one of them revokes the very token that it came with.
_UNWATCHED_PREFIX = "/api/auth/"

_log = structlog.stdlib.get_logger(__name__)


async def end_when_revoked(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve an http request by `app`, and end the answer early if the caller's access is withdrawn meanwhile.

    A request that finishes before the first look costs a timer, nothing more. One with two credentials of
    a kind is refused: which of them counts would depend on who reads the headers.
    """
    names = [name for name, _ in scope["headers"] if name in _CREDENTIAL_HEADERS]
    if len(names) != len(set(names)):
        await answer(send, 400, "More than one credential of a kind.")
        return
    if not names or scope["path"].startswith(_UNWATCHED_PREFIX):
        await app(scope, receive, send)
        return
    watch = _Watch(dict(scope["headers"]), send)
    timer = asyncio.get_running_loop().call_later(CHECK_SECONDS, watch.begin)
    try:
        await app(scope, receive, watch.send)
    finally:
        timer.cancel()
        watch.stop()


class _Watch:
    """One answer under way, and the credential that it is given for."""

    def __init__(self, headers: dict[bytes, bytes], send: Send) -> None:
        self._headers = headers
        self._send = send
        self._task: asyncio.Task[None] | None = None
        self._started = self._complete = self._ended = self._length_promised = False

    def begin(self) -> None:
        self._task = asyncio.create_task(self._look_again_and_again())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def send(self, message: Message) -> None:
        """Hand on what the application sends, until the answer has been ended."""
        if self._ended:
            if self._length_promised:
                # Such an answer cannot end early in good form: the connection is given up.
                raise ConnectionResetError
            return
        if message["type"] == "http.response.start":
            self._started = True
            self._length_promised = any(name == b"content-length" for name, _ in message.get("headers", ()))
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._complete = True
        await self._send(message)

    async def _look_again_and_again(self) -> None:
        while not self._complete:
            try:
                await identify(self._headers, may_have_expired=True)
            except InvalidTokenError as error:
                await self._end(str(error))
                return
            except (psycopg.Error, StorageError) as error:
                # Postgres is away; it is asked again.
                await _log.awarning("A running request's credential could not be checked", error=str(error))
            await asyncio.sleep(CHECK_SECONDS)

    async def _end(self, reason: str) -> None:
        if self._complete:
            return
        self._ended = True
        if not self._started:
            await answer(self._send, 401, reason, [(b"www-authenticate", b"Bearer")])
        elif not self._length_promised:
            # The server now tells the application that the client is gone.
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
