"""API keys let a machine in as its user, and no further."""

import asyncio
import statistics
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from langgraph_sdk import get_client

from auth import keys
from auth.accounts import change_password
from auth.credentials import identify
from auth.errors import InvalidTokenError
from server.child import ChildServer
from server.demo import last_answer, say_to, status_of
from storage.database import get_pool
from tests.conftest import PASSWORD, User, new_user

NEVER_MADE = keys._new_key()


async def new_key(http: httpx.AsyncClient, user: User, **body: Any) -> dict[str, Any]:
    answer = await http.post("/api/auth/keys", json={"name": "ci", **body}, headers=user.headers)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def keys_of(http: httpx.AsyncClient, user: User) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = (await http.get("/api/auth/keys", headers=user.headers)).json()
    return listed


async def answers(http: httpx.AsyncClient, key: str) -> set[int]:
    """Return the statuses with which the session API and the platform answer a key."""
    headers = {"X-Api-Key": key}
    own = await http.get("/api/sessions", headers=headers)
    platforms = await http.post("/threads/search", json={}, headers=headers)
    return {own.status_code, platforms.status_code}


async def served(http: httpx.AsyncClient, key: str) -> int:
    """Return the status with which the session API and the platform both answer a key."""
    (status,) = await answers(http, key)
    return status


async def eventually_served(http: httpx.AsyncClient, key: str, status: int, within: float = 2) -> None:
    deadline = time.monotonic() + within
    while await answers(http, key) != {status}:
        assert time.monotonic() < deadline


async def test_the_stock_client_logs_in_with_a_key(
    http: httpx.AsyncClient, server: ChildServer, alice: User
) -> None:
    key = (await new_key(http, alice))["key"]
    client = get_client(url=server.url, api_key=key)
    thread_id = (await client.threads.create())["thread_id"]
    await say_to(client, thread_id, "recall this key")
    assert await last_answer(client, thread_id)
    # It is alice's thread, whatever she came in with.
    assert (await alice.client.threads.get(thread_id))["metadata"]["owner"] == alice.name


async def test_a_key_comes_in_either_header_and_says_what_it_is(http: httpx.AsyncClient, alice: User) -> None:
    key = (await new_key(http, alice))["key"]
    for headers in (
        {"X-Api-Key": key},
        {"Authorization": f"Bearer {key}"},
        {"Authorization": f"bearer {key}"},
    ):
        me = (await http.get("/api/auth/me", headers=headers)).json()
        assert (me["username"], me["via"]) == (alice.name, "api_key")
        assert (await http.post("/threads/search", json={}, headers=headers)).status_code == 200


async def test_authorization_wins_over_a_key(http: httpx.AsyncClient, alice: User, bob: User) -> None:
    key = (await new_key(http, alice))["key"]
    me = (await http.get("/api/auth/me", headers={"X-Api-Key": key, **bob.headers})).json()
    assert (me["username"], me["via"]) == (bob.name, "token")
    wrong = {"X-Api-Key": key, "Authorization": "Bearer wrong"}
    assert (await http.get("/api/auth/me", headers=wrong)).status_code == 401
    assert (await http.post("/threads/search", json={}, headers=wrong)).status_code == 401


async def test_a_key_is_shown_once_and_kept_as_a_hash(
    http: httpx.AsyncClient, server: ChildServer, database: None
) -> None:
    user = await new_user(server)
    made = await new_key(http, user, name="  laptop ", expires_in_days=7)
    assert made["name"] == "laptop"
    assert datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(
        made["created_at"]
    ) == timedelta(days=7)
    listed = await http.get("/api/auth/keys", headers=user.headers)
    assert made["key"].removeprefix("warren_") not in listed.text
    assert listed.json() == [{name: made[name] for name in made if name != "key"}]
    pool = await get_pool()
    async with pool.connection() as conn:
        rows = await (await conn.execute("SELECT k::text AS row FROM api_keys k")).fetchall()
    assert all(made["key"][7:] not in row["row"] for row in rows)
    assert made["key"] not in server.log.read_text()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/auth/keys", None),
        ("POST", "/api/auth/keys", {"name": "more"}),
        ("DELETE", f"/api/auth/keys/{uuid4()}", None),
        ("POST", "/api/auth/password", {"current_password": PASSWORD, "new_password": PASSWORD + "!"}),
        ("POST", "/api/auth/logout-everywhere", None),
    ],
)
async def test_a_key_cannot_manage_what_lets_people_in(
    http: httpx.AsyncClient, alice: User, method: str, path: str, body: dict[str, str] | None
) -> None:
    key = (await new_key(http, alice))["key"]
    for headers in ({"X-Api-Key": key}, {"Authorization": f"Bearer {key}"}):
        assert (await http.request(method, path, json=body, headers=headers)).status_code == 403
    assert (await http.request(method, path, json=body)).status_code == 401


