"""Locks between processes, as flocks on files: a process that dies, however it dies, has given them up.

They are ended by unlocking, not only by closing, since a forked child may hold a copy of the descriptor.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import EmbeddedPostgresError

POLL_SECONDS = 0.01


@contextmanager
def hold_exclusively(path: Path, timeout: float) -> Iterator[None]:
    """Hold the lock at `path` alone, waiting for it at most `timeout` seconds.

    Raises:
        EmbeddedPostgresError: when another process still holds it then.
    """
    descriptor = _open(path)
    try:
        _wait_for(descriptor, fcntl.LOCK_EX, path, timeout)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


class Registration:
    """A share in the lock at `path`, held until `end` or until the process is gone.

    Raises:
        EmbeddedPostgresError: when another process still holds it exclusively after `timeout` seconds.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self._pid = os.getpid()
        self._descriptor = _open(path)
        try:
            _wait_for(self._descriptor, fcntl.LOCK_SH, path, timeout)
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def is_inherited(self) -> bool:
        """True in a forked child, where it is only a copy of the parent's."""
        return self._pid != os.getpid()

    def is_last(self) -> bool:
        """Tell whether nobody else has a share. May give up this one: only `end` may follow."""
        return _try_lock(self._descriptor, fcntl.LOCK_EX)

    def end(self) -> None:
        """Give the share up; in a forked child only drop the copy, which leaves the parent its share."""
        if not self.is_inherited:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _wait_for(descriptor: int, kind: int, path: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not _try_lock(descriptor, kind):
        if time.monotonic() > deadline:
            raise EmbeddedPostgresError(f"Another process has held {path} for {timeout:.0f} s.")
        time.sleep(POLL_SECONDS)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
