"""The rehearsal model: its grammar, and the turns it takes."""

import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool

from agent.rehearsal import LINE_CHARACTERS, NOTICE, RESULT_CHARACTERS, RehearsalModel
from agent.script import (
    GRAMMAR,
    MAX_NUMBERS,
    MAX_PAUSE_MS,
    MAX_STEPS,
    CountStep,
    HelpStep,
    RecallStep,
    ToolStep,
    parse_script,
    parse_step,
)

TOOLS = ["execute", "write_file", "edit_file", "delete", "read_file", "ls", "glob", "grep", "task"]


def call(line: str) -> tuple[str, dict[str, str]]:
    step = parse_step(line)
    assert isinstance(step, ToolStep), step
    return step.tool, dict(step.args)


async def reply(messages: Sequence[AnyMessage], tools: Sequence[str] = TOOLS) -> AIMessage:
    model = RehearsalModel().bind_tools([{"name": name} for name in tools])
    return await model.ainvoke(list(messages))


def answer(message: AIMessage, content: str, status: str = "success") -> ToolMessage:
    return ToolMessage(content=content, tool_call_id=message.tool_calls[0]["id"], status=status)


async def play(script: str, *results: str) -> list[AnyMessage]:
    """Answer the calls with `results` and return the thread up to the last message."""
    thread: list[AnyMessage] = [HumanMessage(script)]
    for result in results:
        message = await reply(thread)
        thread += [message, answer(message, result)]
    return [*thread, await reply(thread)]


# --- grammar -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("run ls -la | wc -l", ("execute", {"command": "ls -la | wc -l"})),
        ("write a.txt: one\\ntwo", ("write_file", {"file_path": "/workspace/a.txt", "content": "one\ntwo"})),
        ("write a.txt:", ("write_file", {"file_path": "/workspace/a.txt", "content": ""})),
        ("write a.txt:   kept ", ("write_file", {"file_path": "/workspace/a.txt", "content": "  kept "})),
        ("write c:d: e: f", ("write_file", {"file_path": "/workspace/c:d", "content": "e: f"})),
        (
            "edit a.py: a\\nb => c => d",
            ("edit_file", {"file_path": "/workspace/a.py", "old_string": "a\nb", "new_string": "c => d"}),
        ),
        ("edit a: b =>", ("edit_file", {"file_path": "/workspace/a", "old_string": "b", "new_string": ""})),
        ("delete /tmp/x y", ("delete", {"file_path": "/tmp/x y"})),
        ("read src/a.py", ("read_file", {"file_path": "/workspace/src/a.py"})),
        ("ls", ("ls", {"path": "/workspace"})),
        ("ls src", ("ls", {"path": "/workspace/src"})),
        ("glob **/*.py", ("glob", {"pattern": "**/*.py", "path": "/workspace"})),
        ("grep a b", ("grep", {"pattern": "a b", "path": "/workspace", "output_mode": "content"})),
        (
            "delegate delegate run x",
            ("task", {"description": "delegate run x", "subagent_type": "general-purpose"}),
        ),
        ("  run x\r", ("execute", {"command": "x"})),
    ],
)
def test_a_line_becomes_the_tool_call_it_names(line: str, expected: tuple[str, dict[str, str]]) -> None:
    assert call(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        "",
        "run",
        "run  ",
        "read",
        "grep",
        "write a.txt",
        "write : text",
        "edit a.txt: no arrow",
        "edit a.txt: a=>b",
        "Run ls",
        "running",
        "recall me",
        "count 0 every 1",
        "count 1 every -1",
        f"count {MAX_NUMBERS + 1} every 1",
        f"count 1 every {MAX_PAUSE_MS + 1}",
        "count ٣ every ٣",
        "count 99999999999999999999 every 1",
        "please write hello.py: x",
    ],
)
def test_a_line_outside_the_grammar_is_explained(line: str) -> None:
    assert isinstance(parse_step(line), HelpStep)


def test_recall_and_count_call_no_tool() -> None:
    assert parse_step("recall ") == RecallStep("recall")
    assert parse_step("count 3 every 10") == CountStep("count 3 every 10", 3, 10)


