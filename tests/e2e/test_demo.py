"""The README's main command."""

import subprocess
import sys

from server.child import clean_environment
from server.serve import PROJECT


def test_the_demo_holds() -> None:
    played = subprocess.run(
        [sys.executable, "-m", "server", "demo"],
        cwd=PROJECT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert played.returncode == 0, played.stdout + played.stderr
