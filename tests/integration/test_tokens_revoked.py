"""Access ends when its user says so, on every process, and what is under way ends with it."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import jwt
import pytest

from auth import accounts
from auth.secret import signing_key
from auth.tokens import issue_token
from server.child import ChildServer
from tests.conftest import PASSWORD, User, new_user

NEW_PASSWORD = f"{PASSWORD}, changed"
CLOSED_SECONDS = 5.0
NOTICED_SECONDS = 2.0
"""One for the memory of another process, one for a busy machine."""

LONG = "count 1000 every 100"  # 100 s


async def post(http: httpx.AsyncClient, user: User, path: str, body: Any = None) -> httpx.Response:
    return await http.post(path, json=body, headers=user.headers)


async def change_password(http: httpx.AsyncClient, user: User, current: str = PASSWORD) -> httpx.Response:
    body = {"current_password": current, "new_password": NEW_PASSWORD}
    return await post(http, user, "/api/auth/password", body)


async def status(http: httpx.AsyncClient, user: User) -> int:
    """Return the status with which the session API and the platform both answer."""
    own = (await http.get("/api/sessions", headers=user.headers)).status_code
    assert (await post(http, user, "/threads/search", {})).status_code == own
    return own


async def eventually(what: Callable[[], Awaitable[bool]], within: float) -> None:
    deadline = time.monotonic() + within
    while not await what():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def second_session(
    server: ChildServer, http: httpx.AsyncClient, user: User, password: str = PASSWORD
) -> User:
    login = await http.post("/api/auth/login", json={"username": user.name, "password": password})
    return User(server, user.name, login.raise_for_status().json()["access_token"])


# --- sessions ----------------------------------------------------------------------------------------


async def test_me_is_who_i_am(http: httpx.AsyncClient, alice: User) -> None:
    me = (await http.get("/api/auth/me", headers=alice.headers)).json()
    assert set(me) == {"username", "created_at", "via"}
    assert (me["username"], me["via"]) == (alice.name, "token")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/auth/me"),
        ("POST", "/api/auth/password"),
        ("POST", "/api/auth/logout-everywhere"),
        ("GET", "/api/auth/keys"),
        ("POST", "/api/auth/keys"),
    ],
)
async def test_none_of_it_is_for_who_has_not_logged_in(
    http: httpx.AsyncClient, method: str, path: str
) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer x.y.z"},
        {"X-Api-Key": "x"},
        {"X-Auth-Scheme": "langsmith"},
    ):
        assert (await http.request(method, path, headers=headers)).status_code == 401


async def test_logging_out_everywhere_ends_all_sessions_at_once(
    http: httpx.AsyncClient, server: ChildServer
) -> None:
    one = await new_user(server)
    other = await second_session(server, http, one)
    assert [await status(http, user) for user in (one, other)] == [200, 200]
    assert (await post(http, one, "/api/auth/logout-everywhere")).status_code == 200
    assert [await status(http, user) for user in (one, other)] == [401, 401]
    assert await status(http, await second_session(server, http, one)) == 200


async def test_a_new_password_ends_other_sessions_and_keys_and_brings_a_new_token(
    http: httpx.AsyncClient, server: ChildServer
) -> None:
    one = await new_user(server)
    other = await second_session(server, http, one)
    key = (await post(http, one, "/api/auth/keys", {"name": "ci"})).json()["key"]
    machine = User(server, one.name, key)
    assert await status(http, machine) == 200
    answer = await change_password(http, one)
    assert set(answer.json()) == {"access_token", "token_type", "expires_in"}
    assert answer.headers["cache-control"] == "no-store"
    assert [await status(http, user) for user in (one, other, machine)] == [401, 401, 401]
    assert await status(http, User(server, one.name, answer.json()["access_token"])) == 200
    old = await http.post("/api/auth/login", json={"username": one.name, "password": PASSWORD})
    assert old.status_code == 401
    assert await status(http, await second_session(server, http, one, NEW_PASSWORD)) == 200


async def test_without_the_current_password_nothing_changes(
    http: httpx.AsyncClient, server: ChildServer
) -> None:
    user = await new_user(server)
    refused = await change_password(http, user, current="not the password")
    assert refused.status_code == 403
    assert "not the password" not in refused.text
    assert await status(http, user) == 200
    assert await second_session(server, http, user)


async def test_of_two_changes_at_once_one_holds(http: httpx.AsyncClient, server: ChildServer) -> None:
    user = await new_user(server)
    answers = await asyncio.gather(*(change_password(http, user) for _ in range(4)))
    seen = [answer.status_code for answer in answers]
    assert seen.count(200) == 1
    assert set(seen) <= {200, 401, 403}
    token = next(answer.json()["access_token"] for answer in answers if answer.status_code == 200)
    assert await status(http, User(server, user.name, token)) == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"current_password": PASSWORD},
        {"new_password": NEW_PASSWORD},
        {"current_password": PASSWORD, "new_password": "1234567"},
        {"current_password": PASSWORD, "new_password": "x" * 1025},
        {"current_password": PASSWORD, "new_password": None},
        {"current_password": PASSWORD, "new_password": [NEW_PASSWORD]},
        {"current_password": [PASSWORD], "new_password": NEW_PASSWORD},
    ],
)
async def test_a_change_that_cannot_be_read_changes_nothing(
    http: httpx.AsyncClient, alice: User, body: dict[str, Any]
) -> None:
    answer = await post(http, alice, "/api/auth/password", body)
    assert answer.status_code == 422
    assert PASSWORD not in answer.text
    assert await status(http, alice) == 200


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"current_password=a&new_password=b"]
)
async def test_a_body_that_is_no_object_changes_nothing(
    http: httpx.AsyncClient, alice: User, content: bytes
) -> None:
    answer = await http.post("/api/auth/password", content=content, headers=alice.headers)
    assert answer.status_code == 422


async def test_a_token_must_be_of_its_users_present_version(
    http: httpx.AsyncClient, server: ChildServer, database: None
) -> None:
    user = await new_user(server)
    for version in (-1, 1, 2**70):
        assert await status(http, User(server, user.name, issue_token(user.name, version)[0])) == 401
    now = int(time.time())
    claims = {"sub": user.name, "iat": now, "exp": now + 60, "iss": "warren", "aud": "warren"}
    without = jwt.encode(claims, signing_key(), algorithm="HS256")
    assert await status(http, User(server, user.name, without)) == 401


async def test_another_process_notices_within_a_second(
    http: httpx.AsyncClient, server: ChildServer, database: None
) -> None:
    user = await new_user(server)
    assert await status(http, user) == 200
    await accounts.log_out_everywhere(user.name)

    async def refused() -> bool:
        answer = await http.get("/api/auth/me", headers=user.headers)
        return answer.status_code == 401

    await eventually(refused, NOTICED_SECONDS)


async def test_two_credentials_of_a_kind_are_refused(http: httpx.AsyncClient, alice: User, bob: User) -> None:
    for name in ("Authorization", "X-Api-Key"):
        both = [(name, f"Bearer {alice.token}"), (name, f"Bearer {bob.token}")]
        assert (await http.get("/api/sessions", headers=both)).status_code == 400
        assert (await http.post("/threads/search", json={}, headers=both)).status_code == 400


# --- what is under way -------------------------------------------------------------------------------


async def start_run(user: User, message: str = LONG) -> tuple[str, str]:
    thread_id = await user.thread()
    said: dict[str, Any] = {"messages": [{"role": "user", "content": message}]}
    run = await user.client.runs.create(thread_id, "agent", input=said, stream_mode=["messages-tuple"])
    return thread_id, run["run_id"]


@asynccontextmanager
async def stream(
    http: httpx.AsyncClient, user: User, kind: str, message: str = LONG
) -> AsyncIterator[httpx.Response]:
    """Yield a streaming answer of one of the kinds there are, once its first bytes have come."""
    run_body = {
        "assistant_id": "agent",
        "input": {"messages": [{"role": "user", "content": message}]},
        "stream_mode": ["messages-tuple"],
    }
    method, sent = "POST", run_body
    if kind == "chat":
        session = (await post(http, user, "/api/sessions")).json()["thread_id"]
        path, sent = f"/api/chat/{session}", {"message": message}
    elif kind in ("runs/stream", "runs/wait"):
        path = f"/threads/{await user.thread()}/{kind}"
    else:
        thread_id, run_id = await start_run(user, message)
        method, path = "GET", f"/threads/{thread_id}/runs/{run_id}/{kind}"
    async with http.stream(
        method, path, json=sent if method == "POST" else None, headers=user.headers
    ) as answer:
        assert answer.status_code == 200
        yield answer


async def body(answer: httpx.Response) -> str:
    return "".join([part async for part in answer.aiter_text()])


async def is_running(
    server: ChildServer, http: httpx.AsyncClient, user: User, password: str = PASSWORD
) -> bool:
    again = await second_session(server, http, user, password)
    return bool(await again.client.threads.search(status="busy"))


@pytest.mark.parametrize("kind", ["runs/stream", "stream", "join", "runs/wait", "chat"])
async def test_a_stream_is_closed_when_its_session_is_ended(
    http: httpx.AsyncClient, server: ChildServer, kind: str
) -> None:
    user = await new_user(server)
    async with stream(http, user, kind) as answer:
        read = asyncio.create_task(body(answer))
        assert await is_running(server, http, user)
        assert (await post(http, user, "/api/auth/logout-everywhere")).status_code == 200
        assert not read.done()
        await asyncio.wait_for(read, CLOSED_SECONDS)
    # What was begun goes on: it is the session that ended, not the user.
    assert await is_running(server, http, user)


async def test_a_request_that_has_not_been_answered_yet_is_refused(
    http: httpx.AsyncClient, server: ChildServer
) -> None:
    user = await new_user(server)
    session = (await post(http, user, "/api/sessions")).json()["thread_id"]
    await post(http, user, f"/api/chat/{session}", {"message": "run sleep 60"})
    waiting = asyncio.create_task(post(http, user, f"/api/resume/{session}", {"action": "approve"}))

    async def running() -> bool:
        return await is_running(server, http, user)

    await eventually(running, 20)
    assert (await post(http, user, "/api/auth/logout-everywhere")).status_code == 200
    assert (await asyncio.wait_for(waiting, CLOSED_SECONDS)).status_code == 401
    again = await second_session(server, http, user)
    await post(http, again, f"/api/sessions/{session}/cancel")


async def test_a_stream_is_closed_when_its_password_is_changed(
    http: httpx.AsyncClient, server: ChildServer
) -> None:
    user = await new_user(server)
    async with stream(http, user, "stream") as answer:
        assert (await change_password(http, user)).status_code == 200
        await asyncio.wait_for(body(answer), CLOSED_SECONDS)
    assert await is_running(server, http, user, NEW_PASSWORD)


async def test_a_stream_is_closed_when_its_key_is_deleted_and_no_other(
    http: httpx.AsyncClient, server: ChildServer
) -> None:
    user = await new_user(server)
    made = (await post(http, user, "/api/auth/keys", {"name": "ci"})).json()
    async with (
        stream(http, User(server, user.name, made["key"]), "stream") as by_key,
        stream(http, user, "stream", "count 80 every 100") as by_token,
    ):
        other = asyncio.create_task(body(by_token))
        await http.delete(f"/api/auth/keys/{made['id']}", headers=user.headers)
        await asyncio.wait_for(body(by_key), CLOSED_SECONDS)
        assert not other.done()
        assert " 80" in await other


async def test_a_token_that_expires_lets_its_stream_end_and_serves_nothing_more(
    http: httpx.AsyncClient, server: ChildServer, database: None
) -> None:
    user = await new_user(server)
    now = int(time.time())
    claims = {"sub": user.name, "ver": 0, "iat": now, "exp": now + 3, "iss": "warren", "aud": "warren"}
    expiring = User(server, user.name, jwt.encode(claims, signing_key(), algorithm="HS256"))
    async with stream(http, expiring, "runs/stream", "count 80 every 100") as answer:
        text = await body(answer)
    assert time.time() > claims["exp"] + 3
    assert await status(http, expiring) == 401
    assert " 80" in text


async def test_a_disabled_users_sessions_keys_streams_and_runs_end(
    http: httpx.AsyncClient, server: ChildServer, database: None
) -> None:
    user = await new_user(server)
    key = (await post(http, user, "/api/auth/keys", {"name": "ci"})).json()["key"]
    machine = User(server, user.name, key)
    assert [await status(http, one) for one in (user, machine)] == [200, 200]
    thread_id, _ = await start_run(user)
    await user.client.runs.create(thread_id, "agent", input={"messages": "hi"}, multitask_strategy="enqueue")
    async with stream(http, machine, "chat") as answer:
        await accounts.disable(user.name)
        disabled_at = time.monotonic()

        async def refused() -> bool:
            me = [
                (await http.get("/api/auth/me", headers=one.headers)).status_code for one in (user, machine)
            ]
            return me == [401, 401]

        await eventually(refused, NOTICED_SECONDS)
        login = await http.post("/api/auth/login", json={"username": user.name, "password": PASSWORD})
        assert (login.status_code, login.json()) == (401, {"detail": "Incorrect username or password"})
        await asyncio.wait_for(body(answer), CLOSED_SECONDS)
    await asyncio.sleep(max(disabled_at + CLOSED_SECONDS - time.monotonic(), 0))
    await accounts.enable(user.name)
    again = await second_session(server, http, user)
    ended = [
        run["status"]
        for thread in await again.client.threads.search()
        for run in await again.client.runs.list(thread["thread_id"])
    ]
    assert len(ended) == 3
    assert set(ended) == {"interrupted"}
    # Enabling lets nobody in who held an old token.
    assert await status(http, user) == 401


async def test_another_users_streams_and_runs_go_on(
    http: httpx.AsyncClient, server: ChildServer, database: None
) -> None:
    gone, stays = await new_user(server), await new_user(server)
    async with (
        stream(http, gone, "runs/stream") as ended,
        stream(http, stays, "runs/stream", "count 80 every 100") as goes_on,
    ):
        other = asyncio.create_task(body(goes_on))
        await accounts.disable(gone.name)
        await asyncio.wait_for(body(ended), CLOSED_SECONDS)
        assert not other.done()
        assert " 80" in await other
