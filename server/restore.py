"""Giving the platform back the thread rows it has lost.

The in-memory runtime keeps thread rows in the process; Postgres keeps what they are made of. After a
restart every live thread of the registry gets a row at once (owner, metadata, times, status), so that
listing and resuming work. Its values and interrupts are decoded when the thread is first touched, and
for the latest threads in the background.

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

_BACKGROUND_LIMIT = 200
_log = structlog.stdlib.get_logger(__name__)


class ThreadRows:
    """The platform's thread rows, rebuilt from the registry and completed on first use."""

    def __init__(self) -> None:
        self._incomplete: dict[UUID, asyncio.Lock] = {}

    async def rebuild(self) -> None:
        """Make the platform's rows those of the registry: add what is missing, drop what is not live."""
        if not is_in_memory():
            return
        from langgraph_api.graph import get_assistant_id  # noqa: PLC0415 - it needs the platform's set-up
        from langgraph_runtime_inmem.database import GLOBAL_STORE  # noqa: PLC0415 - only this runtime has it

        assistant_id = str(get_assistant_id(GRAPH_ID))
        live = await threads.live_threads()
        # Rows that `langgraph dev` has pickled are older than the registry: the registry wins.
        busy = {run["thread_id"] for run in GLOBAL_STORE["runs"] if run["status"] in ("pending", "running")}
        kept = {row["thread_id"]: row for row in GLOBAL_STORE["threads"] if row["thread_id"] in busy}
        GLOBAL_STORE["threads"] = [kept.get(one.thread_id) or _row(one, assistant_id) for one in live]
        self._incomplete = {
            one.thread_id: asyncio.Lock() for one in live if one.has_checkpoint and one.thread_id not in kept
        }
        if live:
            await _log.ainfo("Restored threads from the registry", threads=len(live))

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


def _row(summary: ThreadSummary, assistant_id: str) -> dict[str, Any]:
    return {
        "thread_id": summary.thread_id,
        "created_at": summary.created_at,
        "updated_at": summary.updated_at,
        "state_updated_at": summary.updated_at,
        "metadata": {
            **summary.metadata,
            "owner": summary.owner,
            "graph_id": GRAPH_ID,
            "assistant_id": assistant_id,
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
