"""The platform's in-memory runtime in the test's process, and a user whom permissions stop."""

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import pytest
import pytest_asyncio

from server.workers import get_workers
from tests.unit.run_queue import Queue

NOBODY = 65534


@pytest.fixture(scope="session")
def ops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"EDITION": "inmem", "DATABASE_URI": ":memory:", "REDIS_URI": "fake"}.items():
            patch.setenv(f"LANGGRAPH_RUNTIME_{name}" if name == "EDITION" else name, value)
        with chdir(tmp_path_factory.mktemp("runtime")):  # importing the runtime makes a directory
            from langgraph_runtime_inmem import ops  # noqa: PLC0415 - reads the environment set above

        yield ops


@pytest.fixture
def untouched(ops: ModuleType) -> Iterator[ModuleType]:
    """Give the runtime's own queue back when the test has ended."""
    places = [(ops.Runs, name) for name in ("next", "put", "enter")] + [(ops.Threads.Stream, "subscribe")]
    originals = [(place, name, inspect.getattr_static(place, name)) for place, name in places]
    get_workers.cache_clear()
    yield ops
    for place, name, original in originals:
        setattr(place, name, original)


@pytest_asyncio.fixture
async def queue(untouched: ModuleType) -> AsyncIterator[Queue]:
    queue = Queue(untouched)
    loop = asyncio.create_task(queue.work())
    yield queue
    loop.cancel()
    await asyncio.wait([loop])
    queue.conn.clear()


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """Be a user whom permissions stop, with a directory."""
    root = os.geteuid() == 0
    with TemporaryDirectory() as directory:
        if root:
            os.chown(directory, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield Path(directory)
        finally:
            if root:
                os.seteuid(0)
