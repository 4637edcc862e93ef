"""Wakes the embedded queue of `langgraph dev` when there is work, instead of letting it poll.

The in-memory runtime looks for runs every 0.5 s and takes only those made before its sleep began, so that
every run and every approval starts 0.5 to 1 s late. This is one of two places where Warren touches the
platform's inside (the other is `server.corrections`): three methods of `langgraph_runtime_inmem.ops.Runs`,
which the platform looks up on the class at every call. Written against `Runs.next`, `put` and `enter` and
`queue.queue` of version 0.36.7.
"""

import asyncio
import inspect
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog

KNOWN_VERSIONS = "0.36."
"""Releases of langgraph-runtime-inmem whose queue is known to work this way."""

POLL_SECONDS = 0.5
"""The runtime's own pause between two looks. It stays the longest pause: nothing rings for a run whose
`after_seconds` have passed, nor for one that a failed attempt put back."""

logger = structlog.stdlib.get_logger(__name__)


def install() -> bool:
    """Make `Runs.put` and the end of a run wake the loop that calls `Runs.next`.

    Safe to call again, and before or after the queue has started: the loop then ends at most one pause of
    the old kind. Returns whether the queue is woken. Without the in-memory runtime there is nothing to do;
    a runtime of another version or shape is left alone, with one warning.
    """
    if os.environ.get("LANGGRAPH_RUNTIME_EDITION") != "inmem":
        return False
    from langgraph_api import config  # noqa: PLC0415 - reads the server's environment when imported
    from langgraph_runtime_inmem import __version__, ops  # noqa: PLC0415

    runs = ops.Runs
    if isinstance(getattr(runs.next, "__self__", None), _WokenQueue):
        return True
    if config.BG_JOB_ISOLATED_LOOPS:
        logger.warning("The queue is not woken: BG_JOB_ISOLATED_LOOPS runs each job on a loop of its own")
        return False
    if not __version__.startswith(KNOWN_VERSIONS) or not _has_known_shape(runs):
        logger.warning(
            "The queue is not woken: this langgraph-runtime-inmem is not known. Runs start up to 1 s late",
            version=__version__,
            known=KNOWN_VERSIONS + "*",
        )
        return False
    woken = _WokenQueue(runs)
    for name in ("next", "put", "enter"):
        setattr(runs, name, staticmethod(getattr(woken, name)))
    return True


def _has_known_shape(runs: type) -> bool:
    try:
        next_, put, enter = (inspect.getattr_static(runs, name) for name in ("next", "put", "enter"))
        put_parameters = inspect.signature(put).parameters
        return (
            isinstance(next_, staticmethod)
            and inspect.isasyncgenfunction(next_.__func__)
            and list(inspect.signature(next_).parameters) == ["wait", "limit"]
            and isinstance(put, staticmethod)
            and inspect.iscoroutinefunction(put.__func__)
            and put_parameters["thread_id"].kind is inspect.Parameter.KEYWORD_ONLY
            and list(inspect.signature(enter).parameters) == ["run_id", "thread_id", "loop", "resumable"]
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return False


class _WokenQueue:
    """The three methods that stand in for those of `Runs`, and what they share."""

    def __init__(self, runs: Any) -> None:
        self._next: Callable[..., Any] = runs.next
        self._put: Callable[..., Any] = runs.put
        self._enter: Callable[..., AbstractAsyncContextManager[Any]] = runs.enter
        self._bell = Bell()
        self._workers = ThreadWorkers()

    async def next(self, wait: bool, limit: int = 1) -> AsyncIterator[Any]:
        """Yield startable runs, with their attempt; `wait` means: not before the bell or the next poll."""
        await self._bell.listen(POLL_SECONDS if wait else 0)
        # The original looks at the `limit` oldest only, blocked ones included: a dozen runs that one person
        # has queued on one thread would hold up everybody's. It is let look at all, and stopped at `limit`.
        async with aclosing(self._next(wait=False, limit=sys.maxsize)) as runs:
            async for run_and_attempt in runs:
                yield run_and_attempt
                limit -= 1
                if limit <= 0:
                    return

    async def put(self, *args: Any, **kwargs: Any) -> Any:
        """Create a run, and ring unless it cannot start before its thread's present run has ended."""
        runs = await self._put(*args, **kwargs)
        if kwargs.get("thread_id") not in self._workers:
            self._bell.ring()
        return runs

    @asynccontextmanager
    async def enter(self, run_id: UUID, thread_id: UUID, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Hold a run while a worker executes it, and ring when it has ended.

        A failed attempt leaves with an exception and does not ring: the next one comes after a pause.
        """
        # A cancelled run frees its thread before its worker has ended. The old pause gave that worker time
        # to write its last checkpoint; an immediate successor would read the state from before it.
        await self._workers.predecessor_left(thread_id, POLL_SECONDS)
        with self._workers.inside(thread_id):
            async with self._enter(run_id, thread_id, *args, **kwargs) as done:
                yield done
        self._bell.ring()


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


class ThreadWorkers:
    """Which threads have a worker inside, whatever the status of its run says."""

    def __init__(self) -> None:
        self._leaving: dict[UUID, asyncio.Event] = {}

    def __contains__(self, thread_id: object) -> bool:
        return thread_id in self._leaving

    @contextmanager
    def inside(self, thread_id: UUID) -> Iterator[None]:
        """Be the thread's latest worker."""
        left = self._leaving[thread_id] = asyncio.Event()
        try:
            yield
        finally:
            left.set()
            if self._leaving.get(thread_id) is left:
                del self._leaving[thread_id]

    async def predecessor_left(self, thread_id: UUID, seconds: float) -> None:
        """Wait until the thread's latest worker has left, at most `seconds`."""
        if left := self._leaving.get(thread_id):
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await left.wait()
