"""Directories of Warren's own: Postgres and the sandboxes pass through them as other users than root."""

import os
from pathlib import Path


def make_passable(directory: Path) -> None:
    """Make a directory, and what is missing above it, unless it is there.

    Whatever the umask, root's are 0711, and anybody else's, for whom everything runs as themselves, 0700: the
    secrets within have modes of their own.

    Raises:
        OSError: it cannot be made there.
    """
    mode = 0o711 if os.geteuid() == 0 else 0o700
    for path in (*reversed(directory.parents), directory):
        if not path.exists():
            path.mkdir(mode, exist_ok=True)  # another process may make it, too
            path.chmod(mode)
