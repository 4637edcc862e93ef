"""What `test_project_quota` has a kernel with project quotas do: the only program of a User Mode Linux.

It mounts the disk that it is given, has real workspaces made on it, tries them, and says what it saw as JSON.
"""

import asyncio
import ctypes
import errno
import fcntl
import json
import os
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from sandbox.project_quota import has_quotas, project_of
from sandbox.toolbox.seccomp import forbid_evading_limits
from sandbox.workspace import Workspaces
from storage.ids import SessionId

MIB = 1 << 20
MOST = 8 * MIB
MODULES = Path("/usr/lib/uml/modules")
PLACE = Path("/mnt")
ATTRIBUTES = struct.Struct("=5I8x")
POWER_OFF = 0x4321FEDC

libc = ctypes.CDLL(None, use_errno=True)


def main(kind: str, options: str) -> None:
    mount("proc", "/proc", "proc", "")
    if kind == "ext4":
        for name in ("quota_tree", "quota_v2"):
            load_module(next(MODULES.glob(f"*/kernel/fs/quota/{name}.ko")))
    mount("/dev/ubda", str(PLACE), kind, options)
    sys.stdout.write(f"SEEN {json.dumps(asyncio.run(look()))}\n")


async def look() -> dict[str, object]:
    root = PLACE / "workspaces"
    workspaces = Workspaces(root, root, MOST)
    alice, bob = SessionId("alice", uuid4()), SessionId("bob", uuid4())
    await workspaces.prepare(alice, 200_001, 200_001)
    await workspaces.prepare(bob, 200_002, 200_002)
    of_alice, of_bob = workspaces.path(alice), workspaces.path(bob)
    seen: dict[str, object] = {
        "has_quotas": has_quotas(PLACE),
        "are_apart": len({None, project(of_alice), project(of_bob)}) == 3,
    }
    seen["written"], seen["refusal"] = as_user(200_001, lambda: fill(of_alice / "flood"))
    seen["after_deletion_still_open"] = as_user(200_001, lambda: fill_deleted(of_alice))
    seen["bobs"], _ = as_user(200_002, lambda: fill(of_bob / "file", most=4 * MIB))
    clear(of_alice)
    seen["names"], seen["refused_name"] = as_user(200_001, lambda: make_files(of_alice, 10_000))
    clear(of_alice)
    seen["moved_away"] = as_user(200_001, lambda: move_away(of_alice / "moved"))
    seen["moved_away_by_a_command"] = as_user(200_001, lambda: move_away(of_alice / "kept"), filtered=True)
    await workspaces.prepare(alice, 200_001, 200_001)
    seen["is_lasting"] = project(of_alice) is not None

    numbers = project(of_alice), project(of_bob)
    await workspaces.discard(alice)
    await workspaces.discard(bob)
    seen["left"] = sorted(path.name for path in root.rglob("*"))
    seen["limits_left"] = projects_with_limits(numbers)

    older = SessionId("alice", uuid4())
    workspaces.path(older).mkdir(parents=True)
    await workspaces.prepare(older, 200_001, 200_001)
    seen["older_has_none"] = project(workspaces.path(older)) is None
    if seen["has_quotas"]:
        seen["in_an_operators_project"] = await in_an_operators_project()
    return seen


async def in_an_operators_project() -> dict[str, object]:
    root = PLACE / "of-an-operator"
    root.mkdir()
    set_project(root, 7, hand_on=True)
    workspaces = Workspaces(root, root, MOST)
    session = SessionId("alice", uuid4())
    await workspaces.prepare(session, 200_001, 200_001)
    descriptor = os.open(workspaces.path(session), os.O_RDONLY)
    kept = attributes_of(descriptor)[3]
    os.close(descriptor)
    await workspaces.discard(session)
    return {"project": kept, "is_removed": not workspaces.path(session).exists()}


def projects_with_limits(numbers: tuple[int | None, ...]) -> list[int | None]:
    from sandbox import project_quota  # noqa: PLC0415 - its inside is looked at

    descriptor = os.open(PLACE, os.O_RDONLY)
    found: list[int | None] = []
    for number in numbers:
        quota = ctypes.create_string_buffer(project_quota._QUOTA.size)
        with suppress(OSError):
            project_quota._quotactl(descriptor, project_quota._GET_QUOTA, number or 0, quota)
            if any(project_quota._QUOTA.unpack(quota.raw)[4:8]):
                found.append(number)
    return found


def fill(file: Path, most: int = 2 * MOST) -> tuple[int, str]:
    written = 0
    try:
        with file.open("wb", buffering=0) as output:
            while written < most:
                written += output.write(bytes(64 << 10))
            os.fsync(output.fileno())
    except OSError as error:
        return written, errno.errorcode[error.errno or 0]
    return written, ""


def fill_deleted(directory: Path) -> str:
    (directory / "flood").unlink()
    with (directory / "flood").open("wb", buffering=0) as output:
        (directory / "flood").unlink()
        with suppress(OSError):
            for _ in range(2 * MOST >> 16):
                output.write(bytes(64 << 10))
        return fill(directory / "more")[1]


def clear(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


def make_files(directory: Path, count: int) -> tuple[int, str]:
    for number in range(count):
        try:
            (directory / str(number)).touch()
        except OSError as error:
            return number, errno.errorcode[error.errno or 0]
    return count, ""


def move_away(directory: Path) -> str:
    """Make a directory that belongs to somebody else's project, if that is possible."""
    directory.mkdir()
    try:
        set_project(directory, 4711)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def as_user(uid: int, work: Callable[[], object], *, filtered: bool = False) -> object:
    """Do something in another process, as an unprivileged user."""
    reader, writer = os.pipe()
    if not os.fork():
        try:
            if filtered:
                forbid_evading_limits()
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.write(writer, json.dumps(work()).encode())
        finally:
            os._exit(0)  # an answer that is missing tells enough
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.wait()
    return json.loads(answer)


def project(directory: Path) -> int | None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        return project_of(descriptor)
    finally:
        os.close(descriptor)


def attributes_of(descriptor: int) -> list[int]:
    return list(ATTRIBUTES.unpack(fcntl.ioctl(descriptor, 0x801C581F, bytes(ATTRIBUTES.size))))


def set_project(directory: Path, number: int, *, hand_on: bool = False) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        attributes = attributes_of(descriptor)
        attributes[0] |= 0x200 if hand_on else 0
        attributes[3] = number
        fcntl.ioctl(descriptor, 0x401C5820, ATTRIBUTES.pack(*attributes))
    finally:
        os.close(descriptor)


def mount(source: str, target: str, kind: str, options: str) -> None:
    if libc.mount(source.encode(), target.encode(), kind.encode(), 0, options.encode()):
        raise OSError(ctypes.get_errno(), f"{target} cannot be mounted")


def load_module(file: Path) -> None:
    with file.open("rb") as module:
        if libc.syscall(313, module.fileno(), b"", 0):  # finit_module
            raise OSError(ctypes.get_errno(), f"{file} cannot be loaded")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:3])  # the kernel adds words of its own
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        raise
    finally:
        sys.stdout.flush()
        time.sleep(0.1)  # the console is slower than the end
        os.sync()
        libc.reboot(POWER_OFF)
