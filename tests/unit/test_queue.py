"""The woken queue, with the in-memory runtime's real `Runs` in this process."""

import asyncio
import hashlib
import inspect
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from types import ModuleType
from typing import Any

import pytest
from structlog.testing import capture_logs

from server.fair_share import startable
from server.queue import POLL_SECONDS, Bell, install
from server.workers import Workers
from tests.unit.run_queue import Queue

READ_BY_US = "b4c30f7913038a2f"
UPSTREAM_CHANGED = """
langgraph-runtime-inmem's queue has changed. Read its `ops.Runs.next`, `put`, `enter`,
`ops.Threads.Stream.subscribe` and `queue.queue` again:
- does next() still choose of the pending rows, count the attempt, and mark the row as running?
- does subscribe() still look for a thread's new runs only, and is its set still the stream's own?
- is a run still in the store when put() returns, and a worker still inside enter() until a run has ended?
- does queue() still look `ops.Runs.next` up at every turn?
All yes, or server/queue.py follows: set READ_BY_US here. Now it is """


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Collect the times of the looks."""
    times: list[float] = []

    def counted(*args: Any) -> Iterator[Any]:
        times.append(time.perf_counter())
        return startable(*args)

    monkeypatch.setattr("server.queue.startable", counted)
    return times


def test_the_runtimes_queue_reads_as_it_did_when_the_wrapper_was_written(ops: ModuleType) -> None:
    from langgraph_runtime_inmem import queue  # noqa: PLC0415 - as in `ops`

    parts = [inspect.getattr_static(ops.Runs, name) for name in ("next", "put", "enter")]
    parts += [ops.Threads.Stream.subscribe, queue.queue]
    digest = hashlib.sha256("".join(inspect.getsource(part) for part in parts).encode()).hexdigest()[:16]
    assert digest == READ_BY_US, UPSTREAM_CHANGED + digest


def test_installing_twice_wraps_once(untouched: ModuleType) -> None:
    assert install()
    wrapped = untouched.Runs.next
    assert install()
    assert untouched.Runs.next == wrapped


def test_another_runtime_is_left_alone_silently(
    untouched: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGGRAPH_RUNTIME_EDITION", "postgres")
    assert_left_alone(untouched, warnings=0)


@pytest.mark.parametrize("version", ["0.37.0", "0.360.1", "1.0.0"])
def test_an_unknown_version_is_left_alone_with_one_warning(
    untouched: ModuleType, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr("langgraph_runtime_inmem.__version__", version)
    assert_left_alone(untouched, warnings=1)


async def _next_with_another_parameter(wait: bool, limit: int = 1, queue: str = "") -> AsyncIterator[Any]:
    yield wait, limit, queue


async def _next_that_returns_a_list(wait: bool, limit: int = 1) -> list[Any]:
    return [wait, limit]


async def _put_without_thread(conn: Any, assistant_id: uuid.UUID, kwargs: dict[str, Any]) -> None: ...


def _enter_of_another_shape(run_id: uuid.UUID) -> None: ...


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("next", staticmethod(_next_with_another_parameter)),
        ("next", staticmethod(_next_that_returns_a_list)),
        ("next", _next_with_another_parameter),
        ("put", staticmethod(_put_without_thread)),
        ("enter", staticmethod(_enter_of_another_shape)),
        ("enter", None),
    ],
)
def test_an_unknown_shape_is_left_alone_with_one_warning(
    untouched: ModuleType, name: str, method: object
) -> None:
    setattr(untouched.Runs, name, method)
    assert_left_alone(untouched, warnings=1)


def test_jobs_on_loops_of_their_own_are_left_alone_with_one_warning(
    untouched: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("langgraph_api.config.BG_JOB_ISOLATED_LOOPS", True)
    assert_left_alone(untouched, warnings=1)


def assert_left_alone(ops: ModuleType, warnings: int) -> None:
    before = dict(vars(ops.Runs))
    with capture_logs() as logs:
        assert not install()
    assert [log["log_level"] for log in logs] == ["warning"] * warnings
    assert dict(vars(ops.Runs)) == before


async def test_an_idle_queue_takes_a_run_at_once(queue: Queue) -> None:
    polled = await queue.put_and_measure()
    assert install()
    await queue.put_and_measure()  # ends the pause that the loop is in
    woken = statistics.median([await queue.put_and_measure() for _ in range(9)])
    assert polled >= POLL_SECONDS
    assert woken < polled / 10


async def test_runs_put_together_are_all_taken(queue: Queue) -> None:
    assert install()
    put = {await queue.put(uuid.uuid4()) for _ in range(25)}
    assert {await queue.picked.get() for _ in put} == put


async def test_a_run_behind_another_of_its_thread_starts_when_that_one_has_left(queue: Queue) -> None:
    assert install()
    thread_id = uuid.uuid4()
    first = await queue.put(thread_id)
    assert await queue.picked.get() == first
    waits = []
    for _ in range(5):
        async with queue.enter(first, thread_id):
            second = await queue.put(thread_id)
            elsewhere = await queue.put(uuid.uuid4())
            assert await queue.picked.get() == elsewhere
            await asyncio.sleep(POLL_SECONDS / 10)  # the queue looks once more, then idles
            await queue.end(first)
        left = time.perf_counter()
        assert await queue.picked.get() == second
        waits.append(time.perf_counter() - left)
        first = second
    assert statistics.median(waits) < POLL_SECONDS / 4


async def test_many_runs_queued_on_one_thread_do_not_hold_up_another_thread(queue: Queue) -> None:
    assert install()
    thread_id = uuid.uuid4()
    first = await queue.put(thread_id)
    assert await queue.picked.get() == first
    async with queue.enter(first, thread_id):
        for _ in range(25):
            await queue.put(thread_id)
        elsewhere = await queue.put(uuid.uuid4())
        async with asyncio.timeout(4 * POLL_SECONDS):
            assert await queue.picked.get() == elsewhere
        await queue.end(first)


async def test_a_run_that_cannot_start_costs_one_look_and_then_only_polls(
    looks: list[float], queue: Queue
) -> None:
    assert install()
    await queue.put_and_measure()
    started = time.perf_counter()
    before = len(looks)
    await queue.put(uuid.uuid4(), after_seconds=3600)
    await asyncio.sleep(POLL_SECONDS * 1.5)
    polls = (time.perf_counter() - started) / POLL_SECONDS
    assert 2 <= len(looks) - before <= 2 + polls
    assert queue.picked.empty()


async def test_a_run_for_later_starts_when_its_time_has_come(queue: Queue) -> None:
    assert install()
    due = time.perf_counter() + 1
    await queue.put(uuid.uuid4(), after_seconds=1)
    await queue.picked.get()
    assert due <= time.perf_counter() < due + 4 * POLL_SECONDS


async def test_the_successor_of_a_cancelled_run_waits_until_its_worker_has_left(queue: Queue) -> None:
    assert install()
    thread_id = uuid.uuid4()
    cancelled = await queue.put(thread_id)
    await queue.picked.get()
    story = []

    async def execute(run_id: uuid.UUID) -> None:
        async with queue.enter(run_id, thread_id):
            story.append("successor is in")

    async with queue.enter(cancelled, thread_id):
        await queue.ops.Runs.cancel(queue.conn, [cancelled], thread_id=thread_id)
        successor = await queue.put(thread_id)
        while await queue.picked.get() != successor:
            pass
        worker = asyncio.create_task(execute(successor))
        await asyncio.sleep(POLL_SECONDS / 10)  # it would come in now
        story.append("cancelled leaves")
    await worker
    assert story == ["cancelled leaves", "successor is in"]


async def test_a_cancelled_run_that_never_leaves_holds_its_successor_for_one_pause_only(
    queue: Queue,
) -> None:
    assert install()
    thread_id = uuid.uuid4()
    async with (
        queue.enter(uuid.uuid4(), thread_id),
        asyncio.timeout(20 * POLL_SECONDS),
        queue.enter(uuid.uuid4(), thread_id),
    ):
        pass


async def test_who_came_first_to_a_thread_does_not_wait_for_who_came_later() -> None:
    workers, thread_id, first_id = Workers(), uuid.uuid4(), uuid.uuid4()
    for run_id in (first_id, uuid.uuid4()):
        workers.take(run_id, thread_id, "alice")
    with workers.inside(first_id, thread_id) as first:
        async with asyncio.timeout(5):
            await workers.predecessors_left(first, 3600)


async def test_a_ring_before_listening_is_heard_once() -> None:
    bell = Bell()
    await bell.listen(0)
    bell.ring()
    bell.ring()
    async with asyncio.timeout(5):
        await bell.listen(3600)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await bell.listen(3600)


class ShiftedClock(datetime):
    """The wall clock, set forward by `ahead`."""

    ahead = timedelta(0)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime.now(tz) + cls.ahead


async def test_a_run_put_before_the_clock_was_set_back_lies_before_its_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.queue.datetime", ShiftedClock)
    bell = Bell()
    await bell.listen(0)
    monkeypatch.setattr(ShiftedClock, "ahead", timedelta(milliseconds=30))
    created_at = ShiftedClock.now(UTC)
    bell.ring()
    monkeypatch.setattr(ShiftedClock, "ahead", timedelta(0))
    await bell.listen(3600)
    assert created_at < datetime.now(UTC)


async def test_a_clock_set_far_back_delays_a_look_by_one_pause_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.queue.datetime", ShiftedClock)
    bell = Bell()
    await bell.listen(0)
    monkeypatch.setattr(ShiftedClock, "ahead", timedelta(days=1))
    bell.ring()
    monkeypatch.setattr(ShiftedClock, "ahead", timedelta(0))
    async with asyncio.timeout(20 * POLL_SECONDS):
        await bell.listen(3600)
