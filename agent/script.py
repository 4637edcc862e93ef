"""The rehearsal model's script: one line of a human message is one step."""

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sandbox.spec import WORKSPACE

MAX_STEPS = 100
"""Steps taken from one message; the rest is left out, and the last message says so."""

MAX_NUMBERS = 1_000
"""The largest N of `count`: with the longest pause a stream of about 17 minutes."""

MAX_PAUSE_MS = 1_000
"""The largest MS of `count`."""

GRAMMAR = f"""\
I take each line of your message as one step, in order:
  run CMD                 run a shell command
  write PATH: TEXT        write a file (\\n in TEXT means newline)
  edit PATH: OLD => NEW   replace text in a file (\\n means newline)
  delete PATH             delete a file
  read PATH               read a file
  ls [PATH]               list a directory
  glob PATTERN            find files by name
  grep TEXT               find files by content
  delegate LINE           have a sub-agent do LINE
  recall                  list your earlier messages in this thread
  count N every MS        stream N numbers, MS milliseconds apart (up to {MAX_NUMBERS} and {MAX_PAUSE_MS})
Relative paths are below {WORKSPACE}."""


@dataclass(frozen=True, slots=True)
class ToolStep:
    """A line that calls `tool` with `args`."""

    line: str
    tool: str
    args: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True, slots=True)
class RecallStep:
    """A line that lists the earlier human messages."""

    line: str


@dataclass(frozen=True, slots=True)
class CountStep:
    """A line that streams the numbers 1 to `numbers`, `pause_ms` milliseconds before each."""

    line: str
    numbers: int
    pause_ms: int


@dataclass(frozen=True, slots=True)
class HelpStep:
    """A line outside the grammar: it is explained."""

    line: str


Step = ToolStep | RecallStep | CountStep | HelpStep

_PATH_TOOLS = {"delete": ("delete", "file_path"), "read": ("read_file", "file_path"), "ls": ("ls", "path")}
_TEXT_TOOLS: dict[str, tuple[str, str, dict[str, str]]] = {
    "run": ("execute", "command", {}),
    "glob": ("glob", "pattern", {"path": WORKSPACE}),
    "grep": ("grep", "pattern", {"path": WORKSPACE, "output_mode": "content"}),
    "delegate": ("task", "description", {"subagent_type": "general-purpose"}),
}
_COUNT = re.compile(r"count (\d{1,4}) every (\d{1,4})", re.ASCII)
_PATH_AND_TEXT = re.compile(r"(\S.*?):(?: (.*))?", re.DOTALL)


def parse_step(line: str) -> Step:
    """Read one line. Keywords are lower-case; a line that does not fit becomes a `HelpStep`."""
    line = line.strip("\r\n").lstrip()
    keyword, _, rest = line.partition(" ")
    bare = line.rstrip()
    if bare == "recall":
        return RecallStep(bare)
    if count := _COUNT.fullmatch(bare):
        numbers, pause_ms = int(count[1]), int(count[2])
        if 1 <= numbers <= MAX_NUMBERS and pause_ms <= MAX_PAUSE_MS:
            return CountStep(bare, numbers, pause_ms)
    call = _tool_call(keyword.rstrip(), rest)
    if call is None:
        return HelpStep(bare)
    tool, args = call
    return ToolStep(bare, tool, args)


def parse_script(text: str) -> tuple[list[Step], int]:
    """Read a message: its steps, `MAX_STEPS` at most, and the number of lines left out.

    Blank lines are no steps, but a message of nothing else is one that wants the grammar explained. Only
    newlines separate lines: form feeds and the like occur inside commands and file contents.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    steps = [parse_step(line) for line in lines[:MAX_STEPS]]
    return steps or [HelpStep("")], max(0, len(lines) - MAX_STEPS)


def _tool_call(keyword: str, rest: str) -> tuple[str, dict[str, str]] | None:
    """Read the tool and the arguments of a line, None if it is none of the tool lines."""
    if keyword in {"write", "edit"}:
        return _change(keyword, rest.lstrip())
    operand = rest.strip()
    if keyword in _PATH_TOOLS:
        tool, argument = _PATH_TOOLS[keyword]
        return (tool, {argument: _absolute(operand)}) if operand or tool == "ls" else None
    if keyword in _TEXT_TOOLS and operand:
        tool, argument, others = _TEXT_TOOLS[keyword]
        return tool, {argument: operand, **others}
    return None


def _change(keyword: str, rest: str) -> tuple[str, dict[str, str]] | None:
    """Read `PATH: TEXT` of a write, `PATH: OLD => NEW` of an edit.

    The path ends at the first colon that a blank or the end of the line follows.
    """
    parts = _PATH_AND_TEXT.fullmatch(rest)
    if parts is None:
        return None
    file_path, text = _absolute(parts[1].rstrip()), (parts[2] or "").replace("\\n", "\n")
    if keyword == "write":
        return "write_file", {"file_path": file_path, "content": text}
    # The blank lets an edit to nothing end in "=>" once an editor has cut trailing blanks.
    old, arrow, new = f"{text} ".partition(" => ")
    if not arrow:
        return None
    return "edit_file", {"file_path": file_path, "old_string": old, "new_string": new[:-1]}


def _absolute(path: str) -> str:
    return posixpath.join(WORKSPACE, path) if path else WORKSPACE
