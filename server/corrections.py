"""What is wrong in the platform's in-memory runtime and cannot wait, put right from outside.

Like `server.queue`, this touches the platform's inside, and only where its version and shape are known; a
test compares both with the lock file.

- `Threads.delete` and `Threads.patch` find a row's place in a list, await the authorization handler and the
  database, and then use that place: rows deleted meanwhile have moved it, so that somebody else's row goes.
- The platform's wrapper around a checkpointer hides `aget_delta_channel_history`, which reads a
  conversation in two queries, and leaves the base class's walk of one query per checkpoint: a thread's
  next message takes the longer the longer the thread is.
- Every authenticated request waits for a thread that logs which handler authenticated it. There is one
  handler only, and it took two thirds of what authentication and authorization cost.
"""

import inspect
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog
from starlette.exceptions import HTTPException

from server.runtime import is_in_memory

KNOWN_RUNTIME = "0.36."
KNOWN_API = "0.16."
"""Releases of langgraph-runtime-inmem and langgraph-api that have been read and need this."""

_log = structlog.stdlib.get_logger(__name__)


def install() -> bool:
    """Put the corrections in place. Safe to call again.

    Returns:
        whether they are; an unknown version or shape is left alone with a warning, another runtime silently.
    """
    if not is_in_memory():
        return False
    import langgraph_api  # noqa: PLC0415 - reads the server's environment when imported
    import langgraph_runtime_inmem  # noqa: PLC0415 - only this runtime has it
    from langgraph_api._checkpointer import _adapter  # noqa: PLC0415
    from langgraph_api.auth import custom  # noqa: PLC0415
    from langgraph_runtime_inmem import ops  # noqa: PLC0415

    adapter = _adapter._CustomCheckpointerAdapter  # noqa: SLF001 - there is no other way to it
    if isinstance(getattr(ops.Threads.delete, "__self__", None), _SafeThreads):
        return True
    known = langgraph_api.__version__.startswith(KNOWN_API) and (
        langgraph_runtime_inmem.__version__.startswith(KNOWN_RUNTIME)
    )
    if not known or not has_known_shape(ops.Threads, adapter):
        _log.warning("The in-memory runtime is not known and stays uncorrected: see server/corrections.py")
        return False
    safe = _SafeThreads(ops)
    ops.Threads.delete = staticmethod(safe.delete)
    ops.Threads.patch = staticmethod(safe.patch)
    adapter.aget_delta_channel_history = _forward_delta_history
    custom.logger = _Quieter(custom.logger)
    return True


def has_known_shape(threads: type, adapter: type) -> bool:
    """Tell whether what is replaced still is what it was."""
    parameters = {
        name: list(inspect.signature(getattr(threads, name)).parameters) for name in ("delete", "patch")
    }
    return parameters == {
        "delete": ["conn", "thread_id", "ctx"],
        "patch": ["conn", "thread_id", "metadata", "ttl", "ctx", "read_mask_paths"],
    } and "aget_delta_channel_history" not in vars(adapter)


class _SafeThreads:
    """Deleting and patching a thread's row, found again after everything that was awaited."""

    def __init__(self, ops: Any) -> None:
        self._ops = ops

    async def delete(self, conn: Any, thread_id: UUID | str, ctx: Any = None) -> AsyncIterator[UUID]:
        """Delete a thread with all that is its; 404 if there is none that `ctx` may delete."""
        thread_id = _as_uuid(thread_id)
        filters = await self._ops.Threads.handle_event(ctx, "delete", {"thread_id": thread_id})
        if self._find(conn, thread_id, filters) is None:
            raise HTTPException(status_code=404, detail=f"Thread with ID {thread_id} not found")
        for kind in ("runs", "crons"):
            rows = conn.store[kind]
            conn.store[kind] = [row for row in rows if str(row.get("thread_id")) != str(thread_id)]
        await self._ops._delete_checkpoints_for_thread(thread_id, conn)  # noqa: SLF001 - the runtime's own
        conn.store["threads"][:] = [row for row in conn.store["threads"] if row["thread_id"] != thread_id]
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

    def _find(self, conn: Any, thread_id: UUID, filters: Any) -> dict[str, Any] | None:
        matches = self._ops._check_filter_match  # noqa: SLF001 - the runtime's own
        rows = (row for row in conn.store["threads"] if row["thread_id"] == thread_id)
        return next((row for row in rows if matches(row["metadata"], filters)), None)


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
