"""The directories that the sandboxes work in: `{root}/{owner}/{owner}-{thread id}`, one per thread.

What is in a thread's directory was written by code that nobody trusts. Only removal looks into it, and what
measures it (`sandbox.disk`): by descriptors and never through a symbolic link.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from sandbox import project_quota
from sandbox.directories import DIRECTORY, open_directory
from sandbox.disk import SMALLEST_BYTES
from sandbox.errors import SandboxError
from storage.ids import SessionId

logger = logging.getLogger(__name__)

_PASS_THROUGH = 0o711
_PRIVATE = 0o700
_BATCH = 1000
# Not the event loop's own threads: a million files take a minute, and others wait for those.
_removers = ThreadPoolExecutor(2, "workspace-removal")
_TRASH = ".trash"  # no username begins with a dot


@dataclass(frozen=True, slots=True)
class Workspaces:
    """The threads' directories, as this server sees them and as the Docker host does."""

    root: Path
    root_on_docker_host: Path
    most_each: int = 0
    """Bytes that the file system is to let each take, where it can; 0: as many as there are."""

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
            await _in_its_turn(lambda: self._remove_trashed(trashed))

    async def sweep(self) -> None:
        """Finish the removals that an earlier process did not come to the end of."""
        await _in_its_turn(self._sweep)

    def _prepare(self, session: SessionId, uid: int, gid: int) -> None:
        directory = self.path(session)
        _make_directory(self.root, _PASS_THROUGH)
        _make_directory(directory.parent, _PASS_THROUGH)
        is_new = _make_directory(directory, _PRIVATE)
        descriptor = os.open(directory, DIRECTORY)
        try:
            if self.most_each:
                names = self.most_each // SMALLEST_BYTES
                project_quota.limit(descriptor, self.most_each, names, is_new=is_new)
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
        trash = os.open(self.root / _TRASH, DIRECTORY)
        try:
            project = _project_of(name, trash)
            remove_tree(trash, name)
            if project is not None:
                project_quota.release(trash, project)
        except OSError as error:
            logger.warning("A removed workspace is still partly in %s: %s", self.root / _TRASH / name, error)
        finally:
            os.close(trash)


async def _in_its_turn(work: Callable[[], None]) -> None:
    await asyncio.get_running_loop().run_in_executor(_removers, work)


def remove_tree(parent: int, name: str) -> None:
    """Remove `name` in the directory that the descriptor `parent` is open on, and everything below it.

    Each subdirectory is moved up into `parent` before it is emptied. So neither depth nor long paths matter,
    no more than two descriptors are open, and nothing is reached by a path that could lead elsewhere. However
    many there are, few names are held at once.

    Raises:
        OSError: something could not be removed; the rest is.
    """
    failure: OSError | None = None
    pending = [name]
    while pending:
        directory = pending[-1]
        try:
            moved, problem = _empty(parent, directory)
            failure = failure or problem
            if moved:
                pending += moved
                continue
            os.rmdir(directory, dir_fd=parent)
        except NotADirectoryError:
            os.unlink(directory, dir_fd=parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            failure = failure or error
        pending.pop()
    if failure is not None:
        raise failure


def _empty(parent: int, name: str) -> tuple[list[str], OSError | None]:
    """Unlink the files in a directory and move some subdirectories up.

    Returns their new names, of which there are none when no more can be done, and what was in the way.
    """
    moved: list[str] = []
    problem: OSError | None = None
    descriptor = open_directory(name, parent)
    try:
        has_shrunk = True
        while has_shrunk and len(moved) < _BATCH:
            has_shrunk, problem = False, None
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            moved.append(_move_up(entry.name, descriptor, parent, name))
                        else:
                            os.unlink(entry.name, dir_fd=descriptor)
                        has_shrunk = True
                    except OSError as error:
                        problem = error
                    if len(moved) == _BATCH:
                        break
    finally:
        os.close(descriptor)
    return moved, problem


def _move_up(entry: str, directory: int, parent: int, name: str) -> str:
    os.close(open_directory(entry, directory))  # to be moved it has to be open to its owner
    new_name = f"{name.partition('.')[0]}.{uuid4().hex}"
    os.rename(entry, new_name, src_dir_fd=directory, dst_dir_fd=parent)
    return new_name


def _project_of(name: str, parent: int) -> int | None:
    try:
        directory = open_directory(name, parent)
    except OSError:
        return None
    try:
        return project_quota.project_of(directory)
    finally:
        os.close(directory)


def _make_directory(path: Path, mode: int) -> bool:
    """Make a directory unless there is one. Tells whether it was made."""
    try:
        path.mkdir(mode)
    except FileExistsError:
        return False
    except FileNotFoundError:
        path.mkdir(mode, parents=True, exist_ok=True)
    path.chmod(mode)  # whatever the umask is
    return True
