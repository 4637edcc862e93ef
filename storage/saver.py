"""LangGraph's Postgres saver, with what the platform asks of one and the stock saver lacks.

That is deleting a run's checkpoints and copying a thread; and a thread's deletion is made final.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any
from uuid import UUID

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from storage import threads
from storage.database import Pool, get_pool

deleting_within: ContextVar[UUID | None] = ContextVar("deleting_within", default=None)
"""The thread that the caller of a run's deletion was checked against.

`DELETE /threads/{mine}/runs/{theirs}` reaches `adelete_for_runs` with the run's id alone, before the
platform looks whether that run belongs to that thread; the authorization handler sets this.
"""

_COPIES_AT_ONCE = 2

_LISTED_BYTES = 32 << 20
"""The most that the states of one answer may take."""

_STORED_BYTES = """
SELECT (
    SELECT coalesce(sum(octet_length(blob)), 0) FROM checkpoint_blobs WHERE thread_id = %(thread_id)s
) + (
    SELECT coalesce(sum(octet_length(blob)), 0) FROM checkpoint_writes WHERE thread_id = %(thread_id)s
) AS bytes
"""

# A run's checkpoints go only where nothing of another run builds on them: messages are kept as
# differences, so that taking a run out of the middle would take later messages with it.
_DELETE_RUNS = """
WITH doomed AS (
    SELECT thread_id, checkpoint_ns, checkpoint_id FROM checkpoints
    WHERE metadata ->> 'run_id' = ANY(%(run_ids)s)
    AND (%(thread_id)s::text IS NULL OR thread_id = %(thread_id)s)
), built_upon AS (
    SELECT DISTINCT child.thread_id, child.checkpoint_ns FROM checkpoints AS child
    JOIN doomed ON child.thread_id = doomed.thread_id
        AND child.checkpoint_ns = doomed.checkpoint_ns
        AND child.parent_checkpoint_id = doomed.checkpoint_id
    WHERE NOT (coalesce(child.metadata ->> 'run_id', '') = ANY(%(run_ids)s))
), deleted AS (
    DELETE FROM checkpoints USING doomed
    WHERE (checkpoints.thread_id, checkpoints.checkpoint_ns, checkpoints.checkpoint_id)
        = (doomed.thread_id, doomed.checkpoint_ns, doomed.checkpoint_id)
    AND NOT EXISTS (
        SELECT 1 FROM built_upon
        WHERE (built_upon.thread_id, built_upon.checkpoint_ns) = (doomed.thread_id, doomed.checkpoint_ns)
    )
    RETURNING checkpoints.thread_id, checkpoints.checkpoint_ns, checkpoints.checkpoint_id
)
DELETE FROM checkpoint_writes USING deleted
WHERE (checkpoint_writes.thread_id, checkpoint_writes.checkpoint_ns, checkpoint_writes.checkpoint_id)
    = (deleted.thread_id, deleted.checkpoint_ns, deleted.checkpoint_id)
"""

_COPY_THREAD = (
    """
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT %(target)s, checkpoint_ns, channel, version, type, blob
    FROM checkpoint_blobs WHERE thread_id = %(source)s
    """,
    """
    INSERT INTO checkpoint_writes
        (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
    SELECT %(target)s, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob
    FROM checkpoint_writes WHERE thread_id = %(source)s
    """,
    """
    INSERT INTO checkpoints
        (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
    SELECT %(target)s, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint,
        metadata || jsonb_build_object('thread_id', %(target)s::text)
    FROM checkpoints WHERE thread_id = %(source)s
    """,
)

_PURGE_DELETED = """
WITH buried AS (
    SELECT thread_id::text AS thread_id FROM thread_owners WHERE deleted_at IS NOT NULL
), checkpoints_gone AS (
    DELETE FROM checkpoints USING buried WHERE checkpoints.thread_id = buried.thread_id
), writes_gone AS (
    DELETE FROM checkpoint_writes USING buried WHERE checkpoint_writes.thread_id = buried.thread_id
)
DELETE FROM checkpoint_blobs USING buried WHERE checkpoint_blobs.thread_id = buried.thread_id
"""


class WarrenSaver(AsyncPostgresSaver):
    """Postgres checkpoints of threads that the registry knows."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        # The stock saver lets one caller at a time through, which a single connection needs and a pool
        # does not: one person's slow checkpoint would hold everybody's.
        self.lock = nullcontext()  # type: ignore[assignment]
        self._copying = asyncio.Semaphore(_COPIES_AT_ONCE)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - the base class's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """As the stock saver, but of a large thread fewer at a time than asked for; `before` brings the next.

        Each stands for a whole state: a thousand of a thread with megabytes to say would not fit in memory.
        The platform hands a client's `before` on as a checkpoint outside a config.
        """
        if before is not None and "configurable" not in before:
            before = {"configurable": dict(before)}
        if limit is not None and config is not None:
            stored = await self._stored_bytes(config["configurable"]["thread_id"])
            limit = min(limit, max(_LISTED_BYTES // (stored + 1), 1))
        async for found in super().alist(config, filter=filter, before=before, limit=limit):
            yield found

    async def _stored_bytes(self, thread_id: str) -> int:
        """Return the size of all that is kept of a thread, which none of its states exceeds."""
        async with self._cursor() as cursor:
            await cursor.execute(_STORED_BYTES, {"thread_id": thread_id})
            row = await cursor.fetchone()
        return int(row["bytes"]) if row else 0

    async def adelete_thread(self, thread_id: str) -> None:
        """Bury the thread first, so that a crash half-way never brings it back, then delete its state."""
        await threads.bury(UUID(thread_id))
        await super().adelete_thread(thread_id)

    async def adelete_for_runs(self, run_ids: Iterable[str]) -> None:
        """Delete the checkpoints of runs, within the thread the caller was checked against if any."""
        thread_id = deleting_within.get()
        async with self._cursor() as cursor:
            await cursor.execute(
                _DELETE_RUNS,
                {
                    "run_ids": [str(run_id) for run_id in run_ids],
                    "thread_id": str(thread_id) if thread_id else None,
                },
            )

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all state of one thread to another, new one."""
        parameters = {"source": source_thread_id, "target": target_thread_id}
        # Of large threads this takes seconds, and one user's many must not take all connections.
        async with self._copying, self._cursor(pipeline=True) as cursor:
            for statement in _COPY_THREAD:
                await cursor.execute(statement, parameters)


async def purge_deleted() -> None:
    """Delete what a crash or a run in its last breath has left of deleted threads."""
    pool = await get_pool()
    async with pool.connection() as conn:
        await conn.execute(_PURGE_DELETED)
