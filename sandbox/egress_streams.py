"""The streams of one channel: what a sandbox's toolbox asks for, moved between the channel and the world.

Whatever comes may be hostile code's. Each direction of a stream holds WINDOW_BYTES at most, however slow its
other end is; a toolbox that sends more, or asks for more streams than it may have, loses the channel.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sandbox.egress import RefusedError, WayOut
from sandbox.toolbox.frames import (
    CHUNK_BYTES,
    CLOSE,
    CONNECTED,
    CREDIT,
    DIAL,
    STREAM,
    STREAMS,
    TARGET_BYTES,
    WINDOW_BYTES,
    FrameError,
    pack,
    pack_amount,
    pack_json,
    parse_amount,
)

logger = logging.getLogger(__name__)

IDLE_SECONDS = 300
"""How long nothing may move either way. What waits longer for its next word connects again."""

FRAME_COST = 512
"""The least that a frame is charged for: each takes its time, so single bytes would be an attack on the event
loop."""


class _Stream:
    """One stream.

    Attributes:
        received: what has come from the sandbox and is not yet under way to the world.
        room: how much more may come.
        credit: how much more may be sent to the sandbox.
        is_left: the toolbox has closed it.
        is_over: this side has.
    """

    def __init__(self) -> None:
        self.received = bytearray()
        self.room = WINDOW_BYTES
        self.credit = WINDOW_BYTES
        self.is_left = False
        self.is_over = False
        self.has_data = asyncio.Event()
        self.has_credit = asyncio.Event()


class EgressStreams:
    """The streams of one channel.

    Args:
        send: Sends bytes over the channel, and waits while too many are on their way.
        way_out: Makes the connections, and refuses some.
    """

    def __init__(self, send: Callable[[bytes], Awaitable[None]], way_out: WayOut) -> None:
        self._send = send
        self._way_out = way_out
        self._streams: dict[int, _Stream] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def take(self, kind: int, number: int, payload: bytes) -> None:
        """Take a frame.

        Raises:
            FrameError: it does not belong there.
        """
        self._way_out.charge(max(FRAME_COST, len(payload)))
        if kind == DIAL:
            self._dialled(number, payload)
            return
        stream = self._streams.get(number)
        if stream is None or stream.is_left:
            raise FrameError("no such stream")
        if kind == STREAM and payload:
            stream.room -= len(payload)
            if stream.room < 0:
                raise FrameError("more than there is room for")
            if not stream.is_over:
                stream.received += payload
                stream.has_data.set()
        elif kind == CREDIT:
            stream.credit += parse_amount(payload)
            if stream.credit > WINDOW_BYTES:
                raise FrameError("credit for more than was sent")
            stream.has_credit.set()
        elif kind == CLOSE:
            stream.is_left = True
            stream.has_data.set()
            self._tidy(number, stream)
        else:
            raise FrameError("not for a stream")

    def cancel(self) -> None:
        """End all streams, for the channel is gone."""
        for task in self.tasks:
            task.cancel()

    def _dialled(self, number: int, target: bytes) -> None:
        if number in self._streams or len(self._streams) >= STREAMS or len(target) > TARGET_BYTES:
            raise FrameError("not to be connected")
        stream = self._streams[number] = _Stream()
        task = asyncio.create_task(self._serve(number, stream, target))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, number: int, stream: _Stream, target: bytes) -> None:
        why: dict[str, object] = {}
        try:
            async with self._way_out.connection(target) as (reader, writer):
                await self._send(pack(CONNECTED, number))
                await self._move(number, stream, reader, writer)
        except RefusedError as refusal:
            why = {"status": refusal.status, "message": str(refusal)}
        except OSError as error:  # a broken connection, or an idle one
            logger.debug("A sandbox's connection ended: %s", error)
        except Exception:
            logger.exception("A sandbox's connection failed")
        stream.is_over = True
        stream.received.clear()
        await self._send(pack_json(CLOSE, number, why))
        self._tidy(number, stream)

    def _tidy(self, number: int, stream: _Stream) -> None:
        if stream.is_left and stream.is_over:
            self._streams.pop(number, None)

    async def _move(
        self, number: int, stream: _Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Move bytes both ways until one end is closed.

        Raises:
            RefusedError: it has been too much.
            OSError: the connection broke, or nothing moved for long.
        """
        clock = asyncio.get_running_loop().time
        async with asyncio.timeout(IDLE_SECONDS) as patience:

            def moved() -> None:
                self._way_out.check()
                patience.reschedule(clock() + IDLE_SECONDS)

            ways = [
                asyncio.create_task(self._upload(number, stream, writer, moved)),
                asyncio.create_task(self._download(number, stream, reader, moved)),
            ]
            try:
                done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
            for way in done:
                way.result()

    async def _upload(
        self, number: int, stream: _Stream, writer: asyncio.StreamWriter, moved: Callable[[], None]
    ) -> None:
        passed_on = 0
        while True:
            stream.has_data.clear()
            if not stream.received:
                if stream.is_left:
                    return
                await stream.has_data.wait()
                continue
            data, stream.received = stream.received, bytearray()
            writer.write(data)
            await writer.drain()
            moved()
            passed_on += len(data)
            if passed_on >= WINDOW_BYTES // 2 and not stream.is_left:
                stream.room += passed_on
                await self._send(pack_amount(CREDIT, number, passed_on))
                passed_on = 0

    async def _download(
        self, number: int, stream: _Stream, reader: asyncio.StreamReader, moved: Callable[[], None]
    ) -> None:
        while True:
            stream.has_credit.clear()
            if not stream.credit:
                await stream.has_credit.wait()
                continue
            data = await reader.read(min(stream.credit, CHUNK_BYTES))
            if not data:
                return
            stream.credit -= len(data)
            self._way_out.charge(max(FRAME_COST, len(data)))
            await self._send(pack(STREAM, number, data))
            moved()
