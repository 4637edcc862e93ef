"""Fixtures: one real server for the whole run, on a temporary data directory, always ended."""

import asyncio
import os
from collections.abc import AsyncIterator
from itertools import count

import httpx
import pytest
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient

import agent.settings
import auth.secret
import auth.settings
import sandbox.settings
import server.settings
import storage.settings
from server.child import (
    ChildServer,
    adopt_clean_environment,
    remove_containers,
    temporary_data_dir,
)
from server.serve import prepare_environment, set_up
from storage.database import close_pool, get_pool

PASSWORD = "correct horse battery staple"
MANY = "100000"
MANY_ATTEMPTS = {
    "REGISTRATIONS_PER_HOUR": MANY,
    "LOGIN_FAILURES_PER_ADDRESS": MANY,
    "LOGIN_FAILURES_PER_ACCOUNT": MANY,
}
"""All tests come from one address. What the defaults do is tested where the limits are the subject."""
_names = count()


def pytest_configure() -> None:
    """Keep what a developer has set away from the tests: their database above all."""
    adopt_clean_environment()
    # Whatever proxy the environment names is not for this machine.
    os.environ["no_proxy"] = "localhost,127.0.0.1"


def _forget_settings() -> None:
    """Have this process read its settings again: some may have been read for another data directory."""
    for module in (agent.settings, auth.settings, sandbox.settings, server.settings, storage.settings):
        module.get_settings.cache_clear()
    auth.secret.signing_key.cache_clear()
    auth.secret.previous_keys.cache_clear()


@pytest.fixture(scope="session", name="server")
async def _server() -> AsyncIterator[ChildServer]:
    with temporary_data_dir() as data_dir:
        _forget_settings()
        prepare_environment(data_dir)
        await asyncio.to_thread(set_up)
        try:
            with ChildServer(data_dir, MANY_ATTEMPTS) as child:
                yield child
        finally:
            await remove_containers(data_dir)


@pytest.fixture(scope="module")
async def database(server: ChildServer) -> AsyncIterator[None]:
    """Open the server's database, used by this process as another one of its processes would."""
    await get_pool()
    yield
    await close_pool()


@pytest.fixture
async def http(server: ChildServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        yield client


class User:
    """A registered user: a name, a token, and the stock client with that token."""

    def __init__(self, server: ChildServer, name: str, token: str) -> None:
        self.name = name
        self.token = token
        self.headers = {"Authorization": f"Bearer {token}"}
        self.client: LangGraphClient = get_client(url=server.url, headers=self.headers)

    async def thread(self) -> str:
        thread_id: str = (await self.client.threads.create(graph_id="agent"))["thread_id"]
        return thread_id


async def new_user(server: ChildServer, name: str | None = None) -> User:
    name = name or f"user{next(_names)}"
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        credentials = {"username": name, "password": PASSWORD}
        (await http.post("/api/auth/register", json=credentials)).raise_for_status()
        login = (await http.post("/api/auth/login", json=credentials)).raise_for_status()
    return User(server, name, login.json()["access_token"])


@pytest.fixture(scope="session")
async def alice(server: ChildServer) -> User:
    return await new_user(server, "alice")


@pytest.fixture(scope="session")
async def bob(server: ChildServer) -> User:
    return await new_user(server, "bob")