@given(st.text())
def test_any_line_is_some_step(line: str) -> None:
    step = parse_step(line)
    if isinstance(step, ToolStep):
        assert step.tool in TOOLS
        assert all(path.startswith("/") for name, path in step.args.items() if name.endswith("path"))


@given(
    path=st.from_regex(r"[a-z][a-z0-9_./-]{0,20}", fullmatch=True),
    text=st.text(st.characters(exclude_characters="\r\n")),
)
def test_what_is_written_is_what_stands_after_the_colon(path: str, text: str) -> None:
    tool_name, args = call(f"write {path}: " + text.replace("\n", "\\n"))
    assert tool_name == "write_file"
    assert args == {"file_path": f"/workspace/{path}", "content": text.replace("\\n", "\n")}


@given(st.text())
def test_any_message_has_one_to_max_steps(text: str) -> None:
    steps, _ = parse_script(text)
    assert 1 <= len(steps) <= MAX_STEPS


def test_a_message_of_100_000_lines_is_cut_and_the_rest_counted() -> None:
    steps, left_out = parse_script("\n".join(["run x"] * 100_000))
    assert (len(steps), left_out) == (MAX_STEPS, 100_000 - MAX_STEPS)


@pytest.mark.parametrize(
    "line", ["write " + "a:" * 500_000, "edit a: " + " =>" * 300_000, "run " + "x" * 1_000_000]
)
def test_a_huge_line_is_read_in_linear_time(line: str) -> None:
    started = time.perf_counter()
    parse_step(line)
    assert time.perf_counter() - started < 1


# --- turns -------------------------------------------------------------------------------------------


async def test_steps_are_called_one_a_turn_and_in_order() -> None:
    thread = await play("run a\nread b\nls c", "A", "B", "C")
    calls = [message.tool_calls for message in thread if isinstance(message, AIMessage)]
    assert [[c["name"] for c in turn] for turn in calls] == [["execute"], ["read_file"], ["ls"], []]


async def test_the_last_message_has_a_line_per_step_with_its_result() -> None:
    thread = await play("run a\n\ncount 2 every 0\nread b\nbogus", "A\nB\n", "x" * 1000)
    run, count, read, bogus = str(thread[-1].text).splitlines()[-4:]
    assert run == "1. run a -> A\\nB"
    assert count.startswith("2. count 2 every 0 -> ")
    assert read == "3. read b -> " + "x" * RESULT_CHARACTERS
    assert bogus.startswith("4. bogus -> ")


async def test_a_long_step_is_shortened_in_the_last_message() -> None:
    thread = await play("run " + "x" * 1000, "done")
    assert len(str(thread[-1].text)) < LINE_CHARACTERS + RESULT_CHARACTERS


async def test_text_steps_are_said_once_and_in_their_place() -> None:
    thread = await play("count 2 every 0\nrun a\ncount 3 every 0\nrun b\ncount 1 every 0", "A", "B")
    first, second, last = (str(m.text) for m in thread if isinstance(m, AIMessage))
    assert first.removeprefix(NOTICE) == "1\n2\n"
    assert second == "1\n2\n3\n"
    assert last.startswith("1\n1. ")


async def test_a_rejection_is_the_result_of_its_step_and_the_next_step_follows() -> None:
    thread: list[AnyMessage] = [HumanMessage("run a\nrun b")]
    first = await reply(thread)
    thread += [first, answer(first, "User rejected the tool call", status="error")]
    second = await reply(thread)
    assert second.tool_calls[0]["args"] == {"command": "b"}
    thread += [second, answer(second, "B")]
    assert "1. run a -> User rejected the tool call\n2. run b -> B" in str((await reply(thread)).text)


async def test_only_what_follows_the_last_human_message_counts() -> None:
    thread = await play("run a", "A")
    thread.append(HumanMessage("run b"))
    assert (await reply(thread)).tool_calls[0]["args"] == {"command": "b"}


async def test_tool_call_ids_are_never_used_twice() -> None:
    first, again = await reply([HumanMessage("run a")]), await reply([HumanMessage("run a")])
    assert first.tool_calls[0]["id"] != again.tool_calls[0]["id"]


