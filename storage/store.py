"""The long-term store that langgraph.json names: LangGraph's own Postgres store on Warren's pool."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from langgraph.store.base import BaseStore
from langgraph.store.postgres.aio import AsyncPostgresStore

from storage.database import get_pool


class UnbatchedStore(AsyncPostgresStore):
    """A store whose operations go to Postgres one by one.

    LangGraph's sends whatever arrives in one turn of the event loop as one pipeline, whoever's it is: a
    value that Postgres refuses fails all of them, so that one user could fail everybody's operations.
    """

    aget = BaseStore.aget
    asearch = BaseStore.asearch
    aput = BaseStore.aput
    adelete = BaseStore.adelete
    alist_namespaces = BaseStore.alist_namespaces

    def _ensure_task(self) -> None:
        """Start no task: there is no batch to collect."""


@asynccontextmanager
async def store() -> AsyncIterator[UnbatchedStore]:
    """Yield the store for the running event loop; the platform enters this once per loop."""
    yield UnbatchedStore(await get_pool())
