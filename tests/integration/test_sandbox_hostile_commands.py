"""The attack: a command that will not end, or takes or writes more than it may."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest

from sandbox.backend import SandboxBackend
from storage.ids import SessionId
from tests.integration.sandboxes import Sandboxes, in_run, sandboxes

MIB = 1 << 20


@pytest.fixture(scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sandboxes]:
    async with sandboxes(tmp_path_factory.mktemp("workspaces"), sandbox_pids=64) as house:
        yield house


@pytest.fixture(scope="module")
async def mallory(house: Sandboxes) -> SessionId:
    return house.thread("mallory")


@pytest.fixture
def backend(house: Sandboxes, mallory: SessionId) -> Any:
    """Give the backend, within a run of mallory's."""
    with in_run(mallory):
        yield house.backend


async def count(backend: SandboxBackend, program: str) -> int:
    return int((await backend.aexecute(f"pgrep -c -x {program}")).output)


async def cancelled(house: Sandboxes, session: SessionId, command: str) -> float:
    """Run a command, cancel it when it has made `began`, and return how long the cancellation took."""
    began = house.workspaces.path(session) / "began"
    began.unlink(missing_ok=True)
    with in_run(session):
        task = asyncio.create_task(house.backend.aexecute(command))
    while not began.exists():
        await asyncio.sleep(0.01)
    start = time.perf_counter()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return time.perf_counter() - start


DAEMONS = (
    "setsid sleep 333 & (setsid setsid env -i sleep 333 &) ; "
    "python3 -c 'import os\nos.fork() and os._exit(0)\nos.setsid()\nos.fork() and os._exit(0)\n"
    'os.execlp("sleep", "sleep", "333")\' & '
    "sh -c 'trap \"\" TERM HUP INT QUIT; sleep 333; sleep 333' & "
)


SWARM = "#include <unistd.h>\nint main() { for (;;) { if (fork()) _exit(0); setsid(); } }\n"

NEW_PIDS = """
pid() { read -r _ _ _ _ newest < /proc/loadavg; }
pid; old=$newest; sleep 0.2; pid; echo $((newest - old))
"""
"""Prints how many processes and threads have begun in a fifth of a second."""


@pytest.mark.parametrize("end", ["sleep 333", "wait", "while :; do :; done", "kill -STOP $$"])
async def test_daemons_of_every_kind_after_a_timeout(backend: SandboxBackend, end: str) -> None:
    result = await backend.aexecute(f"echo before; {DAEMONS} {end}", timeout=1)
    assert (result.exit_code, result.output[:7]) == (124, "before\n")
    assert await count(backend, "sleep") == 0


async def test_daemons_of_every_kind_after_a_cancellation(
    house: Sandboxes, mallory: SessionId, backend: SandboxBackend
) -> None:
    await cancelled(house, mallory, f"{DAEMONS} touch began; sleep 333")
    assert await count(backend, "sleep") == 0


async def test_a_fork_bomb_is_cancelled_and_the_others_go_on(
    house: Sandboxes, mallory: SessionId, backend: SandboxBackend
) -> None:
    with in_run(mallory):
        innocent = asyncio.create_task(house.backend.aexecute("sleep 2; echo done"))
    await cancelled(house, mallory, "touch began; bomb() { bomb | bomb & }; bomb; sleep 333")
    assert (await innocent).output.endswith("done\n")
    assert await count(backend, "sleep") == 0


@pytest.mark.parametrize("size", [1, 6, 40])
async def test_a_swarm_that_respawns_faster_than_it_can_be_looked_for(
    backend: SandboxBackend, size: int
) -> None:
    await backend.awrite("/workspace/swarm.c", SWARM)
    await backend.aexecute("cc -O2 -o swarm swarm.c")
    result = await backend.aexecute(f"for i in $(seq {size}); do ./swarm & done; sleep 333", timeout=1)
    assert result.exit_code == 124
    # No list of processes shows it for sure, but the pids that it uses up are counted: thousands.
    assert int((await backend.aexecute(NEW_PIDS)).output) < 20


