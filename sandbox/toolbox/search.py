"""Finding files by their names and by their contents, within limits of time and size."""

# pathlib would cost memory in every sandbox:
# ruff: noqa: PTH112, PTH113, PTH118, PTH119

from __future__ import annotations

import os
import re
import time

from sandbox.toolbox.contents import LONGEST_SECONDS, error_code, open_regular, read_chunks
from sandbox.toolbox.patterns import NamePattern, PatternError, compile_filter, compile_pattern

TYPE_CHECKING = False  # importing `typing` would cost memory
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from sandbox.toolbox.patterns import PathPattern, State

    Answer = tuple[dict[str, Any], bytes]

GLOB_SECONDS = 5
GLOB_MATCHES = 10_000
"""These two are deepagents'."""

ANSWER_BYTES = 4 << 20
"""How much a search brings at the most."""

GREP_MATCHES = 10_000

LINE_BYTES = 1 << 20
"""How much of a line is searched, and shown."""

_SHORT_BYTES = 1 << 16
_PENDING_DIRECTORIES = 100_000
_ENTRIES_PER_LOOK = 256
_PSEUDO_FILE_SYSTEMS = {"proc", "sys", "dev"}
_AS_LISTED = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY


def find_files(args: dict[str, Any], _: bytes = b"") -> Answer:
    """Find regular files by a pattern. Args: path; pattern.

    Returns `{"truncated": bool, "unreadable": how many directories}` and the paths relative to `path`, each
    followed by a NUL, in order.
    """
    try:
        walk = _Walk(args["path"], GLOB_SECONDS)
        pattern = compile_pattern(args["pattern"])
    except PatternError as error:
        return {"error": str(error)}, b""
    except FileNotFoundError:
        return {"error": "path_not_found"}, b""
    except NotADirectoryError:
        return {"error": "not_a_directory"}, b""
    except (OSError, ValueError) as error:
        return {"error": error_code(error)}, b""
    found: list[bytes] = []
    room = ANSWER_BYTES
    for path, entry in walk.files(pattern):
        if not walk.is_within(path, entry):
            continue
        encoded = os.fsencode(path) + b"\0"
        room -= len(encoded)
        if room < 0 or len(found) == GLOB_MATCHES:
            walk.truncated = True
            break
        found.append(encoded)
    found.sort()
    return {"truncated": walk.truncated, "unreadable": walk.unreadable}, b"".join(found)


def search_files(args: dict[str, Any], text: bytes) -> Answer:
    """Find lines that contain a text, or one of its lines if it has several. Binary files are passed over.

    Args: path; glob: which files, or null; max_count of matches, or null; exclude: names of directories that
    are passed over. Returns `{"truncated": bool}` and for each match `path NUL number : line NEWLINE`.
    """
    path, glob = args["path"], args["glob"] or ""
    by_path = "/" in glob
    search = _Search(text, args["max_count"], universal_newlines=by_path)
    try:
        pattern = compile_filter(glob) if glob else NamePattern(["*"], posix=True)
        if not os.path.isdir(path):
            if by_path or pattern.accepts(pattern.start, os.path.basename(path)):
                search.file(path, path)
            return search.answer()
        walk = _Walk(path, LONGEST_SECONDS, frozenset(args["exclude"]))
    except PatternError as error:
        return {"error": str(error)}, b""
    except (OSError, ValueError) as error:
        return {"error": error_code(error)}, b""
    shown_root = os.path.join(path, "")
    for relative, entry in walk.files(pattern):
        if not entry.is_symlink():
            search.file(shown_root + relative, entry.path, listed=True)
        elif by_path and walk.is_within(relative, entry):
            real = os.path.realpath(entry.path)
            search.file(shown_root + os.path.relpath(real, walk.root), real)
        if search.is_full or walk.is_late():
            break
    return search.answer(truncated=walk.truncated)


