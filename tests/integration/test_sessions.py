"""The session API: curl's way in, over the platform's own routes as the caller."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import httpx
import pytest

from server.demo import say_to
from tests.conftest import User


async def new_session(http: httpx.AsyncClient, user: User) -> str:
    answer = await http.post("/api/sessions", headers=user.headers)
    assert answer.status_code == 200
    session_id: str = answer.json()["thread_id"]
    return session_id


async def chat(
    http: httpx.AsyncClient, user: User, session_id: str, message: str
) -> list[tuple[str, dict[str, Any]]]:
    answer = await http.post(f"/api/chat/{session_id}", json={"message": message}, headers=user.headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = [block for block in answer.text.split("\n\n") if block.startswith("event: ")]
    events = [block.split("\n", 1) for block in blocks]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in events]


async def resume(http: httpx.AsyncClient, user: User, session_id: str, **decision: Any) -> httpx.Response:
    return await http.post(f"/api/resume/{session_id}", json=decision, headers=user.headers)


async def test_a_session_id_names_its_owner_and_the_platforms_thread(
    http: httpx.AsyncClient, alice: User
) -> None:
    session_id = await new_session(http, alice)
    assert session_id.startswith("alice-")
    thread = await alice.client.threads.get(session_id.removeprefix("alice-"))
    assert thread["metadata"]["owner"] == "alice"


async def test_a_chat_streams_tokens_and_ends_with_done(http: httpx.AsyncClient, alice: User) -> None:
    session_id = await new_session(http, alice)
    events = await chat(http, alice, session_id, "count 3 every 1")
    assert "3" in "".join(data["text"] for name, data in events if name == "token")
    assert events[-1] == ("done", {"thread_id": session_id, "status": "idle"})


async def test_a_tool_call_waits_until_it_is_approved(http: httpx.AsyncClient, alice: User) -> None:
    session_id = await new_session(http, alice)
    events = await chat(http, alice, session_id, "run echo approved-output")
    names = [name for name, _ in events]
    assert names.index("tool_call") < names.index("interrupt") < names.index("done")
    pending = next(data for name, data in events if name == "interrupt")["pending_approvals"]
    assert [(call["tool"], call["args"]) for call in pending] == [
        ("execute", {"command": "echo approved-output"})
    ]
    shown = (await http.get(f"/api/sessions/{session_id}", headers=alice.headers)).json()
    assert shown["status"] == "interrupted"
    assert shown["pending_approvals"] == pending

    resumed = await resume(http, alice, session_id, action="approve")
    assert resumed.status_code == 200
    assert resumed.json()["success"] is True
    assert "approved-output" in resumed.json()["message"]
    after = (await http.get(f"/api/sessions/{session_id}", headers=alice.headers)).json()
    assert (after["status"], after["pending_approvals"]) == ("idle", [])


@pytest.mark.parametrize(
    ("decision", "expected", "unexpected"),
    [
        ({"action": "reject", "message": "rather not"}, "rather not", "unwanted"),
        ({"action": "edit", "args": {"command": "echo ed''ited"}}, "edited", "unwanted"),
        ({"action": "respond", "message": "it said: hello"}, "it said: hello", "unwanted"),
    ],
)
async def test_other_decisions_do_as_they_say(
    http: httpx.AsyncClient, alice: User, decision: dict[str, Any], expected: str, unexpected: str
) -> None:
    session_id = await new_session(http, alice)
    await chat(http, alice, session_id, "run echo unwan''ted")
    answer = (await resume(http, alice, session_id, **decision)).json()
    assert expected in answer["message"]
    messages = (await http.get(f"/api/sessions/{session_id}", headers=alice.headers)).json()["messages"]
    results = [message["content"] for message in messages if message["role"] == "tool"]
    assert any(expected in result for result in results)
    assert not any(unexpected in result for result in results)


async def test_resuming_with_nothing_pending_is_a_conflict(http: httpx.AsyncClient, alice: User) -> None:
    session_id = await new_session(http, alice)
    assert (await resume(http, alice, session_id, action="approve")).status_code == 409


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"action": "destroy"},
        {"action": "edit"},
        {"action": "respond"},
        {"action": "approve", "decisions": []},
        {"decisions": []},
        {"decisions": [{"action": "approve"}, {"action": "approve"}]},
        {"action": "edit", "args": "ls"},
    ],
)
async def test_a_bad_decision_is_refused_and_the_call_still_waits(
    http: httpx.AsyncClient, alice: User, body: dict[str, Any]
) -> None:
    session_id = await new_session(http, alice)
    await chat(http, alice, session_id, "run true")
    assert (await resume(http, alice, session_id, **body)).status_code == 422
    assert (await resume(http, alice, session_id, action="reject")).status_code == 200


async def test_sessions_are_listed_newest_first_and_paged(http: httpx.AsyncClient, bob: User) -> None:
    made = [await new_session(http, bob) for _ in range(3)]
    listed = (await http.get("/api/sessions", params={"limit": 2}, headers=bob.headers)).json()
    assert [entry["thread_id"] for entry in listed] == [made[2], made[1]]
    rest = (await http.get("/api/sessions", params={"limit": 1, "offset": 2}, headers=bob.headers)).json()
    assert [entry["thread_id"] for entry in rest] == [made[0]]


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 101}, {"limit": "x"}, {"offset": -1}])
async def test_odd_pages_are_refused(http: httpx.AsyncClient, bob: User, query: dict[str, Any]) -> None:
    assert (await http.get("/api/sessions", params=query, headers=bob.headers)).status_code == 422


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/sessions/{}"),
        ("DELETE", "/api/sessions/{}"),
        ("POST", "/api/sessions/{}/cancel"),
        ("POST", "/api/chat/{}"),
        ("POST", "/api/resume/{}"),
    ],
)
async def test_anothers_session_is_denied_by_its_name_alone(
    http: httpx.AsyncClient, alice: User, bob: User, method: str, path: str
) -> None:
    existing, invented = await new_session(http, alice), f"alice-{uuid4()}"
    for session_id in (existing, invented):
        answer = await http.request(
            method, path.format(session_id), json={"message": "x"}, headers=bob.headers
        )
        assert (answer.status_code, answer.json()) == (
            403,
            {"detail": f"Access denied to thread {session_id}"},
        )
    shown = await http.get(f"/api/sessions/{existing}", headers=alice.headers)
    assert shown.status_code == 200


async def test_naming_oneself_on_anothers_thread_does_not_help(
    http: httpx.AsyncClient, alice: User, bob: User
) -> None:
    thread_id = (await new_session(http, alice)).removeprefix("alice-")
    assert (await http.get(f"/api/sessions/bob-{thread_id}", headers=bob.headers)).status_code == 403


@pytest.mark.parametrize("session_id", ["x", "alice-", "alice-123", f"alice{uuid4()}", f"-{uuid4()}", "%00"])
async def test_what_is_no_session_id_is_refused(
    http: httpx.AsyncClient, alice: User, session_id: str
) -> None:
    assert (await http.get(f"/api/sessions/{session_id}", headers=alice.headers)).status_code in (404, 422)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"message": ""}', b'{"message": 7}', b'{"message": "\\ud800"}']
)
async def test_a_bad_message_is_refused(http: httpx.AsyncClient, alice: User, body: bytes) -> None:
    session_id = await new_session(http, alice)
    answer = await http.post(f"/api/chat/{session_id}", content=body, headers=alice.headers)
    assert answer.status_code == 422


async def test_a_running_agent_can_be_cancelled(http: httpx.AsyncClient, alice: User) -> None:
    session_id = await new_session(http, alice)
    talking = asyncio.create_task(chat(http, alice, session_id, "count 600 every 100"))
    async with asyncio.timeout(20):
        while (
            await http.post(f"/api/sessions/{session_id}/cancel", headers=alice.headers)
        ).status_code == 409:
            await asyncio.sleep(0.05)
        events = await talking
    assert events[-1][0] == "done"
    assert (await http.post(f"/api/sessions/{session_id}/cancel", headers=alice.headers)).status_code == 409


async def test_a_decision_whose_run_is_cancelled_has_not_succeeded(
    http: httpx.AsyncClient, alice: User
) -> None:
    session_id = await new_session(http, alice)
    await chat(http, alice, session_id, "run sleep 30")
    resuming = asyncio.create_task(resume(http, alice, session_id, action="approve"))
    cancel = f"/api/sessions/{session_id}/cancel"
    async with asyncio.timeout(20):
        while (await http.post(cancel, headers=alice.headers)).status_code == 409:
            await asyncio.sleep(0.1)
        answer = (await resuming).json()
    assert (answer["success"], answer["status"]) == (False, "interrupted")


async def test_a_message_of_a_kind_that_only_clients_write_is_shown(
    http: httpx.AsyncClient, alice: User
) -> None:
    session_id = await new_session(http, alice)
    await chat(http, alice, session_id, "recall")
    state = {
        "values": {"messages": [{"role": "function", "name": "f", "content": "odd"}]},
        "as_node": "model",
    }
    thread_id = session_id.removeprefix("alice-")
    written = await http.post(f"/threads/{thread_id}/state", json=state, headers=alice.headers)
    assert written.status_code == 200
    shown = await http.get(f"/api/sessions/{session_id}", headers=alice.headers)
    assert shown.json()["messages"][-1]["role"] == "function"


async def test_cancelling_and_deleting_many_times_at_once_ends_well(
    http: httpx.AsyncClient, alice: User
) -> None:
    """Whoever comes second finds that what it was about to cancel is no longer there."""
    session_id = await new_session(http, alice)
    path = f"/api/sessions/{session_id}"
    async with http.stream(
        "POST", f"/api/chat/{session_id}", json={"message": "count 600 every 100"}, headers=alice.headers
    ) as stream:
        await anext(stream.aiter_lines())
        cancelled = await asyncio.gather(
            *(http.post(f"{path}/cancel", headers=alice.headers) for _ in range(5)),
            *(http.delete(path, headers=alice.headers) for _ in range(3)),
        )
    assert {answer.status_code for answer in cancelled} <= {200, 404, 409}
    assert 200 in [answer.status_code for answer in cancelled[5:]]


@pytest.mark.parametrize("query", [{"offset": 10**30}, {"offset": -1}, {"limit": 0}, {"limit": 101}])
async def test_a_page_that_cannot_be_is_refused(
    http: httpx.AsyncClient, alice: User, query: dict[str, int]
) -> None:
    assert (await http.get("/api/sessions", params=query, headers=alice.headers)).status_code == 422


async def test_a_second_message_while_one_is_answered_is_a_conflict(
    http: httpx.AsyncClient, alice: User
) -> None:
    session_id = await new_session(http, alice)
    async with asyncio.timeout(20):
        async with http.stream(
            "POST", f"/api/chat/{session_id}", json={"message": "count 100 every 50"}, headers=alice.headers
        ) as stream:
            await anext(stream.aiter_lines())
            second = await http.post(f"/api/chat/{session_id}", json={"message": "x"}, headers=alice.headers)
            assert second.status_code == 409
        assert (await http.delete(f"/api/sessions/{session_id}", headers=alice.headers)).status_code == 200
    assert (await http.get(f"/api/sessions/{session_id}", headers=alice.headers)).status_code == 404


async def test_a_client_that_goes_away_does_not_stop_the_run(http: httpx.AsyncClient, alice: User) -> None:
    session_id = await new_session(http, alice)
    async with http.stream(
        "POST", f"/api/chat/{session_id}", json={"message": "count 5 every 50"}, headers=alice.headers
    ) as stream:
        await anext(stream.aiter_lines())
    async with asyncio.timeout(20):
        while (shown := (await http.get(f"/api/sessions/{session_id}", headers=alice.headers)).json())[
            "status"
        ] != "idle":
            await asyncio.sleep(0.05)
    assert "5" in shown["messages"][-1]["content"]


async def test_both_apis_show_the_same_conversation(http: httpx.AsyncClient, alice: User) -> None:
    session_id = await new_session(http, alice)
    thread_id = session_id.removeprefix("alice-")
    await chat(http, alice, session_id, "recall through the session")
    await say_to(alice.client, thread_id, "recall through the sdk")
    messages = (await http.get(f"/api/sessions/{session_id}", headers=alice.headers)).json()["messages"]
    said = [message["content"] for message in messages if message["role"] == "human"]
    assert said == ["recall through the session", "recall through the sdk"]
