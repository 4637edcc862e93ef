"""The attack: code in a sandbox takes the toolbox's place and answers the server as it likes."""

import asyncio
import struct
import time
from collections.abc import Awaitable, Callable

import psutil
import pytest

from sandbox import channel as channel_module
from sandbox.calls import Budget
from sandbox.commands import run_command
from sandbox.errors import (
    NoAnswerError,
    NotStartedError,
    OperationFailedError,
    SandboxError,
    SandboxLostError,
)
from sandbox.toolbox.frames import (
    BEGUN,
    CANCEL,
    DATA,
    FAILURE,
    PING,
    PONG,
    REQUEST,
    RESULT,
    pack,
    pack_json,
)
from tests.integration.fake_toolbox import Fake, channel_to

MIB = 1 << 20
Play = Callable[[Fake], Awaitable[None]]


def saying(*sentences: bytes) -> Play:
    """Play a toolbox that hears one request, says something whatever it was, and then nothing."""

    async def play(fake: Fake) -> None:
        await fake.hear()
        for sentence in sentences:
            await fake.say(sentence)
        await fake.is_left()

    return play


@pytest.mark.parametrize(
    "sentence",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", id="another protocol"),
        pytest.param(bytes(range(256)) * 100, id="garbage"),
        pytest.param(struct.pack(">IBI", 0xFFFFFFFF, DATA, 1), id="a length of -1, or 4 GiB"),
        pytest.param(struct.pack(">iBi", -5, RESULT, -1), id="negative numbers"),
        pytest.param(struct.pack(">IBI", 2 * MIB, DATA, 1), id="a frame longer than any"),
        pytest.param(pack(DATA, 77, b"x"), id="data for another's question"),
        pytest.param(pack_json(RESULT, 77, {}), id="an answer to another's question"),
        pytest.param(pack(PONG, 0), id="a pong without a ping"),
        pytest.param(pack_json(REQUEST, 1, {"operation": "exec"}), id="a question"),
        pytest.param(pack(CANCEL, 1), id="a cancellation"),
        pytest.param(pack(RESULT, 1, b"not json"), id="a result that is not JSON"),
        pytest.param(pack(RESULT, 1, b"[1]"), id="a result that is no object"),
        pytest.param(pack(RESULT, 1, b'{"a":' * 100_000), id="a result that is nested without end"),
        pytest.param(pack_json(FAILURE, 1, {"message": 5}), id="a failure without a message"),
        pytest.param(pack_json(RESULT, 1, {})[:-1], id="half an answer"),
    ],
)
async def test_what_is_no_answer_ends_the_connection_and_raises(sentence: bytes) -> None:
    async def play(fake: Fake) -> None:
        await fake.hear()
        await fake.say(sentence)

    async with channel_to(play) as channel:
        with pytest.raises(NotStartedError):
            await channel.call("read", {}, timeout=10)
        assert channel.is_closed
        with pytest.raises(NotStartedError):
            await channel.call("read", {}, timeout=10)


async def test_what_has_begun_is_not_said_to_be_safe_to_repeat() -> None:
    async def play(fake: Fake) -> None:
        _, number, _ = await fake.hear()
        await fake.say(pack(BEGUN, number))

    async with channel_to(play) as channel:
        with pytest.raises(SandboxLostError):
            await channel.call("exec", {}, timeout=10)


async def test_more_after_the_answer_does_not_change_it() -> None:
    answer = pack(DATA, 1, b"first") + pack_json(RESULT, 1, {"n": 1})
    more = pack(DATA, 1, b"second") + pack_json(RESULT, 1, {"n": 2})
    async with channel_to(saying(answer + more)) as channel:
        assert await channel.call("read", {}, timeout=10) == ({"n": 1}, b"first")
        assert channel.is_closed


async def test_answers_in_another_order_reach_who_asked() -> None:
    async def play(fake: Fake) -> None:
        numbers = [(await fake.hear())[1] for _ in range(3)]
        for number in reversed(numbers):
            await fake.say(pack(DATA, number, b"%d" % number) + pack_json(RESULT, number, {"n": number}))
        await fake.is_left()

    async with channel_to(play) as channel:
        answers = await asyncio.gather(*(channel.call("read", {}, timeout=10) for _ in range(3)))
    assert answers == [({"n": number}, b"%d" % number) for number in (1, 2, 3)]


async def test_a_failure_message_is_cut() -> None:
    async with channel_to(saying(pack_json(FAILURE, 1, {"message": "x" * 1_000_000}))) as channel:
        with pytest.raises(OperationFailedError) as failure:
            await channel.call("read", {}, timeout=10)
    assert len(str(failure.value)) <= 10_000


