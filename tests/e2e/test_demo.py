"""The README's main command."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from server.child import temporary_data_dir
from server.serve import PROJECT

OF_A_DEVELOPER = {
    "DATABASE_URL": "postgresql://warren@127.0.0.1:1/of-real-people",
    "MODEL": "openai:without-a-key",
    "SECRET_KEY": "short",
}
"""What a shell or a `.env` may say; none of it is the demo's business."""


@pytest.fixture
def place() -> Iterator[Path]:
    """Give a directory for temporary files of its own, by which to find what was left behind."""
    with temporary_data_dir() as path:
        yield path


def start_demo(place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "server", "demo"],
        cwd=PROJECT,
        env={**os.environ, **OF_A_DEVELOPER, "TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_behind(place: Path) -> list[str]:
    """Return the command lines of processes that work there, and the files."""
    commands = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    return [command for command in commands if str(place) in command] + [
        str(path) for path in place.iterdir()
    ]


def test_the_demo_holds_and_leaves_nothing_behind(place: Path) -> None:
    demo = start_demo(place)
    said, _ = demo.communicate(timeout=170)
    assert demo.returncode == 0, said
    assert left_behind(place) == []


def test_a_demo_that_is_ended_leaves_nothing_behind(place: Path) -> None:
    demo = start_demo(place)
    assert demo.stdout is not None
    while "alice asked for hello.py" not in (line := demo.stdout.readline()):
        assert line, "it ended too early"
    demo.send_signal(signal.SIGTERM)
    said, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "Traceback" not in said
    assert left_behind(place) == []
