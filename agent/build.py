"""How the agent is put together: model, backend, approvals, limits."""

from typing import Any

from deepagents import SubAgent, create_deep_agent
from deepagents.backends import CompositeBackend
from deepagents.backends.protocol import BackendProtocol
from deepagents.middleware.subagents import GENERAL_PURPOSE_SUBAGENT
from langchain.agents.middleware import (
    AgentMiddleware,
    InterruptOnConfig,
    ModelCallLimitMiddleware,
    ModelRetryMiddleware,
    ToolCallLimitMiddleware,
)
from langchain_core.language_models import BaseChatModel
from langgraph.graph.state import CompiledStateGraph

from agent.prompt import SUB_AGENT_PROMPT, SYSTEM_PROMPT, WORKSPACE
from agent.settings import AgentSettings, get_settings

ARTIFACTS_ROOT = f"{WORKSPACE}/.warren"
"""Where deepagents puts tool results too large for the model, and summarised history: it must be writable in
the sandbox and outlive it."""


def build_graph(
    model: BaseChatModel, backend: BackendProtocol, settings: AgentSettings | None = None
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Compile the agent. It takes about 0.1 s, so it is done once and not per run.

    The checkpointer and the store are left out: the platform puts its own in.
    """
    settings = settings or get_settings()
    general_purpose: SubAgent = {
        **GENERAL_PURPOSE_SUBAGENT,
        "system_prompt": SUB_AGENT_PROMPT,
        # deepagents hands a sub-agent the approvals but not the middleware of its parent.
        "middleware": _safeguards(settings),
    }
    graph: CompiledStateGraph[Any, Any, Any, Any] = create_deep_agent(
        model=model,
        # deepagents reads artifacts_root off a CompositeBackend and off nothing else.
        backend=CompositeBackend(default=backend, routes={}, artifacts_root=ARTIFACTS_ROOT),
        system_prompt=SYSTEM_PROMPT,
        middleware=_safeguards(settings),
        subagents=[general_purpose],
        interrupt_on={tool: _all_decisions() for tool in sorted(settings.approve)},
        name="agent",
    )
    return graph


def _safeguards(settings: AgentSettings) -> list[AgentMiddleware[Any, Any, Any]]:
    """Make a set of limits and retries for one agent."""
    return [
        ModelCallLimitMiddleware(run_limit=settings.model_call_limit, exit_behavior="end"),
        ToolCallLimitMiddleware(run_limit=settings.tool_call_limit, exit_behavior="continue"),
        # With the default on_failure an outage would turn into an ordinary answer.
        ModelRetryMiddleware(max_retries=settings.model_max_retries, max_delay=30.0, on_failure="error"),
    ]


def _all_decisions() -> InterruptOnConfig:
    return {"allowed_decisions": ["approve", "edit", "reject", "respond"]}
