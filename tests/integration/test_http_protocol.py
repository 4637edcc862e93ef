"""What comes before there is a request to judge, with real sockets and uvicorn's own server."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from server import http_protocol
from server.http_protocol import SHARES, BoundedHttpProtocol
from server.requests import answer

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
MIB = 1 << 20
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def tell_headers(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the headers' names, as they are when the body has been read."""
    while (await receive()).get("more_body"):
        pass
    await answer(send, 200, " ".join(name.decode() for name, _ in scope["headers"]))


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[uvicorn.Server]:
    config = uvicorn.Config(app, port=0, http=BoundedHttpProtocol, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server
    server.should_exit = True
    await running


def address(server: uvicorn.Server) -> tuple[str, int]:
    host, port = server.servers[0].sockets[0].getsockname()
    return host, port


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with serving(tell_headers) as server:
        yield address(server)[1]


@asynccontextmanager
async def connections(port: int, count: int, **options: Any) -> AsyncIterator[list[Connection]]:
    opened = [await asyncio.open_connection("127.0.0.1", port, **options) for _ in range(count)]
    try:
        yield opened
    finally:
        for _, writer in opened:
            writer.close()


async def is_served(connection: Connection) -> bool:
    reader, writer = connection
    try:
        writer.write(REQUEST)
        return b"200" in await reader.readline()
    except ConnectionError:
        return False


async def test_one_address_has_no_more_than_its_share_of_the_connections(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: to connect and say nothing, until there are no descriptors left for anybody."""
    monkeypatch.setattr(BoundedHttpProtocol, "most", 3 * SHARES)
    async with connections(port, 3) as kept:
        async with connections(port, 2) as refused, asyncio.timeout(10):
            assert [await is_served(one) for one in refused] == [False, False]
            async with connections(port, 1, local_addr=("127.0.0.2", 0)) as others:
                assert await is_served(others[0])
        assert all([await is_served(one) for one in kept])
    async with asyncio.timeout(10):
        while True:
            async with connections(port, 1) as [again]:
                if await is_served(again):
                    break


async def test_all_together_have_no_more_than_there_may_be(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedHttpProtocol, "most", SHARES)
    async with AsyncExitStack() as stack, asyncio.timeout(10):
        served = []
        for host in range(2, SHARES + 4):
            [one] = await stack.enter_async_context(connections(port, 1, local_addr=(f"127.0.0.{host}", 0)))
            served.append(await is_served(one))
    assert served == [True] * SHARES + [False] * 2


async def test_a_trailer_adds_no_header(port: int) -> None:
    """The attack: an address of one's choice, past a proxy that writes X-Forwarded-For into the head."""
    async with connections(port, 1) as [(reader, writer)], asyncio.timeout(10):
        writer.write(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"1\r\na\r\n0\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n"
        )
        said = await reader.readuntil(b"}")
    assert b"transfer-encoding" in said
    assert b"x-forwarded-for" not in said


def telling(size: int) -> ASGIApp:
    async def tell(_: Scope, __: Receive, send: Send) -> None:
        await answer(send, 200, "x" * size)

    return tell


@pytest.mark.parametrize("rest", [MIB, 200 << 10, 60 << 10, 20 << 10])
async def test_a_client_that_leaves_an_answers_rest_unread_is_left(
    monkeypatch: pytest.MonkeyPatch, rest: int
) -> None:
    """The attack: to ask for much and never read it all, so that the server keeps it for ever."""
    monkeypatch.setattr(http_protocol, "STALL_SECONDS", 0.2)
    loop = asyncio.get_running_loop()
    async with serving(telling(4 * MIB)) as server, asyncio.timeout(20):
        # The kernel would take megabytes for each of the two.
        server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, address(server))
            await loop.sock_sendall(client, REQUEST)
            await loop.sock_recv(client, 1)
            [protocol] = server.server_state.connections
            while (unsent := protocol.transport.get_write_buffer_size()) > rest:
                await loop.sock_recv(client, 1024)
            assert unsent > 0
            while server.server_state.connections:
                await asyncio.sleep(0.02)


async def test_a_client_that_reads_slowly_gets_all_of_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "STALL_SECONDS", 0.5)
    async with serving(telling(32 * MIB)) as server, connections(address(server)[1], 1) as [(reader, writer)]:
        writer.write(REQUEST)
        got = 0
        while got < 32 * MIB:
            piece = await asyncio.wait_for(reader.read(512 << 10), 30)
            assert piece
            got += len(piece)
            await asyncio.sleep(0.02)
