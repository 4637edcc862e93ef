"""The processes of the sandbox: finding all that descend from one, and ending them so that none gets away."""

# pathlib would cost memory in every sandbox:
# ruff: noqa: PTH208

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

TYPE_CHECKING = False  # importing `typing` would cost memory
if TYPE_CHECKING:
    from collections.abc import Iterator

_GONE = "ZX"


class Process:
    """A process, as /proc/PID/stat has it. `start` is in clock ticks since boot."""

    __slots__ = ("parent", "pid", "start", "state")

    def __init__(self, pid: int, parent: int, state: str, start: int) -> None:
        self.pid = pid
        self.parent = parent
        self.state = state
        self.start = start

    @property
    def is_gone(self) -> bool:
        return self.state in _GONE


def now_in_ticks() -> int:
    """Return the time as /proc has it, a tick early: clock ticks since boot."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")) - 1


def find(pid: int) -> Process | None:
    """Look a process up."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except OSError:
        return None
    try:
        content = os.read(descriptor, 4096)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    # The program's name is in parentheses and may contain anything, parentheses too.
    fields = content[content.rfind(b")") + 2 :].split()
    return Process(pid, int(fields[1]), fields[0].decode(), int(fields[19]))


def every() -> Iterator[Process]:
    """Yield all processes that can be seen."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            process = find(int(name))
            if process is not None:
                yield process


def signal_all(pids: set[int], number: int) -> None:
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, number)


class Ending:
    """Ends a supervisor and everything below it, a step at a time and without starting any process.

    All are stopped until no new one shows, and killed only then: code that forks as fast as it can is never
    chased. The supervisor is the last, since whatever loses its parent becomes a child of it.

    Args:
        supervisor: What it was when it had begun, if it still was.
        began: When the command began, in clock ticks since boot. If the supervisor is gone by itself, for it
            can be killed from within the sandbox, then all that has come to the first process since is ended
            in its place.
        spared: Pids of the other supervisors.
    """

    def __init__(self, supervisor: Process | None, began: int, spared: set[int]) -> None:
        self._supervisor = supervisor
        self._began = began
        self._spared = spared
        self._stopped: set[int] = set()

    def step(self) -> bool:
        """Do some milliseconds' work. True: nothing is left."""
        alive = self._alive()
        below = alive - {self._supervisor.pid} if self._supervisor else alive
        new = alive - self._stopped
        if new:
            signal_all(new, signal.SIGSTOP)
            self._stopped |= new
        elif below:
            signal_all(below, signal.SIGKILL)
        else:
            signal_all(alive, signal.SIGKILL)
            return True
        return False

    def _alive(self) -> set[int]:
        processes = {process.pid: process for process in every()}
        roots = {
            pid
            for pid, process in processes.items()
            if process.parent == 1 and process.start >= self._began and pid not in self._spared
        }
        if self._supervisor is not None:
            supervisor = processes.get(self._supervisor.pid)
            if (
                supervisor is not None
                and supervisor.start == self._supervisor.start
                and not supervisor.is_gone
            ):
                roots = {supervisor.pid}
        children: dict[int, list[int]] = {}
        for process in processes.values():
            children.setdefault(process.parent, []).append(process.pid)
        found: set[int] = set()
        pending = list(roots)
        while pending:
            pid = pending.pop()
            found.add(pid)
            pending += children.get(pid, ())
        return {pid for pid in found if not processes[pid].is_gone}
