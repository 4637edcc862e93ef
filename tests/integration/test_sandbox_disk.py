"""The attack: to fill the disk. What fills a workspace is ended, and nothing more gets in without room."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from sandbox import disk_limits
from sandbox.backend import SandboxBackend
from sandbox.channel import Channel
from sandbox.disk import disk_usage
from sandbox.disk_limits import SLACK_BYTES, DiskLimits
from sandbox.errors import DiskFullError
from sandbox.settings import SandboxSettings
from sandbox.toolbox.frames import BEGUN, PING, PONG, REQUEST, RESULT, pack, pack_json, parse_json
from sandbox.workspace import Workspaces
from storage.ids import SessionId
from tests.integration.fake_toolbox import Fake, channel_to
from tests.integration.sandboxes import Sandboxes, in_run, sandboxes

MIB = 1 << 20
LIMIT_MIB = 48
FILL = "for i in $(seq 400); do head -c 2M /dev/urandom > f$i; sleep 0.02; done"
"""As fast as some 60 MiB/s, so that what is written until it is noticed stays small."""


@pytest.fixture(scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sandboxes]:
    root = tmp_path_factory.mktemp("workspaces")
    async with sandboxes(root, sandbox_disk_mb=LIMIT_MIB, user_disk_mb=2 * LIMIT_MIB) as house:
        yield house


@pytest.fixture
def mallory(house: Sandboxes) -> SessionId:
    """Give a new user's thread."""
    return house.thread(f"mallory-{uuid4().hex[:8]}")


@pytest.fixture
def backend(house: Sandboxes, mallory: SessionId) -> Any:
    """Give the backend, within a run of mallory's."""
    with in_run(mallory):
        yield house.backend


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.1)


async def is_refused(backend: SandboxBackend) -> bool:
    """Tell whether every way to write is refused, and see that they agree."""
    errors = [
        (await backend.awrite("/workspace/new", "x")).error,
        (await backend.aupload_files([("/workspace/new", b"x")]))[0].error,
        (await backend.aedit("/workspace/kept", "old", "old")).error,
    ]
    assert len({bool(error) for error in errors}) == 1, errors
    return bool(errors[0])


async def test_a_command_that_fills_the_workspace_is_ended_and_writing_refused_until_there_is_room(
    house: Sandboxes, mallory: SessionId, backend: SandboxBackend
) -> None:
    assert (await backend.awrite("/workspace/kept", "old")).error is None
    result = await backend.aexecute(f"echo before; {FILL}")
    assert result.exit_code == 137
    assert result.output.startswith("before\n")
    assert f"{LIMIT_MIB} MiB that it may" in result.output
    assert await is_refused(backend)

    assert (await backend.aread("/workspace/kept")).file_data
    assert len((await backend.aglob("f*", "/workspace")).matches or []) > 10
    assert (await backend.adownload_files(["/workspace/kept"]))[0].content == b"old"

    assert (await backend.aexecute("rm f*")).exit_code == 0
    assert not await is_refused(backend)


async def test_deleting_frees_a_full_workspace_too(backend: SandboxBackend) -> None:
    await backend.awrite("/workspace/kept", "old")
    await backend.aexecute(FILL.replace("f$i", "directory/f$i").replace("for", "mkdir directory; for", 1))
    assert await is_refused(backend)
    assert (await backend.adelete("/workspace/directory")).error is None
    assert not await is_refused(backend)


async def test_a_full_workspace_gets_no_fuller_command_by_command(
    house: Sandboxes, mallory: SessionId, backend: SandboxBackend
) -> None:
    await backend.aexecute(FILL)
    full = disk_usage(house.workspaces.path(mallory))
    endings = [await backend.aexecute(f"head -c 6M /dev/zero > more{n}") for n in range(8)]
    assert endings[0].exit_code == 0
    assert endings[-1].exit_code == 1
    assert "MiB that it may" in endings[-1].output
    assert disk_usage(house.workspaces.path(mallory)) < full + 2 * SLACK_BYTES
    for n in range(8):
        await backend.adelete(f"/workspace/more{n}")
    assert (await backend.aexecute("rm f*")).exit_code == 0
    assert (await backend.aexecute("head -c 20M /dev/zero > new")).exit_code == 0


