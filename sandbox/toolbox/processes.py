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
    from collections.abc import Callable

_AT_REST = "Tt"


class Process:
    """A process, as /proc/PID/stat has it. `start` is in clock ticks since boot."""

    __slots__ = ("parent", "pid", "start", "state", "threads")

    def __init__(self, pid: int, parent: int, state: str, threads: int, start: int) -> None:
        self.pid = pid
        self.parent = parent
        self.state = state
        self.threads = threads
        self.start = start

    @property
    def is_gone(self) -> bool:
        """Tell whether none of its threads goes on. The state is the first's, which may end before others."""
        return self.state == "X" or (self.state == "Z" and self.threads <= 1)


def now_in_ticks() -> int:
    """Return the time as /proc has it, a tick early: clock ticks since boot."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")) - 1


def find(pid: int) -> Process | None:
    """Look a process up. None: it is gone, or there is no descriptor left to look."""
    try:
        return _read(pid)
    except OSError:
        return None


def _read(pid: int) -> Process | None:
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        content = os.read(descriptor, 4096)
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)
    # The program's name is in parentheses and may contain anything, parentheses too.
    fields = content[content.rfind(b")") + 2 :].split()
    return Process(pid, int(fields[1]), fields[0].decode(), int(fields[17]), int(fields[19]))


def everything() -> dict[int, Process]:
    """Return all processes that can be seen, by pid.

    Raises:
        OSError: there is no descriptor or memory left to look.
    """
    found = (_read(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process is not None}


def newest_pid() -> int:
    """Return the pid that was given out last in this namespace. While it stays, nothing forks.

    It is the last field of proc(5)'s loadavg. gVisor always has 0 there.
    """
    descriptor = os.open("/proc/loadavg", os.O_RDONLY)
    try:
        return int(os.read(descriptor, 4096).split()[-1])
    finally:
        os.close(descriptor)


def signal_all(pids: set[int], number: int) -> None:
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, number)


def _signal_everything(number: int) -> None:
    with suppress(OSError):  # there is nothing else
        os.kill(-1, number)


class Ending:
    """Ends a supervisor and everything below it, a step at a time and without starting any process.

    What forks as fast as it can is in no list of processes: it has ended, and its child has begun, before the
    list is read. So a list counts if nothing has forked meanwhile. If something has, everything in the
    sandbox is stopped at once, which no fork evades (kill(2) with -1), until the list is read and what is on
    it is killed. Whatever is not the command's goes on then, some milliseconds later.

    The supervisor is the last to go, since whatever loses its parent becomes a child of it.

    Args:
        supervisor: What it was when it had begun, if it still was.
        began: When the command began, in clock ticks since boot. If the supervisor is gone by itself, for it
            can be killed from within the sandbox, then all that has come to the first process since is ended
            in its place.
        others: Pids of the other supervisors, whenever they have been made.
    """

    def __init__(self, supervisor: Process | None, began: int, others: Callable[[], set[int]]) -> None:
        self._supervisor = supervisor
        self._began = began
        self._others = others
        self._killed: set[int] = set()

    def step(self) -> bool:
        """Do some milliseconds' work. True: nothing is left.

        Raises:
            OSError: there is no descriptor or memory left to look; try again.
        """
        newest = newest_pid()
        processes = everything()
        new = self._alive(processes) - self._killed
        was_calm = newest_pid() == newest and all(
            process.parent in processes or process.parent == 0 for process in processes.values()
        )
        if was_calm and not (self._killed and new):
            return self._kill(processes)
        return self._kill_while_all_is_stopped(processes)

    def _kill_while_all_is_stopped(self, before: dict[int, Process]) -> bool:
        at_rest = {pid for pid, process in before.items() if process.state in _AT_REST}
        if self._supervisor is not None:
            at_rest.add(self._supervisor.pid)
        _signal_everything(signal.SIGSTOP)
        try:
            processes = everything()
        except OSError:
            _signal_everything(signal.SIGCONT)
            signal_all(at_rest, signal.SIGSTOP)
            raise
        is_done = self._kill(processes)
        signal_all(processes.keys() - at_rest, signal.SIGCONT)
        return is_done

    def _kill(self, processes: dict[int, Process]) -> bool:
        alive = self._alive(processes)
        supervisor = {self._supervisor.pid} & alive if self._supervisor else set()
        below = alive - supervisor
        if not below:
            signal_all(supervisor, signal.SIGKILL)
            return True
        signal_all(supervisor, signal.SIGSTOP)  # it would end with its shell, and leave the others to pid 1
        signal_all(below, signal.SIGKILL)
        self._killed |= below
        return False

    def _alive(self, processes: dict[int, Process]) -> set[int]:
        others = self._others()
        roots = {
            pid
            for pid, process in processes.items()
            if process.parent == 1 and process.start >= self._began and pid not in others
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
