"""What each workspace takes of the disk, as far as it has been measured, and what it may take."""

import asyncio
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

from sandbox.channel import Channel
from sandbox.disk import IMMEASURABLE, disk_usage
from sandbox.settings import SandboxSettings
from sandbox.workspace import Workspaces
from storage.errors import InvalidSessionIdError
from storage.ids import SessionId, parse_session_id

logger = logging.getLogger(__name__)

_MIB = 1 << 20
_SURVEY_SECONDS = 600
_THREADS = 4
_ADVICE = "Delete files first; reading and deleting still work."

DISK_NEARLY_FULL = f"The server's disk is nearly full. {_ADVICE}"


class Command:
    """A command that runs. `verdict` says why it is being ended."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.verdict: str | None = None
        self.has_ended = asyncio.Event()


@dataclass(slots=True, eq=False)
class Workspace:
    """What is known of a thread's directory.

    Attributes:
        used: what was measured, None until then.
        unlinked: what the sandbox says that deleted files still take.
    """

    session: SessionId
    used: int | None = None
    unlinked: int = 0
    probe: asyncio.Task[None] | None = None
    floor: int | None = None  # the least since it was full; None: it is not
    measured_at: float = 0
    used_at: float = 0
    commands: set[Command] = field(default_factory=set)
    watch: asyncio.Task[None] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    has_changed: asyncio.Event = field(default_factory=asyncio.Event)
    is_calm: asyncio.Event = field(default_factory=asyncio.Event)  # nobody is ending all that runs in it

    def __post_init__(self) -> None:
        self.is_calm.set()

    @property
    def is_watched(self) -> bool:
        return self.watch is not None and not self.watch.done()


class DiskLedger:
    """Measures workspaces, each once at a time, and adds up those of a user."""

    def __init__(self, settings: SandboxSettings, workspaces: Workspaces) -> None:
        self.most_each = settings.sandbox_disk_mb * _MIB or IMMEASURABLE
        self._most_of_user = settings.user_disk_mb * _MIB or IMMEASURABLE
        self._workspaces = workspaces
        self._known: dict[SessionId, Workspace] = {}
        self._surveyed_at: dict[str, float] = {}
        self._pool = ThreadPoolExecutor(_THREADS, "disk")
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def open(self, session: SessionId) -> Workspace:
        return self._known.setdefault(session, Workspace(session))

    def get(self, session: SessionId) -> Workspace | None:
        return self._known.get(session)

    def forget(self, session: SessionId) -> None:
        self._known.pop(session, None)

    def watched(self) -> list[Workspace]:
        return [workspace for workspace in self._known.values() if workspace.is_watched]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def most(self, workspace: Workspace) -> int:
        """Return how many bytes a workspace may take, given what the user's others do."""
        return max(0, min(self.most_each, self._most_of_user - self._others(workspace)))

    def is_full(self, workspace: Workspace, more: int = 0) -> bool:
        return (workspace.used or 0) + more > self.most(workspace)

    def problem(self, workspace: Workspace) -> str:
        """Say what is full, and what can be done."""
        used = (workspace.used or 0) + workspace.unlinked
        if used >= IMMEASURABLE:
            return "The workspace has too many files, or directories too deep, to be measured. " + _ADVICE
        open_files = ", deleted files that are still open included," if workspace.unlinked else ""
        if self.most(workspace) < self.most_each:
            total, most = (used + self._others(workspace)) // _MIB, self._most_of_user // _MIB
            return f"Your workspaces take {total} MiB of the {most} MiB that they may together. {_ADVICE}"
        most = self.most_each // _MIB
        return f"The workspace takes {used // _MIB} MiB{open_files} of the {most} MiB that it may. {_ADVICE}"

    async def measure(self, workspace: Workspace) -> None:
        """Measure a workspace, unless that was begun after this was asked for."""
        asked_at = time.monotonic()
        async with workspace.lock:
            if workspace.measured_at > asked_at:
                return
            began = time.monotonic()
            try:
                workspace.used = await self._usage(workspace.session)
            except FileNotFoundError:
                workspace.used = 0
            except PermissionError:  # it is being closed again as fast as it is opened
                workspace.used = IMMEASURABLE
            except OSError as error:
                logger.warning("The workspace %s cannot be measured: %s", workspace.session, error)
                return
            workspace.measured_at = began

    def needs_survey(self, owner: str) -> bool:
        """Tell whether a user's workspaces have not been surveyed for long, and count this as one if so."""
        now = time.monotonic()
        last = self._surveyed_at.get(owner, -math.inf)
        if self._most_of_user == IMMEASURABLE or now - last < _SURVEY_SECONDS:
            return False
        self._surveyed_at[owner] = now
        return True

    async def survey(self, owner: str) -> None:
        """Measure the workspaces of a user that nobody watches here: other processes may use them."""
        sessions = await asyncio.to_thread(_sessions, self._workspaces.root / owner)
        for session, workspace in list(self._known.items()):
            if session.owner == owner and session not in sessions and not workspace.is_watched:
                self.forget(session)
        for session in sessions:
            workspace = self.open(session)
            if not workspace.is_watched:
                await self.measure(workspace)

    def _others(self, workspace: Workspace) -> int:
        return sum(
            other.used or 0
            for session, other in self._known.items()
            if session.owner == workspace.session.owner and other is not workspace
        )

    async def _usage(self, session: SessionId) -> int:
        if self.most_each == self._most_of_user == IMMEASURABLE:
            return 0
        path = self._workspaces.path(session)
        # One at a time of each user, whose trees may take seconds.
        async with self._turns.setdefault(session.owner, asyncio.Lock()):
            return await asyncio.get_running_loop().run_in_executor(self._pool, disk_usage, path)


def _sessions(directory: Path) -> set[SessionId]:
    """Return the threads that have a workspace in a user's directory."""
    found = set()
    with suppress(FileNotFoundError):
        for entry in directory.iterdir():
            with suppress(InvalidSessionIdError):
                found.add(parse_session_id(entry.name))
    return found
