"""Copies of Warren's server to measure parts of it by their absence."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.child import ChildServer, temporary_data_dir
from server.serve import PROJECT

_PACKAGES = ("agent", "auth", "sandbox", "server", "storage")
_NO_AUTH = '    config["auth"] = None\n    return config'


@contextmanager
def server_without_auth(jobs: int) -> Iterator[ChildServer]:
    """Run Warren with everything but authentication and authorization, for a benchmark's own data only."""
    with temporary_data_dir() as directory:
        project, data_dir = directory / "project", directory / "data"
        for package in _PACKAGES:
            shutil.copytree(PROJECT / package, project / package)
        shutil.copy(PROJECT / ".env.example", project)
        shutil.copy(PROJECT / "langgraph.json", project)
        # Warren would not start without authentication, for two reasons.
        _replace(project / "server" / "serve.py", "    return config", _NO_AUTH)
        _replace(project / "server" / "lifespan.py", "    await check_that_doors_are_shut(app)\n", "")
        data_dir.mkdir()
        data_dir.chmod(0o711)  # whatever the umask
        with ChildServer(data_dir, jobs=jobs, project=project) as server:
            yield server


@contextmanager
def warren(jobs: int) -> Iterator[ChildServer]:
    """Run Warren as it is, on a data directory of its own."""
    with temporary_data_dir() as data_dir, ChildServer(data_dir, jobs=jobs) as server:
        yield server


def _replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    if text.count(old) != 1:
        raise RuntimeError(f"{file.name} has changed: this benchmark looks for {old.strip()!r} in it.")
    file.write_text(text.replace(old, new))
