"""The life of the sandbox containers: one per thread, made when first needed, gone with the thread."""

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from uuid import UUID
from weakref import WeakValueDictionary

from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError

from sandbox.channel import Channel
from sandbox.channels import Channels
from sandbox.engine import CANNOT_CONNECT, Engine, open_engine, reaching
from sandbox.errors import ImageError, SandboxError, ThreadGoneError
from sandbox.image import find_image
from sandbox.instance import instance_id
from sandbox.program import toolbox_program
from sandbox.relay import DockerStream, attach
from sandbox.settings import SandboxSettings, get_settings
from sandbox.spec import (
    INSTANCE_LABEL,
    OWNER_LABEL,
    THREAD_LABEL,
    ContainerSpec,
    container_name,
    container_spec,
)
from sandbox.workspace import Workspaces
from storage import threads, uids
from storage.ids import SessionId
from storage.settings import get_settings as get_storage_settings

logger = logging.getLogger(__name__)

UidOf = Callable[[str], Awaitable[int]]
"""Gives the Unix user id that an owner's sandboxes run as."""

IsLive = Callable[[SessionId], Awaitable[bool]]
"""Tells whether a thread exists, has not been deleted and is that owner's."""

_ATTEMPTS = 5
_REMOVAL_ATTEMPTS = 100
_RETRY_SECONDS = 0.1


@dataclass(slots=True)
class _Loop:
    """What belongs to one event loop."""

    engine: Engine
    channels: Channels = field(default_factory=Channels)
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
    """

    def __init__(
        self,
        settings: SandboxSettings,
        instance: Callable[[], str],
        workspaces: Workspaces,
        uid_of: UidOf,
        is_live: IsLive,
    ) -> None:
        self._settings = settings
        self._read_instance = instance
        self._workspaces = workspaces
        self._uid_of = uid_of
        self._is_live = is_live
        self._loops: dict[asyncio.AbstractEventLoop, _Loop] = {}
        self._instance: str | None = None
        self._image: str | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """An event loop that runs and has a connection to the engine, if there is one."""
        return next((loop for loop in list(self._loops) if loop.is_running()), None)

    async def ensure(self, session: SessionId) -> DockerContainer:
        """Return the running container of a thread, made or started if need be.

        Raises:
            ThreadGoneError: there is no such thread, or it is not that owner's.
            DockerUnreachableError: the engine does not answer.
            SandboxError: the engine cannot run the container.
        """
        here = await self._here()
        async with here.lock(session):
            with _asking(here.engine):
                return await self._ensure(here, session)

    async def channel(self, session: SessionId, *, afresh: bool = False) -> Channel:
        """Return an open channel to the container of a thread, which is made or started if need be.

        Args:
            session: Whose, and for which thread.
            afresh: End everything in the container first.

        Raises:
            NotStartedError: the container runs, but nothing answers in it.
            ThreadGoneError, DockerUnreachableError, SandboxError: as `ensure`.
        """
        here = await self._here()
        if not afresh and (channel := await here.channels.find(session, lambda: self._is_live(session))):
            return channel
        async with here.lock(session):
            with _asking(here.engine):
                if afresh:
                    await here.channels.close(session)
                    await _remove(here.engine, await self._name(session))
                elif channel := await here.channels.find(session, lambda: self._is_live(session)):
                    return channel  # another task was quicker
                container = await self._ensure(here, session)
                return here.channels.get(session) or await here.channels.open(session, container)

    async def remove(self, session: SessionId) -> None:
        """Remove a thread's container, then its workspace. Safe to repeat, and when neither exists.

        Raises:
            DockerUnreachableError: the engine does not answer. The workspace is removed all the same, and
                `reconcile` will remove the container.
        """
        here = await self._here()
        async with here.lock(session):
            await here.channels.close(session)
            try:
                with _asking(here.engine):
                    await _remove(here.engine, await self._name(session))
            finally:
                await self._workspaces.discard(session)

    async def reconcile(self) -> int:
        """Remove this installation's containers whose thread is not live, and finish interrupted removals.

        Workspaces are left alone: a thread that is unknown today may be restored from a backup tomorrow.
        Returns how many containers were removed.

        Raises:
            DockerUnreachableError: the engine does not answer.
        """
        await self._workspaces.sweep()
        here = await self._here()
        ours = {"label": [f"{INSTANCE_LABEL}={await self._our_instance()}"]}
        removed = 0
        with _asking(here.engine):
            for container in await here.engine.docker.containers.list(all=True, filters=json.dumps(ours)):
                labels = container["Labels"]
                session = SessionId(labels[OWNER_LABEL], UUID(labels[THREAD_LABEL]))
                async with here.lock(session):
                    if not await self._is_live(session):
                        await _remove(here.engine, container.id)
                        removed += 1
        return removed

    async def close(self) -> None:
        """End this event loop's connections, and the commands that run over them. The containers stay."""
        if here := self._loops.pop(asyncio.get_running_loop(), None):
            await here.channels.close_all()
            await here.engine.close()

    async def _here(self) -> _Loop:
        loop = asyncio.get_running_loop()
        if (here := self._loops.get(loop)) is None:
            engine = await open_engine()
            here = self._loops.setdefault(loop, _Loop(engine))
            if here.engine is not engine:  # another task was quicker
                await engine.close()
        return here

    async def _our_instance(self) -> str:
        if self._instance is None:
            self._instance = await asyncio.to_thread(self._read_instance)
        return self._instance

    async def _name(self, session: SessionId) -> str:
        return container_name(await self._our_instance(), session)

    async def _spec(self, engine: Engine, session: SessionId) -> ContainerSpec:
        if self._image is None:
            self._image = await find_image(engine)
        if self._image is None:
            raise ImageError("The sandbox image has not been built. Run `./warren serve`, which builds it.")
        uid, gid = os.geteuid(), os.getegid()
        if uid == 0:
            uid = gid = await self._uid_of(session.owner)
        source = self._workspaces.path_on_docker_host(session)
        instance = await self._our_instance()
        program = await asyncio.to_thread(toolbox_program)
        return container_spec(
            self._settings, self._image, instance, session, source, program, uid=uid, gid=gid
        )

    async def _ensure(self, here: _Loop, session: SessionId) -> DockerContainer:
        if not await self._is_live(session):
            raise ThreadGoneError
        container, stream = await self._find_or_make(here.engine, session)
        if stream is not None:
            # If another process deleted the thread meanwhile, nobody else would remove this one.
            if not await self._is_live(session):
                await stream.close()
                await _remove(here.engine, container.id)
                raise ThreadGoneError
            await here.channels.adopt(session, container, stream)
        return container

    async def _find_or_make(
        self, engine: Engine, session: SessionId
    ) -> tuple[DockerContainer, DockerStream | None]:
        """Return a running container, and the stream to its first process if it was made here and now."""
        spec = await self._spec(engine, session)
        problem = "it vanishes as soon as it is made"
        for _ in range(_ATTEMPTS):
            try:
                container = await engine.docker.containers.get(spec.name)
            except DockerError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                if made := await self._make(engine, session, spec):
                    return made
                continue
            if not spec.labels.items() <= container["Config"]["Labels"].items():
                logger.info("Replacing container %s, which was made with other settings", spec.name)
                await _remove(engine, container.id)
                continue
            state = container["State"]
            if state["Running"] and not state["Paused"]:
                return container, None
            problem = f"it is {state['Status']}"
            await _resume(engine, container, state)
        raise SandboxError(f"The sandbox does not start: {problem}.")

    async def _make(
        self, engine: Engine, session: SessionId, spec: ContainerSpec
    ) -> tuple[DockerContainer, DockerStream] | None:
        """Create and start a container. None: the name is taken now, so look again."""
        await self._workspaces.prepare(session, spec.uid, spec.gid)
        try:
            container = await engine.docker.containers.create(spec.config, name=spec.name)
        except DockerError as error:
            if error.status == HTTPStatus.CONFLICT:
                await asyncio.sleep(_RETRY_SECONDS)
                return None
            if error.status == HTTPStatus.NOT_FOUND:
                self._image = None
                raise ImageError(f"The sandbox image {spec.config['Image']} is missing.") from error
            raise SandboxError(f"The sandbox cannot be made: {error.message}") from error
        try:
            stream = await attach(container)
            await container.start()
        except DockerError as error:
            await _remove(engine, container.id)
            raise SandboxError(f"The sandbox does not start: {error.message}") from error
        return container, stream


