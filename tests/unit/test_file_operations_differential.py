"""The same calls to the toolbox and to deepagents' own sandbox scripts, with whatever hypothesis thinks of.

What is compared, and how: results as a whole, errors included, but for the order of what a search or listing
finds, which deepagents leaves open: it is sorted. Of errors of `write` and `delete`, which are a shell's or a
traceback, only that there is one, and whether it is "not found". Where deepagents' `read` ends in a traceback
there must be a result here. What differs from the oracle on purpose is pinned in test_toolbox_files.py and
test_toolbox_search.py.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from deepagents.backends.filesystem import FilesystemBackend
from deepagents.backends.protocol import GlobResult
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from sandbox.file_operations import FileOperations
from tests.unit.local_toolbox import LocalTransport, ShellSandbox

OURS = FileOperations(LocalTransport())
EXAMPLES = int(os.environ.get("DIFFERENTIAL_EXAMPLES", "20"))

quick = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=EXAMPLES == 20,
    database=None,
)

NAMES = st.sampled_from(
    [
        "a",
        "b.py",
        "c.txt",
        ".env",
        ".git",
        ".hidden",
        "src",
        "d e",
        "é.py",
        "x-[1].py",
        "{a,b}.py",
        "B.PY",
        "-n",
    ]
) | st.text("ab.é *?[]{},-!#~", min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))
WILD_NAMES = NAMES | st.text("a\n\t\"'$`", min_size=1, max_size=4)

LINES = st.sampled_from(
    ["", "foo", "foo bar", "FOO", "x.y", "été foo", " foo", "$(foo)", "a\tb", "-e foo", "b\\n"]
)
ENDS = st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n", "\u2028"])
TEXTS = (
    st.lists(st.tuples(LINES, ENDS), max_size=8)
    .map(lambda rows: "".join(map("".join, rows)))
    .flatmap(lambda text: st.sampled_from([text, text.rstrip(), text + "foo"]))
)
CONTENTS = TEXTS.map(str.encode) | st.binary(max_size=40)
"""Contents with and without a last newline, of all kinds of line ends, empty ones, and bytes."""


def trees(
    names: st.SearchStrategy[str], contents: st.SearchStrategy[bytes]
) -> st.SearchStrategy[dict[str, Any]]:
    return st.recursive(
        st.dictionaries(names, contents, max_size=4),
        lambda inner: st.dictionaries(names, contents | inner, min_size=1, max_size=4),
        max_leaves=6,
    )


PATTERN_PARTS = st.sampled_from(
    ["*", "*", "**", "?", ".", "a", "b", ".py", "src", "é", "[ab]", "[!a]", "[^a]", "[a-c]", "[]a]", "{a,b}",
     "{a,{b,c}}", "{a}", "{,b}", "[", "]", "{", "}", ",", "-"]
)  # fmt: skip
PATTERN_SEGMENTS = st.lists(PATTERN_PARTS, max_size=4).map("".join) | st.sampled_from(
    ["**", "*", "*.py", ".*"]
)
PATTERNS = st.lists(PATTERN_SEGMENTS, min_size=1, max_size=3).map("/".join)


@contextmanager
def tree(files: dict[str, Any]) -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="warren-"))
    try:
        _fill(root, files)
        yield root
    finally:
        shutil.rmtree(root)


def _fill(directory: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        if isinstance(content, dict):
            (directory / name).mkdir()
            _fill(directory / name, content)
        else:
            (directory / name).write_bytes(content)


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(root)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in root.rglob("*")
    }


def normal(result: Any) -> dict[str, Any]:
    """Return a result with what is found in order, and once: see the module's docstring."""
    fields = asdict(result)
    for name in ("matches", "entries"):
        if fields.get(name) is not None:
            found = {tuple(sorted(item.items())) for item in fields[name]}
            fields[name] = sorted(found)
    return fields


def paths(result: GlobResult) -> list[str]:
    return sorted(match["path"] for match in result.matches or [])


@quick
@given(trees(WILD_NAMES, st.just(b"")), st.lists(PATTERNS, min_size=1, max_size=3))
async def test_glob(files: dict[str, Any], patterns: list[str]) -> None:
    with tree(files) as root:
        oracle = ShellSandbox(root)
        for pattern in patterns:
            ours = await OURS.aglob(pattern, str(root))
            assert normal(ours) == normal(oracle.glob(pattern, str(root))), pattern
            # wcmatch has a dialect of its own of these
            if not set("[]{},") & set(pattern) and not pattern.endswith("**/"):
                theirs = FilesystemBackend(root, virtual_mode=False).glob(pattern, str(root))
                assert paths(ours) == paths(theirs), pattern


