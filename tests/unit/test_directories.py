"""The modes of Warren's own directories."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.directories import make_passable


@pytest.fixture(autouse=True)
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize(("uid", "expected"), [(0, 0o711), (1000, 0o700)])
def test_what_is_missing_is_made_passable_for_those_who_must_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, expected: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    make_passable(tmp_path / "data" / "workspaces")
    assert [mode(tmp_path / "data"), mode(tmp_path / "data" / "workspaces")] == [expected, expected]


def test_a_directory_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    make_passable(tmp_path / "data" / "workspaces")
    make_passable(tmp_path / "data")
    assert mode(tmp_path / "data") == 0o700


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(OSError, match="data"):
        make_passable(tmp_path / "data" / "workspaces")
