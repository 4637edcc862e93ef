"""Getting a run's sandbox ready while the model thinks."""

from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import HumanMessage


class SandboxAhead(AgentMiddleware[Any, Any, Any]):
    """Has the sandbox made or resumed during a message's first model call, so that no tool call waits for it.

    It wraps that call, since a node of its own would cost every run a checkpoint. A run that goes on after
    an approval begins with the tool call itself: there is nothing to get ahead of.

    Args:
        prepare: Begins it for the current run's thread, without waiting and without raising.
    """

    def __init__(self, prepare: Callable[[], None]) -> None:
        super().__init__()
        self._prepare = prepare

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        if request.messages and isinstance(request.messages[-1], HumanMessage):
            self._prepare()
        return await handler(request)
