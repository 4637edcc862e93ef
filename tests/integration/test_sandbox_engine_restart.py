"""The engine goes away under a command: an error, and then, with the engine back, everything works again."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.private_engine import PrivateEngine, private_engine, why_not
from tests.integration.sandboxes import in_run, sandboxes

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[PrivateEngine]:
    async with private_engine() as engine:
        yield engine


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["restarted", "crashed"])
async def test_the_engine_goes_in_mid_command(engine: PrivateEngine, tmp_path: Path, number: int) -> None:
    async with sandboxes(tmp_path) as house:
        session = house.thread("alice")
        began = house.workspaces.path(session) / "began"
        with in_run(session):
            task = asyncio.create_task(house.backend.aexecute("touch began; sleep 333"))
            while not began.exists():
                await asyncio.sleep(0.01)
                assert not task.done(), task.result().output
            await engine.end(number)
            result = await asyncio.wait_for(task, 30)
            assert result.exit_code == 1
            assert result.output.startswith("Error: ")

            away = await house.backend.aexecute("echo ran")
            assert away.exit_code == 1
            assert f"not reachable at {engine.address}" in away.output
            assert "not reachable" in str((await house.backend.aread("/workspace/began")).error)

            await engine.start()
            assert (await house.backend.aexecute("echo alive")).output == "alive\n"
            assert (await house.backend.als("/workspace")).entries == [
                {"path": "/workspace/began", "is_dir": False}
            ]
