"""The registry of threads: whose each one is, and that a deleted one stays deleted.

First claim wins. A deleted thread leaves a tombstone, so that its id can never be claimed again. All
SQL of the registry is here.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from cachetools import TTLCache
from psycopg.rows import class_row, scalar_row
from psycopg.types.json import Jsonb

from storage.database import get_pool, get_urgent_pool
from storage.errors import OrphanedThreadError, TooManyThreadsError

_CACHE_SECONDS = 1.0
_CACHE_SIZE = 10_000


@dataclass(frozen=True, slots=True)
class ThreadRecord:
    """A row of the registry. `deleted_at` is set once the thread has been deleted."""

    thread_id: UUID
    owner: str
    deleted_at: datetime | None

    @property
    def live(self) -> bool:
        return self.deleted_at is None


@dataclass(frozen=True, slots=True)
class ThreadSummary:
    """What is known of a live thread without decoding its state."""

    thread_id: UUID
    owner: str
    metadata: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    interrupted: bool
    has_checkpoint: bool


DeletionHook = Callable[[UUID, str], Awaitable[None]]

_recent: TTLCache[UUID, ThreadRecord] = TTLCache(_CACHE_SIZE, _CACHE_SECONDS)
_deletion_hooks: list[DeletionHook] = []

# What is counted has been committed: claims made at once may all go through where one had room.
_CLAIM = """
WITH claimed AS (
    INSERT INTO thread_owners (thread_id, owner, metadata)
    SELECT %(thread_id)s, %(owner)s, %(metadata)s
    WHERE NOT EXISTS (SELECT 1 FROM checkpoints WHERE checkpoints.thread_id = %(thread_text)s)
    AND (SELECT count(*) FROM thread_owners WHERE owner = %(owner)s AND deleted_at IS NULL) < %(most)s
    ON CONFLICT (thread_id) DO NOTHING
    RETURNING thread_id, owner, deleted_at
)
SELECT thread_id, owner, deleted_at FROM claimed
UNION ALL
SELECT thread_id, owner, deleted_at FROM thread_owners WHERE thread_id = %(thread_id)s
"""

_COUNT_LIVE = "SELECT count(*) FROM thread_owners WHERE owner = %s AND deleted_at IS NULL"

_FIND = "SELECT thread_id, owner, deleted_at FROM thread_owners WHERE thread_id = %s"

# As text, and not as it is kept: compressed, what is large in memory can be small.
_MERGE_METADATA = """
UPDATE thread_owners SET metadata = metadata || %(added)s
WHERE thread_id = %(thread_id)s AND deleted_at IS NULL
AND octet_length((metadata || %(added)s)::text) <= %(max_bytes)s
"""

_SUMMARIES = """
SELECT
    thread.thread_id, thread.owner, thread.metadata, thread.created_at,
    coalesce((latest.checkpoint ->> 'ts')::timestamptz, thread.created_at) AS updated_at,
    latest.checkpoint_id IS NOT NULL AS has_checkpoint,
    EXISTS (
        SELECT 1 FROM checkpoint_writes
        WHERE checkpoint_writes.thread_id = thread.thread_id::text
        AND checkpoint_writes.checkpoint_ns = ''
        AND checkpoint_writes.checkpoint_id = latest.checkpoint_id
        AND checkpoint_writes.channel = '__interrupt__'
    ) AS interrupted
