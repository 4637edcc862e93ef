"""The embedded queue of `langgraph dev`, woken when there is work and shared fairly between users.

The in-memory runtime looks for runs every 0.5 s and takes only those made before its sleep began, so that
every run and every approval starts 0.5 to 1 s late. It takes them in the order in which they were made, so
that one user's dozen runs keep everybody else's waiting; its look costs the square of the number of runs that
wait; and it keeps the rows of all runs there ever were, and reads them all 50 times a second for every open
thread stream.

What is replaced are methods of `langgraph_runtime_inmem.ops`, which the platform looks up on the class at
every call. Written against `Runs.next`, `put` and `enter`, `Threads.Stream.subscribe` and `queue.queue` of
version 0.36.7.
"""

import asyncio
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog
from starlette.exceptions import HTTPException

from server.fair_share import MAX_RUNS, active_runs_of, ended_too_long_ago, owner_of, share, startable
from server.runtime import is_in_memory, is_known
from server.workers import get_workers

POLL_SECONDS = 0.5
"""The runtime's own pause between two looks. It stays the longest pause: nothing rings for a run whose
`after_seconds` have passed, nor for one that a failed attempt put back."""

PUTS_PER_CLEARING = 100
"""New runs between two times that the rows of those long ended are dropped."""

logger = structlog.stdlib.get_logger(__name__)


def install(*, wake: bool = True, most_each: int | None = None) -> bool:
    """Put the queue's methods in the place of the runtime's.

    Safe to call again, and before or after the queue has started: the loop then ends at most one pause of
    the old kind. Without the in-memory runtime there is nothing to do; a runtime of another version or shape
    is left alone, with one warning.

    Args:
        wake: look as soon as there is something to find, not only every `POLL_SECONDS`.
        most_each: runs of one user under way at once; see `fair_share.share`.

    Returns:
        whether they are in place.
    """
    if not is_in_memory():
        return False
    from langgraph_api import config  # noqa: PLC0415 - reads the server's environment when imported
    from langgraph_runtime_inmem import ops  # noqa: PLC0415 - only this runtime has it

    runs = ops.Runs
    if isinstance(getattr(runs.next, "__self__", None), _FairQueue):
        return True
    if config.BG_JOB_ISOLATED_LOOPS:
        logger.warning("The queue is left as it is: BG_JOB_ISOLATED_LOOPS runs each job on a loop of its own")
        return False
    if not is_known(
        has_known_shape, ops, otherwise="Runs start up to 1 s late, and one user may occupy all workers"
    ):
        return False
    queue = _FairQueue(ops, Bell() if wake else _SilentBell(), share(config.N_JOBS_PER_WORKER, most_each))
    for name in ("next", "put", "enter"):
        setattr(runs, name, staticmethod(getattr(queue, name)))
    ops.Threads.Stream.subscribe = staticmethod(queue.subscribe)
    return True


def has_known_shape(ops: Any) -> bool:
    """Tell whether what is replaced still is what it was."""
    next_, put, enter = (inspect.getattr_static(ops.Runs, name) for name in ("next", "put", "enter"))
    put_parameters = inspect.signature(put).parameters
    return (
        isinstance(next_, staticmethod)
        and inspect.isasyncgenfunction(next_.__func__)
        and list(inspect.signature(next_).parameters) == ["wait", "limit"]
        and isinstance(put, staticmethod)
        and inspect.iscoroutinefunction(put.__func__)
        and next(iter(put_parameters)) == "conn"
        and {put_parameters[name].kind for name in ("thread_id", "user_id")}
        == {inspect.Parameter.KEYWORD_ONLY}
        and list(inspect.signature(enter).parameters) == ["run_id", "thread_id", "loop", "resumable"]
        and list(inspect.signature(ops.Threads.Stream.subscribe).parameters)
        == ["conn", "thread_id", "seen_runs"]
    )


