"""What one user sends neither fails the others' requests nor makes them wait: too much is refused."""

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from langgraph.store.base import Item

from auth import bounds
from auth.settings import AuthSettings
from server.child import ChildServer
from server.demo import status_of
from storage import threads
from storage.assistants import AssistantJson, replace_assistants
from storage.database import get_pool
from storage.store import store
from tests.conftest import User, new_user
from tests.integration.test_sessions import chat, new_session, resume

NOTE = "x" * (bounds.MAX_NOTED_BYTES // 2)
"""Two of these are too much."""


@pytest.fixture
async def carol(server: ChildServer) -> User:
    """Somebody who has nothing yet."""
    return await new_user(server)


async def status(http: httpx.AsyncClient, user: User, method: str, path: str, body: dict[str, Any]) -> int:
    # Sent as it stands: an SDK would leave None out.
    answer = await http.request(method, path, content=json.dumps(body), headers=user.headers)
    if answer.status_code in (409, 422):
        assert answer.json() if "json" in answer.headers.get("content-type", "") else answer.text
    return answer.status_code


@pytest.mark.usefixtures("database")
async def test_a_value_that_postgres_refuses_fails_nobody_elses_store_operations() -> None:
    """LangGraph's own store sends operations of one moment as one, whoever's they are."""
    async with store() as shared:

        async def mallory() -> None:
            await shared.aput(("mallory",), "poison", {"a": "\0"})

        async def alice(n: int) -> Item | None:
            await shared.aput(("alice-of-bounds",), str(n), {"n": n})
            return await shared.aget(("alice-of-bounds",), str(n))

        tasks = [task for n in range(20) for task in (alice(n), mallory())]
        done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [item.value for item in done[::2] if isinstance(item, Item)] == [{"n": n} for n in range(20)]
    assert all(isinstance(failure, psycopg.Error) for failure in done[1::2])


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/store/items", {"key": "\0", "value": {}}),
        ("PUT", "/store/items", {"key": "k", "value": {"a": "\0"}}),
        ("PUT", "/store/items", {"key": "k" * 3000, "value": {}}),
        ("PUT", "/store/items", {"key": "k", "value": {}, "ttl": 1e300}),
        ("PUT", "/store/items", {"key": "k", "value": {"a": "x" * bounds.MAX_ITEM_BYTES}}),
        ("DELETE", "/store/items", {"key": "\0"}),
        ("POST", "/store/items/search", {"filter": {"a": "\0"}}),
        ("POST", "/store/items/search", {"filter": {"a": {"$in": [1]}}}),
        ("POST", "/store/items/search", {"limit": -1}),
        ("POST", "/store/items/search", {"limit": 10**12}),
        ("POST", "/store/items/search", {"offset": -1}),
        ("POST", "/store/items/search", {"offset": 10**30}),
        ("POST", "/store/namespaces", {"max_depth": 10**12}),
        ("POST", "/store/namespaces", {"max_depth": -1}),
        ("POST", "/store/namespaces", {"limit": -1}),
        ("POST", "/store/namespaces", {"offset": 2**63}),
        ("POST", "/store/namespaces", {"suffix": ["\0"]}),
    ],
)
async def test_a_store_request_that_postgres_would_refuse_is_the_callers_mistake(
    http: httpx.AsyncClient, alice: User, method: str, path: str, body: dict[str, Any]
) -> None:
    own = {"namespace": ["alice"], "namespace_prefix": ["alice"], "prefix": ["alice"]}
    assert await status(http, alice, method, path, {**own, **body}) == 422


async def test_a_store_search_must_say_where(http: httpx.AsyncClient, alice: User) -> None:
    for prefix in ({}, {"namespace_prefix": None}, {"namespace_prefix": 1}):
        assert await status(http, alice, "POST", "/store/items/search", prefix) == 422
    for body in ("", "null", "[]", "[" * 100_000, "{"):
        answer = await http.post("/store/items/search", content=body, headers=alice.headers)
        assert answer.status_code in (400, 422), body[:9]
    assert (await http.post("/store/items/search", json={})).status_code == 401


