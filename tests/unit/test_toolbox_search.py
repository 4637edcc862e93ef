"""Searches: decisions that differ from deepagents' scripts on purpose, limits, and attacks on them."""

import os
import time
from pathlib import Path

import pytest
from deepagents.backends.filesystem import FilesystemBackend

from sandbox.file_operations import FileOperations
from sandbox.toolbox import search
from sandbox.toolbox.patterns import PatternError, compile_pattern, expand_braces
from tests.unit.local_toolbox import LocalTransport, ShellSandbox

OURS = FileOperations(LocalTransport())


async def found(pattern: str, root: Path) -> list[str]:
    result = await OURS.aglob(pattern, str(root))
    assert result.error is None
    return [match["path"].removeprefix(f"{root}/") for match in result.matches or []]


async def lines(text: str, root: Path, glob: str | None = None) -> list[tuple[str, int, str]]:
    result = await OURS.agrep(text, str(root), glob)
    assert result.error is None
    return [(m["path"].removeprefix(f"{root}/"), m["line"], m["text"]) for m in result.matches or []]


def put(root: Path, **files: str | bytes) -> None:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


async def test_binary_files_are_passed_over(tmp_path: Path) -> None:
    """As grep does; deepagents' script for paths searches them as well."""
    put(tmp_path, text="foo", binary=b"foo\n\0foo\n")
    assert await lines("foo", tmp_path) == [("text", 1, "foo")]
    assert await lines("foo", tmp_path, "**/*") == [("text", 1, "foo")]
    assert await lines("foo", tmp_path / "binary") == []
    assert ShellSandbox(tmp_path).grep("foo", str(tmp_path / "binary")).matches == []


async def test_text_in_an_old_encoding_is_searched(tmp_path: Path) -> None:
    """Grep takes it for binary in a UTF-8 locale, ripgrep does not."""
    put(tmp_path, latin="caf\xe9 foo".encode("latin-1"))
    assert await lines("foo", tmp_path) == [("latin", 1, "caf\ufffd foo")]


async def test_braces_choose_files_to_search(tmp_path: Path) -> None:
    """As in FilesystemBackend; deepagents' sandbox takes them literally, and finds nothing."""
    put(tmp_path, a_ts="x", b_tsx="x", c_js="x", src__d_ts="x")
    (tmp_path / "{e,f}.ts").write_text("x")
    backend = FilesystemBackend(tmp_path, virtual_mode=False)
    for glob in ("*.{ts,tsx}", "src/*.{ts,tsx}"):
        theirs = backend.grep("x", str(tmp_path), glob).matches or []
        assert {name for name, _, _ in await lines("x", tmp_path, glob)} == {
            match["path"].removeprefix(f"{tmp_path}/") for match in theirs
        }
    assert ShellSandbox(tmp_path).grep("x", str(tmp_path), "*.{ts,tsx}").matches == []
    assert await lines("x", tmp_path, "{e,f}.ts") == [("{e,f}.ts", 1, "x")]


async def test_hidden_files_are_searched_as_deepagents_sandboxes_do(tmp_path: Path) -> None:
    """FilesystemBackend leaves hidden files out when there is a pattern for names."""
    put(tmp_path, _env="x", _github__ci_yml="x", _git__config="x")
    assert [name for name, _, _ in await lines("x", tmp_path)] == [".env", ".github/ci.yml"]
    assert [name for name, _, _ in await lines("x", tmp_path, "*")] == [".env", ".github/ci.yml"]
    assert await lines("x", tmp_path, "**/*") == []
    assert await lines("x", tmp_path / ".git") == [("config", 1, "x")]


async def test_a_caret_negates_a_class_everywhere(tmp_path: Path) -> None:
    """In deepagents' script for paths it is one of the class."""
    put(tmp_path, d__a="x", d__b="x")
    assert [name for name, _, _ in await lines("x", tmp_path, "d/[^a]")] == ["d/b"]
    assert await found("d/[^a]", tmp_path) == ["d/b"]


async def test_backslashes_in_names_stay(tmp_path: Path) -> None:
    """Deepagents' script turns them into slashes, and so names a file that is not there."""
    (tmp_path / "a\\b").write_text("")
    assert await found("*", tmp_path) == ["a\\b"]


async def test_directories_behind_links_are_not_searched_and_files_behind_links_only_within(
    tmp_path: Path,
) -> None:
    put(tmp_path, root__real__f="x", outside="x")
    root = tmp_path / "root"
    (root / "linked").symlink_to("real")
    (root / "up").symlink_to("..")
    (root / "g").symlink_to("real/f")
    (root / "h").symlink_to("../outside")
    (root / "gone").symlink_to("nowhere")
    assert await found("*", root) == ["g", "real/f"]
    assert await found("**/*", root) == ["g", "real/f"]
    assert await found("linked/*", root) == []
    assert await lines("x", root) == [("real/f", 1, "x")]
    assert await lines("x", root, "**/g") == [("real/f", 1, "x")]
    assert await lines("x", root, "**/h") == []


