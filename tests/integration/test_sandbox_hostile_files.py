"""The attack: files that are no files, that become others while they are used, or that lie elsewhere."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from sandbox.backend import SandboxBackend
from sandbox.disk import disk_usage
from storage.ids import SessionId
from tests.integration.sandboxes import Sandboxes, in_run, sandboxes

Operation = Callable[[SandboxBackend, str], Awaitable[str | None]]


async def _read(backend: SandboxBackend, path: str) -> str | None:
    result = await backend.aread(path)
    assert bool(result.error) != bool(result.file_data)
    return result.file_data["content"] if result.file_data else None


async def _download(backend: SandboxBackend, path: str) -> str | None:
    [result] = await backend.adownload_files([path])
    assert bool(result.error) != (result.content is not None)
    return None if result.content is None else result.content.decode("utf-8", "replace")


async def _grep(backend: SandboxBackend, path: str) -> str | None:
    matches = (await backend.agrep("", path)).matches
    return "".join(match["text"] for match in matches or []) or None


async def _glob(backend: SandboxBackend, path: str) -> str | None:
    return "".join(match["path"] for match in (await backend.aglob("*", path)).matches or []) or None


async def _ls(backend: SandboxBackend, path: str) -> str | None:
    return "".join(entry["path"] for entry in (await backend.als(path)).entries or []) or None


async def _write(backend: SandboxBackend, path: str) -> str | None:
    return None if (await backend.awrite(path, "written")).error else "written"


async def _upload(backend: SandboxBackend, path: str) -> str | None:
    return None if (await backend.aupload_files([(path, b"written")]))[0].error else "written"


async def _edit(backend: SandboxBackend, path: str) -> str | None:
    return None if (await backend.aedit(path, "t", "T", replace_all=True)).error else "written"


async def _delete(backend: SandboxBackend, path: str) -> str | None:
    return None if (await backend.adelete(path)).error else "deleted"


OPERATIONS = [_read, _download, _grep, _glob, _ls, _write, _upload, _edit, _delete]
EACH_OPERATION = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda it: it.__name__[1:])


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


SWAPPER = """\
import ctypes, itertools, os, socket, sys
os.makedirs("race/directory")
os.chdir("race")
open("target", "w").write("text")
open("file", "w").write("text")
os.mkfifo("fifo")
os.symlink("/etc/shadow", "secret")
os.symlink("/dev/zero", "endless")
os.symlink("target", "loop")
socket.socket(socket.AF_UNIX).bind("socket")
libc = ctypes.CDLL(None)
others = itertools.cycle([b"fifo", b"directory", b"secret", b"endless", b"loop", b"socket", b"file"])
sys.stdout.close()
open("../swapping", "w").close()
for other in others:
    if libc.renameat2(-100, b"target", -100, other, 2):  # RENAME_EXCHANGE
        open("target", "a").close()
