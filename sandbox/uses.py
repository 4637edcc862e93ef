"""Which sandboxes this process is busy with, and whose use it has noted in the ledger of late."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from storage.ids import SessionId


class Uses:
    """What this process does with its sandboxes, on all of its event loops.

    There is no lock, which an event loop might have to wait for: who begins to use a sandbox says so and then
    looks whether that is noted; who sets it aside does the same in the opposite order.

    Args:
        fresh_seconds: For how long a use that was noted need not be noted again.
    """

    def __init__(self, fresh_seconds: float) -> None:
        self._fresh_seconds = fresh_seconds
        self._under_way: dict[object, SessionId] = {}
        self._noted_at: dict[SessionId, float] = {}

    @contextmanager
    def using(self, session: SessionId) -> Iterator[None]:
        """Be busy with a sandbox for the length of a block."""
        use = object()
        self._under_way[use] = session
        try:
            yield
        finally:
            del self._under_way[use]

    def busy(self) -> set[UUID]:
        """Return the threads that this process does something for right now."""
        return {session.thread_id for session in list(self._under_way.values())}

    def note(self, session: SessionId, at: float) -> None:
        """Remember that a use was noted. `at` is `time.monotonic()` before it was."""
        self._noted_at[session] = at

    def is_fresh(self, session: SessionId) -> bool:
        """Tell whether a use has been noted so lately that nobody can take the sandbox for idle."""
        at = self._noted_at.get(session)
        return at is not None and time.monotonic() - at < self._fresh_seconds

    def set_aside(self, session: SessionId) -> bool:
        """Have the next use of a sandbox noted, however soon it is. False: this process is busy with it."""
        self._noted_at.pop(session, None)
        return session.thread_id not in self.busy()

    def drop_stale(self) -> None:
        """Forget notes that are not fresh any more."""
        oldest = time.monotonic() - self._fresh_seconds
        for session, at in list(self._noted_at.items()):
            if at < oldest:
                self._noted_at.pop(session, None)