async def test_a_deleted_key_lets_nobody_in(http: httpx.AsyncClient, server: ChildServer) -> None:
    user = await new_user(server)
    made = await new_key(http, user)
    assert await served(http, made["key"]) == 200
    path = f"/api/auth/keys/{made['id']}"
    assert (await http.delete(path, headers=user.headers)).status_code == 200
    assert await served(http, made["key"]) == 401
    assert (await http.delete(path, headers=user.headers)).status_code == 404
    assert await keys_of(http, user) == []


async def test_another_users_key_cannot_be_deleted_or_told_from_none(
    http: httpx.AsyncClient, alice: User, bob: User
) -> None:
    made = await new_key(http, alice)
    foreign = await http.delete(f"/api/auth/keys/{made['id']}", headers=bob.headers)
    unknown = await http.delete(f"/api/auth/keys/{uuid4()}", headers=bob.headers)
    assert foreign.status_code == unknown.status_code == 404
    assert made["id"] not in {key["id"] for key in await keys_of(http, bob)}
    assert await served(http, made["key"]) == 200


@pytest.mark.parametrize("key_id", ["x", "1", "%00", "null", "{id}", "urn:uuid:{id}", "{id}%20"])
async def test_an_odd_key_id_is_refused(http: httpx.AsyncClient, alice: User, key_id: str) -> None:
    made = await new_key(http, alice)
    path = f"/api/auth/keys/{key_id.replace('{id}', '{' + made['id'] + '}')}"
    assert (await http.delete(path, headers=alice.headers)).status_code in (404, 422)
    assert await served(http, made["key"]) == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": None},
        {"name": ""},
        {"name": "   "},
        {"name": "x" * 101},
        {"name": "a\x00b"},
        {"name": "a\nb"},
        {"name": "a\u202eb"},
        {"name": "\x1b[31m"},
        {"name": ["a"]},
        {"name": "a", "expires_in_days": 0},
        {"name": "a", "expires_in_days": -1},
        {"name": "a", "expires_in_days": 3651},
        {"name": "a", "expires_in_days": 10**30},
        {"name": "a", "expires_in_days": "7"},
        {"name": "a", "expires_in_days": 1.5},
        {"name": "a", "expires_in_days": True},
    ],
)
async def test_a_key_that_cannot_be_made_is_not(
    http: httpx.AsyncClient, alice: User, body: dict[str, Any]
) -> None:
    before = len(await keys_of(http, alice))
    assert (await http.post("/api/auth/keys", json=body, headers=alice.headers)).status_code == 422
    assert len(await keys_of(http, alice)) == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'{"name": "\\ud800"}'])
async def test_a_body_that_is_no_object_makes_no_key(
    http: httpx.AsyncClient, alice: User, content: bytes
) -> None:
    answer = await http.post("/api/auth/keys", content=content, headers=alice.headers)
    assert answer.status_code == 422


@pytest.mark.parametrize(
    "key",
    [
        "warren_",
        NEVER_MADE,
        NEVER_MADE[:-1],
        NEVER_MADE.upper(),
        "warren_" + "0" * 36,
        "warren_" + "a" * 5000,
        "warren_\u00e9",
        "warren_' OR true --",
    ],
)
async def test_what_is_no_key_lets_nobody_in(http: httpx.AsyncClient, key: str) -> None:
    for name, value in (("X-Api-Key", key), ("Authorization", f"Bearer {key}")):
        answer = await http.get("/api/sessions", headers={name: value.encode("latin-1", "replace")})
        assert answer.status_code == 401