async def test_it_says_that_it_is_a_script_in_the_first_reply_only() -> None:
    thread = await play("run a", "A")
    first, last = (m for m in thread if isinstance(m, AIMessage))
    assert "MODEL=" in str(first.text)
    assert "MODEL=" not in str(last.text)
    thread.append(HumanMessage("hello"))
    assert "MODEL=" not in str((await reply(thread)).text)


async def test_a_sub_agent_does_not_introduce_itself() -> None:
    message = await reply([HumanMessage("count 1 every 0")], tools=["execute", "ls"])
    assert str(message.text).startswith("1\n1. ")


async def test_recall_lists_earlier_human_messages_but_not_this_one() -> None:
    thread = await play("run a\nrun b", "A", "B")
    thread.append(HumanMessage([{"type": "text", "text": "second"}]))
    thread += [await reply(thread), HumanMessage("recall")]
    said = str((await reply(thread)).text)
    assert "- run a\\nrun b\n- second\n" in said
    assert "- recall" not in said


async def test_a_tool_that_is_not_bound_is_not_called() -> None:
    message = await reply([HumanMessage("run a\nls")], tools=["ls", "task"])
    assert [c["name"] for c in message.tool_calls] == ["ls"]
    assert "no tool execute" in str(message.text)
    unbound = await RehearsalModel().ainvoke("run a")
    assert unbound.tool_calls == []


async def test_every_shape_of_tool_can_be_bound() -> None:
    @tool
    def execute(command: str) -> str:
        """Run a command."""
        return command

    def ls(path: str) -> str:
        """List a directory."""
        return path

    model = RehearsalModel().bind_tools([execute, ls, {"type": "function", "function": {"name": "glob"}}])
    for line in ("run a", "ls", "glob *"):
        assert len((await model.ainvoke(line)).tool_calls) == 1


async def test_a_turn_streams_its_text_and_its_call_as_chunks() -> None:
    model = RehearsalModel().bind_tools([{"name": name} for name in TOOLS])
    chunks = [chunk async for chunk in model.astream("count 3 every 1\nwrite a: ünï\ud800\nrun b")]
    assert [chunk.text for chunk in chunks] == [NOTICE, "1\n", "2\n", "3\n", ""]
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    assert [(c["name"], c["args"]["content"]) for c in whole.tool_calls] == [("write_file", "ünï\ud800")]


async def test_count_takes_its_time() -> None:
    started = time.perf_counter()
    seen = [
        time.perf_counter() - started
        async for chunk in RehearsalModel().astream("count 4 every 20")
        if chunk.text.strip().isdigit()
    ]
    assert len(seen) == 4
    assert all(moment >= 0.02 * number for number, moment in enumerate(seen, start=1))


def test_it_answers_in_sync_code_too() -> None:
    message = RehearsalModel().bind_tools([{"name": "ls"}]).invoke("ls")
    assert message.tool_calls[0]["args"] == {"path": "/workspace"}


@pytest.mark.parametrize(
    "content",
    [
        "",
        " \n\r\n\t",
        [],
        [{"type": "image_url", "image_url": {"url": "data:,"}}],
        [{"type": "text", "text": 7}],
        "\x00\x1b[2J\ud800\ufffe" * 1000,
    ],
)
async def test_a_message_without_steps_gets_the_grammar(content: str | list[str | dict[str, object]]) -> None:
    message = await reply([HumanMessage(content)])
    assert GRAMMAR in str(message.text)
    assert message.tool_calls == []


async def test_blocks_of_a_message_are_read_one_below_the_other() -> None:
    blocks: list[str | dict[str, str]] = ["run a", {"type": "text", "text": "run b"}]
    first = await reply([HumanMessage(blocks)])
    assert first.tool_calls[0]["args"] == {"command": "a"}


async def test_a_thread_without_a_human_message_gets_the_grammar() -> None:
    assert GRAMMAR in str((await reply([AIMessage("hello")])).text)


async def test_a_long_script_says_how_much_it_left_out() -> None:
    thread = await play("count 1 every 0\n" * (MAX_STEPS + 5))
    assert str(thread[-1].text).splitlines()[-1].startswith("5 ")
