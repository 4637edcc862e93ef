"""Streams can be taken up again, but what is kept for that stays within its bounds."""

from dataclasses import dataclass
from types import ModuleType
from uuid import uuid4

from server import replays
from server.replays import Replays

OVERHEAD = replays._OVERHEAD


@dataclass
class Event:
    data: bytes


def test_events_are_kept_in_order_by_thread_and_run() -> None:
    store = Replays()
    first, second = Event(b"1"), Event(b"2")
    store["thread"]["run"].append(first)
    store["thread"]["run"].append(second)
    assert store["thread"]["run"] == [first, second]
    assert store["thread"]["another"] == []


def test_a_run_keeps_its_latest_events_only() -> None:
    store = Replays(run_bytes=3 * (OVERHEAD + 10))
    for number in range(10):
        store["thread"]["run"].append(Event(b"%10d" % number))
    assert [int(event.data) for event in store["thread"]["run"]] == [7, 8, 9]


def test_of_all_runs_those_are_kept_that_spoke_last() -> None:
    store = Replays(all_bytes=3 * (OVERHEAD + 10))
    for number in (0, 1, 2, 0, 3):
        store["thread"][number].append(Event(b"%10d" % number))
    assert {run: len(events) for run, events in store["thread"].items()} == {0: 2, 3: 1}


def test_one_event_larger_than_all_bounds_is_not_kept() -> None:
    store = Replays(run_bytes=1000, all_bytes=1000)
    store["thread"]["run"].append(Event(b"a" * 2000))
    store["thread"]["run"].append(Event(b"b"))
    assert [event.data for event in store["thread"]["run"]] == [b"b"]


def test_what_a_deleted_thread_leaves_makes_room() -> None:
    store = Replays(all_bytes=3 * (OVERHEAD + 10))
    deleted = uuid4()
    for _ in range(3):
        store[deleted]["run"].append(Event(b"a" * 10))
    store.forget(deleted)
    store.forget(uuid4())
    for number in range(3):
        store["thread"]["run"].append(Event(b"%10d" % number))
    assert len(store["thread"]["run"]) == 3
    assert deleted not in store


async def test_the_runtime_keeps_its_streams_in_it(ops: ModuleType) -> None:
    from langgraph_runtime_inmem.inmem_stream import Message, get_stream_manager  # noqa: PLC0415 - as `ops`

    assert replays.install() is replays.install()
    manager, thread_id, run_id = get_stream_manager(), uuid4(), uuid4()
    for number in range(3):
        message = Message(topic=b"run", data=b"%d" % number)
        await manager.put(run_id, thread_id, message, resumable=True)
    restored = [message.data for message in manager.restore_messages(run_id, thread_id, "0")]
    assert restored == [b"0", b"1", b"2"]
