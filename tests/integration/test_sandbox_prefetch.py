# ruff: noqa: ARG002 -- the signatures of the model are BaseChatModel's
"""A run's sandbox is made while its first model call is under way."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command

from agent.build import build_graph
from agent.settings import AgentSettings
from sandbox.engine import connected
from sandbox.errors import AtCapacityError
from sandbox.listing import list_containers
from storage.audit_entry import Entry
from storage.ids import SessionId
from tests.integration.sandboxes import Act, Sandboxes, Unlimited, sandboxes

Thought = Callable[[], Awaitable[None]]


class SlowModel(BaseChatModel):
    """Thinks, then has one command run, then says what came of it."""

    think: Thought
    command: str | None = "echo ran"

    @property
    def _llm_type(self) -> str:
        return "slow"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> "SlowModel":
        return self

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        answer = AIMessage("done")
        if isinstance(messages[-1], HumanMessage):
            await self.think()
            if self.command is not None:
                call = {"name": "execute", "args": {"command": self.command}, "id": "call-1"}
                answer = AIMessage("", tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=answer)])


class Unrecorded:
    async def record_decisions(self, entries: Sequence[Entry]) -> None: ...

    async def record_if_undecided(self, entry: Entry) -> None: ...


async def no_thought() -> None: ...


def agent_of(
    house: Sandboxes,
    model: SlowModel,
    approve: str = "none",
    prepare: Callable[[], None] | None = None,
) -> CompiledStateGraph[Any, Any, Any, Any]:
    settings = AgentSettings(approve=approve)
    graph = build_graph(model, house.backend, settings, Unrecorded(), prepare or house.backend.prepare)
    graph.checkpointer = InMemorySaver()
    return graph


def config_of(session: SessionId) -> Any:
    return {"configurable": {"thread_id": str(session.thread_id), "langgraph_auth_user_id": session.owner}}


async def is_running(house: Sandboxes, session: SessionId) -> bool:
    async with connected() as engine:
        return any(found.runs for found in await list_containers(engine, house.instance, session))


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Sandboxes]:
    async with sandboxes(tmp_path) as house:
        yield house


async def test_the_sandbox_is_ready_before_the_model_has_answered(house: Sandboxes) -> None:
    session = house.thread("alice")

    was_ready = False

    async def think() -> None:
        nonlocal was_ready
        with suppress(TimeoutError):  # the agent would ask again
            async with asyncio.timeout(30):
                while not await is_running(house, session):
                    await asyncio.sleep(0.02)
                was_ready = True

    state = await agent_of(house, SlowModel(think=think)).ainvoke(
        {"messages": [("user", "go")]}, config_of(session)
    )
    [result] = [message for message in state["messages"] if isinstance(message, ToolMessage)]
    assert result.text.startswith("ran\n")
    assert was_ready


async def test_a_run_that_goes_on_after_an_approval_prepares_nothing(house: Sandboxes) -> None:
    prepared: list[None] = []
    session = house.thread("alice")
    model = SlowModel(think=no_thought)
    graph = agent_of(house, model, approve="execute", prepare=lambda: prepared.append(None))
    await graph.ainvoke({"messages": [("user", "go")]}, config_of(session))
    assert len(prepared) == 1
    decided = Command(resume={"decisions": [{"type": "reject", "message": "no"}]})
    state = await graph.ainvoke(decided, config_of(session))
    assert state["messages"][-1].text == "done"
    assert len(prepared) == 1


class Full(Unlimited):
    """Lets nothing run."""

    def is_fresh(self, _: SessionId) -> bool:
        return False

    async def admit(self, _: SessionId, __: Act) -> bool:
        raise AtCapacityError


@asynccontextmanager
async def at_capacity(root: Path) -> AsyncIterator[Sandboxes]:
    yield Sandboxes(root, Full())


@asynccontextmanager
async def without_engine(root: Path) -> AsyncIterator[Sandboxes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
        yield Sandboxes(root)


@pytest.mark.parametrize("problem", [at_capacity, without_engine])
async def test_a_run_that_calls_no_tool_does_not_notice_that_its_sandbox_cannot_be_made(
    tmp_path: Path, problem: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with problem(tmp_path) as house:
        graph = agent_of(house, SlowModel(think=no_thought, command=None))
        state = await graph.ainvoke({"messages": [("user", "hi")]}, config_of(house.thread("alice")))
        assert state["messages"][-1].text == "done"
        while house.containers._beginning:
            await asyncio.sleep(0.01)
        gc.collect()  # then asyncio complains of exceptions that nobody has looked at
        assert [record for record in caplog.records if record.name == "asyncio"] == []
        await house.containers.close()


async def test_a_run_without_an_identity_prepares_nothing(house: Sandboxes) -> None:
    graph = agent_of(house, SlowModel(think=no_thought, command=None))
    state = await graph.ainvoke(
        {"messages": [("user", "hi")]}, {"configurable": {"thread_id": "not-a-thread"}}
    )
    assert state["messages"][-1].text == "done"
    assert house.containers._beginning == set()


async def test_closing_waits_for_what_is_being_prepared(house: Sandboxes) -> None:
    session = house.thread("alice")
    house.containers.prepare(session)
    await house.containers.close()
    assert house.containers._beginning == set()
    assert await house.run(session, "echo ran") == "ran\n"
