"""The threads' directories: private, and removed whatever is in them."""

import os
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from sandbox import workspace
from sandbox.errors import SandboxError
from sandbox.workspace import Workspaces, remove_tree
from storage.ids import SessionId


@pytest.fixture
def workspaces(tmp_path: Path) -> Workspaces:
    return Workspaces(tmp_path / "made" / "workspaces", Path("/on/the/docker/host"))


@pytest.fixture
def session() -> SessionId:
    return SessionId("alice-b", uuid4())


async def prepare(workspaces: Workspaces, session: SessionId) -> Path:
    await workspaces.prepare(session, os.geteuid(), os.getegid())
    return workspaces.path(session)


def remove(parent: Path, name: str) -> None:
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        remove_tree(descriptor, name)
    finally:
        os.close(descriptor)


async def test_a_workspace_has_its_session_for_a_name_and_is_private(
    workspaces: Workspaces, session: SessionId
) -> None:
    directory = await prepare(workspaces, session)
    assert directory == workspaces.root / "alice-b" / f"alice-b-{session.thread_id}"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert directory.parent.stat().st_mode & 0o777 == 0o711
    assert workspaces.root.stat().st_mode & 0o777 == 0o711
    assert workspaces.path_on_docker_host(session) == Path(f"/on/the/docker/host/alice-b/{session}")


async def test_what_is_in_a_workspace_is_kept_and_its_privacy_restored(
    workspaces: Workspaces, session: SessionId
) -> None:
    directory = await prepare(workspaces, session)
    (directory / "file").write_text("kept")
    directory.chmod(0o777)
    await prepare(workspaces, session)
    assert (directory / "file").read_text() == "kept"
    assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["link", "file"])
async def test_a_workspace_that_is_no_directory_is_refused(
    workspaces: Workspaces, session: SessionId, tmp_path: Path, kind: str
) -> None:
    directory = workspaces.path(session)
    directory.parent.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    if kind == "link":
        directory.symlink_to(elsewhere)
    else:
        directory.touch()
    with pytest.raises(SandboxError):
        await prepare(workspaces, session)
    assert elsewhere.stat().st_mode & 0o777 == 0o755


async def test_discarding_leaves_nothing_and_is_safe_to_repeat(
    workspaces: Workspaces, session: SessionId
) -> None:
    await workspaces.discard(session)
    directory = await prepare(workspaces, session)
    (directory / "sub").mkdir()
    (directory / "sub" / "file").touch()
    await workspaces.discard(session)
    await workspaces.discard(session)
    assert not directory.exists()
    assert list((workspaces.root / ".trash").iterdir()) == []


async def test_discarding_a_workspace_that_became_a_link_leaves_its_target(
    workspaces: Workspaces, session: SessionId, tmp_path: Path
) -> None:
    directory = await prepare(workspaces, session)
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "file").touch()
    directory.rmdir()
    directory.symlink_to(tmp_path / "target")
    await workspaces.discard(session)
    assert not directory.is_symlink()
    assert (tmp_path / "target" / "file").exists()
    assert list((workspaces.root / ".trash").iterdir()) == []


async def test_a_removal_that_was_interrupted_is_finished_by_the_next_sweep(
    workspaces: Workspaces, session: SessionId
) -> None:
    await workspaces.sweep()
    await prepare(workspaces, session)
    await workspaces.discard(session)
    leftover = workspaces.root / ".trash" / "alice-b-x.0123"
    (leftover / "sub").mkdir(parents=True)
    await workspaces.sweep()
    assert list((workspaces.root / ".trash").iterdir()) == []


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    tree = tmp_path / "trash" / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "link").symlink_to(tmp_path / "precious")
    (tree / "file-link").symlink_to(tmp_path / "precious" / "file")
    (tree / "loop").symlink_to(".")
    remove(tmp_path / "trash", "tree")
    assert list((tmp_path / "trash").iterdir()) == []
    assert (tmp_path / "precious" / "file").exists()


def test_a_tree_deeper_than_any_path_or_recursion_is_removed(tmp_path: Path) -> None:
    parent = os.open(tmp_path, os.O_RDONLY)
    os.mkdir("tree", dir_fd=parent)
    below = os.open("tree", os.O_RDONLY, dir_fd=parent)
    for _ in range(3000):
        os.mkdir("deeper", dir_fd=below)
        deeper = os.open("deeper", os.O_RDONLY, dir_fd=below)
        os.close(below)
        below = deeper
    os.close(below)
    remove_tree(parent, "tree")
    os.close(parent)
    assert list(tmp_path.iterdir()) == []


def test_names_of_any_bytes_and_files_of_any_kind_are_removed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in (b"new\nline", b"\xff\xfe", b"-rf", b"*", b" ", b"n" * 255):
        (tree / os.fsdecode(name)).touch()
        (tree / os.fsdecode(name[:200] + b".d")).mkdir()
    os.mkfifo(tree / "pipe")
    remove(tmp_path, "tree")
    assert list(tmp_path.iterdir()) == []


def test_more_files_than_are_listed_at_once_are_removed(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for number in range(2500):
        (tmp_path / "tree" / str(number)).touch()
    remove(tmp_path, "tree")
    assert list(tmp_path.iterdir()) == []


def test_permissions_that_the_owner_took_away_do_not_stop_removal(unprivileged: Path) -> None:
    inner = unprivileged / "tree" / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").touch()
    for directory in (inner, inner.parent, unprivileged / "tree"):
        directory.chmod(0)
    remove(unprivileged, "tree")
    assert list(unprivileged.iterdir()) == []


def test_more_directories_than_names_are_held_at_once_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: so many directories that a list of them fills the server's memory."""
    monkeypatch.setattr(workspace, "_BATCH", 3)
    for number in range(10):
        (tmp_path / "tree" / str(number) / "inner" / str(number)).mkdir(parents=True)
    lengths = []
    empty = workspace._empty

    def watched(parent: int, name: str) -> tuple[list[str], OSError | None]:
        moved, problem = empty(parent, name)
        lengths.append(len(moved))
        return moved, problem

    monkeypatch.setattr(workspace, "_empty", watched)
    remove(tmp_path, "tree")
    assert list(tmp_path.iterdir()) == []
    assert max(lengths) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file immutable")
def test_what_cannot_be_removed_does_not_keep_the_rest(tmp_path: Path) -> None:
    """An operator's `chattr +i`, say; in a sandbox nobody can do that."""
    for name in ("a", "b", "c", "d"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        (tmp_path / "tree" / name / "file").touch()
    stuck = tmp_path / "tree" / "b" / "file"
    if subprocess.run(["chattr", "+i", stuck], check=False).returncode:
        pytest.skip("this file system has no immutable files")
    try:
        with pytest.raises(PermissionError):
            remove(tmp_path, "tree")
        assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    finally:
        subprocess.run(["chattr", "-R", "-i", tmp_path], check=True)
    for leftover in tmp_path.iterdir():
        remove(tmp_path, leftover.name)
    assert list(tmp_path.iterdir()) == []