@contextmanager
def _asking(engine: Engine) -> Iterator[None]:
    """Turn whatever the engine answers in refusal into a SandboxError."""
    with reaching(engine.address):
        try:
            yield
        except DockerError as error:
            if error.status == CANNOT_CONNECT:
                raise
            raise SandboxError(f"Docker refused: {error.message}") from error


async def _resume(engine: Engine, container: DockerContainer, state: dict[str, Any]) -> None:
    try:
        if state["Paused"]:
            await container.unpause()
        elif state["Status"] in {"created", "exited"}:
            await container.start()
        else:
            await _remove(engine, container.id)
    except DockerError as error:
        if error.status not in {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT}:
            raise SandboxError(f"The sandbox does not start: {error.message}") from error


async def _remove(engine: Engine, name: str) -> None:
    """Kill and remove a container; when this returns its name is free."""
    for _ in range(_REMOVAL_ATTEMPTS):
        try:
            await engine.docker.containers.container(name).delete(force=True, v=True)
        except DockerError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return
            if error.status != HTTPStatus.CONFLICT:  # its removal is under way already
                raise
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            return
    raise SandboxError("The sandbox cannot be removed: its removal hangs in the engine.")


async def _is_live(session: SessionId) -> bool:
    record = await threads.find(session.thread_id)
    return record is not None and record.owner == session.owner and record.deleted_at is None


@lru_cache
def get_containers() -> Containers:
    """Return the containers of this installation, as its settings and registry say."""
    settings, data_dir = get_settings(), get_storage_settings().data_dir
    workspaces = Workspaces(settings.workspace_root, settings.workspace_root_for_docker)
    return Containers(settings, lambda: instance_id(data_dir), workspaces, uids.uid_of, _is_live)
