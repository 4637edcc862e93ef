"""Decisions on tool calls are recorded, each once and before anything is done."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from deepagents.backends import LocalShellBackend
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolCall
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from agent.audit import PREVIEW_CHARACTERS, AuditedApprovals
from agent.build import build_graph
from agent.errors import DecisionsUnseenError
from agent.rehearsal import RehearsalModel
from agent.settings import AgentSettings
from sandbox.errors import NoIdentityError
from storage.audit_entry import Entry
from storage.errors import AuditUnavailableError

APPROVE = {"type": "approve"}
REJECT = {"type": "reject", "message": "not today"}


class ScriptedModel(BaseChatModel):
    """Answers with the given messages, one after the other; a sub-agent shares them."""

    answers: list[AIMessage]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> "ScriptedModel":  # noqa: ARG002 - the base's
        return self

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        answer = self.answers.pop(0) if self.answers else AIMessage("done")
        return ChatResult(generations=[ChatGeneration(message=answer)])


def run(command: str, call_id: str | None = None) -> ToolCall:
    return ToolCall(name="execute", args={"command": command}, id=call_id or f"call-{uuid4()}")


def delegate(call_id: str) -> ToolCall:
    args = {"description": "go", "subagent_type": "general-purpose"}
    return ToolCall(name="task", args=args, id=call_id)


class Recorder:
    """An audit log in memory, which can be made to fail."""

    def __init__(self) -> None:
        self.attempts: list[list[Entry]] = []
        self.entries: dict[UUID, Entry] = {}
        self.undecided: list[Entry] = []
        self.root: Path | None = None
        self.files_at_record: list[list[str]] = []
        self.broken = False
        self.crashing = False
        self.slow: asyncio.Event | None = None

    async def record_decisions(self, entries: Sequence[Entry]) -> None:
        if self.broken:
            raise AuditUnavailableError
        if self.slow is not None:
            self.slow.set()
            await asyncio.Event().wait()
        self.attempts.append(list(entries))
        if self.root is not None:
            self.files_at_record.append(sorted(path.name for path in self.root.rglob("made-*")))
        for entry in entries:
            self.entries.setdefault(entry.id, entry)
        if self.crashing:
            raise ConnectionAbortedError

    async def record_if_undecided(self, entry: Entry) -> None:
        if self.broken:
            raise AuditUnavailableError
        details = [one.details for one in self.entries.values()]
        decided = [
            (
                it["tool_call_id"],
                it.get("edited_tool", it["tool"]),
                it.get("edited_arguments_sha256", it["arguments_sha256"]),
            )
            for it in details
        ]
        call = entry.details
        if (call["tool_call_id"], call["tool"], call["arguments_sha256"]) not in decided:
            self.undecided.append(entry)

    @property
    def decided(self) -> list[tuple[str, str]]:
        """Decision and first argument of each entry, in order."""
        return [
            (entry.details["decision"], next(iter(json.loads(entry.details["arguments"]).values())))
            for entry in self.entries.values()
        ]


class Thread:
    """One thread of an agent whose files are below `root`."""

    def __init__(self, root: Path, model: BaseChatModel | None = None, **configurable: Any) -> None:
        self.root = root
        self.recorder = Recorder()
        self.recorder.root = root
        self.model = model or RehearsalModel()
        self.thread_id = uuid4()
        self.saver = InMemorySaver()
        self.configurable: dict[str, Any] = {
            "thread_id": str(self.thread_id),
            "langgraph_auth_user_id": "alice",
            **configurable,
        }
        self.interrupts: list[Any] = []
        self.restart()

    def restart(self) -> None:
        """Compile the graph anew on the same checkpoints, as another process would."""
        backend = LocalShellBackend(root_dir=self.root, virtual_mode=True)
        self.graph = build_graph(self.model, backend, AgentSettings(), self.recorder)
        self.graph.checkpointer = self.saver

    async def say(self, text: str = "go") -> None:
        await self._run({"messages": [("user", text)]})

    async def decide(self, *decisions: Any, run_id: str | None = None) -> None:
        await self._run(Command(resume={"decisions": list(decisions)}), run_id)

    async def answer(self, answers: dict[str, Any]) -> None:
        await self._run(Command(resume=answers))

    async def go_on(self) -> None:
        await self._run(None)

    async def _run(self, given: Any, run_id: str | None = None) -> None:
        config: Any = {"configurable": {**self.configurable, "run_id": run_id or str(uuid4())}}
        state: Any = await self.graph.ainvoke(given, config, version="v2")
        self.interrupts = list(state.interrupts)

    def made(self) -> list[str]:
        return sorted(path.name for path in self.root.rglob("made-*"))


@pytest.fixture
def thread(tmp_path: Path) -> Thread:
    return Thread(tmp_path)


def parallel(root: Path, *calls: ToolCall, then: Sequence[AIMessage] = ()) -> Thread:
    """Return a thread whose model makes all the calls at once."""
    return Thread(root, ScriptedModel(answers=[AIMessage("", tool_calls=list(calls)), *then]))


# --- what is recorded --------------------------------------------------------------------------------


async def test_an_entry_says_who_decided_what_on_which_call(thread: Thread) -> None:
    await thread.say("run echo hello")
    await thread.decide(APPROVE, run_id="run-1")
    [entry] = thread.recorder.entries.values()
    arguments = '{"command":"echo hello"}'
    assert (entry.event, entry.username, entry.thread_id) == ("decision", "alice", thread.thread_id)
    assert entry.details["decision"] == "approve"
    assert entry.details["tool"] == "execute"
    assert entry.details["run_id"] == "run-1"
    assert entry.details["arguments"] == arguments
    assert entry.details["arguments_sha256"] == hashlib.sha256(arguments.encode()).hexdigest()


async def test_a_rejection_and_its_reason_are_recorded(thread: Thread) -> None:
    await thread.say("run touch made-1")
    await thread.decide(REJECT)
    [entry] = thread.recorder.entries.values()
    assert (entry.details["decision"], entry.details["message"]) == ("reject", "not today")
    assert thread.made() == []


async def test_a_response_is_recorded(thread: Thread) -> None:
    await thread.say("run touch made-1")
    await thread.decide({"type": "respond", "message": "it is there"})
    [entry] = thread.recorder.entries.values()
    assert (entry.details["decision"], entry.details["message"]) == ("respond", "it is there")


async def test_of_an_edit_both_calls_are_recorded(thread: Thread) -> None:
    await thread.say("run touch made-1")
    edited = {"name": "execute", "args": {"command": "touch made-2"}}
    await thread.decide({"type": "edit", "edited_action": edited})
    [entry] = thread.recorder.entries.values()
    assert entry.details["arguments"] == '{"command":"touch made-1"}'
    assert entry.details["edited_tool"] == "execute"
    assert entry.details["edited_arguments"] == '{"command":"touch made-2"}'
    assert entry.details["edited_arguments_sha256"] != entry.details["arguments_sha256"]
    assert thread.made() == ["made-2"]


async def test_a_call_that_was_decided_on_is_not_recorded_again(tmp_path: Path) -> None:
    thread = parallel(tmp_path, run("touch made-1", "same"), run("touch made-2", "other"))
    await thread.say()
    edited = {"name": "execute", "args": {"command": "touch made-3"}}
    await thread.decide(APPROVE, {"type": "edit", "edited_action": edited})
    assert thread.made() == ["made-1", "made-3"]
    assert thread.recorder.undecided == []


@pytest.mark.parametrize("call", [run("touch made-2", "call-1"), run("touch made-1", "call-2")])
async def test_a_call_that_a_user_writes_past_the_gate_is_recorded(tmp_path: Path, call: ToolCall) -> None:
    """Also with the id of one that was decided on, or with its arguments."""
    thread = parallel(tmp_path, run("touch made-1", "call-1"))
    await thread.say()
    await thread.decide(APPROVE)
    (tmp_path / "made-1").unlink()
    forged = {"messages": [AIMessage("", tool_calls=[call])]}
    await thread._run(Command(update=forged, goto="tools"), "run-2")
    assert len(thread.made()) == 1
    [entry] = thread.recorder.undecided
    assert (entry.event, entry.username, entry.thread_id) == ("undecided", "alice", thread.thread_id)
    assert entry.details["tool_call_id"] == call["id"]
    assert json.loads(entry.details["arguments"]) == call["args"]
    assert entry.details["run_id"] == "run-2"


async def test_a_call_that_a_user_forges_the_edit_of_is_recorded_as_it_is_made(tmp_path: Path) -> None:
    """Edits wait in the thread's state for their call; what is approved there need not be what is made."""
    thread = parallel(tmp_path, run("touch made-1", "call-1"))
    await thread.say()
    forged = {"call-1": {"name": "execute", "args": {"command": "touch made-2"}}}
    resume = Command(resume={"decisions": [APPROVE]}, update={"hitl_edited_tool_calls": forged})
    await thread._run(resume)
    assert thread.recorder.decided == [("approve", "touch made-1")]
    made = [json.loads(entry.details["arguments"])["command"] for entry in thread.recorder.undecided]
    assert [f"touch {name}" for name in thread.made()] in (["touch made-1"], made)


