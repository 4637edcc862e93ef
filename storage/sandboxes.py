"""The ledger of sandboxes: which run, whose they are, and when each was last used. All its SQL is here.

Several server processes share it. A sandbox that a process is busy with has its use noted again and again, so
nobody takes it for idle; one that is about to be paused or removed has its row locked meanwhile, so whoever
wants to use it waits and then sees what has become of it. A process that dies in between has its lock
released by Postgres.
"""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import DictRow, class_row

from storage.database import get_pool
from storage.ids import SessionId


class Admission(Enum):
    """What becomes of a sandbox that is to run."""

    ADMITTED = "admitted"
    USER_AT_CAPACITY = "user at capacity"
    SERVER_AT_CAPACITY = "server at capacity"


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A sandbox, as it was last heard of."""

    owner: str
    thread_id: UUID
    running: bool
    used_at: datetime

    @property
    def session(self) -> SessionId:
        return SessionId(self.owner, self.thread_id)


# A process may take a sandbox for idle at once if only itself has used it of late, since it knows what it is
# doing there. When several have, none of them does, and all go by the time.
_NOTED = """
    used_at = clock_timestamp(),
    used_by = CASE
        WHEN sandboxes.used_by = %(process)s OR sandboxes.used_at < clock_timestamp() - %(settled)s
        THEN %(process)s
    END
"""

_NOTE_USE: LiteralString = f"""
UPDATE sandboxes SET {_NOTED}
WHERE instance = %(instance)s AND thread_id = %(thread)s AND running
"""  # noqa: S608 - put together from constants

# A row that is locked is being noted by somebody else, or its lock will be gone by the next time.
_RENEW: LiteralString = f"""
UPDATE sandboxes SET {_NOTED}
WHERE instance = %(instance)s AND thread_id IN (
    SELECT thread_id FROM sandboxes
    WHERE instance = %(instance)s AND thread_id = ANY(%(threads)s) FOR UPDATE SKIP LOCKED
)
"""  # noqa: S608 - put together from constants

_COUNT = """
SELECT count(*) FILTER (WHERE owner = %(owner)s) AS own, count(*) AS everybodys FROM sandboxes
WHERE instance = %(instance)s AND running AND thread_id <> %(thread)s
"""

_ADMIT: LiteralString = f"""
INSERT INTO sandboxes (instance, thread_id, owner, running, used_by, used_at)
VALUES (%(instance)s, %(thread)s, %(owner)s, true, %(process)s, clock_timestamp())
ON CONFLICT (instance, thread_id) DO UPDATE SET running = true, {_NOTED}
"""  # noqa: S608 - put together from constants

_HOLD_LEAST_USED = """
SELECT owner, thread_id, running, used_at FROM sandboxes
WHERE instance = %(instance)s AND running AND thread_id <> ALL(%(busy)s)
    AND (used_by = %(process)s OR used_at < clock_timestamp() - %(settled)s)
    AND (owner = %(owner)s OR NOT %(own)s)
ORDER BY owner <> %(owner)s, used_at LIMIT 1 FOR UPDATE SKIP LOCKED
"""

_HOLD_UNUSED = """
SELECT owner, thread_id, running, used_at FROM sandboxes
WHERE instance = %(instance)s AND (running OR NOT %(running)s) AND thread_id <> ALL(%(busy)s)
    AND used_at < clock_timestamp() - %(unused)s
ORDER BY used_at LIMIT 1 FOR UPDATE SKIP LOCKED
"""

_HOLD_SURPLUS = """
SELECT owner, thread_id, running, used_at FROM sandboxes
WHERE instance = %(instance)s AND owner = %(owner)s AND NOT running AND thread_id <> ALL(%(busy)s)
    AND (SELECT count(*) FROM sandboxes WHERE instance = %(instance)s AND owner = %(owner)s) > %(most)s
