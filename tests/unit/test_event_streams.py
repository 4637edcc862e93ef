"""An event stream takes no more from a run than its client takes from it."""

import asyncio
import hashlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from server import event_streams
from server.event_streams import UNSENT_BYTES, Sink, patient

READ_BY_US = "ff438bc5812cc50a"
UPSTREAM_CHANGED = """
What server/event_streams.py relies on has changed upstream. Read `_thread_events` and `_make_manager` of
langgraph_api/api/event_streaming.py again, and who reads `EventStreamingSession._buffer`: if what waits for a
client is bounded, delete the correction; else adapt it, then READ_BY_US here.
Now it is """
EVENT = {"params": "a" * (UNSENT_BYTES // 2)}


@pytest.fixture
def api(ops: ModuleType) -> Iterator[tuple[ModuleType, ModuleType]]:
    del ops  # it has set the environment
    from langgraph_api.api import event_streaming  # noqa: PLC0415 - as above
    from langgraph_api.event_streaming import session  # noqa: PLC0415 - as above

    make, size = event_streaming._make_manager, session.LSD_PROTOCOL_V2_BUFFER_SIZE
    yield event_streaming, session
    event_streaming._make_manager, session.LSD_PROTOCOL_V2_BUFFER_SIZE = make, size


def test_upstream_is_what_was_read(api: tuple[ModuleType, ModuleType]) -> None:
    routes, session = api
    parts = [
        routes._make_manager,
        routes._thread_events,
        routes.ThreadRunManager,
        session.EventStreamingSession,
    ]
    digest = hashlib.sha256("".join(inspect.getsource(part) for part in parts).encode()).hexdigest()[:16]
    assert digest == READ_BY_US, UPSTREAM_CHANGED + digest


def sink() -> tuple[Sink, list[dict[str, Any]]]:
    """Return a sink as the platform's, and its list."""
    pending_events: list[dict[str, Any]] = []

    async def on_event(event: dict[str, Any]) -> None:
        pending_events.append(event)

    return on_event, pending_events


async def test_no_more_lies_ready_than_the_bound_until_it_is_sent() -> None:
    on_event, pending = sink()
    take = patient(on_event)
    assert inspect.iscoroutinefunction(take)  # or the platform would not await it
    for _ in range(2):
        await take(EVENT)
    third = asyncio.create_task(take(EVENT))
    await asyncio.sleep(3 * event_streams.LOOK_SECONDS)
    assert (len(pending), third.done()) == (2, False)
    pending.clear()
    await asyncio.wait_for(third, 1)
    await asyncio.wait_for(take(EVENT), 1)
    assert len(pending) == 2


async def test_one_event_larger_than_the_bound_is_taken() -> None:
    on_event, pending = sink()
    await asyncio.wait_for(patient(on_event)({"params": "a" * 2 * UNSENT_BYTES}), 1)
    assert len(pending) == 1


async def test_a_sink_that_sends_at_once_is_left_alone() -> None:
    async def sends(event: dict[str, Any]) -> None:
        del event

    assert patient(sends) is sends


def test_the_platforms_managers_get_a_patient_sink_and_keep_nothing(
    api: tuple[ModuleType, ModuleType],
) -> None:
    assert event_streams.install()
    assert event_streams.install()
    on_event, _ = sink()
    routes, session = api
    assert routes._make_manager("t", send_event=on_event)._send_event is not on_event
    assert routes._make_manager("t", headers={})._send_event is None
    kept = session.EventStreamingSession(run_id="r", initial_run={}, get_run=None, send=None)
    assert kept._max_buffer_size == 1


def test_an_unknown_version_is_left_alone(
    api: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = api[0]._make_manager
    monkeypatch.setattr("langgraph_api.__version__", "0.99.0")
    assert not event_streams.install()
    assert api[0]._make_manager is original
