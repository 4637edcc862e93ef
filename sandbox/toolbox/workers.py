"""File operations, off the thread that watches the descriptors."""

from __future__ import annotations

import threading
from queue import SimpleQueue

from sandbox.toolbox.reactor import Reactor

TYPE_CHECKING = False  # importing `typing` would cost memory
if TYPE_CHECKING:
    from collections.abc import Callable

    Job = tuple[Callable[[], object], Callable[[object], None]]

_THREADS = 4


class Workers:
    """A few threads. The first is there from the beginning: later there may be no room for another."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._unfinished = 0
        self._threads = 0
        self._start()

    def submit(self, work: Callable[[], object], on_end: Callable[[object], None]) -> None:
        """Do some work, which must not raise, in a thread; call back in the reactor's with the outcome."""
        self._unfinished += 1
        if self._threads < min(self._unfinished, _THREADS):
            self._start()
        self._jobs.put((work, on_end))

    def _start(self) -> None:
        try:
            threading.Thread(target=self._work, daemon=True).start()
        except RuntimeError:  # no room for another
            return
        self._threads += 1

    def _work(self) -> None:
        while True:
            work, on_end = self._jobs.get()
            outcome = work()
            self._reactor.post(_Done(self, on_end, outcome).tell)
            del work, on_end, outcome  # which may be large, and would be held until the next job

    def finished(self) -> None:
        self._unfinished -= 1


class _Done:
    """A finished job, on its way to the reactor's thread."""

    def __init__(self, workers: Workers, on_end: Callable[[object], None], outcome: object) -> None:
        self._workers = workers
        self._on_end = on_end
        self._outcome = outcome

    def tell(self) -> None:
        self._workers.finished()
        self._on_end(self._outcome)