async def test_one_file_gets_no_longer_than_the_workspace_may_be(
    house: Sandboxes, mallory: SessionId, backend: SandboxBackend
) -> None:
    result = await backend.aexecute("head -c 1G /dev/zero > big; echo $?; stat -c %s big")
    assert result.output.split()[-2:] == ["153", str(LIMIT_MIB * MIB)]  # 128 + SIGXFSZ


@pytest.mark.parametrize(
    "fill",
    [
        pytest.param(
            "exec 3> f; rm f; head -c 40M /dev/zero >&3; head -c 20M /dev/zero > g; sleep 60",
            id="with a file that has no name any more",
        ),
        pytest.param("seq 20000 | xargs touch; sleep 60", id="with empty files"),
        pytest.param(
            "seq 2000 | xargs mkdir; seq 15000 | sed s,^,1/, | xargs touch; sleep 60",
            id="in many directories",
        ),
        pytest.param(
            "head -c 30M /dev/zero > f; for i in 1 2 3; do cp f f$i; done; chmod 000 . ; sleep 60",
            id="behind a closed door",
        ),
        pytest.param(
            "python3 -c \"import mmap, time; f, g = open('f', 'wb+'), open('g', 'wb+');"
            "m = [x.truncate(40 << 20) and mmap.mmap(x.fileno(), 0) for x in (f, g)];"
            "[x.write(b'x' * (40 << 20)) for x in m]; time.sleep(60)\"",
            id="through memory",
        ),
    ],
)
async def test_filling_it_otherwise(backend: SandboxBackend, fill: str) -> None:
    result = await backend.aexecute(fill, timeout=30)
    assert result.exit_code == 137
    assert "MiB that it may" in result.output


async def test_what_takes_no_space_is_not_ended(backend: SandboxBackend) -> None:
    result = await backend.aexecute(
        "for i in $(seq 50); do truncate -s 40M hole$i; done; head -c 20M /dev/urandom > file;"
        "for i in $(seq 50); do ln file link$i; done; ln -s / root; sleep 3; echo done"
    )
    assert result.output == "done\n"
    assert (await backend.awrite("/workspace/new", "x")).error is None


RESERVE = """\
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
file = open("reserved", "wb")
def attempt(*call):
    libc.syscall(*(ctypes.c_long(n) if isinstance(n, int) else n for n in call))
    return os.strerror(ctypes.get_errno())
x86 = os.uname().machine == "x86_64"
descriptor = file.fileno()
print(attempt(285 if x86 else 47, descriptor, 0, 0, 30 << 20))
argument = (ctypes.c_longlong * 6)(0, 0, 30 << 20, 0, 0, 0)
for request in (0x40305828, 0x4030582A, 0x40305839, 0x401C5820, 0x40086602):
    print(attempt(16 if x86 else 29, descriptor, request, ctypes.byref(argument)))
print(attempt(285 + (1 << 30) if x86 else 47, descriptor, 0, 0, 30 << 20))
print(attempt(425, 8, (ctypes.c_char * 120)()))
print(attempt(469, -100, b"reserved", (ctypes.c_char * 24)(), 24, 0))
os.posix_fallocate(descriptor, 0, 1 << 20)
print(os.stat("reserved").st_blocks * 512 >> 20)
"""

RESERVE_AS_32_BIT = r"""
#include <fcntl.h>
#include <stdio.h>
int main() {
    long result = 324, descriptor = open("reserved32", O_CREAT | O_WRONLY, 0600);
    __asm__ volatile("int $0x80" : "+a"(result)
                     : "b"(descriptor), "c"(0), "d"(0), "S"(0), "D"(30 << 20)
                     : "memory", "r8", "r9", "r10", "r11");
    printf("%ld\n", result);
}
"""


