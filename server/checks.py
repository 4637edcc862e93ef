"""`./warren test`: the linters, the type checker, the layers, and the tests."""

import subprocess
import sys
from pathlib import Path

from server.serve import PROJECT, say

_CHECKS = (
    ("ruff check", ["ruff", "check"]),
    ("ruff format", ["ruff", "format", "--check"]),
    ("mypy", ["mypy"]),
    ("import-linter", ["lint-imports"]),
)


def run_tests(pytest_arguments: list[str]) -> int:
    """Run pytest with the arguments given; without any, everything. Returns the exit code."""
    if not pytest_arguments:
        for name, command in _CHECKS:
            say(f"== {name}")
            if code := _run([str(Path(sys.executable).parent / command[0]), *command[1:]]):
                return code
    say("== pytest")
    return _run([sys.executable, "-m", "pytest", *pytest_arguments])


def _run(command: list[str]) -> int:
    return subprocess.run(command, cwd=PROJECT, check=False).returncode  # noqa: S603 - our own commands