FROM thread_owners AS thread
LEFT JOIN LATERAL (
    SELECT checkpoint_id, checkpoint FROM checkpoints
    WHERE checkpoints.thread_id = thread.thread_id::text AND checkpoint_ns = ''
    ORDER BY checkpoint_id DESC LIMIT 1
) AS latest ON true
WHERE thread.deleted_at IS NULL
ORDER BY updated_at DESC
"""

_BURY = """
UPDATE thread_owners SET deleted_at = now(), metadata = '{}'
WHERE thread_id = %s AND deleted_at IS NULL
RETURNING thread_id, owner, deleted_at
"""


async def live_thread(thread_id: UUID) -> ThreadSummary | None:
    """Return one thread as `live_threads` does; None if it is unknown or deleted."""
    one = f"SELECT * FROM ({_SUMMARIES}) AS live WHERE thread_id = %s"  # noqa: S608 - a constant
    pool = await get_pool()
    async with pool.connection() as conn, conn.cursor(row_factory=class_row(ThreadSummary)) as cursor:
        await cursor.execute(one, (thread_id,))
        return await cursor.fetchone()


async def claim(thread_id: UUID, owner: str, metadata: Mapping[str, Any], most: int) -> ThreadRecord:
    """Register a thread for `owner` unless its id is taken, and return the row that holds the id now.

    The caller compares the record's owner with its own: another's, or a tombstone, means refused.

    Args:
        thread_id: the id.
        owner: who is to have it.
        metadata: what they note on it.
        most: live threads that they may have with this one.

    Raises:
        TooManyThreadsError: the id is free, and the owner has `most` already.
        OrphanedThreadError: the id has no owner but has checkpoints, as after restoring half a backup.
            Whoever names it first must not be given what somebody else said.
    """
    parameters = {
        "thread_id": thread_id,
        "thread_text": str(thread_id),
        "owner": owner,
        "metadata": Jsonb(dict(metadata)),
        "most": most,
    }
    pool = await get_urgent_pool()
    # A second look: when another process has just inserted the same id, this statement's snapshot
    # neither inserts nor sees that row.
    for _ in range(2):
        async with pool.connection() as conn, conn.cursor(row_factory=class_row(ThreadRecord)) as cursor:
            await cursor.execute(_CLAIM, parameters)
            if record := await cursor.fetchone():
                _recent.pop(thread_id, None)
                return record
    if (live := await _count_live(owner)) >= most:
        raise TooManyThreadsError(f"You have {live} threads, as many as one may; delete some first.")
    raise OrphanedThreadError(f"Thread {thread_id} has checkpoints but no owner; it cannot be claimed.")


async def _count_live(owner: str) -> int:
    pool = await get_urgent_pool()
    async with pool.connection() as conn, conn.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute(_COUNT_LIVE, (owner,))
        return int(await cursor.fetchone() or 0)


async def find(thread_id: UUID) -> ThreadRecord | None:
    """Ask Postgres whose a thread is. None: never registered."""
    pool = await get_urgent_pool()
    async with pool.connection() as conn, conn.cursor(row_factory=class_row(ThreadRecord)) as cursor:
        await cursor.execute(_FIND, (thread_id,))
        return await cursor.fetchone()


async def find_for_reading(thread_id: UUID) -> ThreadRecord | None:
    """As `find`, but the answer may be up to one second old. Only for requests that change nothing."""
    record = _recent.get(thread_id)
    if record is None and (record := await find(thread_id)) is not None:
        _recent[thread_id] = record
    return record


async def merge_metadata(thread_id: UUID, metadata: Mapping[str, Any], max_bytes: int) -> bool:
    """Add keys to what a live thread's owner has noted on it, replacing those that exist.

    Returns:
        False, with nothing changed, if it would be larger than `max_bytes` of JSON altogether.
    """
    parameters = {"thread_id": thread_id, "added": Jsonb(dict(metadata)), "max_bytes": max_bytes}
    pool = await get_pool()
    async with pool.connection() as conn:
        cursor = await conn.execute(_MERGE_METADATA, parameters)
        return cursor.rowcount == 1


async def metadata_of(thread_id: UUID) -> dict[str, Any]:
    """Return what a thread's owner has noted on it."""
    pool = await get_pool()
    async with pool.connection() as conn, conn.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute("SELECT metadata FROM thread_owners WHERE thread_id = %s", (thread_id,))
        metadata: dict[str, Any] | None = await cursor.fetchone()
    return metadata or {}


async def live_threads() -> list[ThreadSummary]:
    """Return every live thread, the latest used first."""
    pool = await get_pool()
    async with pool.connection() as conn, conn.cursor(row_factory=class_row(ThreadSummary)) as cursor:
        await cursor.execute(_SUMMARIES)
        return await cursor.fetchall()


def on_deletion(hook: DeletionHook) -> None:
    """Have `hook(thread_id, owner)` awaited whenever a thread has been buried.

    The thread is a tombstone by then and its checkpoints still exist; a hook that raises is the
    caller's bug, since the deletion goes on without it.
    """
    if hook not in _deletion_hooks:
        _deletion_hooks.append(hook)


async def bury(thread_id: UUID) -> None:
    """Turn a thread into a tombstone and run the deletion hooks. Does nothing to an unregistered id."""
    pool = await get_pool()
    async with pool.connection() as conn, conn.cursor(row_factory=class_row(ThreadRecord)) as cursor:
        await cursor.execute(_BURY, (thread_id,))
        record = await cursor.fetchone()
    _recent.pop(thread_id, None)
    if record is not None:
        for hook in _deletion_hooks:
            await hook(thread_id, record.owner)
