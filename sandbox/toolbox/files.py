"""Operations on single files: read, edit, ls, upload, download.

Every operation takes a dict of arguments and bytes, and returns a dict and bytes. What can go wrong with a
file is told as `{"error": code}`.
"""

# pathlib would cost memory in every sandbox:
# ruff: noqa: PTH117

from __future__ import annotations

import codecs
import errno
import os
import time
from itertools import islice

from sandbox.toolbox.contents import (
    LONGEST_SECONDS,
    error_code,
    open_regular,
    read_at_most,
    read_chunks,
    write_whole,
)

TYPE_CHECKING = False  # importing `typing` would cost memory
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Answer = tuple[dict[str, Any], bytes]

EDIT_BYTES = 32 << 20
"""How long a file may be, before and after, to be edited: it is held in memory, twice."""

LS_ENTRIES = 50_000
"""How many entries of a directory are listed: many times what a model is shown."""

_PREFIX_BYTES = 8192  # by which deepagents tells text from binary
_COUNTED_BYTES = 1 << 20  # up to this size deepagents counts all lines of a file
_SLICE_BYTES = 1 << 20


def read_file(args: dict[str, Any], _: bytes = b"") -> Answer:
    """Read some lines of a text file, or the whole of a binary one.

    Args: path; is_text: whether its name is that of a text file; offset and limit, in lines; max_text_bytes;
    max_binary_bytes. Returns `{"kind": "empty" | "binary" | "text" | "no_lines"}` and the content; for "text"
    also the window (see deepagents' ReadResult), and `truncated`: whether max_text_bytes cut it.
    """
    try:
        descriptor, status = open_regular(args["path"])
    except (OSError, ValueError) as error:
        return {"error": "not_a_file" if _is_no_file(error) else error_code(error)}, b""
    try:
        return _read(descriptor, status.st_size, args)
    except OSError as error:
        return {"error": error_code(error)}, b""
    finally:
        os.close(descriptor)


def upload_files(args: dict[str, Any], contents: bytes) -> Answer:
    """Write files. Args: files: pairs of path and size. Returns `{"errors": [code or null]}`."""
    view = memoryview(contents)
    errors = []
    for path, size in args["files"]:
        errors.append(_put(path, view[:size]))
        view = view[size:]
    return {"errors": errors}, b""


def download_files(args: dict[str, Any], _: bytes = b"") -> Answer:
    """Read files. Args: paths; max_bytes of all. Returns `{"files": [size or code]}` and the contents."""
    contents = bytearray()
    files: list[int | str] = []
    for path in args["paths"]:
        try:
            content = _get(path, args["max_bytes"] - len(contents))
        except (OSError, ValueError) as error:
            files.append(error_code(error))
        else:
            files.append(len(content))
            contents += content
    return {"files": files}, bytes(contents)


def edit_file(args: dict[str, Any], strings: bytes) -> Answer:
    """Replace a string in a text file.

    If the old string is not there, it is looked for with the other kind of line ends, and the new one changed
    likewise: what reads files is shown newlines only.

    Args: path; old_size: how many of the bytes are the old string, before the new one; replace_all.
    Returns `{"count": n}`.
    """
    path, replace_all = args["path"], args["replace_all"]
    old, new = strings[: args["old_size"]], strings[args["old_size"] :]
    try:
        descriptor, _ = open_regular(path)
        try:
            content = read_at_most(descriptor, EDIT_BYTES)
        finally:
            os.close(descriptor)
        if not _is_utf8(content):
            return {"error": "not_a_text_file"}, b""
        old, new, count = _match(content, old, new)
        if count == 0:
            return {"error": "string_not_found"}, b""
        if count > 1 and not replace_all:
            return {"error": "multiple_occurrences"}, b""
        if len(content) + count * (len(new) - len(old)) > EDIT_BYTES:
            return {"error": "the file would become too large"}, b""
        write_whole(path, content.replace(old, new))
    except (OSError, ValueError) as error:
        return {"error": "not_a_file" if _is_no_file(error) else error_code(error)}, b""
    return {"count": count}, b""


def list_directory(args: dict[str, Any], _: bytes = b"") -> Answer:
    """List a directory. Args: path. Returns `{}` and for each entry `d` or `f`, its name, and a NUL."""
    try:
        with os.scandir(args["path"]) as entries:
            found = [
                (b"d" if _is_directory(entry) else b"f") + os.fsencode(entry.name)
                for entry in islice(entries, LS_ENTRIES)
            ]
    except FileNotFoundError:
        return {"error": "path_not_found"}, b""
    except NotADirectoryError:
        return {"error": "not_a_directory"}, b""
    except (OSError, ValueError) as error:
        return {"error": error_code(error)}, b""
    found.sort(key=lambda entry: entry[1:])
    return {}, b"".join(entry + b"\0" for entry in found)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _is_no_file(error: OSError | ValueError) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.EISDIR, errno.EINVAL)


def _put(path: str, content: bytes | memoryview) -> str | None:
    if not os.path.isabs(path):
        return "invalid_path"
    try:
        write_whole(path, content)
    except (OSError, ValueError) as error:
        return error_code(error)
    return None


