"""The outermost ASGI middleware: what a request must look like before the platform sees it.

It wraps the platform's own routes, too. What it leaves in the scope under `PLATFORM_KEY` is the whole
platform behind it, authentication included, which is how Warren's routes call it as their caller.
"""

import hmac
import re
from functools import partial
from typing import Any, Final
from uuid import UUID

from starlette.types import ASGIApp, Receive, Scope, Send

from auth.credentials import authenticate_headers
from auth.errors import InvalidTokenError
from server import routes, studio
from server.assistants import saving_assistants
from server.denials import noting_denials
from server.hosts import is_allowed
from server.requests import (
    Header,
    answer,
    header_of,
    is_direct_from_loopback,
    read_body,
    replay,
    with_headers,
)
from server.revocation import end_when_revoked
from server.settings import ServerSettings, get_settings
from storage import threads
from storage.errors import InvalidThreadIdError

PLATFORM_KEY = "warren.platform"

MAX_AUTH_BODY_BYTES = 64 * 1024
"""A name and a password need no more; what is larger is refused before it is parsed."""

_KIB = 1024
_OWN_PREFIX = "/api/"
_AUTH_PREFIX = "/api/auth/"
_UUID = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

# The first would have Studio's user stand in for anyone; the others are copied into a run's stored
# configuration and steer where its traces go.
_DROPPED_HEADERS: Final = frozenset({b"x-auth-scheme", b"langsmith-trace", b"baggage"})

_SECURITY_HEADERS: Final[tuple[Header, ...]] = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class RefusedError(Exception):
    """A request is answered here and goes no further."""

    def __init__(self, status: int, detail: str) -> None:
        self.status = status
        self.detail = detail


class Guard:
    """Let through only what has a served route, a known Host, a canonical path and a bounded body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            # No websocket is served, see server.routes. Closed before it is accepted, it answers 403.
            await send({"type": "websocket.close", "code": 1008})
        else:
            scope["app"].state.platform = self.app
            await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = routes.match(scope["method"], scope["path"])
        if route is None:
            await answer(send, 404, "Not Found")
            return
        send = noting_denials(send, scope, route.template)
        try:
            path, body = await _admit(scope, receive, route)
            inner = await self._inner_scope(scope, path)
            if route.template in routes.REFUSED_IN_STREAM and scope["method"] != "OPTIONS":
                await _require_owner(inner, routes.thread_of(route, path))
        except RefusedError as refusal:
            await answer(send, refusal.status, refusal.detail)
            return
        await _complete_rows(scope, path)
        if (scope["method"], route.template) in routes.CHANGES_ASSISTANTS:
            send = saving_assistants(send, partial(authenticate_headers, dict(inner["headers"])))
        if path.startswith(_OWN_PREFIX):
            send = with_headers(send, _SECURITY_HEADERS)
        await end_when_revoked(self.app, inner, replay(body, receive), send)

    async def _inner_scope(self, scope: Scope, path: str) -> dict[str, Any]:
        headers = [(name, value) for name, value in scope["headers"] if name not in _DROPPED_HEADERS]
        if (credentials := await studio.credentials(scope)) is not None:
            headers = [*(header for header in headers if header[0] != b"authorization"), credentials]
        return {
            **scope,
            # What was judged is what is served, whatever the encoding it came in.
            "path": path,
            "raw_path": path.encode(),
            # An empty root_path: "/noauth" there is the platform's own way around authentication.
            "root_path": "",
            "headers": headers,
            PLATFORM_KEY: self.app,
        }


async def _admit(scope: Scope, receive: Receive, route: routes.Route) -> tuple[str, bytes]:
    """Return the request's canonical path and its body, or raise RefusedError."""
    settings = get_settings()
    if not _is_shown(route.template, scope, settings):
        raise RefusedError(404, "Not Found")
    # A health check comes from wherever the container's network is.
    if route.template != "/ok" and not is_allowed(header_of(scope, b"host"), settings.allowed_hosts):
        raise RefusedError(421, "This server does not go by that Host; see ALLOWED_HOSTS.")
    try:
        path = routes.canonical(route, scope["path"])
    except InvalidThreadIdError as error:
        raise RefusedError(422, str(error)) from None
    limit = MAX_AUTH_BODY_BYTES if path.startswith(_AUTH_PREFIX) else settings.max_body_kib * _KIB
    body = await read_body(receive, limit)
    if body is None:
        raise RefusedError(413, f"The body is larger than {limit} bytes.")
    return path, body


def _is_shown(template: str, scope: Scope, settings: ServerSettings) -> bool:
    if template in ("/docs", "/openapi.json"):
        return settings.docs
    if template == "/metrics":
        return _may_read_metrics(scope, settings)
    return True


def _may_read_metrics(scope: Scope, settings: ServerSettings) -> bool:
    if settings.metrics_token is not None:
        expected = f"Bearer {settings.metrics_token.get_secret_value()}".encode()
        return hmac.compare_digest(header_of(scope, b"authorization").encode("latin-1"), expected)
    return is_direct_from_loopback(scope)


async def _require_owner(scope: Scope, thread_id: UUID) -> None:
    try:
        username = await authenticate_headers(dict(scope["headers"]))
    except InvalidTokenError as error:
        raise RefusedError(401, str(error)) from None
    record = await threads.find_for_reading(thread_id)
    if record is not None and record.owner != username:
        raise RefusedError(403, f"Access denied to thread {thread_id}")
    if record is None or not record.live:
        raise RefusedError(404, f"Thread {thread_id} not found")


async def _complete_rows(scope: Scope, path: str) -> None:
    for found in _UUID.findall(path):
        await scope["app"].state.thread_rows.complete(UUID(found))
