"""`./warren sandboxes`, and a server whose sandboxes are soon idle."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.child import ChildServer, containers_of, remove_containers, temporary_data_dir
from tests.conftest import User, new_user
from tests.integration.test_command_line import warren

APPROVE = {"resume": {"decisions": [{"type": "approve"}]}}


@pytest.fixture(scope="module", name="hasty")
async def _hasty(server: ChildServer) -> AsyncIterator[ChildServer]:
    """Run a server that pauses what has been idle for a second; the other one has made all that it needs."""
    with temporary_data_dir() as data_dir:
        try:
            with ChildServer(data_dir, {"SANDBOX_IDLE_SECONDS": "1"}) as child:
                yield child
        finally:
            await remove_containers(data_dir)


@pytest.fixture(scope="module")
async def carol(hasty: ChildServer) -> User:
    return await new_user(hasty, "carol")


async def say(user: User, thread: str, text: str) -> str:
    """Have the rehearsal model do something that needs one approval, and return its last message."""
    message = {"messages": [{"role": "user", "content": text}]}
    await user.client.runs.wait(thread, "agent", input=message)
    state = await user.client.runs.wait(thread, "agent", command=APPROVE)
    return str(state["messages"][-1]["content"])


def listed(data_dir: Path, thread: str) -> list[str]:
    """Return what the command prints about a thread: user, thread, state, memory, unit, date, time."""
    shown = warren("sandboxes", "--data-dir", str(data_dir))
    assert shown.returncode == 0, shown.stderr
    heading, *lines = shown.stdout.splitlines()
    assert heading.split() == ["USER", "THREAD", "STATE", "MEMORY", "LAST", "USED"]
    return next((line.split() for line in lines if thread in line), [])


async def test_a_sandbox_is_listed_paused_when_idle_and_resumed_by_the_next_call(
    hasty: ChildServer, carol: User
) -> None:
    thread = await carol.thread()
    assert "-> one" in await say(carol, thread, "run echo one > /tmp/x; cat /tmp/x")
    deadline = time.monotonic() + 60
    while (line := listed(hasty.data_dir, thread))[2] != "paused":
        assert line[:2] == ["carol", thread]
        assert time.monotonic() < deadline
    memory, unit, date, at = line[3:]
    assert 0 < int(memory) < 100
    assert (unit, date[:2], at[-1]) == ("MiB", "20", "Z")
    assert "-> one" in await say(carol, thread, "run cat /tmp/x")
    assert "is tried again" not in hasty.log.read_text()


async def test_pruning_beside_a_server_and_without_one_spares_the_workspaces(
    hasty: ChildServer, carol: User
) -> None:
    thread = await carol.thread()
    await say(carol, thread, "run echo kept > file")
    place = ("--data-dir", str(hasty.data_dir))
    shown = warren("sandboxes", "prune", "--unused", "1h", *place)
    assert (shown.returncode, shown.stdout.split()[:2]) == (0, ["Removed", "0"]), shown.stderr
    assert await containers_of(hasty.data_dir, thread)

    assert warren("sandboxes", *place, "prune", "--all").returncode == 0
    assert await containers_of(hasty.data_dir) == []
    assert listed(hasty.data_dir, thread) == []
    assert "-> kept" in await say(carol, thread, "run cat file")

    hasty.stop()
    assert listed(hasty.data_dir, thread)[:2] == ["carol", thread]
    assert warren("sandboxes", "prune", *place, SANDBOX_IDLE_SECONDS="1").stdout.split()[:2] == [
        "Removed",
        "1",
    ]
    hasty.start()
    assert "-> kept" in await say(carol, thread, "run cat file")


@pytest.mark.parametrize(
    "arguments", [["dance"], ["prune", "--unused", "soon"], ["prune", "--all", "--unused", "1h"]]
)
def test_what_cannot_be_read_is_a_usage_error(arguments: list[str]) -> None:
    assert warren("sandboxes", *arguments).returncode == 2


def test_an_engine_that_is_away_is_named(hasty: ChildServer) -> None:
    ended = warren(
        "sandboxes", "--data-dir", str(hasty.data_dir), DOCKER_HOST="unix:///nonexistent/docker.sock"
    )
    assert ended.returncode == 1
    assert "unix:///nonexistent/docker.sock" in ended.stderr
    assert "Traceback" not in ended.stderr
