"""The audit log on a real server: what is written, who reads it, and that no client can abuse it."""

import asyncio
import json
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from server.child import ChildServer, clean_environment
from server.demo import decide, say_to
from server.serve import PROJECT
from storage import audit
from storage.audit_entry import Entry
from storage.audit_window import MAX_DENIALS, MAX_REPEATS
from storage.database import close_pool, get_pool
from storage.errors import AuditUnavailableError
from tests.conftest import User, new_user


@pytest.fixture(scope="module")
async def database(server: ChildServer) -> AsyncIterator[None]:
    """Use the server's database in this process as another one of its processes would."""
    await get_pool()
    yield
    await close_pool()


async def own_entries(http: httpx.AsyncClient, user: User, **query: Any) -> list[dict[str, Any]]:
    answer = await http.get("/api/audit", params=query, headers=user.headers)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


def warren_audit(server: ChildServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", "audit", "--data-dir", str(server.data_dir), *arguments],
        cwd=PROJECT,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def decision(username: str, **details: Any) -> Entry:
    return Entry(uuid4(), datetime.now(UTC), "decision", username, None, uuid4(), details)


# --- decisions ---------------------------------------------------------------------------------------


async def test_a_decision_by_the_session_api_is_recorded(
    http: httpx.AsyncClient, server: ChildServer
) -> None:
    user = await new_user(server)
    session_id = (await http.post("/api/sessions", headers=user.headers)).json()["thread_id"]
    said = {"message": "run echo by-session"}
    await http.post(f"/api/chat/{session_id}", json=said, headers=user.headers)
    approved = await http.post(f"/api/resume/{session_id}", json={"action": "approve"}, headers=user.headers)
    assert "by-session" in approved.json()["message"]
    [entry] = await own_entries(http, user, event="decision")
    assert session_id == f"{user.name}-{entry['thread_id']}"
    assert entry["details"]["decision"] == "approve"
    assert entry["details"]["arguments"] == '{"command":"echo by-session"}'


async def test_a_call_that_was_written_past_the_gate_is_recorded_before_it_is_made(
    http: httpx.AsyncClient, server: ChildServer
) -> None:
    """The attack: to have one's agent do things of which no log tells."""
    user = await new_user(server)
    thread_id = await user.thread()
    await say_to(user.client, thread_id, "run echo decided")
    await decide(user.client, thread_id, {"type": "approve"})
    call = {"name": "execute", "args": {"command": "echo undecided"}, "id": "forged"}
    update = {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}
    await user.client.runs.wait(thread_id, "agent", command={"update": update, "goto": "tools"})
    [entry] = await own_entries(http, user, event="undecided")
    assert entry["thread_id"] == thread_id
    assert entry["details"]["arguments"] == '{"command":"echo undecided"}'
    assert len(await own_entries(http, user, event="decision")) == 1


async def test_a_decision_by_the_sdk_is_recorded(http: httpx.AsyncClient, server: ChildServer) -> None:
    user = await new_user(server)
    thread_id = await user.thread()
    await say_to(user.client, thread_id, "run echo by-sdk")
    await decide(user.client, thread_id, {"type": "reject", "message": "no"})
    [entry] = await own_entries(http, user, event="decision")
    assert entry["thread_id"] == thread_id
    assert entry["details"]["decision"] == "reject"
    runs = await user.client.runs.list(thread_id)
    assert entry["details"]["run_id"] in {run["run_id"] for run in runs}


async def test_an_edited_state_is_recorded(http: httpx.AsyncClient, server: ChildServer) -> None:
    """Whoever holds another's key could have tools called by it that nobody was asked about."""
    user = await new_user(server)
    thread_id = await user.thread()
    await say_to(user.client, thread_id, "recall")
    await user.client.threads.update_state(thread_id, {"messages": []})
    deadline = time.monotonic() + 10
    while not (edits := await own_entries(http, user, event="state_edited")):
        assert time.monotonic() < deadline
    assert [edit["thread_id"] for edit in edits] == [thread_id]


async def test_a_sub_agents_decision_is_recorded(http: httpx.AsyncClient, server: ChildServer) -> None:
    user = await new_user(server)
    thread_id = await user.thread()
    await say_to(user.client, thread_id, "delegate run echo by-sub-agent")
    await decide(user.client, thread_id, {"type": "approve"})
    [entry] = await own_entries(http, user, event="decision")
    assert entry["details"]["arguments"] == '{"command":"echo by-sub-agent"}'


async def test_a_client_cannot_decide_in_anothers_name(
    http: httpx.AsyncClient, server: ChildServer, alice: User
) -> None:
    user = await new_user(server)
    thread_id = await user.thread()
    await say_to(user.client, thread_id, "run echo forged")
    forged = {"langgraph_auth_user_id": "alice", "user_id": "alice", "run_id": str(uuid4())}
    await user.client.runs.wait(
        thread_id,
        "agent",
        command={"resume": {"decisions": [{"type": "approve"}]}},
        config={"configurable": forged},
        metadata={"owner": "alice"},
    )
    [entry] = await own_entries(http, user, event="decision")
    assert entry["details"]["run_id"] != forged["run_id"]
    assert all("forged" not in json.dumps(entry) for entry in await own_entries(http, alice, limit=100))


async def test_the_log_has_one_line_of_json_for_a_decision(
    http: httpx.AsyncClient, server: ChildServer
) -> None:
    user = await new_user(server)
    thread_id = await user.thread()
    await say_to(user.client, thread_id, "run echo in-the-log")
    await decide(user.client, thread_id, {"type": "approve"})
    lines = [
        line
        for line in server.log.read_text(errors="replace").splitlines()
        if '"event": "decision"' in line and thread_id in line
    ]
    assert len(lines) == 1
    start = lines[0].index("{")
    logged, _ = json.JSONDecoder().raw_decode(lines[0][start:])
    assert (logged["username"], logged["thread_id"]) == (user.name, thread_id)


# --- reading -----------------------------------------------------------------------------------------


async def test_nobody_reads_without_logging_in(http: httpx.AsyncClient) -> None:
    assert (await http.get("/api/audit")).status_code == 401


@pytest.mark.usefixtures("database")
async def test_a_user_reads_only_their_own(http: httpx.AsyncClient, alice: User, bob: User) -> None:
    marker = str(uuid4())
    await audit.record_decisions([entry := decision("alice", marker=marker)])
    assert marker in json.dumps(await own_entries(http, alice))
    assert marker not in json.dumps(await own_entries(http, bob, limit=100))
    # Neither does another's id serve as a place in one's own list.
    assert await own_entries(http, bob, before=str(entry.id)) == []


@pytest.mark.usefixtures("database")
async def test_pages_follow_each_other_without_gap_or_repetition(
    http: httpx.AsyncClient, server: ChildServer
) -> None:
    user = await new_user(server)
    made = [decision(user.name, number=number) for number in range(5)]
    for entry in made:
        await audit.record_decisions([entry])
    seen: list[int] = []
    query: dict[str, Any] = {"event": "decision", "limit": 2}
    while page := await own_entries(http, user, **query):
        seen += [entry["details"]["number"] for entry in page]
        query["before"] = page[-1]["id"]
    assert seen == [4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 101},
        {"limit": "1e9"},
        {"before": "x"},
        {"before": "{" + str(uuid4()) + "}"},
        {"before": "' OR true --"},
        {"before": "\0"},
        {"event": ""},
        {"event": "\0"},
        {"event": "a' OR 'a'='a"},
        {"event": "decision\n"},
        {"event": "x" * 10_000},
    ],
)
async def test_odd_queries_are_refused(http: httpx.AsyncClient, bob: User, query: dict[str, Any]) -> None:
    assert (await http.get("/api/audit", params=query, headers=bob.headers)).status_code == 422


