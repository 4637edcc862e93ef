"""The corrected runtime: nobody's row goes for somebody else's, and reading a conversation stays short."""

import asyncio
import hashlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import pytest
from starlette.exceptions import HTTPException
from structlog.testing import capture_logs

from server import corrections
from server.workers import get_workers

READ_BY_US = "5a3007ddaf250193"
UPSTREAM_CHANGED = """
What server/corrections.py replaces has changed upstream. Read `ops.Threads.delete` and `patch`,
`ops.Runs.cancel` and `delete`, `ops.listen_for_cancellation`, `_adapter._CustomCheckpointerAdapter` and
`CustomAuthBackend.authenticate` again: if the rows are now found again after what is awaited, the worker of
every deleted or cancelled run is told, aget_delta_channel_history is forwarded, or nothing is logged for
every request, delete that correction; else adapt it, then READ_BY_US here.
Now it is """


@pytest.fixture
def adapter(ops: ModuleType) -> type:
    from langgraph_api._checkpointer import _adapter  # noqa: PLC0415 - reads the environment that ops has set

    return _adapter._CustomCheckpointerAdapter


@pytest.fixture
def custom(ops: ModuleType) -> ModuleType:
    from langgraph_api.auth import custom  # noqa: PLC0415 - as above

    return custom


@pytest.fixture
def original(ops: ModuleType, adapter: type, custom: ModuleType) -> Iterator[dict[str, Any]]:
    replaced = {"delete": ops.Threads, "patch": ops.Threads, "cancel": ops.Runs, "delete_run": ops.Runs}
    kept = {name: inspect.getattr_static(place, name[:6]) for name, place in replaced.items()}
    functions = {name: getattr(ops, name) for name in ("is_jsonb_contained", "listen_for_cancellation")}
    logger = custom.logger
    get_workers.cache_clear()
    yield kept | functions
    custom.logger = logger
    for name, function in functions.items():
        setattr(ops, name, function)
    for name, place in replaced.items():
        setattr(place, name[:6], kept[name])
    if "aget_delta_channel_history" in vars(adapter):
        del adapter.aget_delta_channel_history


