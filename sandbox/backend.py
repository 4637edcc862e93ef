"""The one backend that deepagents is given: it sees whose run this is, and works in that thread's sandbox."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import lru_cache
from typing import Any, TypeVar

from deepagents.backends.protocol import (
    DeleteResult,
    EditResult,
    ExecuteOffloadResult,
    ExecuteResponse,
    FileDownloadResponse,
    FileUploadResponse,
    GlobResult,
    GrepResult,
    LsResult,
    ReadResult,
    WriteResult,
)
from deepagents.backends.sandbox import BaseSandbox

from sandbox.containers import Containers, get_containers
from sandbox.errors import SandboxError
from sandbox.identity import current_identity
from sandbox.previews import preview
from sandbox.thread_sandbox import ThreadSandbox

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class SandboxBackend(BaseSandbox):
    """deepagents' view of all sandboxes. A call works in the sandbox of its own run, and in no other.

    Nothing that goes wrong in operation is raised, since that would end the run: the result tells it. The
    synchronous methods are for worker threads; the event loop that talks to the engine does their work.
    """

    def __init__(self, containers: Containers) -> None:
        self._containers = containers

    @property
    def id(self) -> str:
        return "warren"

    def prepare(self) -> None:
        """Begin to make or resume the sandbox of the current run, on its event loop. Never raises."""
        try:
            session = current_identity()
        except SandboxError:
            return
        self._containers.prepare(session)

    async def aexecute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:  # noqa: ASYNC109
        def failed(problem: str) -> ExecuteResponse:
            return ExecuteResponse(f"Error: {problem}", exit_code=1)

        return await self._route(failed, lambda sandbox: sandbox.run(command, timeout))

    async def aexecute_with_offload(
        self,
        command: str,
        capture_path: str,
        *,
        max_inline_bytes: int,
        max_capture_bytes: int | None = None,
        timeout: int | None = None,  # noqa: ASYNC109 - deepagents' signature
    ) -> ExecuteOffloadResult:
        """Run a command; output that is too long for the model goes into a file, and a preview comes back.

        What a command writes is bounded before it gets here, so there is no need to wrap the command in a
        script that captures it, as deepagents' own way does.
        """
        response = await self.aexecute(command, timeout=timeout)
        output = response.output.encode(errors="replace")
        if len(output) <= max_inline_bytes:
            return ExecuteOffloadResult(offloaded=False, response=response)
        kept = output[:max_capture_bytes]
        [uploaded] = await self.aupload_files([(capture_path, kept)])
        if uploaded.error:
            return ExecuteOffloadResult(offloaded=False, response=response)
        shown, has_marker = preview(response.output)
        truncated = response.truncated or len(kept) < len(output)
        return ExecuteOffloadResult(
            offloaded=True,
            response=ExecuteResponse(shown, response.exit_code, truncated),
            preview_has_truncation_marker=has_marker,
        )

    async def als(self, path: str) -> LsResult:
        return await self._route(lambda problem: LsResult(error=problem), lambda it: it.als(path))

    async def aread(self, file_path: str, offset: int = 0, limit: int = 2000) -> ReadResult:
        return await self._route(
            lambda problem: ReadResult(error=problem), lambda it: it.aread(file_path, offset, limit)
        )

    async def awrite(self, file_path: str, content: str) -> WriteResult:
        return await self._route(
            lambda problem: WriteResult(error=problem), lambda it: it.awrite(file_path, content)
        )

    async def aedit(
        self, file_path: str, old_string: str, new_string: str, replace_all: bool = False
    ) -> EditResult:
        return await self._route(
            lambda problem: EditResult(error=problem),
            lambda it: it.aedit(file_path, old_string, new_string, replace_all),
        )

    async def adelete(self, file_path: str) -> DeleteResult:
        return await self._route(
            lambda problem: DeleteResult(error=problem), lambda it: it.adelete(file_path)
        )

    async def aglob(self, pattern: str, path: str | None = None) -> GlobResult:
        return await self._route(
            lambda problem: GlobResult(error=problem), lambda it: it.aglob(pattern, path)
        )

    async def agrep(
        self, pattern: str, path: str | None = None, glob: str | None = None, *, max_count: int | None = None
    ) -> GrepResult:
        return await self._route(
            lambda problem: GrepResult(error=problem),
            lambda it: it.agrep(pattern, path, glob, max_count=max_count),
        )

    async def aupload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        def failed(problem: str) -> list[FileUploadResponse]:
            return [FileUploadResponse(path, problem) for path, _ in files]

        return await self._route(failed, lambda sandbox: sandbox.aupload_files(files))

    async def adownload_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        def failed(problem: str) -> list[FileDownloadResponse]:
            return [FileDownloadResponse(path, error=problem) for path in paths]

        return await self._route(failed, lambda sandbox: sandbox.adownload_files(paths))

    async def _route(
        self, failed: Callable[[str], Result], work: Callable[[ThreadSandbox], Awaitable[Result]]
    ) -> Result:
        try:
            return await work(ThreadSandbox(self._containers, current_identity()))
        except SandboxError as error:
            return failed(str(error))
        except UnicodeEncodeError:
            return failed("Half of a surrogate pair is not text that a file or a command can have.")
        except Exception:
            logger.exception("A sandbox operation failed")
            return failed("The sandbox failed for a reason that is in the server's log.")

    def execute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        return self._wait(self.aexecute(command, timeout=timeout))

    def execute_with_offload(
        self,
        command: str,
        capture_path: str,
        *,
        max_inline_bytes: int,
        max_capture_bytes: int | None = None,
        timeout: int | None = None,
    ) -> ExecuteOffloadResult:
        return self._wait(
            self.aexecute_with_offload(
                command,
                capture_path,
                max_inline_bytes=max_inline_bytes,
                max_capture_bytes=max_capture_bytes,
                timeout=timeout,
            )
        )

    def ls(self, path: str) -> LsResult:
        return self._wait(self.als(path))

    def read(self, file_path: str, offset: int = 0, limit: int = 2000) -> ReadResult:
        return self._wait(self.aread(file_path, offset, limit))

    def write(self, file_path: str, content: str) -> WriteResult:
        return self._wait(self.awrite(file_path, content))

    def edit(self, file_path: str, old_string: str, new_string: str, replace_all: bool = False) -> EditResult:
        return self._wait(self.aedit(file_path, old_string, new_string, replace_all))

    def delete(self, file_path: str) -> DeleteResult:
        return self._wait(self.adelete(file_path))

    def glob(self, pattern: str, path: str | None = None) -> GlobResult:
        return self._wait(self.aglob(pattern, path))

    def grep(
        self, pattern: str, path: str | None = None, glob: str | None = None, *, max_count: int | None = None
    ) -> GrepResult:
        return self._wait(self.agrep(pattern, path, glob, max_count=max_count))

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        return self._wait(self.aupload_files(files))

    def download_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        return self._wait(self.adownload_files(paths))

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Have a coroutine run elsewhere. The run's config goes along: both ways copy the context."""
        if loop := self._containers.loop:
            return asyncio.run_coroutine_threadsafe(work, loop).result()
        return asyncio.run(self._alone(work))

    async def _alone(self, work: Coroutine[Any, Any, Result]) -> Result:
        try:
            return await work
        finally:
            await self._containers.close()


@lru_cache
def get_backend() -> SandboxBackend:
    """Return the backend of this process. Nothing is reached before its first use."""
    return SandboxBackend(get_containers())
