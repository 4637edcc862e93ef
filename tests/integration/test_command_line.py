"""The command line: what is wrong is said before anything starts, and what was started is stopped."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import server.serve
from server.child import ChildServer, clean_environment, free_port, temporary_data_dir
from server.platform import own_directory
from server.serve import PROJECT, SetupError, prepare_environment
from storage.database import _unreachable
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
    ("url", "secrets"),
    [
        ("postgresql://u:S3c/ret#Pw@127.0.0.1/db", ("S3c", "ret", "Pw")),
        ("postgresql://u:123/ret#Pw@127.0.0.1/db", ("123", "ret", "Pw")),
        ("postgresql://warren:a@bS3cret@127.0.0.1:1/db", ("bS3cret", "a@")),
        ("postgresql://warren:12?S3c=ret@127.0.0.1/db", ("12", "S3c", "ret")),
        ("postgresql://warren:5%S3cret@127.0.0.1/db", ("S3cret",)),
        ("postgresql://warren:S3cret", ("S3cret",)),
    ],
)
def test_nothing_is_quoted_of_a_database_url_that_could_be_of_the_password(
    url: str, secrets: tuple[str, ...]
) -> None:
    message = str(_unreachable(url, psycopg.OperationalError(url)))
    assert "percent-encoded" in message
    assert [secret for secret in secrets if secret in message] == []


def test_a_password_of_one_letter_masks_no_other_letter() -> None:
    message = str(_unreachable("postgresql://u:a@127.0.0.1/db", psycopg.OperationalError("no password")))
    assert "127.0.0.1:5432/db" in message
    assert "no password" in message


def test_a_role_that_may_make_no_tables_is_told_what_it_lacks(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    conninfo = postgres.acquire()
    try:
        with psycopg.connect(conninfo, autocommit=True) as conn:
            conn.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
        as_guest = {"DATABASE_URL": make_conninfo(conninfo, user="guest", password="guest")}
        ended = warren("users", "list", **as_guest)
        failed = failures("--data-dir", str(data_dir), **as_guest)
    finally:
        postgres.release()
    assert "does not let this role make Warren's tables" in failed["postgres"]
    assert ended.returncode == 1
    assert "GRANT CREATE ON SCHEMA public" in ended.stderr
    assert "Traceback" not in ended.stderr


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


def test_every_setting_that_cannot_be_read_is_named_at_once(data_dir: Path) -> None:
    ended = serve(data_dir, DATABASE_POOL_SIZE="x", WORKSPACE_ROOT="w", SANDBOX_PIDS="-1", QUEUE_WAKE="maybe")
    assert ended.returncode == 1
    for variable in ("DATABASE_POOL_SIZE", "WORKSPACE_ROOT", "SANDBOX_PIDS", "QUEUE_WAKE"):
        assert ended.stderr.count(variable) == 1, ended.stderr


@pytest.mark.parametrize("directory", [".", "data", "../{name}/data"])
def test_a_directory_inside_the_project_is_refused(data_dir: Path, directory: str) -> None:
    inside = PROJECT / directory.format(name=PROJECT.name)
    ended = serve(inside)
    assert ended.returncode == 1
    assert "inside the project" in ended.stderr
    assert not (PROJECT / "data").exists()
    ended = serve(data_dir, WORKSPACE_ROOT=str(inside))
    assert ended.returncode == 1
    assert "inside the project" in ended.stderr


def test_the_home_directory_may_be_written_as_a_tilde(data_dir: Path) -> None:
    arguments = ["doctor", "--port", str(free_port())]
    shown = warren(*arguments, WARREN_DATA_DIR="~/state", HOME=str(data_dir)).stdout
    assert f"at {data_dir / 'state'}" in shown
    assert not (PROJECT / "~").exists()


def test_a_path_on_the_command_line_is_relative_to_where_it_was_given(data_dir: Path) -> None:
    link = data_dir / "a-warren"
    link.symlink_to(PROJECT / "warren")
    shown = subprocess.run(
        ["./a-warren", "doctor", "--data-dir", "mine", "--port", str(free_port())],
        cwd=data_dir,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"at {data_dir / 'mine'}" in shown.stdout
    assert not (PROJECT / "mine").exists()


@pytest.mark.parametrize("command", [["users", "list"], ["audit"], ["sandboxes"], ["sandboxes", "prune"]])
def test_looking_after_no_server_makes_none(data_dir: Path, command: list[str]) -> None:
    ended = warren(*command, "--data-dir", str(data_dir / "typo"))
    assert ended.returncode == 1
    assert f"There is no Warren in {data_dir / 'typo'}" in ended.stderr
    assert list(data_dir.iterdir()) == []


def test_a_user_may_be_added_before_the_first_start(data_dir: Path) -> None:
    added = subprocess.run(
        [sys.executable, "-m", "server", "users", "add", "first", "--password-stdin", "--data-dir", data_dir],
        cwd=PROJECT,
        env=clean_environment(),
        input="correct horse battery",
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert added.returncode == 0, added.stderr
    assert "first" in warren("users", "list", "--data-dir", str(data_dir)).stdout


@pytest.mark.parametrize("beneath", ["", "below"])
def test_a_file_is_no_data_directory(data_dir: Path, beneath: str) -> None:
    file = data_dir / "file"
    file.touch()
    for command in ("serve", "doctor"):
        ended = warren(command, "--port", str(free_port()), "--data-dir", str(file / beneath))
        assert ended.returncode == 1
        assert "--data-dir" in ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr


def test_an_env_file_in_another_encoding_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_bytes("MODEL=caf\u00e9".encode("latin-1"))
    monkeypatch.setattr(server.serve, "PROJECT", tmp_path)
    with pytest.raises(SetupError, match=r"\.env is not UTF-8"):
        prepare_environment(tmp_path)


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
    # Nor does it leave what the platform pickles: users' messages.
    assert [path for path in (data_dir / "platform").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("ignored", ["HUP", "HUP INT"])
def test_sigterm_while_the_engine_says_nothing_stops_the_start_and_its_postgres(
    data_dir: Path, ignored: str
) -> None:
    """A script's background job ignores SIGINT, too."""
    serve = [sys.executable, "-m", "server", "serve", "--data-dir", data_dir, "--port", str(free_port())]
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(data_dir / "engine"))
        engine.listen()
        process = subprocess.Popen(
            ["sh", "-c", f'trap "" {ignored}; exec "$@"', "sh", *serve],
            cwd=PROJECT,
            env={**clean_environment(), "DOCKER_HOST": f"unix://{data_dir / 'engine'}"},
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while (postmaster := EmbeddedPostgres(data_dir).running_pid()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        _, shown = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in shown) == (0, False)
    assert not psutil.pid_exists(postmaster)


def test_a_server_says_what_it_makes_the_first_time_and_that_it_is_ready(data_dir: Path) -> None:
    directory = data_dir / "new"
    child = ChildServer(directory)
    child.log = data_dir / "log"
    made = (f"Made the data directory {directory}", "Made the key", "Making the embedded Postgres", "tables")
    for is_first in (True, False):
        with child:
            shown = child.log.read_text()
            assert [what for what in made if what in shown] == (list(made) if is_first else [])
            assert f"Warren is ready at {child.url}" in shown.splitlines()
        # Its own look at its doors is nobody's attempt.
        assert "/threads/search" not in shown
        assert "denied" not in shown
        child.log.unlink()
    assert warren("audit", "--data-dir", str(directory)).stdout == ""


def test_what_stops_a_start_late_is_told_in_one_line(data_dir: Path) -> None:
    class Rejecting(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(401)

    provider = HTTPServer(("127.0.0.1", 0), Rejecting)
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{provider.server_port}/v1"
        ended = serve(data_dir, MODEL="openai:x", MODEL_API_KEY="no-good", MODEL_BASE_URL=url)
    finally:
        provider.shutdown()
        provider.server_close()
    assert ended.returncode == 1
    shown = ended.stdout + ended.stderr
    assert "Traceback" not in shown
    assert "Warren cannot start. The model's provider rejected the API key (HTTP 401)" in shown


def test_what_a_killed_server_has_left_goes_and_what_a_living_one_uses_stays(tmp_path: Path) -> None:
    parent = tmp_path / "platform"
    with own_directory(parent) as alive:
        (alive / "pickle").touch()
        (parent / ".langgraph_api").mkdir()
        (parent / "killed").mkdir()
        (parent / "killed" / "lock").touch()
        with own_directory(parent) as other:
            assert {path for path in parent.iterdir() if path.is_dir()} == {alive, other}
            assert (alive / "pickle").exists()
        assert not other.exists()
        assert alive.exists()
    assert not alive.exists()


def test_an_ipv6_address_is_refused_in_plain_words(data_dir: Path) -> None:
    ended = serve(data_dir, "--host", "::1")
    assert ended.returncode == 1
    assert "IPv4" in ended.stderr


def test_doctor_is_green_where_a_server_can_start_and_says_what_fails(data_dir: Path) -> None:
    arguments = ["doctor", "--data-dir", str(data_dir), "--port", str(free_port())]
    assert warren(*arguments).returncode == 0
    assert not (data_dir / "postgres").exists()
    failing = warren(*arguments, SECRET_KEY="tooshort", DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert failing.returncode == 1
    failed = {line.split()[1] for line in failing.stdout.splitlines() if line.startswith("FAIL")}
    assert failed == {"secret:", "docker:", "runtime:", "image:"}


def failures(*arguments: str, **environment: str) -> dict[str, str]:
    """Return what doctor says of each thing that fails."""
    shown = warren("doctor", "--port", str(free_port()), *arguments, **environment).stdout
    failed = [line.removeprefix("FAIL  ") for line in shown.splitlines() if line.startswith("FAIL  ")]
    return dict(line.split(": ", 1) for line in failed)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another user")
def test_doctor_sees_that_postgres_could_not_enter(data_dir: Path) -> None:
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    failed = failures("--data-dir", str(closed / "new"))
    assert set(failed) == {"postgres"}
    assert f"chmod o+x {closed}" in failed["postgres"]


def test_doctor_leaves_a_database_as_it_is(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    conninfo = postgres.acquire()
    try:
        assert failures("--data-dir", str(data_dir), DATABASE_URL=conninfo) == {}
        with psycopg.connect(conninfo) as conn:
            tables = conn.execute("SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()")
            assert tables.fetchone() == (0,)
    finally:
        postgres.release()


def test_doctor_sees_that_everybody_may_write_where_the_secrets_are(data_dir: Path) -> None:
    data_dir.chmod(0o777)
    assert f"chmod o-w {data_dir}" in failures("--data-dir", str(data_dir))["directory"]


def test_doctor_says_what_to_do_about_what_a_start_would_not_mend(data_dir: Path) -> None:
    here = ("--data-dir", str(data_dir))
    docker = failures(*here, DOCKER_HOST="unix:///nonexistent/docker.sock")["docker"]
    assert "Check DOCKER_HOST" in docker
    assert "warren serve" not in docker
    assert "docker pull no/such" in failures(*here, SANDBOX_IMAGE="no/such")["image"]
    unreachable = {"MODEL": "openai:x", "MODEL_BASE_URL": f"http://127.0.0.1:{free_port()}/v1"}
    assert "reaches MODEL_BASE_URL" in failures(*here, **unreachable)["model"]


def test_doctor_knows_a_warren_that_answers_on_the_port(data_dir: Path) -> None:
    with ChildServer(data_dir) as child:
        place = ("--data-dir", str(data_dir), "--port", str(child.port))
        for host in ("127.0.0.1", "0.0.0.0"):
            shown = warren("doctor", *place, "--host", host)
            assert shown.returncode == 0, shown.stdout
            assert "a Warren answers there" in shown.stdout


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
