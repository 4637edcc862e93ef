"""The machine that Warren runs on: what it is, and how software gets onto it. For the command line only."""

import asyncio
import os
import platform
import shutil
from asyncio.subprocess import DEVNULL, STDOUT
from collections.abc import Callable, Sequence
from contextlib import suppress
from tempfile import TemporaryFile
from typing import IO

from sandbox.errors import SandboxError

Progress = Callable[[str], None]
"""Takes one line that tells a person what is being done."""

_TAIL_BYTES = 2000

_PASSED_ON = frozenset({"PATH", "HOME", "LANG", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR"})
_PROXIES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"})


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
        SandboxError: it failed; the message has the end of what it wrote.
    """
    # A file, not a pipe: a service that the program starts may hold on to it, and a pipe would never end.
    with await asyncio.to_thread(TemporaryFile) as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=DEVNULL,
            stdout=output,
            stderr=STDOUT,
            env={**environment(), "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
        )
        try:
            status = await process.wait()
        except BaseException:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        if status != 0:
            raise SandboxError(f"`{' '.join(command)}` failed:\n{await asyncio.to_thread(tail, output)}")


def environment() -> dict[str, str]:
    """Return what a program that may outlive this process sees of the environment: the way to the network.

    None of Warren's secrets, and no directory that goes when a shell or a test ends: an engine whose TMPDIR
    or XDG_RUNTIME_DIR is gone starts no process in any container.
    """
    return {
        name: value for name, value in os.environ.items() if name in _PASSED_ON or name.upper() in _PROXIES
    }


def tail(file: IO[bytes]) -> str:
    """Read the end of a log."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
    return file.read().decode(errors="replace").strip()
