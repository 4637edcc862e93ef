"""End every process that a command started: NAME VALUE stand for those with NAME=VALUE in their environment.

Also those that began after the first of them and have no NAME at all: what clears its environment to be
overlooked is not. First all are stopped until no new one shows, so that none can fork faster than it is
killed. Prints how many are left.
"""

# pathlib would double the time it takes to start, and standard output is the answer:
# ruff: noqa: PTH123, PTH208, T201

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

NAME, VALUE = sys.argv[1].encode(), sys.argv[2].encode()
PASSES = 200
PAUSE_SECONDS = 0.005
STATE, START_TIME = 0, 19  # of the fields in /proc/PID/stat that follow the program's name


def processes() -> Iterator[tuple[int, int, bytes | None]]:
    """Yield the pid, start time and value of NAME (None: without) of each process that may be killed."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in (1, os.getpid()):
            continue
        try:
            with open("/proc/" + entry + "/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            with open("/proc/" + entry + "/environ", "rb") as file:
                environment = dict(item.partition(b"=")[::2] for item in file.read().split(b"\0"))
        except OSError:
            continue
        if fields[STATE] not in (b"Z", b"X"):
            yield int(entry), int(fields[START_TIME]), environment.get(NAME)


def ours(since: float) -> tuple[set[int], float]:
    """Return the pids to kill, and when the command began as far as is known by now."""
    found = list(processes())
    since = min([start for _, start, value in found if value == VALUE] + [since])
    return {pid for pid, start, value in found if value == VALUE or (value is None and start >= since)}, since


def send(number: int, pids: set[int]) -> None:
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, number)


def main() -> None:
    since = float("inf")
    left: set[int] = set()
    stopped: set[int] = set()
    for _ in range(PASSES):
        left, since = ours(since)
        if left <= stopped:
            break
        send(signal.SIGSTOP, left)
        stopped |= left
    for _ in range(PASSES):
        left, since = ours(since)
        if not left:
            break
        send(signal.SIGKILL, left)
        time.sleep(PAUSE_SECONDS)
    print(len(left))


if __name__ == "__main__":
    main()
