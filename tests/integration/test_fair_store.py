"""What one user does to the store holds nobody else, nor does filling all connections to Postgres."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from auth import accounts
from server.child import ChildServer
from storage.database import get_pool
from storage.errors import StoreTooSlowError
from storage.store import TIMEOUT_SECONDS, WarrenStore
from tests.conftest import User, new_user
from tests.integration.test_tokens_revoked import CLOSED_SECONDS, body, stream

SEARCHES = 12
"""More than a server has connections."""

_LARGE_ITEMS = """
INSERT INTO store (prefix, key, value)
SELECT %(prefix)s, 'item' || item, (
    SELECT jsonb_object_agg('k' || field, repeat('A', 2500)) FROM generate_series(1, 100) AS field
)
FROM generate_series(1, %(items)s) AS item
"""
"""They take little room in Postgres, and each comparison unpacks 250 KB."""

_SLOWEST_FILTER = {f"k{n}": {"$ne": "z", "$gt": "0"} for n in range(1, 5)} | {"k9": {"$ne": "z"}, "k10": "x"}


@pytest.fixture
async def mallory(server: ChildServer, database: None) -> AsyncIterator[User]:
    """Somebody with items that take an eighth of a second to search."""
    user = await new_user(server)
    async with (await get_pool()).connection() as conn:
        await conn.execute(_LARGE_ITEMS, {"prefix": user.name, "items": 100})
    yield user
    async with (await get_pool()).connection() as conn:
        await conn.execute("DELETE FROM store WHERE prefix = %s", (user.name,))


async def search(http: httpx.AsyncClient, user: User, **how: Any) -> httpx.Response:
    sent = {"namespace_prefix": [user.name], **how}
    return await http.post("/store/items/search", json=sent, headers=user.headers)


async def test_one_users_searches_hold_nobody_elses_requests(
    http: httpx.AsyncClient, alice: User, mallory: User
) -> None:
    thread_id = await alice.thread()
    searches = [
        asyncio.create_task(search(http, mallory, filter=_SLOWEST_FILTER, limit=1)) for _ in range(SEARCHES)
    ]
    await asyncio.wait(searches, return_when=asyncio.FIRST_COMPLETED)
    for _ in range(3):
        assert (await search(http, alice)).status_code == 200
        await alice.client.threads.update(thread_id, metadata={"a": "b"})
    assert sum(not one.done() for one in searches) > SEARCHES // 2
    assert {one.status_code for one in await asyncio.gather(*searches)} == {200}


async def test_a_filter_has_ten_conditions_at_most(http: httpx.AsyncClient, alice: User) -> None:
    many = {f"k{n}": {"$ne": "z", "$gt": "0"} for n in range(5)}
    assert (await search(http, alice, filter=many)).status_code == 200
    assert (await search(http, alice, filter={**many, "k": 1})).status_code == 422


async def test_a_search_that_takes_too_long_is_ended_and_leaves_a_usable_store(
    mallory: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = WarrenStore(await get_pool())
    monkeypatch.setattr("storage.store._LIMIT_TIME", "SET LOCAL statement_timeout = 20")
    with pytest.raises(StoreTooSlowError):
        await store.asearch((mallory.name,), filter=_SLOWEST_FILTER)
    await store.aput((mallory.name, "small"), "k", {"n": 1})
    assert [item.value for item in await store.asearch((mallory.name, "small"))] == [{"n": 1}]
    # The limit is the statement's own, not left behind on the connection.
    async with (await get_pool()).connection() as conn:
        assert await (await conn.execute("SHOW statement_timeout")).fetchone() == {"statement_timeout": "0"}


async def test_who_asks_and_whose_access_has_ended_is_seen_while_all_connections_are_taken(
    http: httpx.AsyncClient, server: ChildServer, alice: User, mallory: User
) -> None:
    """Otherwise a stream that was revoked would live on for as long as somebody keeps Postgres busy."""
    thread_id = await alice.thread()
    carol = await new_user(server)
    async with stream(http, carol, "runs/stream") as answer, (await get_pool()).connection() as conn:
        async with conn.transaction():
            await conn.execute("LOCK TABLE store")
            path = f"/store/items?namespace={mallory.name}&key=k"
            gets = [asyncio.create_task(http.get(path, headers=mallory.headers)) for _ in range(SEARCHES)]
            await accounts.log_out_everywhere(carol.name)
            await asyncio.sleep(1.1)  # for as long as a look-up is remembered
            await alice.client.threads.get(thread_id)
            await asyncio.wait_for(body(answer), CLOSED_SECONDS)
            assert not [one for one in gets if one.done()]
            refused = await asyncio.wait_for(gets[0], TIMEOUT_SECONDS)
        assert (refused.status_code, "too long" in refused.json()["detail"]) == (503, True)
        await asyncio.gather(*gets)
