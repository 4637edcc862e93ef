# ruff: noqa: ARG002 -- the signatures are BaseChatModel's
"""The rehearsal model: a chat model that follows a script, in-process and without a network.

It stands in when no MODEL is set, in tests and in benchmarks. It keeps no state: what it does next follows
from the messages alone, so a run may stop at an approval, at a restart or in the middle and go on elsewhere.

A turn first says the text steps (`recall`, `count`, help) that come before the next tool step, then makes
that one tool call. The turn after the last tool step says the remaining text steps and one line per step with
its result.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.messages.tool import tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import Field

from agent.script import GRAMMAR, CountStep, HelpStep, RecallStep, Step, ToolStep, parse_script

RESULT_CHARACTERS = 200
"""How much of a tool's result the last message shows."""

LINE_CHARACTERS = 80
"""How much of a step's own line the last message repeats."""

NOTICE = (
    "I am Warren's rehearsal model: a script, not an AI. To talk to a real model, set MODEL=provider:name "
    "and its API key in .env and restart.\n\n"
)

_EDIT_NOTICE = re.compile(
    r"\ANote: a human reviewer replaced this tool call.*?\n\nTool response:\n", re.DOTALL
)
"""What `HumanInTheLoopMiddleware` puts before an edited call's result: longer than `RESULT_CHARACTERS`."""


@dataclass(frozen=True, slots=True)
class _Text:
    text: str
    pause_seconds: float = 0.0
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class _Call:
    id: str
    step: ToolStep


