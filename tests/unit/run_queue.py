"""The in-memory runtime's queue in the test's process, with a loop that looks as the runtime's own does."""

import asyncio
import time
import uuid
from types import ModuleType
from typing import Any


class Queue:
    """Puts runs, and looks for them as the runtime's `queue.queue` does."""

    def __init__(self, ops: ModuleType) -> None:
        self.ops = ops
        self.conn = ops.InMemConnectionProto()
        self.picked: asyncio.Queue[uuid.UUID] = asyncio.Queue()
        self.assistant_id = uuid.uuid4()
        self.conn.store["assistants"] = [
            {
                "assistant_id": self.assistant_id,
                "graph_id": "agent",
                "config": {},
                "context": {},
                "metadata": {"created_by": "system"},
            }
        ]

    async def work(self) -> None:
        run = None
        while True:
            wait, run = run is None, None
            async for run, _attempt in self.ops.Runs.next(wait=wait, limit=10):
                self.picked.put_nowait(run["run_id"])

    async def put(self, thread_id: uuid.UUID, owner: str | None = None, **options: Any) -> uuid.UUID:
        """Create a run as the platform does for a request of `owner`."""
        run_id = uuid.uuid4()
        created = await self.ops.Runs.put(
            self.conn,
            self.assistant_id,
            {"config": {"configurable": {"langgraph_auth_user_id": owner}}},
            user_id=owner,
            thread_id=thread_id,
            run_id=run_id,
            metadata={},
            prevent_insert_if_inflight=False,
            multitask_strategy="enqueue",
            if_not_exists="create",
            **options,
        )
        assert (await anext(created))["run_id"] == run_id
        return run_id

    def enter(self, run_id: uuid.UUID, thread_id: uuid.UUID) -> Any:
        return self.ops.Runs.enter(run_id, thread_id, asyncio.get_running_loop(), False)

    async def end(self, run_id: uuid.UUID) -> None:
        await self.ops.Runs.set_status(self.conn, run_id, "success")

    async def put_and_measure(self) -> float:
        started = time.perf_counter()
        run_id = await self.put(uuid.uuid4())
        assert await self.picked.get() == run_id
        return time.perf_counter() - started
