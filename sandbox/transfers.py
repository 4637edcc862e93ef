"""Files into a sandbox and out of it, as bytes."""

import json
from collections.abc import Iterator, Sequence

from aiodocker.containers import DockerContainer
from deepagents.backends.protocol import FileDownloadResponse, FileUploadResponse

from sandbox.errors import SandboxError
from sandbox.execution import Output, StoppedError, inside, run

DOWNLOAD_LIMIT_BYTES = 48 << 20
"""The most that one download may bring, all its files together: it is held in the server's memory."""

_TRANSFER_SECONDS = 120
_ANSWER_BYTES_PER_FILE = 300
_CHUNK_BYTES = 1 << 16

# What deepagents calls these; other errors are named by the errno or the system's text.
_ERRORS = {
    "ENOENT": "file_not_found",
    "EACCES": "permission_denied",
    "EPERM": "permission_denied",
    "EROFS": "permission_denied",
    "EISDIR": "is_directory",
    "EINVAL": "invalid_path",
    "ENOTDIR": "invalid_path",
    "EEXIST": "invalid_path",  # a parent that is a file
    "ELOOP": "invalid_path",
    "ENAMETOOLONG": "invalid_path",
    "ENXIO": "invalid_path",  # a named pipe
    "EFBIG": f"the file is too large: at most {DOWNLOAD_LIMIT_BYTES >> 20} MiB can be read at once",
    "ENOSPC": "no space left on the device",
    "EDQUOT": "no space left: the disk quota is used up",
}


async def upload(container: DockerContainer, files: Sequence[tuple[str, bytes]]) -> list[FileUploadResponse]:
    """Write files, making the directories they are in, and say for each what went wrong, if anything.

    Raises:
        SandboxError: the transfer did not come to its end.
        NotStartedError, DockerError: see `sandbox.execution.run`.
    """
    head = json.dumps([[path, len(content)] for path, content in files])
    feed = _chunks(head, [content for _, content in files])
    output = await _converse(container, await inside("upload"), feed, _ANSWER_BYTES_PER_FILE * len(files))
    try:
        errors = json.loads(output.content)
        answers = [
            FileUploadResponse(path, _named(error)) for (path, _), error in zip(files, errors, strict=True)
        ]
    except (ValueError, TypeError) as error:
        raise SandboxError("The sandbox gave no proper answer to an upload.") from error
    return answers


async def download(container: DockerContainer, paths: Sequence[str]) -> list[FileDownloadResponse]:
    """Read files, and say for each what went wrong, if anything.

    Raises:
        SandboxError: the transfer did not come to its end.
        NotStartedError, DockerError: see `sandbox.execution.run`.
    """
    program = [*await inside("download"), str(DOWNLOAD_LIMIT_BYTES)]
    keep = DOWNLOAD_LIMIT_BYTES + _ANSWER_BYTES_PER_FILE * len(paths)
    output = await _converse(container, program, _chunks(json.dumps(paths), []), keep)
    try:
        return list(_parse_download(output.content, paths))
    except (ValueError, TypeError, KeyError) as error:
        raise SandboxError("The sandbox gave no proper answer to a download.") from error


def _parse_download(answer: bytearray, paths: Sequence[str]) -> Iterator[FileDownloadResponse]:
    position = 0
    for path in paths:
        end_of_line = answer.index(b"\n", position)
        head = json.loads(answer[position:end_of_line])
        position = end_of_line + 1
        if error := head.get("error"):
            yield FileDownloadResponse(path, error=_named(error))
            continue
        content = bytes(answer[position : position + head["size"]])
        if len(content) != head["size"]:
            raise ValueError("the content ends early")
        position += len(content)
        yield FileDownloadResponse(path, content)


async def _converse(
    container: DockerContainer, program: Sequence[str], feed: Iterator[bytes], keep: int
) -> Output:
    try:
        _, output = await run(
            container, program, seconds=_TRANSFER_SECONDS, keep=keep, feed=feed, stderr=False
        )
    except StoppedError as error:
        raise SandboxError(f"The transfer did not end within {_TRANSFER_SECONDS} s.") from error
    return output


def _chunks(head: str, contents: Sequence[bytes]) -> Iterator[bytes]:
    yield f"{len(head)}\n{head}".encode()  # JSON is ASCII: as many bytes as characters
    for content in contents:
        for start in range(0, len(content), _CHUNK_BYTES):
            yield content[start : start + _CHUNK_BYTES]


def _named(error: str | None) -> str | None:
    return _ERRORS.get(error, error) if isinstance(error, str) else None
