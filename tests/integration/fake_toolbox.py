"""A toolbox that hostile code has put in the place of the real one: it says whatever a test tells it to."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from sandbox.calls import Budget
from sandbox.channel import Channel
from sandbox.egress import WayOut
from sandbox.toolbox.frames import FrameReader


class SocketStream:
    """A channel's way to the fake."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self) -> bytes:
        return await self._reader.read(1 << 16)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        self._writer.close()


class Fake:
    """The fake's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = FrameReader()
        self._waiting: list[tuple[int, int, bytes]] = []

    async def hear(self) -> tuple[int, int, bytes]:
        """Return the next frame that the host sends."""
        while not self._waiting:
            received = await self._reader.read(1 << 16)
            if not received:
                raise EOFError
            self._waiting += self._frames.feed(received)
        return self._waiting.pop(0)

    async def say(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def is_left(self) -> None:
        """Wait until the host has closed the connection."""
        while await self._reader.read(1 << 16):
            pass


@asynccontextmanager
async def channel_to(
    play: Callable[[Fake], Awaitable[None]], way_out: WayOut | None = None, budget: Budget | None = None
) -> AsyncIterator[Channel]:
    """Open a channel to a fake that does what `play` does, and then hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await play(Fake(reader, writer))
        except (EOFError, ConnectionError):
            pass
        finally:
            writer.close()

    async def revive() -> bool:
        return True

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "fake"
        async with await asyncio.start_unix_server(serve, path):
            stream = SocketStream(*await asyncio.open_unix_connection(path))
            channel = Channel(stream, revive, way_out, budget)
            try:
                yield channel
            finally:
                await channel.close()
