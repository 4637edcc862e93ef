"""Who listens to a run or a thread, until they leave.

The in-memory runtime gives each stream a queue of its own, and forgets it only where the stream came to an
orderly end: a request that was refused after it had subscribed, and every stream of a thread, leave a queue
behind that is filled for as long as the run lasts, and makes each of its events dearer for everybody.

Like `server.corrections`, this touches the platform's inside, and only where its version and shape are known.
"""

import asyncio
import inspect
from collections.abc import Sequence
from typing import Any, Self
from uuid import UUID

import structlog

from server.runtime import is_in_memory

KNOWN_RUNTIME = "0.36."
"""Releases of langgraph-runtime-inmem that have been read and need this."""

_log = structlog.stdlib.get_logger(__name__)


class Subscription(asyncio.Queue[Any]):
    """One subscriber's messages, in the place of the runtime's `ContextQueue`.

    Args:
        kept: where the runtime hands messages out: lists of queues, below keys.
        path: the keys.
    """

    def __init__(self, kept: Any, *path: object) -> None:
        super().__init__()
        self._kept = kept
        self._path = path
        *outer, last = path
        for key in outer:
            kept = kept[key]
        kept[last].append(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Take it from where messages are handed out, and drop those that wait. May be called again."""
        while not self.empty():
            self.get_nowait()
        _take_out(self._kept, self._path, self)


def _take_out(kept: Any, path: Sequence[object], subscription: Subscription) -> None:
    key, *rest = path
    within = kept.get(key)
    if within is None:
        return
    if rest:
        _take_out(within, rest, subscription)
    elif subscription in within:
        within.remove(subscription)
    if not within:
        del kept[key]


def install() -> bool:
    """Put it in place. Safe to call again.

    Returns:
        whether it is; an unknown version or shape is left alone with a warning, another runtime silently.
    """
    if not is_in_memory():
        return False
    import langgraph_runtime_inmem  # noqa: PLC0415 - only this runtime has it
    from langgraph_runtime_inmem import inmem_stream  # noqa: PLC0415 - as above

    manager = inmem_stream.StreamManager
    if manager.add_queue is _add_queue:
        return True
    known = langgraph_runtime_inmem.__version__.startswith(KNOWN_RUNTIME)
    if not known or not has_known_shape(manager):
        _log.warning("The in-memory runtime is not known, subscribers may stay: see server/subscribers.py")
        return False
    manager.add_queue = _add_queue
    manager.add_thread_stream = _add_thread_stream
    manager.remove_queue = _remove_queue
    return True


def has_known_shape(manager: Any) -> bool:
    """Tell whether what is replaced still is what it was."""
    methods = (manager.add_queue, manager.add_thread_stream, manager.remove_queue)
    return [list(inspect.signature(method).parameters) for method in methods] == [
        ["self", "run_id", "thread_id"],
        ["self", "thread_id"],
        ["self", "run_id", "thread_id", "queue"],
    ]


async def _add_queue(manager: Any, run_id: UUID | str, thread_id: UUID | str | None) -> Subscription:
    from langgraph_runtime_inmem.inmem_stream import THREADLESS_KEY  # noqa: PLC0415 - only this runtime

    thread = THREADLESS_KEY if thread_id is None else _as_uuid(thread_id)
    return Subscription(manager.queues, thread, _as_uuid(run_id))


async def _add_thread_stream(manager: Any, thread_id: UUID | str) -> Subscription:
    return Subscription(manager.thread_streams, _as_uuid(thread_id))


async def _remove_queue(
    _manager: Any, _run_id: UUID | str, _thread_id: UUID | str | None, queue: Subscription
) -> None:
    # It knows where it is; the runtime looks for a thread's stream where it is not.
    queue.leave()


def _as_uuid(value: UUID | str) -> UUID:
    return value if isinstance(value, UUID) else UUID(value)
