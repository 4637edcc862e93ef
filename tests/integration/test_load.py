"""One caller, with an account or without, does not take the server from the others."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from server.child import ChildServer
from server.demo import say_to
from server.http_protocol import MAX_HEAD_BYTES
from server.load import MAX_REQUESTS
from server.subscribers import WAITING_BYTES
from tests.conftest import User, new_user

PATIENCE = 20.0


@asynccontextmanager
async def connection(server: ChildServer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    place = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def flood(server: ChildServer, start: bytes, piece: bytes, limit: int) -> int:
    """Send `start` and then pieces until the server hangs up; return how many bytes of them went out."""
    async with connection(server) as (reader, writer):
        sent = 0
        try:
            writer.write(start)
            while sent < limit and not reader.at_eof():
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        return sent


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"GET / HTTP/1.1\r\nX: ", b"a" * 65_536),
        (b"GET /", b"a" * 65_536),
        (b"GET / HTTP/1.1\r\n", b"X: a\r\n" * 8_192),
        (b"POST /api/auth/login HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a" * 65_536),
        (b"POST /api/auth/login HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;a=", b"a" * 65_536),
    ],
    ids=["header", "url", "headers", "trailer", "chunk extension"],
)
async def test_a_stranger_cannot_stall_the_server_with_a_head_that_does_not_end(
    server: ChildServer, http: httpx.AsyncClient, start: bytes, piece: bytes
) -> None:
    limit = 60 << 20
    flooding = asyncio.create_task(flood(server, start, piece, limit))
    slowest = 0.0
    while not flooding.done():
        begun = time.perf_counter()
        assert (await http.get("/ok")).status_code == 200
        slowest = max(slowest, time.perf_counter() - begun)
    # What the kernel buffers goes out before the end is noticed.
    assert await flooding < limit / 2
    assert slowest < PATIENCE / 4


async def test_an_ordinary_head_just_below_the_bound_is_served(http: httpx.AsyncClient) -> None:
    answer = await http.get("/ok", headers={"X-Long": "a" * (MAX_HEAD_BYTES - 1000)})
    assert answer.status_code == 200


@pytest.mark.parametrize("credentials", ["", "Authorization: Bearer nobody\r\n"])
async def test_a_stranger_is_refused_without_the_server_waiting_for_what_they_have_to_say(
    server: ChildServer, credentials: str
) -> None:
    """Else a thousand connections that stop one byte before the end hold a gigabyte."""
    head = f"POST /threads HTTP/1.1\r\nHost: localhost\r\n{credentials}Content-Length: 1000000\r\n\r\n"
    async with connection(server) as (reader, writer), asyncio.timeout(PATIENCE):
        writer.write(head.encode() + b"a" * 1000)
        assert (await reader.readline()).split()[1] == b"401"


async def test_one_user_has_so_many_requests_under_way_and_no_more(
    server: ChildServer, http: httpx.AsyncClient, alice: User
) -> None:
    greedy = await new_user(server)
    thread_id = await greedy.thread()
    url = f"{server.url}/threads/{thread_id}/stream"
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=PATIENCE, limits=limits, headers=greedy.headers) as client:

        async def stream() -> int:
            async with client.stream("GET", url) as answer:
                if answer.status_code == httpx.codes.OK:
                    started.release()
                    await ended.wait()
                return answer.status_code

        started, ended = asyncio.Semaphore(0), asyncio.Event()
        streams = [asyncio.create_task(stream()) for _ in range(MAX_REQUESTS)]
        for _ in streams:
            await asyncio.wait_for(started.acquire(), PATIENCE)
        refused = await client.get(url)
        assert refused.status_code == 429
        assert "retry-after" in refused.headers
        # Nobody else notices, and with one that ends there is room again.
        assert (await http.post("/threads/search", json={}, headers=alice.headers)).status_code == 200
        ended.set()
        assert await asyncio.gather(*streams) == [200] * MAX_REQUESTS
        deadline = time.monotonic() + PATIENCE
        while (await client.post(f"{server.url}/threads/search", json={})).status_code == 429:
            assert time.monotonic() < deadline


async def test_the_history_of_a_large_thread_comes_in_parts(http: httpx.AsyncClient, alice: User) -> None:
    """Asked for a thousand states of megabytes each, the server would have to hold them all at once."""
    thread_id = await large_thread(http, alice, 12)
    url = f"/threads/{thread_id}/history"
    answer = await http.get(url, params={"limit": 1000}, headers=alice.headers)
    assert answer.status_code == 200
    assert 1 <= len(answer.json()) < 12
    assert len(answer.content) < 64 << 20
    before = answer.json()[-1]["checkpoint"]
    following = await http.post(url, json={"limit": 1000, "before": before}, headers=alice.headers)
    assert following.json()[0]["checkpoint"]["checkpoint_id"] < before["checkpoint_id"]


async def large_thread(http: httpx.AsyncClient, user: User, messages: int) -> str:
    """Make a thread with so many messages of 0.9 MB."""
    thread_id = await user.thread()
    await say_to(user.client, thread_id, "recall")
    for _ in range(messages):
        state = {"values": {"messages": [{"role": "user", "content": "a" * 900_000}]}, "as_node": "model"}
        (await http.post(f"/threads/{thread_id}/state", json=state, headers=user.headers)).raise_for_status()
    return thread_id


async def test_a_stream_that_nobody_reads_is_ended_and_its_run_is_not(
    server: ChildServer, http: httpx.AsyncClient, alice: User
) -> None:
    """Three such streams held two gigabytes: a large thread's state, several times for each of its steps."""
    thread_id = await large_thread(http, alice, 5)
    run = {
        "assistant_id": "agent",
        "input": {"messages": [{"role": "user", "content": "ls\n" * 12}]},
        "stream_mode": ["values", "debug"],
    }

    def request(path: str, content: dict[str, Any]) -> bytes:
        body = json.dumps(content).encode()
        head = f"POST /threads/{thread_id}/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"Authorization: Bearer {alice.token}\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    async with connection(server) as events, connection(server) as stream, asyncio.timeout(3 * PATIENCE):
        events[1].write(request("stream/events", {"channels": ["values", "tasks"]}))
        await events[0].readline()
        stream[1].write(request("runs/stream", run))
        await stream[0].readline()
        while (await alice.client.runs.list(thread_id))[0]["status"] in ("pending", "running"):
            await asyncio.sleep(0.1)
        assert (await alice.client.runs.list(thread_id))[0]["status"] == "success"
        for reader, _ in (events, stream):
            received, end = 0, b""
            while piece := await reader.read(1 << 20):
                received += len(piece)
                end = (end + piece)[-1000:]
            assert 1 << 20 < received < WAITING_BYTES * 2
        assert b"SlowReaderError" in end


