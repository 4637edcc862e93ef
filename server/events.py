"""From the platform's stream of a run to the few events of the session API."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from server.approvals import pending_approvals
from server.text import text_of


@dataclass(frozen=True, slots=True)
class ChatEvent:
    """One server-sent event: its name and its JSON data."""

    name: str
    data: dict[str, Any]


async def chat_events(parts: AsyncIterator[Any]) -> AsyncIterator[ChatEvent]:
    """Translate the parts of a run streamed with the modes `messages-tuple` and `updates`."""
    async for part in parts:
        if part.event == "messages":
            message, _ = part.data
            if message["type"] == "AIMessageChunk" and (text := text_of(message["content"])):
                yield ChatEvent("token", {"text": text})
        elif part.event == "updates":
            for event in _of_update(part.data):
                yield event
        elif part.event == "error":
            yield ChatEvent("error", _error(part.data))


def _of_update(update: dict[str, Any]) -> list[ChatEvent]:
    events = []
    for node, change in update.items():
        if node == "__interrupt__":
            approvals = pending_approvals({"tasks": [{"interrupts": change}]})
            data = {"pending_approvals": [approval.model_dump() for approval in approvals]}
            events.append(ChatEvent("interrupt", data))
        elif isinstance(change, dict):
            events += [event for message in _messages(change) for event in _of_message(message)]
    return events


def _messages(change: dict[str, Any]) -> list[dict[str, Any]]:
    messages = change.get("messages") or []
    return (
        [message for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []
    )


def _of_message(message: dict[str, Any]) -> list[ChatEvent]:
    if message.get("type") == "ai":
        return [
            ChatEvent("tool_call", {"id": call["id"], "name": call["name"], "args": call["args"]})
            for call in message.get("tool_calls") or []
        ]
    if message.get("type") == "tool":
        keys = ("tool_call_id", "name", "status")
        data = {key: message.get(key) for key in keys}
        return [ChatEvent("tool_result", {**data, "content": text_of(message.get("content"))})]
    return []


def _error(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        return {"error": "Error", "message": str(data)}
    return {"error": str(data.get("error", "Error")), "message": str(data.get("message", ""))}
