"""deepagents' file operations, done by a sandbox's toolbox.

What comes from a sandbox may have been made up by hostile code in it. Everything is bounded and checked, and
what is not right becomes an error result. Bytes that are no text become U+FFFD, also in names.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from deepagents.backends.protocol import (
    DeleteResult,
    EditResult,
    FileDownloadResponse,
    FileUploadResponse,
    GlobResult,
    GrepResult,
    LsResult,
    ReadResult,
    WriteResult,
)
from deepagents.backends.sandbox import MAX_BINARY_BYTES, MAX_OUTPUT_BYTES, TRUNCATION_MSG

# deepagents has no public name for how it tells text files by their names.
from deepagents.backends.utils import (
    EMPTY_OLD_STRING_ERROR,
    _get_backend_read_file_type,
    normalize_read_bounds,
)

from sandbox import replies
from sandbox.replies import MalformedReplyError

UPLOAD_LIMIT_BYTES = 48 << 20
"""The largest file that can be written at once: it is held in the sandbox's memory."""

DOWNLOAD_LIMIT_BYTES = 48 << 20
"""The most that one download may bring, all its files together: it is held in the server's memory."""

GREP_EXCLUDED_DIRECTORIES = (".git",)
"""What deepagents' sandboxes pass over, unless it is where the search begins."""

Answer = TypeVar("Answer")

_SHORT_BYTES = 1 << 16
_SECONDS = 40  # four operations of up to 8 s may come first
_TRANSFER_SECONDS = 120
_DELETE_CALLS = 12  # of up to 8 s
_TEXT_BYTES = MAX_OUTPUT_BYTES - len(TRUNCATION_MSG.encode())
_BATCH_BYTES = 16 << 20
_BATCH_CHARACTERS = 1 << 16  # of paths, which as JSON may be twelve times as long
_MAX_PATH = 4096  # PATH_MAX of Linux
_MAX_LINES = 1 << 62
_NOT_TEXT = "half of a surrogate pair is not text that a file can have"

_EDIT_ERRORS = {
    "file_not_found": "Error: File '{path}' not found",
    "permission_denied": "Error: Permission denied editing file '{path}'",
    "not_a_file": "Error: '{path}' is not a regular file",
    "not_a_text_file": "Error: File '{path}' is not a text file",
    "string_not_found": "Error: String not found in file: '{old}'",
    "multiple_occurrences": "Error: String '{old}' appears multiple times. "
    "Use replace_all=True to replace all occurrences.",
}


class Transport(Protocol):
    """What brings an operation to a toolbox, and its answer back."""

    async def call(
        self,
        operation: str,
        args: dict[str, object],
        data: bytes = b"",
        *,
        timeout: float,  # noqa: ASYNC109 - the toolbox has to be told
    ) -> tuple[dict[str, object], bytes]:
        """Return what the toolbox says, and bytes. Neither can be believed.

        Raises:
            SandboxError: there is no answer.
        """


