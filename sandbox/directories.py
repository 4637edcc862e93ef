"""Opening directories in a tree that hostile code can change at any moment."""

import os
from pathlib import Path

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Flags that open a directory and nothing else, nor one that a symbolic link leads to."""

_ENTERABLE = 0o700


def open_directory(name: str, parent: int) -> int:
    """Open a directory in the one that the descriptor `parent` is open on.

    One that its owner may not enter is opened to him again, unless this is root, who needs no permission.

    Raises:
        FileNotFoundError: there is none.
        NotADirectoryError: it is something else, a symbolic link for example.
        OSError: it cannot be opened.
    """
    try:
        directory = os.open(name, DIRECTORY, dir_fd=parent)
    except PermissionError:
        # By its descriptor it is this one that is changed, even if something else takes its name.
        handle = os.open(name, os.O_PATH | DIRECTORY, dir_fd=parent)
        try:
            Path(f"/proc/self/fd/{handle}").chmod(_ENTERABLE)
            return os.open(".", DIRECTORY, dir_fd=handle)
        finally:
            os.close(handle)
    if os.geteuid() != 0 and os.fstat(directory).st_mode & _ENTERABLE != _ENTERABLE:
        os.fchmod(directory, _ENTERABLE)
    return directory
