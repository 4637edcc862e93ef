"""Handing a directory to the real engine as a base image."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiodocker.exceptions import DockerError

from sandbox.base_image import _import
from sandbox.engine import Engine, connected
from sandbox.errors import SandboxError


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with connected() as engine:
        yield engine


@pytest.fixture
async def name(engine: Engine) -> AsyncIterator[str]:
    """Give the name of an image that is removed in the end, if it has been made."""
    name = f"warren-test-{secrets.token_hex(4)}:latest"
    yield name
    if await is_there(engine, name):
        await engine.docker.images.delete(name)


async def is_there(engine: Engine, name: str) -> bool:
    return any(name in (image["RepoTags"] or ()) for image in await engine.docker.images.list())


async def test_a_directory_becomes_an_image(engine: Engine, name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    await _import(engine, tmp_path, name)
    assert await is_there(engine, name)


async def test_a_directory_that_cannot_be_packed_is_an_error_and_no_image(
    engine: Engine, name: str, tmp_path: Path
) -> None:
    with pytest.raises(SandboxError, match="tar failed with status 2"):
        await _import(engine, tmp_path / "missing", name)
    assert not await is_there(engine, name)


async def test_an_engine_that_refuses_the_image_does_not_leave_the_start_waiting(
    engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(os.urandom(64 << 20))
    with pytest.raises(DockerError):
        await asyncio.wait_for(_import(engine, tmp_path, "NO SUCH NAME:latest"), 60)
