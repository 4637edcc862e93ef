"""Tool calls that wait for a person, and the decisions on them, in the platform's own form."""

from typing import Any, Literal, Self

from langgraph_sdk.schema import Command
from pydantic import BaseModel, model_validator

DecisionType = Literal["approve", "reject", "edit", "respond"]


class PendingApproval(BaseModel):
    """One tool call that waits. `interrupt_id` is the platform's; calls made at once share it."""

    interrupt_id: str
    tool: str
    args: dict[str, Any]
    description: str
    allowed_decisions: list[str]


class Decision(BaseModel):
    """What a person says to one pending call.

    `edit` needs `args`, the call's arguments in full; `respond` needs `message`, given to the agent as the
    tool's result; `reject` may have a `message`, the reason. `interrupt_id` says which call was seen.
    """

    action: DecisionType
    message: str | None = None
    args: dict[str, Any] | None = None
    interrupt_id: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.action == "edit" and self.args is None:
            raise ValueError("edit needs args: the tool's arguments in full")
        if self.action == "respond" and not self.message:
            raise ValueError("respond needs a message")
        return self


def pending_approvals(state: Any) -> list[PendingApproval]:
    """Return the calls that wait, in the order in which decisions on them are given.

    Args:
        state: a thread's state, as `GET /threads/{thread_id}/state` answers it.
    """
    return [
        approval
        for interrupt in _interrupts(state)
        if isinstance(interrupt.get("value"), dict)
        for approval in _of_interrupt(interrupt["id"], interrupt["value"])
    ]


def were_seen(approvals: list[PendingApproval], decisions: list[Decision]) -> bool:
    """Tell whether each decision is on the call that is pending now, as far as it says which it is on."""
    return all(
        decision.interrupt_id in (None, approval.interrupt_id)
        for approval, decision in zip(approvals, decisions, strict=False)
    )


def resume_command(approvals: list[PendingApproval], decisions: list[Decision]) -> Command:
    """Return the `command` of the run that carries out one decision for each pending call."""
    resume: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for approval, decision in zip(approvals, decisions, strict=True):
        answers = resume.setdefault(approval.interrupt_id, {"decisions": []})
        answers["decisions"].append(_platform_decision(approval, decision))
    return Command(resume=resume)


def _interrupts(state: Any) -> list[dict[str, Any]]:
    # A subgraph's interrupt is seen on the task that runs it as well as on the state: once is enough.
    found = {
        interrupt["id"]: interrupt
        for task in state.get("tasks") or []
        for interrupt in task.get("interrupts") or []
        if "id" in interrupt
    }
    return list(found.values())


def _of_interrupt(interrupt_id: str, request: dict[str, Any]) -> list[PendingApproval]:
    allowed = {
        config["action_name"]: config["allowed_decisions"] for config in request.get("review_configs", [])
    }
    return [
        PendingApproval(
            interrupt_id=interrupt_id,
            tool=action["name"],
            args=action["args"],
            description=action.get("description", ""),
            allowed_decisions=allowed.get(action["name"], []),
        )
        for action in request.get("action_requests", [])
    ]


def _platform_decision(approval: PendingApproval, decision: Decision) -> dict[str, Any]:
    if decision.action == "edit":
        return {"type": "edit", "edited_action": {"name": approval.tool, "args": decision.args}}
    platform_decision: dict[str, Any] = {"type": decision.action}
    if decision.message and decision.action != "approve":
        platform_decision["message"] = decision.message
    return platform_decision
