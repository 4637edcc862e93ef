"""Running the platform's dev server in this process, for this data directory alone or beside others."""

import fcntl
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from langgraph_api.cli import run_server

from server import http_protocol
from server.origins import with_chosen_origins
from server.serve import PROJECT, say
from storage.settings import get_settings

_GRACE_SECONDS = 5
"""How long open streams may go on after Ctrl-C or SIGTERM."""
_LOCK = "lock"


def run_platform(host: str, port: int, jobs: int) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        SystemExit: if it could not start; the log says why.
    """
    http_protocol.install()
    _announce_when_ready()
    config = _config()
    os.environ.setdefault("LANGGRAPH_NO_VERSION_CHECK", "true")
    os.environ.setdefault("LOG_COLOR", str(sys.stdout.isatty()).lower())
    # Its banner advertises Studio, which cannot log in here.
    logging.getLogger("langgraph_api.cli").setLevel(logging.WARNING)
    with own_directory(get_settings().data_dir / "platform") as directory:
        os.chdir(directory)
        try:
            run_server(
                host,
                port,
                reload=False,
                graphs=config["graphs"],
                auth=config["auth"],
                http=with_chosen_origins(config["http"]),
                checkpointer=config["checkpointer"],
                store=config["store"],
                n_jobs_per_worker=jobs,
                open_browser=False,
                disable_persistence=True,
                # The peer's address is the socket's: uvicorn would believe any X-Forwarded-For from loopback.
                proxy_headers=False,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        finally:
            os.chdir(PROJECT)


def _announce_when_ready() -> None:
    """Have uvicorn say when it serves, and where: no hook of its own is called once it listens."""
    start = uvicorn.Server.startup

    async def announced(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
        await start(server, sockets)
        if server.started:
            say(f"Warren is ready at {os.environ['LANGGRAPH_API_URL']}")

    uvicorn.Server.startup = announced  # type: ignore[assignment]


def _config() -> dict[str, Any]:
    """Read langgraph.json, its paths made absolute, since the platform runs in a directory of its own."""
    config: dict[str, Any] = json.loads((PROJECT / "langgraph.json").read_text())

    def absolute(path: str) -> str:
        return str(PROJECT / path.removeprefix("./"))

    config["graphs"] = {name: absolute(path) for name, path in config["graphs"].items()}
    config["http"]["app"] = absolute(config["http"]["app"])
    for part in ("auth", "checkpointer", "store"):
        config[part]["path"] = absolute(config[part]["path"])
    return config


@contextmanager
def own_directory(parent: Path) -> Iterator[Path]:
    """Yield an empty directory for the platform of this process to work in, and remove it in the end.

    The platform pickles its rows, users' messages among them, into `.langgraph_api` below its working
    directory when it stops, and reads them when it starts. Postgres knows better. What killed processes have
    left in `parent` is removed first; each that is alive holds a lock in its own directory.
    """
    parent.mkdir(mode=0o700, exist_ok=True)
    lock = _open(parent / _LOCK)
    try:
        # Alone, so that nobody takes a directory that is just being made for one left behind.
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove_left_behind(parent)
        own = Path(tempfile.mkdtemp(dir=parent))
        own_lock = _open(own / _LOCK)
        fcntl.flock(own_lock, fcntl.LOCK_EX)
    finally:
        os.close(lock)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
        os.close(own_lock)


def _remove_left_behind(parent: Path) -> None:
    for directory in (path for path in parent.iterdir() if path.is_dir()):
        lock = _open(directory / _LOCK)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except BlockingIOError:
            pass  # its process is alive
        finally:
            os.close(lock)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
