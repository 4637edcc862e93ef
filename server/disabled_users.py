"""Stopping what a user's agents are doing once the user has been disabled."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psycopg
import structlog
from langgraph_api.asgi_transport import ASGITransport
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import APIStatusError
from starlette.types import ASGIApp

from auth.accounts import lately_disabled_users
from server.sessions import active_runs
from storage.errors import StorageError

_POLL_SECONDS = 1.0
_PAGE = 1000
_BASE_URL = "http://warren.internal"
# The platform's own mark of the server asking itself. No request from outside can carry it.
_SERVER_ITSELF = "/noauth"

_log = structlog.stdlib.get_logger(__name__)


async def stop_disabled_users_runs(platform: ASGIApp) -> None:
    """Cancel the runs of users who have been disabled, within about a second, until cancelled itself.

    It is the server's own act and nobody's request, so it may ask as the platform's superuser.

    Args:
        platform: the application behind the guard.
    """
    transport = ASGITransport(app=platform, root_path=_SERVER_ITSELF)
    async with httpx.AsyncClient(transport=transport, base_url=_BASE_URL) as http_client:
        client = LangGraphClient(http_client)
        while True:
            try:
                if names := await lately_disabled_users():
                    await _cancel_runs_of(names, client)
            except (psycopg.Error, StorageError, APIStatusError) as error:
                await _log.awarning("Disabled users' runs could not be looked for", error=str(error))
            await asyncio.sleep(_POLL_SECONDS)


async def _cancel_runs_of(names: frozenset[str], client: LangGraphClient) -> None:
    async for thread in _busy_threads(client):
        if thread["metadata"].get("owner") not in names:
            continue
        for run in await active_runs(client, thread["thread_id"]):
            try:
                await client.runs.cancel(thread["thread_id"], run["run_id"])
            except APIStatusError as error:
                # It came to its end by itself meanwhile.
                if error.response.status_code not in (404, 409):
                    raise
            else:
                await _log.ainfo("Cancelled a disabled user's run", run_id=run["run_id"])


async def _busy_threads(client: LangGraphClient) -> AsyncIterator[Any]:
    offset = 0
    while page := await client.threads.search(
        status="busy", limit=_PAGE, offset=offset, select=["thread_id", "metadata"]
    ):
        for thread in page:
            yield thread
        offset += len(page)