class FileOperations:
    """deepagents' file operations in one sandbox. They raise SandboxError when there is no answer at all."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def als(self, path: str) -> LsResult:
        if len(path) > _MAX_PATH:
            return LsResult(error=f"Path '{path[:100]}…': invalid_path")
        try:
            reply, data = await self._call("ls", {"path": path})
            if error := replies.error(reply):
                return LsResult(error=f"Path '{path}': {error}")
            return LsResult(entries=await _read_apart(data, lambda: replies.entries(data, path)))
        except MalformedReplyError as error:
            return LsResult(error=f"Path '{path}': {error}")

    async def aread(self, file_path: str, offset: int = 0, limit: int = 2000) -> ReadResult:
        offset, limit = (min(bound, _MAX_LINES) for bound in normalize_read_bounds(offset, limit))
        if len(file_path) > _MAX_PATH:
            return ReadResult(error=f"File '{file_path[:100]}…': invalid_path")
        args: dict[str, object] = {
            "path": file_path,
            "is_text": _get_backend_read_file_type(file_path) == "text",
            "offset": offset,
            "limit": limit,
            "max_text_bytes": _TEXT_BYTES,
            "max_binary_bytes": MAX_BINARY_BYTES,
        }
        try:
            reply, data = await self._call("read", args)
            return _read_result(reply, data, file_path, offset)
        except MalformedReplyError as error:
            return ReadResult(error=f"File '{file_path}': {error}")

    async def awrite(self, file_path: str, content: str) -> WriteResult:
        try:
            [answer] = await self.aupload_files([(file_path, content.encode())])
        except UnicodeEncodeError:
            return WriteResult(error=f"Failed to write file '{file_path}': {_NOT_TEXT}")
        if answer.error:
            return WriteResult(error=f"Failed to write file '{file_path}': {answer.error}")
        return WriteResult(path=file_path)

    async def aedit(
        self, file_path: str, old_string: str, new_string: str, replace_all: bool = False
    ) -> EditResult:
        if not old_string:
            return EditResult(error=EMPTY_OLD_STRING_ERROR)
        try:
            old, new = old_string.encode(), new_string.encode()
        except UnicodeEncodeError:
            return EditResult(error=f"Error editing file '{file_path}': {_NOT_TEXT}")
        if len(old) + len(new) > UPLOAD_LIMIT_BYTES or len(file_path) > _MAX_PATH:
            return EditResult(error=f"Error editing file '{file_path[:100]}': the request is too large")
        args: dict[str, object] = {"path": file_path, "old_size": len(old), "replace_all": bool(replace_all)}
        try:
            reply, _ = await self._call("edit", args, old + new)
            if error := replies.error(reply):
                text = _EDIT_ERRORS.get(error, f"Error editing file '{{path}}': {error}")
                return EditResult(error=text.replace("{path}", file_path).replace("{old}", old_string))
            return EditResult(path=file_path, occurrences=replies.number(reply, "count", least=1))
        except MalformedReplyError as error:
            return EditResult(error=f"Error editing file '{file_path}': {error}")

    async def adelete(self, file_path: str) -> DeleteResult:
        if len(file_path) > _MAX_PATH:
            return DeleteResult(error=f"Error: '{file_path[:100]}…' not found")
        try:
            for _ in range(_DELETE_CALLS):
                reply, _data = await self._call("delete", {"path": file_path})
                error = replies.error(reply)
                if error == "file_not_found":
                    return DeleteResult(error=f"Error: '{file_path}' not found")
                if error:
                    return DeleteResult(error=f"Error deleting file '{file_path}': {error}")
                if replies.flag(reply, "done"):
                    return DeleteResult(path=file_path)
        except MalformedReplyError as error:
            return DeleteResult(error=f"Error deleting file '{file_path}': {error}")
        return DeleteResult(error=f"Error deleting file '{file_path}': not all is deleted yet; try again")

    async def aglob(self, pattern: str, path: str | None = None) -> GlobResult:
        root = "/" + (path or "").removeprefix("/")
        if len(root) > _MAX_PATH:
            return GlobResult(error=f"Path '{root[:100]}…': invalid_path")
        if len(pattern) > _MAX_PATH:
            return GlobResult(error=f"Path '{root}': pattern_too_broad")
        try:
            reply, data = await self._call("glob", {"path": root, "pattern": pattern})
            if error := replies.error(reply):
                return GlobResult(error=f"Path '{root}': {error}")
            is_unreadable = replies.number(reply, "unreadable") > 0
            is_cut = replies.flag(reply, "truncated")
            return GlobResult(
                matches=await _read_apart(data, lambda: replies.found_files(data, root)),
                truncated=is_cut or is_unreadable,
                # A narrower search would not help with what is unreadable: that is what has to be told.
                truncation_reason="unreadable" if is_unreadable else "budget" if is_cut else None,
            )
        except MalformedReplyError as error:
            return GlobResult(error=f"Path '{root}': {error}")

    async def agrep(
        self, pattern: str, path: str | None = None, glob: str | None = None, *, max_count: int | None = None
    ) -> GrepResult:
        path = path or "."
        if len(path) > _MAX_PATH or len(glob or "") > _MAX_PATH:
            return GrepResult(error=f"Path '{path[:100]}': invalid_path")
        begins_at = path.rstrip("/").rpartition("/")[2]
        args: dict[str, object] = {
            "path": path,
            "glob": glob,
            "max_count": None if max_count is None else max(int(max_count), 0),
            "exclude": [name for name in GREP_EXCLUDED_DIRECTORIES if name != begins_at],
        }
        try:
            reply, data = await self._call("grep", args, pattern.encode("utf-8", "surrogateescape"))
            if error := replies.error(reply):
                return GrepResult(error=f"Path '{path}': {error}")
            matches = await _read_apart(data, lambda: replies.found_lines(data, max_count))
            return GrepResult(matches=matches, truncated=replies.flag(reply, "truncated"))
        except UnicodeEncodeError:
            return GrepResult(matches=[])
        except MalformedReplyError as error:
            return GrepResult(error=f"Path '{path}': {error}")

    async def aupload_files(self, files: Sequence[tuple[str, bytes]]) -> list[FileUploadResponse]:
        answers: list[FileUploadResponse] = []
        for batch in _batches(files):
            answers += await self._upload(batch)
        return answers

    async def adownload_files(self, paths: Sequence[str]) -> list[FileDownloadResponse]:
        answers: list[FileDownloadResponse] = []
        left = DOWNLOAD_LIMIT_BYTES
        for batch in _batches([(path, b"") for path in paths]):
            part = await self._download([path for path, _ in batch], left)
            left -= sum(len(answer.content or b"") for answer in part)
            answers += part
        return answers

    async def _upload(self, batch: Sequence[tuple[str, bytes]]) -> list[FileUploadResponse]:
        problem = _refusal(batch)
        if problem:
            return [FileUploadResponse(path, problem) for path, _ in batch]
        args: dict[str, object] = {"files": [[path, len(content)] for path, content in batch]}
        data = batch[0][1] if len(batch) == 1 else b"".join(content for _, content in batch)
        reply, _ = await self._call("upload", args, data, seconds=_TRANSFER_SECONDS)
        try:
            errors = replies.errors(reply, len(batch))
        except MalformedReplyError as error:
            return [FileUploadResponse(path, str(error)) for path, _ in batch]
        return [FileUploadResponse(path, error) for (path, _), error in zip(batch, errors, strict=True)]

    async def _download(self, batch: Sequence[str], limit: int) -> list[FileDownloadResponse]:
        problem = _refusal([(path, b"") for path in batch])
        if problem:
            return [FileDownloadResponse(path, error=problem) for path in batch]
        args: dict[str, object] = {"paths": list(batch), "max_bytes": limit}
        reply, data = await self._call("download", args, seconds=_TRANSFER_SECONDS)
        try:
            contents = replies.contents(reply, data, len(batch), limit)
        except MalformedReplyError as error:
            return [FileDownloadResponse(path, error=str(error)) for path in batch]
        return [
            FileDownloadResponse(path, error=content)
            if isinstance(content, str)
            else FileDownloadResponse(path, content)
            for path, content in zip(batch, contents, strict=True)
        ]

    async def _call(
        self, operation: str, args: dict[str, object], data: bytes = b"", *, seconds: float = _SECONDS
    ) -> tuple[dict[str, object], bytes]:
        return await self._transport.call(operation, args, data, timeout=seconds)


async def _read_apart(data: bytes, read: Callable[[], Answer]) -> Answer:
    """Read an answer; a long one in a thread, since it takes up to 0.4 s and all share the event loop."""
    return read() if len(data) <= _SHORT_BYTES else await asyncio.to_thread(read)


def _read_result(reply: dict[str, object], data: bytes, path: str, offset: int) -> ReadResult:
    error = replies.error(reply)
    if error == "binary_too_large":
        error = f"Binary file exceeds maximum preview size of {MAX_BINARY_BYTES} bytes"
    elif error == "offset_exceeds_length":
        lines = replies.number(reply, "lines")
        error = f"Line offset {offset} exceeds file length ({lines} lines)"
    if error:
        return ReadResult(error=f"File '{path}': {error}")
    return replies.content(reply, data, offset, max_text_bytes=_TEXT_BYTES)


def _refusal(batch: Sequence[tuple[str, bytes]]) -> str | None:
    """Say why a batch, if it is one file that is too much by itself, is not even tried."""
    [(path, content), *_] = batch
    if len(path) > _MAX_PATH:
        return "invalid_path"
    if len(content) > UPLOAD_LIMIT_BYTES:
        return f"the file is too large: at most {UPLOAD_LIMIT_BYTES >> 20} MiB can be written at once"
    return None


def _batches(files: Sequence[tuple[str, bytes]]) -> Iterator[Sequence[tuple[str, bytes]]]:
    """Divide files into parts that fit into a request each; what is too much by itself comes alone."""
    batch: list[tuple[str, bytes]] = []
    size = characters = 0
    for path, content in files:
        alone = len(path) > _MAX_PATH or len(content) > UPLOAD_LIMIT_BYTES
        size += len(content)
        characters += len(path)
        if batch and (size > _BATCH_BYTES or characters > _BATCH_CHARACTERS or alone):
            yield batch
            batch, size, characters = [], len(content), len(path)
        batch.append((path, content))
        if alone:
            yield batch
            batch, size, characters = [], 0, 0
    if batch:
        yield batch
