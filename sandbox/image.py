"""The sandbox image: built once, and named after what it was built from."""

import asyncio
import fcntl
import hashlib
import io
import os
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiodocker.exceptions import DockerError

from sandbox.base_image import DEBIAN_SUITES, is_present, obtain_base, own_base
from sandbox.engine import Engine, connected
from sandbox.errors import ImageError
from sandbox.host import Progress
from sandbox.settings import get_settings
from storage.directories import make_passable
from storage.settings import get_settings as get_storage_settings

REPOSITORY = "warren-sandbox"
_CONTEXT = Path(__file__).parent / "image"
_BUILD_TIMEOUT_SECONDS = 1800
_LOCK_POLL_SECONDS = 0.2


def image_tag(base: str) -> str:
    """Name the image that this version of Warren builds from a base image. Reads `sandbox/image/`."""
    digest = hashlib.sha256(base.encode())
    for path in _context_files():
        digest.update(f"\0{path.relative_to(_CONTEXT)}\0".encode() + path.read_bytes())
    return f"{REPOSITORY}:{digest.hexdigest()[:16]}"


async def find_image(engine: Engine) -> str | None:
    """Return the image that sandboxes are made of here, or None when it has yet to be built.

    An image built from the base that the settings name comes first, then one from a base of Warren's own.
    """
    settings = get_settings()
    if settings.sandbox_image:
        return settings.sandbox_image if await is_present(engine, settings.sandbox_image) else None
    bases = [settings.sandbox_base_image, *map(own_base, DEBIAN_SUITES)]
    for tag in await asyncio.to_thread(lambda: [image_tag(base) for base in bases]):
        if await is_present(engine, tag):
            return tag
    return None


async def ensure_image(progress: Progress) -> str:
    """Build the sandbox image unless the engine has it, and return its name.

    Takes a few minutes the first time. Two processes that need it at once build it once.

    Raises:
        DockerUnreachableError: no engine answers.
        ImageError: it cannot be built, or SANDBOX_IMAGE names one that the engine does not have.
        SandboxError: a program that was needed to build it failed.
    """
    async with connected() as engine:
        if image := await find_image(engine):
            return image
        if named := get_settings().sandbox_image:
            raise ImageError(f"The engine has no image {named}, which SANDBOX_IMAGE names. Pull or load it.")
        data_dir = get_storage_settings().data_dir
        async with exclusively(data_dir / "image.lock", progress):
            if image := await find_image(engine):
                return image
            try:
                return await _build(engine, data_dir, progress)
            except DockerError as error:
                raise ImageError(f"The sandbox image could not be built: {error.message}") from error


async def _build(engine: Engine, scratch: Path, progress: Progress) -> str:
    base = await obtain_base(engine, get_settings().sandbox_base_image, scratch, progress)
    tag = await asyncio.to_thread(image_tag, base)
    progress(f"Building {tag} from {base} (about a minute)")
    # The host's network: the bridge may lack a way out, and a sandbox has no network in any case.
    parameters = {
        "t": tag,
        "networkmode": "host",
        "rm": "1",
        "forcerm": "1",
        "buildargs": f'{{"BASE": "{base}"}}',
    }
    log = await engine.post(
        "build",
        params=parameters,
        body=await asyncio.to_thread(_context_tar),
        timeout_seconds=_BUILD_TIMEOUT_SECONDS,
    )
    if not await is_present(engine, tag):
        raise ImageError("The sandbox image could not be built:\n" + "\n".join(log))
    size = (await engine.docker.images.inspect(tag))["Size"]
    progress(f"Built {tag}: {size // 1_000_000} MB")
    return tag


def _context_files() -> list[Path]:
    return sorted(path for path in _CONTEXT.rglob("*") if path.is_file())


def _context_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in _context_files():
            tar.add(path, arcname=str(path.relative_to(_CONTEXT)))
    return buffer.getvalue()


@asynccontextmanager
async def exclusively(lock: Path, progress: Progress) -> AsyncIterator[None]:
    """Be the only one, of all processes that use this lock file, for the length of a block."""
    await asyncio.to_thread(make_passable, lock.parent)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        told = False
        while not _locked(descriptor):
            if not told:
                progress("Another process is building the sandbox image; waiting for it")
                told = True
            await asyncio.sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
