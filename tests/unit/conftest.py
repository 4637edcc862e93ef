"""The platform's in-memory runtime itself, in the test's process."""

from collections.abc import Iterator
from contextlib import chdir
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def ops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"EDITION": "inmem", "DATABASE_URI": ":memory:", "REDIS_URI": "fake"}.items():
            patch.setenv(f"LANGGRAPH_RUNTIME_{name}" if name == "EDITION" else name, value)
        with chdir(tmp_path_factory.mktemp("runtime")):  # importing the runtime makes a directory
            from langgraph_runtime_inmem import ops  # noqa: PLC0415 - reads the environment set above

        yield ops
