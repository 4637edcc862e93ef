"""An engine of a test's own, which it may end as it likes, with an image just enough for a sandbox."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiodocker
import pytest

from sandbox.engine import connected
from sandbox.image import ensure_image, find_image
from sandbox.install import ensure_engine
from sandbox.settings import get_settings

IMAGE = "warren-test:tiny"

_ARCHIVE = "/tmp/image.tar"
_PACK = f"""\
cd / && library=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
programs="$(command -v python3 sleep touch cat) /bin/sh"
{{ for it in $programs; do echo $it; done; ldd $programs $library/lib-dynload/*.so | grep -o '/[^ :]*'; }} |
    sort -u > /tmp/files
find $library -mindepth 1 -maxdepth 1 -not -name lib-dynload >> /tmp/files
tar -chf {_ARCHIVE} --hard-dereference --exclude=__pycache__ --exclude=test --exclude=ensurepip -T /tmp/files
"""


class PrivateEngine:
    """A dockerd with its own socket, files and network namespace, so that it touches nothing of another's."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.address = f"unix://{directory}/s"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it unless it runs, and wait until it answers."""
        if self._process is not None:
            return
        # Where nobody reaps orphans, it would take the containerd of one that was killed for a living one.
        (self._directory / "e" / "containerd" / "containerd.pid").unlink(missing_ok=True)
        self._process = await asyncio.to_thread(self._spawn)
        async with asyncio.timeout(60), aiodocker.Docker(self.address) as docker:
            while True:
                assert self._process.poll() is None, (self._directory / "log").read_text()
                try:
                    await docker.version()
                except (aiodocker.DockerError, OSError):
                    await asyncio.sleep(0.05)
                else:
                    return

    async def end(self, number: int) -> None:
        """End it with a signal, and wait until it is gone."""
        if self._process is not None:
            self._process.send_signal(number)
            await asyncio.to_thread(self._process.wait, 60)
            self._process = None

    def unmount(self) -> None:
        """Undo what each start has done, and an end does not."""
        unmount = ["umount", self._directory / "d"]
        while subprocess.run(unmount, check=False, capture_output=True).returncode == 0:
            pass

    def _spawn(self) -> subprocess.Popen[bytes]:
        with (self._directory / "log").open("ab") as log:
            return subprocess.Popen(
                [
                    *("unshare", "--net", "dockerd", "--bridge=none", "--iptables=false"),
                    f"--host={self.address}",
                    f"--data-root={self._directory}/d",
                    f"--exec-root={self._directory}/e",
                    f"--pidfile={self._directory}/p",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def why_not() -> str | None:
    """Say why there can be no private engine here."""
    if os.geteuid() != 0:
        return "only root can start an engine"
    if missing := [program for program in ("dockerd", "unshare") if shutil.which(program) is None]:
        return f"there is no {missing[0]} here"
    return None


@asynccontextmanager
async def private_engine() -> AsyncIterator[PrivateEngine]:
    """Start a private engine, and use it for sandboxes within the block. It has a part of the usual image."""
    await ensure_engine(print)
    await ensure_image(print)
    root_file_system = await _pack()
    # Paths of sockets must be short.
    with tempfile.TemporaryDirectory(prefix="wd", ignore_cleanup_errors=True) as directory:
        engine = PrivateEngine(Path(directory))
        await engine.start()
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("DOCKER_HOST", engine.address)
                patch.setenv("SANDBOX_IMAGE", IMAGE)
                get_settings.cache_clear()
                await _import(root_file_system)
                yield engine
        finally:
            get_settings.cache_clear()
            await engine.start()
            await _remove_containers(engine)
            await engine.end(signal.SIGTERM)
            await asyncio.to_thread(engine.unmount)


async def _pack() -> bytes:
    async with connected() as engine:
        image = await find_image(engine)
        container = await engine.docker.containers.create(
            {"Image": image, "Entrypoint": ["sh", "-ec", _PACK], "NetworkDisabled": True, "User": "0:0"}
        )
        try:
            await container.start()
            assert (await container.wait())["StatusCode"] == 0, await container.log(stdout=True, stderr=True)
            archive = await container.get_archive(_ARCHIVE)
            packed = archive.extractfile("image.tar")
            assert packed is not None
            return packed.read()
        finally:
            await container.delete(force=True)


async def _import(root_file_system: bytes) -> None:
    repository, _, tag = IMAGE.partition(":")
    async with connected() as engine:
        await engine.post(
            "images/create",
            params={"fromSrc": "-", "repo": repository, "tag": tag},
            body=root_file_system,
            timeout_seconds=60,
        )


async def _remove_containers(engine: PrivateEngine) -> None:
    async with aiodocker.Docker(engine.address) as docker:
        for container in await docker.containers.list(all=True):
            await container.delete(force=True)
