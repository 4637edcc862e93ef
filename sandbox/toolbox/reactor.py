"""One thread that waits for many descriptors. asyncio would take several MiB of every sandbox's memory."""

from __future__ import annotations

import heapq
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT


class Timer:
    """A callback that is to come; `cancel` forgets it."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Reactor:
    """Calls back when a descriptor is ready, when a time has come, or when another thread asks for it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, tuple[int, Callable[[], None]]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._posted: deque[Callable[[], None]] = deque()
        self._wake_end, self._wake_start = os.pipe()
        os.set_blocking(self._wake_end, False)
        os.set_blocking(self._wake_start, False)
        self.watch(self._wake_end, READABLE, self._woken)

    def watch(self, descriptor: int, events: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever a descriptor is ready for `events`, or at its end."""
        if descriptor in self._handlers:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._handlers[descriptor] = events | select.EPOLLERR | select.EPOLLHUP, handler

    def forget(self, descriptor: int) -> None:
        """Stop watching a descriptor, which must still be open. Safe to repeat."""
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        self._count += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._count, timer))
        return timer

    def post(self, callback: Callable[[], None]) -> None:
        """Have something called by the reactor's thread. For other threads."""
        self._posted.append(callback)
        with suppress(BlockingIOError):  # enough wake-ups are on their way
            os.write(self._wake_start, b"!")

    def run(self) -> None:
        """Work for ever. A callback that fails is told about on standard error, and costs nothing else."""
        while True:
            self._attempt(self._turn)

    def _turn(self) -> None:
        timers = self._timers
        while timers and timers[0][2].callback is None:
            heapq.heappop(timers)
        patience = max(0.0, timers[0][0] - time.monotonic()) if timers else None
        # Rounded up to whole milliseconds by epoll, so a timer's time has come when this returns.
        for descriptor, happened in self._epoll.poll(patience):
            # An earlier handler may have closed it, or waits for something else by now.
            events, handler = self._handlers.get(descriptor, (0, None))
            if handler is not None and happened & events:
                self._attempt(handler)
        now = time.monotonic()
        while timers and timers[0][0] <= now:
            callback = heapq.heappop(timers)[2].callback
            if callback is not None:
                self._attempt(callback)

    def _woken(self) -> None:
        os.read(self._wake_end, 4096)
        while self._posted:
            self._attempt(self._posted.popleft())

    def _attempt(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:  # noqa: BLE001 - the first process of a container must not end
            sys.excepthook(*sys.exc_info())
