"""Glob patterns, as deepagents' sandboxes understand them.

A pattern without a slash is matched against names at any depth; one with a slash against paths relative to
the root of the search, `**` standing for any number of directories. A leading dot is only matched by a dot.
Braces are expanded. A compiled pattern is a state machine that is fed the names of a path one by one, so that
a search never enters a directory in which nothing can match.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False  # importing `typing` would cost memory
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    State = frozenset[tuple[int, int]]
    """Where in which of a pattern's alternatives the path so far may have come to."""

MAX_EXPANSIONS = 1000
"""How many patterns the braces of one may stand for: what deepagents allows."""

MAX_PATTERN_LENGTH = 4096

_MIN_ALTERNATIVES = 2
_CLASSES = {
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "alnum": "a-zA-Z0-9",
    "upper": "A-Z",
    "lower": "a-z",
    "space": r"\s",
    "blank": r" \t",
    "punct": r"!-/:-@\[-`{-~",
    "xdigit": "0-9a-fA-F",
}


class PatternError(Exception):
    """A pattern that is not searched for; the message is deepagents' code for why."""


class NamePattern:
    """A pattern for names at any depth."""

    start: State = frozenset([(0, 0)])

    def __init__(self, alternatives: Iterable[str], *, posix: bool = False) -> None:
        """Compile the alternatives; `posix` means as fnmatch(3) does, see `compile_filter`."""
        self._matches = _compile(alternatives, posix=posix)

    def enter(self, state: State, name: str) -> State:  # noqa: ARG002 - PathPattern needs it
        """Return the state within a directory of that name."""
        return state

    def accepts(self, state: State, name: str) -> bool:  # noqa: ARG002 - PathPattern needs it
        """Say whether a file of that name matches."""
        return self._matches(name) is not None


class PathPattern:
    """A pattern for paths relative to the root of the search."""

    def __init__(self, alternatives: Iterable[str]) -> None:
        self._segments = [segments for item in alternatives if (segments := _segments(item))]
        self._matchers: dict[str, Callable[[str], object]] = {}
        self._accepting: dict[State, Callable[[str], object]] = {}
        self.start: State = self._closed((index, 0) for index in range(len(self._segments)))

    def enter(self, state: State, name: str) -> State:
        """Return the state within a directory of that name; it is empty if nothing in there can match."""
        reached = []
        for index, position in state:
            segment = self._segments[index][position]
            if segment == "**":
                if not name.startswith("."):
                    reached.append((index, position))
            elif position + 1 < len(self._segments[index]) and self._matches(segment, name):
                reached.append((index, position + 1))
        return self._closed(reached)

    def accepts(self, state: State, name: str) -> bool:
        """Say whether a file of that name matches."""
        if state not in self._accepting:
            last = [self._segments[i][at] for i, at in state if at + 1 == len(self._segments[i])]
            self._accepting[state] = _compile("*" if segment == "**" else segment for segment in last)
        return self._accepting[state](name) is not None

    def _matches(self, segment: str, name: str) -> bool:
        if segment not in self._matchers:
            self._matchers[segment] = _compile([segment])
        return self._matchers[segment](name) is not None

    def _closed(self, positions: Iterable[tuple[int, int]]) -> State:
        """Add what is reached without a further name: `**` also stands for no directory at all."""
        closed = set()
        for index, position in positions:
            closed.add((index, position))
            if self._segments[index][position] == "**" and position + 1 < len(self._segments[index]):
                closed.add((index, position + 1))
        return frozenset(closed)


def compile_pattern(pattern: str) -> NamePattern | PathPattern:
    """Compile a pattern for finding files.

    Raises:
        PatternError: it leads out of the root of the search, or stands for too many.
    """
    if _climbs(pattern):
        raise PatternError("invalid_pattern")
    alternatives = expand_braces(pattern)
    return PathPattern(alternatives) if "/" in pattern else NamePattern(alternatives)


def compile_filter(pattern: str) -> NamePattern | PathPattern:
    """Compile a pattern for choosing the files whose contents are searched.

    deepagents leaves names to grep's `--include`, that is fnmatch(3): it knows `[[:alpha:]]` and the
    backslash, and `*` matches a leading dot; paths to Python's `glob`. Both take braces literally, where
    deepagents' FilesystemBackend expands them: here either reading matches.

    Raises:
        PatternError: see `compile_pattern`.
    """
    if "/" not in pattern:
        return NamePattern([pattern, *expand_braces(pattern)], posix=True)
    if _climbs(pattern):
        raise PatternError("invalid_pattern")
    alternatives = [pattern, *expand_braces(pattern)]
    return PathPattern(
        "/".join(part for part in item.split("/") if part != ".")
        for item in alternatives
        if not item.endswith("/")
    )