async def test_a_nul_in_a_query_is_the_callers_mistake(http: httpx.AsyncClient, alice: User) -> None:
    for query in ("namespace=alice&key=%00", "namespace=alice.%00&key=k"):
        assert (await http.get(f"/store/items?{query}", headers=alice.headers)).status_code == 422


async def test_the_filters_that_are_served_still_find(carol: User) -> None:
    await carol.client.store.put_item([carol.name], "k", {"n": 2, "s": "x"}, ttl=60)
    for filters in ({"n": 2}, {"n": {"$gte": 2}}, {"s": {"$ne": "y"}}):
        found: Any = await carol.client.store.search_items([carol.name], filter=filters, limit=100)
        assert [item["key"] for item in found["items"]] == ["k"]


async def test_one_request_names_a_hundred_threads_or_runs_at_most(
    http: httpx.AsyncClient, alice: User
) -> None:
    thread_id = await alice.thread()
    for ids in ([thread_id] * 101, [str(uuid4()) for _ in range(101)]):
        prune = {"thread_ids": ids, "strategy": "delete"}
        assert await status(http, alice, "POST", "/threads/prune", prune) == 422
        cancel = {"thread_id": thread_id, "run_ids": ids}
        assert await status(http, alice, "POST", "/runs/cancel", cancel) == 422
        assert await status(http, alice, "POST", "/threads/search", {"ids": ids}) == 422
    assert (await alice.client.threads.get(thread_id))["thread_id"] == thread_id
    assert await status(http, alice, "POST", "/threads/search", {"ids": [thread_id] * 100}) == 200
    assert await status(http, alice, "POST", "/threads/prune", {"thread_ids": [thread_id] * 100}) == 200
    assert await status_of(alice.client.threads.get(thread_id)) == 404


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "metadata",
    [{"a": NOTE, "b": NOTE}, nested(bounds.MAX_NOTED_DEPTH + 1), nested(252), {"a": "\0"}, {"\0": 1}],
    ids=["large", "deep", "too deep to be listed", "nul", "nul in a key"],
)
async def test_metadata_that_is_too_much_is_refused_wherever_it_is_sent(
    http: httpx.AsyncClient, alice: User, metadata: dict[str, Any]
) -> None:
    thread_id = await alice.thread()
    assistant: Any = await alice.client.assistants.create("agent")
    run = {"assistant_id": "agent", "input": {"messages": []}}
    noted = {"metadata": metadata}
    for method, path, body in (
        ("POST", "/threads", noted),
        ("PATCH", f"/threads/{thread_id}", noted),
        ("POST", "/threads/search", noted),
        ("POST", "/threads/search", {"values": metadata}),
        ("POST", "/threads/count", noted),
        ("POST", f"/threads/{thread_id}/runs", {**run, **noted}),
        ("POST", f"/threads/{thread_id}/runs", {**run, "config": noted}),
        ("POST", f"/threads/{uuid4()}/runs", {**run, **noted, "if_not_exists": "create"}),
        ("POST", "/assistants", {"graph_id": "agent", **noted}),
        ("PATCH", f"/assistants/{assistant['assistant_id']}", noted),
        ("POST", "/assistants/search", noted),
    ):
        assert await status(http, alice, method, path, body) == 422, (method, path)
    assert (await alice.client.threads.get(thread_id))["metadata"] == {"owner": "alice"}
    assert await alice.client.runs.list(thread_id) == []


@pytest.mark.usefixtures("database")
async def test_metadata_does_not_grow_by_many_small_changes(http: httpx.AsyncClient, alice: User) -> None:
    """Nor by copies in between: each would have to be copied in memory while everybody waits."""
    thread_id = await alice.thread()
    assert await status(http, alice, "PATCH", f"/threads/{thread_id}", {"metadata": {"a": NOTE}}) == 200
    copy: Any = (await http.post(f"/threads/{thread_id}/copy", headers=alice.headers)).json()
    for one in (thread_id, copy["thread_id"]):
        assert await status(http, alice, "PATCH", f"/threads/{one}", {"metadata": {"b": NOTE}}) == 422
        metadata: Any = (await alice.client.threads.get(one))["metadata"]
        assert "b" not in metadata
        # What a restart would bring back is the same.
        assert await threads.metadata_of(UUID(one)) == {"a": NOTE}
        # Less of it is no more.
        assert await status(http, alice, "PATCH", f"/threads/{one}", {"metadata": {"a": ""}}) == 200
        assert await status(http, alice, "PATCH", f"/threads/{one}", {"metadata": {"b": NOTE}}) == 200