async def test_one_user_has_fifty_keys_at_most_also_when_asking_at_once(
    http: httpx.AsyncClient, server: ChildServer
) -> None:
    user = await new_user(server)
    answers = await asyncio.gather(
        *(http.post("/api/auth/keys", json={"name": f"{n}"}, headers=user.headers) for n in range(55))
    )
    assert sorted(answer.status_code for answer in answers) == [200] * 50 + [409] * 5
    assert len(await keys_of(http, user)) == 50


async def test_an_expired_key_lets_nobody_in_and_a_running_request_go_on(
    http: httpx.AsyncClient, server: ChildServer, database: None
) -> None:
    user = await new_user(server)
    made = await new_key(http, user, expires_in_days=1)
    assert await served(http, made["key"]) == 200
    pool = await get_pool()
    async with pool.connection() as conn:
        await conn.execute("UPDATE api_keys SET expires_at = now() WHERE key_id = %s", (made["id"],))
    await eventually_served(http, made["key"], 401)
    headers = {"x-api-key": made["key"]}
    with pytest.raises(InvalidTokenError):
        await identify(headers)
    assert (await identify(headers, may_have_expired=True)).username == user.name


async def test_the_last_use_is_noted_once_a_minute(
    http: httpx.AsyncClient, server: ChildServer, database: None
) -> None:
    user = await new_user(server)
    made = await new_key(http, user)
    assert made["last_used_at"] is None

    async def last_use() -> datetime | None:
        noted = (await keys_of(http, user))[0]["last_used_at"]
        return datetime.fromisoformat(noted) if noted else None

    await served(http, made["key"])
    deadline = time.monotonic() + 5
    while (noted := await last_use()) is None:
        assert time.monotonic() < deadline
    assert abs(datetime.now(UTC) - noted) < timedelta(seconds=30)
    # Another process, which has not noted it yet, does not write a second time either.
    await keys._write_use(made["id"])
    for _ in range(20):
        await served(http, made["key"])
    assert await last_use() == noted


async def test_a_new_password_revokes_every_key_even_one_that_is_being_made(
    database: None, server: ChildServer
) -> None:
    user = await new_user(server)

    async def make() -> str | None:
        try:
            return (await keys.create(user.name, 0, "made with a stolen token", None))[1]
        except InvalidTokenError:
            return None

    new = f"{PASSWORD}!"
    changing = asyncio.create_task(change_password(user.name, 0, PASSWORD, new))
    made: list[str] = []
    while not changing.done() and len(made) < keys.MAX_KEYS - 5:
        made += [key for key in await asyncio.gather(*(make() for _ in range(5))) if key]
        await asyncio.sleep(0.02)
    await changing
    made += [key for key in await asyncio.gather(*(make() for _ in range(5))) if key]
    assert made
    assert await keys.keys_of(user.name) == []
    for key in made:
        with pytest.raises(InvalidTokenError):
            await identify({"x-api-key": key})


async def test_keys_of_a_user_are_not_seen_by_the_key_routes_of_another(
    http: httpx.AsyncClient, server: ChildServer
) -> None:
    one, other = await new_user(server), await new_user(server)
    await new_key(http, one, name="private name")
    assert "private name" not in (await http.get("/api/auth/keys", headers=other.headers)).text


async def test_a_key_opens_no_foreign_thread(
    http: httpx.AsyncClient, server: ChildServer, alice: User, bob: User
) -> None:
    key = (await new_key(http, bob))["key"]
    thread_id = await alice.thread()
    assert await status_of(get_client(url=server.url, api_key=key).threads.get(thread_id)) == 403


async def test_what_is_remembered_proves_a_caller_in_less_than_a_millisecond(
    http: httpx.AsyncClient, alice: User, database: None
) -> None:
    key = (await new_key(http, alice))["key"]
    for headers in ({"authorization": f"Bearer {alice.token}"}, {"x-api-key": key}):
        await identify(headers)
        seconds = []
        for _ in range(300):
            started = time.perf_counter()
            await identify(headers)
            seconds.append(time.perf_counter() - started)
        assert statistics.median(seconds) < 0.001
