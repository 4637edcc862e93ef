"""Small ASGI parts: looking at a request, reading its body whole, answering it."""

import json
from collections.abc import Iterable

from starlette.types import Message, Receive, Scope, Send

from auth.addresses import client_of
from auth.settings import get_settings
from server.hosts import is_loopback

Header = tuple[bytes, bytes]

_PROXY_HEADERS = frozenset({b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"true-client-ip"})


def header_of(scope: Scope, name: bytes) -> str:
    """Return the first header of that lower-case name, an empty text if there is none."""
    return next((value.decode("latin-1") for header, value in scope["headers"] if header == name), "")


def address_of(scope: Scope) -> str:
    """Return the address of the client that sent a request; see `auth.addresses`."""
    return client_of(scope, get_settings().trusted_proxies)


def is_direct_from_loopback(scope: Scope) -> bool:
    """Tell whether a request comes from this machine itself, not through a proxy on it.

    A proxy need not say that it is one: some of nginx's defaults tell only by speaking HTTP/1.0.
    """
    forwarded = scope.get("http_version") == "1.0" or any(
        name in _PROXY_HEADERS or name.startswith((b"x-forwarded-", b"cf-")) for name, _ in scope["headers"]
    )
    return not forwarded and is_loopback((scope.get("client") or ("", 0))[0])


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """Return the request's body; None if it is larger than `limit` bytes."""
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


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives `body` at once, and then what comes after it: the disconnect."""
    replayed = False

    async def receive_again() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def with_headers(send: Send, headers: Iterable[Header]) -> Send:
    """Return a `send` that adds headers to the answer."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *headers]}
        await send(message)

    return send_with_headers


async def answer(send: Send, status: int, detail: str, headers: Iterable[Header] = ()) -> None:
    """Answer with FastAPI's form of an error."""
    body = json.dumps({"detail": detail}).encode()
    start = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*start, *headers]})
    await send({"type": "http.response.body", "body": body})
