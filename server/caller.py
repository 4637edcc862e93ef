"""Calling the platform's own routes as the user whose request is being served.

Never through the SDK's loopback client: that one is a superuser, and runs made by it have no identity.
The platform is called in this process, through everything that stands behind the guard, so that its
authentication, its authorization handlers and its filters judge the call like any other.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import Request
from langgraph_api.asgi_transport import ASGITransport
from langgraph_sdk.client import LangGraphClient

from server.guard import PLATFORM_KEY

_FORWARDED_HEADERS = ("authorization", "x-api-key")
# The platform never sees this name on a wire; it only makes an absolute URL.
_BASE_URL = "http://warren.internal"


@asynccontextmanager
async def platform_as_caller(request: Request) -> AsyncIterator[LangGraphClient]:
    """Yield a client of the platform that is whoever sent `request`.

    The transport builds each scope afresh (its root_path empty, and no user, auth or state in it) and
    hands on chunks as they are made, unlike httpx's own. Of the caller's headers only the credentials go
    along. Leaving the context ends streams that are still open.
    """
    headers = {name: value for name in _FORWARDED_HEADERS if (value := request.headers.get(name)) is not None}
    transport = ASGITransport(
        app=request.scope[PLATFORM_KEY],
        raise_app_exceptions=False,
        client=tuple(request.scope.get("client") or ("", 0)),
    )
    # No time limit: nothing crosses a network, and an agent may think for minutes.
    async with httpx.AsyncClient(
        transport=transport,
        base_url=_BASE_URL,
        headers=headers,
        timeout=None,  # noqa: S113
    ) as http_client:
        yield LangGraphClient(http_client)
