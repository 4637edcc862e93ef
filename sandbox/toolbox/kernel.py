"""What the standard library has no call for."""

# pathlib would cost memory in every sandbox:
# ruff: noqa: PTH123

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager

TYPE_CHECKING = False  # importing `typing` would cost memory
if TYPE_CHECKING:
    from collections.abc import Iterator

# From linux/prctl.h
_SET_DUMPABLE, _SET_NAME, _SET_CHILD_SUBREAPER = 4, 15, 36

_ARGUMENTS_START, _ARGUMENTS_END = 45, 46  # of the fields in /proc/PID/stat that follow the program's name

# From malloc.h
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
_LARGE_BYTES = 128 << 10

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int | bytes) -> None:
    if _libc.prctl(option, argument, 0, 0, 0):
        _fail()


def call(number: int, *arguments: object) -> None:
    """Make a system call by its number.

    Raises:
        OSError: it failed.
    """
    if _libc.syscall(number, *arguments) < 0:
        _fail()


def _fail() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def adopt_orphans() -> None:
    """Become the parent of every process below this one that loses its own."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def seal() -> None:
    """Keep code of the same user out of this process: its memory, its descriptors, and ptrace."""
    _prctl(_SET_DUMPABLE, 0)


@contextmanager
def own_files_accessible() -> Iterator[None]:
    """Let this sealed process open its own files in /proc for the length of a block."""
    _prctl(_SET_DUMPABLE, 1)
    try:
        yield
    finally:
        seal()


def rename(name: bytes) -> None:
    """Change what `ps` and `pkill` take this process for, and those that are forked from it.

    An agent's `pkill python` must not hit a supervisor, nor `ps` print this whole program.
    """
    _prctl(_SET_NAME, name)
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[_ARGUMENTS_START]), int(fields[_ARGUMENTS_END])
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, name, min(len(name), end - start))


def give_memory_back() -> None:
    """Have large pieces of memory go back to the system when freed, rather than be kept for the next.

    For the C library of GNU; what others have is left as it is.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        _libc.mallopt(_ARENA_MAX, 1)
