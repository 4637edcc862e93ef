"""A server whose authentication is broken does not start, and one whose door is open notices.

While its database is away it lets nobody in.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from server.child import ChildServer, clean_environment, free_port, temporary_data_dir
from server.selfcheck import OpenDoorError, check_that_doors_are_shut
from server.serve import PROJECT
from storage.embedded import EmbeddedPostgres

PACKAGES = ("agent", "auth", "sandbox", "server", "storage")


@pytest.fixture
def copy() -> Iterator[Path]:
    """Give a copy of the project to break."""
    with temporary_data_dir() as directory:
        for package in PACKAGES:
            shutil.copytree(PROJECT / package, directory / package)
        shutil.copy(PROJECT / "langgraph.json", directory)
        yield directory


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    with temporary_data_dir() as path:
        yield path


def serve(project: Path, data_dir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", "serve", "--port", str(free_port()), "--data-dir", str(data_dir)],
        cwd=project,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("auth/handlers.py", "import nothing_of_that_name\n", "nothing_of_that_name"),
        ("auth/handlers.py", "from langgraph_sdk import Auth\nauth = Auth()\n", "authenticat"),
        ("server/app.py", "raise RuntimeError('no app')\n", "no app"),
    ],
)
def test_broken_authentication_stops_the_start(
    copy: Path, data_dir: Path, file: str, text: str, told: str
) -> None:
    (copy / file).write_text(text)
    ended = serve(copy, data_dir)
    assert ended.returncode != 0
    assert told in ended.stdout + ended.stderr


def test_authentication_left_out_stops_the_start(copy: Path, data_dir: Path) -> None:
    config = (copy / "langgraph.json").read_text()
    (copy / "langgraph.json").write_text(config.replace("./auth/handlers.py:auth", "./open.py:auth"))
    (copy / "open.py").write_text(
        "from langgraph_sdk import Auth\nauth = Auth()\n"
        "@auth.authenticate\nasync def anyone(headers):\n    return {'identity': 'anyone'}\n"
    )
    ended = serve(copy, data_dir)
    assert ended.returncode != 0
    assert "OpenDoorError" in ended.stdout + ended.stderr


@pytest.mark.parametrize("status", [200, 403, 404, 500])
async def test_the_self_check_takes_only_401_for_an_answer(status: int) -> None:
    async def answer(*_: object) -> JSONResponse:
        return JSONResponse({}, status)

    with pytest.raises(OpenDoorError):
        await check_that_doors_are_shut(
            Starlette(routes=[Route("/threads/search", answer, methods=["POST"])])
        )


async def test_the_self_check_notices_that_any_token_will_do() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        has_token = any(name == b"authorization" for name, _ in scope["headers"])
        await JSONResponse({}, 200 if has_token else 401)(scope, receive, send)

    with pytest.raises(OpenDoorError):
        await check_that_doors_are_shut(app)


def test_nobody_is_let_in_while_the_database_is_away_and_all_is_well_when_it_is_back(data_dir: Path) -> None:
    with temporary_data_dir() as elsewhere:
        database = EmbeddedPostgres(elsewhere)
        server = ChildServer(data_dir, {"DATABASE_URL": database.acquire()})
        with server, httpx.Client(base_url=server.url, timeout=60) as http:
            account = {"username": "alice", "password": "correct horse battery staple"}
            http.post("/api/auth/register", json=account).raise_for_status()
            token = http.post("/api/auth/login", json=account).raise_for_status().json()["access_token"]
            headers = {"authorization": f"Bearer {token}"}
            made = http.post("/threads", json={}, headers=headers).raise_for_status()
            thread = f"/threads/{made.json()['thread_id']}"

            def told(method: str, path: str, body: object) -> httpx.Response:
                return http.request(method, path, json=body, headers=headers)

            told("GET", thread, None)  # who asks is remembered for a second
            database.release()
            attempts = [
                ("POST", f"{thread}/runs", {"assistant_id": "agent"}),
                ("POST", "/api/auth/logout-everywhere", None),
                ("POST", "/api/auth/login", account),
            ]
            with ThreadPoolExecutor(len(attempts)) as at_once:
                answers = at_once.map(lambda attempt: told(*attempt), attempts)
            assert [answer.status_code for answer in answers] == [503] * len(attempts)
            assert told("GET", thread, None).status_code == 503
            assert http.post("/threads/search", json={}).status_code == 401
            database.acquire()
            deadline = time.monotonic() + 30
            while told("GET", thread, None).status_code != 200:
                assert time.monotonic() < deadline
            server.stop()
        database.release()
