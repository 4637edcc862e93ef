"""What the toolbox does with single files and trees, where it is on its own: attacks, limits, decisions."""

# The tests ask the file system directly; nothing else waits for their event loop.
# ruff: noqa: ASYNC240

import os
import pwd
import socket
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from deepagents.backends.sandbox import MAX_BINARY_BYTES

from sandbox.file_operations import FileOperations
from sandbox.toolbox import contents, deletion, files
from tests.unit.local_toolbox import LocalTransport, ShellSandbox

OURS = FileOperations(LocalTransport())
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def nasty(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Return paths of what is no regular file and might hold up whoever opens it."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to_fifo").symlink_to("fifo")
    (tmp_path / "directory").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        names = ("fifo", "loop", "to_fifo", "directory", "socket")
        yield {name: str(tmp_path / name) for name in names} | {
            "device": "/dev/zero",
            "nul": f"{tmp_path}/a\0b",
        }


NASTY = ["fifo", "loop", "to_fifo", "directory", "socket", "device", "nul"]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", NASTY)
async def test_what_is_no_regular_file_is_an_error_and_holds_nothing_up(
    nasty: dict[str, str], name: str
) -> None:
    path = nasty[name]
    assert (await OURS.aread(path)).error
    assert (await OURS.awrite(path, "x")).error
    assert (await OURS.aedit(path, "a", "b")).error
    [download] = await OURS.adownload_files([path])
    assert download.error == ("is_directory" if name == "directory" else "invalid_path")
    [upload] = await OURS.aupload_files([(path, b"x")])
    assert upload.error == ("is_directory" if name == "directory" else "invalid_path")
    if name != "directory":
        assert (await OURS.als(path)).error
        assert (await OURS.agrep("x", path)).matches == []


