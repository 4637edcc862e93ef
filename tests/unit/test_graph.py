"""The agent as a whole: approvals, sub-agents, limits, retries and artifacts.

The backend is a shell in a temporary directory, where `/workspace` is a plain directory.
"""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from deepagents.backends import LocalShellBackend
from langchain_core.exceptions import ModelAPIError
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command

from agent.build import ARTIFACTS_ROOT, build_graph
from agent.model import build_model
from agent.rehearsal import RehearsalModel
from agent.settings import AgentSettings
from storage.audit_entry import Entry

APPROVE = {"type": "approve"}


class Conversation:
    """One thread of an agent whose files are below `root`."""

    def __init__(self, root: Path, saver: InMemorySaver | None = None, **settings: Any) -> None:
        self.root = root
        self.saver = saver or InMemorySaver()
        self.config: Any = {"configurable": {"thread_id": str(uuid4()), "langgraph_auth_user_id": "alice"}}
        self.graph = graph_in(root, **settings)
        self.graph.checkpointer = self.saver

    async def say(self, text: str) -> list[dict[str, Any]]:
        """Say `text`, run to the next stop and return the calls that wait for a decision."""
        return await self._run({"messages": [("user", text)]})

    async def decide(self, *decisions: dict[str, Any]) -> list[dict[str, Any]]:
        return await self._run(Command(resume={"decisions": list(decisions)}))

    async def _run(self, given: Any) -> list[dict[str, Any]]:
        state: Any = await self.graph.ainvoke(given, self.config, version="v2")
        self.messages = state.value["messages"]
        return [request for stop in state.interrupts for request in stop.value["action_requests"]]

    @property
    def last(self) -> str:
        return str(self.messages[-1].text)

    def file(self, name: str) -> Path:
        return self.root / "workspace" / name


def graph_in(root: Path, **settings: Any) -> CompiledStateGraph[Any, Any, Any, Any]:
    backend = LocalShellBackend(root_dir=root, virtual_mode=True)
    return build_graph(RehearsalModel(), backend, AgentSettings(**settings), Unrecorded())


class Unrecorded:
    """Takes decisions for granted: test_audited_approvals is about them."""

    async def record_decisions(self, entries: Sequence[Entry]) -> None: ...

    async def record_if_undecided(self, entry: Entry) -> None: ...


@pytest.fixture
def alice(tmp_path: Path) -> Conversation:
    return Conversation(tmp_path)


# --- approvals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "tool"),
    [
        ("run touch x", "execute"),
        ("write x: y", "write_file"),
        ("edit x: a => b", "edit_file"),
        ("delete x", "delete"),
    ],
)
async def test_what_changes_something_waits_for_a_person(alice: Conversation, line: str, tool: str) -> None:
    alice.file("x").parent.mkdir()
    alice.file("x").write_text("a")
    [request] = await alice.say(line)
    assert request["name"] == tool
    assert [path.read_text() for path in alice.root.rglob("x")] == ["a"]


async def test_reading_does_not_wait(alice: Conversation) -> None:
    assert await alice.say("ls\nglob *\ngrep x\nread x") == []
    assert [line.split()[0] for line in alice.last.splitlines()[-4:]] == ["1.", "2.", "3.", "4."]


async def test_an_approved_call_is_made(alice: Conversation) -> None:
    await alice.say('write hello.py: print("hi")')
    assert await alice.decide(APPROVE) == []
    assert alice.file("hello.py").read_text() == 'print("hi")'


async def test_a_rejected_call_is_not_made_and_the_reason_reaches_the_model(alice: Conversation) -> None:
    await alice.say("write hello.py: x\nls")
    await alice.decide({"type": "reject", "message": "not today"})
    assert not alice.file("hello.py").exists()
    assert "not today" in alice.last
    assert "2. ls -> " in alice.last


async def test_an_edited_call_is_made_as_edited(alice: Conversation) -> None:
    await alice.say("run echo mine")
    edited = {"name": "execute", "args": {"command": "echo yours"}}
    await alice.decide({"type": "edit", "edited_action": edited})
    assert "-> yours" in alice.last
    assert "-> mine" not in alice.last


async def test_a_response_takes_the_place_of_the_call(alice: Conversation) -> None:
    await alice.say("write hello.py: x")
    await alice.decide({"type": "respond", "message": "it is there already"})
    assert not alice.file("hello.py").exists()
    assert "it is there already" in alice.last


async def test_every_call_of_a_script_waits_in_its_turn(alice: Conversation) -> None:
    [first] = await alice.say("run echo 1\nrun echo 2")
    [second] = await alice.decide(APPROVE)
    assert await alice.decide(APPROVE) == []
    assert [first["args"], second["args"]] == [{"command": "echo 1"}, {"command": "echo 2"}]


async def test_a_pending_approval_outlives_the_graph(alice: Conversation) -> None:
    await alice.say("write hello.py: x")
    restarted = Conversation(alice.root, alice.saver)
    restarted.config = alice.config
    assert await restarted.decide(APPROVE) == []
    assert alice.file("hello.py").exists()


async def test_a_new_message_leaves_the_pending_call_unmade(alice: Conversation) -> None:
    await alice.say("write hello.py: x")
    assert await alice.say("ls") == []
    assert not alice.file("hello.py").exists()


async def test_approve_says_which_tools_wait(tmp_path: Path) -> None:
    careful = Conversation(tmp_path, approve="ls")
    [request] = await careful.say("write a: x\nls")
    assert request["name"] == "ls"
    free = Conversation(tmp_path, approve="none")
    assert await free.say("run true\nwrite b: x\nedit b: x => y\ndelete b") == []