async def test_of_long_arguments_the_beginning_is_shown_and_all_is_digested(tmp_path: Path) -> None:
    first, second = "touch made-1 #" + "x" * 10_000 + "1", "touch made-1 #" + "x" * 10_000 + "2"
    thread = parallel(tmp_path, run(first), run(second))
    await thread.say()
    await thread.decide(APPROVE, APPROVE)
    one, other = thread.recorder.entries.values()
    assert one.details["arguments"] == other.details["arguments"]
    assert len(one.details["arguments"]) == PREVIEW_CHARACTERS
    assert one.details["arguments_sha256"] != other.details["arguments_sha256"]


@pytest.mark.parametrize("text", ["\ud800", "\0", "\x1b[2J", "é\n", "\N{RIGHT-TO-LEFT OVERRIDE}"])
async def test_odd_characters_in_arguments_do_not_hinder_the_record(tmp_path: Path, text: str) -> None:
    thread = parallel(tmp_path, run(f"true {text}"))
    await thread.say()
    await thread.decide(REJECT)
    assert [decision for decision, _ in thread.recorder.decided] == ["reject"]


# --- each decision once, and none undone --------------------------------------------------------------


async def test_each_call_made_at_once_has_its_entry(tmp_path: Path) -> None:
    thread = parallel(tmp_path, run("touch made-1"), run("touch made-2"), run("touch made-3"))
    await thread.say()
    await thread.decide(APPROVE, REJECT, APPROVE)
    assert thread.recorder.decided == [
        ("approve", "touch made-1"),
        ("reject", "touch made-2"),
        ("approve", "touch made-3"),
    ]
    assert thread.made() == ["made-1", "made-3"]