@pytest.mark.timeout(10)
async def test_searches_pass_over_what_is_no_regular_file(nasty: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert [match["path"] for match in (await OURS.aglob("*", str(tmp_path))).matches or []] == [
        f"{tmp_path}/file"
    ]
    for glob in (None, "*", "**/*"):
        assert len((await OURS.agrep("x", str(tmp_path), glob)).matches or []) == 1


@pytest.mark.timeout(20)
async def test_swapping_a_file_for_a_pipe_never_holds_a_read_up(tmp_path: Path) -> None:
    """The attack: between looking at a file and opening it, it becomes a pipe that nobody writes to."""
    (tmp_path / "a").write_text("text")
    os.mkfifo(tmp_path / "b")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for source, target in (("a", "c"), ("b", "a"), ("c", "b")):
                (tmp_path / source).rename(tmp_path / target)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(300):
            result = await OURS.aread(str(tmp_path / "a"))
            assert result.error or result.file_data == {"content": "text", "encoding": "utf-8"}
    finally:
        stop.set()
        thread.join()


async def test_text_that_goes_bad_later_on_is_still_read(tmp_path: Path) -> None:
    """Deepagents' script ends in a traceback there."""
    (tmp_path / "log").write_bytes(b"fine\n" * 2000 + b"b\xffd\n")
    result = await OURS.aread(str(tmp_path / "log"), 2000)
    assert result.file_data == {"content": "b\ufffdd", "encoding": "utf-8"}
    assert ShellSandbox(tmp_path).read(str(tmp_path / "log"), 2000).file_data is None


async def test_binary_content_is_limited_whatever_its_name(tmp_path: Path) -> None:
    """Deepagents limits only what is binary by its name."""
    (tmp_path / "core").write_bytes(b"\xff" * (MAX_BINARY_BYTES + 1))
    assert "exceeds maximum preview size of 512000 bytes" in str(
        (await OURS.aread(str(tmp_path / "core"))).error
    )
    (tmp_path / "core").write_bytes(b"\xff" * MAX_BINARY_BYTES)
    assert (await OURS.aread(str(tmp_path / "core"))).file_data


async def test_a_huge_line_is_read_within_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a sparse file of 8 GiB without any end of a line, to fill the toolbox's memory."""
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(8 << 30)
    monkeypatch.setattr(files, "LONGEST_SECONDS", 0.3)
    tracemalloc.start()
    result = await OURS.aread(str(tmp_path / "sparse"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "too long" in str(result.error)
    assert peak < 8 << 20


async def test_lines_beyond_a_slow_reach_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "long").write_bytes(b"x" * (1 << 20))
    monkeypatch.setattr(files, "LONGEST_SECONDS", -1)
    assert "too long" in str((await OURS.aread(str(tmp_path / "long"), 5)).error)


async def test_an_edit_cannot_make_a_file_of_any_size(tmp_path: Path) -> None:
    """The attack: 2 MiB of edits whose result would be 1 TiB."""
    (tmp_path / "seed").write_bytes(b"a" * (1 << 20))
    result = await OURS.aedit(str(tmp_path / "seed"), "a", "b" * (1 << 20), replace_all=True)
    assert "too large" in str(result.error)
    assert (tmp_path / "seed").stat().st_size == 1 << 20


async def test_an_edit_of_too_large_a_file_is_an_error(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(files.EDIT_BYTES + 1)
    assert "too large" in str((await OURS.aedit(str(tmp_path / "big"), "a", "b")).error)


async def test_a_full_disk_costs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old content stays, and nothing is left lying about."""

    def full(descriptor: int, content: bytes) -> None:
        os.write(descriptor, content[:1])
        raise OSError(28, "No space left on device")

    (tmp_path / "precious").write_text("old content")
    monkeypatch.setattr(contents, "_write_all", full)
    for result in (
        await OURS.aedit(str(tmp_path / "precious"), "old", "new"),
        await OURS.awrite(str(tmp_path / "precious"), "new"),
    ):
        assert "No space left" in str(result.error)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("precious", "old content")]


async def test_all_names_of_a_file_get_what_is_written_to_one(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("old")
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    (tmp_path / "link").symlink_to("one")
    assert (await OURS.awrite(str(tmp_path / "link"), "new")).error is None
    assert (tmp_path / "two").read_text() == "new"
    assert (tmp_path / "link").is_symlink()


async def test_names_that_are_no_text_are_listed_and_deleted(tmp_path: Path) -> None:
    """What cannot be text would break the checkpoint and the call of the model, so it is shown as U+FFFD."""
    directory = os.fsencode(tmp_path) + b"/d\xff"
    os.mkdir(directory)  # noqa: PTH102 - a name in bytes
    with open(directory + b"/new\nline\xfe", "wb") as file:  # noqa: ASYNC230, PTH123 - a name in bytes
        file.write(b"needle")
    assert [entry["path"] for entry in (await OURS.als(str(tmp_path))).entries or []] == [
        f"{tmp_path}/d\ufffd"
    ]
    shown = f"{tmp_path}/d\ufffd/new\nline\ufffd"
    assert [match["path"] for match in (await OURS.aglob("*", str(tmp_path))).matches or []] == [shown]
    assert (await OURS.agrep("needle", str(tmp_path))).matches == [
        {"path": shown, "line": 1, "text": "needle"}
    ]
    assert (await OURS.adelete(str(tmp_path))).error is None
    assert not tmp_path.exists()


async def test_the_name_as_the_kernel_has_it_can_be_used(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    assert (await OURS.aupload_files([(path, b"x")]))[0].error is None
    assert (await OURS.adownload_files([path]))[0].content == b"x"


@pytest.mark.parametrize("path", ["/tmp/\ud800", "/tmp/a\0b", "/" + "x" * 300, "/" + "x/" * 5000])
async def test_paths_that_cannot_be_are_errors(path: str) -> None:
    assert (await OURS.aread(path)).error
    assert (await OURS.awrite(path, "")).error
    assert (await OURS.aedit(path, "a", "b")).error
    assert (await OURS.adelete(path)).error
    assert (await OURS.als(path)).error
    assert (await OURS.aglob("*", path)).error
    assert (await OURS.adownload_files([path]))[0].error == "invalid_path"


async def test_text_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("a")
    assert (await OURS.awrite(str(tmp_path / "f"), "\ud800")).error
    assert (await OURS.aedit(str(tmp_path / "f"), "a", "\ud800")).error
    assert (await OURS.aedit(str(tmp_path / "f"), "\ud800", "a")).error
    assert (tmp_path / "f").read_text() == "a"


async def test_a_nest_deeper_than_any_path_is_deleted(tmp_path: Path) -> None:
    """The attack: directories within directories until no path can name the last, and no more can be open."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d" * 100, dir_fd=descriptor)
        inner = os.open("d" * 100, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    assert (await OURS.aglob("*", str(tmp_path))).truncation_reason == "unreadable"
    assert (await OURS.agrep("x", str(tmp_path))).matches == []
    assert (await OURS.adelete(str(tmp_path))).error is None
    assert not tmp_path.exists()


async def test_links_are_deleted_and_not_what_they_lead_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to("../kept")
    (tmp_path / "link").symlink_to("kept")
    assert (await OURS.adelete(str(tmp_path / "tree"))).error is None
    assert (await OURS.adelete(str(tmp_path / "link"))).error is None
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "file"]


@pytest.mark.parametrize("path", ["/", "//", "/..", ".", ".."])
async def test_what_is_above_everything_is_not_deleted(path: str) -> None:
    assert (await OURS.adelete(path)).error
    assert ShellSandbox(REPOSITORY / "tests").delete("/").error


async def test_deleting_goes_on_where_its_time_was_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree").mkdir()
    for number in range(10):
        (tmp_path / "tree" / str(number)).write_text("")
    times = iter(range(10_000))
    monkeypatch.setattr(deletion, "LONGEST_SECONDS", 5)
    monkeypatch.setattr(deletion.time, "monotonic", lambda: next(times))
    assert deletion.delete_path({"path": str(tmp_path / "tree")}) == ({"done": False}, b"")
    assert (tmp_path / "tree").exists()
    assert (await OURS.adelete(str(tmp_path / "tree"))).error is None
    assert not (tmp_path / "tree").exists()


async def test_large_directories_are_listed_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        (tmp_path / str(number)).write_text("")
    monkeypatch.setattr(files, "LS_ENTRIES", 3)
    assert len((await OURS.als(str(tmp_path))).entries or []) == 3


async def test_downloads_stop_at_their_limit_and_the_rest_still_come(tmp_path: Path) -> None:
    for name, size in (("a", 10), ("b", 100), ("c", 5)):
        (tmp_path / name).write_bytes(b"x" * size)
    reply, data = files.download_files(
        {"paths": [f"{tmp_path}/{name}" for name in ("a", "b", "nowhere", "c")], "max_bytes": 20}
    )
    assert reply["files"][0] == 10
    assert "too large" in reply["files"][1]
    assert reply["files"][2:] == ["file_not_found", 5]
    assert len(data) == 15


async def test_many_uploads_are_answered_in_their_order(tmp_path: Path) -> None:
    uploads = [(f"{tmp_path}/{number}", bytes([number]) * (3 << 20)) for number in range(20)]
    uploads[7:7] = [("relative", b"x"), ("/" + "x" * 5000, b""), (f"{tmp_path}/empty", b"")]
    answers = await OURS.aupload_files(uploads)
    assert [answer.path for answer in answers] == [path for path, _ in uploads]
    assert [answer.path[:3] for answer in answers if answer.error] == ["rel", "/xx"]
    assert all(
        Path(path).read_bytes() == content for path, content in uploads if path.startswith(str(tmp_path))
    )


UNPRIVILEGED = """
import asyncio, os, sys
from sandbox.file_operations import FileOperations
from tests.unit.local_toolbox import LocalTransport
ours = FileOperations(LocalTransport())
if os.geteuid() == 0:
    os.setgroups([])
    os.setuid(int(sys.argv[2]))
async def main(root):
    closed = root + "/closed/inner/deepest"
    os.makedirs(closed)
    for name in ("file", "unreadable"):
        open(root + "/closed/inner/" + name, "w").close()
    os.chmod(root + "/closed/inner/unreadable", 0)
    print((await ours.adownload_files([root + "/closed/inner/unreadable"]))[0].error)
    print((await ours.awrite(root + "/closed/inner/unreadable", "x")).error.rpartition(": ")[2])
    for path in (closed, root + "/closed/inner", root + "/closed"):
        os.chmod(path, 0)
    print((await ours.als(root + "/closed")).error.rpartition(": ")[2])
    print((await ours.aread(root + "/closed/x")).error.rpartition(": ")[2])
    print((await ours.aglob("*", root)).truncation_reason)
    print((await ours.agrep("x", root)).matches)
    print((await ours.adelete("/etc/passwd")).error is not None)
    print((await ours.adelete(root + "/closed")).error, os.path.exists(root + "/closed"))
asyncio.run(main(sys.argv[1]))
"""


def test_permissions_are_told_and_do_not_keep_an_owner_from_deleting() -> None:
    """The attack: a tree of directories that nobody may enter, to be kept for ever."""
    root = tempfile.mkdtemp(dir="/tmp")
    user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
    os.chown(root, user, -1)
    program = [sys.executable, "-c", UNPRIVILEGED, root, str(user)]
    result = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    Path(root).rmdir()
    expected = ["permission_denied"] * 4 + ["unreadable", "[]", "True", "None", "False"]
    assert result.stdout.split() == expected, result.stderr
