"""The backend as deepagents uses it: commands, files, and what happens when something is in the way."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TypedDict
from uuid import uuid4

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.graph import StateGraph

from sandbox.backend import SandboxBackend
from storage.ids import SessionId
from tests.integration.sandboxes import Sandboxes, in_run, sandboxes


@pytest.fixture(scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sandboxes]:
    async with sandboxes(tmp_path_factory.mktemp("workspaces")) as house:
        yield house


@pytest.fixture(scope="module")
async def alice(house: Sandboxes) -> SessionId:
    return house.thread("alice")


@pytest.fixture
def backend(house: Sandboxes, alice: SessionId) -> Iterator[SandboxBackend]:
    """Be within a run of alice's."""
    with in_run(alice):
        yield house.backend


async def test_a_command_runs_in_the_workspace_with_both_outputs_in_order(backend: SandboxBackend) -> None:
    result = await backend.aexecute("pwd; echo to-err >&2; echo to-out; exit 3")
    assert result.output == "/workspace\nto-err\nto-out\n"
    assert result.exit_code == 3
    assert not result.truncated


async def test_the_tools_of_a_coding_agent_are_there(backend: SandboxBackend) -> None:
    tools = "python python3 pip git rg jq curl make gcc cc node less ps"
    result = await backend.aexecute(
        f"for tool in {tools}; do command -v $tool > /dev/null || echo $tool; done"
    )
    assert result.output == ""
    venv = await backend.aexecute("python -m venv /tmp/v && . /tmp/v/bin/activate && pip --version && locale")
    assert venv.exit_code == 0, venv.output
    assert "LANG=C.UTF-8" in venv.output


async def test_a_command_reads_nothing_from_standard_input(backend: SandboxBackend) -> None:
    assert (await backend.aexecute("wc -c", timeout=5)).output.strip() == "0"


async def test_a_command_may_be_longer_than_linux_takes_as_one_argument(backend: SandboxBackend) -> None:
    result = await backend.aexecute(f"printf %s '{'é' * 100_000}' | wc -m; echo \"$#:$warren_command\"")
    assert result.output.split() == ["100000", "0:"]


@pytest.mark.parametrize("command", ["echo \0", "echo \ud800", "echo " + "x" * (1 << 20)])
async def test_a_command_that_cannot_be_run_is_refused(backend: SandboxBackend, command: str) -> None:
    result = await backend.aexecute(command)
    assert result.exit_code == 126
    assert result.output.startswith("Error: ")


async def test_output_that_is_not_text_is_shown_as_far_as_it_is(backend: SandboxBackend) -> None:
    assert (await backend.aexecute(r"printf 'a\377\000b'")).output == "a\ufffd\0b"


async def test_long_output_is_cut(backend: SandboxBackend) -> None:
    result = await backend.aexecute("head -c 600000 /dev/zero | tr '\\0' x")
    assert len(result.output) == 512 << 10
    assert result.truncated
    assert result.exit_code == 0


async def test_output_too_long_for_the_model_is_kept_in_a_file_and_previewed(backend: SandboxBackend) -> None:
    path = "/workspace/.agent/results/1"
    short = await backend.aexecute_with_offload("seq 10", path, max_inline_bytes=100)
    assert (short.offloaded, short.response.output) == (False, "".join(f"{n}\n" for n in range(1, 11)))
    assert (await backend.adownload_files([path]))[0].error == "file_not_found"

    long = await backend.aexecute_with_offload("seq 1000; exit 3", path, max_inline_bytes=100)
    shown = long.response
    assert (long.offloaded, long.preview_has_truncation_marker) == (True, True)
    assert (shown.exit_code, shown.truncated) == (3, False)
    assert shown.output.startswith("1\n2\n")
    assert shown.output.endswith("999\n1000")
    assert len(shown.output) < 200
    [whole] = await backend.adownload_files([path])
    assert whole.content == "".join(f"{n}\n" for n in range(1, 1001)).encode()

    capped = await backend.aexecute_with_offload("seq 1000", path, max_inline_bytes=100, max_capture_bytes=50)
    assert capped.response.truncated
    assert len((await backend.adownload_files([path]))[0].content or b"") == 50


