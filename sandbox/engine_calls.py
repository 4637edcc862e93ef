"""What is asked of the engine about one container, and what its refusals mean."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import Any

from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError

from sandbox.engine import CANNOT_CONNECT, Engine, reaching
from sandbox.errors import SandboxError

RETRY_SECONDS = 0.1
_REMOVAL_ATTEMPTS = 100
_REMOVAL_SECONDS = 60
_ANSWER_SECONDS = 15


@asynccontextmanager
async def within_reason(doing: str, seconds: float | None = None) -> AsyncIterator[None]:
    """Give an engine only so long for something that it does with one container.

    It may hang for one and serve all others; waiting for it would hold up whatever comes after.

    Args:
        doing: what it is to do, before the words "this sandbox".
        seconds: how long it may take. None: as long as most things may.

    Raises:
        SandboxError: it takes longer.
    """
    try:
        async with asyncio.timeout(seconds or _ANSWER_SECONDS):
            yield
    except TimeoutError as error:
        raise SandboxError(f"Docker does not {doing} this sandbox: it has not answered in time.") from error


@contextmanager
def asking(engine: Engine) -> Iterator[None]:
    """Turn whatever the engine answers in refusal into a SandboxError."""
    with reaching(engine.address):
        try:
            yield
        except DockerError as error:
            if error.status == CANNOT_CONNECT:
                raise
            raise SandboxError(f"Docker refused: {error.message}") from error


async def resume(engine: Engine, container: DockerContainer, state: dict[str, Any]) -> None:
    """Have a container that does not run do so, or remove it if it cannot any more.

    Raises:
        SandboxError: the engine cannot start it.
    """
    try:
        if state["Paused"]:
            async with within_reason("resume"):
                await container.unpause()
        elif state["Status"] in {"created", "exited"}:
            async with within_reason("start"):
                await container.start()
        else:
            await remove(engine, container.id)
    except DockerError as error:
        if error.status not in {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT}:
            raise SandboxError(f"The sandbox does not start: {error.message}") from error


async def pause(engine: Engine, name: str) -> bool:
    """Have a container stand still. False: there is none.

    Raises:
        SandboxError: the engine does not bring it to that.
        DockerError: the engine refused, or could not be reached.
    """
    try:
        async with within_reason("pause"):
            await engine.docker.containers.container(name).pause()
    except DockerError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return False
        if error.status != HTTPStatus.CONFLICT:  # it does not run, or is paused already
            raise
    return True


async def unpause(engine: Engine, name: str) -> bool:
    """Have a paused container go on. False: there is none that is paused.

    Raises:
        SandboxError: the engine does not bring it to that.
        DockerError: the engine could not be reached.
    """
    try:
        async with within_reason("resume"):
            await engine.docker.containers.container(name).unpause()
    except DockerError as error:
        if error.status == CANNOT_CONNECT:
            raise
        return False
    return True


async def remove(engine: Engine, name: str) -> None:
    """Kill and remove a container; when this returns its name is free.

    Raises:
        SandboxError: the engine does not bring it to that.
        DockerError: the engine refused, or could not be reached.
    """
    async with within_reason("remove", _REMOVAL_SECONDS):
        await _remove(engine, name)


async def _remove(engine: Engine, name: str) -> None:
    for _ in range(_REMOVAL_ATTEMPTS):
        try:
            await engine.docker.containers.container(name).delete(force=True, v=True)
        except DockerError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return
            if error.status != HTTPStatus.CONFLICT:  # its removal is under way already
                raise
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return
    raise SandboxError("The sandbox cannot be removed: its removal hangs in the engine.")