def expand_braces(pattern: str) -> list[str]:
    """Return the patterns that one with braces stands for. Braces around one thing only are literal.

    Raises:
        PatternError: there are too many.
    """
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise PatternError("pattern_too_broad")
    try:
        return _expand(pattern)
    except RecursionError:
        raise PatternError("pattern_too_broad") from None


def _expand(pattern: str) -> list[str]:
    start = pattern.find("{")
    end = _group_end(pattern, start)
    if end < 0:
        return [pattern]
    before, body, after = pattern[:start], pattern[start + 1 : end], pattern[end + 1 :]
    alternatives = _split(body)
    if len(alternatives) < _MIN_ALTERNATIVES:
        return [before + "{" + body + "}" + rest for rest in _expand(after)]
    expanded = []
    for alternative in alternatives:
        expanded += [before + rest for rest in _expand(alternative + after)]
        if len(expanded) > MAX_EXPANSIONS:
            raise PatternError("pattern_too_broad")
    return expanded


def _group_end(pattern: str, start: int) -> int:
    """Return the index of the brace that closes the one at `start`, or -1."""
    depth = 0
    for index in range(start, len(pattern)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(pattern[index], 0)
        if depth == 0:
            return index
    return -1


def _split(body: str) -> list[str]:
    """Split at the commas that are within no further braces."""
    parts = [""]
    depth = 0
    for char in body:
        depth += {"{": 1, "}": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _climbs(pattern: str) -> bool:
    return ".." in pattern.replace("\\", "/").split("/")


def _segments(pattern: str) -> list[str]:
    """Split a pattern at its slashes; nothing is left of one that only directories could match."""
    parts = pattern.lstrip("/").split("/")
    segments = [part for part in parts if part]
    if parts[-1] == "" and segments[-1:] != ["**"]:
        return []
    return [part for at, part in enumerate(segments) if part != "**" or segments[at - 1 : at] != ["**"]]


def _compile(segments: Iterable[str], *, posix: bool = False) -> Callable[[str], object]:
    expressions: list[str] = []
    for segment in segments:
        hidden_too = posix or segment.startswith(".")
        expressions.append(
            ("" if hidden_too else r"(?!\.)") + _translate(segment, len(expressions), posix=posix)
        )
    return re.compile("|".join(expressions) or "(?!)", re.DOTALL).fullmatch


def _translate(segment: str, number: int, *, posix: bool) -> str:
    """Return the regular expression for one segment, the `number`th of several that are put together.

    What is between two stars is matched at the first place where it fits and never again elsewhere, which is
    enough, and takes no exponential time. An atomic group would say it, but came only with Python 3.11.
    """
    runs = _runs(segment, posix=posix)
    if len(runs) == 1:
        return runs[0]
    middle = "".join(
        f"(?=(?P<run_{number}_{at}>.*?{run}))(?P=run_{number}_{at})"
        for at, run in enumerate(runs[1:-1])
        if run
    )
    return runs[0] + middle + ".*" + runs[-1]


def _runs(segment: str, *, posix: bool) -> list[str]:
    """Return the regular expressions for what is between the stars."""
    runs = [""]
    at = 0
    while at < len(segment):
        char = segment[at]
        at += 1
        if char == "*":
            runs.append("")
        elif char == "?":
            runs[-1] += "."
        elif char == "[" and (end := _class_end(segment, at, posix=posix)) >= 0:
            runs[-1] += _class(segment[at:end], posix=posix)
            at = end + 1
        elif char == "\\" and posix and at < len(segment):
            runs[-1] += re.escape(segment[at])
            at += 1
        else:
            runs[-1] += re.escape(char)
    return runs


def _class_end(segment: str, start: int, *, posix: bool) -> int:
    """Return the index of the bracket that closes the one before `start`, or -1."""
    at = start + 1 if segment[start : start + 1] in ("!", "^") else start
    first = at
    while at < len(segment):
        if segment[at] == "]" and at > first:
            return at
        if posix and segment[at : at + 2] == "[:" and (end := segment.find(":]", at + 2)) >= 0:
            at = end + 1
        elif posix and segment[at] == "\\":
            at += 1
        at += 1
    return -1


def _class(body: str, *, posix: bool) -> str:
    negated = body[0] in "!^"
    at = 1 if negated else 0
    members = ""
    while at < len(body):
        if posix and body[at : at + 2] == "[:" and (end := body.find(":]", at)) >= 0:
            members += _CLASSES.get(body[at + 2 : end], "")
            at = end + 2
            continue
        if posix and body[at] == "\\":
            at += 1
        low = body[at : at + 1]
        if body[at + 1 : at + 2] == "-" and at + 2 < len(body):
            high = body[at + 2]
            members += re.escape(low) + "-" + re.escape(high) if low <= high else ""
            at += 3
        else:
            members += re.escape(low)
            at += 1
    if members:
        return ("[^" if negated else "[") + members + "]"
    return "." if negated else "(?!)"
