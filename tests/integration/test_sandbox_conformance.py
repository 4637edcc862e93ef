"""The standard tests of langchain-tests for sandboxes, on the real backend."""

import asyncio
import functools
import threading
from collections.abc import Callable, Iterator
from inspect import iscoroutinefunction
from typing import Any, cast

import pytest
from deepagents.backends.protocol import SandboxBackendProtocol
from langchain_tests.integration_tests import SandboxIntegrationTests

from tests.integration.sandboxes import in_run, sandboxes

OVERWRITES = "deepagents 0.7 defines write as making a file or overwriting it"
ABSOLUTE = "deepagents 0.7 defines the paths that glob returns as absolute: permissions rely on it"


class InOneRun:
    """The backend as it is within the runs of one thread, for tests that know of no runs.

    The backend lives on a loop of its own, in another thread: the tests call its synchronous methods too.
    """

    def __init__(self, backend: object, session: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._backend = backend
        self._session = session
        self._loop = loop

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._backend, name)

        async def call_async(*args: Any, **options: Any) -> Any:
            with in_run(self._session):
                work = asyncio.run_coroutine_threadsafe(method(*args, **options), self._loop)
            return await asyncio.wrap_future(work)

        def call(*args: Any, **options: Any) -> Any:
            with in_run(self._session):
                return method(*args, **options)

        return call_async if iscoroutinefunction(method) else call


def wrong(test: Callable[..., None], reason: str) -> Callable[..., None]:
    """Expect a standard test to fail, because it demands what deepagents 0.7 does not."""

    @pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError)
    @functools.wraps(test)
    def fails(self: object, sandbox_backend: object, sandbox_test_root: str) -> None:
        test(self, sandbox_backend, sandbox_test_root)

    return fails


class TestConformance(SandboxIntegrationTests):
    @pytest.fixture(scope="class")
    @classmethod
    def sandbox(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxBackendProtocol]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        installation = sandboxes(tmp_path_factory.mktemp("workspaces"))

        def wait_for(work: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(work, loop).result()

        try:
            house = wait_for(installation.__aenter__())
            try:
                yield cast("SandboxBackendProtocol", InOneRun(house.backend, house.thread("alice"), loop))
            finally:
                wait_for(installation.__aexit__(None, None, None))
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    @property
    def sandbox_root_dir(self) -> str:
        return "/workspace/standard_tests"

    test_write_existing_file_fails = wrong(SandboxIntegrationTests.test_write_existing_file_fails, OVERWRITES)
    test_glob = wrong(SandboxIntegrationTests.test_glob, ABSOLUTE)
    test_glob_basic_pattern = wrong(SandboxIntegrationTests.test_glob_basic_pattern, ABSOLUTE)
    test_glob_with_directories = wrong(
        SandboxIntegrationTests.test_glob_with_directories,
        "deepagents 0.7 defines glob as finding files only",
    )
    test_glob_hidden_files_explicitly = wrong(
        SandboxIntegrationTests.test_glob_hidden_files_explicitly, ABSOLUTE
    )
    test_glob_with_character_class = wrong(SandboxIntegrationTests.test_glob_with_character_class, ABSOLUTE)
    test_glob_with_question_mark = wrong(SandboxIntegrationTests.test_glob_with_question_mark, ABSOLUTE)