class RehearsalModel(BaseChatModel):
    """A scripted chat model; `agent.script.GRAMMAR` is its language."""

    model_name: str = "rehearsal"

    profile: ModelProfile | None = Field(default_factory=lambda: ModelProfile(max_input_tokens=100_000_000))
    """A window so large that deepagents never asks the script for a summary."""

    @property
    def _llm_type(self) -> str:
        return "rehearsal"

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the script call these tools and no others. `tool_choice` does not sway it."""
        return self.bind(tools=[_tool_name(tool) for tool in tools], **kwargs)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        *,
        tools: Sequence[str] = (),
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for part in _turn(messages, tools):
            if isinstance(part, _Text) and part.pause_seconds:
                await asyncio.sleep(part.pause_seconds)
            chunk = ChatGenerationChunk(message=_chunk(part))
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        *,
        tools: Sequence[str] = (),
        **kwargs: Any,
    ) -> ChatResult:
        parts = list(_turn(messages, tools))
        await asyncio.sleep(sum(part.pause_seconds for part in parts if isinstance(part, _Text)))
        return _result(parts)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        tools: Sequence[str] = (),
        **kwargs: Any,
    ) -> ChatResult:
        return _result(_turn(messages, tools))


def _turn(messages: Sequence[BaseMessage], tools: Sequence[str]) -> Iterator[_Text | _Call]:
    """Yield what the model says and does after `messages`."""
    asked_at = next(
        (i for i in reversed(range(len(messages))) if isinstance(messages[i], HumanMessage)), None
    )
    if asked_at is None:
        yield _Text(NOTICE + GRAMMAR, is_last=True)
        return
    steps, left_out = parse_script(_text_of(messages[asked_at]))
    results = _results(messages[asked_at + 1 :])
    earlier = [message for message in messages[:asked_at] if isinstance(message, HumanMessage)]

    is_sub_agent = bool(tools) and "task" not in tools
    if not is_sub_agent and not any(isinstance(message, AIMessage) for message in messages):
        yield _Text(NOTICE)
    calls_made = 0
    for step in steps:
        is_call = isinstance(step, ToolStep) and step.tool in tools
        calls_made += is_call
        if calls_made < len(results) or (is_call and calls_made == len(results)):
            continue
        if isinstance(step, ToolStep) and is_call:
            yield _Call(f"call_{uuid4().hex}", step)
            return
        yield from _say(step, earlier)
    yield _Text("\n".join(_summary(steps, tools, results, len(earlier), left_out)), is_last=True)


def _say(step: Step, earlier: Sequence[HumanMessage]) -> Iterator[_Text]:
    """Yield the text of a step that calls no tool."""
    match step:
        case RecallStep():
            lines = [f"- {_one_line(_text_of(message), RESULT_CHARACTERS)}" for message in earlier]
            yield _Text("\n".join(["Your earlier messages:", *lines, "\n"]))
        case CountStep():
            for number in range(1, step.numbers + 1):
                yield _Text(f"{number}\n", step.pause_ms / 1000)
        case HelpStep():
            yield _Text(f"{GRAMMAR}\n\n")
        case ToolStep():
            yield _Text(f"I have no tool {step.tool}.\n")


def _summary(
    steps: Sequence[Step], tools: Sequence[str], results: Sequence[str], earlier: int, left_out: int
) -> Iterator[str]:
    """One line per step with its result."""
    remaining = iter(results)
    for number, step in enumerate(steps, start=1):
        match step:
            case ToolStep():
                result = next(remaining) if step.tool in tools else f"there is no tool {step.tool}"
            case RecallStep():
                result = f"{earlier} earlier messages"
            case CountStep():
                result = f"counted to {step.numbers}"
            case HelpStep():
                result = "not a step; see the grammar above"
        yield f"{number}. {_one_line(step.line, LINE_CHARACTERS)} -> {_one_line(result, RESULT_CHARACTERS)}"
    if left_out:
        yield f"{left_out} more lines were left out: {len(steps)} steps are the most I take from one message."


def _results(messages: Iterable[BaseMessage]) -> list[str]:
    """List the results of the calls made so far, in order; a rejection is the result of its call."""
    call_ids: list[str | None] = []
    answers: dict[str | None, str] = {}
    for message in messages:
        if isinstance(message, AIMessage):
            call_ids += [call["id"] for call in message.tool_calls[:1]]
        elif isinstance(message, ToolMessage):
            answers[message.tool_call_id] = _EDIT_NOTICE.sub("", _text_of(message), count=1)
    return [answers.get(call_id, "no result") for call_id in call_ids]


def _text_of(message: BaseMessage) -> str:
    """Read the text of a message, its blocks one below the other; other kinds of block are passed over."""
    if isinstance(message.content, str):
        return message.content
    texts = (block if isinstance(block, str) else block.get("text") for block in message.content)
    return "\n".join(text for text in texts if isinstance(text, str))


def _one_line(text: str, length: int) -> str:
    """Cut `text` to its first `length` characters, on one line: newlines are written as in the grammar."""
    shown = text.strip()[:length]
    return shown.replace("\r", "").replace("\n", "\\n")


def _tool_name(tool: dict[str, Any] | type | Callable[..., Any] | BaseTool) -> str:
    """Find the name in any of the shapes that `bind_tools` may get, without building a schema."""
    if isinstance(tool, dict):
        return str(tool.get("name") or tool.get("function", {}).get("name", ""))
    return str(getattr(tool, "name", None) or getattr(tool, "__name__", ""))


def _chunk(part: _Text | _Call) -> AIMessageChunk:
    if isinstance(part, _Text):
        return AIMessageChunk(content=part.text, chunk_position="last" if part.is_last else None)
    arguments = json.dumps(part.step.args)
    return AIMessageChunk(
        content="",
        chunk_position="last",
        tool_call_chunks=[tool_call_chunk(name=part.step.tool, args=arguments, id=part.id, index=0)],
    )


def _result(parts: Iterable[_Text | _Call]) -> ChatResult:
    parts = list(parts)
    message = AIMessage(
        content="".join(part.text for part in parts if isinstance(part, _Text)),
        tool_calls=[
            tool_call(name=part.step.tool, args=dict(part.step.args), id=part.id)
            for part in parts
            if isinstance(part, _Call)
        ],
    )
    return ChatResult(generations=[ChatGeneration(message=message)])
