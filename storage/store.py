"""The long-term store that langgraph.json names: LangGraph's own Postgres store on Warren's pool."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

from langgraph.store.base import BaseStore, ListNamespacesOp, Op, Result, SearchOp
from langgraph.store.postgres.aio import AsyncPostgresStore
from psycopg import AsyncCursor
from psycopg.errors import QueryCanceled
from psycopg.rows import DictRow, dict_row

from storage.database import Pool, get_pool
from storage.errors import StoreTooSlowError

SEARCHES_AT_ONCE = 2
"""Of all users: each may keep a processor of Postgres's busy. Of one user it is one."""

TIMEOUT_SECONDS = 5.0
"""How long one statement may take. An ordinary one takes milliseconds."""

_LIMIT_TIME = f"SET LOCAL statement_timeout = {TIMEOUT_SECONDS * 1000:.0f}"


class WarrenStore(AsyncPostgresStore):
    """A store in which one user's operations neither fail another's nor make them wait.

    LangGraph's sends whatever arrives in one turn of the event loop as one pipeline, whoever's it is: a
    value that Postgres refuses fails all of them. Here operations go to Postgres one by one, and those that
    look at many items wait for their turn before they take a connection.
    """

    aget = BaseStore.aget
    asearch = BaseStore.asearch
    aput = BaseStore.aput
    adelete = BaseStore.adelete
    alist_namespaces = BaseStore.alist_namespaces

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self._pool = pool
        self._searching = asyncio.Semaphore(SEARCHES_AT_ONCE)
        # A lock is here for as long as somebody holds or awaits it.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations of one user.

        Raises:
            StoreTooSlowError: if Postgres needs more than `TIMEOUT_SECONDS` for one.
        """
        ops = list(ops)
        searched = [op for op in ops if isinstance(op, SearchOp | ListNamespacesOp)]
        try:
            if not searched:
                return await super().abatch(ops)
            turn = self._turns.setdefault(_owner_of(searched[0]), asyncio.Lock())
            # In this order: whoever waits for their own search takes nobody's place.
            async with turn, self._searching:
                return await super().abatch(ops)
        except QueryCanceled:
            raise StoreTooSlowError from None

    @asynccontextmanager
    async def _cursor(
        self,
        *,
        pipeline: bool = False,  # noqa: ARG002 - the base class's
    ) -> AsyncIterator[AsyncCursor[DictRow]]:
        # Always in one: it sends what begins and limits the transaction along with its first statement.
        async with (
            self._pool.connection() as conn,
            conn.pipeline(),
            conn.transaction(),
            conn.cursor(binary=True, row_factory=dict_row) as cursor,
        ):
            await cursor.execute(_LIMIT_TIME.encode())
            yield cursor

    def _ensure_task(self) -> None:
        """Start no task: there is no batch to collect."""


def _owner_of(op: SearchOp | ListNamespacesOp) -> str:
    """Return the first label of what is searched, by which the store is divided among users."""
    paths: list[Any] = [op.namespace_prefix] if isinstance(op, SearchOp) else _prefixes(op)
    return next((str(path[0]) for path in paths if path), "")


def _prefixes(op: ListNamespacesOp) -> list[Any]:
    return [one.path for one in op.match_conditions or () if one.match_type == "prefix"]


@asynccontextmanager
async def store() -> AsyncIterator[WarrenStore]:
    """Yield the store for the running event loop; the platform enters this once per loop."""
    yield WarrenStore(await get_pool())