@pytest.fixture
def conn(ops: ModuleType, original: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a connection whose authorization and checkpoints are slow, as a database and Docker are."""

    async def slow(*_: Any, **__: Any) -> None:
        await asyncio.sleep(0.01)

    monkeypatch.setattr(ops, "_delete_checkpoints_for_thread", slow)
    monkeypatch.setattr(ops.Threads, "handle_event", slow)
    connection = ops.InMemConnectionProto()
    connection.store["threads"] = []
    connection.store["runs"] = []
    return connection


def add(conn: Any, count: int) -> list[UUID]:
    ids = [uuid4() for _ in range(count)]
    conn.store["threads"] += [{"thread_id": one, "metadata": {}} for one in ids]
    return ids


def left(conn: Any) -> list[UUID]:
    return [row["thread_id"] for row in conn.store["threads"]]


async def drain(rows: Any) -> list[Any]:
    return [row async for row in await rows]


def test_upstream_is_what_was_read(original: dict[str, Any], adapter: type, custom: ModuleType) -> None:
    parts = [original["delete"], original["patch"], adapter, custom.CustomAuthBackend.authenticate]
    parts += [original[name] for name in ("cancel", "delete_run", "listen_for_cancellation")]
    text = "".join(inspect.getsource(part) for part in parts)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert digest == READ_BY_US, UPSTREAM_CHANGED + digest


async def test_uncorrected_deleting_two_threads_at_once_takes_a_third(ops: ModuleType, conn: Any) -> None:
    """Why the correction exists; when this fails, it is no longer needed."""
    first, second, third = add(conn, 3)
    await asyncio.gather(drain(ops.Threads.delete(conn, first)), drain(ops.Threads.delete(conn, second)))
    assert left(conn) != [third]


async def test_deleting_many_at_once_takes_those_and_no_other(ops: ModuleType, conn: Any) -> None:
    assert corrections.install()
    ids = add(conn, 20)
    deleted = await asyncio.gather(*(drain(ops.Threads.delete(conn, one)) for one in ids[::2]))
    assert deleted == [[one] for one in ids[::2]]
    assert left(conn) == ids[1::2]


async def test_patching_while_others_delete_changes_the_right_row(ops: ModuleType, conn: Any) -> None:
    assert corrections.install()
    ids = add(conn, 4)
    patching = drain(ops.Threads.patch(conn, ids[2], metadata={"note": "x"}))
    await asyncio.gather(patching, *(drain(ops.Threads.delete(conn, one)) for one in ids[:2]))
    assert [(row["thread_id"], row["metadata"]) for row in conn.store["threads"]] == [
        (ids[2], {"note": "x"}),
        (ids[3], {}),
    ]


async def test_a_thread_that_is_not_there_is_404_and_unchanged(ops: ModuleType, conn: Any) -> None:
    assert corrections.install()
    ids = add(conn, 1)
    with pytest.raises(HTTPException) as caught:
        await ops.Threads.delete(conn, uuid4())
    assert caught.value.status_code == 404
    assert await drain(ops.Threads.patch(conn, uuid4(), metadata={"note": "x"})) == []
    assert left(conn) == ids


async def test_another_owners_row_is_neither_deleted_nor_patched(
    ops: ModuleType, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert corrections.install()

    async def only_bobs(*_: Any) -> dict[str, str]:
        return {"owner": "bob"}

    monkeypatch.setattr(ops.Threads, "handle_event", only_bobs)
    ids = add(conn, 1)
    conn.store["threads"][0]["metadata"] = {"owner": "alice"}
    with pytest.raises(HTTPException):
        await ops.Threads.delete(conn, ids[0])
    assert await drain(ops.Threads.patch(conn, ids[0], metadata={"owner": "bob"})) == []
    assert conn.store["threads"][0]["metadata"] == {"owner": "alice"}


class Work:
    """Runs' workers as the platform's: each ends when it is told to, and deletes a run rolled back."""

    def __init__(self, ops: ModuleType, conn: Any) -> None:
        self.ops = ops
        self.conn = conn
        self.tasks: list[asyncio.Task[None]] = []

    def add_run(self, thread_id: UUID, status: str = "pending") -> UUID:
        run_id = uuid4()
        row = {"run_id": run_id, "thread_id": thread_id, "status": status, "assistant_id": None}
        self.conn.store["runs"].append(row)
        return run_id

    async def start(self, thread_id: UUID, until: asyncio.Event | None = None) -> UUID:
        """Start a run; told to end, it goes on until `until`."""
        run_id = self.add_run(thread_id, "running")
        inside = asyncio.Event()

        async def work() -> None:
            with get_workers().inside(run_id, thread_id):
                loop = asyncio.get_running_loop()
                async with self.ops.Runs.enter(run_id, thread_id, loop, resumable=False) as done:
                    inside.set()
                    told = await done.wait()
                    if until is not None:
                        await until.wait()
                    if type(told).__name__ == "UserRollback":
                        with suppress(HTTPException):
                            await drain(self.ops.Runs.delete(self.conn, run_id, thread_id=thread_id))

        self.tasks.append(asyncio.create_task(work()))
        await inside.wait()
        return run_id

    async def ended(self) -> bool:
        done, _ = await asyncio.wait(self.tasks, timeout=10)
        return len(done) == len(self.tasks)


@pytest.fixture
def work(ops: ModuleType, conn: Any) -> Work:
    assert corrections.install()
    conn.store["threads"][:] = []
    return Work(ops, conn)


def status_of(conn: Any, run_id: UUID) -> str | None:
    return next((run["status"] for run in conn.store["runs"] if run["run_id"] == run_id), None)


async def test_deleting_a_thread_ends_its_run_before_anything_is_deleted(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the run occupies a worker, unseen, and goes on writing what has been deleted."""
    (thread_id,) = add(work.conn, 1)
    unwound = asyncio.Event()
    await work.start(thread_id, unwound)
    story = []

    async def delete_checkpoints(*_: Any, **__: Any) -> None:
        story.append(work.tasks[0].done())

    monkeypatch.setattr(work.ops, "_delete_checkpoints_for_thread", delete_checkpoints)
    deleting = asyncio.create_task(drain(work.ops.Threads.delete(work.conn, thread_id)))
    asyncio.get_running_loop().call_later(0.1, unwound.set)
    assert await deleting == [thread_id]
    assert await work.ended()
    assert story == [True]
    assert (left(work.conn), work.conn.store["runs"]) == ([], [])


async def test_a_worker_that_does_not_leave_delays_a_delete_and_does_not_prevent_it(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corrections, "LEAVE_SECONDS", 0.1)
    (thread_id,) = add(work.conn, 1)
    never = asyncio.Event()
    await work.start(thread_id, never)
    assert await drain(work.ops.Threads.delete(work.conn, thread_id)) == [thread_id]
    assert left(work.conn) == []
    never.set()
    assert await work.ended()


async def test_a_run_made_while_its_thread_is_deleted_goes_with_it(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    (thread_id,) = add(work.conn, 1)

    async def delete_checkpoints(*_: Any, **__: Any) -> None:
        await work.start(thread_id)

    monkeypatch.setattr(work.ops, "_delete_checkpoints_for_thread", delete_checkpoints)
    assert await drain(work.ops.Threads.delete(work.conn, thread_id)) == [thread_id]
    assert await work.ended()
    assert work.conn.store["runs"] == []


async def test_deleting_a_thread_ends_no_other_threads_runs(work: Work) -> None:
    gone, stays = add(work.conn, 2)
    await work.start(stays)
    waiting = work.add_run(stays)
    await drain(work.ops.Threads.delete(work.conn, gone))
    assert not work.tasks[0].done()
    assert status_of(work.conn, waiting) == "pending"
    await drain(work.ops.Threads.delete(work.conn, stays))
    assert await work.ended()


async def test_a_worker_that_deletes_its_own_thread_does_not_wait_for_itself(work: Work) -> None:
    (thread_id,) = add(work.conn, 1)
    run_id = work.add_run(thread_id, "running")
    with get_workers().inside(run_id, thread_id):
        async with asyncio.timeout(corrections.LEAVE_SECONDS / 2):
            assert await drain(work.ops.Threads.delete(work.conn, thread_id)) == [thread_id]


async def test_deleting_a_run_ends_it(work: Work) -> None:
    (thread_id,) = add(work.conn, 1)
    run_id = await work.start(thread_id)
    assert await drain(work.ops.Runs.delete(work.conn, run_id, thread_id=thread_id)) == [run_id]
    assert await work.ended()
    assert work.conn.store["runs"] == []


async def test_rolling_a_run_back_deletes_it_and_says_so_to_its_worker(work: Work) -> None:
    (thread_id,) = add(work.conn, 1)
    run_id = await work.start(thread_id)
    await work.ops.Runs.cancel(work.conn, [run_id], thread_id=thread_id, action="rollback")
    assert await work.ended()
    assert status_of(work.conn, run_id) is None


@pytest.mark.parametrize("action", ["interrupt", "rollback"])
async def test_cancelling_runs_by_their_status_ends_them(work: Work, action: str) -> None:
    for thread_id in add(work.conn, 2):
        await work.start(thread_id)
    await work.ops.Runs.cancel(work.conn, status="running", action=action)
    assert await work.ended()
    assert [run for run in work.conn.store["runs"] if run["status"] == "running"] == []


async def test_a_run_that_is_older_than_four_minutes_can_be_cancelled(work: Work) -> None:
    """The runtime's worker listens for 240 s, and no longer."""

    class Impatient(asyncio.Queue[Any]):
        waited = False

        async def get(self) -> Any:
            if not self.waited:
                self.waited = True
                raise TimeoutError
            return await super().get()

    from langgraph_api.asyncio import ValueEvent  # noqa: PLC0415 - reads the environment that ops has set

    queue, done = Impatient(), ValueEvent()
    listening = asyncio.create_task(work.ops.listen_for_cancellation(queue, uuid4(), uuid4(), done))
    queue.put_nowait(work.ops.Message(topic=b"run:1:control", data=b"interrupt"))
    await asyncio.wait([listening], timeout=10)
    assert queue.waited
    assert done.is_set()


async def test_cancelling_a_run_that_waits_leaves_its_thread_busy_with_the_other(work: Work) -> None:
    """Disabling a user stops the runs of their busy threads."""
    (thread_id,) = add(work.conn, 1)
    under_way = await work.start(thread_id)
    waiting = work.add_run(thread_id)
    (row,) = work.conn.store["threads"]
    row["status"] = "busy"
    await work.ops.Runs.cancel(work.conn, [waiting], thread_id=thread_id)
    assert (status_of(work.conn, waiting), row["status"]) == ("interrupted", "busy")
    await work.ops.Runs.cancel(work.conn, [under_way], thread_id=thread_id)
    assert await work.ended()


async def test_a_thread_without_values_does_not_break_a_search_by_values(ops: ModuleType, conn: Any) -> None:
    conn.store["threads"] = [
        {"thread_id": uuid4(), "metadata": {}, "updated_at": number, "values": values}
        for number, values in enumerate([None, {}, {"a": 1}, {"a": {"b": 1, "c": 2}}])
    ]
    with pytest.raises(TypeError):  # when this fails, the correction is no longer needed
        await ops.Threads.count(conn, values={"a": 1})
    assert corrections.install()
    assert await ops.Threads.count(conn, values={"a": 1}) == 1
    assert await ops.Threads.count(conn, values={"a": {"b": 1}}) == 1
    assert await ops.Threads.count(conn) == 4


async def test_a_conversation_is_read_as_its_saver_reads_it(
    adapter: Callable[..., Any], ops: ModuleType, conn: Any
) -> None:
    assert corrections.install()

    class Saver:
        async def aget_delta_channel_history(self, *, config: Any, channels: Any) -> Any:
            return {"asked": (config, channels)}

    wrapped = object.__new__(adapter)
    wrapped._inner = Saver()
    assert await wrapped.aget_delta_channel_history(config=1, channels=["m"]) == {"asked": (1, ["m"])}


async def test_authentication_logs_what_is_wrong_and_nothing_else(
    custom: ModuleType, original: dict[str, Any]
) -> None:
    assert corrections.install()
    with capture_logs() as logs:
        await custom.logger.ainfo("Resolved authentication handler")
        await custom.logger.aerror("Error authenticating request")
    assert [log["log_level"] for log in logs] == ["error"]


def test_installing_twice_changes_nothing_more(ops: ModuleType, original: dict[str, Any]) -> None:
    assert corrections.install()
    once = ops.Threads.delete
    assert corrections.install()
    assert ops.Threads.delete == once


def test_an_unknown_version_or_shape_is_left_alone(
    ops: ModuleType, original: dict[str, Any], adapter: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert corrections.has_known_shape(ops, adapter)
    monkeypatch.setattr("langgraph_runtime_inmem.__version__", "0.99.0")
    assert not corrections.install()
    assert inspect.getattr_static(ops.Threads, "delete") is original["delete"]
