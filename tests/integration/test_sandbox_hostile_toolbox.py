"""The attack: code in a sandbox goes for the toolbox, the relay or a supervisor, all of its own user."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sandbox.backend import SandboxBackend
from storage.ids import SessionId
from tests.integration.sandboxes import Sandboxes, in_run, sandboxes

SOCKET = "import socket; s = socket.socket(socket.AF_UNIX); "


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


async def container_start(house: Sandboxes, session: SessionId) -> str:
    state = (await (await house.containers.ensure(session)).show())["State"]
    assert state["Running"]
    return str(state["StartedAt"])


async def python(backend: SandboxBackend, program: str) -> str:
    await backend.awrite("/workspace/attack.py", program)
    return (await backend.aexecute("python3 attack.py 2>&1", timeout=20)).output


@pytest.mark.parametrize("signal", ["KILL", "STOP", "TERM", "INT", "HUP", "CHLD", "USR1", "SEGV", "PIPE"])
async def test_a_signal_to_the_toolbox(
    house: Sandboxes, mallory: SessionId, backend: SandboxBackend, signal: str
) -> None:
    before = await container_start(house, mallory)
    await backend.aexecute(f"kill -{signal} 1")
    assert (await backend.aexecute("echo alive")).output == "alive\n"
    assert await container_start(house, mallory) == before


async def test_killing_all_that_can_be_killed(
    house: Sandboxes, mallory: SessionId, backend: SandboxBackend
) -> None:
    before = await container_start(house, mallory)
    for _ in range(3):
        result = await backend.aexecute("kill -9 -1; echo not reached by any signal")
        assert result.exit_code != 0 or "not reached" in result.output
        assert (await backend.aexecute("echo alive")).output == "alive\n"
    assert await container_start(house, mallory) == before


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param("ctypes.CDLL(None, use_errno=True).ptrace(16, 1, 0, 0) == 0", id="ptrace"),
        pytest.param("open('/proc/1/mem', 'rb')", id="its memory"),
        pytest.param("os.listdir('/proc/1/fd')", id="its descriptors"),
        pytest.param("open('/proc/1/environ', 'rb').read()", id="its environment"),
        pytest.param("os.listdir('/proc/1/cwd/.')", id="its directory"),
        pytest.param(
            "ctypes.CDLL(None).syscall(438, ctypes.CDLL(None).syscall(434, 1, 0), 0, 0) >= 0",
            id="a copy of a descriptor by pidfd_getfd",
        ),
        pytest.param(
            "ctypes.CDLL(None).process_vm_readv(1, ctypes.byref((ctypes.c_void_p * 2)(id(1), 8)), 1, "
            "ctypes.byref((ctypes.c_void_p * 2)(4194304, 8)), 1, 0) >= 0",
            id="process_vm_readv",
        ),
    ],
)
async def test_getting_into_the_toolbox(backend: SandboxBackend, attack: str) -> None:
    output = await python(
        backend,
        "import ctypes, os\n"
        f"try:\n    got = {attack}\nexcept OSError as error:\n    got = False\n"
        "print('IN' if got else 'OUT')\n",
    )
    assert output == "OUT\n"


async def test_the_program_is_not_in_the_list_of_processes(backend: SandboxBackend) -> None:
    assert "import" not in (await backend.aexecute("ps -ww -e -o args= | grep -v grep")).output
    for command in ("pkill python; echo alive", "pkill -f '[p]ython'; echo alive"):
        assert (await backend.aexecute(command)).output == "alive\n"


async def test_taking_the_toolboxs_address(backend: SandboxBackend) -> None:
    output = await python(backend, SOCKET + "s.bind('\\0warren-toolbox')")
    assert "Address already in use" in output


async def test_connecting_to_the_toolbox_as_the_server(backend: SandboxBackend) -> None:
    """It hangs up on who was not put into the sandbox from outside, whatever descriptors he brings."""
    output = await python(
        backend,
        SOCKET + "import array, os; r, w = os.pipe(); s.connect('\\0warren-toolbox')\n"
        "try:\n"
        "    s.sendmsg([b'!'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [r, w]))])\n"
        "    print(len(s.recv(1)))\n"
        "except OSError:\n    print(0)\n",
    )
    assert output == "0\n"


async def test_occupying_the_toolbox_with_connections(
    house: Sandboxes, mallory: SessionId, backend: SandboxBackend
) -> None:
    await backend.aexecute(
        "python3 - > /dev/null 2>&1 <<'END' &\n"
        "import socket, time\n"
        "held = []\n"
        "while True:\n"
        "    s = socket.socket(socket.AF_UNIX); s.connect('\\0warren-toolbox'); held = held[-500:] + [s]\n"
        "END\n"
    )
    await house.containers.close()  # so that the next call has to come in anew
    assert (await backend.aexecute("echo alive")).output == "alive\n"
    await backend.aexecute("pkill python3")


async def test_garbage_from_the_server_side_ends_that_connection_only(
    house: Sandboxes, mallory: SessionId, backend: SandboxBackend
) -> None:
    channel = await house.containers.channel(mallory)
    other = Sandboxes(house.workspaces.root, sandbox_pids=64)
    other.instance, other.live, other.uids = house.instance, house.live, house.uids
    try:
        theirs = await other.containers.channel(mallory)
        await theirs._stream.send(b"\xff" * 100)
        while not theirs.is_closed:
            await asyncio.sleep(0.01)
        assert not channel.is_closed
        assert (await backend.aexecute("echo alive")).output == "alive\n"
    finally:
        await other.containers.close()


@pytest.mark.parametrize("signal", ["KILL", "STOP"])
async def test_a_signal_to_the_relay_which_is_another_users(
    house: Sandboxes, mallory: SessionId, backend: SandboxBackend, signal: str
) -> None:
    before = await container_start(house, mallory)
    await house.containers.close()  # the first connection needs none
    result = await backend.aexecute(f"pgrep -c -x cat; pkill -{signal} -x cat; echo alive")
    assert result.output.startswith("1\n")
    assert result.output.endswith("alive\n")
    assert await container_start(house, mallory) == before


async def test_nothing_of_the_relay_leads_to_the_server(house: Sandboxes, backend: SandboxBackend) -> None:
    await house.containers.close()
    result = await backend.aexecute("pgrep -c -x cat; readlink /proc/$(pgrep -x cat)/fd/*")
    assert result.output == "1\n"


@pytest.mark.parametrize("before_that", ["", "setsid sleep 333 & setsid setsid sleep 333 & "])
async def test_killing_ones_supervisor_is_no_way_out(backend: SandboxBackend, before_that: str) -> None:
    result = await backend.aexecute(f"{before_that}kill -9 $PPID; setsid sleep 333")
    assert result.exit_code == 137
    assert (await backend.aexecute("pgrep -c -x sleep")).output == "0\n"


async def test_stopping_ones_supervisor_is_no_way_out(backend: SandboxBackend) -> None:
    result = await backend.aexecute("setsid sleep 333 & kill -STOP $PPID; sleep 333", timeout=1)
    assert result.exit_code == 124
    assert (await backend.aexecute("pgrep -c -x sleep")).output == "0\n"


async def test_a_supervisor_that_waits_for_its_command_can_be_killed_or_stopped(
    backend: SandboxBackend,
) -> None:
    await backend.aexecute("pkill -9 warren-toolbox")
    # One that was still dying may have been given the first of these.
    outputs = [(await backend.aexecute("echo alive")).output for _ in range(2)]
    assert outputs[-1] == "alive\n"
    await backend.aexecute("pkill -STOP warren-toolbox", timeout=2)
    outputs = [(await backend.aexecute("echo alive", timeout=2)).output for _ in range(2)]
    assert outputs[-1] == "alive\n"


async def test_a_forged_verdict(backend: SandboxBackend) -> None:
    """A supervisor's descriptors are out of reach, so only the shell's real end counts."""
    result = await backend.aexecute("printf '\\0\\0\\0\\0' > /proc/$PPID/fd/3; exit 5")
    assert result.exit_code == 5


AGAINST_RELAYS = """\
import os, signal
while True:
    for name in os.listdir("/proc"):
        try:
            if not name.isdigit() or name == "1":
                continue
            parent = open(f"/proc/{name}/stat").read().rpartition(")")[2].split()[1]
            if parent != "0":
                continue
            open("/workspace/met", "a").write(name + " ")
            os.kill(int(name), signal.SIGSTOP)
            open("/workspace/stopped", "a").write(name + " ")
            os.open(f"/proc/{name}/fd/1", os.O_WRONLY)
            open("/workspace/taken", "a").write(name + " ")
        except OSError:
            pass
"""


async def test_a_relay_cannot_be_stopped_or_replaced_even_while_the_engine_is_starting_it(
    house: Sandboxes, mallory: SessionId, backend: SandboxBackend
) -> None:
    """A stopped `runc init` has the engine wait for ever, whatever is then asked about this container."""
    before = await container_start(house, mallory)
    await backend.awrite("/workspace/attack.py", AGAINST_RELAYS)
    await backend.aexecute("for i in 1 2; do setsid python3 attack.py > /dev/null 2>&1 & done")
    for _ in range(5):
        await house.containers.close()  # as when the server starts again
        async with asyncio.timeout(20):
            assert (await backend.aexecute("echo alive")).output == "alive\n"
    assert (await backend.aexecute("ls met stopped taken 2> /dev/null; pkill -f attack.py")).output == "met\n"
    assert await container_start(house, mallory) == before
