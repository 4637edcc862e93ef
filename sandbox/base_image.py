"""What the sandbox image is built from: a pulled image, or a Debian of our own making."""

import asyncio
import shutil
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

import aiohttp
from aiodocker.exceptions import DockerError

from sandbox.engine import Engine
from sandbox.errors import ImageError, SandboxError
from sandbox.host import Progress, apt_install, can_install, run

DEBIAN_SUITES = ("trixie", "bookworm")
"""What debootstrap is asked for, the best first: an old debootstrap or keyring does not know the newest."""

_PULL_PATIENCE_SECONDS = 10
"""How long a pull may show no progress. Without a way to the registry it would hang for minutes."""

_ARCHIVE_TIMEOUT_SECONDS = 600

_LEFT_OUT = (
    "dev",
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
)

_SOURCES = """\
deb http://deb.debian.org/debian {suite} main
deb http://deb.debian.org/debian {suite}-updates main
deb http://deb.debian.org/debian-security {suite}-security main
"""


def own_base(suite: str) -> str:
    """Name the base image that Warren makes of a Debian suite."""
    return f"warren-base:{suite}"


async def is_present(engine: Engine, image: str) -> bool:
    """Tell whether the engine has an image."""
    try:
        await engine.docker.images.inspect(image)
    except DockerError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return False
        raise
    return True


async def obtain_base(engine: Engine, wanted: str, scratch: Path, progress: Progress) -> str:
    """Return the name of a base image that the engine has: `wanted`, or one that is made here.

    Args:
        engine: Where the image is needed.
        wanted: The image to take, if it is present or can be pulled.
        scratch: A directory on a disk with 500 MB to spare; nothing is left in it.
        progress: Told what is done.

    Raises:
        ImageError: there is no way to a base.
    """
    if await is_present(engine, wanted):
        return wanted
    try:
        await _pull(engine, wanted, progress)
    except (DockerError, TimeoutError) as error:
        progress(f"{wanted} cannot be pulled: {str(error) or 'no answer from the registry'}")
    else:
        return wanted
    for suite in DEBIAN_SUITES:
        if await is_present(engine, own_base(suite)):
            return own_base(suite)
    if not can_install():
        raise ImageError(
            f"The base image {wanted} can be neither found nor pulled. Load it with `docker load`, or name "
            "one that the engine has in SANDBOX_BASE_IMAGE. Only on Debian and Ubuntu as root is one made."
        )
    return await _bootstrap(engine, scratch, progress)


async def _pull(engine: Engine, image: str, progress: Progress) -> None:
    progress(f"Pulling {image}")
    steps = engine.docker.images.pull(image, stream=True)
    try:
        while True:
            async with asyncio.timeout(_PULL_PATIENCE_SECONDS):
                await anext(steps)
    except StopAsyncIteration:
        return
    finally:
        if close := getattr(steps, "aclose", None):
            await close()


async def _bootstrap(engine: Engine, scratch: Path, progress: Progress) -> str:
    missing = [
        package
        for package, file in (
            ("debootstrap", "/usr/sbin/debootstrap"),
            ("debian-archive-keyring", "/usr/share/keyrings/debian-archive-keyring.gpg"),
        )
        if not await asyncio.to_thread(Path(file).exists)
    ]
    if missing:
        await apt_install(missing, progress)
    failures = []
    for suite in DEBIAN_SUITES:
        directory = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="debootstrap-", dir=scratch))
        try:
            progress(f"Making a Debian {suite} base with debootstrap (about a minute)")
            await _debootstrap(suite, directory)
            progress(f"Handing {own_base(suite)} to Docker")
            await _import(engine, directory, own_base(suite))
        except SandboxError as error:
            progress(f"Debian {suite} did not work")
            failures.append(str(error))
        else:
            return own_base(suite)
        finally:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
    raise ImageError("No base image could be made.\n" + "\n".join(failures))


async def _debootstrap(suite: str, directory: Path) -> None:
    keyring = "--keyring=/usr/share/keyrings/debian-archive-keyring.gpg"
    await run(["debootstrap", "--variant=minbase", keyring, suite, str(directory)])
    sources = directory / "etc" / "apt" / "sources.list"
    await asyncio.to_thread(sources.write_text, _SOURCES.format(suite=suite))


async def _import(engine: Engine, directory: Path, name: str) -> None:
    repository, _, tag = name.partition(":")
    exclusions = [f"--exclude=./{path}/*" for path in _LEFT_OUT]
    tar = await asyncio.create_subprocess_exec(
        "tar", "--numeric-owner", *exclusions, "-C", str(directory), "-c", ".", stdin=DEVNULL, stdout=PIPE
    )
    try:
        await engine.post(
            "images/create",
            params={"fromSrc": "-", "repo": repository, "tag": tag},
            body=_output(tar),
            timeout_seconds=_ARCHIVE_TIMEOUT_SECONDS,
        )
    except aiohttp.ClientError:
        if tar.returncode:
            raise SandboxError(f"tar failed with status {tar.returncode}") from None
        raise
    finally:
        if tar.returncode is None:
            with suppress(ProcessLookupError):
                tar.kill()
            await tar.communicate()  # `wait` would wait for somebody to read what is in the pipe


async def _output(tar: Process) -> AsyncIterator[bytes]:
    if tar.stdout is None:
        raise AssertionError("a pipe was asked for")
    while chunk := await tar.stdout.read(1 << 16):
        yield chunk
    if await tar.wait() != 0:
        raise SandboxError("incomplete")  # breaks the request, so that the engine keeps nothing of it
