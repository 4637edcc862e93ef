"""The rules of `auth.policy`, carried out on the events that the platform asks about."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from langgraph_sdk import Auth

from auth import ownership
from auth.policy import Rule
from auth.run_request import secure_assistant, secure_run, stamp_in_place, user_metadata
from storage import threads
from storage.saver import deleting_within

Event = MutableMapping[str, Any]
"""What is asked, its keys by resource and action: see `langgraph_sdk.auth.types`. A rule may change it."""

Verdict = dict[str, Any] | bool
"""A filter that the platform applies to its own query, or False."""

HTTPException = Auth.exceptions.HTTPException


async def apply(rule: Rule, action: str, username: str, event: Event) -> Verdict:
    """Judge one event of `username`.

    Returns:
        the filter that the platform goes on to apply, or False for no.

    Raises:
        HTTPException: 403, 404 or 422, with the reason.
    """
    return await _RULES[rule](action, username, event)


async def _deny(_action: str, _username: str, _event: Event) -> Verdict:
    return False


async def _claim(_action: str, username: str, event: Event) -> Verdict:
    own_metadata = stamp_in_place(event, username)
    thread_id = ownership.thread_id_of(event)
    if thread_id is None:
        raise HTTPException(status_code=422, detail="A thread needs an id.")
    await ownership.claim(thread_id, username, own_metadata)
    return {"owner": username}


async def _own_thread(action: str, username: str, event: Event) -> Verdict:
    thread_id = ownership.thread_id_of(event)
    if thread_id is not None:
        await ownership.require_owner(thread_id, username)
    for raw in event.get("thread_ids") or ():
        await _own_thread(action, username, {"thread_id": raw})
    # Cancelling runs is an update as well, and its "metadata" are the run ids.
    if action == "update" and thread_id and "action" not in event and event.get("metadata") is not None:
        await threads.merge_metadata(thread_id, stamp_in_place(event, username))
    if action == "delete" and event.get("run_id") is not None:
        deleting_within.set(thread_id)
    return {"owner": username}


async def _own_thread_read(_action: str, username: str, event: Event) -> Verdict:
    # Listing one thread's runs is a search, too, and names the thread; listing threads does not.
    thread_id = ownership.thread_id_of(event)
    if thread_id is not None:
        await ownership.require_owner(thread_id, username, reading=True)
    return {"owner": username}


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
    if action != "delete":
        secure_assistant(event)
        if action == "create" or event.get("metadata") is not None:
            stamp_in_place(event, username)
    return {"owner": username}


async def _system_or_own_assistant(_action: str, username: str, _event: Event) -> Verdict:
    return {"$or": [{"created_by": "system"}, {"owner": username}]}


async def _own_namespace(_action: str, username: str, event: Event) -> Verdict:
    # The platform ignores a filter on most store operations: what counts is what is checked here.
    namespace = event.get("namespace")
    if not namespace or namespace[0] != username:
        raise HTTPException(
            status_code=403, detail=f"Your part of the store is the namespaces that begin with {username}."
        )
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
