"""How much of a disk a directory takes, while hostile code writes to it.

It is measured from outside: the figures of a sandbox could be forged, and a thread without a container counts
too. That is safe since nothing is opened but directories, by descriptors and never through a symbolic link;
all else is only looked at.
"""

import os
import stat
from itertools import islice
from pathlib import Path

from sandbox.directories import DIRECTORY, open_directory

SMALLEST_BYTES = 4096
"""What each name counts at least: empty files and further links cost something too. It also bounds how long
it takes to find that a workspace is full."""

MOST_NAMES = 1_000_000
DEEPEST = 250
"""A directory with more names, or more levels, counts as IMMEASURABLE: it would take too long, or too many
descriptors."""

IMMEASURABLE = 1 << 62
"""More bytes than any limit."""

_RESERVED_PART = 50  # of a file system's inodes, which it has a fixed number of, or 0
_BATCH = 1000
_BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's is


def disk_usage(directory: Path) -> int:
    """Return how many bytes a directory takes on the disk with all that is in it, or IMMEASURABLE.

    Holes in files take nothing, and a file with several names counts once. What is moved meanwhile may be
    counted twice or not at all. A file that was deleted but is still open is not seen.

    It takes about 5 µs for each name. A directory that its owner may not enter is opened to him again, unless
    this is root, who needs no permission.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be measured.
    """
    parent = os.open(directory.parent, DIRECTORY)
    try:
        top = open_directory(directory.name, parent)
    finally:
        os.close(parent)
    try:
        tree = _Tree(os.fstat(top).st_dev)
        return tree.used if tree.add(top, DEEPEST) else IMMEASURABLE
    finally:
        os.close(top)


def is_nearly_full(directory: Path, reserve: int) -> bool:
    """Tell whether a directory's file system has fewer than `reserve` bytes left, or hardly any inodes."""
    status = os.statvfs(directory)
    has_inodes = not status.f_files or status.f_favail > status.f_files // _RESERVED_PART
    return not has_inodes or status.f_bavail * status.f_frsize < reserve


class _Tree:
    """What has been counted so far."""

    def __init__(self, device: int) -> None:
        self.used = 0
        self._names = 0
        self._device = device

    def add(self, directory: int, levels: int) -> bool:
        """Count what is in an open directory. False: it is too much to be counted."""
        if not levels:
            return False
        with os.scandir(directory) as entries:
            while batch := list(islice(entries, _BATCH)):
                if len(batch) < _BATCH:
                    entries.close()  # each level has one descriptor open then, not two
                self._names += len(batch)
                if self._names > MOST_NAMES:
                    return False
                for name in self._count(batch):
                    if not self._add_below(directory, name, levels):
                        return False
        return True

    def _count(self, batch: list[os.DirEntry[str]]) -> list[str]:
        """Count entries, and return which of them are directories."""
        directories = []
        for entry in batch:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            size = status.st_blocks * _BLOCK_BYTES
            if stat.S_ISDIR(status.st_mode):
                directories.append(entry.name)
            else:
                # All names of a file are in its workspace, so each has its share.
                size //= max(1, status.st_nlink)
            self.used += max(size, SMALLEST_BYTES)
        return directories

    def _add_below(self, parent: int, name: str, levels: int) -> bool:
        try:
            directory = open_directory(name, parent)
        except (FileNotFoundError, NotADirectoryError):  # moved, or something else by now
            return True
        try:
            return os.fstat(directory).st_dev != self._device or self.add(directory, levels - 1)
        finally:
            os.close(directory)