async def test_equal_calls_and_even_equal_call_ids_have_an_entry_each(tmp_path: Path) -> None:
    thread = parallel(tmp_path, run("true", "same"), run("true", "same"))
    await thread.say()
    await thread.decide(APPROVE, APPROVE)
    assert thread.recorder.decided == [("approve", "true"), ("approve", "true")]


async def test_calls_that_nobody_is_asked_about_have_no_entry(thread: Thread) -> None:
    await thread.say("ls\nrun true\nls")
    await thread.decide(APPROVE)
    assert thread.recorder.decided == [("approve", "true")]


async def test_decisions_one_after_the_other_have_an_entry_each(thread: Thread) -> None:
    await thread.say("run echo 1\nrun echo 1\nrun echo 1")
    for _ in range(3):
        await thread.decide(APPROVE)
    assert [len(attempt) for attempt in thread.recorder.attempts] == [1, 1, 1]
    assert len(thread.recorder.entries) == 3


async def test_the_entry_is_written_before_the_tool_runs(thread: Thread) -> None:
    await thread.say("run touch made-1")
    await thread.decide(APPROVE)
    assert (thread.recorder.files_at_record, thread.made()) == ([[]], ["made-1"])


async def test_a_decision_in_another_process_is_recorded_once(thread: Thread) -> None:
    await thread.say("run touch made-1")
    thread.restart()
    await thread.decide(APPROVE)
    assert len(thread.recorder.attempts) == 1
    assert thread.made() == ["made-1"]


@pytest.mark.parametrize(
    "decisions",
    [
        [],
        [APPROVE, APPROVE],
        [{"type": "destroy"}],
        [{}],
        ["approve"],
        [None],
        [{"type": "edit"}],
        [{"type": "edit", "edited_action": None}],
        [{"type": "edit", "edited_action": {"name": "execute"}}],
    ],
)
async def test_what_is_no_decision_is_neither_recorded_nor_carried_out(
    thread: Thread, decisions: list[Any]
) -> None:
    await thread.say("run touch made-1")
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        await thread.decide(*decisions)
    assert (thread.recorder.attempts, thread.made()) == ([], [])
    await thread.decide(APPROVE)
    assert thread.recorder.decided == [("approve", "touch made-1")]


async def test_without_an_entry_nothing_is_done_and_the_call_waits_again(thread: Thread) -> None:
    await thread.say("run touch made-1")
    thread.recorder.broken = True
    with pytest.raises(AuditUnavailableError):
        await thread.decide(APPROVE)
    assert thread.made() == []
    thread.recorder.broken = False
    await thread.decide(REJECT)
    assert thread.recorder.decided == [("reject", "touch made-1")]
    assert thread.made() == []


async def test_a_run_that_is_run_again_after_a_crash_gives_its_entry_the_same_id(thread: Thread) -> None:
    await thread.say("run touch made-1")
    thread.recorder.crashing = True
    with pytest.raises(ConnectionAbortedError):
        await thread.decide(APPROVE, run_id="run-1")
    assert thread.made() == []
    thread.recorder.crashing = False
    thread.restart()
    await thread.decide(APPROVE, run_id="run-1")
    assert len(thread.recorder.attempts) == 2
    assert thread.recorder.decided == [("approve", "touch made-1")]
    assert thread.made() == ["made-1"]


