"""The authentication and authorization that langgraph.json names.

Everything is denied unless a handler below allows it: on this platform a missing handler, or one that
returns None or True, is an open door. Each handler decides by the registry in Postgres and also returns
the owner filter, so that the platform's own query enforces the same thing again.
"""

from typing import Any

from langgraph_sdk import Auth

from auth import ownership
from auth.credentials import authenticate_headers
from auth.errors import InvalidTokenError
from auth.run_request import secure_run, stamp_in_place, user_metadata
from storage import threads
from storage.saver import deleting_within

Context = Auth.types.AuthContext
Event = Any  # a dict, its keys by resource and action: see langgraph_sdk.auth.types
Filter = dict[str, str]
HTTPException = Auth.exceptions.HTTPException

auth = Auth()


@auth.authenticate
async def authenticate(headers: dict[bytes, bytes]) -> Auth.types.MinimalUserDict:
    # What is returned is stored with every run: a name, and nothing secret.
    try:
        username = await authenticate_headers(headers)
    except InvalidTokenError as error:
        raise HTTPException(status_code=401, detail=str(error)) from None
    return {"identity": username, "display_name": username, "is_authenticated": True}


@auth.on
async def deny_the_rest(ctx: Context, value: Event) -> bool:  # noqa: ARG001 - passed by name
    return False


@auth.on(resources="assistants", actions=["read", "search"])
async def read_system_assistants(ctx: Context, value: Event) -> Filter:  # noqa: ARG001 - passed by name
    return {"created_by": "system"}


@auth.on.threads.create
async def create_thread(ctx: Context, value: Event) -> Filter:
    own_metadata = stamp_in_place(value, ctx.user.identity)
    thread_id = ownership.thread_id_of(value)
    if thread_id is None:
        raise HTTPException(status_code=422, detail="A thread needs an id.")
    await ownership.claim(thread_id, ctx.user.identity, own_metadata)
    return _owned_by(ctx)


@auth.on.threads.read
async def read_thread(ctx: Context, value: Event) -> Filter:
    await _require_owner(ctx, value, reading=True)
    return _owned_by(ctx)


@auth.on.threads.search
async def search_threads(ctx: Context, value: Event) -> Filter:
    # Listing one thread's runs is a search, too, and names the thread; listing threads does not.
    await _require_owner(ctx, value, reading=True)
    return _owned_by(ctx)


@auth.on.threads.update
async def update_thread(ctx: Context, value: Event) -> Filter:
    await _require_owner(ctx, value)
    # Cancelling runs is an update as well, and its "metadata" are the run ids.
    thread_id = ownership.thread_id_of(value)
    if thread_id is not None and "action" not in value and value.get("metadata") is not None:
        await threads.merge_metadata(thread_id, stamp_in_place(value, ctx.user.identity))
    return _owned_by(ctx)


@auth.on.threads.delete
async def delete_thread(ctx: Context, value: Event) -> Filter:
    await _require_owner(ctx, value)
    for raw in value.get("thread_ids") or ():
        await _require_owner(ctx, {"thread_id": raw})
    if value.get("run_id") is not None:
        deleting_within.set(ownership.thread_id_of(value))
    return _owned_by(ctx)


@auth.on.threads.create_run
async def create_run(ctx: Context, value: Event) -> Filter:
    username = ctx.user.identity
    thread_id = ownership.thread_id_of(value)
    if thread_id is None:
        raise HTTPException(
            status_code=422, detail="A run needs a thread: create one first, its sandbox comes with it."
        )
    secure_run(value, username)
    if value.get("if_not_exists") == "create":
        await ownership.claim(thread_id, username, user_metadata(value["metadata"]))
    else:
        await ownership.require_owner(thread_id, username)
    return _owned_by(ctx)


async def _require_owner(ctx: Context, value: Event, *, reading: bool = False) -> None:
    thread_id = ownership.thread_id_of(value)
    if thread_id is not None:
        await ownership.require_owner(thread_id, ctx.user.identity, reading=reading)


def _owned_by(ctx: Context) -> Filter:
    return {"owner": ctx.user.identity}
