"""The command line: what is wrong is said before anything starts, and what was started is stopped."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from server.child import ChildServer, clean_environment, free_port, temporary_data_dir
from server.serve import PROJECT
from storage.embedded import EmbeddedPostgres


def warren(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        cwd=PROJECT,
        env={**clean_environment(), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def data_dir() -> Path:
    with temporary_data_dir() as path:
        yield path


def serve(data_dir: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return warren("serve", "--data-dir", str(data_dir), "--port", str(free_port()), *arguments, **environment)


@pytest.mark.parametrize("command", [[], ["serve"], ["demo"], ["test"], ["bench"], ["doctor"]])
def test_every_command_explains_itself(command: list[str]) -> None:
    shown = warren(*command, "--help")
    assert shown.returncode == 0
    assert "usage: warren" in shown.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["serve", "--port", "0"],
        ["serve", "--port", "x"],
        ["serve", "--jobs", "0"],
        ["serve", "x"],
    ],
)
def test_what_cannot_be_read_is_a_usage_error(arguments: list[str]) -> None:
    assert warren(*arguments).returncode == 2


def test_a_busy_port_is_told_before_anything_starts(data_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = warren("serve", "--data-dir", str(data_dir), "--port", port)
    assert ended.returncode == 1
    assert port in ended.stderr
    assert list(data_dir.iterdir()) == []


@pytest.mark.parametrize("key", ["tooshort", "change-me-change-me-change-me-change-me"])
def test_a_weak_key_stops_the_start_and_is_not_printed(data_dir: Path, key: str) -> None:
    ended = serve(data_dir, SECRET_KEY=key)
    assert ended.returncode == 1
    assert "SECRET_KEY" in ended.stderr
    assert key not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://warren:s3cr3t-pw@127.0.0.1:1/warren",
        "postgresql://warren:s3cr3t-pw@127.0.0.1:notaport/x",
        "host=127.0.0.1 port=1 password='s3cr3t-pw'",
        "s3cr3t-pw",
    ],
)
def test_an_unusable_database_stops_the_start_without_its_password(data_dir: Path, url: str) -> None:
    ended = serve(data_dir, DATABASE_URL=url)
    assert ended.returncode == 1
    assert "DATABASE_URL" in ended.stderr
    assert "s3cr3t-pw" not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("model", "named"),
    [("openai:gpt-5.5", "OPENAI_API_KEY"), ("zhipuai:glm-4.6", "ZHIPUAI_API_KEY"), ("gpt-5.5", "MODEL")],
)
def test_a_model_that_cannot_be_asked_stops_the_start(data_dir: Path, model: str, named: str) -> None:
    ended = serve(data_dir, MODEL=model)
    assert ended.returncode == 1
    assert named in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("APPROVE", "execute,launch_missiles"),
        ("SANDBOX_PIDS", "-1"),
        ("SANDBOX_EGRESS_ALLOW", "https://pypi.org"),
        ("QUEUE_WAKE", "maybe"),
    ],
)
def test_a_setting_that_cannot_be_read_stops_the_start(data_dir: Path, variable: str, value: str) -> None:
    ended = serve(data_dir, **{variable: value})
    assert ended.returncode == 1
    assert variable in ended.stderr.upper()
    assert "Traceback" not in ended.stderr


def test_a_data_directory_inside_the_project_is_refused() -> None:
    ended = serve(PROJECT / "data")
    assert ended.returncode == 1
    assert not (PROJECT / "data").exists()


def test_an_unreachable_docker_host_is_named_with_a_fix(data_dir: Path) -> None:
    ended = serve(data_dir, DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert ended.returncode == 1
    assert "unix:///nonexistent/docker.sock" in ended.stderr


def test_a_runtime_that_the_engine_does_not_have_is_named_at_the_start_and_by_doctor(data_dir: Path) -> None:
    ended = serve(data_dir, SANDBOX_RUNTIME="nosuch")
    assert ended.returncode == 1
    assert "nosuch" in ended.stderr
    assert "runc" in ended.stderr
    shown = warren("doctor", "--data-dir", str(data_dir), SANDBOX_RUNTIME="nosuch").stdout
    assert [line for line in shown.splitlines() if line.startswith("FAIL  runtime:") and "nosuch" in line]


def test_sigterm_stops_the_server_and_its_postgres(data_dir: Path) -> None:
    child = ChildServer(data_dir)
    with child:
        postmaster = EmbeddedPostgres(data_dir).running_pid()
        assert postmaster is not None
        assert child.stop() == 0
    assert not psutil.pid_exists(postmaster)


def test_doctor_is_green_where_a_server_can_start_and_says_what_fails(data_dir: Path) -> None:
    arguments = ["doctor", "--data-dir", str(data_dir), "--port", str(free_port())]
    assert warren(*arguments).returncode == 0
    assert not (data_dir / "postgres").exists()
    failing = warren(*arguments, SECRET_KEY="tooshort", DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert failing.returncode == 1
    failed = {line.split()[1] for line in failing.stdout.splitlines() if line.startswith("FAIL")}
    assert failed == {"secret:", "docker:", "runtime:", "image:"}


def test_the_launcher_is_plain_posix_shell() -> None:
    shell = shutil.which("dash") or "sh"
    assert subprocess.run([shell, "-n", str(PROJECT / "warren")], check=False).returncode == 0
    shown = subprocess.run(
        [shell, str(PROJECT / "warren"), "--help"],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
        env={**os.environ},
    )
    assert "serve" in shown.stdout
