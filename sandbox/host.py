"""The machine that Warren runs on: what it is, and how software gets onto it. For the command line only."""

import asyncio
import os
import platform
import shutil
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections import deque
from collections.abc import Callable, Sequence

from sandbox.errors import SandboxError

Progress = Callable[[str], None]
"""Takes one line that tells a person what is being done."""

_TAIL_LINES = 15


def can_install() -> bool:
    """Tell whether packages can be installed here: root on Debian or a derivative of it such as Ubuntu."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return False
    return "debian" in {release.get("ID"), *release.get("ID_LIKE", "").split()}


async def apt_install(packages: Sequence[str], progress: Progress) -> None:
    """Install Debian packages without those they merely recommend.

    Raises:
        SandboxError: apt failed.
    """
    progress(f"Installing {', '.join(packages)} with apt")
    await run(["apt-get", "update"])
    await run(["apt-get", "install", "--yes", "--no-install-recommends", *packages])


async def run(command: Sequence[str]) -> None:
    """Run a program to its end.

    Raises:
        SandboxError: it failed; the message has the last lines that it wrote.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
    )
    if process.stdout is None:
        raise AssertionError("a pipe was asked for")
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    try:
        async for line in process.stdout:
            tail.append(line.decode(errors="replace").rstrip())
    except BaseException:
        process.kill()
        raise
    finally:
        await process.wait()
    if process.returncode != 0:
        raise SandboxError(f"`{' '.join(command)}` failed:\n" + "\n".join(tail))
