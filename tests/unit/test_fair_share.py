"""What one user may take of the queue, with the in-memory runtime's real `Runs`: others have theirs."""

import asyncio
import time
import uuid
from contextlib import AsyncExitStack
from types import ModuleType
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from server.fair_share import MAX_ENDED_RUNS, MAX_ENDED_RUNS_OF_A_USER, MAX_RUNS, ended_too_long_ago, share
from server.queue import POLL_SECONDS, PUTS_PER_CLEARING, install
from tests.unit.run_queue import Queue

SHARE = 5
"""Of the runtime's 10 jobs."""


@pytest.fixture
def fair(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> Queue:
    monkeypatch.setattr("langgraph_api.config.N_JOBS_PER_WORKER", 10)
    assert install()
    return queue


async def put_many(queue: Queue, owner: str, count: int) -> list[uuid.UUID]:
    return [await queue.put(uuid.uuid4(), owner) for _ in range(count)]


async def picked(queue: Queue, count: int) -> list[uuid.UUID]:
    async with asyncio.timeout(20 * POLL_SECONDS):
        return [await queue.picked.get() for _ in range(count)]


async def nothing_more(queue: Queue) -> bool:
    await asyncio.sleep(2.5 * POLL_SECONDS)
    return queue.picked.empty()


def row_of(queue: Queue, run_id: uuid.UUID) -> dict[str, Any]:
    return next(run for run in queue.conn.store["runs"] if run["run_id"] == run_id)


def thread_of(queue: Queue, run_id: uuid.UUID) -> uuid.UUID:
    thread_id: uuid.UUID = row_of(queue, run_id)["thread_id"]
    return thread_id


@pytest.mark.parametrize(
    ("jobs", "wanted", "expected"),
    [(1, None, 1), (2, None, 1), (3, None, 1), (10, None, 5), (10, 3, 3), (10, 99, 9), (1, 99, 1), (2, 2, 1)],
)
def test_one_user_has_half_of_the_jobs_or_as_many_as_are_set_but_never_the_last(
    jobs: int, wanted: int | None, expected: int
) -> None:
    assert share(jobs, wanted) == expected


async def test_one_users_runs_do_not_occupy_every_worker(fair: Queue) -> None:
    hers = await put_many(fair, "mallory", 12)
    assert await picked(fair, SHARE) == hers[:SHARE]
    alices = await fair.put(uuid.uuid4(), "alice")
    assert await picked(fair, 1) == [alices]
    assert await nothing_more(fair)


async def test_a_waiting_run_starts_as_soon_as_one_of_its_owners_leaves(fair: Queue) -> None:
    runs = await put_many(fair, "mallory", SHARE + 1)
    await picked(fair, SHARE)
    async with fair.enter(runs[0], thread_of(fair, runs[0])):
        await asyncio.sleep(POLL_SECONDS / 10)
        await fair.end(runs[0])
    left = time.perf_counter()
    assert await picked(fair, 1) == runs[SHARE:]
    assert time.perf_counter() - left < POLL_SECONDS / 2


async def test_cancelled_runs_whose_workers_have_not_left_count(fair: Queue) -> None:
    """An attacker cancels their own runs, so that no row says that they are running, and makes more."""
    runs = await put_many(fair, "mallory", SHARE)
    await picked(fair, SHARE)
    async with AsyncExitStack() as workers:
        for run_id in runs:
            await workers.enter_async_context(fair.enter(run_id, thread_of(fair, run_id)))
            await fair.ops.Runs.cancel(fair.conn, [run_id], thread_id=thread_of(fair, run_id))
        await put_many(fair, "mallory", 1)
        assert await nothing_more(fair)


async def test_who_has_fewest_under_way_is_next_however_many_others_wait(untouched: ModuleType) -> None:
    """Two accounts of one attacker occupy every worker, and have a queue before alice's run."""
    queue = Queue(untouched)
    assert install()
    for owner in ("mallory", "mallet"):
        await put_many(queue, owner, 10)
    crowd = [run async for run, _ in queue.ops.Runs.next(wait=False, limit=10)]
    alices = await queue.put(uuid.uuid4(), "alice")
    leaving = crowd[0]["run_id"]
    async with queue.enter(leaving, thread_of(queue, leaving)):
        await queue.end(leaving)
    started = [run["run_id"] async for run, _ in queue.ops.Runs.next(wait=False, limit=1)]
    assert started == [alices]
    queue.conn.clear()


async def test_runs_beyond_the_bound_are_refused_and_other_users_are_not(fair: Queue) -> None:
    thread_id = uuid.uuid4()
    for _ in range(MAX_RUNS):
        await fair.put(thread_id, "mallory", after_seconds=3600)
    with pytest.raises(HTTPException) as caught:
        await fair.put(uuid.uuid4(), "mallory")
    assert caught.value.status_code == 429
    alices = await fair.put(uuid.uuid4(), "alice")
    assert await picked(fair, 1) == [alices]


async def test_requests_at_the_same_time_do_not_pass_the_bound_together(
    fair: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(*_: Any) -> None:
        await asyncio.sleep(0.01)

    monkeypatch.setattr(fair.ops.Runs, "handle_event", slow)
    puts = (fair.put(uuid.uuid4(), "mallory", after_seconds=3600) for _ in range(2 * MAX_RUNS))
    outcomes = await asyncio.gather(*puts, return_exceptions=True)
    assert sum(isinstance(outcome, uuid.UUID) for outcome in outcomes) == MAX_RUNS
    assert {type(outcome) for outcome in outcomes} == {uuid.UUID, HTTPException}


async def test_ended_runs_make_room(fair: Queue) -> None:
    runs = [await fair.put(uuid.uuid4(), "alice", after_seconds=3600) for _ in range(MAX_RUNS)]
    await fair.end(runs[0])
    await fair.put(uuid.uuid4(), "alice")


async def test_a_run_whose_thread_is_gone_ends_and_holds_up_nobody(fair: Queue) -> None:
    orphan = await fair.put(uuid.uuid4(), "mallory")
    fair.conn.store["threads"].clear()
    next_ = await fair.put(uuid.uuid4(), "mallory")
    assert await picked(fair, 1) == [next_]
    assert row_of(fair, orphan)["status"] == "error"


async def test_a_look_at_many_waiting_runs_is_short(fair: Queue) -> None:
    """The runtime compares every waiting run with all runs: 3,000 of them stop the server for a second."""
    thread_id = uuid.uuid4()
    first = await fair.put(thread_id, "mallory")
    await picked(fair, 1)
    row = row_of(fair, first)
    waiting = [{**row, "run_id": uuid.uuid4(), "status": "pending"} for _ in range(3000)]
    fair.conn.store["runs"][:] = [*waiting, row]
    started = time.thread_time()
    assert [run async for run in fair.ops.Runs.next(wait=False, limit=10)] == []
    assert time.thread_time() - started < 0.1


async def test_rows_of_runs_ended_long_ago_are_dropped_and_the_latest_of_each_user_kept(fair: Queue) -> None:
    alices = await fair.put(uuid.uuid4(), "alice", after_seconds=3600)
    await fair.end(alices)
    hers = []
    for _ in range(MAX_ENDED_RUNS_OF_A_USER + 2 * PUTS_PER_CLEARING):
        hers.append(await fair.put(uuid.uuid4(), "mallory", after_seconds=3600))
        await fair.end(hers[-1])
    kept = [run["run_id"] for run in fair.conn.store["runs"]]
    assert kept[0] == alices
    assert len(kept) <= 1 + MAX_ENDED_RUNS_OF_A_USER + PUTS_PER_CLEARING
    assert kept[1:] == hers[-len(kept[1:]) :]


def test_rows_of_ended_runs_are_bounded_over_all_users_and_no_active_one_is_dropped() -> None:
    def row(number: int, status: str) -> dict[str, Any]:
        stamped = {"config": {"configurable": {"langgraph_auth_user_id": f"user{number % 1000}"}}}
        return {"run_id": number, "status": status, "kwargs": stamped}

    rows = [row(number, "pending" if number < 10 else "success") for number in range(MAX_ENDED_RUNS + 30)]
    assert {run["run_id"] for run in ended_too_long_ago(rows)} == set(range(10, 30))


async def test_what_resumable_streams_keep_of_a_run_goes_with_its_row(fair: Queue) -> None:
    runs = []
    for _ in range(MAX_ENDED_RUNS_OF_A_USER + 2 * PUTS_PER_CLEARING):
        run_id = await fair.put(uuid.uuid4(), "mallory", after_seconds=3600)
        await fair.ops.Runs.Stream.publish(
            run_id, "values", b"{}", thread_id=thread_of(fair, run_id), resumable=True
        )
        runs.append(run_id)
        await fair.end(run_id)
    stored = [run for of_thread in streams_of(fair.ops).values() for run in of_thread]
    rows = {run["run_id"] for run in fair.conn.store["runs"]}
    assert set(runs) & set(stored) == set(runs) & rows


def streams_of(ops: ModuleType) -> Any:
    return ops.get_stream_manager().message_stores


async def test_an_idle_thread_stream_does_not_read_the_rows(fair: Queue) -> None:
    """Every open stream looks for its thread's new runs 50 times a second."""
    run_id = await fair.put(uuid.uuid4(), "alice", after_seconds=3600)
    thread_id = thread_of(fair, run_id)
    seen: set[Any] = set()

    async def found() -> list[uuid.UUID]:
        queues = await fair.ops.Threads.Stream.subscribe(fair.conn, thread_id, seen)
        return [key for key, _ in queues]

    assert await found() == [thread_id, run_id]
    rows, fair.conn.store["runs"] = fair.conn.store["runs"], None
    assert await found() == []
    fair.conn.store["runs"] = rows
    await fair.put(uuid.uuid4(), "bob", after_seconds=3600)
    assert await found() == []
    second = await fair.put(thread_id, "alice", after_seconds=3600)
    assert await found() == [second]
    assert len(seen) == 4  # the thread, its two runs, and the number of the look
