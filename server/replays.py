"""What is kept of streams that a client may take up again where it lost them: the latest, up to a bound.

The in-memory runtime keeps every event of such a run for ever, also when its thread has been deleted: a run
of five seconds can take 300 MB. Who comes for events that are gone gets those that are left; the state is in
the thread all the same.
"""

from collections import OrderedDict
from typing import Any, Protocol
from uuid import UUID

from server.runtime import is_in_memory

RUN_BYTES = 8 << 20
ALL_BYTES = 256 << 20
"""What the events of one run, and of all together, may take."""

_OVERHEAD = 300  # a message without its data, measured with tracemalloc


class Event(Protocol):
    """A message of the runtime's."""

    data: bytes


class Replays(dict[Any, "_Runs"]):
    """Stands in for the runtime's store: by thread and run the events in the order in which they came."""

    def __init__(self, run_bytes: int = RUN_BYTES, all_bytes: int = ALL_BYTES) -> None:
        super().__init__()
        self.run_bytes = run_bytes
        self._all_bytes = all_bytes
        self._size = 0
        self._latest_last: OrderedDict[tuple[object, object], None] = OrderedDict()

    def __missing__(self, thread_id: object) -> "_Runs":
        runs = self[thread_id] = _Runs(self, thread_id)
        return runs

    def note(self, thread_id: object, run_id: object, growth: int) -> None:
        """Account for a run's events having grown; drop the runs that have been silent for longest."""
        self._size += growth
        self._latest_last[thread_id, run_id] = None
        self._latest_last.move_to_end((thread_id, run_id))
        while self._size > self._all_bytes and self._latest_last:
            self._drop(*next(iter(self._latest_last)))

    def forget(self, thread_id: UUID) -> None:
        """Drop what is kept of a thread."""
        for run_id in list(self.get(thread_id, ())):
            self._drop(thread_id, run_id)
        self.pop(thread_id, None)

    def _drop(self, thread_id: object, run_id: object) -> None:
        self._latest_last.pop((thread_id, run_id), None)
        runs = self.get(thread_id)
        if runs is not None and (events := runs.pop(run_id, None)) is not None:
            self._size -= events.size
            if not runs:
                del self[thread_id]


class _Runs(dict[Any, "_Events"]):
    def __init__(self, replays: Replays, thread_id: object) -> None:
        super().__init__()
        self._replays = replays
        self._thread_id = thread_id

    def __missing__(self, run_id: object) -> "_Events":
        events = self[run_id] = _Events(self._replays, self._thread_id, run_id)
        return events


class _Events(list[Event]):
    def __init__(self, replays: Replays, thread_id: object, run_id: object) -> None:
        super().__init__()
        self.size = 0
        self._replays = replays
        self._of = thread_id, run_id

    def append(self, event: Event) -> None:
        super().append(event)
        growth = size_of(event)
        while self.size + growth > self._replays.run_bytes and self:
            growth -= size_of(self.pop(0))
        self.size += growth
        self._replays.note(*self._of, growth)


def size_of(event: Event) -> int:
    """Return how many bytes of memory an event takes, about."""
    return len(event.data) + _OVERHEAD


def install() -> Replays | None:
    """Put the bound in place. Returns the store, None where the runtime keeps its streams elsewhere."""
    if not is_in_memory():
        return None
    from langgraph_runtime_inmem.inmem_stream import get_stream_manager  # noqa: PLC0415 - only this runtime

    manager = get_stream_manager()
    if not isinstance(manager.message_stores, Replays):
        manager.message_stores = Replays()
    replays: Replays = manager.message_stores
    return replays
