"""The woken queue inside a real `langgraph dev`, installed by a custom app's lifespan as Warren does it."""

import asyncio
import json
import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient

from server.queue import POLL_SECONDS

CONFIG = {"dependencies": ["."], "graphs": {"g": "./graph.py:graph"}, "http": {"app": "./app.py:app"}}

APP = """
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from server.queue import install

@asynccontextmanager
async def lifespan(app):
    assert install()
    yield

app = Starlette(lifespan=lifespan)
"""

GRAPH = """
import asyncio
from operator import add
from typing import Annotated, TypedDict
from langgraph.config import get_stream_writer
from langgraph.graph import StateGraph

class State(TypedDict, total=False):
    seconds: float
    said: Annotated[list[str], add]

async def say(state):
    get_stream_writer()("asleep")
    try:
        await asyncio.sleep(state["seconds"])
    except asyncio.CancelledError:
        await asyncio.sleep(0.2)
        print("unwound", flush=True)
        raise
    print("said", flush=True)
    return {"said": ["hi"]}

graph = StateGraph(State).add_node("say", say).set_entry_point("say").compile()
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "server.log"


@pytest_asyncio.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory, log: Path) -> AsyncIterator[LangGraphClient]:
    project = tmp_path_factory.mktemp("project")
    for name, text in {"langgraph.json": json.dumps(CONFIG), "app.py": APP, "graph.py": GRAPH}.items():
        (project / name).write_text(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = "dev --no-reload --no-browser --n-jobs-per-worker 10 --port"
    with log.open("wb") as output:
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "langgraph_cli", *command.split(), str(port)),
            cwd=project,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=output,
            stderr=output,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        await until_ready(url, server)
        yield get_client(url=url, api_key=None)
    finally:
        if server.returncode is None:
            server.send_signal(signal.SIGINT)
        await server.wait()


async def until_ready(url: str, server: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(60), httpx.AsyncClient() as http:
        while server.returncode is None:
            try:
                if (await http.get(f"{url}/ok")).is_success:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.1)
    pytest.fail("the server ended before it was ready")


async def new_thread(client: LangGraphClient) -> str:
    thread_id: str = (await client.threads.create())["thread_id"]
    return thread_id


async def seconds_to_first_update(client: LangGraphClient, thread_id: str) -> float:
    started = time.perf_counter()
    stream = client.runs.stream(thread_id, "g", input={"seconds": 0}, stream_mode="updates")
    first = 0.0
    async for part in stream:
        if part.event != "metadata":
            assert part.event == "updates", part
            first = first or time.perf_counter() - started
    assert first
    return first


async def test_a_run_on_an_idle_server_starts_at_once(client: LangGraphClient) -> None:
    thread_id = await new_thread(client)
    await seconds_to_first_update(client, thread_id)
    seconds = [await seconds_to_first_update(client, thread_id) for _ in range(9)]
    assert statistics.median(seconds) < POLL_SECONDS / 3


@pytest.mark.parametrize("strategy", ["enqueue", "interrupt", "rollback"])
async def test_a_run_that_replaces_another_starts_after_that_one_has_unwound(
    client: LangGraphClient, log: Path, strategy: str
) -> None:
    thread_id = await new_thread(client)
    replaced = await start_sleeping(client, thread_id)
    before = len(lines(log))
    if strategy == "enqueue":
        await client.runs.cancel(thread_id, replaced)
    await client.runs.wait(thread_id, "g", input={"seconds": 0}, multitask_strategy=strategy)
    assert [line for line in lines(log)[before:] if line in {"unwound", "said"}] == ["unwound", "said"]
    assert (await client.threads.get(thread_id))["status"] == "idle"


async def start_sleeping(client: LangGraphClient, thread_id: str) -> str:
    """Start a run that sleeps for a minute; return its id once it does."""
    run_id = ""
    async for part in client.runs.stream(
        thread_id, "g", input={"seconds": 60}, stream_mode="custom", on_disconnect="continue"
    ):
        if part.event == "metadata":
            run_id = part.data["run_id"]
        else:
            assert part.data == "asleep", part
            break
    return run_id


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines()
