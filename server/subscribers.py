"""Who listens to a run or a thread: until they leave, and as long as they take what they are sent.

The in-memory runtime gives each stream a queue of its own, and forgets it only where the stream came to an
orderly end: a request that was refused after it had subscribed, and every stream of a thread, leave a queue
behind that is filled for as long as the run lasts, and makes each of its events dearer for everybody. How
much waits there for a client that does not read is not bounded either: a dozen steps on a large thread, a
gigabyte. Here a run waits a little for such a client, and then goes on without it.

Like `server.corrections`, this touches the platform's inside, and only where its version and shape are known.
"""

import asyncio
import inspect
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self
from uuid import UUID
from weakref import WeakSet

from server.replays import Event, size_of
from server.runtime import is_in_memory, is_known

WAITING_BYTES = 16 << 20
"""What may wait for one subscriber; a single message may be larger."""

ALL_WAITING_BYTES = 256 << 20
"""What may wait for all together. Beyond it whoever has most waiting is ended."""

PATIENCE_SECONDS = 5.0
"""How long a run waits for a subscriber that has as much waiting as it may. A large thread's state of 8 MB,
of which each step sends several, passes through a line of 20 Mbit/s meanwhile."""


class SlowReaderError(RuntimeError):
    """You did not read what was sent: this stream has ended. What it was about goes on; join it again."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


class Waiting:
    """What waits for all subscribers of this process together."""

    def __init__(self, most: int = ALL_WAITING_BYTES) -> None:
        self._most = most
        self._size = 0
        self._subscriptions: WeakSet[Subscription] = WeakSet()

    def add(self, subscription: "Subscription") -> None:
        """Count a subscriber from now on, for as long as anybody holds it."""
        self._subscriptions.add(subscription)

    def note(self, growth: int) -> None:
        """Account for what waits having grown; end those who have most waiting if it is too much."""
        self._size += growth
        if growth < 0 or self._size <= self._most:
            return
        # Some may have gone without a word.
        self._size = sum(one.size for one in self._subscriptions)
        while self._size > self._most:
            max(self._subscriptions, key=lambda one: one.size).end()


class Subscription(asyncio.Queue[Any]):
    """One subscriber's messages, in the place of the runtime's `ContextQueue`.

    Args:
        waiting: what it is counted with.
        kept: where the runtime hands messages out: lists of queues, below keys.
        path: the keys.
    """

    def __init__(self, waiting: Waiting, kept: Any, *path: object) -> None:
        super().__init__()
        self.size = 0
        self._is_ended = False
        self._taken = asyncio.Event()
        self._waiting = waiting
        self._kept = kept
        self._path = path
        waiting.add(self)
        *outer, last = path
        for key in outer:
            kept = kept[key]
        kept[last].append(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    async def put(self, message: Event) -> None:
        """Add a message, as soon as there is room for it; without any for `PATIENCE_SECONDS`, end."""
        growth = size_of(message)
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while self.size and self.size + growth > WAITING_BYTES:
                    self._taken.clear()
                    await self._taken.wait()
        if self.size and self.size + growth > WAITING_BYTES:
            self.end()
        if not self._is_ended:
            self.put_nowait(message)
            self._note(growth)

    def end(self) -> None:
        """Drop what waits, and let whoever comes for it know: `SlowReaderError`."""
        self.leave()
        self._is_ended = True
        # Something to come for.
        self.put_nowait(None)

    def leave(self) -> None:
        """Take it from where messages are handed out, and drop those that wait. May be called again."""
        if not self._is_ended:
            while not self.empty():
                self.get_nowait()
        _take_out(self._kept, self._path, self)

    def _get(self) -> Event:
        if self._is_ended:
            raise SlowReaderError
        message: Event = super()._get()
        self._note(-size_of(message))
        self._taken.set()
        return message

    def _note(self, growth: int) -> None:
        self.size += growth
        self._waiting.note(growth)


def _take_out(kept: Any, path: Sequence[object], subscription: Subscription) -> None:
    key, *rest = path
    within = kept.get(key)
    if within is None:
        return
    if rest:
        _take_out(within, rest, subscription)
    elif subscription in within:
        within.remove(subscription)
    if not within:
        del kept[key]


class Subscribers:
    """The methods that stand in for a `StreamManager`'s."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._waiting = Waiting()

    async def add_queue(self, run_id: UUID | str, thread_id: UUID | str | None) -> Subscription:
        """Listen to a run."""
        from langgraph_runtime_inmem.inmem_stream import THREADLESS_KEY  # noqa: PLC0415 - only this runtime

        thread = THREADLESS_KEY if thread_id is None else _as_uuid(thread_id)
        return Subscription(self._waiting, self._manager.queues, thread, _as_uuid(run_id))

    async def add_thread_stream(self, thread_id: UUID | str) -> Subscription:
        """Listen to what is said of a thread itself."""
        return Subscription(self._waiting, self._manager.thread_streams, _as_uuid(thread_id))

    async def remove_queue(
        self, run_id: UUID | str, thread_id: UUID | str | None, queue: Subscription
    ) -> None:
        """Listen no longer."""
        del run_id, thread_id  # the runtime looks for a thread's stream where it is not; the queue knows
        queue.leave()


def install() -> bool:
    """Put it in place. Safe to call again.

    Returns:
        whether it is; an unknown version or shape is left alone with a warning, another runtime silently.
    """
    if not is_in_memory():
        return False
    from langgraph_runtime_inmem.inmem_stream import get_stream_manager  # noqa: PLC0415 - only this runtime

    manager = get_stream_manager()
    if isinstance(getattr(manager.add_queue, "__self__", None), Subscribers):
        return True
    if not is_known(has_known_shape, manager, otherwise="Streams are not bounded"):
        return False
    subscribers = Subscribers(manager)
    for name in ("add_queue", "add_thread_stream", "remove_queue"):
        setattr(manager, name, getattr(subscribers, name))
    return True


def has_known_shape(manager: Any) -> bool:
    """Tell whether what is replaced still is what it was."""
    methods = (manager.add_queue, manager.add_thread_stream, manager.remove_queue)
    return [list(inspect.signature(method).parameters) for method in methods] == [
        ["run_id", "thread_id"],
        ["thread_id"],
        ["run_id", "thread_id", "queue"],
    ]


def _as_uuid(value: UUID | str) -> UUID:
    return value if isinstance(value, UUID) else UUID(value)
