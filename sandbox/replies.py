"""Reading what a toolbox answers to a file operation. Anything may be in there."""

import base64
import posixpath
from collections.abc import Sequence
from typing import TypeGuard

from deepagents.backends.protocol import FileData, FileInfo, GrepMatch, ReadResult
from deepagents.backends.sandbox import MAX_BINARY_BYTES, TRUNCATION_MSG
from deepagents.backends.utils import EMPTY_CONTENT_WARNING

from sandbox.errors import SandboxError
from sandbox.toolbox.files import LS_ENTRIES
from sandbox.toolbox.search import ANSWER_BYTES, GLOB_MATCHES, GREP_MATCHES

_ERROR_CHARACTERS = 300
_LISTING_BYTES = LS_ENTRIES * 257  # a kind, up to 255 bytes of name, and a NUL
_MAX_NUMBER = 1 << 62
_MAX_DIGITS = 18


class MalformedReplyError(SandboxError):
    """The sandbox gave no proper answer."""


def error(reply: dict[str, object]) -> str | None:
    """Return the error that a reply tells, if any."""
    return _error(reply["error"]) if "error" in reply else None


def errors(reply: dict[str, object], count: int) -> list[str | None]:
    """Return an error, or None, for each of several files."""
    found = _list(reply, "errors", count)
    return [None if item is None else _error(item) for item in found]


def flag(reply: dict[str, object], name: str) -> bool:
    value = reply.get(name)
    if not isinstance(value, bool):
        raise MalformedReplyError
    return value


def number(reply: dict[str, object], name: str, *, least: int = 0) -> int:
    value = reply.get(name)
    if not _is_number(value) or value < least:
        raise MalformedReplyError
    return value


def content(reply: dict[str, object], data: bytes, offset: int, *, max_text_bytes: int) -> ReadResult:
    """Return the result of a successful read from a line on."""
    kind = reply.get("kind")
    if kind == "empty":
        return ReadResult(file_data=FileData(content=EMPTY_CONTENT_WARNING, encoding="utf-8"))
    if kind == "no_lines":
        return ReadResult(file_data=FileData(content="", encoding="utf-8"), no_lines_requested=True)
    if kind == "binary" and len(data) <= MAX_BINARY_BYTES:
        return ReadResult(file_data=FileData(content=base64.b64encode(data).decode(), encoding="base64"))
    if kind == "text" and len(data) <= max_text_bytes:
        text = data.decode("utf-8", "replace") + (TRUNCATION_MSG if flag(reply, "truncated") else "")
        return _window(reply, FileData(content=text, encoding="utf-8"), offset)
    raise MalformedReplyError


def contents(reply: dict[str, object], data: bytes, count: int, limit: int) -> list[bytes | str]:
    """Return each of several files' content, or its error."""
    found: list[bytes | str] = []
    position = 0
    for item in _list(reply, "files", count):
        if not _is_number(item):
            found.append(_error(item))
            continue
        found.append(data[position : position + item])
        position += item
    if position != len(data) or position > limit:
        raise MalformedReplyError
    return found


def entries(data: bytes, directory: str) -> list[FileInfo]:
    """Return the entries of a directory."""
    listed: list[FileInfo] = []
    for item in _items(data, LS_ENTRIES):
        kind, name = item[:1], item[1:]
        if kind not in (b"d", b"f") or name in (b"", b".", b"..") or b"/" in name:
            raise MalformedReplyError
        path = posixpath.join(directory, name.decode("utf-8", "replace"))
        listed.append(FileInfo(path=path, is_dir=kind == b"d"))
    return listed


def found_files(data: bytes, root: str) -> list[FileInfo]:
    """Return the files that a pattern matched, with absolute paths."""
    found: list[FileInfo] = []
    prefix = root.rstrip("/") + "/"
    for item in _items(data, GLOB_MATCHES):
        if not item or item[:1] == b"/" or (b".." in item and b".." in item.split(b"/")):
            raise MalformedReplyError
        found.append(FileInfo(path=prefix + item.decode("utf-8", "replace"), is_dir=False))
    return found


def found_lines(data: bytes, max_count: int | None) -> list[GrepMatch]:
    """Return the lines that a text was found in."""
    most = GREP_MATCHES if max_count is None else min(max(max_count, 0), GREP_MATCHES)
    if len(data) > ANSWER_BYTES:
        raise MalformedReplyError
    found: list[GrepMatch] = []
    position = 0
    while position < len(data) and len(found) < most:
        # Each byte is looked at once: a pattern that is tried everywhere would take the square of that.
        path_end = data.find(b"\0", position)
        line_end = data.find(b"\n", path_end)
        line, colon, text = data[path_end + 1 : line_end].partition(b":")
        is_proper = position < path_end < line_end and colon and line.isdigit() and len(line) <= _MAX_DIGITS
        if not is_proper:
            raise MalformedReplyError
        path = data[position:path_end].decode("utf-8", "replace")
        found.append(GrepMatch(path=path, line=int(line), text=text.decode("utf-8", "replace")))
        position = line_end + 1
    if position != len(data):
        raise MalformedReplyError
    return found


def _window(reply: dict[str, object], data: FileData, offset: int) -> ReadResult:
    start = number(reply, "start_line", least=1)
    if start != offset + 1:
        raise MalformedReplyError
    try:
        return ReadResult(
            file_data=data,
            total_lines=_number_or_none(reply, "total_lines"),
            start_line=start,
            end_line=number(reply, "end_line", least=1),
            next_offset=_number_or_none(reply, "next_offset"),
        )
    except ValueError:  # they contradict each other
        raise MalformedReplyError from None


def _number_or_none(reply: dict[str, object], name: str) -> int | None:
    return None if reply.get(name) is None else number(reply, name)


def _items(data: bytes, most: int) -> list[bytes]:
    """Return what is ended by NULs."""
    items = data.split(b"\0", most)
    if items.pop() or len(data) > _LISTING_BYTES:
        raise MalformedReplyError
    return items


def _error(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise MalformedReplyError
    return value[:_ERROR_CHARACTERS].encode("utf-8", "replace").decode()


def _list(reply: dict[str, object], name: str, count: int) -> Sequence[object]:
    value = reply.get(name)
    if not isinstance(value, list) or len(value) != count:
        raise MalformedReplyError
    return value


def _is_number(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MAX_NUMBER
