"""The rules of `auth.policy`, carried out on the events that the platform asks about."""

from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any
from uuid import UUID

from langgraph_sdk import Auth

from auth import ownership
from auth.bounds import (
    MAX_ASSISTANT_BYTES,
    MAX_ASSISTANTS,
    MAX_NOTED_BYTES,
    MAX_VERSIONS,
    check_ids,
    check_noted,
    check_store_request,
)
from auth.policy import Rule
from auth.run_request import secure_assistant, secure_run, stamp_in_place, user_metadata
from storage import assistants, threads
from storage.saver import deleting_within

Event = MutableMapping[str, Any]
"""What is asked, its keys by resource and action: see `langgraph_sdk.auth.types`. A rule may change it."""

Verdict = dict[str, Any] | bool
"""A filter that the platform applies to its own query, or False."""

HTTPException = Auth.exceptions.HTTPException

_last_read: ContextVar[UUID | None] = ContextVar("_last_read", default=None)
"""The thread that this request has been allowed to read: of a copy, the platform asks for that first."""


async def apply(rule: Rule, action: str, username: str, event: Event) -> Verdict:
    """Judge one event of `username`.

    Returns:
        the filter that the platform goes on to apply, or False for no.

    Raises:
        HTTPException: 403, 404, 409 or 422, with the reason.
    """
    return await _RULES[rule](action, username, event)


async def _deny(_action: str, _username: str, _event: Event) -> Verdict:
    return False


async def _claim(_action: str, username: str, event: Event) -> Verdict:
    # Only a copy is made without metadata: the platform takes over the row's, and so does the registry.
    copied = _last_read.get() if "metadata" not in event else None
    own_metadata = stamp_in_place(event, username)
    thread_id = ownership.thread_id_of(event)
    if thread_id is None:
        raise HTTPException(status_code=422, detail="A thread needs an id.")
    if copied is not None:
        own_metadata = await threads.metadata_of(copied)
    await ownership.claim(thread_id, username, own_metadata)
    return {"owner": username}


async def _own_thread(action: str, username: str, event: Event) -> Verdict:
    thread_id = ownership.thread_id_of(event)
    if thread_id is not None:
        await ownership.require_owner(thread_id, username)
    thread_ids = event.get("thread_ids") or ()
    check_ids(thread_ids)
    for raw in dict.fromkeys(thread_ids):
        await _own_thread(action, username, {"thread_id": raw})
    # Cancelling runs is an update as well, and its "metadata" are the run ids.
    metadata = event.get("metadata")
    if "action" in event:
        check_ids((metadata or {}).get("run_ids"))
    elif action == "update" and thread_id and metadata is not None:
        await _note(thread_id, stamp_in_place(event, username))
    if action == "delete" and event.get("run_id") is not None:
        deleting_within.set(thread_id)
    return {"owner": username}


async def _note(thread_id: UUID, metadata: dict[str, Any]) -> None:
    if not await threads.merge_metadata(thread_id, metadata, MAX_NOTED_BYTES):
        raise _too_much_noted("thread")


def _too_much_noted(resource: str) -> Exception:
    return HTTPException(
        status_code=422,
        detail=f"The {resource}'s metadata would be larger than {MAX_NOTED_BYTES} bytes of JSON altogether.",
    )


async def _own_thread_read(_action: str, username: str, event: Event) -> Verdict:
    _check_search(event)
    # Listing one thread's runs is a search, too, and names the thread; listing threads does not.
    thread_id = ownership.thread_id_of(event)
    if thread_id is not None:
        await ownership.require_owner(thread_id, username, reading=True)
        _last_read.set(thread_id)
    return {"owner": username}


def _check_search(event: Event) -> None:
    # What is searched for is compared with every thread or assistant there is.
    for name in ("metadata", "values"):
        if (searched := event.get(name)) is not None:
            check_noted(searched, name)


async def _own_run(_action: str, username: str, event: Event) -> Verdict:
    thread_id = ownership.thread_id_of(event)
    if thread_id is None:
        raise HTTPException(
            status_code=422, detail="A run needs a thread: create one first, its sandbox comes with it."
        )
    secure_run(event, username)
    if event.get("if_not_exists") == "create":
        await ownership.claim(thread_id, username, user_metadata(event["metadata"]))
    else:
        await ownership.require_owner(thread_id, username)
    return {"owner": username}


async def _own_assistant(action: str, username: str, event: Event) -> Verdict:
    # To make an older version the latest is an update as well, and names nothing but the version.
    if action != "delete" and "version" not in event:
        secure_assistant(event)
        added = {}
        if action == "create" or event.get("metadata") is not None:
            added = stamp_in_place(event, username)
        await _check_room_for_assistant(action, username, event["assistant_id"], added)
    return {"owner": username}


async def _check_room_for_assistant(
    action: str, username: str, assistant_id: UUID, added: dict[str, Any]
) -> None:
    # What is counted has been saved: changes made at once may all be let through where one had room.
    used = await assistants.usage(username)
    if action == "create" and used.count >= MAX_ASSISTANTS:
        raise _no_room(f"You have {used.count} assistants, as many as one may")
    if used.versions.get(assistant_id, 0) >= MAX_VERSIONS:
        raise _no_room(f"The assistant has {MAX_VERSIONS} versions, as many as it may")
    if used.size >= MAX_ASSISTANT_BYTES:
        raise _no_room(f"Your assistants take more than {MAX_ASSISTANT_BYTES} bytes")
    if await assistants.merged_metadata_size(username, assistant_id, added) > MAX_NOTED_BYTES:
        raise _too_much_noted("assistant")


def _no_room(reason: str) -> Exception:
    return HTTPException(status_code=409, detail=f"{reason}; delete some first.")


async def _system_or_own_assistant(_action: str, username: str, event: Event) -> Verdict:
    _check_search(event)
    return {"$or": [{"created_by": "system"}, {"owner": username}]}


async def _own_namespace(action: str, username: str, event: Event) -> Verdict:
    # The platform ignores a filter on most store operations: what counts is what is checked here.
    namespace = event.get("namespace")
    if not namespace or namespace[0] != username:
        raise HTTPException(
            status_code=403, detail=f"Your part of the store is the namespaces that begin with {username}."
        )
    check_store_request(action, event)
    return {}


_RULES: dict[Rule, Callable[[str, str, Event], Awaitable[Verdict]]] = {
    Rule.DENY: _deny,
    Rule.CLAIM: _claim,
    Rule.OWN_THREAD: _own_thread,
    Rule.OWN_THREAD_READ: _own_thread_read,
    Rule.OWN_RUN: _own_run,
    Rule.OWN_ASSISTANT: _own_assistant,
    Rule.SYSTEM_OR_OWN_ASSISTANT: _system_or_own_assistant,
    Rule.OWN_NAMESPACE: _own_namespace,
}
