"""How much of the disk a thread may take, and all threads of a user together.

Workspaces are measured, again and again while something may write to them. Whatever writes to one that is
full is ended. The limit can be exceeded by what the disk takes meanwhile, unless the file system has a quota
for it: see `sandbox.project_quota`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

from deepagents.backends.protocol import ExecuteResponse

from sandbox.channel import CANCEL_SECONDS, Channel
from sandbox.commands import run_command
from sandbox.disk import IMMEASURABLE, is_nearly_full
from sandbox.disk_ledger import DISK_NEARLY_FULL, Command, DiskLedger, Workspace
from sandbox.errors import DiskFullError, SandboxError
from sandbox.replies import number
from sandbox.settings import SandboxSettings
from sandbox.workspace import Workspaces
from storage.ids import SessionId

logger = logging.getLogger(__name__)

RESERVE_BYTES = 2 << 30
"""What stays free on the workspaces' disk: the database may be on it too."""

SLACK_BYTES = 16 << 20
"""How much commands may add to a full workspace: to free space takes some, now and then. It is counted from
the least that the workspace has taken since it was full. After more, no command runs, and files have to be
deleted by the file operation."""

_BUSY_SECONDS = 1
_QUIET_SECONDS = 5
_LEAST_SECONDS = 0.2  # between two measurements, and as long as the last one took
_GUARD_SECONDS = 1
_UNLINKED_SECONDS = 30
_PROBE_SECONDS = 0.5
_AFTER_IDLE_SECONDS = 60


