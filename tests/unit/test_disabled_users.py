"""Stopping disabled users' runs goes on, whatever one of them has brought about."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import psycopg
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server import disabled_users
from server.disabled_users import stop_disabled_users_runs

pytestmark = pytest.mark.usefixtures("ops")


class Platform:
    """Busy threads, of which more than ids cannot be sent; of some users and threads, nothing."""

    def __init__(self) -> None:
        self.busy = {"mallory": ["m1", "m2"], "bob": ["b1"], "carol": ["c1"]}
        self.broken: set[str] = set()
        self.cancelled: set[str] = set()
        self.app = Starlette(
            routes=[
                Route("/threads/search", self.search, methods=["POST"]),
                Route("/threads/{thread_id}/runs", self.runs),
                Route("/threads/{thread_id}/runs/{run_id}/cancel", self.cancel, methods=["POST"]),
            ]
        )

    async def search(self, request: Request) -> Response:
        asked = await request.json()
        if asked["select"] != ["thread_id"] or asked["metadata"].keys() != {"owner"}:
            raise RecursionError
        owner = asked["metadata"]["owner"]
        if owner in self.broken:
            raise RecursionError
        found = self.busy[owner] if asked["offset"] == 0 else []
        return JSONResponse([{"thread_id": thread_id} for thread_id in found])

    async def runs(self, request: Request) -> Response:
        if (
            request.query_params.getlist("select") != ["run_id"]
            or request.path_params["thread_id"] in self.broken
        ):
            raise RecursionError
        is_running = request.query_params["status"] == "running"
        return JSONResponse([{"run_id": str(number)} for number in range(2)] if is_running else [])

    async def cancel(self, request: Request) -> Response:
        thread_id, run_id = request.path_params["thread_id"], request.path_params["run_id"]
        if run_id == "0":
            raise ValueError
        self.cancelled.add(thread_id)
        return Response(status_code=202)


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[frozenset[str] | BaseException]]:
    """Give what each round is told of who is disabled; the last for ever."""
    told: list[frozenset[str] | BaseException] = []

    async def lately_disabled_users() -> frozenset[str]:
        one = told.pop(0) if len(told) > 1 else told[0]
        if isinstance(one, BaseException):
            raise one
        return one

    monkeypatch.setattr(disabled_users, "lately_disabled_users", lately_disabled_users)
    monkeypatch.setattr(disabled_users, "_POLL_SECONDS", 0.01)
    return told


@asynccontextmanager
async def stopping(platform: Platform) -> AsyncIterator[None]:
    from langgraph_api.asyncio import set_event_loop  # noqa: PLC0415 - reads the environment that ops has set

    set_event_loop(asyncio.get_running_loop())
    task = asyncio.create_task(stop_disabled_users_runs(platform.app))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until_cancelled(platform: Platform, *thread_ids: str) -> None:
    async with asyncio.timeout(10):
        while not set(thread_ids) <= platform.cancelled:
            await asyncio.sleep(0.01)


async def test_only_disabled_users_runs_are_cancelled(platform: Platform, rounds: list[object]) -> None:
    rounds.append(frozenset({"bob"}))
    async with stopping(platform):
        await until_cancelled(platform, "b1")
    assert platform.cancelled == {"b1"}


@pytest.mark.parametrize("broken", ["mallory", "m1"])
async def test_what_cannot_be_read_keeps_nothing_else_going(
    platform: Platform, rounds: list[object], broken: str
) -> None:
    """An attacker makes a thread that cannot be sent: no list of everybody's threads can be sent any more."""
    platform.broken.add(broken)
    rounds.append(frozenset({"mallory", "bob", "carol"}))
    async with stopping(platform):
        await until_cancelled(platform, "b1", "c1", *(["m2"] if broken == "m1" else []))
    assert "m1" not in platform.cancelled


@pytest.mark.parametrize("failure", [psycopg.OperationalError(), RecursionError(), KeyError("owner")])
async def test_a_round_that_fails_is_not_the_last(
    platform: Platform, rounds: list[object], failure: BaseException
) -> None:
    rounds += [failure, failure, frozenset({"bob"})]
    async with stopping(platform):
        await until_cancelled(platform, "b1")