async def test_a_process_that_looks_gone_since_its_first_thread_is(backend: SandboxBackend) -> None:
    headless = """
        #include <pthread.h>
        #include <stdlib.h>
        #include <unistd.h>
        void *go(void *_) { for (;;) system("echo >> ticks"); }
        int main() { pthread_t t; pthread_create(&t, 0, go, 0); pthread_exit(0); }
    """
    await backend.awrite("/workspace/headless.c", headless)
    await backend.aexecute("cc -o headless headless.c -pthread && : > ticks")
    assert (await backend.aexecute("./headless & sleep 333", timeout=1)).exit_code == 124
    grown = await backend.aexecute("before=$(wc -l < ticks); sleep 0.5; echo $before $(wc -l < ticks)")
    before, after = map(int, grown.output.split())
    assert 0 < before == after


async def test_the_end_of_a_command_without_its_supervisor_is_not_that_of_others(
    house: Sandboxes, mallory: SessionId, backend: SandboxBackend
) -> None:
    await backend.awrite("/workspace/swarm.c", SWARM)
    await backend.aexecute("cc -O2 -o swarm swarm.c")
    for _ in range(5):
        with in_run(mallory):
            alone = asyncio.create_task(
                house.backend.aexecute("for i in $(seq 20); do ./swarm & done; kill -9 $PPID; sleep 333")
            )
        while not alone.done():
            assert (await backend.aexecute("echo fine")).output == "fine\n"
        assert alone.result().exit_code != 0
    assert int((await backend.aexecute(NEW_PIDS)).output) < 20


async def test_a_command_is_given_whole_to_its_shell_though_pipes_have_become_small(
    backend: SandboxBackend,
) -> None:
    """The attack: so many pipes that Linux gives the user small ones from then on."""
    hoard = "import os, time\n[os.pipe() for _ in range(1100)]\nopen('hoarded', 'w')\ntime.sleep(333)"
    await backend.aexecute(f'python3 -c "{hoard}" & while [ ! -e hoarded ]; do sleep 0.01; done')
    for _ in range(3):
        result = await backend.aexecute(": " + "x" * 20_000 + "\necho done", timeout=20)
        assert (result.exit_code, result.output) == (0, "done\n")
    await backend.aexecute("pkill python3")


async def test_ending_a_swarm_leaves_other_commands_as_they_were(backend: SandboxBackend) -> None:
    await backend.aexecute(
        "(while :; do echo >> ticks; sleep 0.01; done) & sleep 444 & echo $! > awake; "
        "sleep 444 & echo $! > resting; kill -STOP $!"
    )
    bomb = "bomb() { bomb | bomb & }; bomb; sleep 333"
    assert (await backend.aexecute(bomb, timeout=1)).exit_code == 124
    states = "for of in awake resting; do cut -d ' ' -f 3 /proc/$(cat $of)/stat; done"
    assert (await backend.aexecute(states)).output == "S\nT\n"
    grown = await backend.aexecute("before=$(wc -l < ticks); sleep 0.5; test $(wc -l < ticks) -gt $before")
    assert grown.exit_code == 0
    await backend.aexecute("pkill sh; pkill -CONT sleep; pkill sleep")


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param("yes", id="without end"),
        pytest.param("head -c 400M /dev/zero", id="400 MB"),
        pytest.param("trap '' PIPE TERM; while :; do echo; done & yes & yes >&2", id="from many"),
    ],
)
async def test_a_flood_of_output_takes_no_memory_of_the_server(backend: SandboxBackend, flood: str) -> None:
    await backend.aexecute("true")
    process = psutil.Process()
    before = peak = process.memory_info().rss
    task = asyncio.create_task(backend.aexecute(flood))
    while not task.done():
        await asyncio.sleep(0.005)
        peak = max(peak, process.memory_info().rss)
    result = await task
    assert (result.exit_code, result.truncated) == (137, True)
    assert len(result.output) < (512 << 10) + 200
    assert peak - before < 16 * MIB
    assert await count(backend, "yes") == 0


async def test_many_floods_at_once_do_not_hold_up_a_small_call(
    house: Sandboxes, mallory: SessionId, backend: SandboxBackend
) -> None:
    floods = [asyncio.create_task(backend.aexecute("yes", timeout=20)) for _ in range(4)]
    for _ in range(20):
        began = time.perf_counter()
        assert (await backend.als("/workspace")).error is None
        assert time.perf_counter() - began < 5
    for result in await asyncio.gather(*floods):
        assert result.exit_code == 137


