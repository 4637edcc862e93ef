"""Warren's server as it is, and copies of it to measure parts by their absence."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.child import ChildServer, remove_containers, temporary_data_dir
from server.serve import PROJECT
from storage.directories import make_passable

_PACKAGES = ("agent", "auth", "sandbox", "server", "storage")


@contextmanager
def warren(jobs: int) -> Iterator[ChildServer]:
    """Run Warren as it is, on a data directory of its own."""
    with temporary_data_dir() as data_dir:
        try:
            with ChildServer(data_dir, jobs=jobs) as server:
                yield server
        finally:
            asyncio.run(remove_containers(data_dir))


@contextmanager
def copy_of_warren(jobs: int, *, with_auth: bool) -> Iterator[ChildServer]:
    """Run Warren with or without authentication and authorization, for a benchmark's own data only.

    In neither is a sandbox made ahead: that takes an identity, so one would do what the other cannot.
    """
    with temporary_data_dir() as directory:
        project, data_dir = directory / "project", directory / "data"
        for package in _PACKAGES:
            shutil.copytree(PROJECT / package, project / package)
        for file in (".env.example", "langgraph.json"):
            shutil.copy(PROJECT / file, project)
        _replace(project / "agent" / "graph.py", ", prepare=get_backend().prepare", "")
        if not with_auth:
            # Warren would not start without authentication, nor hear anybody.
            _replace(
                project / "server" / "platform.py",
                "    return config",
                '    config["auth"] = None\n    return config',
            )
            _replace(project / "server" / "lifespan.py", "await check_that_doors_are_shut(doors)", "pass")
            _replace(project / "server" / "guard.py", "is_heard = username is not None", "is_heard = True")
        make_passable(data_dir)
        with ChildServer(data_dir, jobs=jobs, project=project) as server:
            yield server


def _replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    if text.count(old) != 1:
        raise RuntimeError(f"{file.name} has changed: this benchmark looks for {old.strip()!r} in it.")
    file.write_text(text.replace(old, new))
