"""The approval gate, which writes down who decided what before anything is done about it.

It is LangChain's own middleware with one addition, since that is the one place that sees a tool call and the
decision on it whatever way the decision came in: the session API, a run's `command.resume`, or Studio.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID, uuid5

from langchain.agents.middleware import AgentState, HumanInTheLoopMiddleware, InterruptOnConfig
from langchain.agents.middleware.types import ToolCallRequest
from langchain_core.messages import ToolCall, ToolMessage
from langgraph.config import get_config
from langgraph.errors import GraphInterrupt
from langgraph.runtime import Runtime
from langgraph.types import Command

from agent.errors import DecisionsUnseenError
from sandbox.identity import current_identity
from storage.audit import DECISION, UNDECIDED
from storage.audit_entry import Entry


class DecisionLog(Protocol):
    """Where decisions are written; `storage.audit` is one."""

    async def record_decisions(self, entries: Sequence[Entry], /) -> None:
        """Write entries durably, all or none, each id once; raise if that cannot be done."""

    async def record_if_undecided(self, entry: Entry, /) -> None:
        """Likewise write the entry of a call, unless there is one of a decision on it."""


PREVIEW_CHARACTERS = 500
"""How much of a call's arguments, or of the words that came with a decision, an entry shows."""

_DECISIONS = UUID("5ad5a4b6-8f5d-4a43-8c0e-6f1f0f0c2a3d")
"""The namespace of decisions' ids: a random UUID."""

_MAX_ANSWERS = 1_000

_Taken = list[tuple[ToolCall, Mapping[str, Any]]]
_Outcome = tuple[dict[str, Any] | None, _Taken]
_taken: ContextVar[_Taken] = ContextVar("taken")


