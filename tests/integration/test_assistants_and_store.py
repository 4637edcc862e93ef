"""The rest of the platform's API: assistants and the store, each user's own."""

import asyncio
import time
from typing import Any
from uuid import uuid4

import httpx
import pytest

from server.child import ChildServer
from server.demo import last_answer, status_of
from storage.assistants import all_assistants
from tests.conftest import User, new_user

FORGED = {"created_by": "system", "owner": "bob", "langgraph_x": "y"}


async def make_assistant(user: User, **changes: Any) -> dict[str, Any]:
    made: Any = await user.client.assistants.create("agent", **changes)
    return dict(made)


async def test_everyone_reads_the_systems_assistant_and_nobody_changes_it(alice: User, bob: User) -> None:
    for user in (alice, bob):
        found = await user.client.assistants.search(graph_id="agent", metadata={"created_by": "system"})
        system = found[0]["assistant_id"]
        assert (await user.client.assistants.get(system))["graph_id"] == "agent"
        assert await status_of(user.client.assistants.update(system, name="mine")) == 404
        assert await status_of(user.client.assistants.delete(system)) == 404
        assert await status_of(user.client.assistants.create("agent", assistant_id=system)) == 409


async def test_assistants_made_at_once_are_all_made_and_all_saved(
    server: ChildServer, database: None
) -> None:
    user = await new_user(server)
    made = await asyncio.gather(*(make_assistant(user, name=f"{number}") for number in range(10)))
    saved = {str(one.assistant_id) for one in await all_assistants() if one.owner == user.name}
    assert saved == {one["assistant_id"] for one in made}


async def test_ones_own_assistant_is_ones_own_whatever_its_metadata_says(alice: User, bob: User) -> None:
    own = await make_assistant(alice, name="helper", metadata={**FORGED, "note": "x"})
    assert own["metadata"] == {"owner": "alice", "note": "x"}
    assistant_id = own["assistant_id"]
    updated: Any = await alice.client.assistants.update(assistant_id, metadata=FORGED, name="other")
    assert updated["metadata"] == {"owner": "alice", "note": "x"}

    attempts = [
        bob.client.assistants.get(assistant_id),
        bob.client.assistants.update(assistant_id, name="stolen"),
        bob.client.assistants.delete(assistant_id),
        bob.client.assistants.get_versions(assistant_id),
        bob.client.assistants.set_latest(assistant_id, 1),
        bob.client.assistants.get_graph(assistant_id),
        bob.client.assistants.get_schemas(assistant_id),
    ]
    for attempt in attempts:
        assert await status_of(attempt) == 404
    for query in ({}, {"metadata": {"owner": "alice"}}, {"name": "other"}):
        assert assistant_id not in [
            one["assistant_id"] for one in await bob.client.assistants.search(**query)
        ]
    run = bob.client.runs.create(await bob.thread(), assistant_id, input={"messages": []})
    assert await status_of(run) == 404

    await alice.client.assistants.delete(assistant_id)
    assert await status_of(alice.client.assistants.get(assistant_id)) == 404


async def test_an_assistants_config_carries_no_identity_into_a_run(alice: User) -> None:
    forged = {"langgraph_auth_user_id": "bob", "user_id": "bob", "thread_id": str(uuid4()), "__pregel_x": 1}
    own = await make_assistant(alice, config={"configurable": forged, "tags": ["t"]})
    assert own["config"] == {"configurable": {}, "tags": ["t"]}
    thread_id = await alice.thread()
    said: dict[str, Any] = {"messages": [{"role": "user", "content": "recall"}]}
    await alice.client.runs.wait(thread_id, own["assistant_id"], input=said)
    assert await last_answer(alice.client, thread_id)
    run: Any = (await alice.client.runs.list(thread_id))[0]
    assert "bob" not in str(run["kwargs"]["config"])


async def test_context_instead_of_configurable_is_no_way_around(http: httpx.AsyncClient, alice: User) -> None:
    body = {"graph_id": "agent", "context": {"user_id": "bob"}}
    made = await http.post("/assistants", json=body, headers=alice.headers)
    assert "bob" not in made.text


