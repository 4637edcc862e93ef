"""The outermost ASGI middleware: what a request must look like before the platform sees it.

It wraps the platform's own routes, too. What it leaves in the scope under `PLATFORM_KEY` is the whole
platform behind it, authentication included, which is how Warren's routes call it as their caller.
"""

import asyncio
import hmac
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final
from uuid import UUID

import psycopg
from starlette.types import ASGIApp, Receive, Scope, Send

from auth.credentials import authenticate_headers
from auth.errors import InvalidTokenError
from server import routes, studio
from server.assistants import saving_assistants
from server.hosts import is_allowed
from server.load import Load, TooManyRequestsError
from server.noting import noting_denials, noting_edits
from server.origins import is_welcome
from server.payloads import objection, query_objection, store_search_objection
from server.requests import (
    Header,
    address_of,
    answer,
    header_of,
    is_direct_from_loopback,
    read_body,
    replay,
    with_headers,
)
from server.revocation import end_when_revoked
from server.settings import ServerSettings, get_settings
from server.startup import without_traceback
from storage import threads
from storage.errors import InvalidThreadIdError, StorageError

PLATFORM_KEY = "warren.platform"

MAX_AUTH_BODY_BYTES = 64 * 1024
"""A name and a password need no more; what is larger is refused before it is parsed."""

BODY_SECONDS = 60.0
"""How long a body may take. What is held meanwhile is bounded by `server.load` and the limits above."""

_KIB = 1024
_OWN_PREFIX = "/api/"
_AUTH_PREFIX = "/api/auth/"
_OF_THREAD = "/threads/{uuid}"
_OF_SESSION = ("/api/sessions/", "/api/chat/", "/api/resume/")
_UUID = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

# The first would have Studio's user stand in for anyone; the others are copied into a run's stored
# configuration and steer where its traces go.
_DROPPED_HEADERS: Final = frozenset({b"x-auth-scheme", b"langsmith-trace", b"baggage"})

_UNSAFE_METHODS: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})

_SECURITY_HEADERS: Final[tuple[Header, ...]] = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


DATABASE_AWAY = "The database cannot be reached; try again in a moment."


class RefusedError(Exception):
    """A request is answered here and goes no further."""

    def __init__(self, status: int, detail: str) -> None:
        self.status = status
        self.detail = detail


class Guard:
    """Let through only what has a served route, a known Host, a canonical path and a bounded body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._load = Load()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            # No websocket is served, see server.routes. Closed before it is accepted, it answers 403.
            await send({"type": "websocket.close", "code": 1008})
        else:
            scope["app"].state.platform = self.app
            await self.app(scope, receive, without_traceback(send))

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = routes.match(scope["method"], scope["path"])
        if route is None:
            await answer(send, 404, "Not Found")
            return
        send = noting_denials(send, scope, route.template)
        if route.template.startswith(_OWN_PREFIX):
            send = with_headers(send, _SECURITY_HEADERS)
        try:
            path = _admit(scope, route)
            inner = await self._inner_scope(scope, path)
            username = await _username(inner)
            with self._load.one_more(username or address_of(scope)):
                await self._serve(inner, receive, send, route, username)
        except RefusedError as refusal:
            await answer(send, refusal.status, refusal.detail)
        except TooManyRequestsError as error:
            await answer(send, 429, str(error), [(b"retry-after", b"1")])

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, route: routes.Route, username: str | None
    ) -> None:
        """Serve a request; what is refused raises before it is answered."""
        path = scope["path"]
        # Whoever should have said who they are, and has not, is refused behind us unheard.
        is_heard = username is not None or route.template in routes.PUBLIC
        body = await _read_body(receive, path, username) if is_heard else b""
        if (problem := objection(body)) and not path.startswith(_AUTH_PREFIX):
            raise RefusedError(422, problem)
        if (scope["method"], route.template) == routes.SEARCHES_STORE and is_heard:
            _require_prefix(body)
        with _asking_the_database():
            if route.template in routes.REFUSED_IN_STREAM and username is not None:
                await _require_owner(username, routes.thread_of(route, path))
            if username is not None and (thread_id := _thread_named(route, path)) is not None:
                await scope["app"].state.thread_rows.restore(thread_id, username)
        if (scope["method"], route.template) in routes.CHANGES_ASSISTANTS:
            send = saving_assistants(send, partial(authenticate_headers, dict(scope["headers"])))
        if (scope["method"], route.template) == routes.EDITS_STATE and username is not None:
            send = noting_edits(send, scope, username, routes.thread_of(route, path))
        await end_when_revoked(self.app, scope, replay(body, receive), send)

    async def _inner_scope(self, scope: Scope, path: str) -> dict[str, Any]:
        headers = [(name, value) for name, value in scope["headers"] if name not in _DROPPED_HEADERS]
        if not path.startswith(_OWN_PREFIX) and (credentials := await studio.credentials(scope)) is not None:
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


def _admit(scope: Scope, route: routes.Route) -> str:
    """Return the path of a request for something that is served here, in its canonical form."""
    settings = get_settings()
    if not _is_shown(route.template, scope, settings):
        raise RefusedError(404, "Not Found")
    # A health check comes from wherever the container's network is.
    if route.template != "/ok" and not is_allowed(header_of(scope, b"host"), settings.allowed_hosts):
        raise RefusedError(421, "This server does not go by that Host; see ALLOWED_HOSTS.")
    origin = header_of(scope, b"origin")
    if origin and scope["method"] in _UNSAFE_METHODS and not is_welcome(origin, header_of(scope, b"host")):
        raise RefusedError(403, "Pages of that origin may not ask here; see CORS_ORIGINS.")
    if problem := query_objection(scope["query_string"]):
        raise RefusedError(422, problem)
    try:
        return routes.canonical(route, scope["path"])
    except InvalidThreadIdError as error:
        raise RefusedError(422, str(error)) from None


async def _username(scope: Scope) -> str | None:
    """Return who sent a request, None if its headers do not prove it."""
    try:
        with _asking_the_database():
            return await authenticate_headers(dict(scope["headers"]))
    except InvalidTokenError:
        return None


@contextmanager
def _asking_the_database() -> Iterator[None]:
    try:
        yield
    except (psycopg.OperationalError, StorageError):
        raise RefusedError(503, DATABASE_AWAY) from None


async def _read_body(receive: Receive, path: str, username: str | None) -> bytes:
    # Whoever has not said who they are gets no more room than a login takes.
    is_small = username is None or path.startswith(_AUTH_PREFIX)
    limit = MAX_AUTH_BODY_BYTES if is_small else get_settings().max_body_kib * _KIB
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await read_body(receive, limit)
    except TimeoutError:
        raise RefusedError(408, f"The body took longer than {BODY_SECONDS:.0f} s.") from None
    if body is None:
        raise RefusedError(413, f"The body is larger than {limit} bytes.")
    return body


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


def _require_prefix(body: bytes) -> None:
    if problem := store_search_objection(body):
        raise RefusedError(422, problem)


async def _require_owner(username: str, thread_id: UUID) -> None:
    record = await threads.find_for_reading(thread_id)
    if record is not None and record.owner != username:
        raise RefusedError(403, f"Access denied to thread {thread_id}")
    if record is None or not record.live:
        raise RefusedError(404, f"Thread {thread_id} not found")


def _thread_named(route: routes.Route, path: str) -> UUID | None:
    if route.template.startswith(_OF_THREAD):
        return routes.thread_of(route, path)
    found = _UUID.search(path) if route.template.startswith(_OF_SESSION) else None
    return UUID(found[0]) if found else None
