"""The outermost ASGI middleware: what a request must look like before the platform sees it.

It wraps the platform's own routes, too. What it leaves in the scope under `PLATFORM_KEY` is the whole
platform behind it, authentication included, which is how Warren's routes call it as their caller.
"""

import json
import re
from typing import Any
from uuid import UUID

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import routes
from storage.errors import InvalidThreadIdError
from storage.ids import parse_thread_id

PLATFORM_KEY = "warren.platform"

MAX_AUTH_BODY_BYTES = 64 * 1024
"""A name and a password need no more; what is larger is refused before it is parsed."""

_AUTH_PREFIX = "/api/auth/"
_UUID = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# The first would have Studio's user stand in for anyone; the others are copied into a run's stored
# configuration and steer where its traces go.
_DROPPED_HEADERS = frozenset({b"x-auth-scheme", b"langsmith-trace", b"baggage"})


class Guard:
    """Answer 404 to what is not on the allow-list, 422 to an odd UUID, 413 to an oversized login."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            # No websocket route is on the allow-list. Closed before it is accepted, it answers 403.
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = routes.match(scope["method"], scope["path"])
        if found is None:
            await _refuse(send, 404, "Not Found")
            return
        try:
            path = _canonical(found)
        except InvalidThreadIdError as error:
            await _refuse(send, 422, str(error))
            return
        if path.startswith(_AUTH_PREFIX):
            body = await _read_body(receive, MAX_AUTH_BODY_BYTES)
            if body is None:
                await _refuse(send, 413, f"The body is larger than {MAX_AUTH_BODY_BYTES} bytes.")
                return
            receive = _replay(body, receive)
        await _complete_rows(scope, path)
        await self.app(self._scope(scope, path), receive, send)

    def _scope(self, scope: Scope, path: str) -> dict[str, Any]:
        return {
            **scope,
            # What was judged is what is served, whatever the encoding it came in.
            "path": path,
            "raw_path": path.encode(),
            # An empty root_path: "/noauth" there is the platform's own way around authentication.
            "root_path": "",
            "headers": [(name, value) for name, value in scope["headers"] if name not in _DROPPED_HEADERS],
            PLATFORM_KEY: self.app,
        }


def _canonical(found: re.Match[str]) -> str:
    path = found.string
    # From the right, so that earlier spans stay where they are.
    for group in range(len(found.groups()), 0, -1):
        start, end = found.span(group)
        path = f"{path[:start]}{parse_thread_id(path[start:end])}{path[end:]}"
    return path


async def _complete_rows(scope: Scope, path: str) -> None:
    for found in _UUID.findall(path):
        await scope["app"].state.thread_rows.complete(UUID(found))


async def _read_body(receive: Receive, limit: int) -> bytes | None:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    replayed = False

    async def receive_again() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