async def quickest_get(http: httpx.AsyncClient, user: User, path: str) -> float:
    taken = []
    for _ in range(8):
        started = time.perf_counter()
        (await http.get(path, headers=user.headers)).raise_for_status()
        taken.append(time.perf_counter() - started)
    return min(taken)


async def test_schemas_are_not_made_anew_while_everybody_waits(http: httpx.AsyncClient, alice: User) -> None:
    """They take thirty times as long to make as an assistant takes to be read."""
    own = f"/assistants/{(await make_assistant(alice))['assistant_id']}"
    read = await quickest_get(http, alice, own)
    assert await quickest_get(http, alice, f"{own}/schemas") < 8 * read


async def test_the_store_is_divided_by_name(alice: User, bob: User) -> None:
    await alice.client.store.put_item(["alice", "notes"], "k", {"text": "alices-marker"})
    item: Any = await alice.client.store.get_item(["alice", "notes"], "k")
    assert item["value"] == {"text": "alices-marker"}
    found: Any = await alice.client.store.search_items(["alice"])
    assert len(found["items"]) == 1
    names: Any = await alice.client.store.list_namespaces(prefix=["alice"])
    assert names["namespaces"] == [["alice", "notes"]]

    attempts = [
        bob.client.store.get_item(["alice", "notes"], "k"),
        bob.client.store.put_item(["alice", "notes"], "k", {"text": "forged"}),
        bob.client.store.delete_item(["alice", "notes"], "k"),
        bob.client.store.search_items(["alice"]),
        bob.client.store.search_items([]),
        bob.client.store.list_namespaces(),
        bob.client.store.list_namespaces(prefix=["alice"]),
        bob.client.store.list_namespaces(suffix=["notes"]),
        bob.client.store.list_namespaces(prefix=["*"]),
        bob.client.store.put_item(["bobby"], "k", {}),
    ]
    for attempt in attempts:
        assert await status_of(attempt) in (403, 422)
    assert (await alice.client.store.get_item(["alice", "notes"], "k"))["value"] == {"text": "alices-marker"}
    await alice.client.store.delete_item(["alice", "notes"], "k")


@pytest.mark.parametrize(
    ("name", "alike"), [("stor", "storx"), ("store-b", "store-bx"), ("s_tor", "sxtor"), ("st_r", "star")]
)
async def test_names_that_begin_alike_or_look_like_patterns_stay_apart(
    server: ChildServer, name: str, alike: str
) -> None:
    other, similar = await new_user(server, f"ns-{name}"), await new_user(server, f"ns-{alike}")
    await similar.client.store.put_item([similar.name], "k", {"text": "marker"})
    found: Any = await other.client.store.search_items([other.name])
    assert found["items"] == []
    names: Any = await other.client.store.list_namespaces(prefix=[other.name])
    assert names["namespaces"] == []


async def test_pruning_prunes_ones_own_only(http: httpx.AsyncClient, alice: User, bob: User) -> None:
    mine, foreign = await alice.thread(), await bob.thread()
    both = await http.post("/threads/prune", json={"thread_ids": [mine, foreign]}, headers=alice.headers)
    assert both.status_code == 403
    assert await status_of(alice.client.threads.get(mine)) is None
    only_mine = await http.post("/threads/prune", json={"thread_ids": [mine]}, headers=alice.headers)
    assert only_mine.status_code == 200
    assert await status_of(alice.client.threads.get(mine)) == 404
    assert await status_of(bob.client.threads.get(foreign)) is None


async def test_cancelling_all_cancels_ones_own_only(http: httpx.AsyncClient, alice: User, bob: User) -> None:
    thread_id = await alice.thread()
    said: dict[str, Any] = {"messages": [{"role": "user", "content": "count 200 every 50"}]}
    run = await alice.client.runs.create(thread_id, "agent", input=said)
    await http.post("/runs/cancel", json={"status": "all"}, headers=bob.headers)
    assert (await alice.client.runs.get(thread_id, run["run_id"]))["status"] in ("pending", "running")
    named = {"thread_id": thread_id, "run_ids": [run["run_id"]]}
    assert (await http.post("/runs/cancel", json=named, headers=bob.headers)).status_code == 403
    assert (await http.post("/runs/cancel", json=named, headers=alice.headers)).status_code in (200, 202, 204)
