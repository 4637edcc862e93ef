"""The sandbox of one thread, over `docker exec`: each command and each transfer is an exec of its own."""

import shlex
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

from aiodocker.containers import DockerContainer
from deepagents.backends.protocol import (
    DeleteResult,
    ExecuteResponse,
    FileDownloadResponse,
    FileUploadResponse,
    WriteResult,
)
from deepagents.backends.sandbox import BaseSandbox

from sandbox.commands import OUTPUT_BYTES, run_command
from sandbox.containers import Containers
from sandbox.errors import SandboxLostError
from sandbox.execution import NotStartedError
from sandbox.transfers import download, upload
from storage.ids import SessionId

FILE_OPERATION_BYTES = 8 << 20
"""How long the answer to a file operation may be. deepagents reads up to 500 KiB at a time, and as JSON one
byte can take six; what a search finds is cut to what a model is shown only afterwards."""

_ABSENT = 44

Answer = TypeVar("Answer")


class ThreadSandbox(BaseSandbox):
    """What can be done in one thread's sandbox. deepagents' file operations are commands run by `aexecute`.

    Its methods are the async ones; the synchronous ones exist only because the base class wants them. Each
    may raise ThreadGoneError, DockerUnreachableError or another SandboxError: turning them into results is
    the caller's part.
    """

    def __init__(self, containers: Containers, session: SessionId) -> None:
        self._containers = containers
        self._session = session

    @property
    def id(self) -> str:
        return str(self._session)

    async def run(self, command: str, timeout: int | None) -> ExecuteResponse:  # noqa: ASYNC109 - passed on
        """Run a command for the model."""
        return await self._within(lambda container: run_command(container, command, timeout, OUTPUT_BYTES))

    async def aexecute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:  # noqa: ASYNC109
        """Run a command for a file operation."""
        return await self._within(lambda it: run_command(it, command, timeout, FILE_OPERATION_BYTES))

    async def awrite(self, file_path: str, content: str) -> WriteResult:
        """Write a file in one exec: an upload makes the directories as well."""
        [answer] = await self.aupload_files([(file_path, content.encode())])
        if answer.error:
            return WriteResult(error=f"Failed to write file '{file_path}': {answer.error}")
        return WriteResult(path=file_path)

    async def adelete(self, file_path: str) -> DeleteResult:
        """Delete a file or a directory in one exec."""
        path = shlex.quote(file_path)
        result = await self.aexecute(f"test -e {path} || test -L {path} || exit {_ABSENT}; rm -rf -- {path}")
        if result.exit_code == 0:
            return DeleteResult(path=file_path)
        if result.exit_code == _ABSENT:
            return DeleteResult(error=f"Error: '{file_path}' not found")
        return DeleteResult(error=f"Error deleting file '{file_path}': {result.output.strip()}")

    async def aupload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        return await self._within(lambda container: upload(container, files))

    async def adownload_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        return await self._within(lambda container: download(container, paths))

    async def _within(self, work: Callable[[DockerContainer], Awaitable[Answer]]) -> Answer:
        """Do something in the container; once more in a fresh one if it could not even begin."""
        try:
            async with self._containers.running(self._session) as container:
                return await work(container)
        except NotStartedError:
            pass
        try:
            async with self._containers.running(self._session, afresh=True) as container:
                return await work(container)
        except NotStartedError as error:
            raise SandboxLostError(f"The sandbox cannot run anything: {error}") from error

    def execute(self, command: str, *, timeout: int | None = None) -> NoReturn:
        raise NotImplementedError

    def upload_files(self, files: list[tuple[str, bytes]]) -> NoReturn:
        raise NotImplementedError

    def download_files(self, paths: list[str]) -> NoReturn:
        raise NotImplementedError
