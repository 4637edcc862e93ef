"""What a sandbox may use of the machine, as the kernel enforces it."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from sandbox.commands import run_command
from sandbox.toolbox.frames import REQUEST, RESULT, pack_json, parse_json
from storage.ids import SessionId
from tests.integration.fake_toolbox import Fake, channel_to
from tests.integration.sandboxes import Sandboxes, in_run, sandboxes

MIB = 1 << 20


@pytest.fixture(scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sandboxes]:
    limits = {
        "sandbox_memory_mb": 128,
        "sandbox_cpus": 0.5,
        "sandbox_pids": 32,
        "sandbox_tmp_mb": 16,
    }
    async with sandboxes(tmp_path_factory.mktemp("workspaces"), **limits) as house:
        yield house


@pytest.fixture(scope="module")
async def mallory(house: Sandboxes) -> SessionId:
    return house.thread("mallory")


BUSY = """\
import os, time
began, clocks = time.monotonic(), []
for _ in range(3):
    reader, writer = os.pipe()
    if not os.fork():
        while time.monotonic() - began < 2:
            pass
        os.write(writer, repr(time.process_time()).encode())
        os._exit(0)
    clocks.append(reader)
used = sum(float(os.read(reader, 100)) for reader in clocks)
print(used / (time.monotonic() - began))
"""


async def test_no_more_processors_are_kept_busy_than_allowed(house: Sandboxes, mallory: SessionId) -> None:
    with in_run(mallory):
        await house.backend.awrite("/workspace/busy.py", BUSY)
    assert float(await house.run(mallory, "python3 busy.py")) < 0.75


async def test_no_more_processes_exist_than_allowed(house: Sandboxes, mallory: SessionId) -> None:
    program = (
        "import os, time\ncount = 0\n"
        "try:\n    while os.fork():\n        count += 1\n    time.sleep(60)\n"
        "except OSError:\n    print(count)\n"
        "    import signal; signal.signal(15, signal.SIG_IGN); os.killpg(0, 15)\n"
    )
    with in_run(mallory):
        await house.backend.awrite("/workspace/forks.py", program)
    assert 10 <= int(await house.run(mallory, "trap '' TERM; setsid -w python3 forks.py")) < 32


async def test_no_more_files_are_open_than_allowed(house: Sandboxes, mallory: SessionId) -> None:
    program = "import os\ntry:\n    while True: last = os.dup(0)\nexcept OSError:\n    print(last)"
    assert await house.run(mallory, f"python3 -c '{program}'") == "4095\n"


@pytest.mark.parametrize(("path", "most"), [("/tmp/file", 16), ("/dev/shm/file", 16)])
async def test_no_more_is_in_memory_file_systems_than_allowed(
    house: Sandboxes, mallory: SessionId, path: str, most: int
) -> None:
    output = await house.run(mallory, f"head -c 100M /dev/zero > {path}; stat -c %s {path}; rm {path}")
    assert int(output.splitlines()[-1]) <= most * MIB


async def test_no_more_memory_is_used_than_allowed_and_none_of_it_is_swap(
    house: Sandboxes, mallory: SessionId
) -> None:
    with in_run(mallory):
        result = await house.backend.aexecute("python3 -c 'x = bytearray(200 << 20); print(len(x))'")
        assert (result.output, result.exit_code) == ("", 137)
        assert (await house.backend.aexecute("python3 -c 'x = bytearray(64 << 20)'")).exit_code == 0


@pytest.mark.parametrize(
    ("asked", "given"), [(None, 120), (1, 1), (3600, 3600), (10**9, 3600), (0, 3600), (-1, 3600)]
)
async def test_a_command_may_run_for_so_long(asked: int | None, given: int) -> None:
    heard = asyncio.get_running_loop().create_future()

    async def play(fake: Fake) -> None:
        kind, number, payload = await fake.hear()
        heard.set_result((kind, parse_json(payload)["args"]))
        await fake.say(
            pack_json(RESULT, number, {"ended": "exited", "status": 0, "written": 0, "survived": False})
        )

    async with channel_to(play) as channel:
        await run_command(channel, "true", asked, largest_file=MIB)
    kind, args = await heard
    assert kind == REQUEST
    assert args["seconds"] == given
    assert (args["keep"], args["flood"]) == (512 << 10, 64 << 20)