# --- sub-agents --------------------------------------------------------------------------------------


async def test_a_sub_agents_calls_wait_as_well(alice: Conversation) -> None:
    [request] = await alice.say("delegate write hello.py: x")
    assert request["name"] == "write_file"
    assert not alice.file("hello.py").exists()
    assert await alice.decide(APPROVE) == []
    assert alice.file("hello.py").read_text() == "x"
    assert "hello.py" in alice.last


async def test_a_sub_agents_rejected_call_is_not_made(alice: Conversation) -> None:
    await alice.say("delegate write hello.py: x")
    assert await alice.decide({"type": "reject", "message": "not today"}) == []
    assert not alice.file("hello.py").exists()
    assert "not today" in alice.last


async def test_a_sub_agent_cannot_delegate(alice: Conversation) -> None:
    assert await alice.say("delegate delegate run touch x") == []
    assert "no tool task" in alice.last


# --- limits ------------------------------------------------------------------------------------------


async def test_at_the_model_call_limit_the_run_ends_with_a_message(tmp_path: Path) -> None:
    alice = Conversation(tmp_path, model_call_limit=3)
    assert await alice.say("ls\n" * 10) == []
    assert len([message for message in alice.messages if message.type == "tool"]) == 3
    assert "limit" in alice.last


async def test_the_thread_goes_on_after_a_limit(tmp_path: Path) -> None:
    alice = Conversation(tmp_path, model_call_limit=3)
    await alice.say("ls\n" * 10)
    assert await alice.say("ls") == []
    assert alice.last.startswith("1. ls -> ")


async def test_calls_beyond_the_tool_call_limit_are_not_made_and_the_model_winds_up(tmp_path: Path) -> None:
    alice = Conversation(tmp_path, tool_call_limit=2, approve="none")
    assert await alice.say("write a: x\nwrite b: x\nwrite c: x") == []
    assert [alice.file(name).exists() for name in "abc"] == [True, True, False]
    assert "3. write c: x -> " in alice.last


async def test_approvals_do_not_start_the_count_anew_but_the_next_message_does(tmp_path: Path) -> None:
    alice = Conversation(tmp_path, tool_call_limit=2)
    await alice.say("write a: x\nwrite b: x\nwrite c: x")
    for _ in range(3):
        await alice.decide(APPROVE)
    assert [alice.file(name).exists() for name in "abc"] == [True, True, False]
    await alice.say("write c: x")
    await alice.decide(APPROVE)
    assert alice.file("c").exists()


async def test_a_sub_agent_has_limits_too(tmp_path: Path) -> None:
    alice = Conversation(tmp_path, model_call_limit=1, approve="none")
    await alice.say("delegate ls")
    [result] = [message for message in alice.messages if message.type == "tool"]
    assert "limit" in result.text


# --- artifacts ---------------------------------------------------------------------------------------


async def test_a_large_result_is_kept_in_the_workspace(tmp_path: Path) -> None:
    alice = Conversation(tmp_path, approve="none")
    await alice.say("run head -c 90000 /dev/zero | tr '\\0' x")
    [kept] = (tmp_path / ARTIFACTS_ROOT.lstrip("/") / "large_tool_results").iterdir()
    assert kept.read_text().count("x") >= 90_000
    [result] = [message for message in alice.messages if message.type == "tool"]
    assert len(result.text) < 10_000


# --- trouble with the model --------------------------------------------------------------------------


class Provider:
    """A loopback model server whose next answers are the given ones: a status, or a text cut off or whole."""

    def __init__(self, *answers: int | str) -> None:
        self.answers = list(answers)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        answer = self.answers.pop(0)
        if isinstance(answer, int):
            return web.json_response({"error": {"message": "out of order"}}, status=answer)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        delta = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": answer}}]}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", **delta}
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        if answer.endswith("…"):
            assert request.transport is not None
            request.transport.close()
        else:
            await response.write(b"data: [DONE]\n\n")
        return response


@asynccontextmanager
async def agent_on(
    provider: Provider, root: Path, retries: int
) -> AsyncIterator[CompiledStateGraph[Any, Any, Any, Any]]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", provider.answer)
    async with TestServer(app) as server:
        settings = AgentSettings(
            model="openai:m", model_base_url=str(server.make_url("/v1/")), model_max_retries=retries
        )
        backend = LocalShellBackend(root_dir=root, virtual_mode=True)
        yield build_graph(build_model(settings), backend, settings)


async def heard(graph: CompiledStateGraph[Any, Any, Any, Any]) -> str:
    """Say hello and return all that is streamed back."""
    given = {"messages": [("user", "hello")]}
    return "".join([str(chunk.text) async for chunk, _ in graph.astream(given, stream_mode="messages")])


async def test_an_outage_fails_the_run_and_is_no_answer(tmp_path: Path) -> None:
    provider = Provider(500, 500)
    async with agent_on(provider, tmp_path, retries=1) as graph:
        with pytest.raises(ModelAPIError):
            await heard(graph)
    assert provider.answers == []


async def test_a_failed_request_is_sent_again(tmp_path: Path) -> None:
    async with agent_on(Provider(503, "well"), tmp_path, retries=1) as graph:
        assert await heard(graph) == "well"


async def test_an_answer_that_breaks_off_is_asked_for_again(tmp_path: Path) -> None:
    async with agent_on(Provider("he…", "hello"), tmp_path, retries=1) as graph:
        assert await heard(graph) == "he…hello"
