"""The embedded Postgres, as far as it shows without one running."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.embedded import EmbeddedPostgres
from storage.embedded_install import parse_major
from storage.embedded_locks import Registration, hold_exclusively
from storage.embedded_processes import cluster_name, find_processes
from storage.errors import EmbeddedPostgresError


def test_a_data_directory_too_deep_for_a_socket_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    data_dir = tmp_path / ("d" * 100)
    with pytest.raises(EmbeddedPostgresError, match="--data-dir"):
        EmbeddedPostgres(data_dir).acquire()
    assert not data_dir.exists()


def test_the_length_of_the_socket_path_counts_bytes_not_characters(tmp_path: Path) -> None:
    data_dir = tmp_path / ("ß" * 50)
    with pytest.raises(EmbeddedPostgresError, match="bytes"):
        EmbeddedPostgres(data_dir).acquire()


def test_a_comma_in_the_path_is_refused_since_libpq_would_split_it(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="comma"):
        EmbeddedPostgres(Path("/tmp/a,b")).acquire()


def test_nothing_runs_where_nothing_was_started(tmp_path: Path) -> None:
    postgres = EmbeddedPostgres(tmp_path / "data")
    assert postgres.running_pid() is None
    postgres.release()
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("said", "major"), [("postgres (PostgreSQL) 18.6", 18), ("postgres (PostgreSQL) 9.6.24", 9)]
)
def test_major_version_is_read(said: str, major: int) -> None:
    assert parse_major(said) == major


@pytest.mark.parametrize("said", ["", "postgres", "postgres (PostgreSQL) 19devel", "no such file"])
def test_what_is_no_version_is_an_error(said: str) -> None:
    with pytest.raises(EmbeddedPostgresError):
        parse_major(said)


def test_no_cluster_name_is_the_beginning_of_another(tmp_path: Path) -> None:
    names = []
    for index in range(20):
        cluster = tmp_path / str(index)
        cluster.mkdir()
        names.append(cluster_name(cluster))
    assert len(set(names)) == len(names)
    assert len({len(name) for name in names}) == 1


def test_a_cluster_keeps_its_name_when_it_is_moved(tmp_path: Path) -> None:
    cluster = tmp_path / "here"
    cluster.mkdir()
    name = cluster_name(cluster)
    assert cluster_name(cluster.rename(tmp_path / "there")) == name


def test_a_program_that_only_mentions_the_cluster_is_not_one_of_its_processes(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "input()", f"cluster_name={cluster_name(tmp_path)}"], stdin=subprocess.PIPE
    ) as impostor:
        assert find_processes(tmp_path) == []
        impostor.communicate(b"\n")


def test_a_registration_is_the_last_one_only_when_alone(tmp_path: Path) -> None:
    first, second = Registration(tmp_path / "lock", timeout=0), Registration(tmp_path / "lock", timeout=0)
    assert not first.is_last()
    first.end()
    assert second.is_last()
    second.end()


def test_a_copy_of_the_descriptor_does_not_prolong_a_registration(tmp_path: Path) -> None:
    registration = Registration(tmp_path / "lock", timeout=0)
    copy = os.dup(registration._descriptor)
    registration.end()
    other = Registration(tmp_path / "lock", timeout=0)
    assert other.is_last()
    other.end()
    os.close(copy)


def test_waiting_for_a_lock_ends_with_an_error_that_names_it(tmp_path: Path) -> None:
    with (
        hold_exclusively(tmp_path / "lock", timeout=0),
        pytest.raises(EmbeddedPostgresError, match="lock"),
        hold_exclusively(tmp_path / "lock", timeout=0),
    ):
        pass


def test_nobody_registers_while_the_lock_is_held_exclusively(tmp_path: Path) -> None:
    with (
        hold_exclusively(tmp_path / "lock", timeout=0),
        pytest.raises(EmbeddedPostgresError, match="lock"),
    ):
        Registration(tmp_path / "lock", timeout=0)
    Registration(tmp_path / "lock", timeout=0).end()


def test_a_lock_file_that_is_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        Registration(tmp_path / "lock", timeout=0)
    assert not (tmp_path / "elsewhere").exists()