@quick
@given(trees(NAMES, st.just(b"")), PATTERNS, st.sampled_from(["/", "", "nowhere", "a", "b.py", "src/.."]))
async def test_glob_from_any_root(files: dict[str, Any], pattern: str, where: str) -> None:
    with tree(files) as root:
        path = f"{root}/{where}".removesuffix("/" if where else "")
        ours = await OURS.aglob(pattern, path)
        assert normal(ours) == normal(ShellSandbox(root).glob(pattern, path))


GREP_TEXTS = st.sampled_from(
    ["foo", "", " ", "é", "x.y", "$(foo)", "-e", "*", "\\n", "oo b", "\r", "foo\nFOO", "foo\n"]
)
INCLUDES = st.none() | st.lists(
    st.sampled_from(
        ["*", "?", ".py", ".txt", "a", "é", "[ab]", "[!a]", "[^a]", "[[:alpha:]]", "\\[", "[", "-", " "]
    ),
    min_size=1,
    max_size=4,
).map("".join)


@quick
@given(
    trees(NAMES, TEXTS.map(str.encode) | st.just(b"foo\n\0")),
    GREP_TEXTS,
    INCLUDES,
    st.none() | st.integers(1, 4),
)
async def test_grep(files: dict[str, Any], text: str, glob: str | None, max_count: int | None) -> None:
    assume(
        str(files).isascii() or not set("?[") & set(glob or "")
    )  # of which grep takes bytes for characters
    with tree(files) as root:
        oracle = ShellSandbox(root)
        everything = await OURS.agrep(text, str(root), glob)
        assert normal(everything) == normal(oracle.grep(text, str(root), glob))
        if max_count:  # which of all matches come first is open
            ours = await OURS.agrep(text, str(root), glob, max_count=max_count)
            theirs = oracle.grep(text, str(root), glob, max_count=max_count)
            assert ours.truncated == theirs.truncated
            assert len(ours.matches or []) == len(theirs.matches or [])
            assert all(match in (everything.matches or []) for match in ours.matches or [])


GREP_PATHS = st.lists(
    st.lists(st.sampled_from(["*", "**", "?", ".py", "a", "src", "é", "[ab]", "[!a]", "."]), max_size=3).map(
        "".join
    ),
    min_size=2,
    max_size=3,
).map("/".join)


@quick
@given(trees(NAMES, TEXTS.map(str.encode)), GREP_TEXTS.filter(lambda text: "\n" not in text), GREP_PATHS)
async def test_grep_in_files_chosen_by_their_paths(files: dict[str, Any], text: str, glob: str) -> None:
    assume(text != "\r")  # in deepagents' script it ends a line here, and is part of one without a path
    with tree(files) as root:
        ours = await OURS.agrep(text, str(root), glob)
        assert normal(ours) == normal(ShellSandbox(root).grep(text, str(root), glob)), glob


@quick
@given(TEXTS.map(str.encode), GREP_TEXTS, st.sampled_from([None, "*.txt", "*.py", "a/*.py"]))
async def test_grep_in_one_file(content: bytes, text: str, glob: str | None) -> None:
    assume(not (glob and "/" in glob and set("\r\n") & set(text)))
    with tree({"one.txt": content}) as root:
        path = f"{root}/one.txt"
        assert normal(await OURS.agrep(text, path, glob)) == normal(ShellSandbox(root).grep(text, path, glob))


@quick
@given(
    CONTENTS,
    st.integers(-2, 12),
    st.integers(-1, 12),
    st.sampled_from(["f", "f.txt", "f.png", "f.PDF", "f.mkv"]),
)
@example(b"", 0, 0, "f")
@example(b"a\r", 0, 1, "f")
@example("é".encode() * 4095 + b"a" + "é".encode() * 10, 0, 10, "f")
async def test_read(content: bytes, offset: int, limit: int, name: str) -> None:
    with tree({name: content}) as root:
        ours = await OURS.aread(f"{root}/{name}", offset, limit)
        theirs = ShellSandbox(root).read(f"{root}/{name}", offset, limit)
    if "unexpected server response" in (theirs.error or ""):
        assert ours.file_data
    else:
        assert ours == theirs


