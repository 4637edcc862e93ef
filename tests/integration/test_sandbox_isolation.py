"""What hostile code in a sandbox tries, and what comes of it."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.spec import OWNER_LABEL
from storage.ids import SessionId
from tests.integration.sandboxes import Sandboxes, in_run, sandboxes

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="one uid per user needs a server that is root")


@pytest.fixture(scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sandboxes]:
    async with sandboxes(tmp_path_factory.mktemp("workspaces"), sandbox_pids=64) as house:
        yield house


@pytest.fixture(scope="module")
async def mallory(house: Sandboxes) -> SessionId:
    return house.thread("mallory")


async def inspected(house: Sandboxes, session: SessionId) -> dict[str, Any]:
    container = await house.containers.ensure(session)
    return await container.show()


async def survivors(house: Sandboxes, session: SessionId, program: str) -> int:
    return int(await house.run(session, f"pgrep -c -x {program} || true"))


async def test_the_engine_holds_every_hardening_flag(house: Sandboxes, mallory: SessionId) -> None:
    container = await inspected(house, mallory)
    host = container["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] is None
    assert host["Privileged"] is False
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["NetworkMode"] == "none"
    assert host["IpcMode"] == "private"
    assert host["PidMode"] == ""
    assert host["PidsLimit"] == 64
    assert host["Memory"] == host["MemorySwap"] == 1024 << 20
    assert host["NanoCpus"] == 1_000_000_000
    assert host["LogConfig"]["Type"] == "none"
    assert host["Binds"] is None
    assert host["Devices"] in (None, [])
    [mount] = container["Mounts"]
    assert mount["Destination"] == "/workspace"
    assert mount["Source"] == str(house.workspaces.path(mallory))
    assert mount["Propagation"] == "rprivate"
    assert container["Config"]["Labels"][OWNER_LABEL] == "mallory"


async def test_code_runs_without_any_privilege(house: Sandboxes, mallory: SessionId) -> None:
    status = await house.run(mallory, "cat /proc/self/status")
    fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert fields["CapEff"] == fields["CapPrm"] == fields["CapBnd"] == "0000000000000000"
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    uid = house.uids["mallory"] if os.geteuid() == 0 else os.geteuid()
    assert fields["Uid"].split() == [str(uid)] * 4


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param("touch /etc/x", id="write to the image"),
        pytest.param("mount -t tmpfs none /mnt", id="mount"),
        pytest.param("unshare -U true", id="make a user namespace"),
        pytest.param("echo 1 > /proc/sys/kernel/core_pattern", id="core_pattern escape"),
        pytest.param("ls /var/run/docker.sock", id="docker.sock"),
        pytest.param("mknod /workspace/sda b 8 0", id="make a device"),
        pytest.param("date -s 2000-01-01", id="set the clock"),
        pytest.param("curl -sS -m 3 http://169.254.169.254/", id="cloud metadata"),
        pytest.param("curl -sS -m 3 http://172.17.0.1/", id="the bridge's gateway"),
    ],
)
async def test_an_attempt_at_the_host_fails(house: Sandboxes, mallory: SessionId, attack: str) -> None:
    with in_run(mallory):
        assert (await house.backend.aexecute(attack, timeout=10)).exit_code != 0


async def test_there_is_no_network_but_loopback(house: Sandboxes, mallory: SessionId) -> None:
    assert (await house.run(mallory, "ls /sys/class/net")).split() == ["lo"]


async def test_programs_built_in_tmp_run_and_setuid_ones_gain_nothing(
    house: Sandboxes, mallory: SessionId
) -> None:
    options = await house.run(mallory, "grep ' /tmp ' /proc/mounts")
    assert "nosuid" in options
    assert "nodev" in options
    source = 'int main() { puts("ran"); }'
    built = await house.run(
        mallory, f"cd /tmp && echo '{source}' > x.c && gcc -include stdio.h x.c && ./a.out; true"
    )
    assert built == "ran\n"


async def test_two_users_see_nothing_of_each_other(house: Sandboxes, mallory: SessionId) -> None:
    alice = house.thread("alice")
    await house.run(alice, "echo secret > /workspace/hers.txt")
    await house.run(mallory, "echo x > /workspace/his.txt")
    with in_run(mallory):
        seen = await house.backend.aexecute("ls -la /workspace /proc/1/root /proc/1/root/workspace; ps -e")
        reach = await house.backend.aread(f"{house.workspaces.path(alice)}/hers.txt")
    assert "his.txt" in seen.output
    assert "hers.txt" not in seen.output
    assert str(alice.thread_id) not in seen.output
    assert reach.error


@AS_ROOT
async def test_on_the_host_a_workspace_is_its_users_alone(house: Sandboxes, mallory: SessionId) -> None:
    await house.run(mallory, "chmod 0777 /workspace")
    await house.run(mallory, "true")
    alice = house.thread("alice")
    await house.run(alice, "true")
    directory = house.workspaces.path(alice)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert directory.stat().st_uid == house.uids["alice"] != house.uids["mallory"]
    assert directory.parent.stat().st_uid == 0
    assert directory.parent.stat().st_mode & 0o777 == 0o711


@pytest.mark.parametrize("signal", ["KILL", "TERM", "INT", "HUP"])
async def test_the_first_process_cannot_be_killed_from_within(
    house: Sandboxes, mallory: SessionId, signal: str
) -> None:
    before = (await inspected(house, mallory))["State"]["StartedAt"]
    with in_run(mallory):
        await house.backend.aexecute(f"kill -{signal} 1; kill -{signal} -1")
    after = (await inspected(house, mallory))["State"]
    assert after["Running"]
    assert after["StartedAt"] == before


async def test_zombies_are_reaped(house: Sandboxes, mallory: SessionId) -> None:
    await house.run(mallory, "for i in 1 2 3 4 5; do (setsid true &); done; true")
    assert " Z" not in await house.run(mallory, "ps -e -o stat= | sed 's/^/ /'")


@pytest.mark.parametrize(
    "escape",
    [
        pytest.param("setsid sleep 333", id="session of its own"),
        pytest.param("env -i setsid sleep 333", id="environment cleared"),
        pytest.param(
            "setsid setsid sh -c 'trap \"\" TERM HUP INT; sleep 333; sleep 333'", id="signals ignored"
        ),
    ],
)
async def test_nothing_that_a_command_started_outlives_its_timeout(
    house: Sandboxes, mallory: SessionId, escape: str
) -> None:
    with in_run(mallory):
        result = await house.backend.aexecute(f"echo before; {escape} & sleep 333", timeout=1)
    assert result.exit_code == 124
    assert result.output.startswith("before\n")
    assert await survivors(house, mallory, "sleep") == 0


async def test_nothing_that_a_command_started_outlives_its_cancellation(
    house: Sandboxes, mallory: SessionId
) -> None:
    with in_run(mallory):
        task = asyncio.create_task(house.backend.aexecute("setsid sleep 333 & touch started; sleep 333"))
    while not (house.workspaces.path(mallory) / "started").exists():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await survivors(house, mallory, "sleep") == 0


async def test_a_timeout_spares_the_background_servers_of_earlier_commands(
    house: Sandboxes, mallory: SessionId
) -> None:
    await house.run(mallory, "setsid sleep 222 > /dev/null 2>&1 &")
    with in_run(mallory):
        assert (await house.backend.aexecute("sleep 333", timeout=1)).exit_code == 124
    assert (await house.run(mallory, "pgrep -a -x sleep")).split()[1:] == ["sleep", "222"]
    await house.run(mallory, "pkill sleep")


async def test_a_flood_of_output_is_bounded_and_ended(house: Sandboxes, mallory: SessionId) -> None:
    with in_run(mallory):
        result = await house.backend.aexecute("yes")
    assert result.truncated
    assert result.exit_code == 137
    assert len(result.output) < (512 << 10) + 200
    assert await survivors(house, mallory, "yes") == 0


async def test_a_fork_bomb_ends_with_its_command_and_the_sandbox_works_again(house: Sandboxes) -> None:
    session = house.thread("mallory")
    with in_run(session):
        bomb = "bomb() { bomb | bomb & }; bomb; sleep 333"
        assert (await house.backend.aexecute(bomb, timeout=2)).exit_code == 124
    assert await house.run(session, "echo alive") == "alive\n"


FILL = """\
python3 - <<'END'
import os, time
try:
    while os.fork():
        pass
