"""The directories that the sandboxes work in: `{root}/{owner}/{owner}-{thread id}`, one per thread.

What is in a thread's directory was written by code that nobody trusts. Only removal looks into it, by
descriptors and never through a symbolic link.
"""

import asyncio
import logging
import os
import stat
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from uuid import uuid4

from sandbox.errors import SandboxError
from storage.ids import SessionId

logger = logging.getLogger(__name__)

_PASS_THROUGH = 0o711
_PRIVATE = 0o700
_BATCH = 1000
_TRASH = ".trash"  # no username begins with a dot
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Workspaces:
    """The threads' directories, as this server sees them and as the Docker host does."""

    root: Path
    root_on_docker_host: Path

    def path(self, session: SessionId) -> Path:
        return self.root / session.owner / str(session)

    def path_on_docker_host(self, session: SessionId) -> Path:
        return self.root_on_docker_host / session.owner / str(session)

    async def prepare(self, session: SessionId, uid: int, gid: int) -> None:
        """Make a thread's directory, private to `uid`, unless it exists.

        Raises:
            SandboxError: it cannot be made, or something else has its name.
        """
        try:
            await asyncio.to_thread(self._prepare, session, uid, gid)
        except OSError as error:
            raise SandboxError(f"The workspace cannot be made: {error}") from error

    async def discard(self, session: SessionId) -> None:
        """Remove a thread's directory and all in it. It is gone from its place at once. Safe to repeat."""
        if trashed := await asyncio.to_thread(self._to_trash, session):
            await asyncio.to_thread(self._remove_trashed, trashed)

    async def sweep(self) -> None:
        """Finish the removals that an earlier process did not come to the end of."""
        await asyncio.to_thread(self._sweep)

    def _prepare(self, session: SessionId, uid: int, gid: int) -> None:
        directory = self.path(session)
        _make_directory(self.root, _PASS_THROUGH)
        _make_directory(directory.parent, _PASS_THROUGH)
        _make_directory(directory, _PRIVATE)
        descriptor = os.open(directory, _DIRECTORY)
        try:
            # Every time: an earlier process may have ended in between, and its owner may have opened it to
            # all.
            os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, _PRIVATE)
        finally:
            os.close(descriptor)

    def _to_trash(self, session: SessionId) -> str | None:
        name = f"{session}.{uuid4().hex}"
        try:
            _make_directory(self.root / _TRASH, _PRIVATE)
            self.path(session).rename(self.root / _TRASH / name)
        except FileNotFoundError:
            return None
        return name

    def _sweep(self) -> None:
        try:
            leftovers = list((self.root / _TRASH).iterdir())
        except FileNotFoundError:
            return
        for leftover in leftovers:
            self._remove_trashed(leftover.name)

    def _remove_trashed(self, name: str) -> None:
        trash = os.open(self.root / _TRASH, _DIRECTORY)
        try:
            remove_tree(trash, name)
        except OSError as error:
            logger.warning("A removed workspace is still partly in %s: %s", self.root / _TRASH / name, error)
        finally:
            os.close(trash)


def remove_tree(parent: int, name: str) -> None:
    """Remove `name` in the directory that the descriptor `parent` is open on, and everything below it.

    Each subdirectory is moved up into `parent` before it is emptied. So neither depth nor long paths matter,
    no more than two descriptors are open, and nothing is reached by a path that could lead elsewhere.

    Raises:
        OSError: something could not be removed; the rest is.
    """
    failure: OSError | None = None
    pending = [name]
    while pending:
        directory = pending.pop()
        try:
            pending += _empty(parent, directory)
            os.rmdir(directory, dir_fd=parent)
        except NotADirectoryError:
            os.unlink(directory, dir_fd=parent)
        except FileNotFoundError:
            continue
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure


def _empty(parent: int, name: str) -> list[str]:
    """Unlink the files in a directory, move its subdirectories up, and return their new names."""
    _let_owner_in(parent, name)
    moved = []
    descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        while found := _first_entries(descriptor):
            for entry_name, is_directory in found:
                if is_directory:
                    _let_owner_in(descriptor, entry_name)
                    moved.append(f"{name.partition('.')[0]}.{uuid4().hex}")
                    os.rename(entry_name, moved[-1], src_dir_fd=descriptor, dst_dir_fd=parent)
                else:
                    os.unlink(entry_name, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    return moved


def _first_entries(directory: int) -> list[tuple[str, bool]]:
    """Return the names of some entries, and which are directories: a list of all may not fit in memory."""
    with os.scandir(directory) as entries:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in islice(entries, _BATCH)]


def _let_owner_in(parent: int, name: str) -> None:
    """Undo what a program did to its own directory with chmod. Root needs no permission."""
    if os.geteuid() == 0:
        return
    mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    if stat.S_ISDIR(mode) and mode & _PRIVATE != _PRIVATE:
        os.chmod(name, _PRIVATE, dir_fd=parent)


def _make_directory(path: Path, mode: int) -> None:
    try:
        path.mkdir(mode)
    except FileExistsError:
        return
    except FileNotFoundError:
        path.mkdir(mode, parents=True, exist_ok=True)
    path.chmod(mode)  # whatever the umask is
