"""Stopping what a user's agents are doing once the user has been disabled."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpx
import structlog
from langgraph_api.asgi_transport import ASGITransport
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import APIStatusError
from starlette.types import ASGIApp

from auth.accounts import lately_disabled_users
from server.sessions import active_runs

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
            with _going_on():
                for name in await lately_disabled_users():
                    with _going_on(username=name):
                        await _cancel_runs_of(name, client)
            await asyncio.sleep(_POLL_SECONDS)


@contextmanager
def _going_on(**what: str) -> Iterator[None]:
    """Note a failure and go on: this must outlive everything that somebody could bring about."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - see above
        _log.warning("A disabled user's runs could not be stopped", error=repr(error), **what)


async def _cancel_runs_of(name: str, client: LangGraphClient) -> None:
    # Nothing but ids is asked for: what a user has written elsewhere may be such that it cannot be sent.
    async for thread_id in _busy_threads_of(name, client):
        with _going_on(username=name, thread_id=thread_id):
            for run in await active_runs(client, thread_id):
                with _going_on(username=name, run_id=run["run_id"]):
                    await _cancel(thread_id, run["run_id"], client)


async def _cancel(thread_id: str, run_id: str, client: LangGraphClient) -> None:
    try:
        await client.runs.cancel(thread_id, run_id)
    except APIStatusError as error:
        # It came to its end by itself meanwhile.
        if error.response.status_code not in (404, 409):
            raise
    else:
        await _log.ainfo("Cancelled a disabled user's run", run_id=run_id)


async def _busy_threads_of(name: str, client: LangGraphClient) -> AsyncIterator[str]:
    offset = 0
    while page := await client.threads.search(
        metadata={"owner": name}, status="busy", limit=_PAGE, offset=offset, select=["thread_id"]
    ):
        for thread in page:
            yield thread["thread_id"]
        offset += len(page)