async def test_space_cannot_be_reserved_faster_than_anybody_can_look(
    house: Sandboxes, mallory: SessionId, backend: SandboxBackend
) -> None:
    """`fallocate` takes terabytes within a second, one file after another. Only writing takes space here.

    Nor can a file be made another project's, whose quota it would use up (FS_IOC_FSSETXATTR, file_setattr).
    """
    await backend.awrite("/workspace/reserve.py", RESERVE)
    lines = (await backend.aexecute("python3 reserve.py")).output.splitlines()
    assert lines[:6] == ["Operation not supported"] * 6
    assert lines[6] in {"Operation not supported", "Function not implemented"}
    assert lines[7:] == ["Function not implemented", "Function not implemented", "1"]
    result = await backend.aexecute("for i in $(seq 100); do fallocate -l 40M f$i; done")
    assert result.exit_code != 0
    assert disk_usage(house.workspaces.path(mallory)) < 4 * MIB


async def test_nor_by_a_32_bit_program(house: Sandboxes, mallory: SessionId, backend: SandboxBackend) -> None:
    if (await backend.aexecute("uname -m")).output != "x86_64\n":
        pytest.skip("this processor has another 32-bit predecessor, and no compiler for it")
    await backend.awrite("/workspace/reserve.c", RESERVE_AS_32_BIT)
    assert (await backend.aexecute("gcc reserve.c && ./a.out")).output in {"-95\n", "-38\n"}
    assert disk_usage(house.workspaces.path(mallory)) < 4 * MIB


async def test_a_background_server_that_fills_the_workspace_is_ended(
    house: Sandboxes, mallory: SessionId, backend: SandboxBackend
) -> None:
    """It belongs to no command any more, so the whole sandbox is ended; even when only files are read."""
    container = await house.containers.ensure(mallory)
    await backend.aexecute(f"(until [ -e go ]; do sleep 0.1; done; {FILL}; sleep 333) > /dev/null 2>&1 &")
    await house.containers.close()  # it is another server that goes on
    assert (await backend.als("/workspace")).error is None
    (house.workspaces.path(mallory) / "go").touch()

    async def is_gone() -> bool:
        return bool((await (await house.containers.ensure(mallory)).show())["Id"] != container.id)

    await until(is_gone)
    assert (await backend.aexecute("pgrep -c -x sleep")).output == "0\n"


async def test_there_need_not_be_a_limit(tmp_path: Path) -> None:
    async with sandboxes(tmp_path, sandbox_disk_mb=0, user_disk_mb=0) as house:
        session = house.thread("alice")
        assert await house.run(session, "head -c 100M /dev/zero > f; truncate -s 3G g; sleep 1.5; wc -c < f")
        with in_run(session):
            assert (await house.backend.awrite("/workspace/new", "x")).error is None


async def test_all_workspaces_of_a_user_count_together_and_no_one_elses(house: Sandboxes) -> None:
    owner = f"mallory-{uuid4().hex[:8]}"
    first, second, third = (house.thread(owner) for _ in range(3))
    for session in (first, second):
        await house.run(session, "head -c 40M /dev/zero > f")
    with in_run(third):
        result = await house.backend.aexecute("head -c 30M /dev/zero > f; sleep 60")
        assert result.exit_code == 137
        assert f"{2 * LIMIT_MIB} MiB that they may together" in result.output
        assert (await house.backend.awrite("/workspace/new", "x")).error
    with in_run(house.thread("alice")):
        assert (await house.backend.awrite("/workspace/new", "x" * MIB)).error is None

    with in_run(first):
        await house.backend.adelete("/workspace/f")

    async def has_room() -> bool:
        with in_run(third):
            return (await house.backend.awrite("/workspace/new", "x")).error is None

    await until(has_room)


async def test_a_server_that_starts_learns_what_its_users_have(house: Sandboxes) -> None:
    owner = f"mallory-{uuid4().hex[:8]}"
    for session in (house.thread(owner), house.thread(owner)):
        await house.run(session, "head -c 46M /dev/zero > f")
    new = Sandboxes(house.workspaces.root, sandbox_disk_mb=LIMIT_MIB, user_disk_mb=2 * LIMIT_MIB)
    new.instance, new.live, new.uids = house.instance, house.live, house.uids
    third = house.thread(owner)
    try:
        with in_run(third):

            async def is_refused_now() -> bool:
                return (await new.backend.awrite("/workspace/new", "x" * 8 * MIB)).error is not None

            await until(is_refused_now)
    finally:
        await new.containers.close()


