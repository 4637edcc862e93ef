"""What Postgres keeps outlives the process, however it ends."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from server.child import ChildServer, remove_containers, temporary_data_dir
from server.demo import decide, last_answer, say_to, status_of
from storage.embedded import EmbeddedPostgres
from tests.conftest import User, new_user


@pytest.fixture
async def own_server(server: ChildServer) -> AsyncIterator[ChildServer]:
    """Give a server that a test may kill; the shared one has set up what both need."""
    with temporary_data_dir() as data_dir:
        try:
            with ChildServer(data_dir) as child:
                yield child
        finally:
            await remove_containers(data_dir)


async def crash(server: ChildServer) -> None:
    server.kill()
    server.start()


async def test_a_crash_loses_no_word_no_note_and_no_pending_approval(own_server: ChildServer) -> None:
    alice = await new_user(own_server, "alice")
    thread_id = (await alice.client.threads.create(metadata={"title": "kept"}))["thread_id"]
    await alice.client.threads.update(thread_id, metadata={"note": "kept, too"})
    await say_to(alice.client, thread_id, "recall something")
    await say_to(alice.client, thread_id, "run echo still here")
    before: Any = await alice.client.threads.get(thread_id)

    await crash(own_server)

    after: Any = await alice.client.threads.get(thread_id)
    assert after["status"] == before["status"] == "interrupted"
    assert after["metadata"]["title"] == "kept"
    assert after["metadata"]["note"] == "kept, too"
    assert after["values"]["messages"] == before["values"]["messages"]
    assert after["interrupts"] == before["interrupts"] != {}
    found = await alice.client.threads.search(status="interrupted")
    assert [thread["thread_id"] for thread in found] == [thread_id]
    await decide(alice.client, thread_id, {"type": "approve"})
    assert "still here" in await last_answer(alice.client, thread_id)


async def test_a_thread_without_a_run_survives(own_server: ChildServer) -> None:
    alice = await new_user(own_server, "alice")
    thread_id = await alice.thread()
    await crash(own_server)
    await say_to(alice.client, thread_id, "recall it")
    assert await status_of(alice.client.threads.create(thread_id=thread_id)) == 409


async def test_after_a_crash_a_thread_is_still_nobody_elses(own_server: ChildServer) -> None:
    alice, bob = await new_user(own_server, "alice"), await new_user(own_server, "bob")
    thread_id = await alice.thread()
    await say_to(alice.client, thread_id, "recall a secret")
    deleted = await alice.thread()
    await alice.client.threads.delete(deleted)

    await crash(own_server)

    # The platform has forgotten the row: a claim on its id must still not get the checkpoints below it.
    claim = bob.client.runs.create(thread_id, "agent", input={"messages": []}, if_not_exists="create")
    assert await status_of(claim) == 403
    assert await status_of(bob.client.threads.create(thread_id=thread_id, if_exists="do_nothing")) == 403
    assert await status_of(bob.client.threads.get_state(thread_id)) == 403
    assert await bob.client.threads.search() == []
    assert await status_of(alice.client.threads.get(deleted)) == 404
    assert deleted not in [thread["thread_id"] for thread in await alice.client.threads.search()]


async def test_a_crash_forgets_no_assistant(own_server: ChildServer) -> None:
    alice = await new_user(own_server, "alice")
    kept: Any = await alice.client.assistants.create("agent", name="kept")
    await alice.client.assistants.update(kept["assistant_id"], name="renamed")
    deleted: Any = await alice.client.assistants.create("agent", name="deleted")
    await alice.client.assistants.delete(deleted["assistant_id"])
    await crash(own_server)
    found = await alice.client.assistants.search(metadata={"owner": "alice"})
    assert [one["name"] for one in found] == ["renamed"]
    assert len(await alice.client.assistants.get_versions(kept["assistant_id"])) == 2
    thread_id = await alice.thread()
    said: dict[str, Any] = {"messages": [{"role": "user", "content": "recall"}]}
    await alice.client.runs.wait(thread_id, kept["assistant_id"], input=said)
    assert "recall" in await last_answer(alice.client, thread_id)


async def test_an_orderly_stop_keeps_the_same(own_server: ChildServer) -> None:
    alice = await new_user(own_server, "alice")
    thread_id = await alice.thread()
    await say_to(alice.client, thread_id, "recall that")
    assert own_server.stop() == 0
    own_server.start()
    state: Any = await alice.client.threads.get_state(thread_id)
    assert state["values"]["messages"][0]["content"] == "recall that"


async def test_two_servers_share_one_data_directory_and_one_truth(own_server: ChildServer) -> None:
    alice = await new_user(own_server, "alice")
    with ChildServer(own_server.data_dir) as second:
        twin = User(second, "alice", alice.token)
        assert await twin.client.threads.search() == []
        thread_id = await alice.thread()
        assert (
            await status_of(twin.client.threads.create(thread_id=thread_id, if_exists="do_nothing")) is None
        )
    # The first still has its database after the second has gone.
    assert (await alice.client.threads.get(thread_id))["thread_id"] == thread_id


async def test_a_postgres_that_was_killed_is_started_again(own_server: ChildServer) -> None:
    """As the kernel does it when memory runs out."""
    alice = await new_user(own_server, "alice")
    thread_id = await alice.thread()
    await say_to(alice.client, thread_id, "said before")
    postgres = EmbeddedPostgres(own_server.data_dir)
    killed = postgres.running_pid()
    assert killed is not None
    os.kill(killed, signal.SIGKILL)

    async with asyncio.timeout(60):
        while await status_of(alice.client.threads.get_state(thread_id)) is not None:
            await asyncio.sleep(0.5)
    assert postgres.running_pid() not in {None, killed}
    await say_to(alice.client, thread_id, "recall")
    assert "said before" in await last_answer(alice.client, thread_id)


async def test_two_servers_start_at_once_on_one_data_directory(own_server: ChildServer) -> None:
    alice = await new_user(own_server, "alice")
    twins = [ChildServer(own_server.data_dir) for _ in range(2)]
    try:
        await asyncio.gather(*(asyncio.to_thread(twin.start) for twin in twins))
        for server in (own_server, *twins):
            user = User(server, "alice", alice.token)
            await say_to(user.client, await user.thread(), "recall it")
    finally:
        assert [twin.stop() for twin in twins] == [0, 0]
    assert own_server.stop() == 0


async def test_a_thread_that_another_server_has_made_is_there_when_asked_for(own_server: ChildServer) -> None:
    alice, bob = await new_user(own_server, "alice"), await new_user(own_server, "bob")
    with ChildServer(own_server.data_dir) as second:
        twin, stranger = User(second, "alice", alice.token), User(second, "bob", bob.token)
        thread_id = (await alice.client.threads.create(metadata={"title": "kept"}))["thread_id"]
        session_id = await alice.thread()
        await say_to(alice.client, thread_id, "run echo there")
        before: Any = await alice.client.threads.get(thread_id)
        assert await status_of(stranger.client.threads.get(thread_id)) == 403
        assert await status_of(stranger.client.threads.get(str(uuid4()))) == 404

        # Asked for at once, it is still restored once.
        found: Any = await asyncio.gather(*(twin.client.threads.get(thread_id) for _ in range(4)))
        for after in found:
            assert after["status"] == "interrupted"
            assert after["metadata"]["title"] == "kept"
            assert after["values"]["messages"] == before["values"]["messages"]
            assert after["interrupts"] == before["interrupts"]
        assert [thread["thread_id"] for thread in await twin.client.threads.search()] == [thread_id]
        await decide(twin.client, thread_id, {"type": "approve"})
        assert "there" in await last_answer(twin.client, thread_id)
        async with httpx.AsyncClient(base_url=second.url, headers=twin.headers) as http:
            assert (await http.get(f"/api/sessions/alice-{session_id}")).status_code == 200

        await alice.client.threads.delete(thread_id)
        await asyncio.sleep(1.1)  # for so long may an answer be remembered
        assert await status_of(twin.client.threads.get(thread_id)) == 404
        assert await status_of(twin.client.threads.get_state(thread_id)) == 404
        again = twin.client.runs.create(thread_id, "agent", input={"messages": []}, if_not_exists="create")
        assert await status_of(again) == 404
