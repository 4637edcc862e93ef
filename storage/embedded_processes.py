"""The processes of one embedded cluster: which they are, and how to end them.

They are recognised by the cluster's name, which Postgres shows in the command line of each of its processes,
and by the user that owns the cluster. `postmaster.pid` is not trusted: after a crash or a reboot its number
may belong to any program. The command line is readable even where the working directory is not (root without
CAP_SYS_PTRACE, as in most containers).
"""

import time
from pathlib import Path

import psutil

POLL_SECONDS = 0.01


def cluster_name(cluster: Path) -> str:
    """Name a cluster by its directory's device and inode, so that it keeps its name when it is moved.

    The inode's width is fixed, hence no name is the beginning of another.

    Raises:
        OSError: when there is no such directory.
    """
    stat = cluster.stat()
    return f"warren-{stat.st_dev:x}-{stat.st_ino:016x}"


def name_setting(cluster: Path) -> str:
    """Return the setting that makes the cluster's processes show its name."""
    return f"cluster_name={cluster_name(cluster)}"


def find_postmaster(cluster: Path) -> psutil.Process | None:
    """Return the cluster's live postmaster, even if it has not yet written its `postmaster.pid`.

    Only the postmaster keeps its arguments: its children replace theirs by a title. One that has just been
    forked, and has not done so yet, is told apart by its parent.
    """
    found = find_processes(cluster)
    candidates = {process.pid: process for process in found if name_setting(cluster) in _command(process)}
    for process in candidates.values():
        try:
            if process.ppid() not in candidates:
                return process
        except psutil.NoSuchProcess:
            continue
    return None


def find_processes(cluster: Path) -> list[psutil.Process]:
    """Return the cluster's live processes: its postmaster, and what a dead one may have left behind."""
    try:
        name, owner = cluster_name(cluster), cluster.stat().st_uid
    except OSError:
        return []
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if process.name() == "postgres" and process.uids().real == owner and name in _command(process):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_orphans(cluster: Path, timeout: float) -> bool:
    """End what a dead postmaster left behind; True when nothing is left after at most `timeout` seconds.

    Orphans hold on to the shared memory that a new postmaster wants for itself. Ending them gently would gain
    nothing: with the postmaster dead, crash recovery follows in any case.
    """
    deadline = time.monotonic() + timeout
    orphans = find_processes(cluster)
    for process in orphans:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    return all(wait_gone(process, deadline - time.monotonic()) for process in orphans)


def wait_gone(process: psutil.Process, timeout: float) -> bool:
    """Wait at most `timeout` seconds for the process to end; True when it has.

    A zombie has ended. `psutil.Process.wait` may wait for its parent to notice, which may be any program.
    """
    deadline = time.monotonic() + timeout
    while _lives(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
