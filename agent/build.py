"""How the agent is put together: model, backend, approvals, limits."""

from collections.abc import Callable
from typing import Any

from deepagents import SubAgent, create_deep_agent
from deepagents.backends import CompositeBackend
from deepagents.backends.protocol import BackendProtocol
from deepagents.middleware.subagents import GENERAL_PURPOSE_SUBAGENT
from langchain.agents.middleware import (
    AgentMiddleware,
    InterruptOnConfig,
    ModelRetryMiddleware,
)
from langchain_core.language_models import BaseChatModel
from langgraph.graph.state import CompiledStateGraph

from agent.audit import AuditedApprovals, DecisionLog
from agent.limits import CallLimits
from agent.prefetch import SandboxAhead
from agent.prompt import SUB_AGENT_PROMPT, SYSTEM_PROMPT
from agent.settings import AgentSettings, get_settings
from sandbox.spec import WORKSPACE
from storage import audit

ARTIFACTS_ROOT = f"{WORKSPACE}/.warren"
"""Where deepagents puts tool results too large for the model, and summarised history: it must be writable in
the sandbox and outlive it."""


def build_graph(
    model: BaseChatModel,
    backend: BackendProtocol,
    settings: AgentSettings | None = None,
    log: DecisionLog = audit,
    prepare: Callable[[], None] | None = None,
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Compile the agent. It takes about 0.1 s, so it is done once and not per run.

    The checkpointer and the store are left out: the platform puts its own in. `log` is where decisions on
    tool calls are written before they are carried out. `prepare` gets the backend ready for the current run,
    where that takes time; see `SandboxAhead`.
    """
    settings = settings or get_settings()
    general_purpose: SubAgent = {
        **GENERAL_PURPOSE_SUBAGENT,
        "system_prompt": SUB_AGENT_PROMPT,
        # deepagents hands a sub-agent the approvals but not the middleware of its parent.
        "middleware": _safeguards(settings, log),
        # Otherwise it would add an approval gate that records nothing.
        "interrupt_on": {},
    }
    graph: CompiledStateGraph[Any, Any, Any, Any] = create_deep_agent(
        model=model,
        # deepagents reads artifacts_root off a CompositeBackend and off nothing else.
        backend=CompositeBackend(default=backend, routes={}, artifacts_root=ARTIFACTS_ROOT),
        system_prompt=SYSTEM_PROMPT,
        middleware=[
            *([SandboxAhead(prepare)] if prepare else []),
            *_safeguards(settings, log),
        ],
        subagents=[general_purpose],
        # The audited gate takes the place of the one that this makes.
        interrupt_on=_approvals(settings),
        name="agent",
    )
    return graph


def _safeguards(settings: AgentSettings, log: DecisionLog) -> list[AgentMiddleware[Any, Any, Any]]:
    """Make a set of limits, retries and approvals for one agent."""
    safeguards: list[AgentMiddleware[Any, Any, Any]] = [
        CallLimits(settings.model_call_limit, settings.tool_call_limit),
        # With the default on_failure an outage would turn into an ordinary answer.
        ModelRetryMiddleware(max_retries=settings.model_max_retries, max_delay=30.0, on_failure="error"),
    ]
    if approvals := _approvals(settings):
        safeguards.append(AuditedApprovals(approvals, log))
    return safeguards


def _approvals(settings: AgentSettings) -> dict[str, bool | InterruptOnConfig]:
    return {
        tool: {"allowed_decisions": ["approve", "edit", "reject", "respond"]}
        for tool in sorted(settings.approve)
    }
