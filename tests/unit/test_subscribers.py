"""Who listens to a run: forgotten when they leave, however they leave."""

import hashlib
import inspect
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from starlette.exceptions import HTTPException

from server import queue as run_queue
from server import subscribers

READ_BY_US = "72831b9aefd8b87e"
UPSTREAM_CHANGED = """
What server/subscribers.py replaces, or what uses it, has changed upstream. Read `StreamManager` and
`ContextQueue` of inmem_stream.py again, `ops.Runs.Stream` and `ops.Threads.Stream`: if a queue is now
unregistered when its subscriber leaves, and bounded, delete the correction; else adapt it, then KNOWN_RUNTIME
there and READ_BY_US here.
Now it is """

REPLACED = ("add_queue", "add_thread_stream", "remove_queue")


@pytest.fixture
def inmem_stream(ops: ModuleType) -> Iterator[ModuleType]:
    from langgraph_runtime_inmem import inmem_stream  # noqa: PLC0415 - reads the environment that ops has set

    originals = {name: inspect.getattr_static(inmem_stream.StreamManager, name) for name in REPLACED}
    yield inmem_stream
    for name, original in originals.items():
        setattr(inmem_stream.StreamManager, name, original)


@pytest.fixture
def manager(ops: ModuleType, inmem_stream: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a manager of streams in which queues are forgotten."""
    assert subscribers.install()
    manager = inmem_stream.StreamManager()
    for module in (ops, inmem_stream):
        monkeypatch.setattr(module, "get_stream_manager", lambda: manager)
    return manager


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


@pytest.mark.usefixtures("inmem_stream")
def test_an_unknown_version_or_shape_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langgraph_runtime_inmem.__version__", "0.99.0")
    assert not subscribers.install()
    monkeypatch.undo()
    assert subscribers.install()
    assert subscribers.install()