async def test_a_disk_that_is_nearly_full_is_left_to_the_database(
    house: Sandboxes, mallory: SessionId, backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever hides from being measured: before the disk is full, all that may write is ended."""
    alice = house.thread("alice")
    await house.run(alice, "sleep 333 > /dev/null 2>&1 &")
    await backend.awrite("/workspace/kept", "old")
    running = asyncio.create_task(backend.aexecute("touch began; sleep 333"))
    while not (house.workspaces.path(mallory) / "began").exists():
        await asyncio.sleep(0.01)
    with monkeypatch.context() as patch:
        patch.setattr(disk_limits, "is_nearly_full", lambda *_: True)
        result = await asyncio.wait_for(running, 30)
        assert result.exit_code == 137
        assert "disk is nearly full" in result.output
        assert "disk is nearly full" in (await backend.aexecute("true")).output
        assert await is_refused(backend)
        assert (await backend.aread("/workspace/kept")).file_data
        assert (await backend.adelete("/workspace/kept")).error is None
    assert (await backend.awrite("/workspace/kept", "old")).error is None
    assert await house.run(alice, "pgrep -c -x sleep || true") == "0\n"


async def test_a_toolbox_that_does_not_obey_is_ended_with_its_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: hostile code has replaced the toolbox; it goes on writing and lies about what it holds."""
    monkeypatch.setattr(disk_limits, "CANCEL_SECONDS", 0.2)
    session = SessionId("mallory", uuid4())
    workspaces = Workspaces(tmp_path, tmp_path)
    await asyncio.to_thread(workspaces.path(session).mkdir, parents=True)

    async def play(fake: Fake) -> None:
        while True:
            kind, number, payload = await fake.hear()
            if kind != REQUEST:
                continue
            if parse_json(payload)["operation"] == "unlinked":
                await fake.say(pack_json(RESULT, number, {"bytes": -(1 << 40)}))
                continue
            await fake.say(pack(BEGUN, number))
            for part in range(3):
                path = workspaces.path(session) / str(part)
                await asyncio.to_thread(path.write_bytes, bytes(40 * MIB))
                await asyncio.sleep(0.5)

    async with channel_to(play) as channel:
        limits = limits_of(workspaces, channel)
        try:
            result = await asyncio.wait_for(limits.run(session, channel, "true", 60), 30)
            assert f"{LIMIT_MIB} MiB that it may" in result.output
            assert result.exit_code != 0
            with pytest.raises(DiskFullError):
                await limits.admit(session, 1)
        finally:
            await limits.close()
        assert channel.is_closed


async def test_a_toolbox_that_says_nothing_does_not_slow_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: to have the server wait for an answer while the disk fills."""
    monkeypatch.setattr(disk_limits, "CANCEL_SECONDS", 0.2)
    session = SessionId("mallory", uuid4())
    workspaces = Workspaces(tmp_path, tmp_path)
    await asyncio.to_thread(workspaces.path(session).mkdir, parents=True)

    async def play(fake: Fake) -> None:
        while True:
            kind, number, payload = await fake.hear()
            if kind == PING:
                await fake.say(pack(PONG, 0))
            elif kind == REQUEST and parse_json(payload)["operation"] == "exec":
                await fake.say(pack(BEGUN, number))
            elif kind == REQUEST:  # what its deleted files hold, which is never answered
                path = workspaces.path(session) / "file"
                await asyncio.to_thread(path.write_bytes, bytes(2 * LIMIT_MIB * MIB))

    async with channel_to(play) as channel:
        limits = limits_of(workspaces, channel)
        try:
            result = await asyncio.wait_for(limits.run(session, channel, "true", 60), 8)
            assert f"{LIMIT_MIB} MiB that it may" in result.output
        finally:
            await limits.close()


def limits_of(workspaces: Workspaces, channel: Channel) -> DiskLimits:
    """Make limits that end a sandbox by closing its channel."""

    async def end(_: SessionId) -> None:
        await channel.close()

    return DiskLimits(SandboxSettings(sandbox_disk_mb=LIMIT_MIB), workspaces, end)
