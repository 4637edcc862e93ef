"""Giving the platform back the thread rows it has lost.

The in-memory runtime keeps thread rows in the process; Postgres keeps what they are made of. After a
restart every live thread of the registry gets a row at once (owner, metadata, times, status), so that
listing and resuming work. Its values and interrupts are decoded when the thread is first touched, and
for the latest threads in the background. What another server on the same database has made since gets its
row when its owner first asks for it here; until then no list has it.

Other runtimes keep their rows themselves: there is nothing to restore.
"""

import asyncio
from typing import Any
from uuid import UUID

import structlog

from server.runtime import is_in_memory
from storage import threads
from storage.threads import ThreadSummary

GRAPH_ID = "agent"
"""The graph's name in langgraph.json, and so of the assistant that the platform makes of it."""

_BACKGROUND_LIMIT = 200
_log = structlog.stdlib.get_logger(__name__)


class ThreadRows:
    """The platform's thread rows, rebuilt from the registry and completed on first use."""

    def __init__(self) -> None:
        self._incomplete: dict[UUID, asyncio.Lock] = {}
        self._with_row: set[UUID] = set()

    async def rebuild(self) -> None:
        """Make the platform's rows those of the registry: add what is missing, drop what is not live."""
        if not is_in_memory():
            return
        from langgraph_runtime_inmem.database import GLOBAL_STORE  # noqa: PLC0415 - only this runtime has it

        live = await threads.live_threads()
        # Rows that `langgraph dev` has pickled are older than the registry: the registry wins.
        busy = {run["thread_id"] for run in GLOBAL_STORE["runs"] if run["status"] in ("pending", "running")}
        kept = {row["thread_id"]: row for row in GLOBAL_STORE["threads"] if row["thread_id"] in busy}
        GLOBAL_STORE["threads"] = [kept.get(one.thread_id) or _row(one) for one in live]
        self._incomplete = {
            one.thread_id: asyncio.Lock() for one in live if one.has_checkpoint and one.thread_id not in kept
        }
        self._with_row = {one.thread_id for one in live}
        if live:
            await _log.ainfo("Restored threads from the registry", threads=len(live))

    async def restore(self, thread_id: UUID, owner: str) -> None:
        """Add the row of a thread of `owner`'s that another server has made, and complete it.

        Asks Postgres about a thread without a row only; one that is unknown, deleted or another's gets none.
        """
        if is_in_memory() and thread_id not in self._with_row:
            if not _has_row(thread_id):
                summary = await threads.live_thread(thread_id)
                if summary is None or summary.owner != owner:
                    return
                self._add(summary)
            self._with_row.add(thread_id)
        await self.complete(thread_id)

    def _add(self, summary: ThreadSummary) -> None:
        from langgraph_runtime_inmem.database import GLOBAL_STORE  # noqa: PLC0415 - only this runtime has it

        if _has_row(summary.thread_id):
            return  # another request was quicker
        GLOBAL_STORE["threads"].append(_row(summary))
        if summary.has_checkpoint:
            self._incomplete[summary.thread_id] = asyncio.Lock()

    async def forget(self, thread_id: UUID, _: str) -> None:
        """Keep nothing of a thread that has been deleted."""
        self._with_row.discard(thread_id)
        self._incomplete.pop(thread_id, None)

    async def complete(self, thread_id: UUID) -> None:
        """Fill in a restored row's values and interrupts, once. Does nothing to any other row."""
        lock = self._incomplete.get(thread_id)
        if lock is None:
            return
        async with lock:
            if thread_id in self._incomplete:
                await _decode_state(thread_id)
                self._incomplete.pop(thread_id, None)

    async def complete_latest(self) -> None:
        """Complete the latest threads' rows one after the other, so that lists of them show values."""
        for thread_id in list(self._incomplete)[:_BACKGROUND_LIMIT]:
            await self.complete(thread_id)


def _has_row(thread_id: UUID) -> bool:
    from langgraph_runtime_inmem.database import GLOBAL_STORE  # noqa: PLC0415 - only this runtime has it

    # The platform appends, and a thread is first asked for when it is new.
    return any(row["thread_id"] == thread_id for row in reversed(GLOBAL_STORE["threads"]))


def _row(summary: ThreadSummary) -> dict[str, Any]:
    from langgraph_api.graph import get_assistant_id  # noqa: PLC0415 - it needs the platform's set-up

    return {
        "thread_id": summary.thread_id,
        "created_at": summary.created_at,
        "updated_at": summary.updated_at,
        "state_updated_at": summary.updated_at,
        "metadata": {
            **summary.metadata,
            "owner": summary.owner,
            "graph_id": GRAPH_ID,
            "assistant_id": str(get_assistant_id(GRAPH_ID)),
        },
        "status": "interrupted" if summary.interrupted else "idle",
        "config": {},
        "values": None,
    }


async def _decode_state(thread_id: UUID) -> None:
    from langgraph_runtime_inmem.database import connect  # noqa: PLC0415 - only this runtime has it
    from langgraph_runtime_inmem.ops import Threads  # noqa: PLC0415 - only this runtime has it

    async with connect() as conn:
        row = next((row for row in conn.store["threads"] if row["thread_id"] == thread_id), None)
        if row is None or row["status"] == "busy":
            return
        updated_at = row["updated_at"]
        config = {"configurable": {"thread_id": str(thread_id)}}
        state = await Threads.State.get(conn, config)
        tasks = [{"id": task.id, "interrupts": list(task.interrupts)} for task in state.tasks]
        await Threads.set_status(
            conn, thread_id, {"next": list(state.next), "values": state.values, "tasks": tasks}, None
        )
        row.update(updated_at=updated_at, state_updated_at=updated_at)