def saved(assistant_id: object, *, versions: int = 1, size: int = 0) -> AssistantJson:
    record = {"assistant_id": str(assistant_id), "metadata": {}, "description": "x" * size}
    return AssistantJson(UUID(str(assistant_id)), json.dumps(record), json.dumps([{}] * versions))


@pytest.mark.usefixtures("database")
async def test_a_user_has_a_hundred_assistants_at_most(http: httpx.AsyncClient, carol: User) -> None:
    assistant: Any = await carol.client.assistants.create("agent", name="first")
    own = f"/assistants/{assistant['assistant_id']}"
    others = [saved(uuid4()) for _ in range(bounds.MAX_ASSISTANTS - 1)]
    await replace_assistants(carol.name, [saved(assistant["assistant_id"]), *others])
    assert await status(http, carol, "POST", "/assistants", {"graph_id": "agent"}) == 409
    # What there is can be changed and deleted.
    assert await status(http, carol, "PATCH", own, {"name": "changed"}) == 200
    assert await status(http, carol, "DELETE", own, {}) in (200, 204)


@pytest.mark.usefixtures("database")
async def test_an_assistant_has_a_hundred_versions_at_most(http: httpx.AsyncClient, carol: User) -> None:
    assistant: Any = await carol.client.assistants.create("agent", name="first")
    own = f"/assistants/{assistant['assistant_id']}"
    await replace_assistants(
        carol.name, [saved(assistant["assistant_id"], versions=bounds.MAX_VERSIONS), saved(uuid4())]
    )
    assert await status(http, carol, "PATCH", own, {"name": "changed"}) == 409
    assert await status(http, carol, "POST", f"{own}/latest", {"version": 1}) == 200


@pytest.mark.usefixtures("database")
async def test_a_users_assistants_take_a_few_mebibytes_at_most(http: httpx.AsyncClient, carol: User) -> None:
    assistant: Any = await carol.client.assistants.create("agent", name="first")
    own = f"/assistants/{assistant['assistant_id']}"
    # Compressed, as Postgres keeps it, this is next to nothing.
    await replace_assistants(carol.name, [saved(assistant["assistant_id"], size=bounds.MAX_ASSISTANT_BYTES)])
    assert await status(http, carol, "PATCH", own, {"name": "changed"}) == 409
    assert await status(http, carol, "POST", "/assistants", {"graph_id": "agent"}) == 409
    assert await status(http, carol, "DELETE", own, {}) in (200, 204)
    assert await status(http, carol, "POST", "/assistants", {"graph_id": "agent"}) == 200


async def test_an_assistants_metadata_does_not_grow_by_many_small_changes(
    http: httpx.AsyncClient, carol: User
) -> None:
    """It is copied into every run made with it."""
    created: Any = await carol.client.assistants.create("agent", metadata={"a": NOTE})
    own = f"/assistants/{created['assistant_id']}"
    assert await status(http, carol, "PATCH", own, {"metadata": {"b": NOTE}}) == 422
    assert await status(http, carol, "PATCH", own, {"metadata": {"a": "", "b": NOTE}}) == 200
    kept: Any = await carol.client.assistants.get(created["assistant_id"])
    assert kept["metadata"] == {"a": "", "b": NOTE, "owner": carol.name}


