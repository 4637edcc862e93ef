"""The last look before the door opens: whoever has no token, or a forged one, must not be served."""

import time

import httpx
import jwt
from starlette.types import ASGIApp

_PROBE = "/threads/search"
_FOREIGN_KEY = "a key that is not this server's own"


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
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for what, headers in (
            ("without a token", {}),
            ("with a forged token", {"Authorization": f"Bearer {forged}"}),
        ):
            answer = await client.post(_PROBE, json={}, headers=headers)
            if answer.status_code != httpx.codes.UNAUTHORIZED:
                raise OpenDoorError(f"A request {what} was answered with {answer.status_code}, not 401.")