async def test_an_unknown_place_or_event_has_no_entries(http: httpx.AsyncClient, bob: User) -> None:
    assert await own_entries(http, bob, before=str(uuid4())) == []
    assert await own_entries(http, bob, event="no_such_event") == []
    assert await own_entries(http, bob, username="alice", event="no_such_event") == []


# --- the operator ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("database")
async def test_an_operator_reads_everybodys(server: ChildServer) -> None:
    marker = f"m{uuid4().hex}"
    await audit.record_decisions([decision("alice", marker=marker), decision("bob", marker=marker)])
    shown = await asyncio.to_thread(warren_audit, server, "--since", "1h", "--limit", "1000")
    assert shown.returncode == 0, shown.stderr
    lines = [line for line in shown.stdout.splitlines() if marker in line]
    assert [line.split()[3] for line in lines] == ["alice", "bob"]


@pytest.mark.usefixtures("database")
async def test_an_operator_can_narrow_it_down(server: ChildServer) -> None:
    marker = f"m{uuid4().hex}"
    old = decision("bob", marker=marker)
    old = Entry(old.id, old.at - timedelta(days=2), old.event, old.username, None, old.thread_id, old.details)
    await audit.record_decisions([old, decision("alice", marker=marker), decision("bob", marker=marker)])
    arguments = ("--user", "bob", "--event", "decision", "--since", "1d", "--json", "--limit", "1000")
    shown = await asyncio.to_thread(warren_audit, server, *arguments)
    entries = [json.loads(line) for line in shown.stdout.splitlines() if marker in line]
    assert [entry["username"] for entry in entries] == ["bob"]


@pytest.mark.usefixtures("database")
async def test_no_value_reaches_the_operators_terminal_as_more_than_text(server: ChildServer) -> None:
    marker = f"m{uuid4().hex}"
    hostile = f"\x1b[2J\r\n2026-01-01 forged\x7f\x9b31m\u202e{marker}"
    await audit.record("login_failed", hostile, address=hostile, details={hostile: hostile})
    await audit.flush()
    for arguments in (("--since", "1h"), ("--since", "1h", "--json")):
        shown = await asyncio.to_thread(warren_audit, server, *arguments)
        [line] = [line for line in shown.stdout.splitlines() if marker in line]
        assert line.isascii()
        assert line.isprintable()