class AuditedApprovals(HumanInTheLoopMiddleware[Any, Any, Any]):
    """Ask a person about tool calls, and record each decision before the run goes on.

    If it cannot be recorded, the run ends with an error, no tool has run, and the calls wait again. Users may
    write calls into their own threads past this gate; those are recorded when they are made.
    """

    def __init__(self, interrupt_on: dict[str, bool | InterruptOnConfig], log: DecisionLog) -> None:
        """Gate the tools of `interrupt_on`.

        Args:
            interrupt_on: as for `HumanInTheLoopMiddleware`.
            log: where decisions are recorded.
        """
        # In per_call mode the decisions would come by another way.
        super().__init__(interrupt_on, interrupt_mode="batched")
        self._log = log

    @property
    def name(self) -> str:
        # deepagents puts it in the place of its own by this name; threads that wait are stored under it.
        return HumanInTheLoopMiddleware.__name__

    def after_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Refuse to run without an event loop, where nothing could be recorded.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("Decisions are recorded asynchronously: use ainvoke or astream.")

    async def aafter_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Stop for the decisions; when they are there, record them and then let the run act on them.

        The node is run from its start for every attempt to resume. What stops it (no decision yet, one that
        is not allowed, too few) stops it before the recording; what is recorded twice has the same id.

        Raises:
            AuditUnavailableError: they could not be recorded.
            DecisionsUnseenError: LangChain processed decisions that this class did not get to see.
            NoIdentityError: the run is nobody's.
            ValueError: they are no decisions on these calls.
        """
        update, taken = self._newest_decisions(state, runtime)
        if update is not None and "messages" in update:
            if not taken:
                raise DecisionsUnseenError
            await self._log.record_decisions(_entries(taken, runtime))
        return update

    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """Make a call; if nobody was asked about it who should have been, write that down first.

        Raises:
            AuditUnavailableError: that could not be written, and the call was not made.
            NoIdentityError: the run is nobody's.
        """

        # The base puts an edited call in the place of the model's own.
        async def recorded(final: ToolCallRequest) -> ToolMessage | Command[Any]:
            if final.tool_call["name"] in self.interrupt_on:
                await self._log.record_if_undecided(_undecided(final.tool_call))
            return await handler(final)

        return await super().awrap_tool_call(request, recorded)

    def _newest_decisions(self, state: AgentState[Any], runtime: Runtime[Any]) -> _Outcome:
        """Process the answers to the interrupt, and return what came of the newest, and its decisions.

        LangGraph keeps the answer that a node has failed on and gives it to the next attempt before the new
        one. Without this, an approval that could not be recorded would win over the rejection that follows.
        """
        newest: _Outcome | Exception | None = None
        for _ in range(_MAX_ANSWERS):
            taken: _Taken = []
            token = _taken.set(taken)
            try:
                # Each call takes one answer more, and stops the run when there is none left.
                newest = (super().after_model(state, runtime), taken)
            except GraphInterrupt:
                if newest is None:
                    raise
                break
            except Exception as error:  # noqa: BLE001 - raised below, unless a newer answer is better
                newest = error
            else:
                if not taken:
                    break
            finally:
                _taken.reset(token)
        else:
            raise ValueError("Too many answers were of no use; send a new message instead.")
        if isinstance(newest, Exception):
            raise newest
        return newest

    def _process_decision(  # type: ignore[override]  # the base's is static, and called on the instance
        self, decision: Any, tool_call: ToolCall, config: InterruptOnConfig
    ) -> tuple[ToolCall | None, ToolMessage | None]:
        processed = super()._process_decision(decision, tool_call, config)
        if decision["type"] == "edit":
            _require_action(decision.get("edited_action"))
        _taken.get().append((tool_call, decision))
        return processed


def _require_action(action: object) -> None:
    if (
        not isinstance(action, dict)
        or not isinstance(action.get("name"), str)
        or not isinstance(action.get("args"), dict)
    ):
        raise ValueError("edit needs edited_action: a tool's name and its args in full")  # noqa: TRY004


def _undecided(tool_call: ToolCall) -> Entry:
    owner, thread_id = current_identity()
    details = {**_describe_call(tool_call), "run_id": _run_id()}
    made = json.dumps([str(thread_id), details], sort_keys=True)
    return Entry(uuid5(_DECISIONS, made), datetime.now(UTC), UNDECIDED, owner, None, thread_id, details)


def _run_id() -> str:
    # The platform's word, which stays the same when it runs a crashed run again.
    return str(get_config().get("configurable", {}).get("run_id"))


def _entries(taken: _Taken, runtime: Runtime[Any]) -> list[Entry]:
    owner, thread_id = current_identity()
    run_id = _run_id()
    task_id = runtime.execution_info.task_id if runtime.execution_info else ""
    now = datetime.now(UTC)
    entries = []
    for position, (tool_call, decision) in enumerate(taken):
        details = {**_describe(tool_call, decision), "run_id": run_id}
        decided = json.dumps([str(thread_id), run_id, task_id, position, details], sort_keys=True)
        entries.append(Entry(uuid5(_DECISIONS, decided), now, DECISION, owner, None, thread_id, details))
    return entries


def _describe(tool_call: ToolCall, decision: Mapping[str, Any]) -> dict[str, Any]:
    details = {"decision": decision["type"], **_describe_call(tool_call)}
    if decision["type"] == "edit":
        edited = decision["edited_action"]
        arguments, digest = _digest(edited["args"])
        details |= {
            "edited_tool": edited["name"],
            "edited_arguments": arguments,
            "edited_arguments_sha256": digest,
        }
    elif message := decision.get("message"):
        details["message"] = str(message)[:PREVIEW_CHARACTERS]
    return details


def _describe_call(tool_call: ToolCall) -> dict[str, Any]:
    arguments, digest = _digest(tool_call["args"])
    return {
        "tool": tool_call["name"],
        "tool_call_id": tool_call["id"],
        "arguments": arguments,
        "arguments_sha256": digest,
    }


def _digest(arguments: object) -> tuple[str, str]:
    """Return the beginning of the arguments' JSON, and the SHA-256 of all of it (UTF-8, keys sorted)."""
    text = json.dumps(arguments, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return text[:PREVIEW_CHARACTERS], hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
