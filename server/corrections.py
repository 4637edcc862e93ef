"""What is wrong in the platform's in-memory runtime and cannot wait, put right from outside.

Like `server.queue`, this touches the platform's inside, and only where its version and shape are known; a
test compares both with the lock file.

- `Threads.delete` and `Threads.patch` find a row's place in a list, await the authorization handler and the
  database, and then use that place: rows deleted meanwhile have moved it, so that somebody else's row goes.
- `Threads.delete` and `Runs.delete` take a run's row and leave its worker at work: unseen, for as long as it
  likes, and out of everybody's reach. Cancelling runs by their status tells no worker either, nor does
  cancelling a run that is older than four minutes, when its worker has stopped listening. Cancelling a run
  that waits says of its thread that it is idle, although another is under way.
- The platform's wrapper around a checkpointer hides `aget_delta_channel_history`, which reads a
  conversation in two queries, and leaves the base class's walk of one query per checkpoint: a thread's
  next message takes the longer the longer the thread is.
- Searching by `values` answers 500 as soon as one of the caller's threads has none yet.
- Every authenticated request waits for a thread that logs which handler authenticated it. There is one
  handler only, and it took two thirds of what authentication and authorization cost.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

from starlette.exceptions import HTTPException

from server.fair_share import ACTIVE
from server.queue import forget_runs
from server.runtime import is_in_memory, is_known
from server.workers import get_workers

LEAVE_SECONDS = 5.0
"""How long a delete waits for the worker of a run that it has ended: longer than a sandbox's command takes to
die. What has not ended by then does so by itself, and its rows are gone."""


def install() -> bool:
    """Put the corrections in place. Safe to call again.

    Returns:
        whether they are; an unknown version or shape is left alone with a warning, another runtime silently.
    """
    if not is_in_memory():
        return False
    from langgraph_api._checkpointer import _adapter  # noqa: PLC0415 - reads the environment when imported
    from langgraph_api.auth import custom  # noqa: PLC0415 - as above
    from langgraph_runtime_inmem import ops  # noqa: PLC0415 - only this runtime has it

    adapter = _adapter._CustomCheckpointerAdapter  # noqa: SLF001 - there is no other way to it
    if isinstance(getattr(ops.Threads.delete, "__self__", None), _SafeThreads):
        return True
    if not is_known(has_known_shape, ops, adapter, otherwise="It stays uncorrected"):
        return False
    safe_runs, safe = _SafeRuns(ops), _SafeThreads(ops)
    ops.Runs.cancel = staticmethod(safe_runs.cancel)
    ops.Runs.delete = staticmethod(safe_runs.delete)
    ops.listen_for_cancellation = partial(_listen_to_the_end, ops.listen_for_cancellation)
    ops.Threads.delete = staticmethod(safe.delete)
    ops.Threads.patch = staticmethod(safe.patch)
    ops.is_jsonb_contained = partial(_contains, ops.is_jsonb_contained)
    adapter.aget_delta_channel_history = _forward_delta_history
    custom.logger = _Quieter(custom.logger)
    return True


def has_known_shape(ops: Any, adapter: type) -> bool:
    """Tell whether what is replaced still is what it was."""
    parameters = [
        list(inspect.signature(method).parameters)
        for method in (
            ops.Threads.delete,
            ops.Threads.patch,
            ops.Runs.cancel,
            ops.Runs.delete,
            ops.listen_for_cancellation,
        )
    ]
    return parameters == [
        ["conn", "thread_id", "ctx"],
        ["conn", "thread_id", "metadata", "ttl", "ctx", "read_mask_paths"],
        ["conn", "run_ids", "action", "thread_id", "status", "assistant_id", "ctx", "reason"],
        ["conn", "run_id", "thread_id", "ctx"],
        ["queue", "run_id", "thread_id", "done"],
    ] and "aget_delta_channel_history" not in vars(adapter)


class _SafeRuns:
    """Cancelling and deleting runs so that their workers hear of it."""

    def __init__(self, ops: Any) -> None:
        self._ops = ops
        self._cancel: Callable[..., Any] = ops.Runs.cancel
        self._delete: Callable[..., Any] = ops.Runs.delete

    async def cancel(
        self,
        conn: Any,
        run_ids: Sequence[UUID | str] | None = None,
        *,
        action: str = "interrupt",
        reason: str | None = None,
        **which: Any,
    ) -> None:
        """End runs; 404 if there are none that the caller may end."""
        active = [run for run in conn.store["runs"] if run["status"] in ACTIVE]
        await self._cancel(conn, run_ids, action=action, reason=reason, **which)
        ended = [run for run in active if run["status"] == "interrupted"]
        for run in ended:
            if not _is_told(self._ops, run):
                await _tell(self._ops, run, action, reason)
        touched = {run["thread_id"] for run in ended}
        busy = {run["thread_id"] for run in conn.store["runs"] if run["status"] in ACTIVE} & touched
        for thread in conn.store["threads"] if busy else ():
            if thread["thread_id"] in busy:
                thread["status"] = "busy"

    async def delete(
        self, conn: Any, run_id: UUID | str, *, thread_id: UUID | str, ctx: Any = None
    ) -> AsyncIterator[UUID]:
        """Delete a run with its checkpoints, ended first; 404 if there is none that `ctx` may delete."""
        run_id, thread_id = _as_uuid(run_id), _as_uuid(thread_id)
        rows = (run for run in conn.store["runs"] if run["run_id"] == run_id)
        run = next((run for run in rows if run["thread_id"] == thread_id), None)
        # A run that is rolled back is deleted after it has been told, by its worker or instead of it.
        if run is not None and run["status"] in ACTIVE and not _is_told(self._ops, run):
            with suppress(HTTPException):
                await self.cancel(conn, [run_id], thread_id=thread_id, ctx=ctx, reason="it is deleted")
                await get_workers().leave_thread(thread_id, LEAVE_SECONDS)
        deleted: AsyncIterator[UUID] = await self._delete(conn, run_id, thread_id=thread_id, ctx=ctx)
        return deleted


class _SafeThreads:
    """Deleting and patching a thread's row, found again after everything that was awaited."""

    def __init__(self, ops: Any) -> None:
        self._ops = ops

    async def delete(self, conn: Any, thread_id: UUID | str, ctx: Any = None) -> AsyncIterator[UUID]:
        """Delete a thread with all that is its, its runs ended first; 404 if `ctx` may delete no such."""
        thread_id = _as_uuid(thread_id)
        filters = await self._ops.Threads.handle_event(ctx, "delete", {"thread_id": thread_id})
        if self._find(conn, thread_id, filters) is None:
            raise HTTPException(status_code=404, detail=f"Thread with ID {thread_id} not found")
        await self._end([run for run in conn.store["runs"] if run["thread_id"] == thread_id])
        await get_workers().leave_thread(thread_id, LEAVE_SECONDS)
        await self._ops._delete_checkpoints_for_thread(thread_id, conn)  # noqa: SLF001 - the runtime's own
        # Among them what was made meanwhile.
        runs = [run for run in conn.store["runs"] if run["thread_id"] == thread_id]
        for kind in ("runs", "crons"):
            rows = conn.store[kind]
            conn.store[kind] = [row for row in rows if str(row.get("thread_id")) != str(thread_id)]
        conn.store["threads"][:] = [row for row in conn.store["threads"] if row["thread_id"] != thread_id]
        await self._end(runs)
        forget_runs(self._ops, conn, [run for run in runs if run["run_id"] not in get_workers()])
        return _one(thread_id)

    async def patch(  # noqa: PLR0913 - the signature of what it replaces
        self,
        conn: Any,
        thread_id: UUID | str,
        *,
        metadata: dict[str, Any],
        ttl: Any = None,
        ctx: Any = None,
        read_mask_paths: Any = None,
    ) -> AsyncIterator[Any]:
        """Merge metadata into a thread's row; nothing is yielded if there is none that `ctx` may change."""
        del ttl, read_mask_paths  # this runtime has neither
        thread_id = _as_uuid(thread_id)
        filters = await self._ops.Threads.handle_event(
            ctx, "update", {"thread_id": thread_id, "metadata": metadata}
        )
        row = self._find(conn, thread_id, filters)
        if row is None:
            return _none()
        row["metadata"] = {**row["metadata"], **metadata}
        row["updated_at"] = datetime.now(UTC)
        return _one(row)

    async def _end(self, runs: list[dict[str, Any]]) -> None:
        active = [run for run in runs if run["status"] in ACTIVE]
        for run in active:
            run["status"] = "interrupted"
        for run in active:
            await _tell(self._ops, run, "interrupt", "its thread is deleted")

    def _find(self, conn: Any, thread_id: UUID, filters: Any) -> dict[str, Any] | None:
        matches = self._ops._check_filter_match  # noqa: SLF001 - the runtime's own
        rows = (row for row in conn.store["threads"] if row["thread_id"] == thread_id)
        return next((row for row in rows if matches(row["metadata"], filters)), None)


