"""One program in a container, over the stream of `docker exec`: fed, listened to within bounds, and ended.

Everything that a program starts carries a mark in its environment, by which all of it is found and killed
when it has to end: the engine leaves the processes alone when the client of an exec goes away.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import aiohttp
from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError
from aiodocker.execs import Exec
from aiodocker.stream import Stream

from sandbox.engine import CANNOT_CONNECT
from sandbox.errors import SandboxLostError
from sandbox.spec import WORKSPACE

logger = logging.getLogger(__name__)

OUTPUT_LIMIT_BYTES = 64 << 20
"""A program that writes more than this is ended."""

_MARK = "WARREN_COMMAND"
_KILL_SECONDS = 10
_LONGEST_POLL_SECONDS = 0.25

# What the engine says in the program's place when there is no memory to start it, or the container is just
# ending.
_NOT_STARTED = (b"OCI runtime exec failed", b"cannot exec in a ")
_NOT_STARTED_STATUS = (126, 127)

_ending: set[asyncio.Task[None]] = set()


@dataclass(slots=True)
class Output:
    """What a program writes to its standard output and error. The first `keep` bytes are kept."""

    keep: int
    content: bytearray = field(default_factory=bytearray)
    written: int = 0

    @property
    def truncated(self) -> bool:
        return self.written > len(self.content)

    def text(self) -> str:
        return self.content.decode(errors="replace")


class NotStartedError(Exception):
    """The engine could not start the program in that container. Nothing of it has run."""


class StoppedError(Exception):
    """The program had to be ended, with all that it had started."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self.output = output


class TimeLimitError(StoppedError):
    """The program did not end in time."""


class OutputLimitError(StoppedError):
    """The program wrote more than OUTPUT_LIMIT_BYTES."""


async def inside(name: str) -> list[str]:
    """Return the command line that runs one of the programs in `sandbox/inside/` on a sandbox's Python."""
    return ["python3", "-I", "-S", "-c", await asyncio.to_thread(_source, name)]


@lru_cache
def _source(name: str) -> str:
    return (Path(__file__).parent / "inside" / f"{name}.py").read_text()


async def run(  # noqa: PLR0913 - a program, its input, and its limits
    container: DockerContainer,
    command: Sequence[str],
    *,
    seconds: float,
    keep: int,
    feed: Iterable[bytes] = (),
    stderr: bool = True,
) -> tuple[int | None, Output]:
    """Run a program in /workspace to its end and return its exit status and output.

    Cancelling ends the program as well. When this returns or raises, nothing that the program started is
    left, unless it ended by itself: then what it left in the background goes on.

    Args:
        container: Where to run it.
        command: The program and its arguments.
        seconds: How long it may take.
        keep: How many bytes of its output are kept.
        feed: What it reads from its standard input; it reads nothing without.
        stderr: Whether its standard error is kept as well.

    Raises:
        NotStartedError: the container is not there or not running, or cannot run anything.
        TimeLimitError, OutputLimitError: it was ended.
        SandboxLostError: the container went away while it ran.
        DockerError: the engine could not be reached.
    """
    output, mark = Output(keep), secrets.token_hex(16)
    execution = await _create(container, command, mark, stdin=bool(feed), stderr=stderr)
    try:
        async with asyncio.timeout(seconds) as limit:
            async with _fed_stream(execution, feed) as stream:
                while (message := await stream.read_out()) is not None:
                    _take(output, message.data)
            status = await _exit_status(execution)
    except NotStartedError:
        raise
    except BaseException as error:
        await _end_surely(container, mark)
        if isinstance(error, TimeoutError) and limit.expired():
            raise TimeLimitError(output) from None
        raise
    if status in _NOT_STARTED_STATUS and output.content.startswith(_NOT_STARTED):
        raise NotStartedError(output.text().strip())
    return status, output


async def _create(
    container: DockerContainer, command: Sequence[str], mark: str, *, stdin: bool = False, stderr: bool = True
) -> Exec:
    try:
        return await container.exec(
            command, stdin=stdin, stderr=stderr, environment={_MARK: mark}, workdir=WORKSPACE
        )
    except DockerError as error:
        raise _unless_unreachable(error, NotStartedError(error.message)) from error


def _unless_unreachable(error: DockerError, otherwise: Exception) -> Exception:
    return error if error.status == CANNOT_CONNECT else otherwise


@asynccontextmanager
async def _fed_stream(execution: Exec, feed: Iterable[bytes]) -> AsyncIterator[Stream]:
    stream = execution.start()
    try:
        await stream.__aenter__()
    except DockerError as error:
        raise _unless_unreachable(error, NotStartedError(error.message)) from error
    feeder = asyncio.create_task(_feed(stream, feed))
    try:
        yield stream
    finally:
        feeder.cancel()
        await asyncio.wait([feeder])
        await stream.close()


async def _feed(stream: Stream, feed: Iterable[bytes]) -> None:
    with suppress(ConnectionError, aiohttp.ClientError):  # it may end before it has read everything
        for chunk in feed:
            await stream.write_in(chunk)


def _take(output: Output, data: bytes) -> None:
    output.content += data[: output.keep - len(output.content)]
    output.written += len(data)
    if output.written > OUTPUT_LIMIT_BYTES:
        raise OutputLimitError(output)


async def _exit_status(execution: Exec) -> int | None:
    """Wait for the program's end. It may come long after its output's: a program may close that and go on."""
    pause = 0.005
    while True:
        try:
            state = await execution.inspect()
        except DockerError as error:
            raise _unless_unreachable(error, SandboxLostError()) from error
        if not state["Running"]:
            status: int | None = state["ExitCode"]
            return status
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_POLL_SECONDS)


async def _end_surely(container: DockerContainer, mark: str) -> None:
    """Kill what carries a mark, even if this task is cancelled again meanwhile."""
    task = asyncio.create_task(_end(container, mark))
    _ending.add(task)
    task.add_done_callback(_ending.discard)
    await asyncio.shield(task)


async def _end(container: DockerContainer, mark: str) -> None:
    try:
        async with asyncio.timeout(_KILL_SECONDS):
            command = [*await inside("kill"), _MARK, mark]
            killer = await _create(container, command, secrets.token_hex(16))
            left = b""
            async with _fed_stream(killer, ()) as stream:
                while (message := await stream.read_out()) is not None:
                    left = message.data
            if await _exit_status(killer) == 0 and left.strip() == b"0":
                return
    except (DockerError, aiohttp.ClientError, TimeoutError, NotStartedError, SandboxLostError) as error:
        logger.info("A command could not be killed by itself: %s", error)
    # Out of processes, most likely: a fork bomb. The next command starts the container again.
    with suppress(DockerError, aiohttp.ClientError, TimeoutError):
        await container.kill()
