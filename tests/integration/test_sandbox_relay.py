"""The way to a toolbox, where all calls of a channel share one connection of the engine's."""

import asyncio
from pathlib import Path

import psutil
import pytest

from sandbox.relay import attach_by_relay
from sandbox.toolbox.frames import DATA, PING, PONG, pack
from tests.integration.sandboxes import sandboxes

MIB = 1 << 20
IGNORED = pack(DATA, 1, bytes(MIB))
"""Data for a request that was refused: it may always come."""


async def test_nothing_is_left_of_a_connection_to_one_that_reads_nothing(tmp_path: Path) -> None:
    async with sandboxes(tmp_path) as house:
        container = await house.containers.ensure(house.thread("mallory"))
        tasks, descriptors = len(asyncio.all_tasks()), psutil.Process().num_fds()
        for _ in range(3):
            stream = await attach_by_relay(container)
            await stream.send(pack(PING, 0))
            assert await stream.receive() == pack(PONG, 0)
            await container.pause()
            sender = asyncio.create_task(stream.send(IGNORED * 16))
            await asyncio.wait([sender], timeout=0.3)
            assert not sender.done()
            sender.cancel()
            await stream.close()
            await container.unpause()
        await asyncio.sleep(0.2)
        assert len(asyncio.all_tasks()) == tasks
        assert psutil.Process().num_fds() <= descriptors


async def test_one_sender_who_gives_up_leaves_the_others_waiting(tmp_path: Path) -> None:
    async with sandboxes(tmp_path) as house:
        container = await house.containers.ensure(house.thread("alice"))
        stream = await attach_by_relay(container)
        await stream.send(pack(PING, 0))
        assert await stream.receive() == pack(PONG, 0)  # an engine hangs that pauses what still starts
        await container.pause()
        senders = [asyncio.create_task(stream.send(IGNORED * 16)) for _ in range(3)]
        await asyncio.wait(senders, timeout=0.5)
        senders[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await senders[0]
        late = asyncio.create_task(stream.send(IGNORED))
        await asyncio.wait([*senders[1:], late], timeout=0.5)
        assert not any(sender.done() for sender in (*senders[1:], late))
        await container.unpause()
        async with asyncio.timeout(60):
            await asyncio.gather(*senders[1:], late)
        await stream.close()
