"""Who listens to a run: forgotten when they leave, however they leave, and ended when they do not read."""

import asyncio
import hashlib
import inspect
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from starlette.exceptions import HTTPException

from server import queue as run_queue
from server import subscribers
from server.subscribers import SlowReaderError, Subscription, Waiting

READ_BY_US = "72831b9aefd8b87e"
UPSTREAM_CHANGED = """
What server/subscribers.py replaces, or what uses it, has changed upstream. Read `StreamManager` and
`ContextQueue` of inmem_stream.py again, `ops.Runs.Stream` and `ops.Threads.Stream`: if a queue is now
unregistered when its subscriber leaves, and bounded, delete the correction; else adapt it, then
READ_BY_US here.
Now it is """

MESSAGE = b"a" * (1 << 20)


@pytest.fixture
def inmem_stream(ops: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the runtime's streams with a manager of their own."""
    from langgraph_runtime_inmem import inmem_stream  # noqa: PLC0415 - reads the environment that ops has set

    monkeypatch.setattr(inmem_stream, "stream_manager", inmem_stream.StreamManager())
    return inmem_stream


@pytest.fixture
def manager(inmem_stream: ModuleType) -> Any:
    """Give a manager in which queues are forgotten and bounded."""
    assert subscribers.install()
    return inmem_stream.get_stream_manager()


def test_upstream_is_what_was_read(ops: ModuleType, inmem_stream: ModuleType) -> None:
    parts = [inmem_stream.StreamManager, inmem_stream.ContextQueue, ops.Runs.Stream, ops.Threads.Stream]
    digest = hashlib.sha256("".join(inspect.getsource(part) for part in parts).encode()).hexdigest()[:16]
    assert digest == READ_BY_US, UPSTREAM_CHANGED + digest


async def refused(run_id: UUID, thread_id: UUID) -> None:
    """Ask for `cancel?wait=true` as somebody who may not, as the platform serves it."""
    from langgraph_api.api import runs  # noqa: PLC0415 - reads the environment that ops has set

    request = SimpleNamespace(
        path_params={"thread_id": str(thread_id), "run_id": str(run_id)}, query_params={"wait": "true"}
    )
    with pytest.raises(HTTPException):
        await inspect.unwrap(runs.cancel_run)(request)


async def test_uncorrected_a_refused_request_stays_subscribed(
    ops: ModuleType, inmem_stream: ModuleType
) -> None:
    """Why the correction exists; when this fails, it is no longer needed."""
    run_id, thread_id = uuid4(), uuid4()
    await refused(run_id, thread_id)
    manager = inmem_stream.get_stream_manager()
    assert manager.queues.pop(thread_id)[run_id] != []


async def test_a_refused_request_does_not_stay_subscribed(manager: Any) -> None:
    await refused(uuid4(), uuid4())
    assert manager.queues == {}


async def test_others_stay_subscribed_and_are_told(manager: Any, inmem_stream: ModuleType) -> None:
    run_id, thread_id = uuid4(), uuid4()
    async with await manager.add_queue(str(run_id), str(thread_id)):
        stays = await manager.add_queue(run_id, thread_id)
    await manager.put(run_id, thread_id, inmem_stream.Message(topic=b"run", data=b"a"))
    assert stays.get_nowait().data == b"a"
    await manager.remove_queue(run_id, thread_id, stays)
    await manager.remove_queue(run_id, thread_id, stays)
    assert manager.queues == {}


async def test_a_threads_stream_is_forgotten_when_it_ends(manager: Any, inmem_stream: ModuleType) -> None:
    thread_id = uuid4()
    stream = await manager.add_thread_stream(str(thread_id))
    await manager.put_thread(thread_id, inmem_stream.Message(topic=b"thread", data=b"a"))
    assert stream.get_nowait().data == b"a"
    await manager.remove_queue(thread_id, thread_id, stream)  # as the runtime says it
    assert manager.thread_streams == {}


async def test_a_run_that_is_forgotten_leaves_no_queue(ops: ModuleType, manager: Any) -> None:
    run = {"run_id": uuid4(), "thread_id": uuid4()}
    await manager.add_queue(run["run_id"], run["thread_id"])
    run_queue.forget_runs(ops, ops.InMemConnectionProto(), [run])
    assert manager.queues == {}


async def test_a_run_without_a_thread_can_be_listened_to(manager: Any) -> None:
    async with await manager.add_queue(uuid4(), None):
        assert len(manager.queues) == 1
    assert manager.queues == {}


async def test_a_subscriber_who_does_not_read_is_ended_and_the_run_goes_on(
    manager: Any, inmem_stream: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribers, "PATIENCE_SECONDS", 0.1)
    run_id, thread_id = uuid4(), uuid4()
    stuck = await manager.add_queue(run_id, thread_id)
    count = subscribers.WAITING_BYTES // len(MESSAGE) + 10
    async with asyncio.timeout(1):
        for _ in range(count):
            await manager.put(run_id, thread_id, inmem_stream.Message(topic=b"run", data=MESSAGE))
    assert (stuck.size, manager.queues.get(thread_id, {}).get(run_id)) == (0, [])
    for _ in range(2):
        with pytest.raises(SlowReaderError):
            await stuck.get()
    again = await manager.add_queue(run_id, thread_id)
    await manager.put(run_id, thread_id, inmem_stream.Message(topic=b"run", data=b"a"))
    assert (await again.get()).data == b"a"


async def test_a_subscriber_who_reads_slowly_is_waited_for_and_gets_everything(
    manager: Any, inmem_stream: ModuleType
) -> None:
    run_id, thread_id = uuid4(), uuid4()
    slow = await manager.add_queue(run_id, thread_id)
    count = subscribers.WAITING_BYTES // len(MESSAGE) + 10
    most = 0

    async def read() -> list[bytes]:
        nonlocal most
        got = []
        for _ in range(count):
            await asyncio.sleep(0.01)
            most = max(most, slow.size)
            got.append((await slow.get()).data[:2])
        return got

    reading = asyncio.create_task(read())
    for number in range(count):
        message = inmem_stream.Message(topic=b"run", data=b"%2d" % number + MESSAGE)
        await manager.put(run_id, thread_id, message)
    assert await reading == [b"%2d" % number for number in range(count)]
    assert most <= subscribers.WAITING_BYTES


async def test_one_message_larger_than_the_bound_arrives(manager: Any, inmem_stream: ModuleType) -> None:
    thread_id = uuid4()
    stream = await manager.add_thread_stream(thread_id)
    data = b"a" * (subscribers.WAITING_BYTES + 1)
    await manager.put_thread(thread_id, inmem_stream.Message(topic=b"thread", data=data))
    assert (await stream.get()).data == data


async def test_of_all_together_whoever_has_most_waiting_is_ended(inmem_stream: ModuleType) -> None:
    waiting, kept = Waiting(most=11 << 19), inmem_stream.StreamManager().thread_streams
    greedy, modest, gone = (Subscription(waiting, kept, uuid4()) for _ in range(3))
    message = inmem_stream.Message(topic=b"thread", data=MESSAGE)
    for subscription, count in ((gone, 2), (modest, 1), (greedy, 2)):
        for _ in range(count):
            await subscription.put(message)
    del kept[gone._path[0]], gone, subscription
    # What those held who are gone does not count.
    for _ in range(2):
        await greedy.put(message)
    assert (greedy.size >> 20, modest.size >> 20) == (4, 1)
    await modest.put(message)
    with pytest.raises(SlowReaderError):
        greedy.get_nowait()
    assert (greedy.size >> 20, modest.size >> 20) == (0, 2)


@pytest.mark.usefixtures("inmem_stream")
def test_an_unknown_version_or_shape_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("langgraph_runtime_inmem.__version__", "0.99.0")
        assert not subscribers.install()
    assert subscribers.install()
    assert subscribers.install()
