"""The attack: to get more of the kernel than is for a sandbox: privileges, keys, its clock, its settings."""

import os
import time
from collections.abc import AsyncIterator

import pytest

from storage.ids import SessionId
from tests.integration.sandboxes import Sandboxes, in_run, sandboxes

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to root")


@pytest.fixture(scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sandboxes]:
    async with sandboxes(tmp_path_factory.mktemp("workspaces"), sandbox_pids=64) as house:
        yield house


@pytest.fixture(scope="module")
async def mallory(house: Sandboxes) -> SessionId:
    return house.thread("mallory")


async def attempt(house: Sandboxes, session: SessionId, attack: str) -> str:
    """Evaluate Python in the sandbox; returns IN if it came to something, OUT if it was refused."""
    program = (
        "import ctypes, os, socket, time\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "x86 = os.uname().machine == 'x86_64'\n"
        "def call(number, *arguments):\n"
        "    # A number for x86-64 and one for ARM, where they differ.\n"
        "    number = number if isinstance(number, int) else number[0 if x86 else 1]\n"
        "    arguments = [ctypes.c_long(it) if isinstance(it, int) else it for it in arguments]\n"
        "    if libc.syscall(number, *arguments) < 0:\n"
        "        raise OSError(ctypes.get_errno())\n"
        f"try:\n    {attack}\nexcept OSError:\n    print('OUT')\nelse:\n    print('IN')\n"
    )
    with in_run(session):
        await house.backend.awrite("/workspace/attack.py", program)
        return (await house.backend.aexecute("python3 attack.py", timeout=30)).output


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param("os.setuid(0)", id="become root"),
        pytest.param("os.setgroups([0])", id="join root's group"),
        pytest.param("os.chown('/workspace', 0, 0)", id="give a file to root"),
        pytest.param("os.chroot('/workspace')", id="chroot"),
        pytest.param("call((165, 40), b'none', b'/tmp', b'tmpfs', 0, 0)", id="mount"),
        pytest.param("call((166, 39), b'/workspace', 2)", id="umount"),
        pytest.param("call(430, b'tmpfs', 0)", id="mount with fsopen"),
        pytest.param("call(428, -100, b'/', 1)", id="copy a mount with open_tree"),
        pytest.param("call((155, 41), b'/workspace', b'/workspace')", id="pivot_root"),
        pytest.param("call((272, 97), 0x10000000)", id="a user namespace"),
        pytest.param("call((272, 97), 0x00020000)", id="a mount namespace"),
        pytest.param("call((308, 268), os.open('/proc/1/ns/mnt', 0), 0)", id="another's namespace"),
        pytest.param("call((248, 217), b'user', b'name', b'secret', 6, -3)", id="add a key"),
        pytest.param("call((250, 219), 0, -4, 1)", id="the session's keyring"),
        pytest.param("call((249, 218), b'user', b'name', 0, -3)", id="request a key"),
        pytest.param("time.clock_settime(time.CLOCK_REALTIME, 0)", id="set the clock"),
        pytest.param("call((164, 170), (ctypes.c_long * 2)(0, 0), None)", id="settimeofday"),
        pytest.param(
            "call((159, 171), (ctypes.c_int * 64)(*([0x4000] + [0] * 63)))", id="adjust the clock's speed"
        ),
        pytest.param("socket.sethostname('mine')", id="rename the machine"),
        pytest.param("call((169, 142), 0xfee1dead - (1 << 32), 672274793, 0, 0)", id="reboot's switches"),
        pytest.param("call((175, 105), b'', 0, b'')", id="load a module"),
        pytest.param("call((246, 104), 0, 0, None, 0)", id="load another kernel"),
        pytest.param("call((321, 280), 0, ctypes.byref((ctypes.c_int * 32)(1, 4, 4, 1)), 128)", id="bpf"),
        pytest.param("call((298, 241), (ctypes.c_int * 32)(0, 128), 0, -1, -1, 0)", id="perf events"),
        pytest.param("call((304, 265), -100, b'\\0' * 64, 0)", id="open by a handle"),
        pytest.param("call((323, 282), 0)", id="userfaultfd"),
        pytest.param("call((167, 224), b'/workspace/attack.py', 0)", id="swap to a file"),
        pytest.param("os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))", id="real-time priority"),
        pytest.param("os.nice(-5)", id="a better priority"),
        pytest.param("socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", id="a raw socket"),
        pytest.param("socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", id="a packet socket"),
        pytest.param("os.mknod('/workspace/memory', 0o020666, os.makedev(1, 1))", id="a device"),
        pytest.param("open('/dev/mem', 'rb')", id="the machine's memory"),
        pytest.param("open('/dev/kmsg', 'rb')", id="the kernel's log"),
    ],
)
async def test_a_system_call_that_is_not_for_a_sandbox(
    house: Sandboxes, mallory: SessionId, attack: str
) -> None:
    assert await attempt(house, mallory, attack) == "OUT\n"


