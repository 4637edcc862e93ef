"""The life of the sandbox containers: one per thread, made when first needed, gone with the thread."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from weakref import WeakValueDictionary

from aiodocker.containers import DockerContainer

from sandbox.capacity import Admissions, Capacity
from sandbox.channel import Channel
from sandbox.channels import Channels
from sandbox.disk_limits import DiskLimits
from sandbox.egress import egress_of
from sandbox.engine import Engine, open_engine
from sandbox.engine_calls import asking, pause, remove, unpause
from sandbox.errors import DockerUnreachableError, SandboxError, ThreadGoneError
from sandbox.instance import instance_id
from sandbox.listing import ListedContainer, list_containers
from sandbox.maker import Maker, UidOf
from sandbox.settings import SandboxSettings, get_settings
from sandbox.spec import container_name
from sandbox.workspace import Workspaces
from storage import threads, uids
from storage.ids import SessionId
from storage.settings import get_settings as get_storage_settings

logger = logging.getLogger(__name__)

IsLive = Callable[[SessionId], Awaitable[bool]]
"""Tells whether a thread exists, has not been deleted and is that owner's."""

_CLOSING_SECONDS = 5
_MIB = 1 << 20


@dataclass(slots=True)
class _Loop:
    """What belongs to one event loop."""

    engine: Engine
    channels: Channels
    disk: DiskLimits
    locks: WeakValueDictionary[SessionId, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    def lock(self, session: SessionId) -> asyncio.Lock:
        return self.locks.setdefault(session, asyncio.Lock())


class Containers:
    """The containers of one installation. What one thread's container is doing never holds up another's.

    Args:
        settings: What a container is made of.
        instance: Names the installation; see `sandbox.instance`.
        workspaces: Where the threads' directories are.
        uid_of: Asked when the server is root; otherwise everything runs as the server's own user.
        is_live: Asked before every use of a container.
        admissions: Asked before a container runs.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what a test puts in another's place
        self,
        settings: SandboxSettings,
        instance: Callable[[], str],
        workspaces: Workspaces,
        uid_of: UidOf,
        is_live: IsLive,
        admissions: Admissions,
    ) -> None:
        self._settings = settings
        self._read_instance = instance
        self._workspaces = workspaces
        self._is_live = is_live
        self._admissions = admissions
        self._beginning: set[asyncio.Task[Channel]] = set()
        self._loops: dict[asyncio.AbstractEventLoop, _Loop] = {}
        self._instance: str | None = None
        self._maker = Maker(settings, self._our_instance, workspaces, uid_of)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """An event loop that runs and has a connection to the engine, if there is one."""
        return next((loop for loop in list(self._loops) if loop.is_running()), None)

    async def disk_limits(self) -> DiskLimits:
        """Return what keeps this event loop's work within the limits of the disk."""
        return (await self._here()).disk

    async def watch(self, session: SessionId) -> None:
        """Keep the sandbox of a thread within the limits of the disk, though this process does not use it."""
        await (await self.disk_limits()).watch(session)

    def using(self, session: SessionId) -> AbstractContextManager[None]:
        """Keep a thread's container from being paused, or removed for want of use, for the length of a block.

        Whoever uses a channel does so within.
        """
        return self._admissions.using(session)

    async def ensure(self, session: SessionId) -> DockerContainer:
        """Return the running container of a thread, made or started if need be.

        Raises:
            ThreadGoneError: there is no such thread, or it is not that owner's.
            AtCapacityError: as many containers as may run are at work.
            DockerUnreachableError: the engine does not answer.
            SandboxError: the engine cannot run the container.
        """
        here = await self._here()
        async with here.lock(session):
            with asking(here.engine):
                await self._admit(session)
                return await self._ensure(here, session)

    async def channel(self, session: SessionId, *, afresh: bool = False) -> Channel:
        """Return an open channel to the container of a thread, which is made or started if need be.

        Args:
            session: Whose, and for which thread.
            afresh: End everything in the container first.

        Raises:
            NotStartedError: the container runs, but nothing answers in it.
            ThreadGoneError, AtCapacityError, DockerUnreachableError, SandboxError: as `ensure`.
        """
        here = await self._here()
        if not afresh and (channel := await self._usable_channel(here, session)):
            return channel
        return await asyncio.shield(self._begin(session, afresh=afresh))

    def prepare(self, session: SessionId) -> None:
        """Begin to make or resume the container of a thread that may be about to use it.

        Nothing is raised: what is wrong with it will show when it is used.
        """
        self._begin(session)

    async def pause(self, session: SessionId) -> bool:
        """Have a thread's container stand still until it is used again. False: there is none.

        Raises:
            DockerUnreachableError: the engine does not answer.
            SandboxError: it refused.
        """
        here = await self._here()
        with asking(here.engine):
            return await pause(here.engine, await self._name(session))

    async def discard(self, session: SessionId) -> bool:
        """Remove a thread's container and leave its workspace. Returns False: there is none any more.

        Raises:
            DockerUnreachableError: the engine does not answer.
            SandboxError: it refused.
        """
        here = await self._here()
        with asking(here.engine):
            await remove(here.engine, await self._name(session))
        return False

    async def discard_all(self) -> int:
        """Remove the containers of all threads, also those at work. Returns how many there were.

        Raises:
            DockerUnreachableError, SandboxError: as `discard`.
        """
        here = await self._here()
        with asking(here.engine):
            found = await list_containers(here.engine, await self._our_instance())
            return sum([await self._try_to_remove(here, container) for container in found])

    async def close_idle_channels(self, kept: int) -> None:
        """Close this event loop's channels but those `kept` that were used last, and those in use."""
        here = await self._here()
        for session in here.channels.idle_beyond(kept):
            async with here.lock(session):
                if session in here.channels.idle_beyond(0):
                    await here.channels.close(session)

    async def remove(self, session: SessionId) -> None:
        """Remove a thread's container, then its workspace. Safe to repeat, and when neither exists.

        Raises:
            DockerUnreachableError: the engine does not answer. The workspace is removed all the same, and
                `reconcile` will remove the container.
        """
        here = await self._here()
        async with here.lock(session):
            here.disk.forget(session)
            await here.channels.close(session)
            try:
                with asking(here.engine):
                    await remove(here.engine, await self._name(session))
            finally:
                await self._workspaces.discard(session)
            await self._admissions.forget(session)

    async def reconcile(self) -> int:
        """Remove this installation's containers whose thread is not live, and finish interrupted removals.

        Workspaces are left alone: a thread that is unknown today may be restored from a backup tomorrow.
        Returns how many containers were removed.

        Raises:
            DockerUnreachableError: the engine does not answer.
        """
        await self._workspaces.sweep()
        here = await self._here()
        removed = 0
        with asking(here.engine):
            for container in await list_containers(here.engine, await self._our_instance()):
                async with here.lock(container.session):
                    if not await self._is_live(container.session):
                        removed += await self._try_to_remove(here, container)
        return removed

    async def close(self) -> None:
        """End this event loop's connections, and the commands that run over them. The containers stay."""
        loop = asyncio.get_running_loop()
        if beginning := [task for task in self._beginning if task.get_loop() is loop]:
            _, late = await asyncio.wait(beginning, timeout=_CLOSING_SECONDS)
            for task in late:
                task.cancel()
        if here := self._loops.pop(loop, None):
            await here.disk.close()
            await here.channels.close_all()
            await here.engine.close()

    async def _try_to_remove(self, here: _Loop, container: ListedContainer) -> bool:
        """Remove a container; if the engine does not bring it to that, the others are still to be removed."""
        try:
            await remove(here.engine, container.id)
        except DockerUnreachableError:
            raise
        except SandboxError as error:
            logger.warning("The container of thread %s stays: %s", container.session.thread_id, error)
            return False
        await self._admissions.forget(container.session)
        return True

    async def _here(self) -> _Loop:
        loop = asyncio.get_running_loop()
        if (here := self._loops.get(loop)) is None:
            engine = await open_engine()
            disk = DiskLimits(self._settings, self._workspaces, self.discard)
            here = self._loops.setdefault(loop, _Loop(engine, Channels(egress_of(self._settings)), disk))
            if here.engine is not engine:  # another task was quicker
                await engine.close()
        return here

    async def _our_instance(self) -> str:
        if self._instance is None:
            self._instance = await asyncio.to_thread(self._read_instance)
        return self._instance

    async def _name(self, session: SessionId) -> str:
        return container_name(await self._our_instance(), session)

    def _begin(self, session: SessionId, *, afresh: bool = False) -> asyncio.Task[Channel]:
        """Make or resume a container and connect to it, even if whoever wants that gives up.

        An engine that pauses a container while a process is being started in it may never answer for that
        container again. So it counts as busy until the relay is there, or is known not to be.
        """
        task = asyncio.create_task(self._connect(session, afresh=afresh))
        self._beginning.add(task)
        task.add_done_callback(self._has_begun)
        return task

    def _has_begun(self, task: asyncio.Task[Channel]) -> None:
        self._beginning.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.debug("A sandbox cannot be used: %s", error)

    async def _connect(self, session: SessionId, *, afresh: bool) -> Channel:
        here = await self._here()
        with self.using(session), asking(here.engine):
            async with here.lock(session):
                if afresh:
                    await here.channels.close(session)
                    await remove(here.engine, await self._name(session))
                elif channel := await self._usable_channel(here, session):
                    return channel  # another task was quicker
                was_running = await self._admit(session)
                channel = here.channels.get(session)
                if channel and (was_running or await unpause(here.engine, await self._name(session))):
                    return channel
                container = await self._ensure(here, session)
                return here.channels.get(session) or await here.channels.open(session, container)

    async def _usable_channel(self, here: _Loop, session: SessionId) -> Channel | None:
        """Return the open channel to a container that nobody can be about to pause."""
        if not self._admissions.is_fresh(session):
            return None
        return await here.channels.find(session, lambda: self._is_live(session))

    async def _admit(self, session: SessionId) -> bool:
        if not await self._is_live(session):
            raise ThreadGoneError
        return await self._admissions.admit(session, self.pause, self.discard)

    async def _ensure(self, here: _Loop, session: SessionId) -> DockerContainer:
        container, stream = await self._maker.find_or_make(here.engine, session)
        if stream is not None:
            # If another process deleted the thread meanwhile, nobody else would remove this one.
            if not await self._is_live(session):
                await stream.close()
                await remove(here.engine, container.id)
                await self._admissions.forget(session)
                raise ThreadGoneError
            await here.channels.adopt(session, container, stream)
        return container


async def _is_live(session: SessionId) -> bool:
    record = await threads.find(session.thread_id)
    return record is not None and record.owner == session.owner and record.deleted_at is None


@lru_cache
def get_capacity() -> Capacity:
    """Return what this process knows of the sandboxes that run, and how many may."""
    data_dir = get_storage_settings().data_dir
    return Capacity(get_settings(), lambda: instance_id(data_dir))


@lru_cache
def get_containers() -> Containers:
    """Return the containers of this installation, as its settings and registry say."""
    settings, data_dir = get_settings(), get_storage_settings().data_dir
    workspaces = Workspaces(
        settings.workspace_root, settings.workspace_root_for_docker, settings.sandbox_disk_mb * _MIB
    )
    return Containers(
        settings, lambda: instance_id(data_dir), workspaces, uids.uid_of, _is_live, get_capacity()
    )