async def test_output_that_cannot_be_kept_in_a_file_comes_whole(backend: SandboxBackend) -> None:
    result = await backend.aexecute_with_offload("seq 1000", "/proc/results", max_inline_bytes=100)
    assert (result.offloaded, result.response.output.count("\n")) == (False, 1000)


async def test_a_command_that_closes_its_output_is_still_waited_for(backend: SandboxBackend) -> None:
    result = await backend.aexecute("exec > /dev/null 2>&1; sleep 0.5; exit 7")
    assert result.exit_code == 7


async def test_files_are_written_read_edited_found_and_deleted(backend: SandboxBackend) -> None:
    assert (await backend.awrite("/workspace/src/a.py", "print('one')\nprint('two')\n")).error is None
    read = await backend.aread("/workspace/src/a.py", offset=1, limit=1)
    assert read.file_data
    assert read.file_data["content"] == "print('two')"
    assert (await backend.aedit("/workspace/src/a.py", "one", "1")).occurrences == 1
    assert (await backend.aedit("/workspace/src/a.py", "print", "p")).error
    assert (await backend.als("/workspace/src")).entries == [{"path": "/workspace/src/a.py", "is_dir": False}]
    found = await backend.aglob("**/*.py", "/workspace")
    assert [match["path"] for match in found.matches or []] == ["/workspace/src/a.py"]
    hits = await backend.agrep("'1'", "/workspace", "*.py")
    assert hits.matches == [{"path": "/workspace/src/a.py", "line": 1, "text": "print('1')"}]
    assert (await backend.adelete("/workspace/src")).path == "/workspace/src"
    assert (await backend.adelete("/workspace/src")).error
    assert (await backend.aread("/workspace/src/a.py")).error


async def test_the_synchronous_methods_do_the_same_from_a_worker_thread(backend: SandboxBackend) -> None:
    def work() -> None:
        assert backend.execute("echo hi").output == "hi\n"
        assert backend.write("/workspace/sync.txt", "old\n").error is None
        assert backend.edit("/workspace/sync.txt", "old", "new").occurrences == 1
        assert backend.read("/workspace/sync.txt").file_data
        assert backend.upload_files([("/workspace/sync.bin", b"\xff")])[0].error is None
        assert backend.download_files(["/workspace/sync.bin"])[0].content == b"\xff"
        assert len(backend.ls("/workspace").entries or []) >= 2
        assert backend.glob("sync.*", "/workspace").matches
        assert backend.grep("new", "/workspace").matches
        assert backend.delete("/workspace/sync.txt").error is None

    await asyncio.to_thread(work)


async def test_the_synchronous_methods_work_where_no_loop_runs(house: Sandboxes, alice: SessionId) -> None:
    await house.containers.close()

    def work() -> str:
        with in_run(alice):
            return house.backend.execute("echo hi").output

    assert await asyncio.to_thread(work) == "hi\n"


async def test_megabytes_pass_unchanged(backend: SandboxBackend) -> None:
    text = "".join(f"{number}: žluťoučký kůň\n" for number in range(200_000))
    assert (await backend.awrite("/workspace/big.txt", text)).error is None
    [answer] = await backend.adownload_files(["/workspace/big.txt"])
    assert answer.content == text.encode()


async def test_a_page_of_escaped_characters_is_read_whole(backend: SandboxBackend) -> None:
    """As JSON this is six times as long as a command's output may be."""
    await backend.aexecute(r"printf '\001%.0s' $(seq 450000) > control.txt")
    read = await backend.aread("/workspace/control.txt")
    assert read.file_data
    assert len(read.file_data["content"]) == 450_000


