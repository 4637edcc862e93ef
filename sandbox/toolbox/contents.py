"""Opening, reading and writing files of which anybody may have made anything: nothing here ever blocks."""

# pathlib would cost memory in every sandbox:
# ruff: noqa: PTH103, PTH104, PTH108, PTH116, PTH118, PTH120

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False  # importing `typing` would cost memory
if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK_BYTES = 1 << 18

LONGEST_SECONDS = 8
"""How long one operation may take: nothing can end it, and the host waits 10 s for what it cancels."""

# What deepagents calls these; of other errors the system's text is told.
_CODES = {
    errno.ENOENT: "file_not_found",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EROFS: "permission_denied",
    errno.EISDIR: "is_directory",
    errno.EINVAL: "invalid_path",
    errno.ENOTDIR: "invalid_path",
    errno.EEXIST: "invalid_path",  # a parent that is a file
    errno.ELOOP: "invalid_path",
    errno.ENAMETOOLONG: "invalid_path",
    errno.ENXIO: "invalid_path",  # a named pipe
}


def error_code(error: OSError | ValueError) -> str:
    """Return deepagents' code for what went wrong. A ValueError: the path has a NUL, or half a surrogate."""
    if isinstance(error, ValueError):
        return "invalid_path"
    return _CODES.get(error.errno or 0) or error.strerror or "input/output error"


def open_regular(path: str) -> tuple[int, os.stat_result]:
    """Open a regular file for reading. What is none is not even opened, unless somebody is swapping it.

    Raises:
        OSError: it cannot be read; EISDIR or EINVAL if it is no regular file.
    """
    _check_regular(os.stat(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        status = os.fstat(descriptor)
        _check_regular(status)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status


def read_chunks(descriptor: int, *, universal_newlines: bool = False) -> Iterator[bytes]:
    """Yield a file in pieces of up to CHUNK_BYTES, if wanted with all ends of lines turned into newlines."""
    held = b""
    while chunk := os.read(descriptor, CHUNK_BYTES):
        if universal_newlines:
            chunk = held + chunk
            held = b"\r" if chunk.endswith(b"\r") else b""
            if b"\r" in chunk:
                chunk = chunk[: len(chunk) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if chunk:
            yield chunk
    if held:
        yield b"\n"


def read_at_most(descriptor: int, limit: int) -> bytes:
    """Return the whole of a file.

    Raises:
        OSError: EFBIG: it is longer than the limit.
    """
    content = bytearray()
    for chunk in read_chunks(descriptor):
        content += chunk
        if len(content) > limit:
            raise OSError(
                errno.EFBIG, f"the file is too large: at most {limit >> 20} MiB can be read at once"
            )
    return bytes(content)


def write_whole(path: str, content: bytes | memoryview) -> None:
    """Make or replace a file and the directories above it. Mode, owner and links stay what they were.

    There is always either the old content or the new one if the file is one's own, in a writable directory,
    and has one name only; a full disk then costs nothing. Otherwise it is written in place.

    Raises:
        OSError: it cannot be done; EISDIR or EINVAL if there is something else than a regular file.
    """
    directory = os.path.dirname(path)
    try:
        descriptor = _open_for_writing(path)
    except FileNotFoundError:
        os.makedirs(directory or ".", exist_ok=True)
        descriptor = _open_for_writing(path)
    try:
        status = os.fstat(descriptor)
        _check_regular(status)
        replaceable = status.st_size and status.st_nlink == 1 and status.st_uid == os.geteuid()
        if replaceable and _replace(path, content, stat.S_IMODE(status.st_mode)):
            return
        os.ftruncate(descriptor, 0)
        try:
            _write_all(descriptor, content)
        except OSError:
            os.ftruncate(descriptor, 0)  # half a file helps nobody, and the disk may be full
            raise
    finally:
        os.close(descriptor)


def _open_for_writing(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    return os.open(path, flags, 0o666)


def _replace(path: str, content: bytes | memoryview, mode: int) -> bool:
    """Put a new file in the place of one; False if this directory does not let us.

    Raises:
        OSError: the content cannot be written.
    """
    path = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(path), f".warren-{os.urandom(8).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, 0o600)
    except OSError:
        return False
    try:
        try:
            _write_all(descriptor, content)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
    except BaseException:
        os.unlink(temporary)
        raise
    try:
        os.rename(temporary, path)
    except OSError:  # it is a mount point, or has just become a directory
        os.unlink(temporary)
        return False
    return True


def _write_all(descriptor: int, content: bytes | memoryview) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise OSError(number, os.strerror(number))