async def test_a_search_for_large_threads_comes_in_parts(
    http: httpx.AsyncClient, server: ChildServer
) -> None:
    """A request of one kilobyte took 1.5 GB and stopped everybody for three seconds."""
    user = await new_user(server)
    first = await large_thread(http, user, 6)
    await http.post(f"/threads/{first}/copy", headers=user.headers)
    await http.post(f"/threads/{first}/copy", headers=user.headers)
    for found in await user.client.threads.search(
        select=["thread_id"]
    ):  # a copy has values once it is touched
        await user.client.threads.update_state(found["thread_id"], {"messages": []}, as_node="model")
    query: Any = {"select": ["thread_id"], "extract": {f"a{n}": "values.messages" for n in range(5)}}
    ids: list[str] = []
    for _ in range(3):
        page = await http.post("/threads/search", json={**query, "offset": len(ids)}, headers=user.headers)
        assert len(page.content) < 34 << 20
        ids += [row["thread_id"] for row in page.json()]
        assert int(page.headers.get("x-pagination-next", len(ids))) == len(ids)
    assert len(set(ids)) == len(ids) == 3
    assert len(await user.client.threads.search()) == 3


async def test_a_list_of_large_runs_comes_in_parts(http: httpx.AsyncClient, server: ChildServer) -> None:
    """Ten such lists that nobody read held half a gigabyte."""
    user = await new_user(server)
    thread_id = await user.thread()
    await user.client.runs.create(thread_id, "agent", input={"messages": "count 1000 every 1000"})
    run = {"assistant_id": "agent", "input": {"unknown": "a" * 950_000}, "multitask_strategy": "enqueue"}
    for _ in range(39):
        await http.post(f"/threads/{thread_id}/runs", json=run, headers=user.headers)
    ids: list[str] = []
    for _ in range(2):
        query = {"limit": 1000, "offset": len(ids)}
        page = await http.get(f"/threads/{thread_id}/runs", params=query, headers=user.headers)
        assert len(page.content) < 34 << 20
        ids += [row["run_id"] for row in page.json()]
    assert len(set(ids)) == len(ids) == 40
    await user.client.threads.delete(thread_id)


@pytest.mark.parametrize("route", ["runs", "runs/stream", "runs/wait"])
async def test_a_webhook_is_refused_before_its_host_is_looked_up(
    http: httpx.AsyncClient, alice: User, route: str
) -> None:
    body = {"assistant_id": "agent", "input": {}, "webhook": "http://127.0.0.1:1/"}
    answer = await http.post(f"/threads/{await alice.thread()}/{route}", json=body, headers=alice.headers)
    assert answer.status_code == 422
    assert "loopback" not in answer.text


async def test_a_page_may_ask_the_routes_that_look_like_threads(http: httpx.AsyncClient) -> None:
    headers = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    for path in ("/threads/search", "/threads/count", "/assistants/search", "/store/items"):
        assert (await http.options(path, headers=headers)).status_code == 200
    studios = {**headers, "Access-Control-Request-Headers": "x-auth-scheme,content-type"}
    assert (await http.options("/threads/search", headers=studios)).status_code == 200
