"""Routes: talking to a session's agent, and deciding on what it wants to do."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Self

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import StreamingResponse
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import APIStatusError
from langgraph_sdk.schema import StreamMode
from pydantic import BaseModel, StringConstraints, model_validator

from server.approvals import Decision, DecisionType, pending_approvals, resume_command, were_seen
from server.bodies import body_schema, read_json
from server.events import ChatEvent, chat_events
from server.refusals import refusals
from server.restore import GRAPH_ID
from server.sessions import OF_A_SESSION, OwnSession, active_runs, platform
from server.settings import get_settings
from server.text import text_of

router = APIRouter(prefix="/api", tags=["chat"], responses=OF_A_SESSION | refusals(401, 409))

_EVENTS = {
    "description": "Events, as told above.",
    "content": {
        "text/event-stream": {
            "itemSchema": {
                "type": "object",
                "properties": {
                    "event": {"enum": ["token", "tool_call", "tool_result", "interrupt", "error", "done"]},
                    "data": {"type": "string", "contentMediaType": "application/json"},
                },
                "required": ["event", "data"],
            }
        }
    },
}
_STREAM_MODES: list[StreamMode] = ["messages-tuple", "updates"]


class ChatRequest(BaseModel):
    """What the user says."""

    message: Annotated[str, StringConstraints(min_length=1)]


class ResumeRequest(BaseModel):
    """One decision (`action`, with `message` or `args`), or `decisions`, one for each pending call.

    With the `interrupt_id` of the pending approval that was shown, a decision is on that and on nothing that
    has come up since; a request that is sent twice, by a proxy or a double click, decides once.
    """

    action: DecisionType | None = None
    message: str | None = None
    args: dict[str, Any] | None = None
    interrupt_id: str | None = None
    decisions: list[Decision] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.action is None) == (self.decisions is None):
            raise ValueError("give either action, for the one pending call, or decisions, one for each")
        if self.action is not None:
            self.decisions = [Decision(action=self.action, message=self.message, args=self.args)]
        for decision in self.decisions or []:
            decision.interrupt_id = decision.interrupt_id or self.interrupt_id
        return self


class Resumed(BaseModel):
    """Where the run has come to."""

    success: bool
    message: str
    status: str


@router.post(
    "/chat/{session_id}",
    openapi_extra=body_schema(ChatRequest),
    response_class=StreamingResponse,
    responses={200: _EVENTS},
)
async def chat(request: Request, session: OwnSession) -> StreamingResponse:
    """Say something to the agent; the answer is a `text/event-stream`.

    Events, each with JSON data: `token` {text}, `tool_call` {id, name, args}, `tool_result` {tool_call_id,
    name, status, content}, `interrupt` {pending_approvals}, `error` {error, message}, and last `done`
    {thread_id, status}. Silence is broken by comments. A client that goes away does not stop the run.
    """
    body = await read_json(request, ChatRequest)
    events = _heartbeats(_run(request, str(session), str(session.thread_id), body.message))
    # The first event is awaited here, so that a refusal is answered with its status, not inside a stream.
    first = await anext(events)
    return StreamingResponse(
        _prepend(first, events), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


@router.post("/resume/{session_id}", openapi_extra=body_schema(ResumeRequest))
async def resume(request: Request, session: OwnSession) -> Resumed:
    """Decide on the pending calls, and wait for the run to come to its next stop."""
    body = await read_json(request, ResumeRequest)
    thread_id = str(session.thread_id)
    async with platform(request) as client:
        approvals = pending_approvals(await client.threads.get_state(thread_id))
        if not approvals or await active_runs(client, thread_id):
            raise HTTPException(409, "Nothing is waiting for a decision in this session.")
        decisions = body.decisions or []
        if not were_seen(approvals, decisions):
            raise HTTPException(409, "Something else is pending now: look at the session again.")
        if len(decisions) != len(approvals):
            raise HTTPException(
                422, f"{len(approvals)} calls are pending; give `decisions`, one for each, in their order."
            )
        run = await client.runs.create(
            thread_id,
            GRAPH_ID,
            command=resume_command(approvals, decisions),
            multitask_strategy="reject",
        )
        try:
            async with asyncio.timeout(get_settings().resume_wait_seconds):
                await client.runs.join(thread_id, run["run_id"])
        except TimeoutError:
            return Resumed(success=True, message="The agent is still running.", status="busy")
        return await _next_stop(client, thread_id, run["run_id"])


async def _next_stop(client: LangGraphClient, thread_id: str, run_id: str) -> Resumed:
    run = await client.runs.get(thread_id, run_id)
    state: Any = await client.threads.get_state(thread_id)
    if run["status"] not in ("success", "interrupted"):
        status = run["status"]
        return Resumed(success=False, message=f"The run ended with {status}.", status=status)
    approvals = pending_approvals(state)
    if run["status"] == "interrupted" and not approvals:
        return Resumed(success=False, message="The run was cancelled.", status="interrupted")
    if approvals:
        tools = ", ".join(approval.tool for approval in approvals)
        return Resumed(
            success=True, message=f"The agent waits for a decision on: {tools}", status="interrupted"
        )
    messages = (state["values"] or {}).get("messages") or [{}]
    return Resumed(success=True, message=text_of(messages[-1].get("content", "")), status="idle")


async def _run(request: Request, session_id: str, thread_id: str, message: str) -> AsyncIterator[ChatEvent]:
    async with platform(request) as client:
        said: dict[str, Any] = {"messages": [{"role": "user", "content": message}]}
        parts = client.runs.stream(
            thread_id,
            GRAPH_ID,
            input=said,
            stream_mode=_STREAM_MODES,
            multitask_strategy="reject",
            on_disconnect="continue",
        )
        async for event in chat_events(parts):
            yield event
        try:
            thread = await client.threads.get(thread_id)
        except APIStatusError:  # deleted meanwhile
            return
        yield ChatEvent("done", {"thread_id": session_id, "status": thread["status"]})


async def _heartbeats(events: AsyncIterator[ChatEvent]) -> AsyncIterator[str]:
    """Encode events, and break a silence with a comment, which clients ignore and proxies notice."""
    pending = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait({pending}, timeout=get_settings().heartbeat_seconds)
            if not done:
                yield ": still here\n\n"
                continue
            event = pending.result()
            if event is None:
                return
            yield f"event: {event.name}\ndata: {json.dumps(event.data)}\n\n"
            pending = asyncio.ensure_future(anext(events, None))
    finally:
        pending.cancel()


async def _prepend(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for text in rest:
        yield text
