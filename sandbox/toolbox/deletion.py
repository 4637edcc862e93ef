"""Deleting what may be a tree of any shape, with any names and any permissions."""

# pathlib would cost memory in every sandbox, and knows no directory descriptors:
# ruff: noqa: PTH106, PTH108, PTH116, PTH119

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from itertools import islice

from sandbox.toolbox.contents import LONGEST_SECONDS, error_code

TYPE_CHECKING = False  # importing `typing` would cost memory
if TYPE_CHECKING:
    from typing import Any

_BATCH = 1000
_DEPTH = 32


def delete_path(args: dict[str, Any], _: bytes = b"") -> tuple[dict[str, Any], bytes]:
    """Delete a file, or a directory with all that is in it. Links are deleted, not followed.

    Args: path. Returns `{"done": bool}`; if it is false, time was up, and another call goes on.
    """
    path = args["path"]
    stripped = path.rstrip("/")
    if os.path.basename(stripped) in ("", ".", "..") and path:
        return {"error": "refusing to delete '.', '..' or '/'"}, b""
    try:
        os.stat(path, follow_symlinks=path != stripped)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {"error": "file_not_found"}, b""
    except OSError as error:
        return {"error": error_code(error)}, b""
    try:
        return {"done": _delete(stripped)}, b""
    except OSError as error:
        return {"error": error_code(error)}, b""


def _delete(path: str) -> bool:
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
        return True
    descriptor = _open_directory(path, None)
    try:
        is_empty = _Tree(descriptor).clear()
    finally:
        os.close(descriptor)
    if is_empty:
        os.rmdir(path)
    return is_empty


class _Tree:
    """A directory that is being emptied, without paths: they could be too long, or be swapped."""

    def __init__(self, descriptor: int) -> None:
        self._top = descriptor
        self._deadline = time.monotonic() + LONGEST_SECONDS

    def clear(self) -> bool:
        """Delete all that is in there; False if time was up.

        Raises:
            OSError: something cannot be deleted. The rest has been.
        """
        try:
            self._clear(self._top, _DEPTH)
        except TimeoutError:
            return False
        return True

    def _clear(self, descriptor: int, depth: int) -> None:
        """Delete what is in a directory, batch by batch, as long as that gets anywhere."""
        while True:
            with os.scandir(descriptor) as entries:
                batch = [
                    (entry.name, entry.is_dir(follow_symlinks=False)) for entry in islice(entries, _BATCH)
                ]
            problem: OSError | None = None
            deleted = 0
            for name, is_directory in batch:
                if time.monotonic() > self._deadline:
                    raise TimeoutError
                try:
                    if is_directory:
                        self._clear_directory(name, descriptor, depth)
                    else:
                        os.unlink(name, dir_fd=descriptor)
                    deleted += 1
                except FileNotFoundError:
                    deleted += 1
                except TimeoutError:
                    raise
                except OSError as error:
                    problem = error
            if not deleted:
                if problem:
                    raise problem
                return

    def _clear_directory(self, name: str, parent: int, depth: int) -> None:
        """Delete a directory; one that is deep down is moved up first, or there were too many open ones."""
        if depth == 0:
            os.chmod(name, stat.S_IRWXU, dir_fd=parent)
            os.rename(name, f".warren-{os.urandom(8).hex()}", src_dir_fd=parent, dst_dir_fd=self._top)
            return
        descriptor = _open_directory(name, parent)
        try:
            self._clear(descriptor, depth - 1)
        finally:
            os.close(descriptor)
        os.rmdir(name, dir_fd=parent)


def _open_directory(name: str, parent: int | None) -> int:
    """Open a directory, and first let its owner into it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=parent)
    except PermissionError:
        os.chmod(name, stat.S_IRWXU, dir_fd=parent)
        descriptor = os.open(name, flags, dir_fd=parent)
    with suppress(OSError):
        if os.fstat(descriptor).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            os.fchmod(descriptor, stat.S_IRWXU)
    return descriptor