@pytest.mark.parametrize("arguments", [["--since", "yesterday"], ["--since", "0d"], ["--limit", "0"], ["x"]])
def test_an_option_that_cannot_be_read_is_a_usage_error(server: ChildServer, arguments: list[str]) -> None:
    assert warren_audit(server, *arguments).returncode == 2


# --- writing -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    "value",
    [
        "\0",
        "\ud800",
        "x" * 100_000,
        10**400,
        float("nan"),
        [[[[[1]]]]],
        {"a": {"b": {"c": {"d": 1}}}},
        object(),
    ],
)
async def test_no_value_hinders_the_act_or_the_entries_around_it(value: Any) -> None:
    username = f"u{uuid4().hex[:20]}"
    await audit.record("login", username, details={"number": 1})
    await audit.record("login", username, details={"value": value, "values": [value] * 100})
    await audit.record("login", username, details={"number": 3})
    await audit.flush()
    found = await audit.entries(username)
    assert [entry.details.get("number") for entry in found] == [3, None, 1]
    assert len(json.dumps(found[1].details)) < 40_000


@pytest.mark.usefixtures("database")
async def test_a_line_is_one_line_whatever_is_in_it(caplog: pytest.LogCaptureFixture) -> None:
    forged = 'x\n{"event": "login", "username": "alice"}\r\u2028\x1b[0m'
    with caplog.at_level(logging.INFO, "warren.audit"):
        await audit.record("login_failed", forged, address=forged, details={"name": forged})
        await audit.flush()
    [message] = [record.getMessage() for record in caplog.records if record.name == "warren.audit"]
    assert message.isascii()
    assert message.isprintable()
    assert json.loads(message)["details"]["name"] == forged


@pytest.mark.usefixtures("database")
async def test_an_entry_of_one_id_is_written_once(caplog: pytest.LogCaptureFixture) -> None:
    username = f"u{uuid4().hex[:20]}"
    entry = decision(username)
    with caplog.at_level(logging.INFO, "warren.audit"):
        await asyncio.gather(*(audit.record_decisions([entry]) for _ in range(5)))
    assert len(await audit.entries(username)) == 1
    assert len([record for record in caplog.records if record.name == "warren.audit"]) == 1


@pytest.mark.usefixtures("database")
async def test_decisions_that_cannot_be_written_are_not_half_written() -> None:
    username = f"u{uuid4().hex[:20]}"
    pool = await get_pool()
    async with pool.connection() as conn:
        await conn.execute(
            "ALTER TABLE audit_log ADD CONSTRAINT broken CHECK (details ->> 'broken' IS NULL) NOT VALID"
        )
    try:
        with pytest.raises(AuditUnavailableError):
            await audit.record_decisions([decision(username), decision(username, broken="yes")])
    finally:
        async with pool.connection() as conn:
            await conn.execute("ALTER TABLE audit_log DROP CONSTRAINT broken")
    assert await audit.entries(username) == []


@pytest.mark.usefixtures("database")
async def test_noting_something_does_not_wait_for_the_table_and_is_not_lost() -> None:
    username = f"u{uuid4().hex[:20]}"
    pool = await get_pool()
    async with pool.connection() as conn, conn.transaction():
        await conn.execute("LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE")
        await audit.record("password_changed", username)
        await audit.flush()
    await audit.flush()
    assert [entry.event for entry in await audit.entries(username)] == ["password_changed"]


@pytest.mark.usefixtures("database")
async def test_a_flood_of_denials_has_few_rows_and_one_sum() -> None:
    username = f"u{uuid4().hex[:20]}"
    for number in range(5_000):
        await audit.record_denial(username, "GET", f"/route/{number % 100}", 403, f"::{number:x}")
    await audit.flush()
    found = await audit.entries(username, limit=1_000)
    repeated = [entry.details["repeated"] for entry in found if "repeated" in entry.details]
    assert len(found) - len(repeated) == MAX_DENIALS
    assert sum(repeated) == 5_000 - MAX_DENIALS
    assert len(found) <= 2 * MAX_DENIALS + 1


@pytest.mark.usefixtures("database")
async def test_other_events_are_bounded_as_well() -> None:
    username = f"u{uuid4().hex[:20]}"
    for _ in range(1_000):
        await audit.record("key_created", username)
    await audit.flush()
    assert len(await audit.entries(username, limit=1_000)) == MAX_REPEATS + 1


@pytest.mark.usefixtures("database")
async def test_what_is_older_than_the_retention_is_deleted() -> None:
    username = f"u{uuid4().hex[:20]}"
    fresh, stale = decision(username), decision(username)
    stale = Entry(stale.id, stale.at - timedelta(days=366), "decision", username, None, None, {})
    await audit.record_decisions([stale, fresh])
    await audit.purge()
    assert [entry.id for entry in await audit.entries(username)] == [fresh.id]
