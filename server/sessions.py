"""Routes: sessions, the short way in. A session is a platform thread under its public, owner-naming id.

Every route calls the platform as its caller. The owner in the id is compared first, so that another
user's id is refused by its name alone; the platform's filter then decides again.
"""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal
from uuid import UUID

import httpx
from fastapi import APIRouter, Depends, HTTPException, Query, Request
from langgraph_sdk.client import LangGraphClient
from pydantic import BaseModel

from auth.credentials import authenticate_headers
from auth.errors import InvalidTokenError
from server.approvals import PendingApproval, pending_approvals
from server.caller import platform_as_caller
from server.refusals import refusals
from server.restore import GRAPH_ID
from server.text import text_of
from storage.errors import InvalidSessionIdError
from storage.ids import SessionId, parse_session_id

router = APIRouter(prefix="/api", tags=["sessions"], responses=refusals(401))

OF_A_SESSION = refusals(403, 404, 422)
"""How a route refuses a session that is another's, unknown or misspelled."""

_MAX_PAGE = 100
_MAX_OFFSET = 2**31 - 1
_MAX_ACTIVE_RUNS = 100


class SessionCreated(BaseModel):
    """The new session's id, which names its owner."""

    thread_id: str


class SessionSummary(BaseModel):
    """One line of a list of sessions. Times are ISO 8601."""

    thread_id: str
    status: str
    created_at: str
    updated_at: str


class Message(BaseModel):
    """One message. `role` is `human`, `ai`, `tool` or `system`; a client can write others."""

    role: str
    content: str
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class Session(SessionSummary):
    """A session with its conversation and what waits for a decision."""

    messages: list[Message]
    pending_approvals: list[PendingApproval]


class Done(BaseModel):
    """The request has been carried out."""

    success: Literal[True] = True
    message: str


async def current_user(request: Request) -> str:
    """Return who sent the request.

    Raises:
        HTTPException: 401 without a valid token.
    """
    try:
        return await authenticate_headers(dict(request.headers))
    except InvalidTokenError as error:
        raise HTTPException(401, str(error), headers={"WWW-Authenticate": "Bearer"}) from None


CurrentUser = Annotated[str, Depends(current_user)]


async def own_session(session_id: str, user: CurrentUser) -> SessionId:
    """Return the session that the path names, if its name says it is the caller's.

    Raises:
        HTTPException: 403 if it names another owner, 422 if it names none.
    """
    try:
        session = parse_session_id(session_id)
    except InvalidSessionIdError as error:
        raise HTTPException(422, str(error)) from None
    if session.owner != user:
        raise HTTPException(403, f"Access denied to thread {session}")
    return session


OwnSession = Annotated[SessionId, Depends(own_session)]


@asynccontextmanager
async def platform(request: Request) -> AsyncIterator[LangGraphClient]:
    """As `platform_as_caller`, the platform's refusals answered with its own status and detail."""
    async with platform_as_caller(request) as client:
        try:
            yield client
        except httpx.HTTPStatusError as error:
            raise HTTPException(error.response.status_code, _detail(error)) from None


@router.post("/sessions", responses=refusals(409))
async def create_session(request: Request, user: CurrentUser) -> SessionCreated:
    """Start a conversation."""
    async with platform(request) as client:
        thread = await client.threads.create(graph_id=GRAPH_ID)
    return SessionCreated(thread_id=_session_id(user, thread))


@router.get("/sessions", responses=refusals(422))
async def list_sessions(
    request: Request,
    user: CurrentUser,
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 20,
    offset: Annotated[int, Query(ge=0, le=_MAX_OFFSET)] = 0,
) -> list[SessionSummary]:
    """List the caller's sessions, newest first."""
    async with platform(request) as client:
        found = await client.threads.search(
            limit=limit,
            offset=offset,
            sort_by="created_at",
            sort_order="desc",
            select=["thread_id", "status", "created_at", "updated_at"],
        )
    return [SessionSummary(**_summary(user, thread)) for thread in found]


@router.get("/sessions/{session_id}", responses=OF_A_SESSION)
async def get_session(request: Request, session: OwnSession) -> Session:
    """Return a session's messages, its status, and the tool calls that wait for a decision."""
    thread_id = str(session.thread_id)
    async with platform(request) as client:
        thread = await client.threads.get(thread_id)
        state = await client.threads.get_state(thread_id)
    messages = (state["values"] or {}).get("messages", []) if isinstance(state["values"], dict) else []
    return Session(
        **_summary(session.owner, thread),
        messages=[_message(message) for message in messages],
        pending_approvals=pending_approvals(state),
    )


@router.post("/sessions/{session_id}/cancel", responses=OF_A_SESSION | refusals(409))
async def cancel_session(request: Request, session: OwnSession) -> Done:
    """Stop what the session's agent is doing. What it has said and done so far is kept."""
    thread_id = str(session.thread_id)
    async with platform(request) as client:
        active = await active_runs(client, thread_id)
        for run in active:
            await _unless_ended(client.runs.cancel(thread_id, run["run_id"], wait=True))
    if not active:
        raise HTTPException(409, "Nothing is running in this session.")
    return Done(message="Cancelled")


@router.delete("/sessions/{session_id}", responses=OF_A_SESSION)
async def delete_session(request: Request, session: OwnSession) -> Done:
    """Delete a session for good: its conversation, its sandbox and its workspace."""
    thread_id = str(session.thread_id)
    async with platform(request) as client:
        for run in await active_runs(client, thread_id):
            await _unless_ended(client.runs.cancel(thread_id, run["run_id"], wait=True))
        await client.threads.delete(thread_id)
    return Done(message="Deleted")


async def active_runs(client: LangGraphClient, thread_id: str) -> list[Any]:
    """Return the ids of the thread's runs that have not ended, each as `run_id`."""
    runs: list[Any] = []
    for status in ("pending", "running"):
        runs += await client.runs.list(thread_id, status=status, limit=_MAX_ACTIVE_RUNS, select=["run_id"])
    return runs


async def _unless_ended(cancelling: Awaitable[None]) -> None:
    try:
        await cancelling
    except httpx.HTTPStatusError as error:
        # It came to its end by itself meanwhile.
        if error.response.status_code not in (404, 409):
            raise


def _session_id(owner: str, thread: Any) -> str:
    return str(SessionId(owner, UUID(thread["thread_id"])))


def _summary(owner: str, thread: Any) -> dict[str, Any]:
    return {
        "thread_id": _session_id(owner, thread),
        "status": thread["status"],
        "created_at": thread["created_at"],
        "updated_at": thread["updated_at"],
    }


def _message(message: dict[str, Any]) -> Message:
    return Message(
        role=message["type"],
        content=text_of(message["content"]),
        tool_calls=message.get("tool_calls") or None,
        tool_call_id=message.get("tool_call_id"),
    )


def _detail(error: httpx.HTTPStatusError) -> str:
    # A plain one, where the client may have reconnected; elsewhere its own kind of it, which has this, too.
    try:
        return str(error.response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return error.response.reason_phrase
