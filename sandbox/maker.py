"""Making a thread's container, or finding the one that was made."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError

from sandbox.engine import Engine
from sandbox.engine_calls import RETRY_SECONDS, remove, resume, within_reason
from sandbox.errors import ImageError, SandboxError
from sandbox.image import find_image
from sandbox.program import toolbox_program
from sandbox.relay import DockerStream, attach
from sandbox.settings import SandboxSettings
from sandbox.spec import ContainerSpec, container_spec
from sandbox.workspace import Workspaces
from storage.ids import SessionId

logger = logging.getLogger(__name__)

UidOf = Callable[[str], Awaitable[int]]
"""Gives the Unix user id that an owner's sandboxes run as."""

_ATTEMPTS = 5


class Maker:
    """Makes the containers of one installation.

    Args:
        settings: What a container is made of.
        instance: Names the installation.
        workspaces: Where the threads' directories are.
        uid_of: Asked when the server is root; otherwise everything runs as the server's own user.
    """

    def __init__(
        self,
        settings: SandboxSettings,
        instance: Callable[[], Awaitable[str]],
        workspaces: Workspaces,
        uid_of: UidOf,
    ) -> None:
        self._settings = settings
        self._instance = instance
        self._workspaces = workspaces
        self._uid_of = uid_of
        self._image: str | None = None

    async def find_or_make(
        self, engine: Engine, session: SessionId
    ) -> tuple[DockerContainer, DockerStream | None]:
        """Return a running container, and the stream to its first process if it was made here and now.

        Raises:
            DockerError: the engine refused, or could not be reached.
            SandboxError: the engine cannot run the container.
        """
        spec = await self._spec(engine, session)
        problem = "it vanishes as soon as it is made"
        for _ in range(_ATTEMPTS):
            try:
                async with within_reason("show"):
                    container = await engine.docker.containers.get(spec.name)
            except DockerError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                if made := await self._make(engine, session, spec):
                    return made
                continue
            if not spec.labels.items() <= container["Config"]["Labels"].items():
                logger.info("Replacing container %s, which was made with other settings", spec.name)
                await remove(engine, container.id)
                continue
            state = container["State"]
            if state["Running"] and not state["Paused"]:
                return container, None
            problem = f"it is {state['Status']}"
            await resume(engine, container, state)
        raise SandboxError(f"The sandbox does not start: {problem}.")

    async def _spec(self, engine: Engine, session: SessionId) -> ContainerSpec:
        if self._image is None:
            self._image = await find_image(engine)
        if self._image is None:
            raise ImageError("The sandbox image has not been built. Run `./warren serve`, which builds it.")
        uid, gid = os.geteuid(), os.getegid()
        if uid == 0:
            uid = gid = await self._uid_of(session.owner)
        source = self._workspaces.path_on_docker_host(session)
        instance = await self._instance()
        has_egress = self._settings.sandbox_network == "egress"
        program = await asyncio.to_thread(toolbox_program, egress=has_egress)
        return container_spec(
            self._settings, self._image, instance, session, source, program, uid=uid, gid=gid
        )

    async def _make(
        self, engine: Engine, session: SessionId, spec: ContainerSpec
    ) -> tuple[DockerContainer, DockerStream] | None:
        """Create and start a container. None: the name is taken now, so look again."""
        await self._workspaces.prepare(session, spec.uid, spec.gid)
        try:
            container = await engine.docker.containers.create(spec.config, name=spec.name)
        except DockerError as error:
            if error.status == HTTPStatus.CONFLICT:
                await asyncio.sleep(RETRY_SECONDS)
                return None
            if error.status == HTTPStatus.NOT_FOUND:
                self._image = None
                raise ImageError(f"The sandbox image {spec.config['Image']} is missing.") from error
            raise SandboxError(f"The sandbox cannot be made: {error.message}") from error
        try:
            stream = await attach(container)
            await container.start()
        except DockerError as error:
            await remove(engine, container.id)
            raise SandboxError(f"The sandbox does not start: {error.message}") from error
        return container, stream