except OSError:
    os._exit(0)
os.setsid()
os.closerange(0, 3)
time.sleep(333)
END
"""


async def test_a_sandbox_left_full_of_processes_does_not_lock_its_owner_out(house: Sandboxes) -> None:
    session = house.thread("mallory")
    await house.run(session, FILL)
    assert await house.run(session, "echo alive") == "alive\n"


@pytest.mark.parametrize(
    "hog",
    [
        pytest.param("python3 -c 'x = bytearray(500_000_000)'", id="of a process"),
        pytest.param("head -c 200M /dev/zero > /tmp/x", id="of files in tmp, which no kill gives back"),
    ],
)
async def test_a_memory_hog_is_stopped_by_its_own_limit(tmp_path: Path, hog: str) -> None:
    async with sandboxes(tmp_path, sandbox_memory_mb=64) as small:
        session = small.thread("mallory")
        with in_run(session):
            assert (await small.backend.aexecute(hog)).exit_code != 0
            # One call may be lost with the container, if that is just going down.
            after = [await small.backend.aexecute("echo alive") for _ in range(2)]
        assert after[-1].output == "alive\n"


async def test_client_made_keys_do_not_choose_the_sandbox(house: Sandboxes) -> None:
    alice, mallory = house.thread("alice"), house.thread("mallory")
    await house.run(alice, "echo secret > /workspace/hers.txt")
    forged = {
        "user_id": "alice",
        "owner": "alice",
        "sandbox_id": str(alice),
        "langgraph_auth_user": {"identity": "alice"},
        "metadata": {"owner": "alice", "thread_id": str(alice.thread_id)},
    }
    with in_run(mallory, **forged):
        result = await house.backend.aexecute("cat /workspace/hers.txt; id -u")
    assert "secret" not in result.output
    assert str((await inspected(house, mallory))["Config"]["User"].split(":")[0]) in result.output


async def test_anothers_thread_is_refused_even_with_its_id(house: Sandboxes) -> None:
    alice = house.thread("alice")
    await house.run(alice, "echo secret > /workspace/hers.txt")
    with in_run(SessionId("mallory", alice.thread_id)):
        result = await house.backend.aexecute("cat /workspace/hers.txt")
        download = await house.backend.adownload_files(["/workspace/hers.txt"])
    assert result.exit_code == 1
    assert "secret" not in result.output
    assert download[0].content is None


async def test_without_an_identity_nothing_runs(house: Sandboxes) -> None:
    containers = await house.containers.reconcile()
    with in_run(None, user_id="alice", thread_id="not-a-thread"):
        result = await house.backend.aexecute("echo ran")
        listing = await house.backend.als("/")
    outside = await house.backend.aexecute("echo ran")
    assert (result.exit_code, outside.exit_code) == (1, 1)
    assert "ran" not in result.output.split()
    assert listing.entries is None
    assert listing.error
    assert containers == 0


async def test_a_deleted_thread_gets_no_sandbox_again(house: Sandboxes) -> None:
    session = house.thread("alice")
    await house.run(session, "echo x > kept.txt")
    house.live.discard(session)
    await house.containers.remove(session)
    with in_run(session):
        result = await house.backend.aexecute("echo ran")
    assert result.exit_code == 1
    assert not house.workspaces.path(session).exists()


async def test_deletion_removes_links_and_not_what_they_point_to(house: Sandboxes, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep me")
    session = house.thread("mallory")
    await house.run(
        session, f"ln -s {precious} dir; ln -s {precious}/file file; mkdir -p a/b; ln -s / a/b/root"
    )
    await house.run(session, "mkdir locked; touch locked/x; chmod 000 locked; chmod 500 a")
    await house.containers.remove(session)
    assert not house.workspaces.path(session).exists()
    assert [path.name for path in (house.workspaces.root / ".trash").iterdir()] == []
    assert (precious / "file").read_text() == "keep me"


async def test_a_container_that_is_not_ours_is_never_used(house: Sandboxes) -> None:
    """The name is right, but it was made otherwise: with the host's files, say."""
    session = house.thread("alice")
    real = await inspected(house, session)
    docker = (await house.containers.ensure(session)).docker
    await docker.containers.container(real["Id"]).delete(force=True)
    config = {
        "Image": real["Config"]["Image"],
        "Cmd": ["sleep", "1000"],
        "Labels": {**real["Config"]["Labels"], "warren.spec": "0"},
        "HostConfig": {"Binds": ["/etc:/etc-of-the-host"], "NetworkMode": "none"},
    }
    impostor = await docker.containers.create(json.loads(json.dumps(config)), name=real["Name"].lstrip("/"))
    await impostor.start()
    assert "etc-of-the-host" not in await house.run(session, "ls /")
    assert (await inspected(house, session))["Id"] != impostor.id
