"""Measuring a directory: what counts, and what hostile code can do about it."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from sandbox import disk
from sandbox.disk import IMMEASURABLE, disk_usage, is_nearly_full
from sandbox.disk_ledger import DiskLedger
from sandbox.settings import SandboxSettings
from sandbox.toolbox.unlinked import SMALLEST_BYTES, measure_unlinked
from sandbox.workspace import Workspaces, remove_tree

MIB = 1 << 20


def write(path: Path, size: int) -> None:
    path.write_bytes(os.urandom(size))


@contextmanager
def nest(parent: Path, levels: int) -> Iterator[Path]:
    """Make directories within each other, deeper than a path may be long, with a MiB in the last."""
    parent_descriptor = os.open(parent, os.O_RDONLY)
    (parent / "nest").mkdir()
    descriptor = os.open(parent / "nest", os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d" * 100, dir_fd=descriptor)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    file = os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor)
    os.write(file, os.urandom(MIB))
    os.close(file)
    os.close(descriptor)
    yield parent / "nest"
    remove_tree(parent_descriptor, "nest")  # pytest could not
    os.close(parent_descriptor)


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do something over and over in another thread for the length of a block."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.is_set():
            work()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_files_count_with_what_they_take_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "file", MIB)
    assert MIB <= disk_usage(tmp_path) <= MIB + (64 << 10)


def test_a_sparse_file_counts_with_what_is_in_it_and_not_with_its_size(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(os.urandom(MIB))
    assert MIB <= disk_usage(tmp_path) <= MIB + (64 << 10)


def test_a_file_with_many_names_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "file", MIB)
    for number in range(20):
        (tmp_path / f"link {number}").hardlink_to(tmp_path / "file")
    assert 0.9 * MIB <= disk_usage(tmp_path) <= MIB + (128 << 10)


def test_empty_files_count_too(tmp_path: Path) -> None:
    """The attack: to take all inodes of a disk, or all time of the server, with files that take nothing."""
    for number in range(1000):
        (tmp_path / str(number)).touch()
    assert disk_usage(tmp_path) >= 1000 * disk.SMALLEST_BYTES


def test_too_many_names_are_not_counted_to_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(101):
        (tmp_path / str(number)).touch()
    monkeypatch.setattr(disk, "MOST_NAMES", 100)
    assert disk_usage(tmp_path) == IMMEASURABLE


def test_links_are_not_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    write(outside / "file", 4 * MIB)
    (inside / "directory").symlink_to(outside)
    (inside / "file").symlink_to(outside / "file")
    (inside / "loop").symlink_to("loop")
    assert disk_usage(inside) < MIB


def test_a_workspace_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(OSError, match="Not a directory"):
        disk_usage(tmp_path / "link")


@pytest.mark.timeout(10)
def test_nothing_is_opened_that_could_hold_the_server_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        assert disk_usage(tmp_path) < MIB


def test_names_of_any_bytes_are_counted(tmp_path: Path) -> None:
    for name in (b"new\nline", b"\xff\xfe", b"-rf", b"n" * 255):
        directory = tmp_path / os.fsdecode(name)
        directory.mkdir()
        write(directory / os.fsdecode(name), MIB)
    assert disk_usage(tmp_path) >= 4 * MIB


def test_what_lies_deeper_than_any_path_is_counted(tmp_path: Path) -> None:
    with nest(tmp_path, 200) as top:
        assert disk_usage(top) >= MIB


def test_a_nest_that_would_take_all_descriptors_is_not_followed_to_its_end(tmp_path: Path) -> None:
    with nest(tmp_path, 3000) as top:
        before = len(list(Path("/proc/self/fd").iterdir()))
        assert disk_usage(top) == IMMEASURABLE
        assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o100])
def test_directories_that_their_owner_has_closed_are_counted(unprivileged: Path, mode: int) -> None:
    """The attack: to hide a tree from a server that is not root and has the same user id."""
    inner = unprivileged / "workspace" / "outer" / "inner"
    inner.mkdir(parents=True)
    write(inner / "file", MIB)
    for directory in (inner, inner.parent, unprivileged / "workspace"):
        directory.chmod(mode)
    assert disk_usage(unprivileged / "workspace") >= MIB


def test_swapping_a_directory_for_a_link_never_leads_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: between being looked at and being opened, a directory becomes a link to one of the host."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "directory").mkdir(parents=True)
    outside.mkdir()
    write(outside / "file", 4 * MIB)
    open_directory = disk.open_directory

    def swap_and_open(name: str, parent: int) -> int:
        if name == "directory":
            (inside / name).rmdir()
            (inside / name).symlink_to(outside)
        return open_directory(name, parent)

    monkeypatch.setattr(disk, "open_directory", swap_and_open)
    assert disk_usage(inside) < MIB
    assert (inside / "directory").is_symlink()


def test_files_that_come_and_go_meanwhile_are_no_error(tmp_path: Path) -> None:
    def churn() -> None:
        (tmp_path / "directory").mkdir()
        (tmp_path / "directory" / "file").touch()
        (tmp_path / "directory" / "file").unlink()
        (tmp_path / "directory").rmdir()

    with meanwhile(churn):
        assert max(disk_usage(tmp_path) for _ in range(500)) < MIB


def test_a_large_file_that_is_moved_about_is_found(tmp_path: Path) -> None:
    """The attack: to have it always where nobody looks right now. Moving it blindly is not enough."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "a" / "file", 4 * MIB)

    def move() -> None:
        (tmp_path / "a" / "file").rename(tmp_path / "b" / "file")
        (tmp_path / "b" / "file").rename(tmp_path / "a" / "file")

    with meanwhile(move):
        assert max(disk_usage(tmp_path) for _ in range(100)) >= 4 * MIB


def test_deleted_files_that_are_still_open_are_told_by_the_toolbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = measure_unlinked({})[0]["bytes"]
    with (tmp_path / "file").open("wb") as file, (tmp_path / "file").open("rb"):
        file.write(os.urandom(8 * MIB))
        file.flush()
        (tmp_path / "file").unlink()
        assert disk_usage(tmp_path) < MIB
        assert 7 * MIB <= measure_unlinked({})[0]["bytes"] - before <= 9 * MIB


def test_each_of_them_takes_an_inode_at_least(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: empty files without a name, until the file system has no inode for anybody."""
    monkeypatch.chdir(tmp_path)
    before = measure_unlinked({})[0]["bytes"]
    with ExitStack() as stack:
        for number in range(100):
            stack.enter_context((tmp_path / str(number)).open("wb"))
            (tmp_path / str(number)).unlink()
        assert measure_unlinked({})[0]["bytes"] - before == 100 * SMALLEST_BYTES


def test_a_file_system_without_inodes_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_nearly_full(tmp_path, 0)
    assert is_nearly_full(tmp_path, 1 << 60)
    plenty = {"f_bavail": 1 << 40, "f_frsize": 4096}
    for files, left, is_full in ((1000, 10, True), (1000, 900, False), (0, 0, False)):
        status = SimpleNamespace(**plenty, f_files=files, f_favail=left)
        monkeypatch.setattr(os, "statvfs", lambda _, status=status: status)
        assert is_nearly_full(tmp_path, 1 << 30) == is_full


def test_the_first_survey_of_a_user_is_made_even_if_the_machine_has_just_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = DiskLedger(SandboxSettings(), Workspaces(tmp_path, tmp_path))
    monkeypatch.setattr("time.monotonic", lambda: 5.0)
    assert [ledger.needs_survey("alice") for _ in range(2)] == [True, False]
    assert ledger.needs_survey("bob")
    ledger.close()
