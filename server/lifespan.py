"""What runs beside the platform: opened before the first request, closed after the last."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

import psycopg
import structlog
from fastapi import FastAPI

from agent.model import build_model, probe_model
from auth import standing
from auth.secret import signing_key
from sandbox.containers import get_containers
from sandbox.errors import SandboxError
from sandbox.lifecycle import get_lifecycle
from server import (
    corrections,
    documentation,
    event_streams,
    listings,
    queue,
    replays,
    schemas,
    studio,
    subscribers,
)
from server.assistants import load_assistants
from server.disabled_users import stop_disabled_users_runs
from server.restore import ThreadRows
from server.selfcheck import check_that_doors_are_shut
from server.settings import get_settings
from server.startup import telling_in_one_line
from storage import audit, threads
from storage.database import get_pool, keep_embedded_running
from storage.errors import StorageError
from storage.ids import SessionId
from storage.saver import purge_deleted

_STOP_SECONDS = 5.0

_log = structlog.stdlib.get_logger(__name__)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Check what a server cannot do without, restore what a restart has lost, and clean up behind a crash.

    Whatever raises here stops the server: it never starts half open.
    """
    with telling_in_one_line():
        rows = await _prepare(app)
    background = [
        _in_background(rows.complete_latest()),
        _in_background(purge_deleted()),
        _in_background(audit.purge_daily()),
        _in_background(get_lifecycle().run()),
        _in_background(keep_embedded_running()),
        _in_background(stop_disabled_users_runs(app.state.platform)),
    ]
    try:
        yield
    finally:
        for task in background:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await _stop_sandboxes()
        await audit.flush()
        await get_containers().close()


async def _prepare(app: FastAPI) -> ThreadRows:
    await asyncio.to_thread(signing_key)
    await get_pool()
    if warning := await probe_model(await asyncio.to_thread(build_model)):
        await _log.awarning(warning)
    corrections.install()
    listings.install()
    schemas.install()
    documentation.install()
    settings = get_settings()
    queue.install(wake=settings.queue_wake, most_each=settings.max_runs_per_user_at_once)
    threads.on_deletion(_remove_sandbox)
    threads.on_deletion(_forget_streams)
    replays.install()
    subscribers.install()
    event_streams.install()
    rows = app.state.thread_rows = ThreadRows()
    threads.on_deletion(rows.forget)
    await rows.rebuild()
    await load_assistants()
    # The guard would refuse them alone; the platform behind it must not need the guard.
    for doors in (app, app.state.platform):
        await check_that_doors_are_shut(doors)
    await _warn_of_studio()
    return rows


async def _warn_of_studio() -> None:
    if (username := get_settings().studio_user) is None:
        return
    if await standing.of_user(username) is None:
        await _log.awarning(
            "STUDIO_USER names nobody, so Studio is not let in: add that user, or correct the name",
            username=username,
        )
        return
    await _log.awarning(
        "STUDIO_USER is set: LangGraph Studio in a browser on this machine acts as that user",
        username=username,
        in_force=studio.is_local_only(),
    )


async def _stop_sandboxes() -> None:
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await get_lifecycle().stop()
    except (TimeoutError, psycopg.Error, SandboxError, StorageError) as error:
        await _log.awarning("Not all sandboxes stand still", error=str(error))


async def _remove_sandbox(thread_id: UUID, owner: str) -> None:
    try:
        await get_containers().remove(SessionId(owner, thread_id))
    except (psycopg.Error, SandboxError, StorageError) as error:
        # The thread is a tombstone already: its container cannot be used, and will be found and removed.
        await _log.awarning("A deleted thread's container was not removed", error=str(error))


async def _forget_streams(thread_id: UUID, _: str) -> None:
    if (kept := replays.install()) is not None:
        kept.forget(thread_id)


def _in_background(work: Coroutine[Any, Any, object]) -> asyncio.Task[None]:
    async def logged() -> None:
        try:
            await work
        except Exception:  # noqa: BLE001 - see below
            # Clean-up that fails (Docker may be down) is done again at the next start.
            await _log.aexception("Clean-up after the start failed")

    return asyncio.create_task(logged())
