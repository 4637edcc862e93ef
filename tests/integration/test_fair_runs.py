"""One user's runs, however many and however they are made, stopped or left behind: others' start at once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest

from auth import accounts
from server.child import ChildServer
from server.fair_share import MAX_RUNS
from tests.conftest import PASSWORD, User, new_user

JOBS = 10
SHARE = JOBS // 2
LONG = "count 1000 every 1000"
START_SECONDS = 15
"""Longer than any start on a loaded machine, shorter than LONG by far."""


def said(message: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": message}]}


async def make(user: User, message: str = LONG, thread_id: str | None = None) -> tuple[str, str]:
    thread_id = thread_id or await user.thread()
    run = await user.client.runs.create(thread_id, "agent", input=said(message))
    return thread_id, run["run_id"]


async def is_under_way(user: User, thread_id: str, run_id: str) -> bool:
    return (await user.client.runs.get(thread_id, run_id))["status"] == "running"


async def until_under_way(user: User, *runs: tuple[str, str]) -> None:
    async with asyncio.timeout(START_SECONDS):
        while not all([await is_under_way(user, *run) for run in runs]):
            await asyncio.sleep(0.05)


async def log_in_again(server: ChildServer, user: User) -> User:
    credentials = {"username": user.name, "password": PASSWORD}
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        login = (await http.post("/api/auth/login", json=credentials)).raise_for_status()
    return User(server, user.name, login.json()["access_token"])


@pytest.fixture
async def mallory(server: ChildServer) -> AsyncIterator[User]:
    """Yield a new user, whose runs are ended with the test."""
    user = await new_user(server)
    yield user
    user = await log_in_again(server, user)
    while threads := await user.client.threads.search(select=["thread_id"]):
        for thread in threads:
            await user.client.threads.delete(thread["thread_id"])


@pytest.fixture
async def full(mallory: User) -> list[tuple[str, str]]:
    """Have mallory do as much as she may; return her threads and runs."""
    runs = [await make(mallory) for _ in range(SHARE)]
    await until_under_way(mallory, *runs)
    return runs


async def test_one_user_cannot_occupy_every_worker(mallory: User, server: ChildServer) -> None:
    runs = [await make(mallory) for _ in range(JOBS + 2)]
    await until_under_way(mallory, *runs[:SHARE])
    victim = await new_user(server)
    async with asyncio.timeout(START_SECONDS):
        await victim.client.runs.wait(await victim.thread(), "agent", input=said("count 1 every 0"))
    assert not any([await is_under_way(mallory, *run) for run in runs[SHARE:]])


Ending = Callable[[httpx.AsyncClient, User, str, str], Awaitable[httpx.Response]]


async def delete_thread(http: httpx.AsyncClient, user: User, thread_id: str, _: str) -> httpx.Response:
    return await http.delete(f"/threads/{thread_id}", headers=user.headers)


async def prune(http: httpx.AsyncClient, user: User, thread_id: str, _: str) -> httpx.Response:
    body = {"thread_ids": [thread_id], "strategy": "delete"}
    return await http.post("/threads/prune", json=body, headers=user.headers)


async def delete_session(http: httpx.AsyncClient, user: User, thread_id: str, _: str) -> httpx.Response:
    return await http.delete(f"/api/sessions/{user.name}-{thread_id}", headers=user.headers)


async def delete_run(http: httpx.AsyncClient, user: User, thread_id: str, run_id: str) -> httpx.Response:
    return await http.delete(f"/threads/{thread_id}/runs/{run_id}", headers=user.headers)


async def cancel_all(http: httpx.AsyncClient, user: User, _thread_id: str, _: str) -> httpx.Response:
    return await http.post("/runs/cancel", json={"status": "running"}, headers=user.headers)


@pytest.mark.parametrize("end", [delete_thread, prune, delete_session, delete_run, cancel_all])
async def test_a_run_that_is_deleted_or_cancelled_under_way_leaves_its_worker(
    http: httpx.AsyncClient, mallory: User, full: list[tuple[str, str]], end: Ending
) -> None:
    """Otherwise it stays there for as long as it likes, and nobody can see or stop it."""
    waiting = await make(mallory)
    assert not await is_under_way(mallory, *waiting)
    assert (await end(http, mallory, *full[0])).is_success
    await until_under_way(mallory, waiting)


async def test_runs_that_wait_are_bounded_on_every_way_in(
    http: httpx.AsyncClient, mallory: User, alice: User
) -> None:
    thread_id, _ = await make(mallory)
    for _ in range(MAX_RUNS - 1):
        await make(mallory, thread_id=thread_id)
    fresh = await mallory.thread()
    body = {"assistant_id": "agent", "input": said("count 1 every 0")}
    for path in ("runs", "runs/stream", "runs/wait"):
        answer = await http.post(f"/threads/{fresh}/{path}", json=body, headers=mallory.headers)
        assert answer.status_code == 429, path
        assert str(MAX_RUNS) in answer.json()["detail"]
    chat = f"/api/chat/{mallory.name}-{fresh}"
    answer = await http.post(chat, json={"message": "hi"}, headers=mallory.headers)
    assert answer.status_code == 429
    command = {"id": 1, "method": "run.start", "params": body}
    answer = await http.post(f"/threads/{fresh}/commands", json=command, headers=mallory.headers)
    assert answer.json()["type"] == "error"  # in this protocol's own way
    assert str(MAX_RUNS) in answer.json()["message"]
    assert await mallory.client.runs.list(fresh) == []
    await alice.client.runs.wait(await alice.thread(), "agent", input=said("count 1 every 0"))


async def test_a_disabled_users_runs_end_although_one_of_them_was_cancelled_before(
    mallory: User, full: list[tuple[str, str]], server: ChildServer, database: None
) -> None:
    """Cancelling a run that waits must not make its thread look idle: another is under way there."""
    thread_id, _ = full[0]
    _, waiting = await make(mallory, thread_id=thread_id)
    await mallory.client.runs.cancel(thread_id, waiting)
    await accounts.disable(mallory.name)
    try:
        async with asyncio.timeout(START_SECONDS):
            while not all(was_stopped(server, run_id) for _, run_id in full):
                await asyncio.sleep(0.1)
    finally:
        await accounts.enable(mallory.name)
    again = await log_in_again(server, mallory)
    for thread, run_id in full:
        assert (await again.client.runs.get(thread, run_id))["status"] == "interrupted"


def was_stopped(server: ChildServer, run_id: str) -> bool:
    lines = server.log.read_text(errors="replace").splitlines()
    return any(run_id in line for line in lines if "Cancelled a disabled user's run" in line)


async def test_deleting_a_strangers_run_neither_deletes_nor_ends_it(
    http: httpx.AsyncClient, mallory: User, alice: User
) -> None:
    thread_id, run_id = await make(mallory)
    await until_under_way(mallory, (thread_id, run_id))
    for path in (f"/threads/{thread_id}/runs/{run_id}", f"/threads/{thread_id}", f"/threads/{uuid4()}"):
        assert (await http.delete(path, headers=alice.headers)).status_code in (403, 404)
    assert (await http.post("/runs/cancel", json={"status": "all"}, headers=alice.headers)).status_code == 404
    assert await is_under_way(mallory, thread_id, run_id)