class DiskLimits:
    """The limits, as one event loop keeps them.

    Args:
        settings: What they are.
        workspaces: What they are for.
        end: Ends everything in a thread's sandbox.
    """

    def __init__(
        self,
        settings: SandboxSettings,
        workspaces: Workspaces,
        end: Callable[[SessionId], Awaitable[object]],
    ) -> None:
        self._ledger = DiskLedger(settings, workspaces)
        self._root = workspaces.root
        self._watched_seconds = settings.sandbox_idle_seconds + _AFTER_IDLE_SECONDS
        self._end = end
        self._tasks: set[asyncio.Task[None]] = set()
        self._guard: asyncio.Task[None] | None = None
        self._is_low = False

    async def run(
        self, session: SessionId, channel: Channel, command: str, seconds: int | None
    ) -> ExecuteResponse:
        """Run a command as `run_command` does, and watch what it writes.

        Raises:
            DiskFullError: there is so little room, or so much in the workspace, that it could not be watched.
            SandboxError: as `run_command`.
        """
        workspace = await self.watch(session)
        largest = await self._largest_file(workspace)
        running = Command(channel)
        workspace.commands.add(running)
        workspace.has_changed.set()
        try:
            response = await run_command(channel, command, seconds, largest_file=largest)
        except SandboxError:
            if running.verdict is None:
                raise
            response = ExecuteResponse("", exit_code=1)
        finally:
            running.has_ended.set()
            workspace.commands.discard(running)
            workspace.used_at = time.monotonic()
            workspace.has_changed.set()
        if running.verdict is None:
            return response
        await workspace.is_calm.wait()
        return replace(response, output=f"{response.output}\n[Ended. {running.verdict}]")

    async def admit(self, session: SessionId, size: int) -> None:
        """Let something of a size be written.

        Raises:
            DiskFullError: there is no room for it.
        """
        workspace = await self.watch(session)
        if workspace.used is None or self._ledger.is_full(workspace, size):
            await self._ledger.measure(workspace)
        await self._refuse_if_low()
        if self._ledger.is_full(workspace, size):
            raise DiskFullError(self._ledger.problem(workspace))
        workspace.used = (workspace.used or 0) + size

    async def watch(self, session: SessionId) -> Workspace:
        """Keep watch over a workspace from now on, until its sandbox has been idle for long.

        For whatever is done in a sandbox, reading too: a background server goes on when it is resumed.
        """
        workspace = self._ledger.open(session)
        await workspace.is_calm.wait()
        workspace.used_at = time.monotonic()
        if not workspace.is_watched:
            workspace.watch = self._start(self._look_after(workspace))
        if self._guard is None or self._guard.done():
            self._guard = self._start(self._guard_reserve())
        if self._ledger.needs_survey(session.owner):
            self._start(self._ledger.survey(session.owner))
        return workspace

    def changed(self, session: SessionId) -> None:
        """Say that something was written or deleted."""
        if workspace := self._ledger.get(session):
            workspace.has_changed.set()

    def forget(self, session: SessionId) -> None:
        """Say that a workspace is gone."""
        workspace = self._ledger.get(session)
        if workspace and workspace.watch:
            workspace.watch.cancel()
        self._ledger.forget(session)

    async def close(self) -> None:
        """End the watching."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._ledger.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _largest_file(self, workspace: Workspace) -> int:
        """Return how long a file may be for a command to write to it.

        Raises:
            DiskFullError: no command may run.
        """
        await self._refuse_if_low()
        if workspace.floor is None:
            return self._ledger.most_each
        await self._ledger.measure(workspace)
        if not self._ledger.is_full(workspace):
            return self._ledger.most_each
        if (workspace.used or 0) > min(workspace.floor + SLACK_BYTES, IMMEASURABLE - 1):
            raise DiskFullError(self._ledger.problem(workspace))
        return SLACK_BYTES

    async def _look_after(self, workspace: Workspace) -> None:
        """Measure a workspace as long as something may write to it, which background servers also may."""
        while workspace.commands or time.monotonic() - workspace.used_at < self._watched_seconds:
            began, before = time.monotonic(), workspace.used
            workspace.has_changed.clear()
            try:
                await self._check(workspace)
            except SandboxError as error:
                logger.warning("What fills %s could not be ended: %s", workspace.session, error)
            except Exception:  # the watch must go on
                logger.exception("A workspace could not be watched")
            took = time.monotonic() - began
            await asyncio.sleep(max(took, _LEAST_SECONDS))
            is_quiet = not workspace.commands and workspace.used == before
            pause = max(_QUIET_SECONDS, 20 * took) if is_quiet else _BUSY_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await workspace.has_changed.wait()

    async def _check(self, workspace: Workspace) -> None:
        before = workspace.used
        await self._ledger.measure(workspace)
        if workspace.used is None:
            return
        if not self._ledger.is_full(workspace):
            # What has been seen already may be ended before the sandbox is asked, which may not answer.
            await self._probe(workspace)
        used = workspace.used + workspace.unlinked
        if used <= self._ledger.most(workspace):
            workspace.floor = None
            return
        floor = used if before is None else before if workspace.floor is None else workspace.floor
        if used > floor + SLACK_BYTES:
            await self._end_all(workspace, self._ledger.problem(workspace))
            await self._ledger.measure(workspace)
        workspace.floor = min(workspace.used, workspace.floor or IMMEASURABLE)

    async def _probe(self, workspace: Workspace) -> None:
        """Ask the sandbox for what its commands hold in files that are deleted but still open.

        Only it can tell, and only while a command runs: otherwise it may be paused, and that would wake it.
        An answer that is late is taken when it comes; until then what it said last counts.
        """
        if not workspace.commands:
            workspace.unlinked = 0
            return
        if workspace.probe is None or workspace.probe.done():
            channel = next(iter(workspace.commands)).channel
            workspace.probe = self._start(_ask_unlinked(workspace, channel))
        await asyncio.wait({workspace.probe}, timeout=_PROBE_SECONDS)

    async def _guard_reserve(self) -> None:
        """End everything that may write when hardly anything is left of the disk."""
        ended: set[Workspace] = set()
        while watched := self._ledger.watched():
            self._is_low = await self._look_if_low()
            if not self._is_low:
                ended.clear()
            elif new := [workspace for workspace in watched if workspace not in ended]:
                logger.warning("Less than %d MiB are free for workspaces", RESERVE_BYTES >> 20)
                ended.update(new)
                ends = (self._end_all(workspace, DISK_NEARLY_FULL) for workspace in new)
                for problem in await asyncio.gather(*ends, return_exceptions=True):
                    if problem:
                        logger.warning("A sandbox could not be ended: %s", problem)
            await asyncio.sleep(_GUARD_SECONDS)

    async def _refuse_if_low(self) -> None:
        if self._is_low:
            self._is_low = await self._look_if_low()
        if self._is_low:
            raise DiskFullError(DISK_NEARLY_FULL)

    async def _look_if_low(self) -> bool:
        try:
            return await asyncio.to_thread(is_nearly_full, self._root, RESERVE_BYTES)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):  # there is no workspace yet
                logger.warning("What is free for workspaces is unknown: %s", error)
            return False

    async def _end_all(self, workspace: Workspace, verdict: str) -> None:
        """End the commands, so that their output is not lost, and then whatever else runs in the sandbox.

        The first is the toolbox's work, and hostile code may have replaced that; the second is the engine's.
        """
        workspace.is_calm.clear()
        try:
            commands = list(workspace.commands)
            with suppress(TimeoutError, SandboxError):
                async with asyncio.timeout(CANCEL_SECONDS):
                    for command in commands:
                        command.verdict = verdict
                    for channel in {command.channel for command in commands}:
                        await channel.end_all("exec")
                    for command in commands:
                        await command.has_ended.wait()
            await self._end(workspace.session)
        finally:
            workspace.is_calm.set()


async def _ask_unlinked(workspace: Workspace, channel: Channel) -> None:
    with suppress(SandboxError):
        answer, _ = await channel.call("unlinked", {}, timeout=_UNLINKED_SECONDS)
        workspace.unlinked = min(number(answer, "bytes"), IMMEASURABLE)
