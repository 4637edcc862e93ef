"""A server of one's own: `warren serve` as a child process, for the demo, the tests and the benchmarks."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import httpx

from sandbox.engine import connected
from sandbox.instance import instance_id
from sandbox.spec import INSTANCE_LABEL, THREAD_LABEL
from server.serve import PROJECT
from storage.directories import make_passable
from storage.embedded import EmbeddedPostgres

_READY_SECONDS = 120.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.05


class ChildServer:
    """`warren serve` on a free port of 127.0.0.1 and a given data directory.

    Its output goes to `log`. Leaving the context stops it, whatever happened.
    """

    def __init__(
        self,
        data_dir: Path,
        environment: Mapping[str, str] | None = None,
        jobs: int = 10,
        project: Path = PROJECT,
        command: Sequence[str] = (sys.executable, "-m", "server"),
    ) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = data_dir / f"server-{self.port}.log"
        self._environment = {**clean_environment(), **(environment or {})}
        self._jobs = jobs
        self._project = project
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: if it ends instead or does not answer in time, with the end of its log.
        """
        arguments = ["--port", str(self.port), "--data-dir", str(self.data_dir), "--jobs", str(self._jobs)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [*self._command, "serve", *arguments],
                cwd=self._project,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the demo's terminal is the demo's to handle.
                start_new_session=True,
            )
        deadline = time.monotonic() + _READY_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"The server did not start:\n{self.log_tail()}")
            time.sleep(_POLL_SECONDS)

    def kill(self) -> None:
        """End it as a crash would, with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int | None:
        """End it as an operator would, with SIGTERM. Returns its exit code, None if it did not run."""
        if self._process is None:
            return None
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._process = None
        return code

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of its output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def _answers(self) -> bool:
        try:
            # Whatever proxy the environment names is not for this machine.
            return httpx.get(f"{self.url}/ok", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False


def clean_environment() -> dict[str, str]:
    """Return this process's environment with every setting of Warren at its default, and nothing traced.

    An empty variable is a default, and keeps what a developer has in `.env` out.
    """
    settings = re.findall("^# ([A-Z_]+)=", (PROJECT / ".env.example").read_text(), re.MULTILINE)
    platforms = ("LANGGRAPH_", "LANGSMITH_", "LANGCHAIN_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(platforms)}
    return {**kept, **dict.fromkeys(settings, "")}


def adopt_clean_environment() -> None:
    """Have no setting of this process's own count: it then looks after a server of the default settings.

    A `.env` may name a database with people's data in it, which no demo and no test should come near.
    """
    environment = clean_environment()
    os.environ.clear()
    os.environ.update(environment)


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def temporary_data_dir() -> Iterator[Path]:
    """Yield a fresh data directory that other users may pass through, and remove it in the end.

    Its Postgres is stopped first, which this process may still use or a killed server have left running.
    """
    path = Path(tempfile.gettempdir()) / f"warren-{secrets.token_hex(6)}"
    make_passable(path)
    try:
        yield path
    finally:
        EmbeddedPostgres(path).stop()
        shutil.rmtree(path, ignore_errors=True)


async def containers_of(data_dir: Path, thread_id: str | None = None) -> list[str]:
    """Return the ids of the sandbox containers of a data directory, or of one thread in it."""
    labels = [f"{INSTANCE_LABEL}={instance_id(data_dir)}"]
    if thread_id is not None:
        labels.append(f"{THREAD_LABEL}={thread_id}")
    async with connected() as engine:
        found = await engine.docker.containers.list(all=True, filters=json.dumps({"label": labels}))
    return [container.id for container in found]


async def remove_containers(data_dir: Path) -> None:
    """Remove what a server that is gone has left running."""
    for container_id in await containers_of(data_dir):
        async with connected() as engine:
            await engine.docker.containers.container(container_id).delete(force=True)