async def test_transfers_tell_each_files_error_and_do_the_rest(backend: SandboxBackend) -> None:
    await backend.aexecute("mkdir -p d && mkfifo pipe && touch plain && ln -sf / root")
    uploads = {
        "/workspace/new/deep/ok": None,
        "/workspace/d": "is_directory",
        "/etc/x": "permission_denied",
        "/workspace/pipe": "invalid_path",
        "/workspace/plain/x": "invalid_path",
        "/workspace/nul\0": "invalid_path",
        "/workspace/\ud800": "invalid_path",
        "/workspace/" + "n" * 300: "invalid_path",
    }
    answers = await backend.aupload_files([(path, b"content") for path in uploads])
    assert {answer.path: answer.error for answer in answers} == uploads
    downloads = {
        "/workspace/new/deep/ok": None,
        "/workspace/absent": "file_not_found",
        "/workspace/d": "is_directory",
        "/workspace/pipe": "invalid_path",
        "/dev/zero": "invalid_path",
        "/workspace/root/etc/shadow": "permission_denied",
    }
    got = await backend.adownload_files(list(downloads))
    assert {answer.path: answer.error for answer in got} == downloads
    assert got[0].content == b"content"


async def test_a_file_too_large_to_hold_is_not_downloaded(backend: SandboxBackend) -> None:
    await backend.aexecute("truncate -s 1G huge")
    [huge, small] = await backend.adownload_files(["/workspace/huge", "/etc/hostname"])
    assert huge.content is None
    assert "too large" in str(huge.error)
    assert small.content == b"sandbox\n"


async def test_text_that_is_not_unicode_is_an_error_and_no_crash(backend: SandboxBackend) -> None:
    assert (await backend.awrite("/workspace/x", "\ud800")).error
    assert (await backend.aread("/workspace/\ud800")).error
    assert not (await backend.agrep("\ud800", "/workspace")).matches
    assert (await backend.aedit("/workspace/x", "\ud800", "y")).error


class State(TypedDict):
    output: str


async def test_runs_at_once_of_one_real_graph_each_have_their_own_sandbox(
    house: Sandboxes, alice: SessionId
) -> None:
    async def node(state: State) -> State:
        return {"output": (await house.backend.aexecute("cat /workspace/mine")).output}

    graph = StateGraph(State).add_node("node", node).set_entry_point("node").compile()
    sessions = [alice, house.thread("bob")]
    for session in sessions:
        await house.run(session, f"echo {session.owner} > mine")
    configs = [
        RunnableConfig(configurable={"langgraph_auth_user_id": it.owner, "thread_id": str(it.thread_id)})
        for it in sessions
    ]
    states = await asyncio.gather(*(graph.ainvoke({"output": ""}, config) for config in configs))
    assert [state["output"] for state in states] == ["alice\n", "bob\n"]


async def test_many_first_calls_at_once_share_one_container(house: Sandboxes) -> None:
    session = house.thread("alice")
    outputs = await asyncio.gather(
        *(house.run(session, "echo $HOSTNAME; readlink /proc/self/ns/pid") for _ in range(6))
    )
    assert len(set(outputs)) == 1


async def test_two_servers_that_create_at_once_end_up_with_one_container(house: Sandboxes) -> None:
    session = house.thread("alice")
    other = Sandboxes(house.workspaces.root)
    other.instance, other.live, other.uids = house.instance, house.live, house.uids
    try:
        mine, theirs = await asyncio.gather(
            house.containers.ensure(session), other.containers.ensure(session)
        )
        assert mine.id == theirs.id
    finally:
        await other.containers.close()


@pytest.mark.parametrize("fate", ["removed", "stopped", "paused"])
async def test_a_container_lost_behind_our_back_is_replaced_and_the_files_are_there(
    house: Sandboxes, alice: SessionId, fate: str
) -> None:
    await house.run(alice, "echo kept > file")
    container = await house.containers.ensure(alice)
    match fate:
        case "removed":
            await container.delete(force=True)
        case "stopped":
            await container.kill()
        case "paused":
            await container.pause()
    assert await house.run(alice, "cat file") == "kept\n"