@pytest.mark.parametrize("piece", [1 << 16, 1])
async def test_endless_output_is_not_held(piece: int) -> None:
    async def play(fake: Fake) -> None:
        _, number, _ = await fake.hear()
        flood = pack(DATA, number, bytes(piece)) * ((1 << 16) // piece)
        while True:
            await fake.say(flood)

    process = psutil.Process()
    async with channel_to(play) as channel:
        before = process.memory_info().rss
        with pytest.raises(SandboxError):
            await channel.call("exec", {}, timeout=30, limit=512 << 10)
        assert channel.is_closed
        assert process.memory_info().rss - before < 16 * MIB


async def test_a_flood_leaves_the_event_loop_to_others() -> None:
    async def play(fake: Fake) -> None:
        _, number, _ = await fake.hear()
        flood = pack(DATA, number) * 5000
        while True:
            await fake.say(flood)

    async with channel_to(play) as channel:
        call = asyncio.create_task(channel.call("read", {}, timeout=60))
        longest = 0.0
        while not call.done():
            # Of this thread alone: others may have the processor meanwhile.
            began = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - began)
        with pytest.raises(SandboxError):
            await call
    assert longest < 0.25


async def test_one_that_says_nothing_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "CANCEL_SECONDS", 0.1)
    async with channel_to(saying()) as channel:
        with pytest.raises(NoAnswerError):
            await channel.call("read", {}, timeout=0.1)
        async with asyncio.timeout(5):
            while not channel.is_closed:
                await asyncio.sleep(0.01)


async def test_an_answer_that_comes_too_late_is_dropped_and_costs_nothing_else() -> None:
    async def play(fake: Fake) -> None:
        numbers = []
        while len(numbers) < 2:
            kind, number, _ = await fake.hear()
            if kind == PING:
                await fake.say(pack(PONG, 0))
            else:
                numbers.append(number)
        for number in numbers:
            await fake.say(pack(DATA, number, b"x" * MIB) + pack_json(RESULT, number, {"of": number}))
        await fake.is_left()

    async with channel_to(play, budget=(budget := Budget(MIB))) as channel:
        with pytest.raises(NoAnswerError):
            await channel.call("read", {}, timeout=0.1)
        answer, body = await channel.call("read", {}, timeout=10)
        assert (answer, body) == ({"of": 2}, b"x" * MIB)
        assert not channel.is_closed
        assert channel.is_idle
    assert budget.left == MIB


async def test_calls_at_once_hold_no_more_together_than_one_user_may() -> None:
    """The attack: many calls, each of whose answers begins and has no end."""
    together = 40

    async def play(fake: Fake) -> None:
        numbers = []
        while len(numbers) < together:
            kind, number, _ = await fake.hear()
            if kind != PING:
                numbers.append(number)
                await fake.say(pack(DATA, number, b"x" * (MIB // 4)))
        for number in numbers:
            await fake.say(pack_json(RESULT, number, {}))
        await fake.is_left()

    async with channel_to(play, budget=(budget := Budget(MIB))) as channel:
        calls = [channel.call("ls", {}, timeout=30) for _ in range(together)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(answer, OperationFailedError) for answer in answers) == together - 4
        assert sum(isinstance(answer, tuple) for answer in answers) == 4
    assert budget.left == MIB


async def test_one_that_never_confirms_a_cancellation_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "CANCEL_SECONDS", 0.1)
    asked = asyncio.Event()

    async def play(fake: Fake) -> None:
        await fake.hear()
        asked.set()
        await fake.is_left()

    async with channel_to(play) as channel:
        call = asyncio.create_task(channel.call("exec", {}, timeout=60))
        await asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert channel.is_closed


async def test_pongs_are_no_substitute_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "_SILENCE_SECONDS", (0.01,))
    monkeypatch.setattr(channel_module, "CANCEL_SECONDS", 0.1)
    pings = 0

    async def play(fake: Fake) -> None:
        nonlocal pings
        while True:
            kind, _, _ = await fake.hear()
            if kind == PING:
                pings += 1
                await fake.say(pack(PONG, 0))

    async with channel_to(play) as channel:
        with pytest.raises(NoAnswerError):
            await channel.call("read", {}, timeout=0.5)
    assert pings > 1


async def test_one_that_reads_nothing_holds_up_no_upload_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "CANCEL_SECONDS", 0.1)
    done = asyncio.Event()

    async def play(_: Fake) -> None:
        await done.wait()

    async with channel_to(play) as channel:
        with pytest.raises(NoAnswerError):
            await channel.call("upload", {}, bytes(8 * MIB), timeout=0.2)
        done.set()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"ended": "exited"}, id="no status"),
        pytest.param({"ended": "exited", "status": "0", "written": 0}, id="a status that is no number"),
        pytest.param({"ended": "exited", "status": 1 << 40, "written": 0}, id="a huge status"),
        pytest.param({"ended": "exited", "status": -(1 << 40), "written": 0}, id="a negative status"),
        pytest.param({"ended": ["exited"], "status": 0, "written": 0}, id="a list in place of a word"),
        pytest.param({"ended": "well", "status": 0, "written": 0}, id="an unknown end"),
    ],
)
async def test_a_command_with_a_forged_end_is_an_error(answer: dict[str, object]) -> None:
    async with channel_to(saying(pack_json(RESULT, 1, answer))) as channel:
        with pytest.raises(SandboxError):
            await run_command(channel, "true", None, largest_file=MIB)


async def test_a_forged_amount_of_output_is_harmless() -> None:
    answer = pack_json(RESULT, 1, {"ended": "exited", "status": 0, "written": -(1 << 60)})
    async with channel_to(saying(answer)) as channel:
        result = await run_command(channel, "true", None, largest_file=MIB)
    assert (result.output, result.exit_code, result.truncated) == ("", 0, False)
