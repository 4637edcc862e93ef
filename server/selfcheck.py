"""The last look before the door opens: whoever has no token, or a forged one, must not be served."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import jwt
from starlette.types import ASGIApp, Receive, Scope, Send

from server.noting import UNNOTED_KEY

_PROBE = "/threads/search"
_FOREIGN_KEY = "a key that is not this server's own"
_LOGGERS_OF_REQUESTS = ("langgraph_api.server", "httpx")


class OpenDoorError(Exception):
    """The server would answer a request without a valid token."""


async def check_that_doors_are_shut(app: ASGIApp) -> None:
    """Ask the finished application, in this process, one anonymous and one forged request.

    The platform starts open when it finds no authentication to load; this is what notices.

    Raises:
        OpenDoorError: if either is answered with anything but 401.
    """
    now = int(time.time())
    claims = {"sub": "admin", "iat": now, "exp": now + 60, "iss": "warren", "aud": "warren", "ver": 0}
    forged = jwt.encode(claims, _FOREIGN_KEY, algorithm="HS256")

    async def unnoted(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, UNNOTED_KEY: True}, receive, send)

    transport = httpx.ASGITransport(app=unnoted, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for what, headers in (
            ("without a token", {}),
            ("with a forged token", {"Authorization": f"Bearer {forged}"}),
        ):
            with _unlogged_refusals():
                answer = await client.post(_PROBE, json={}, headers=headers)
            if answer.status_code != httpx.codes.UNAUTHORIZED:
                raise OpenDoorError(f"A request {what} was answered with {answer.status_code}, not 401.")


@contextmanager
def _unlogged_refusals() -> Iterator[None]:
    """Keep a request and its refusal out of the log, where they would look like somebody's; errors stay.

    Nothing is served yet, so no other request is kept out.
    """

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    loggers = [logging.getLogger(name) for name in _LOGGERS_OF_REQUESTS]
    for logger in loggers:
        logger.addFilter(is_error)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_error)