class Bell:
    """Wakes its one listener; a ring that nobody hears is kept for the next time."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rung_at = datetime.min.replace(tzinfo=UTC)

    def ring(self) -> None:
        """Let the listener go on. Call it on the listener's loop."""
        self._rung_at = datetime.now(UTC)
        self._rung.set()

    async def listen(self, seconds: float) -> None:
        """Return when the bell has rung, or after `seconds`; on a new loop at once."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._rung.wait()
            self._rung.clear()
        else:
            self._loop, self._rung = loop, asyncio.Event()
        # A look takes runs made strictly before it, by the wall clock in microseconds: one made in this very
        # microsecond, or before the clock was set back, would be missed although it rang.
        ahead = (self._rung_at - datetime.now(UTC)).total_seconds()
        if ahead >= 0:
            await asyncio.sleep(min(ahead + 1e-3, POLL_SECONDS))


class _SilentBell(Bell):
    """A bell that nobody hears: its listener looks every `POLL_SECONDS`."""

    def ring(self) -> None:
        """Do nothing."""


class _FairQueue:
    """The methods that stand in for the runtime's, and what they share."""

    def __init__(self, ops: Any, bell: Bell, most_each: int) -> None:
        self._ops = ops
        self._put: Callable[..., Any] = ops.Runs.put
        self._enter: Callable[..., AbstractAsyncContextManager[Any]] = ops.Runs.enter
        self._subscribe: Callable[..., Any] = ops.Threads.Stream.subscribe
        self._bell = bell
        self._most_each = most_each
        self._workers = get_workers()
        self._arriving: Counter[str] = Counter()
        self._puts = 0

    async def next(self, wait: bool, limit: int = 1) -> AsyncIterator[Any]:
        """Yield startable runs, with their attempt; `wait` means: not before the bell or the next poll."""
        await self._bell.listen(POLL_SECONDS if wait else 0)
        async with self._ops.connect() as conn:

            def is_live(thread_id: UUID) -> bool:
                # The newest are last, and the likeliest.
                return any(thread["thread_id"] == thread_id for thread in reversed(conn.store["threads"]))

            now = datetime.now(UTC)
            for run in startable(conn.store["runs"], self._workers, self._most_each, is_live, now):
                run["status"] = "running"
                self._workers.take(run["run_id"], run["thread_id"], owner_of(run))
                yield run, await conn.retry_counter.increment(run["run_id"])
                limit -= 1
                if limit <= 0:
                    return

    async def put(self, conn: Any, *args: Any, **options: Any) -> Any:
        """Create a run, and ring unless it cannot start before its thread's present run has ended.

        Raises:
            HTTPException: 429 if its user has too many that have not ended.
        """
        with self._one_more(conn, options.get("user_id")):
            runs = await self._put(conn, *args, **options)
        self._puts += 1
        if self._puts % PUTS_PER_CLEARING == 0:
            self._forget_the_long_ended(conn)
        if not self._workers.on_thread(options.get("thread_id")):
            self._bell.ring()
        return runs

    @asynccontextmanager
    async def enter(self, run_id: UUID, thread_id: UUID, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Hold a run while a worker executes it, and ring when it has ended.

        A failed attempt leaves with an exception and does not ring: the next one comes after a pause.
        """
        try:
            with self._workers.inside(run_id, thread_id) as worker:
                # A cancelled run frees its thread before its worker has ended. The old pause gave that
                # worker time to write its last checkpoint; an immediate successor would read the state
                # from before it.
                await self._workers.predecessors_left(worker, POLL_SECONDS)
                async with self._enter(run_id, thread_id, *args, **kwargs) as done:
                    yield done
        finally:
            if not await self._is_to_be_tried_again(run_id):
                self._bell.ring()

    async def subscribe(self, conn: Any, thread_id: UUID, seen_runs: set[Any]) -> Any:
        """Return queues for a thread's runs that are not in `seen_runs`; look only after a run was made."""
        # The set is the stream's own, of ids: a number in it tells which look was its last.
        if self._puts in seen_runs:
            return []
        seen_runs -= {one for one in seen_runs if isinstance(one, int)}
        seen_runs.add(self._puts)
        return await self._subscribe(conn, thread_id, seen_runs)

    @contextmanager
    def _one_more(self, conn: Any, owner: str | None) -> Iterator[None]:
        if owner is None:
            yield
            return
        if active_runs_of(owner, conn.store["runs"]) + self._arriving[owner] >= MAX_RUNS:
            raise HTTPException(
                429, f"You have {MAX_RUNS} runs that wait or are under way; let one end, or cancel some."
            )
        self._arriving[owner] += 1
        try:
            yield
        finally:
            self._arriving[owner] -= 1
            if not self._arriving[owner]:
                del self._arriving[owner]

    async def _is_to_be_tried_again(self, run_id: UUID) -> bool:
        async with self._ops.connect() as conn:
            return any(
                run["run_id"] == run_id and run["status"] == "pending" for run in reversed(conn.store["runs"])
            )

    def _forget_the_long_ended(self, conn: Any) -> None:
        if not (surplus := ended_too_long_ago(conn.store["runs"])):
            return
        ids = {run["run_id"] for run in surplus}
        # A new list: somebody may be in the middle of the old one.
        conn.store["runs"] = [run for run in conn.store["runs"] if run["run_id"] not in ids]
        forget_runs(self._ops, conn, surplus)


def forget_runs(ops: Any, conn: Any, runs: Iterable[Mapping[str, Any]]) -> None:
    """Drop what the runtime keeps of runs beside their rows: messages, subscribers' queues, attempts."""
    streams = ops.get_stream_manager()
    for run in runs:
        thread_id, run_id = run["thread_id"], run["run_id"]
        for kept in (streams.message_stores, streams.control_keys, streams.queues):
            of_thread = kept.get(thread_id, {})
            of_thread.pop(run_id, None)
            if not of_thread:
                kept.pop(thread_id, None)
        for counters in (conn.retry_counter._counters, conn.retry_counter._locks):  # noqa: SLF001
            counters.pop(run_id, None)