@pytest.mark.parametrize("glob", [None, "*", "/**/*"])
async def test_a_search_that_finds_too_much_says_so(
    tmp_path: Path, glob: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, a="x\nx\n", b="x\nx\n", c="x\n")
    complete = await OURS.agrep("x", str(tmp_path), glob, max_count=5)
    assert (len(complete.matches or []), complete.truncated) == (5, False)
    cut = await OURS.agrep("x", str(tmp_path), glob, max_count=4)
    assert (len(cut.matches or []), cut.truncated) == (4, True)
    monkeypatch.setattr(search, "ANSWER_BYTES", 2 * len(f"{tmp_path}/a\x001:x\n"))
    short = await OURS.agrep("x", str(tmp_path), glob)
    assert (len(short.matches or []), short.truncated) == (2, True)


async def test_a_glob_that_finds_too_much_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, a="", b="", c="")
    monkeypatch.setattr(search, "GLOB_MATCHES", 3)
    complete = await OURS.aglob("*", str(tmp_path))
    assert (len(complete.matches or []), complete.truncated, complete.truncation_reason) == (3, False, None)
    monkeypatch.setattr(search, "GLOB_MATCHES", 2)
    cut = await OURS.aglob("*", str(tmp_path))
    assert (len(cut.matches or []), cut.truncated, cut.truncation_reason) == (2, True, "budget")
    monkeypatch.setattr(search, "GLOB_SECONDS", -1)
    late = await OURS.aglob("*", str(tmp_path))
    assert (late.matches, late.truncated, late.truncation_reason) == ([], True, "budget")
    monkeypatch.setattr(search, "LONGEST_SECONDS", -1)
    assert (await OURS.agrep("", str(tmp_path))).truncated


async def test_a_glob_reads_no_directory_in_which_nothing_can_match(tmp_path: Path) -> None:
    """What is unreadable elsewhere is no reason to call the result incomplete, as deepagents does."""
    put(tmp_path, src__a_py="")
    deep = tmp_path
    for _ in range(20):
        deep /= "x" * 100
        deep.mkdir()
    descriptor = os.open(deep, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("x" * 100, dir_fd=descriptor)
        descriptor, outer = os.open("x" * 100, os.O_RDONLY, dir_fd=descriptor), descriptor
        os.close(outer)
    os.close(descriptor)
    assert (await OURS.aglob("*.py", str(tmp_path))).truncation_reason == "unreadable"
    assert (await OURS.aglob("src/*.py", str(tmp_path))).truncation_reason is None
    assert (await OURS.adelete(str(tmp_path / ("x" * 100)))).error is None


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("../*", "invalid_pattern"),
        ("a\\..\\b", "invalid_pattern"),
        ("{a,b}" * 20, "pattern_too_broad"),
        ("{" * 2000 + "a,b" + "}" * 2000, None),
        ("{a}" * 1300, "pattern_too_broad"),
        ("x" * 100_000, "pattern_too_broad"),
        ("*a" * 100 + "b", None),
        ("/".join(["**", "*"] * 30), None),
        ("[", None),
        ("[z-a]", None),
        ("[[:nonsense:]]", None),
        ("[!]", None),
        ("\\", None),
    ],
)
async def test_hostile_patterns_are_refused_or_end_soon(
    tmp_path: Path, pattern: str, problem: str | None
) -> None:
    put(tmp_path, d__d__d__d__d__d__f="x")
    (tmp_path / ("a" * 250)).write_text("x")
    began = time.monotonic()
    result = await OURS.aglob(pattern, str(tmp_path))
    assert str(result.error).endswith(problem) if problem else result.error is None
    await OURS.agrep("x", str(tmp_path), pattern)
    assert time.monotonic() - began < 3


async def test_lines_across_the_pieces_that_are_read_are_found_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox.toolbox.contents.CHUNK_BYTES", 7)
    monkeypatch.setattr(search, "_SHORT_BYTES", 4)
    put(tmp_path, f="one\r\ntwo foo two\r\n\r\nfoo\rfoo\nlast foo")
    expected = [("f", 2, "two foo two\r"), ("f", 4, "foo\rfoo"), ("f", 5, "last foo")]
    assert await lines("foo", tmp_path) == expected
    by_path = [("f", 2, "two foo two"), ("f", 4, "foo"), ("f", 5, "foo"), ("f", 6, "last foo")]
    assert await lines("foo", tmp_path, "**/f") == by_path
    window = await OURS.aread(str(tmp_path / "f"), 2, 3)
    assert window.file_data is not None
    assert (window.file_data["content"], window.total_lines) == ("\nfoo\nfoo", 6)


async def test_a_line_is_searched_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: gigabytes without any end of a line, to fill the toolbox's memory."""
    monkeypatch.setattr("sandbox.toolbox.contents.CHUNK_BYTES", 100)
    monkeypatch.setattr(search, "_SHORT_BYTES", 100)
    monkeypatch.setattr(search, "LINE_BYTES", 200)
    put(tmp_path, f="foo" + "x" * 1000 + "bar\nbar\n")
    assert [(number, len(text)) for _, number, text in await lines("foo", tmp_path)] == [(1, 200)]
    assert await lines("bar", tmp_path) == [("f", 2, "bar")]


def test_as_many_braces_as_deepagents_allows() -> None:
    assert len(expand_braces("{a,b,c,d,e,f,g,h,i,j}" * 3)) == 1000
    with pytest.raises(PatternError):
        compile_pattern("{a,b,c,d,e,f,g,h,i,j}" * 3 + "{a,b}")


async def test_pseudo_file_systems_are_left_out_of_a_search_of_everything() -> None:
    result = await OURS.aglob("/proc/version")
    assert result.matches == []
    assert (await OURS.aglob("version", "/proc")).matches
