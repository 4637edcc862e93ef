"""One user's thread is closed to every other user, through every door of the platform's own API."""

from typing import Any
from uuid import uuid4

import httpx
import pytest

from server.demo import say_to, status_of
from tests.conftest import User

MARKER = "alices-secret-marker"


@pytest.fixture(scope="module")
async def thread(alice: User) -> str:
    thread_id = await alice.thread()
    await say_to(alice.client, thread_id, f"recall {MARKER}")
    return thread_id


def requests(thread_id: str, run_id: str) -> list[tuple[str, str, Any]]:
    run: dict[str, Any] = {"assistant_id": "agent", "input": {"messages": []}}
    return [
        ("GET", f"/threads/{thread_id}", None),
        ("PATCH", f"/threads/{thread_id}", {"metadata": {"owner": "bob"}}),
        ("DELETE", f"/threads/{thread_id}", None),
        ("GET", f"/threads/{thread_id}/state", None),
        ("POST", f"/threads/{thread_id}/state", {"values": {"messages": []}}),
        ("POST", f"/threads/{thread_id}/state/checkpoint", {"checkpoint": {}}),
        ("GET", f"/threads/{thread_id}/state/{uuid4()}", None),
        ("GET", f"/threads/{thread_id}/history", None),
        ("POST", f"/threads/{thread_id}/history", {}),
        ("POST", f"/threads/{thread_id}/copy", None),
        ("GET", f"/threads/{thread_id}/runs", None),
        ("POST", f"/threads/{thread_id}/runs", run),
        ("POST", f"/threads/{thread_id}/runs", {**run, "if_not_exists": "create"}),
        ("POST", f"/threads/{thread_id}/runs/stream", run),
        ("POST", f"/threads/{thread_id}/runs/wait", run),
        ("GET", f"/threads/{thread_id}/runs/{run_id}", None),
        ("DELETE", f"/threads/{thread_id}/runs/{run_id}", None),
        ("POST", f"/threads/{thread_id}/runs/{run_id}/cancel", None),
        ("POST", "/threads", {"thread_id": thread_id}),
        ("POST", "/threads", {"thread_id": thread_id, "if_exists": "do_nothing"}),
        ("POST", "/threads", {"thread_id": thread_id.upper(), "if_exists": "do_nothing"}),
    ]


async def test_every_door_answers_403_to_another_user(
    http: httpx.AsyncClient, alice: User, bob: User, thread: str
) -> None:
    run_id = (await alice.client.runs.list(thread))[0]["run_id"]
    before = await alice.client.threads.get_state(thread)
    for method, path, body in requests(thread, run_id):
        answer = await http.request(method, path, json=body, headers=bob.headers)
        assert answer.status_code == 403, f"{method} {path}: {answer.status_code} {answer.text}"
        assert MARKER not in answer.text
    assert await alice.client.threads.get_state(thread) == before
    assert (await alice.client.threads.get(thread))["metadata"]["owner"] == "alice"


@pytest.mark.parametrize("path", ["stream", "runs/{run}/stream", "runs/{run}/join"])
async def test_joining_anothers_stream_shows_nothing_of_it(
    http: httpx.AsyncClient, alice: User, bob: User, thread: str, path: str
) -> None:
    run_id = (await alice.client.runs.list(thread))[0]["run_id"]
    target = f"/threads/{thread}/{path.format(run=run_id)}"
    async with http.stream("GET", target, headers=bob.headers) as answer:
        text = (await answer.aread()).decode()
    assert MARKER not in text
    assert answer.status_code in (403, 404) or "event: error" in text


async def test_searching_shows_ones_own_only_whatever_is_asked(
    http: httpx.AsyncClient, bob: User, thread: str
) -> None:
    for query in (
        {},
        {"ids": [thread]},
        {"metadata": {"owner": "alice"}},
        {"metadata": {"$or": [{"owner": "alice"}]}},
        {"status": "idle"},
        {"values": {}},
    ):
        found = (await http.post("/threads/search", json=query, headers=bob.headers)).json()
        assert thread not in [row["thread_id"] for row in found]
        assert all(row["metadata"]["owner"] == "bob" for row in found)


async def test_counting_counts_ones_own_only(http: httpx.AsyncClient, bob: User, thread: str) -> None:
    counted = await http.post("/threads/count", json={"metadata": {"owner": "alice"}}, headers=bob.headers)
    assert counted.json() == 0


async def test_a_foreign_run_under_ones_own_thread_is_not_found_and_not_touched(
    http: httpx.AsyncClient, alice: User, bob: User, thread: str
) -> None:
    run_id = (await alice.client.runs.list(thread))[0]["run_id"]
    own = await bob.thread()
    await say_to(bob.client, own, "recall")
    history = await alice.client.threads.get_history(thread, limit=100)
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/join"), ("POST", "/cancel")):
        answer = await http.request(method, f"/threads/{own}/runs/{run_id}{path}", headers=bob.headers)
        assert answer.status_code == 404 or "not found" in answer.text.lower()
    assert await alice.client.threads.get_history(thread, limit=100) == history


