"""One thread's sandbox, in the terms of deepagents' backend protocol."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from deepagents.backends.protocol import ExecuteResponse

from sandbox.channel import Channel
from sandbox.containers import Containers
from sandbox.errors import NotStartedError, SandboxLostError
from sandbox.file_operations import FileOperations
from storage.ids import SessionId

Answer = TypeVar("Answer")

_WRITING = frozenset({"upload", "edit"})
_CHANGING = _WRITING | {"delete"}


class ThreadSandbox(FileOperations):
    """What can be done in one thread's sandbox.

    Each method may raise ThreadGoneError, DockerUnreachableError or another SandboxError: turning them into
    results is the caller's part.
    """

    def __init__(self, containers: Containers, session: SessionId) -> None:
        super().__init__(self)
        self._containers = containers
        self._session = session

    async def run(self, command: str, timeout: int | None) -> ExecuteResponse:  # noqa: ASYNC109 - passed on
        """Run a command for the model."""
        disk = await self._containers.disk_limits()
        return await self._within(lambda channel: disk.run(self._session, channel, command, timeout))

    async def call(
        self,
        operation: str,
        args: dict[str, object],
        data: bytes = b"",
        *,
        timeout: float,  # noqa: ASYNC109 - passed on
    ) -> tuple[dict[str, object], bytes]:
        """Have the toolbox do a file operation."""
        disk = await self._containers.disk_limits()
        if operation in _WRITING:
            await disk.admit(self._session, len(data))
        else:
            await disk.watch(self._session)
        try:
            return await self._within(lambda channel: channel.call(operation, args, data, timeout=timeout))
        finally:
            if operation in _CHANGING:
                disk.changed(self._session)

    async def _within(self, work: Callable[[Channel], Awaitable[Answer]]) -> Answer:
        """Do something in the container; once more if it did not begin, then in a fresh one."""
        with self._containers.using(self._session):
            for afresh in (False, False, True):
                try:
                    channel = await self._containers.channel(self._session, afresh=afresh)
                    return await work(channel)
                except NotStartedError as error:
                    problem = error
        raise SandboxLostError(f"The sandbox cannot run anything: {problem}")