@pytest.mark.parametrize(
    "program", ["cat", "read line", "python3 -c 'input()'", "sh -i", "head -c1 /dev/tty"]
)
async def test_waiting_for_input_gets_none(backend: SandboxBackend, program: str) -> None:
    result = await backend.aexecute(f"{program}; echo went on", timeout=10)
    assert result.output.endswith("went on\n")


async def test_a_background_server_stays_and_is_not_waited_for(backend: SandboxBackend) -> None:
    server = "while :; do echo noise; echo >> ticks; sleep 0.01; done"
    result = await backend.aexecute(f"({server}) & echo started", timeout=20)
    assert (result.exit_code, "started\n" in result.output) == (0, True)
    grown = await backend.aexecute("before=$(wc -l < ticks); sleep 0.5; test $(wc -l < ticks) -gt $before")
    assert grown.exit_code == 0
    await backend.aexecute("pkill sh; pkill sleep")


async def test_a_background_flood_stays_and_holds_nothing_up(backend: SandboxBackend) -> None:
    await backend.aexecute("yes & true")
    assert await count(backend, "yes") == 1
    for _ in range(10):
        began = time.perf_counter()
        assert (await backend.als("/workspace")).error is None
        assert time.perf_counter() - began < 5
    await backend.aexecute("pkill yes")


async def test_zombies_do_not_pile_up(backend: SandboxBackend) -> None:
    await backend.aexecute("for i in $(seq 30); do (setsid true &); done; sleep 0.2")
    assert (await backend.aexecute("ps -e -o stat= | grep -c Z")).output == "0\n"


@pytest.mark.parametrize("size", [(128 << 10) - 1, 128 << 10, 1000 << 10])
async def test_a_command_as_long_as_no_argument_may_be(backend: SandboxBackend, size: int) -> None:
    tail = '\necho "$0:$#"; exit 3\n'
    result = await backend.aexecute(": " + "x" * (size - 2 - len(tail)) + tail)
    assert (result.output, result.exit_code) == ("sh:0\n", 3)


@pytest.mark.parametrize("command", ["echo \0", "echo \ud800", "echo " + "x" * (1 << 20)])
async def test_a_command_that_no_shell_can_be_given(backend: SandboxBackend, command: str) -> None:
    assert (await backend.aexecute(command)).exit_code == 126


async def test_open_files_are_limited_for_commands_and_not_for_the_toolbox(backend: SandboxBackend) -> None:
    assert (await backend.aexecute("ulimit -Hn; ulimit -n 100000")).output.startswith("4096\n")


async def test_the_toolbox_dies_last_when_memory_runs_out(
    house: Sandboxes, mallory: SessionId, backend: SandboxBackend
) -> None:
    scores = await backend.aexecute("cat /proc/self/oom_score_adj /proc/1/oom_score_adj")
    assert scores.output.split() == ["900", "0"]


@pytest.mark.parametrize("fate", ["removed", "killed", "restarted"])
async def test_the_container_goes_in_mid_command(house: Sandboxes, fate: str) -> None:
    session = house.thread("mallory")
    container = await house.containers.ensure(session)
    with in_run(session):
        task = asyncio.create_task(house.backend.aexecute("touch began; sleep 333"))
        while not (house.workspaces.path(session) / "began").exists():
            await asyncio.sleep(0.01)
        match fate:
            case "removed":
                await container.delete(force=True)
            case "killed":
                await container.kill()
            case "restarted":
                await container.restart(t=0)
        result = await asyncio.wait_for(task, 10)
    assert result.exit_code == 1
    assert await house.run(session, "ls began") == "began\n"


async def test_a_container_that_is_paused_in_mid_command_is_made_to_go_on(house: Sandboxes) -> None:
    session = house.thread("mallory")
    container = await house.containers.ensure(session)
    with in_run(session):
        task = asyncio.create_task(house.backend.aexecute("touch began; sleep 0.2; echo done"))
        while not (house.workspaces.path(session) / "began").exists():
            await asyncio.sleep(0.005)
        await container.pause()
        assert (await asyncio.wait_for(task, 20)).output == "done\n"
