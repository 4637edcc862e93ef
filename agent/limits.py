"""How many calls an agent may make for one message of its user.

LangChain's own limits count in nodes of their own before and after each model call; with a checkpoint in
Postgres for every node they were nearly half of all that a turn writes. These wrap the calls instead, and
count what the conversation already says.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain.agents.middleware.types import ToolCallRequest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.types import Command


class CallLimits(AgentMiddleware[Any, Any, Any]):
    """Stop an agent that goes round in circles.

    Args:
        model_calls: model calls for one human message, approvals in between included. The call after them is
            not made: the agent ends with a message that says so, and the next human message starts anew.
        tool_calls: tool calls likewise. Those beyond are answered with an error: the model can wind up.
    """

    def __init__(self, model_calls: int, tool_calls: int) -> None:
        super().__init__()
        self._model_calls = model_calls
        self._tool_calls = tool_calls

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        made = sum(isinstance(message, AIMessage) for message in _of_this_turn(request.state["messages"]))
        if made < self._model_calls:
            return await handler(request)
        stopped = f"I have stopped after {made} model calls, the limit for one message. Say how to go on."
        return ModelResponse(result=[AIMessage(stopped)])

    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        messages = _of_this_turn(request.state["messages"])
        made = sum(isinstance(message, ToolMessage) for message in messages)
        if made + _place(request.tool_call["id"], messages) < self._tool_calls:
            return await handler(request)
        return ToolMessage(
            f"Not called: the limit of {self._tool_calls} tool calls for one message is reached. Wind up.",
            name=request.tool_call["name"],
            tool_call_id=request.tool_call["id"] or "",
            status="error",
        )


def _of_this_turn(messages: Sequence[AnyMessage]) -> Sequence[AnyMessage]:
    """Return what has come since the user last said something."""
    for place in range(len(messages) - 1, -1, -1):
        if isinstance(messages[place], HumanMessage):
            return messages[place + 1 :]
    return messages


def _place(call_id: str | None, messages: Sequence[AnyMessage]) -> int:
    """Return how many calls stand before this one among those made at once."""
    latest = next((message for message in reversed(messages) if isinstance(message, AIMessage)), None)
    ids = [call["id"] for call in latest.tool_calls] if latest else []
    return ids.index(call_id) if call_id in ids else 0