async def test_a_cancelled_approval_does_not_outlive_a_later_rejection(thread: Thread) -> None:
    await thread.say("run touch made-1")
    thread.recorder.slow = asyncio.Event()
    deciding = asyncio.create_task(thread.decide(APPROVE))
    await thread.recorder.slow.wait()
    deciding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deciding
    thread.recorder.slow = None
    await thread.decide(REJECT)
    assert thread.recorder.decided == [("reject", "touch made-1")]
    assert thread.made() == []


async def test_deciding_again_at_an_old_checkpoint_is_another_decision(thread: Thread) -> None:
    await thread.say("run touch made-1")
    config: Any = {"configurable": dict(thread.configurable)}
    waiting = (await thread.graph.aget_state(config)).config["configurable"]["checkpoint_id"]
    await thread.decide(APPROVE)
    thread.configurable["checkpoint_id"] = waiting
    await thread.decide(APPROVE)
    assert thread.recorder.decided == [("approve", "touch made-1")] * 2


async def test_a_new_message_instead_of_a_decision_is_no_decision(thread: Thread) -> None:
    await thread.say("run touch made-1")
    await thread.say("ls")
    assert thread.recorder.attempts == []


# --- sub-agents --------------------------------------------------------------------------------------


async def test_a_sub_agents_calls_are_recorded_once_each(thread: Thread) -> None:
    await thread.say("delegate run touch made-1")
    assert thread.recorder.attempts == []
    await thread.decide(APPROVE)
    assert thread.recorder.decided == [("approve", "touch made-1")]
    assert thread.recorder.files_at_record == [[]]
    assert thread.made() == ["made-1"]


async def test_a_sub_agent_that_asks_twice_is_recorded_twice(tmp_path: Path) -> None:
    calls = [AIMessage("", tool_calls=[run(f"touch made-{number}")]) for number in (1, 2)]
    thread = parallel(tmp_path, delegate("sub"), then=calls)
    await thread.say()
    await thread.decide(APPROVE)
    thread.restart()
    await thread.decide(REJECT)
    assert [len(attempt) for attempt in thread.recorder.attempts] == [1, 1]
    assert thread.recorder.decided == [("approve", "touch made-1"), ("reject", "touch made-2")]
    assert thread.made() == ["made-1"]


async def test_a_sub_agents_call_without_an_entry_is_not_made(thread: Thread) -> None:
    await thread.say("delegate run touch made-1")
    thread.recorder.broken = True
    with pytest.raises(AuditUnavailableError):
        await thread.decide(APPROVE)
    assert thread.made() == []


@pytest.mark.parametrize("together", [True, False])
async def test_sub_agents_at_once_are_recorded_once_each(tmp_path: Path, together: bool) -> None:
    calls = [AIMessage("", tool_calls=[run(f"touch made-{number}")]) for number in (1, 2)]
    thread = parallel(tmp_path, delegate("one"), delegate("two"), then=calls)
    await thread.say()
    answers = {stop.id: {"decisions": [APPROVE]} for stop in thread.interrupts}
    assert len(answers) == 2
    if together:
        await thread.answer(answers)
    else:
        for stop_id, answer in answers.items():
            await thread.answer({stop_id: answer})
    assert sorted(thread.recorder.decided) == [("approve", "touch made-1"), ("approve", "touch made-2")]
    assert [len(attempt) for attempt in thread.recorder.attempts] == [1, 1]
    assert thread.made() == ["made-1", "made-2"]


# --- no way round ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stamp", [{"langgraph_auth_user_id": None}, {"langgraph_auth_user_id": "No Name"}])
async def test_a_run_of_nobody_decides_nothing(tmp_path: Path, stamp: dict[str, Any]) -> None:
    thread = Thread(tmp_path, user_id="alice", **stamp)
    await thread.say("run touch made-1")
    with pytest.raises(NoIdentityError):
        await thread.decide(APPROVE)
    assert (thread.recorder.attempts, thread.made()) == ([], [])


def test_there_is_no_gate_without_an_event_loop(thread: Thread) -> None:
    with pytest.raises(NotImplementedError):
        thread.graph.invoke(
            {"messages": [("user", "run touch made-1")]}, {"configurable": thread.configurable}
        )
    assert thread.made() == []


async def test_decisions_that_langchain_hides_are_not_carried_out(
    thread: Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    base: Any = AuditedApprovals.__mro__[1]
    monkeypatch.setattr(AuditedApprovals, "_process_decision", staticmethod(base._process_decision))
    await thread.say("run touch made-1")
    with pytest.raises(DecisionsUnseenError):
        await thread.decide(APPROVE)
    assert thread.made() == []


def test_every_agent_has_one_gate_under_the_name_that_waiting_threads_know(thread: Thread) -> None:
    gates = [name for name in thread.graph.nodes if "HumanInTheLoop" in name or "Approvals" in name]
    assert gates == ["HumanInTheLoopMiddleware.after_model"]