async def test_what_is_allowed_is_told_from_what_is_not(house: Sandboxes, mallory: SessionId) -> None:
    assert await attempt(house, mallory, "call((39, 172))") == "IN\n"  # getpid


@pytest.mark.parametrize(
    "path",
    [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/randomize_va_space",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sysrq-trigger",
        "/proc/1/oom_score_adj",
        "/proc/1/mem",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/kernel/uevent_helper",
        "/sys/power/state",
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/cgroup.procs",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/pids/pids.max",
        "/sys/fs/cgroup/devices/devices.allow",
        "/sys/class/net/lo/mtu",
    ],
)
async def test_a_setting_of_the_kernel(house: Sandboxes, mallory: SessionId, path: str) -> None:
    assert await attempt(house, mallory, f"open({path!r}, 'w').write('0')") == "OUT\n"
    with in_run(mallory):
        assert (await house.backend.awrite(path, "0")).error
        assert (await house.backend.aupload_files([(path, b"0")]))[0].error


@pytest.mark.parametrize("path", ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"])
async def test_what_the_kernel_knows_of_the_host(house: Sandboxes, mallory: SessionId, path: str) -> None:
    with in_run(mallory):
        result = await house.backend.aexecute(
            f"cat {path} 2>/dev/null | head -c 100; ls -A {path} 2>/dev/null"
        )
    assert result.output.replace(path, "").strip() == ""


async def test_the_clock_stays(house: Sandboxes, mallory: SessionId) -> None:
    assert abs(float(await house.run(mallory, "date +%s.%N")) - time.time()) < 60


SETUID = '#include <stdio.h>\n#include <unistd.h>\nint main() { printf("%d %d\\n", getuid(), geteuid()); }\n'


@AS_ROOT
async def test_a_program_that_is_roots_and_setuid_gives_nothing(house: Sandboxes, mallory: SessionId) -> None:
    """Even if it got there, through a restored backup or a mistake of the host's."""
    with in_run(mallory):
        await house.backend.awrite("/workspace/who.c", SETUID)
    await house.run(mallory, "gcc who.c -o who")
    program = house.workspaces.path(mallory) / "who"
    os.chown(program, 0, 0)
    os.chmod(program, 0o6755)  # noqa: PTH101, S103
    uid = house.uids["mallory"]
    assert await house.run(mallory, "./who") == f"{uid} {uid}\n"


async def test_the_setuid_programs_of_the_image_give_nothing(house: Sandboxes, mallory: SessionId) -> None:
    programs = (await house.run(mallory, "find / -xdev -perm /6000 -type f 2>/dev/null; true")).split()
    assert "/usr/bin/su" in programs
    with in_run(mallory):
        for command in ("su -c id < /dev/null", "mount -t tmpfs none /mnt", "newgrp root < /dev/null"):
            assert "uid=0" not in (await house.backend.aexecute(command, timeout=10)).output


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254:80",
        "[fd00:ec2::254]:80",
        "168.63.129.16:80",
        "100.100.100.200:80",
        "172.17.0.1:22",
        "10.0.0.1:53",
        "1.1.1.1:53",
        "[2606:4700:4700::1111]:53",
    ],
)
async def test_an_address_of_a_cloud_the_host_or_the_world(
    house: Sandboxes, mallory: SessionId, address: str
) -> None:
    host, _, port = address.rpartition(":")
    attack = f"socket.create_connection(({host.strip('[]')!r}, {port}), 3)"
    assert await attempt(house, mallory, attack) == "OUT\n"


async def test_no_socket_of_the_engine_or_another_service(house: Sandboxes, mallory: SessionId) -> None:
    found = await house.run(
        mallory, "find / -xdev -type s 2>/dev/null; cat /proc/net/unix | grep -v toolbox; true"
    )
    assert [line for line in found.splitlines() if "/" in line] == []
