"""Whose a thread is: the one question every authorization handler asks."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from langgraph_sdk import Auth

from auth.settings import get_settings
from storage import threads
from storage.errors import InvalidThreadIdError, OrphanedThreadError, TooManyThreadsError
from storage.ids import parse_thread_id
from storage.threads import ThreadRecord

HTTPException = Auth.exceptions.HTTPException


def thread_id_of(value: Mapping[str, Any], key: str = "thread_id") -> UUID | None:
    """Return the thread id in an authorization event's value, in its canonical form; None if absent.

    Raises:
        HTTPException: 422 for any odd spelling.
    """
    raw = value.get(key)
    if raw is None:
        return None
    try:
        return parse_thread_id(str(raw))
    except InvalidThreadIdError as error:
        raise HTTPException(status_code=422, detail=str(error)) from None


async def require_owner(thread_id: UUID, username: str, *, reading: bool = False) -> None:
    """Pass if the thread is `username`'s.

    Args:
        thread_id: the thread asked for.
        username: who asks.
        reading: the answer may then be up to one second old.

    Raises:
        HTTPException: 403 for another's thread, 404 for an unknown or deleted one.
    """
    record = await (threads.find_for_reading(thread_id) if reading else threads.find(thread_id))
    if record is None:
        raise _not_found(thread_id)
    _check(record, username)


async def claim(thread_id: UUID, username: str, metadata: Mapping[str, Any]) -> None:
    """Make the thread `username`'s, or pass if it is already.

    Raises:
        HTTPException: 403 for another's thread or one whose owner is unknown, 404 for a deleted one, 409 if
            it is a new one and they have as many as one may.
    """
    try:
        record = await threads.claim(thread_id, username, metadata, get_settings().max_threads_per_user)
    except OrphanedThreadError:
        raise _denied(thread_id) from None
    except TooManyThreadsError as error:
        raise HTTPException(status_code=409, detail=str(error)) from None
    _check(record, username)


def _check(record: ThreadRecord, username: str) -> None:
    if record.owner != username:
        raise _denied(record.thread_id)
    if not record.live:
        raise _not_found(record.thread_id)


def _denied(thread_id: UUID) -> Exception:
    return HTTPException(status_code=403, detail=f"Access denied to thread {thread_id}")


def _not_found(thread_id: UUID) -> Exception:
    return HTTPException(status_code=404, detail=f"Thread {thread_id} not found")