async def test_an_unknown_thread_is_404(alice: User) -> None:
    unknown = str(uuid4())
    assert await status_of(alice.client.threads.get(unknown)) == 404
    assert await status_of(alice.client.threads.get_state(unknown)) == 404
    assert await status_of(alice.client.threads.delete(unknown)) == 404
    assert await status_of(alice.client.runs.create(unknown, "agent", input={"messages": []})) == 404


async def test_ownership_cannot_be_given_away_or_taken_by_metadata(alice: User, bob: User) -> None:
    thread = await alice.client.threads.create(
        metadata={"owner": "bob", "created_by": "system", "title": "x"}
    )
    assert thread["metadata"]["owner"] == "alice"
    updated = await alice.client.threads.update(thread["thread_id"], metadata={"owner": "bob", "note": "y"})
    assert updated["metadata"]["owner"] == "alice"
    run = await alice.client.runs.create(
        thread["thread_id"], "agent", input={"messages": []}, metadata={"owner": "bob"}
    )
    assert run["metadata"]["owner"] == "alice"
    assert await bob.client.threads.search(ids=[thread["thread_id"]]) == []


async def test_a_deleted_thread_is_gone_and_its_id_stays_taken(alice: User, bob: User) -> None:
    thread_id = await alice.thread()
    await say_to(alice.client, thread_id, "recall")
    await alice.client.threads.delete(thread_id)
    assert await status_of(alice.client.threads.get(thread_id)) == 404
    assert await status_of(alice.client.threads.create(thread_id=thread_id)) == 404
    assert await status_of(bob.client.threads.create(thread_id=thread_id)) == 403
    created = bob.client.runs.create(thread_id, "agent", input={"messages": []}, if_not_exists="create")
    assert await status_of(created) == 403


async def test_a_copy_is_the_owners_with_the_conversation_in_it(alice: User) -> None:
    thread_id = await alice.thread()
    await say_to(alice.client, thread_id, "recall this")
    copy: Any = await alice.client.threads.copy(thread_id)
    original_state: Any = await alice.client.threads.get_state(thread_id)
    copied_state: Any = await alice.client.threads.get_state(copy["thread_id"])
    assert copied_state["values"]["messages"] == original_state["values"]["messages"] != []


async def test_the_history_before_a_checkpoint_is_what_led_to_it(
    http: httpx.AsyncClient, alice: User
) -> None:
    thread_id = await alice.thread()
    await say_to(alice.client, thread_id, "recall this")
    latest, *earlier = await alice.client.threads.get_history(thread_id, limit=100)
    before: Any = latest["checkpoint"]
    assert await alice.client.threads.get_history(thread_id, limit=100, before=before) == earlier != []
    query = {"limit": 100, "before": before["checkpoint_id"]}
    found = await http.get(f"/threads/{thread_id}/history", params=query, headers=alice.headers)
    assert found.json() == earlier


async def test_deleting_the_last_run_takes_its_messages_with_it(alice: User) -> None:
    thread_id = await alice.thread()
    await say_to(alice.client, thread_id, "recall one")
    first: Any = await alice.client.threads.get_state(thread_id)
    await say_to(alice.client, thread_id, "recall two")
    last_run = (await alice.client.runs.list(thread_id))[0]["run_id"]
    await alice.client.runs.delete(thread_id, last_run)
    now: Any = await alice.client.threads.get_state(thread_id)
    assert now["values"]["messages"] == first["values"]["messages"]


async def test_deleting_an_earlier_run_loses_nothing_of_the_later(alice: User) -> None:
    thread_id = await alice.thread()
    await say_to(alice.client, thread_id, "recall one")
    first_run = (await alice.client.runs.list(thread_id))[0]["run_id"]
    await say_to(alice.client, thread_id, "recall two")
    before: Any = await alice.client.threads.get_state(thread_id)
    await alice.client.runs.delete(thread_id, first_run)
    now: Any = await alice.client.threads.get_state(thread_id)
    assert now["values"] == before["values"]


@pytest.mark.parametrize("route", ["/runs", "/runs/stream", "/runs/wait"])
async def test_a_run_without_a_thread_is_refused(http: httpx.AsyncClient, alice: User, route: str) -> None:
    body = {"assistant_id": "agent", "input": {"messages": []}}
    assert (await http.post(route, json=body, headers=alice.headers)).status_code == 422


async def test_a_run_that_keeps_the_thread_it_makes_makes_one_of_the_callers(
    http: httpx.AsyncClient, alice: User, bob: User
) -> None:
    body = {"assistant_id": "agent", "input": {"messages": []}, "on_completion": "keep"}
    answer = await http.post("/runs/stream", json=body, headers=alice.headers)
    location = answer.headers["content-location"]
    thread_id = (await alice.client.threads.search(limit=1, sort_by="created_at", sort_order="desc"))[0][
        "thread_id"
    ]
    assert location
    assert (await alice.client.threads.get(thread_id))["metadata"]["owner"] == "alice"
    assert await status_of(bob.client.threads.get(thread_id)) == 403


async def test_a_webhook_is_refused(http: httpx.AsyncClient, alice: User) -> None:
    body = {"assistant_id": "agent", "input": {"messages": []}, "webhook": "https://example.com/x"}
    answer = await http.post(f"/threads/{await alice.thread()}/runs", json=body, headers=alice.headers)
    assert 400 <= answer.status_code < 500