ORDER BY used_at LIMIT 1 FOR UPDATE SKIP LOCKED
"""

_HOLD_SETTLED = """
SELECT owner, thread_id, running, used_at FROM sandboxes
WHERE instance = %(instance)s AND thread_id = %(thread)s AND used_at < clock_timestamp() - %(settled)s
FOR UPDATE SKIP LOCKED
"""

_ENTRIES = """
SELECT owner, thread_id, running, used_at FROM sandboxes WHERE instance = %s ORDER BY used_at
"""

_NOTE_RUNNING = """
UPDATE sandboxes SET running = %(running)s WHERE instance = %(instance)s AND thread_id = %(thread)s
"""

_FORGET = "DELETE FROM sandboxes WHERE instance = %(instance)s AND thread_id = %(thread)s"

_ADOPT = """
INSERT INTO sandboxes (instance, thread_id, owner, running, used_at)
VALUES (%(instance)s, %(thread)s, %(owner)s, %(running)s, clock_timestamp()) ON CONFLICT DO NOTHING
"""

_HOLDER_DIES_AFTER = "SET LOCAL idle_in_transaction_session_timeout = '120s'"
"""A process that was stopped while it held a sandbox must not hold it for ever. An engine may take half of
this for what is done with the sandbox meanwhile."""


class Held:
    """A sandbox that nobody else can begin to use, pause or remove until this ends."""

    def __init__(self, conn: AsyncConnection[DictRow], instance: str, entry: LedgerEntry) -> None:
        self.entry = entry
        self._conn = conn
        self._place = {"instance": instance, "thread": entry.thread_id}

    async def note_running(self, running: bool) -> None:
        await self._conn.execute(_NOTE_RUNNING, {**self._place, "running": running})

    async def forget(self) -> None:
        await self._conn.execute(_FORGET, self._place)


@dataclass(frozen=True, slots=True)
class Ledger:
    """The ledger as one process of an installation sees it.

    Args:
        instance: Names the installation: several may share a database.
        process: Names the process.
        settled: How long ago a use must have been noted for other processes to take the sandbox for idle.
            Each process notes those that it is busy with more than twice in that time.
    """

    instance: str
    process: UUID
    settled: timedelta

    async def note_use(self, session: SessionId) -> bool:
        """Note that a sandbox is used now. False: it does not run, and has to be admitted first."""
        async with (await get_pool()).connection() as conn:
            cursor = await conn.execute(
                _NOTE_USE, {**self._us, "process": self.process, "thread": session.thread_id}
            )
            return cursor.rowcount > 0

    async def renew(self, threads: Collection[UUID]) -> None:
        """Note that these sandboxes are still in use."""
        async with (await get_pool()).connection() as conn:
            await conn.execute(_RENEW, {**self._us, "process": self.process, "threads": list(threads)})

    async def admit(self, session: SessionId, most: int, most_of_owner: int) -> Admission:
        """Count a sandbox among those that run, unless `most` do already, or `most_of_owner` of its owner."""
        place = {**self._us, "process": self.process, "thread": session.thread_id, "owner": session.owner}
        async with (await get_pool()).connection() as conn, conn.transaction():
            # Else two processes would each count, and then each admit one.
            await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (self.instance,))
            cursor = await conn.execute(_COUNT, place)
            count = await cursor.fetchone() or {"own": 0, "everybodys": 0}
            if count["own"] >= most_of_owner:
                return Admission.USER_AT_CAPACITY
            if count["everybodys"] >= most:
                return Admission.SERVER_AT_CAPACITY
            await conn.execute(_ADMIT, place)
        return Admission.ADMITTED

    @asynccontextmanager
    async def hold_idle(self, owner: str, *, own: bool, busy: Collection[UUID]) -> AsyncIterator[Held | None]:
        """Hold a running sandbox that is idle, however shortly: one of `owner` first, the least used first.

        Args:
            owner: Whose are taken first.
            own: Take no others.
            busy: Those that this process itself is busy with.
        """
        async with self._hold(
            _HOLD_LEAST_USED, {"process": self.process, "owner": owner, "own": own, "busy": list(busy)}
        ) as held:
            yield held

    @asynccontextmanager
    async def hold_unused(
        self, unused: timedelta, *, running: bool, busy: Collection[UUID]
    ) -> AsyncIterator[Held | None]:
        """Hold a sandbox that has not been used for `unused`, if there is one: the least used first.

        Args:
            unused: For how long.
            running: Only one that runs.
            busy: Those that this process itself is busy with.
        """
        async with self._hold(
            _HOLD_UNUSED, {"unused": unused, "running": running, "busy": list(busy)}
        ) as held:
            yield held

    @asynccontextmanager
    async def hold_surplus(
        self, owner: str, most: int, *, busy: Collection[UUID]
    ) -> AsyncIterator[Held | None]:
        """Hold the paused sandbox of `owner` that was used least, if they have more than `most` in all."""
        async with self._hold(_HOLD_SURPLUS, {"owner": owner, "most": most, "busy": list(busy)}) as held:
            yield held

    @asynccontextmanager
    async def hold_settled(self, session: SessionId) -> AsyncIterator[Held | None]:
        """Hold this sandbox, unless it is in use or somebody else holds it."""
        async with self._hold(_HOLD_SETTLED, {"thread": session.thread_id}) as held:
            yield held

    async def adopt(self, session: SessionId, *, running: bool) -> None:
        """Enter a sandbox that is there but unknown, as used just now."""
        async with (await get_pool()).connection() as conn:
            await conn.execute(
                _ADOPT,
                {**self._us, "thread": session.thread_id, "owner": session.owner, "running": running},
            )

    async def forget(self, session: SessionId) -> None:
        """Strike out a sandbox that is gone. Safe to repeat."""
        async with (await get_pool()).connection() as conn:
            await conn.execute(_FORGET, {"instance": self.instance, "thread": session.thread_id})

    async def entries(self) -> list[LedgerEntry]:
        """Return all sandboxes of the installation, the least used first."""
        async with (
            (await get_pool()).connection() as conn,
            conn.cursor(row_factory=class_row(LedgerEntry)) as cursor,
        ):
            await cursor.execute(_ENTRIES, (self.instance,))
            return await cursor.fetchall()

    @property
    def _us(self) -> dict[str, object]:
        return {"instance": self.instance, "settled": self.settled}

    @asynccontextmanager
    async def _hold(self, query: LiteralString, parameters: dict[str, object]) -> AsyncIterator[Held | None]:
        async with (
            (await get_pool()).connection() as conn,
            conn.transaction(),
            conn.cursor(row_factory=class_row(LedgerEntry)) as cursor,
        ):
            await conn.execute(_HOLDER_DIES_AFTER)
            await cursor.execute(query, {**self._us, **parameters})
            entry = await cursor.fetchone()
            yield Held(conn, self.instance, entry) if entry else None
