"""Reaching an engine, starting one, and the image that sandboxes are made of."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from sandbox.engine import connected, docker_address, engine_info
from sandbox.errors import DockerUnreachableError, ImageError
from sandbox.image import ensure_image, exclusively, find_image
from sandbox.install import ensure_engine
from sandbox.settings import get_settings
from tests.integration.sandboxes import in_run, sandboxes


@asynccontextmanager
async def forwarded_to(socket: str) -> AsyncIterator[int]:
    """Offer a Unix socket on a TCP port of loopback."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine_reader, engine_writer = await asyncio.open_unix_connection(socket)
        await asyncio.gather(copy(reader, engine_writer), copy(engine_reader, writer), return_exceptions=True)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_an_engine_on_tcp_works_as_one_on_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ensure_engine(print)
    async with forwarded_to(docker_address().removeprefix("unix://")) as port:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{port}")
        assert (await engine_info()).address == f"tcp://127.0.0.1:{port}"
        async with sandboxes(tmp_path) as house:
            session = house.thread("alice")
            with in_run(session):
                [answer] = await house.backend.aupload_files([("/workspace/x", b"x" * 300_000)])
                assert answer.error is None
            assert await house.run(session, "wc -c < x") == "300000\n"


@pytest.mark.parametrize(
    "address", ["unix:///nonexistent/docker.sock", "tcp://127.0.0.1:1", "ssh://host", "nonsense", "unix://"]
)
async def test_an_engine_that_docker_host_names_is_never_installed_or_started(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    said: list[str] = []
    with pytest.raises(DockerUnreachableError) as raised:
        await ensure_engine(said.append)
    assert raised.value.address == address
    assert said == []


def test_an_engine_that_is_started_outlives_its_starter_and_holds_nothing_of_it(tmp_path: Path) -> None:
    """CI waits for the end of a job's output: an engine that inherited the pipe would hold it up for ever."""
    log = tmp_path / "daemon.log"
    script = (
        "import sys; from pathlib import Path; from sandbox.install import start_daemon;"
        "sys.stdout.write(str(start_daemon(['sleep', '60'], Path(sys.argv[1])).pid))"
    )
    passing = {"TMPDIR": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "SECRET_KEY": "of this shell"}
    way_out = {"PATH": os.environ["PATH"], "https_proxy": "http://127.0.0.1:1"}
    starter = subprocess.run(
        [sys.executable, "-c", script, str(log)],
        env={**passing, **way_out},
        stdout=subprocess.PIPE,
        check=True,
        timeout=30,
    )
    daemon = int(starter.stdout)
    try:
        held = {str(entry.readlink()) for entry in Path(f"/proc/{daemon}/fd").iterdir()}
        assert held == {"/dev/null", str(log)}
        assert os.getsid(daemon) == daemon
        assert Path(f"/proc/{daemon}/cwd").readlink() == Path("/")
        seen = Path(f"/proc/{daemon}/environ").read_text().removesuffix("\0").split("\0")
        assert set(seen) == {f"{name}={value}" for name, value in way_out.items()}
    finally:
        os.kill(daemon, signal.SIGKILL)


async def test_an_image_that_is_named_but_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    await ensure_engine(print)
    monkeypatch.setenv("SANDBOX_IMAGE", "warren-test:absent")
    get_settings.cache_clear()
    try:
        with pytest.raises(ImageError):
            await ensure_image(print)
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()


async def test_the_image_is_built_once(tmp_path: Path) -> None:
    async with sandboxes(tmp_path):
        said: list[str] = []
        images = await asyncio.gather(ensure_image(said.append), ensure_image(said.append))
        async with connected() as engine:
            assert set(images) == {await find_image(engine)}
        assert said == []


async def test_whoever_needs_the_image_at_the_same_time_waits_and_says_so(tmp_path: Path) -> None:
    lock = tmp_path / "new" / "image.lock"
    told: list[str] = []

    async def second_builder() -> None:
        async with exclusively(lock, told.append):
            pass

    async with exclusively(lock, told.append):
        waiting = asyncio.create_task(second_builder())
        while not told:
            await asyncio.sleep(0.01)
        assert not waiting.done()
    await waiting
    assert len(told) == 1


async def test_nothing_blocks_the_event_loop(tmp_path: Path) -> None:
    async with sandboxes(tmp_path) as house:
        session = house.thread("alice")
        with blockbuster_ctx("sandbox"), in_run(session):
            assert (await house.backend.aexecute("echo hi")).output == "hi\n"
            assert (await house.backend.awrite("/workspace/x", "y")).error is None
            assert (await house.backend.adownload_files(["/workspace/x"]))[0].content == b"y"
            assert (await house.backend.aexecute("sleep 9", timeout=1)).exit_code == 124
            await house.containers.remove(session)
            await house.containers.reconcile()
            assert await ensure_image(print)
