"""What comes before there is a request to judge, with real sockets and uvicorn's own server."""

import asyncio
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
LARGE = 32 << 20
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def tell_headers(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the headers' names, as they are when the body has been read."""
    while (await receive()).get("more_body"):
        pass
    await answer(send, 200, " ".join(name.decode() for name, _ in scope["headers"]))


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[int]:
    """Serve on the port that is given."""
    config = uvicorn.Config(app, port=0, http=BoundedHttpProtocol, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await running


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with serving(tell_headers) as port:
        yield port


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


async def tell_much(_: Scope, __: Receive, send: Send) -> None:
    await answer(send, 200, "x" * LARGE)


async def test_a_client_that_leaves_its_answer_unread_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: to ask for much and never read it, so that the server keeps it for ever."""
    monkeypatch.setattr(http_protocol, "STALL_SECONDS", 0.2)
    async with serving(tell_much) as port, connections(port, 1) as [(reader, writer)]:
        writer.write(REQUEST)
        await asyncio.sleep(1)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(LARGE)


async def test_a_client_that_reads_slowly_gets_all_of_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "STALL_SECONDS", 0.5)
    async with serving(tell_much) as port, connections(port, 1) as [(reader, writer)]:
        writer.write(REQUEST)
        got = 0
        while got < LARGE:
            piece = await asyncio.wait_for(reader.read(512 << 10), 30)
            assert piece
            got += len(piece)
            await asyncio.sleep(0.02)