"""


@pytest.mark.timeout(60)
@EACH_OPERATION
async def test_a_file_that_becomes_something_else_under_an_operation(
    house: Sandboxes, mallory: SessionId, backend: SandboxBackend, operation: Operation
) -> None:
    """Pipes, sockets, devices, links and directories take a file's place as fast as the kernel can.

    Whatever an operation meets, it comes back, with what is in the sandbox or an error, and so does the next.
    """
    await backend.aexecute("pkill -f '[s]wapper'; rm -rf race swapping")
    await backend.awrite("/workspace/swapper.py", SWAPPER)
    await backend.aexecute("python3 swapper.py > /dev/null 2>&1 &")
    while not (house.workspaces.path(mallory) / "swapping").exists():
        await asyncio.sleep(0.01)
    for _ in range(60):
        found = await asyncio.wait_for(operation(backend, "/workspace/race/target"), 20)
        assert "root:" not in str(found)
    assert await house.run(mallory, "pkill -f '[s]wapper'; echo alive") == "alive\n"


@EACH_OPERATION
async def test_a_path_that_leads_out_of_the_workspace_leads_to_nothing_of_the_host(
    backend: SandboxBackend, tmp_path: Path, operation: Operation
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("text of the host")
    await backend.aexecute(f"ln -sfn {tmp_path} out; ln -sfn / top")
    for path in (
        str(secret),
        f"/workspace/../../..{secret}",
        f"../../../..{secret}",
        f"/workspace/out/{secret.name}",
        f"/workspace/top{secret}",
        f"/proc/1/root{secret}",
        f"/proc/self/root{secret}",
        f"/proc/self/cwd/../../..{secret}",
        "/workspace/../../../etc/shadow",
        "/proc/1/environ",
        "/proc/1/mem",
    ):
        # Relative paths are in /workspace, so one that goes up and down again may end in /tmp of the sandbox.
        assert await operation(backend, path) in {None, "written", "deleted"}, path
        assert secret.read_text() == "text of the host"
    assert os.listdir(tmp_path) == ["secret.txt"]  # noqa: PTH208


@pytest.mark.parametrize(
    "name", ["nul\0", "\ud800", "n" * 256, "x/" * 3000], ids=["NUL", "half", "long", "deep"]
)
@EACH_OPERATION
async def test_a_name_that_cannot_be(backend: SandboxBackend, operation: Operation, name: str) -> None:
    assert await operation(backend, f"/workspace/{name}") is None


async def test_names_of_any_bytes_are_listed_searched_and_deleted(
    house: Sandboxes, backend: SandboxBackend
) -> None:
    await backend.awrite(
        "/workspace/names.py",
        "import os\nos.makedirs('names')\n"
        "for name in (b'a\\nb', b'\\xff\\xfe', b'-rf', b'\\x1b[2J', b'\\\\', b'*', b' ', b'%0', b'n' * 99):\n"
        "    open(b'names/' + name, 'w').write('needle')\n",
    )
    await backend.aexecute("python3 names.py")
    assert len((await backend.als("/workspace/names")).entries or []) == 9
    assert len((await backend.aglob("*", "/workspace/names")).matches or []) == 9
    assert len((await backend.agrep("needle", "/workspace/names")).matches or []) == 9
    assert (await backend.adelete("/workspace/names")).error is None
    assert (await backend.als("/workspace/names")).error


async def test_ten_thousand_files(house: Sandboxes, mallory: SessionId, backend: SandboxBackend) -> None:
    await backend.aexecute("mkdir many && cd many && seq 10000 | xargs touch && echo needle > 5000")
    assert len((await backend.als("/workspace/many")).entries or []) == 10_000
    found = await backend.aglob("*", "/workspace/many")
    assert (len(found.matches or []), found.truncated) == (10_000, False)
    assert len((await backend.agrep("needle", "/workspace/many")).matches or []) == 1
    files = [(f"/workspace/uploaded/{number}", b"x") for number in range(2000)]
    assert [answer.error for answer in await backend.aupload_files(files)] == [None] * 2000
    assert disk_usage(house.workspaces.path(mallory)) >= 12_000 * 4096
    assert (await backend.adelete("/workspace/many")).error is None
    assert (await backend.aexecute("ls many")).exit_code != 0


NEST = "python3 -c \"import os\nfor _ in range({levels}): os.mkdir('d' * 100); os.chdir('d' * 100)\""
TREES = {
    "closed": "mkdir -p a/b/c; touch a/b/c/file; chmod 000 a/b/c/file a/b/c a/b a",
    "read-only": "mkdir -p a/b/c; touch a/b/c/file; chmod 555 a/b/c a/b a",
    "nested": NEST.format(levels=200),
    "nested without end": NEST.format(levels=2000),
    "many": "for i in $(seq 200); do mkdir $i; done; seq 3000 | xargs touch 1/x; ln -s / root; mkfifo fifo",
}


@pytest.mark.parametrize("tree", TREES)
async def test_a_hostile_tree_breaks_no_listing_no_measuring_and_no_deletion(
    house: Sandboxes, tree: str
) -> None:
    session = house.thread("mallory")
    await house.run(session, TREES[tree])
    with in_run(session):
        assert (await house.backend.als("/workspace")).entries
        assert (await house.backend.aglob("**/file", "/workspace")).error is None
        assert (await house.backend.agrep("needle", "/workspace")).error is None
    assert disk_usage(house.workspaces.path(session)) > 0
    await house.containers.remove(session)
    assert not house.workspaces.path(session).exists()
    assert list((house.workspaces.root / ".trash").iterdir()) == []


async def test_no_name_can_be_made_immutable(backend: SandboxBackend) -> None:
    """Not even root could then delete it."""
    assert (await backend.aexecute("touch kept; chattr +i kept; lsattr kept | grep -q -- -i-")).exit_code != 0
    assert (await backend.adelete("/workspace/kept")).error is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads everything; others own all workspaces")
async def test_the_server_can_read_all_that_is_in_a_workspace(house: Sandboxes) -> None:
    session = house.thread(f"mallory-{uuid4().hex[:8]}")
    await house.run(session, "mkdir d; echo text > d/file; chmod 000 d/file d")
    assert (house.workspaces.path(session) / "d" / "file").read_text() == "text\n"