class _Walk:
    """A way through all directories below one that do not lie behind a link."""

    def __init__(self, path: str, seconds: float, exclude: frozenset[str] = frozenset()) -> None:
        """Raise OSError if it is no directory that can be entered."""
        os.scandir(path).close()
        self.root = os.path.realpath(path)
        self.truncated = False
        self.unreadable = 0
        self._deadline = time.monotonic() + seconds
        self._exclude = exclude
        self._prefix = self.root if self.root == "/" else self.root + "/"

    def files(self, pattern: NamePattern | PathPattern) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Yield the path from here, and the entry, of all that match and are regular files, or links."""
        pending: list[tuple[str, State]] = [("", pattern.start)]
        while pending and not self.is_late():
            directory, state = pending.pop()
            try:
                with os.scandir(self._prefix + directory) as entries:
                    for count, entry in enumerate(entries):
                        if count % _ENTRIES_PER_LOOK == 0 and self.is_late():
                            return
                        name = entry.name
                        if entry.is_dir(follow_symlinks=False):
                            inner = pattern.enter(state, name)
                            if inner and not self._passes_over(directory, name):
                                pending.append((directory + name + "/", inner))
                        elif pattern.accepts(state, name) and _may_be_file(entry):
                            yield directory + name, entry
            except OSError:
                self.unreadable += 1
            if len(pending) > _PENDING_DIRECTORIES:
                self.truncated = True
                del pending[_PENDING_DIRECTORIES:]

    def is_within(self, path: str, entry: os.DirEntry[str]) -> bool:
        """Say whether it is a regular file that lies below, also if it is a link to one."""
        if not entry.is_symlink():
            return True
        real = os.path.realpath(self._prefix + path)
        return real.startswith(self._prefix) and os.path.isfile(real)

    def is_late(self) -> bool:
        """Say whether time is up; the search is then incomplete."""
        late = time.monotonic() > self._deadline
        self.truncated |= late
        return late

    def _passes_over(self, directory: str, name: str) -> bool:
        return name in self._exclude or (
            self._prefix == "/" and not directory and name in _PSEUDO_FILE_SYSTEMS
        )


def _may_be_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) or entry.is_symlink()


class _Search:
    """A search for a text in one file after the other, and what it has found."""

    def __init__(self, text: bytes, max_count: int | None, *, universal_newlines: bool) -> None:
        self.is_full = False
        self._universal_newlines = universal_newlines
        self._find = _finder(text)
        self._found: list[tuple[str, bytes]] = []
        self._left = GREP_MATCHES if max_count is None else min(max_count, GREP_MATCHES)
        self._room = ANSWER_BYTES
        self._deadline = time.monotonic() + LONGEST_SECONDS

    def file(self, name: str, path: str, *, listed: bool = False) -> None:
        """Search a file, which is shown under a name. One that cannot be read has no matches.

        One that is `listed` was a regular file when its directory was read, and is opened faster.
        """
        try:
            descriptor = os.open(path, _AS_LISTED) if listed else open_regular(path)[0]
        except (OSError, ValueError):
            return
        try:
            if listed and self._is_short_without(descriptor):
                return
            for number, line in self._matching_lines(descriptor):
                self._add(name, number, line)
                if self.is_full:
                    return
        except OSError:
            return
        finally:
            os.close(descriptor)

    def _is_short_without(self, descriptor: int) -> bool:
        """Say whether it is a short file without any match: most are, and this is all that they cost."""
        content = os.read(descriptor, _SHORT_BYTES)
        if len(content) < _SHORT_BYTES and self._find(content, 0, len(content)) < 0:
            return True
        os.lseek(descriptor, 0, os.SEEK_SET)
        return False

    def answer(self, *, truncated: bool = False) -> Answer:
        """Return all matches, file by file."""
        self._found.sort(key=lambda match: match[0])
        return {"truncated": truncated or self.is_full}, b"".join(record for _, record in self._found)

    def _add(self, name: str, number: int, line: bytes) -> None:
        record = os.fsencode(name) + b"\0%d:%b\n" % (number, line)
        self._left -= 1
        self._room -= len(record)
        if self._left < 0 or self._room < 0:
            self.is_full = True
        else:
            self._found.append((name, record))

    def _matching_lines(self, descriptor: int) -> Iterator[tuple[int, bytes]]:
        number = 1
        begun = b""  # a line that does not end in the chunks so far
        for chunk in read_chunks(descriptor, universal_newlines=self._universal_newlines):
            if b"\0" in chunk:
                return
            if len(begun) >= LINE_BYTES:
                end = chunk.find(b"\n")
                block = begun + chunk[end:] if end >= 0 else begun
            else:
                block = begun + chunk if begun else chunk
            end = block.rfind(b"\n") + 1
            yield from self._matches_within(block, end, number)
            number += block.count(b"\n", 0, end)
            begun = block[end : end + LINE_BYTES]
            if time.monotonic() > self._deadline:
                self.is_full = True
                return
        if begun:
            yield from self._matches_within(begun + b"\n", len(begun) + 1, number)

    def _matches_within(self, block: bytes, end: int, number: int) -> Iterator[tuple[int, bytes]]:
        """Yield the lines that match among those up to `end`, the first of which has the given number."""
        counted = position = 0
        while (at := self._find(block, position, end)) >= 0 and at < end:
            start = block.rfind(b"\n", position, at) + 1 or position
            position = block.index(b"\n", at) + 1
            number += block.count(b"\n", counted, start)
            counted = start
            yield number, block[start : position - 1]


def _finder(text: bytes) -> Callable[[bytes, int, int], int]:
    """Return what finds the text, or any of its lines, within a part of some bytes, or returns -1."""
    if b"\n" not in text:
        return lambda block, start, end: block.find(text, start, end)
    search = re.compile(b"|".join(re.escape(line) for line in text.split(b"\n"))).search

    def find(block: bytes, start: int, end: int) -> int:
        found = search(block, start, end)
        return found.start() if found else -1

    return find
