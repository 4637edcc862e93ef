"""What a model's tools ask of a sandbox, as calls of deepagents' backend protocol, their results checked."""

from collections.abc import Awaitable, Callable
from typing import Any

from deepagents.backends.sandbox import BaseSandbox

KIB = "x" * 1023 + "\n"
LINES = "".join(f"line {number} of a file that a model reads\n" for number in range(2000))
LARGE = bytes(range(256)) * (10 << 12)  # 10 MiB that no compression helps with
FILES = 1000

Operation = Callable[[BaseSandbox], Awaitable[Any]]


async def execute(it: BaseSandbox) -> None:
    result = await it.aexecute("echo hi")
    _expect(result.output == "hi\n")


async def write(it: BaseSandbox) -> None:
    _expect(not (await it.awrite("/workspace/written.txt", KIB)).error)


async def read(it: BaseSandbox) -> None:
    _expect(not (await it.aread("/workspace/kib.txt")).error)


async def read_lines(it: BaseSandbox) -> None:
    _expect(not (await it.aread("/workspace/lines.txt", 0, 2000)).error)


async def edit(it: BaseSandbox) -> None:
    """Edit there and back, so that the next time finds what it looks for: two edits in one."""
    _expect(not (await it.aedit("/workspace/edited.txt", "needle", "thread")).error)
    _expect(not (await it.aedit("/workspace/edited.txt", "thread", "needle")).error)


async def ls(it: BaseSandbox) -> None:
    _expect(len((await it.als("/workspace/some")).entries or []) == 20)


async def glob(it: BaseSandbox) -> None:
    _expect(len((await it.aglob("**/*.py", "/workspace/many")).matches or []) == FILES)


async def grep(it: BaseSandbox) -> None:
    _expect(len((await it.agrep("needle", "/workspace/many")).matches or []) == FILES // 10)


async def upload(it: BaseSandbox) -> None:
    _expect(not (await it.aupload_files([("/workspace/large.bin", LARGE)]))[0].error)


async def download(it: BaseSandbox) -> None:
    (downloaded,) = await it.adownload_files(["/workspace/large.bin"])
    _expect(downloaded.content == LARGE)


SMALL: dict[str, Operation] = {
    "execute": execute,
    "write 1 KB": write,
    "read 1 KB": read,
    "read 2,000 lines": read_lines,
    "edit": edit,
    "ls": ls,
    "glob 1,000 files": glob,
    "grep 1,000 files": grep,
}
BIG: dict[str, Operation] = {"upload 10 MB": upload, "download 10 MB": download}

PREPARATION = f"""
import os
for folder, count in (("some", 20), ("many", {FILES})):
    for number in range(count):
        path = f"/workspace/{{folder}}" + (f"/{{number % 10}}" if folder == "many" else "")
        os.makedirs(path, exist_ok=True)
        with open(f"{{path}}/{{number}}.py", "w") as file:
            file.write("a line\\n" * 20 + ("needle\\n" if folder == "many" and number % 10 == 0 else ""))
"""

MIX: tuple[Operation, ...] = (execute, write, read, ls)
"""What an agent does most."""


async def prepare(it: BaseSandbox) -> None:
    """Make the files that the operations work on."""
    files = [
        ("/workspace/kib.txt", KIB.encode()),
        ("/workspace/lines.txt", LINES.encode()),
        ("/workspace/edited.txt", b"before\nneedle\nafter\n"),
        ("/workspace/prepare.py", PREPARATION.encode()),
    ]
    _expect(not any(uploaded.error for uploaded in await it.aupload_files(files)))
    _expect((await it.aexecute("python3 /workspace/prepare.py")).exit_code == 0)


def _expect(fulfilled: bool) -> None:
    if not fulfilled:
        raise RuntimeError("A sandbox did not do what it was asked: its time would mean nothing.")
