"""One connection to a sandbox's toolbox, shared by all calls of one event loop.

Hostile code in the sandbox may have replaced the other end: whatever comes is bounded, checked, and waited
for only so long. What does not belong there ends the connection.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Protocol

import aiohttp
from aiodocker.exceptions import DockerError

from sandbox.calls import READING, REPEATABLE, Budget, Call
from sandbox.egress import WayOut
from sandbox.egress_streams import EgressStreams
from sandbox.errors import NoAnswerError, NotStartedError, OperationFailedError, SandboxLostError
from sandbox.toolbox.frames import (
    BEGUN,
    CANCEL,
    CHUNK_BYTES,
    DATA,
    DIAL,
    FAILURE,
    PING,
    PONG,
    REQUEST,
    RESULT,
    FrameError,
    FrameReader,
    pack,
    pack_json,
    parse_json,
)

logger = logging.getLogger(__name__)

CANCEL_SECONDS = 10
"""How long the toolbox may take to confirm that nothing of a cancelled call is left. It tries for 5 s."""

OPENING_SECONDS = 15
"""How long the toolbox of a running container may take to answer for the first time."""

_MESSAGE_CHARACTERS = 10_000
_LAST_ID = (1 << 32) - 1
_MOST_GIVEN_UP = 64
_SILENCE_SECONDS = (0.25, 1, 5)
_PONG_SECONDS = 1
_LONG = 4096

_BROKEN = (ConnectionError, aiohttp.ClientError, DockerError)


class ByteStream(Protocol):
    """What a channel goes over."""

    async def receive(self) -> bytes:
        """Return what comes next; nothing at the end."""

    async def send(self, data: bytes) -> None: ...

    async def close(self) -> None: ...


class Channel:
    """A connection to a toolbox. It belongs to the event loop that it was made in.

    Args:
        stream: An open one, which the channel closes.
        revive: Asked when the sandbox is silent for long: makes it go on if it was paused, and tells whether
            there is any hope.
        way_out: Connects the sandbox to the world. None: it is not connected, and must not ask.
        budget: Of its user; None: it has one of its own.
    """

    def __init__(
        self,
        stream: ByteStream,
        revive: Callable[[], Awaitable[bool]],
        way_out: WayOut | None = None,
        budget: Budget | None = None,
    ) -> None:
        self._stream = stream
        self._revive = revive
        self._budget = budget or Budget()
        self._streams = EgressStreams(self._send_for_stream, way_out) if way_out else None
        self._reader = FrameReader()
        self._calls: dict[int, Call] = {}
        self._last_id = 0
        self._pings = 0
        self._has_heard = asyncio.Event()
        self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._watchdog: asyncio.Task[None] | None = None
        self._receiver = asyncio.create_task(self._receive())

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing is waited for, and nothing that the sandbox has asked for is open."""
        return not self._awaited() and not (self._streams and self._streams.tasks)

    async def answers(self) -> None:
        """Wait for the first word of the toolbox.

        Raises:
            NotStartedError: there is none. The channel is closed.
        """
        try:
            async with asyncio.timeout(OPENING_SECONDS):
                await self._ping()
                heard = asyncio.create_task(self._has_heard.wait())
                try:
                    await asyncio.wait([heard, self._receiver], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    heard.cancel()
        except (TimeoutError, *_BROKEN):
            self._end()
        if self._is_closed:
            await self.close()
            raise NotStartedError

    async def call(
        self,
        operation: str,
        args: dict[str, object],
        data: bytes = b"",
        *,
        timeout: float,  # noqa: ASYNC109 - the toolbox has to be told
        limit: int | None = None,
    ) -> tuple[dict[str, object], bytes]:
        """Have the toolbox do something; return what it says, and bytes. Neither can be believed.

        When this is cancelled it waits until the toolbox says that all has ended, or CANCEL_SECONDS; of what
        changes nothing there is nothing to end.

        Args:
            operation: What to do.
            args: How; JSON.
            data: What goes along.
            timeout: Seconds that it may take.
            limit: The most bytes that may come. None: as is usual for the operation.

        Raises:
            NotStartedError: the connection is closed or broke, and the call can safely be made again.
            OperationFailedError: the toolbox says that it cannot be done, or `args` are too long for it.
            NoAnswerError: nothing came in time; what can be cancelled was.
            SandboxLostError: the connection broke when the call had begun, or what came was not an answer.
        """
        if self._is_closed:
            raise NotStartedError
        number = self._next_id()
        head = _head(number, operation, args, len(data))
        call = self._calls[number] = Call(operation, limit, self._budget)
        self._watch()
        try:
            async with asyncio.timeout(timeout):
                await self._request(number, head, data)
                answer = await asyncio.shield(call.answer)
        except asyncio.CancelledError:
            await self._leave(number, call)
            raise
        except TimeoutError:
            await self._leave(number, call)
            raise NoAnswerError from None
        except _BROKEN:
            self._end()
            answer = call.answer.result()
        if isinstance(answer, Exception):
            raise answer
        return answer, bytes(call.body)

    async def end_all(self, operation: str) -> None:
        """Ask for the end of all calls of an operation. Whoever made them gets what there is until then.

        Raises:
            NotStartedError: the connection is closed or broke.
        """
        for number, call in list(self._calls.items()):
            if call.operation == operation:
                try:
                    await self._stream.send(pack(CANCEL, number))
                except _BROKEN:
                    self._end()
                    raise NotStartedError from None

    async def close(self) -> None:
        """Close the connection, which ends the commands that were begun over it."""
        self._end()
        self._receiver.cancel()
        streams = self._streams.tasks if self._streams else ()
        await asyncio.wait([self._receiver, *self._tasks, *streams])

    def _next_id(self) -> int:
        while True:
            self._last_id = self._last_id % _LAST_ID + 1
            if self._last_id not in self._calls:
                return self._last_id

    async def _request(self, number: int, head: bytes, data: bytes) -> None:
        if len(data) <= CHUNK_BYTES:
            await self._stream.send(head + pack(DATA, number, data) if data else head)
            return
        await self._stream.send(head)
        view = memoryview(data)
        for start in range(0, len(data), CHUNK_BYTES):
            if self._calls.get(number) is None:  # refused meanwhile
                return
            await self._stream.send(pack(DATA, number, bytes(view[start : start + CHUNK_BYTES])))

    async def _receive(self) -> None:
        try:
            while received := await self._stream.receive():
                self._has_heard.set()
                for kind, number, payload in self._reader.feed(received):
                    if kind >= DIAL and self._streams is not None:
                        self._streams.take(kind, number, payload)
                    else:
                        self._take(kind, number, payload)
                if len(received) > _LONG:
                    await asyncio.sleep(0)  # a flood must not have the event loop for itself
        except FrameError as error:
            logger.warning("A sandbox sent what is no answer: %s", error)
        except _BROKEN as error:
            logger.info("The connection to a sandbox broke: %s", error)
        except Exception:
            logger.exception("The connection to a sandbox failed")
        finally:
            self._end()
            await self._stream.close()

    def _take(self, kind: int, number: int, payload: bytes) -> None:
        if kind == PONG and self._pings:
            self._pings -= 1
            return
        call = self._calls.get(number)
        if call is None:
            raise FrameError("an answer to no question")
        call.count_frame()
        if kind == DATA:
            call.take(payload)
        elif kind == BEGUN:
            call.has_begun = True
        elif kind == RESULT:
            self._settle(number, parse_json(payload))
        elif kind == FAILURE:
            message = parse_json(payload).get("message")
            if not isinstance(message, str):
                raise FrameError("a failure without a message")
            self._settle(number, OperationFailedError(message[:_MESSAGE_CHARACTERS]))
        else:
            raise FrameError("a question in place of an answer")

    def _settle(self, number: int, outcome: dict[str, object] | Exception) -> None:
        self._calls.pop(number).settle(outcome)

    def _awaited(self) -> list[Call]:
        return [call for call in self._calls.values() if not call.is_given_up]

    async def _leave(self, number: int, call: Call) -> None:
        """Wait for a call no longer: see it end, or have no more to do with it."""
        if call.operation not in READING:
            await self._cancel_surely(number, call)
        elif number in self._calls:
            call.give_up()
            self._start(self._end_unless_alive())

    def _end(self) -> None:
        self._is_closed = True
        self._has_heard.set()  # nobody shall wait for more
        for number, call in list(self._calls.items()):
            self._settle(number, SandboxLostError() if call.has_begun else NotStartedError())
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._streams is not None:
            self._streams.cancel()
        if asyncio.current_task() is not self._receiver:
            self._receiver.cancel()

    async def _send_for_stream(self, data: bytes) -> None:
        try:
            await self._stream.send(data)
        except _BROKEN:
            self._end()

    async def _cancel_surely(self, number: int, call: Call) -> None:
        """Cancel a call and see it end, even if this task is cancelled again meanwhile."""
        await asyncio.shield(self._start(self._cancel(number, call)))

    def _start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _end_unless_alive(self) -> None:
        """End the connection if there is nobody at the other end, or nobody who comes to an end."""
        given_up = len(self._calls) - len(self._awaited())
        if given_up > _MOST_GIVEN_UP or not await self._is_answering(CANCEL_SECONDS):
            self._end()

    async def _cancel(self, number: int, call: Call) -> None:
        if number not in self._calls:
            return
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                await self._stream.send(pack(CANCEL, number))
                await asyncio.wait([call.answer])
        except (TimeoutError, *_BROKEN):
            # The toolbox ends the commands of a connection that is gone.
            self._end()

    async def _ping(self) -> None:
        self._pings += 1
        await self._stream.send(pack(PING, 0))

    def _watch(self) -> None:
        if self._watchdog is None or self._watchdog.done():
            self._watchdog = asyncio.create_task(self._look_after())

    async def _look_after(self) -> None:
        """While something is waited for and nothing comes, see whether the sandbox still answers."""
        pauses = iter(_SILENCE_SECONDS)
        pause = next(pauses)
        while self._awaited():
            self._has_heard.clear()
            await asyncio.sleep(pause)
            if self._awaited() and not self._has_heard.is_set():
                pause = next(pauses, pause)
                if not await self._is_answering(_PONG_SECONDS) and not await self._revive():
                    self._end()

    async def _is_answering(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                self._has_heard.clear()
                await self._ping()
                await self._has_heard.wait()
        except (TimeoutError, *_BROKEN):
            return False
        return True


def _head(number: int, operation: str, args: dict[str, object], size: int) -> bytes:
    confirm = operation not in REPEATABLE
    try:
        return pack_json(
            REQUEST, number, {"operation": operation, "args": args, "size": size, "confirm": confirm}
        )
    except FrameError as error:
        raise OperationFailedError("The request is too long.") from error
