"""The yardstick: bare `langgraph dev` over Warren's graph, without accounts, sandbox and Postgres."""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from server.child import clean_environment, free_port
from server.serve import PROJECT

_READY_SECONDS = 120.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.05


@contextmanager
def plain_server(jobs: int) -> Iterator[str]:
    """Run the project in `plain/` in a temporary directory; yield its URL.

    Raises:
        RuntimeError: it ended or did not answer in time, with the end of its log.
    """
    with tempfile.TemporaryDirectory(prefix="warren-plain-") as directory:
        project = Path(directory)
        shutil.copytree(PROJECT / "benchmarks" / "plain", project, dirs_exist_ok=True)
        log = project / "dev.log"
        port = free_port()
        arguments = ["--no-reload", "--no-browser", "--port", str(port), "--n-jobs-per-worker", str(jobs)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "langgraph_cli", "dev", *arguments],
                cwd=project,
                # Nothing leaves the machine, from either server.
                env=clean_environment() | {"PYTHONPATH": str(PROJECT), "LANGGRAPH_NO_VERSION_CHECK": "true"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is the benchmark's to handle.
                start_new_session=True,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, process, log)
            yield url
        finally:
            _stop(process)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/ok", timeout=5, trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(_POLL_SECONDS)
    raise RuntimeError(f"Bare langgraph dev did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