@pytest.mark.usefixtures("database")
async def test_a_user_has_a_thousand_threads_at_most(http: httpx.AsyncClient, carol: User) -> None:
    """The runtime looks for each thread among those of all users."""
    most = AuthSettings.model_fields["max_threads_per_user"].default
    thread_id = await carol.thread()
    async with (await get_pool()).connection() as conn:
        await conn.execute(
            "INSERT INTO thread_owners (thread_id, owner)"
            " SELECT gen_random_uuid(), %s FROM generate_series(2, %s)",
            (carol.name, most),
        )
    run = {"assistant_id": "agent", "input": {"messages": []}, "if_not_exists": "create"}
    for path, body in (
        ("/threads", {}),
        ("/threads", {"thread_id": str(uuid4()), "if_exists": "do_nothing"}),
        (f"/threads/{thread_id}/copy", {}),
        (f"/threads/{uuid4()}/runs", run),
        (f"/threads/{uuid4()}/runs/wait", run),
        ("/api/sessions", {}),
    ):
        assert await status(http, carol, "POST", path, body) == 409, path
    refused = await http.post("/threads", json={}, headers=carol.headers)
    assert f"You have {most} threads" in refused.json()["detail"]
    found: Any = await carol.client.threads.search()
    assert [thread["thread_id"] for thread in found] == [thread_id]
    # What there is can be used and deleted, and then there is room.
    again = {"thread_id": thread_id, "if_exists": "do_nothing"}
    assert await status(http, carol, "POST", "/threads", again) == 200
    assert await status(http, carol, "POST", f"/threads/{thread_id}/runs/wait", run) == 200
    assert await status(http, carol, "DELETE", f"/threads/{thread_id}", {}) in (200, 204)
    assert await status(http, carol, "POST", "/threads", {}) == 200
    assert await status(http, carol, "POST", "/threads", {}) == 409
    async with (await get_pool()).connection() as conn:
        await conn.execute("UPDATE thread_owners SET deleted_at = now() WHERE owner = %s", (carol.name,))


@pytest.mark.parametrize("change", [{"name": "x" * 2000}, {"config": {"tags": [NOTE, NOTE]}}])
async def test_an_assistants_name_and_config_are_bounded(
    http: httpx.AsyncClient, alice: User, change: dict[str, Any]
) -> None:
    assert await status(http, alice, "POST", "/assistants", {"graph_id": "agent", **change}) == 422


@pytest.mark.parametrize("route", ["runs", "runs/stream", "runs/wait"])
async def test_no_run_starts_later_than_its_caller_may_be_logged_out(
    http: httpx.AsyncClient, alice: User, route: str
) -> None:
    thread_id = await alice.thread()
    run = {"assistant_id": "agent", "input": {"messages": []}, "after_seconds": 60}
    assert await status(http, alice, "POST", f"/threads/{thread_id}/{route}", run) == 422
    assert await alice.client.runs.list(thread_id) == []


async def pending(http: httpx.AsyncClient, user: User, session_id: str) -> list[dict[str, Any]]:
    session = (await http.get(f"/api/sessions/{session_id}", headers=user.headers)).json()
    calls: list[dict[str, Any]] = session["pending_approvals"]
    return calls


async def test_an_approval_that_is_sent_twice_approves_only_what_was_shown(
    http: httpx.AsyncClient, alice: User
) -> None:
    """By a proxy that retries, a double click or a second tab: the agent's next call has not been seen."""
    session_id = await new_session(http, alice)
    events = await chat(http, alice, session_id, "run echo se''en\nrun echo unse''en")
    shown = next(data for name, data in events if name == "interrupt")["pending_approvals"]
    approve = {"action": "approve", "interrupt_id": shown[0]["interrupt_id"]}
    first = await resume(http, alice, session_id, **approve)
    assert first.json()["status"] == "interrupted"

    again = await resume(http, alice, session_id, **approve)
    assert again.status_code == 409
    assert [call["args"]["command"] for call in await pending(http, alice, session_id)] == ["echo unse''en"]
    each = await resume(http, alice, session_id, decisions=[approve])
    assert each.status_code == 409

    # What is keyed by a call that is not pending decides nothing, whichever way it comes.
    command: Any = {"resume": {shown[0]["interrupt_id"]: {"decisions": [{"type": "approve"}]}}}
    await alice.client.runs.wait(session_id.removeprefix("alice-"), "agent", command=command)

    (now,) = await pending(http, alice, session_id)
    assert now["args"]["command"] == "echo unse''en"
    seen = await resume(http, alice, session_id, action="approve", interrupt_id=now["interrupt_id"])
    assert seen.json()["status"] == "idle"
