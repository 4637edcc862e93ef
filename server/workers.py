"""Which runs have a worker in this process, and whose they are."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from uuid import UUID


@dataclass(eq=False, slots=True)
class Worker:
    """One run's, from the moment the run is taken from the queue."""

    thread_id: UUID
    owner: str | None
    left: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[object] | None = None


class Workers:
    """Who is at work, whatever the rows say: a cancelled run's has ended before its worker has left."""

    def __init__(self) -> None:
        self._by_run: dict[UUID, Worker] = {}

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._by_run

    def of_owners(self) -> Counter[str | None]:
        """Count the workers of each owner."""
        return Counter(worker.owner for worker in self._by_run.values())

    def on_thread(self, thread_id: UUID | None) -> bool:
        """Tell whether a thread has one."""
        return any(worker.thread_id == thread_id for worker in self._by_run.values())

    def take(self, run_id: UUID, thread_id: UUID, owner: str | None) -> Worker:
        """Count a run that is about to be given to a worker."""
        worker = self._by_run[run_id] = Worker(thread_id, owner)
        return worker

    @contextmanager
    def inside(self, run_id: UUID, thread_id: UUID) -> Iterator[Worker]:
        """Be a run's worker, in the present task, until the end of the block."""
        worker = self._by_run.get(run_id) or self.take(run_id, thread_id, None)
        worker.task = asyncio.current_task()
        try:
            yield worker
        finally:
            worker.left.set()
            if self._by_run.get(run_id) is worker:
                del self._by_run[run_id]

    async def predecessors_left(self, worker: Worker, seconds: float) -> None:
        """Wait until those who came to the same thread before `worker` have left, at most `seconds`."""
        before = []
        for other in self._by_run.values():
            if other is worker:
                break
            before.append(other)
        await self._left([other for other in before if other.thread_id == worker.thread_id], seconds)

    async def leave_thread(self, thread_id: UUID, seconds: float) -> None:
        """Wait until all of a thread's have left but the one that asks, at most `seconds`."""
        present = asyncio.current_task()
        workers = [one for one in self._by_run.values() if one.thread_id == thread_id]
        await self._left([one for one in workers if one.task is not present], seconds)

    async def _left(self, workers: list[Worker], seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for worker in workers:
                    await worker.left.wait()


@lru_cache
def get_workers() -> Workers:
    """Return this process's."""
    return Workers()