def _is_told(ops: Any, run: dict[str, Any]) -> bool:
    return ops.get_stream_manager().get_control_key(run["run_id"], run["thread_id"]) is not None


async def _tell(ops: Any, run: dict[str, Any], action: str, reason: str | None) -> None:
    topic = f"run:{run['run_id']}:control".encode()
    message = ops.Message(topic=topic, data=action.encode(), reason=reason)
    await ops.get_stream_manager().put(run["run_id"], run["thread_id"], message)


async def _listen_to_the_end(
    original: Callable[..., Any], queue: Any, run_id: UUID, thread_id: UUID | None, done: Any
) -> None:
    while not done.is_set():
        await original(queue, run_id, thread_id, done)


def _contains(original: Callable[..., bool], superset: dict[str, Any] | None, subset: dict[str, Any]) -> bool:
    return superset is not None and original(superset, subset)


class _Quieter:
    """A logger that has nothing to say unless something is wrong."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)

    async def ainfo(self, *_: Any, **__: Any) -> None:
        """Say nothing."""


def _as_uuid(thread_id: UUID | str) -> UUID:
    return thread_id if isinstance(thread_id, UUID) else UUID(thread_id)


async def _one(value: Any) -> AsyncIterator[Any]:
    yield value


async def _none() -> AsyncIterator[Any]:
    return
    yield


async def _forward_delta_history(self: Any, *, config: Any, channels: Any) -> Any:
    return await self._inner.aget_delta_channel_history(config=config, channels=channels)