@settings(quick, max_examples=EXAMPLES // 2)
@given(
    st.lists(
        st.sampled_from([0, 1, 100, 9_000, 200_000, 511_790, 511_791, 511_792, 511_793, 600_000]), max_size=4
    ),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["a", "é", "日", "😀"]),
    st.booleans(),
    st.integers(0, 4),
    st.integers(1, 5),
)
@example([1_200_000], "\n", "a", False, 0, 2000)
@example([1_200_000, 1], "\n", "a", False, 0, 2000)
async def test_read_of_long_files(  # noqa: PLR0913, PLR0917
    sizes: list[int], end: str, char: str, ends: bool, offset: int, limit: int
) -> None:
    text = end.join(char * (size // len(char.encode())) for size in sizes) + (end if ends else "")
    with tree({"f": text.encode()}) as root:
        ours = await OURS.aread(f"{root}/f", offset, limit)
        assert ours == ShellSandbox(root).read(f"{root}/f", offset, limit)


EDITS = st.sampled_from(
    ["foo", "foo\n", "foo\nfoo", "\n", "\r\n", "foo\r\n", "FOO", "é", "o", "b\n\n", " ", "x" * 60_000]
)


@quick
@given(CONTENTS | st.just(b"\xff foo"), EDITS, EDITS | st.just(""), st.booleans())
@example(b"foo\r\nfoo\r\n", "foo\nfoo", "bar\nbar", False)
async def test_edit(content: bytes, old: str, new: str, replace_all: bool) -> None:
    with tree({"f": content}) as root, tree({"f": content}) as other:
        ours = await OURS.aedit(f"{root}/f", old, new, replace_all)
        theirs = ShellSandbox(other).edit(f"{root}/f".replace(str(root), str(other)), old, new, replace_all)
        assert (ours.occurrences, (ours.error or "").replace(str(root), str(other))) == (
            theirs.occurrences,
            theirs.error or "",
        )
        assert snapshot(root) == snapshot(other)


@quick
@given(
    trees(WILD_NAMES, st.just(b"")), st.sampled_from(["", "/", "/a", "/b.py", "/nowhere", "/a/", "/src/.."])
)
async def test_ls(files: dict[str, Any], where: str) -> None:
    with tree(files) as root:
        (root / "link").symlink_to("src")
        (root / "broken").symlink_to("nowhere")
        assert normal(await OURS.als(f"{root}{where}")) == normal(ShellSandbox(root).ls(f"{root}{where}"))


@quick
@given(
    trees(WILD_NAMES, st.just(b"")),
    st.sampled_from(["a", "b.py", "src", "nowhere", "link", "broken", "a/", "."]),
)
async def test_delete(files: dict[str, Any], where: str) -> None:
    with tree(files) as root, tree(files) as other:
        for each in (root, other):
            (each / "link").symlink_to("src")
            (each / "broken").symlink_to("nowhere")
        ours = await OURS.adelete(f"{root}/{where}")
        theirs = ShellSandbox(other).delete(f"{other}/{where}")
        assert bool(ours.error) == bool(theirs.error)
        assert ("not found" in (ours.error or "")) == ("not found" in (theirs.error or ""))
        assert snapshot(root) == snapshot(other)


@quick
@given(TEXTS, st.sampled_from(["new", "old", "dir", "deep/er/new", "old/below", "link", "broken", ""]))
async def test_write(content: str, where: str) -> None:
    files = {"old": b"what was there", "dir": {}}
    with tree(files) as root, tree(files) as other:
        for each in (root, other):
            (each / "old").chmod(0o750)
            (each / "link").symlink_to("old")
            (each / "broken").symlink_to("made")
        ours = await OURS.awrite(f"{root}/{where}", content)
        theirs = ShellSandbox(other).write(f"{other}/{where}", content)
        assert bool(ours.error) == bool(theirs.error)
        assert snapshot(root) == snapshot(other)


@pytest.mark.parametrize("path", ["relative", "", "/tmp", "/dev/null/below"])
async def test_paths_that_cannot_be_written(path: str, tmp_path: Path) -> None:
    assert (await OURS.awrite(path, "")).error
    assert ShellSandbox(tmp_path).write(path, "").error
