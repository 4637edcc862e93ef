"""The long-term store that langgraph.json names: LangGraph's own Postgres store on Warren's pool."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from langgraph.store.postgres.aio import AsyncPostgresStore

from storage.database import get_pool


@asynccontextmanager
async def store() -> AsyncIterator[AsyncPostgresStore]:
    """Yield the store for the running event loop; the platform enters this once per loop."""
    yield AsyncPostgresStore(await get_pool())