async def test_a_container_that_ends_in_mid_command_is_an_error_and_the_next_call_works(
    house: Sandboxes, alice: SessionId
) -> None:
    container = await house.containers.ensure(alice)
    with in_run(alice):
        task = asyncio.create_task(house.backend.aexecute("touch began; sleep 333"))
        while not (house.workspaces.path(alice) / "began").exists():
            await asyncio.sleep(0.01)
        await container.delete(force=True)
        result = await task
    assert result.exit_code != 0
    assert await house.run(alice, "echo alive") == "alive\n"


async def test_removal_is_safe_to_repeat_and_without_anything_to_remove(house: Sandboxes) -> None:
    session = house.thread("alice")
    await house.containers.remove(session)
    await house.run(session, "true")
    await house.containers.remove(session)
    await house.containers.remove(session)
    assert not house.workspaces.path(session).exists()


async def test_reconcile_removes_the_containers_of_dead_threads_and_no_others(
    house: Sandboxes, tmp_path: Path
) -> None:
    dead, live = house.thread("alice"), house.thread("alice")
    await house.run(dead, "true")
    await house.run(live, "sleep 1000 > /dev/null 2>&1 &")
    house.live.discard(dead)
    async with sandboxes(tmp_path) as neighbour:
        theirs = neighbour.thread("alice")
        await neighbour.run(theirs, "sleep 1000 > /dev/null 2>&1 &")
        assert await house.containers.reconcile() == 1
        assert await neighbour.run(theirs, "pgrep -c sleep") == "1\n"
    assert await house.run(live, "pgrep -c sleep") == "1\n"


async def test_an_unreachable_engine_is_named_in_every_kind_of_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"unix://{tmp_path}/nobody-listens.sock"
    monkeypatch.setenv("DOCKER_HOST", address)
    house = Sandboxes(tmp_path)
    backend = house.backend
    try:
        with in_run(house.thread("alice")):
            result = await backend.aexecute("echo ran")
            errors = [
                result.output,
                (await backend.als("/workspace")).error,
                (await backend.aread("/workspace/x")).error,
                (await backend.awrite("/workspace/x", "")).error,
                (await backend.aedit("/workspace/x", "a", "b")).error,
                (await backend.adelete("/workspace/x")).error,
                (await backend.aglob("*", "/workspace")).error,
                (await backend.agrep("x", "/workspace")).error,
                (await backend.aupload_files([("/workspace/x", b"")]))[0].error,
                (await backend.adownload_files(["/workspace/x"]))[0].error,
            ]
    finally:
        await house.containers.close()
    assert result.exit_code == 1
    assert [f"Docker is not reachable at {address}" in str(error) for error in errors] == [True] * 10


async def test_a_failing_registry_is_an_error_result_and_says_nothing_of_the_inside(tmp_path: Path) -> None:
    class Broken(Sandboxes):
        async def _is_live(self, _: SessionId) -> bool:
            raise ConnectionError("postgresql://warren:password@db")

    house = Broken(tmp_path)
    try:
        with in_run(SessionId("alice", uuid4())):
            result = await house.backend.aexecute("echo ran")
    finally:
        await house.containers.close()
    assert result.exit_code == 1
    assert "password" not in result.output


async def test_a_file_operation_that_is_cancelled_while_it_waits_for_its_turn_is_not_done(
    house: Sandboxes, alice: SessionId, backend: SandboxBackend
) -> None:
    await backend.aexecute("yes 'a line of text' | head -c 300M > large")
    with in_run(alice):
        busy = [asyncio.create_task(backend.agrep("no such text", "/workspace")) for _ in range(8)]
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(backend.awrite("/workspace/unwanted", "text"))
        await asyncio.sleep(0.1)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(*busy)
    assert (await backend.aexecute("rm large; ls unwanted")).exit_code == 2
