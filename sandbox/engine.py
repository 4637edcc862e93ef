"""The Docker engine: where it is, and how to talk to it."""

import asyncio
import json
import os
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiodocker
import aiohttp
from aiodocker.exceptions import DockerError

from sandbox.errors import DockerUnreachableError

DEFAULT_SOCKET = Path("/var/run/docker.sock")

# No cap on connections: every running command holds one, and none may wait for another's.
_CONNECTIONS = 0
_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=5)

_LOG_LINES = 25

CANNOT_CONNECT = 900
"""aiodocker's status for a request that never reached the engine."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself."""

    address: str
    version: str
    api_version: str


class Engine:
    """A connection pool to one engine, for one event loop. Close it when done."""

    def __init__(self, address: str, docker: aiodocker.Docker, session: aiohttp.ClientSession) -> None:
        self.address = address
        self.docker = docker
        self.session = session

    async def post(
        self, path: str, *, params: dict[str, str], body: bytes | AsyncIterator[bytes], timeout_seconds: float
    ) -> list[str]:
        """Send an archive to the engine and return the last lines of what it says of its work.

        For what aiodocker's own methods cannot say: importing a root file system, building on the host's
        network.

        Raises:
            DockerError: the engine refused the request or failed at it.
        """
        await self.docker.version()  # settles the API version
        url = f"{self.docker.docker_host}/{self.docker.api_version}/{path}"
        timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=5)
        headers = {"Content-Type": "application/x-tar"}
        said: deque[str] = deque(maxlen=_LOG_LINES)
        async with self.session.post(
            url, params=params, data=body, headers=headers, timeout=timeout
        ) as response:
            async for line in response.content:
                message = json.loads(line)
                said.append(str(message.get("stream") or message.get("status") or message).rstrip())
                if error := message.get("error") or (message.get("message") if not response.ok else None):
                    raise DockerError(response.status, "\n".join([*said, error]))
        return list(said)

    async def get(self, path: str, params: dict[str, str]) -> dict[str, Any]:
        """Ask the engine for something that aiodocker's own methods cannot ask for.

        Raises:
            DockerError: the engine refused.
        """
        await self.docker.version()  # settles the API version
        url = f"{self.docker.docker_host}/{self.docker.api_version}/{path}"
        async with self.session.get(url, params=params) as response:
            answer: dict[str, Any] = await response.json()
            if not response.ok:
                raise DockerError(response.status, answer.get("message", ""))
            return answer

    async def close(self) -> None:
        await self.docker.close()
        await self.session.close()


def docker_address() -> str:
    """Return where the engine is: DOCKER_HOST, or the first usual socket that exists, or the usual socket.

    Looks at the file system unless DOCKER_HOST is set.
    """
    if host := os.environ.get("DOCKER_HOST"):
        return host
    usual = [DEFAULT_SOCKET, Path(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent")) / "docker.sock"]
    with suppress(RuntimeError):  # not every user has a home
        usual.append(Path.home() / ".docker" / "run" / "docker.sock")
    return f"unix://{next((path for path in usual if path.is_socket()), DEFAULT_SOCKET)}"


async def open_engine() -> Engine:
    """Prepare to talk to the engine. Nothing is sent yet, so this succeeds even when no engine is there.

    The API version is settled with the first request: aiodocker asks `/version` and speaks the newest that
    the engine knows, so an engine that has dropped old versions is no trouble.

    Raises:
        DockerUnreachableError: the address is of a kind that cannot be used.
    """
    address, tls = await asyncio.to_thread(lambda: (docker_address(), _tls()))
    scheme, _, rest = address.partition("://")
    connector: aiohttp.BaseConnector
    if scheme == "unix" and rest:
        connector, url = aiohttp.UnixConnector(rest, limit=_CONNECTIONS), "unix://localhost"
    elif scheme in {"tcp", "http", "https"} and rest:
        encrypted = tls is not None or scheme == "https"
        connector = aiohttp.TCPConnector(ssl=tls or True, limit=_CONNECTIONS)
        url = f"{'https' if encrypted else 'http'}://{rest.rstrip('/')}"
    else:
        raise DockerUnreachableError(address, "DOCKER_HOST must begin with unix:// or tcp://.")
    session = aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT)
    return Engine(address, aiodocker.Docker(url, connector, session, _TIMEOUT), session)


def _tls() -> ssl.SSLContext | None:
    """Read the client certificate that `docker` would use, by the same two variables."""
    if os.environ.get("DOCKER_TLS_VERIFY", "0") in {"", "0"}:
        return None
    directory = Path(os.environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    return context


@asynccontextmanager
async def connected() -> AsyncIterator[Engine]:
    """Open an engine for the length of a block."""
    engine = await open_engine()
    try:
        with reaching(engine.address):
            yield engine
    finally:
        await engine.close()


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Name a failure to reach the engine for what it is. Other answers of the engine pass through.

    Raises:
        DockerUnreachableError: the block failed because the engine did not answer.
    """
    try:
        yield
    except DockerError as error:
        if error.status == CANNOT_CONNECT:
            reason = getattr(error.__context__, "strerror", None)
            raise DockerUnreachableError(address, f"{reason}." if reason else "") from error
        raise
    except TimeoutError as error:
        raise DockerUnreachableError(address, "it does not answer in time.") from error
    except aiohttp.ClientError as error:
        raise DockerUnreachableError(address, f"the connection broke ({error}).") from error


async def engine_info() -> EngineInfo:
    """Ask the engine for its version.

    Raises:
        DockerUnreachableError: no engine answers at the address.
    """
    async with connected() as engine:
        version = await engine.docker.version()
    return EngineInfo(engine.address, version["Version"], version["ApiVersion"])
