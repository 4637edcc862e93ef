"""The ways to a toolbox: its own input and output when it starts, and later those of a relay.

A relay is an exec'd process that hands its input and output over to the toolbox.
"""

import asyncio

from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError
from aiodocker.stream import Stream

from sandbox.engine import CANNOT_CONNECT
from sandbox.engine_calls import within_reason
from sandbox.errors import NotStartedError
from sandbox.toolbox.listener import RELAY_UID

# It may come before the toolbox listens. Once both descriptors are handed over nothing passes through it any
# more, and they are not to be had from it: it only waits for the toolbox to let go, as the smallest program
# that can. `_socket` saves a quarter of its start, which is part of every cold start.
_RELAY = """\
import os, time, _socket
wire = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
for _ in range(2000):
    try:
        wire.connect(b"\\0warren-toolbox")
        break
    except OSError:
        time.sleep(0.002)
rights = (0).to_bytes(4, "little") + (1).to_bytes(4, "little")
wire.sendmsg([b"!"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
null = os.open(os.devnull, os.O_RDWR)
os.dup2(wire.fileno(), 0)
os.dup2(null, 1)
os.dup2(null, 2)
try:
    os.execvp("cat", ["cat"])
except OSError:
    os.read(0, 1)
"""


class DockerStream:
    """Bytes to and from a toolbox, over a connection that the engine has handed over."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def receive(self) -> bytes:
        """Return what comes next; nothing at the end."""
        message = await self._stream.read_out()
        return message.data if message else b""

    async def send(self, data: bytes) -> None:
        """Send bytes, and wait while too many are on their way.

        Raises:
            ConnectionError: the connection is gone.
        """
        try:
            # All who wait for room wait for one future of aiodocker's: one that is cancelled would cancel it.
            await asyncio.shield(self._stream.write_in(data))
        except (AssertionError, RuntimeError) as error:  # so aiodocker says that there is no connection
            raise ConnectionResetError from error

    async def close(self) -> None:
        """Close the connection, and drop what the other end has not taken."""
        response = self._stream._resp  # noqa: SLF001 - aiodocker has no other way to it
        connection = response.connection if response is not None else None
        transport = connection.transport if connection is not None else None
        await self._stream.close()
        if transport is not None:
            # Otherwise it stays, with all who wait to send, until somebody reads the rest: perhaps nobody.
            transport.abort()


async def attach(container: DockerContainer) -> DockerStream:
    """Connect to the first process of a container that is about to start. This works once in its life.

    Raises:
        DockerError: the engine refused, or could not be reached.
    """
    stream = container.attach(stdin=True, stdout=True)
    await stream.__aenter__()
    return DockerStream(stream)


async def attach_by_relay(container: DockerContainer) -> DockerStream:
    """Connect to the toolbox of a running container.

    Raises:
        NotStartedError: the container is not there or not running, or cannot run anything.
        DockerError: the engine could not be reached.
    """
    try:
        async with within_reason("start a relay in"):
            execution = await container.exec(
                ["python3", "-I", "-S", "-c", _RELAY],
                stdin=True,
                stderr=False,
                user=f"{RELAY_UID}:{RELAY_UID}",
                workdir="/",  # the workspace is its owner's alone
            )
            stream = execution.start()
            await stream.__aenter__()
    except DockerError as error:
        if error.status == CANNOT_CONNECT:
            raise
        raise NotStartedError(error.message) from error
    return DockerStream(stream)