def _get(path: str, limit: int) -> bytes:
    if not os.path.isabs(path):
        raise ValueError
    descriptor, _ = open_regular(path)
    try:
        return read_at_most(descriptor, limit)
    finally:
        os.close(descriptor)


def _match(content: bytes, old: bytes, new: bytes) -> tuple[bytes, bytes, int]:
    """Return what to replace, by what, and how often it is there."""
    old_lf, new_lf = old.replace(b"\r\n", b"\n"), new.replace(b"\r\n", b"\n")
    crlf = old_lf.replace(b"\n", b"\r\n"), new_lf.replace(b"\n", b"\r\n")
    for variant in ((old, new), crlf, (old_lf, new_lf)):
        if count := content.count(variant[0]):
            return (*variant, count)
    return old, new, 0


def _is_utf8(content: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(content)
    try:
        for start in range(0, len(content), _SLICE_BYTES):
            decoder.decode(view[start : start + _SLICE_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _read(descriptor: int, size: int, args: dict[str, Any]) -> Answer:
    if size == 0:
        return {"kind": "empty"}, b""
    if not args["is_text"] or not _begins_as_text(os.pread(descriptor, _PREFIX_BYTES, 0)):
        if size > args["max_binary_bytes"]:
            return {"error": "binary_too_large"}, b""
        return {"kind": "binary"}, read_at_most(descriptor, args["max_binary_bytes"])
    if args["limit"] <= 0:
        return {"kind": "no_lines"}, b""
    return _read_lines(descriptor, size, args)


def _begins_as_text(prefix: bytes) -> bool:
    """Say whether a file that begins so is text, though its last character may be cut."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(prefix)
    except UnicodeDecodeError:
        return False
    return True


def _read_lines(descriptor: int, size: int, args: dict[str, Any]) -> Answer:
    offset, limit, max_bytes = args["offset"], args["limit"], args["max_text_bytes"]
    chunks = _until(time.monotonic() + LONGEST_SECONDS, read_chunks(descriptor, universal_newlines=True))
    passed, rest = _skip(chunks, offset)
    page, ends = _collect(chunks, rest, limit, max_bytes)
    if not page:
        return {"error": "offset_exceeds_length", "lines": passed}, b""

    text, shown, left = _first_lines(page, ends, limit)
    truncated = len(text) > max_bytes
    if truncated:
        shown = text.count(b"\n", 0, max_bytes + 1)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(text[:max_bytes]).encode()

    read = shown + truncated
    left = _after(chunks, page, read) if truncated else left or next(chunks, b"")
    total = offset + read if not left else None
    if left and size <= _COUNTED_BYTES:
        total = offset + read + _count_lines(left, chunks)
    end = offset + max(shown, 1)  # goes on behind a line of which not even the first part fits into an answer
    window = {
        "total_lines": total,
        "start_line": offset + 1,
        "end_line": end,
        "next_offset": None if total is not None and end >= total else end,
    }
    return {"kind": "text", "truncated": truncated, **window}, text


def _until(deadline: float, chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        if time.monotonic() > deadline:
            raise OSError(errno.ETIMEDOUT, "the file is too long for lines so far into it to be found")
        yield chunk


def _skip(chunks: Iterator[bytes], offset: int) -> tuple[int, bytes]:
    """Pass over lines; return how many they were and what follows in the last chunk."""
    passed = 0
    chunk = b""
    for chunk in chunks:
        ends = chunk.count(b"\n")
        if passed + ends >= offset:
            return offset, chunk.split(b"\n", offset - passed)[-1]
        passed += ends
    return passed + (not chunk.endswith(b"\n")), b""


def _collect(chunks: Iterator[bytes], rest: bytes, limit: int, max_bytes: int) -> tuple[bytes, int]:
    """Return at least `limit` lines, or more than `max_bytes`, or what there is; and how many end in it."""
    page = bytearray(rest)
    ends = page.count(b"\n")
    while ends < limit and len(page) <= max_bytes + 1:
        chunk = next(chunks, b"")
        if not chunk:
            break
        page += chunk
        ends += chunk.count(b"\n")
    return bytes(page), ends


def _first_lines(page: bytes, ends: int, limit: int) -> tuple[bytes, int, bytes]:
    """Return up to `limit` lines without the last one's end, how many they are, and what is left of the page.

    Args:
        page: lines.
        ends: how many of them end in it.
        limit: how many lines to return.
    """
    is_whole = page.endswith(b"\n")
    if ends < limit or (ends == limit and is_whole):
        # What follows the last end is no line.
        return (page[:-1] if is_whole else page), ends + (not is_whole), b""
    left = page.split(b"\n", limit)[-1]
    return page[: -len(left) - 1], limit, left


def _after(chunks: Iterator[bytes], page: bytes, lines: int) -> bytes:
    """Return the beginning of what follows that many lines; nothing at the end of the file."""
    parts = page.split(b"\n", lines)
    while len(parts) <= lines:  # the last of them does not end in this page
        chunk = next(chunks, b"")
        if not chunk:
            return b""
        parts[-1:] = chunk.split(b"\n", 1)
    return parts[-1] or next(chunks, b"")


def _count_lines(left: bytes, chunks: Iterator[bytes]) -> int:
    count = 0
    while left:
        count += left.count(b"\n")
        last, left = left, next(chunks, b"")
    return count + (not last.endswith(b"\n"))
