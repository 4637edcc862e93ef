"""Getting a Docker engine to answer: installed and started where that is possible, explained where not."""

import asyncio
import os
import platform
import shutil
import subprocess
from pathlib import Path

from sandbox.engine import EngineInfo, engine_info
from sandbox.errors import DockerUnreachableError
from sandbox.host import Progress, apt_install, can_install, environment, run, tail

_START_SECONDS = 60
_OTHERS_START_SECONDS = 10
_POLL_SECONDS = 0.2
_LOG = Path("/var/log/warren-dockerd.log")
"""Not in the data directory: the engine outlives this process, and may outlive that."""


async def ensure_engine(progress: Progress) -> EngineInfo:
    """Return what the engine says of itself, after installing and starting one if need be.

    As root on Debian and Ubuntu `docker.io` is installed with apt and the engine is started; it keeps running
    when this process ends. An engine that DOCKER_HOST names is somebody's own and is never touched.

    Raises:
        DockerUnreachableError: no engine answers and none can be started here; the message has the fix.
        SandboxError: apt failed.
    """
    try:
        return await engine_info()
    except DockerUnreachableError as unreachable:
        if (fix := fix_by_hand()) is not None:
            raise DockerUnreachableError(
                unreachable.address, f"{unreachable.detail} {fix}".strip()
            ) from unreachable
        progress(f"Docker is not reachable at {unreachable.address}")
    if shutil.which("dockerd") is None:
        await apt_install(["docker.io"], progress)
    if await asyncio.to_thread(Path("/run/systemd/system").is_dir):
        progress("Starting Docker with systemd")
        await run(["systemctl", "start", "docker"])
        return await _answer(progress, None, None)
    progress(f"Starting dockerd; its log is {_LOG}")
    return await _answer(progress, await asyncio.to_thread(start_daemon, ["dockerd"], _LOG), _LOG)


def start_daemon(command: list[str], log: Path) -> "subprocess.Popen[bytes]":
    """Start a program that outlives this process and holds nothing of it.

    No terminal, pipe or descriptor, and of the environment only the way to the network.
    """
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - a fixed program name
            command,
            cwd="/",
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


async def _answer(
    progress: Progress, daemon: "subprocess.Popen[bytes] | None", log: Path | None
) -> EngineInfo:
    clock = asyncio.get_running_loop().time
    start = clock()
    while True:
        try:
            info = await engine_info()
        except DockerUnreachableError as error:
            # Ours ends at once when another has just been started, by the package's own script for instance.
            ended = daemon is not None and daemon.poll() is not None
            patience = _OTHERS_START_SECONDS if ended else _START_SECONDS
            if clock() - start > patience:
                said = await asyncio.to_thread(_end_of, log) if log else "See `journalctl -u docker`."
                raise DockerUnreachableError(error.address, f"it did not start. {said}") from error
        else:
            progress(f"Docker {info.version} answers at {info.address}")
            return info
        await asyncio.sleep(_POLL_SECONDS)


def _end_of(log: Path) -> str:
    with log.open("rb") as file:
        return f"The end of {log}:\n{tail(file)}"


def fix_by_hand() -> str | None:
    """Say what a person has to do so that an engine answers; None where `ensure_engine` does it."""
    if os.environ.get("DOCKER_HOST"):
        return "Check DOCKER_HOST, and the engine it names."
    if can_install():
        return None
    if platform.system() == "Darwin":
        return "Install Docker Desktop (https://docs.docker.com/desktop/) and start it."
    if shutil.which("docker") is None:
        return (
            "Install Docker; on Debian and Ubuntu with `sudo apt install docker.io`, or run Warren as root."
        )
    return (
        "Start it with `sudo systemctl start docker`. If it runs, this user may not use it: join its group "
        "(`sudo usermod -aG docker $USER`, then log in again), or use rootless Docker and set DOCKER_HOST."
    )
