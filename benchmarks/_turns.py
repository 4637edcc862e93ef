"""Turns of the rehearsal model, timed as a client sees them."""

import secrets
import time
from dataclasses import dataclass
from typing import Any

import httpx
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient

INPUT: dict[str, Any] = {"messages": [{"role": "user", "content": "recall"}]}
"""A line of the rehearsal model's that calls no tool."""


@dataclass(frozen=True)
class Turn:
    """Seconds from before the request to the first event after `metadata`, and to the end of the stream."""

    first_update: float
    whole: float


async def registered(url: str) -> LangGraphClient:
    """Make an account and return its client."""
    account = {"username": f"bench-{secrets.token_hex(4)}", "password": secrets.token_urlsafe()}
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as http:
        (await http.post("/api/auth/register", json=account)).raise_for_status()
        login = (await http.post("/api/auth/login", json=account)).raise_for_status()
    token = login.json()["access_token"]
    return get_client(url=url, api_key=None, headers={"Authorization": f"Bearer {token}"})


async def take_turns(client: LangGraphClient, turns: int) -> list[Turn]:
    """Take turns one after the other on a thread of their own.

    Raises:
        RuntimeError: one failed.
    """
    thread_id = (await client.threads.create())["thread_id"]
    return [await _turn(client, thread_id) for _ in range(turns)]


async def _turn(client: LangGraphClient, thread_id: str) -> Turn:
    first_update = 0.0
    answered = False
    started = time.perf_counter()
    async for part in client.runs.stream(
        thread_id,
        "agent",
        input=INPUT,
        stream_mode=["messages-tuple", "updates"],
    ):
        if part.event == "metadata":
            continue
        first_update = first_update or time.perf_counter() - started
        if part.event == "error":
            raise RuntimeError(f"The turn failed: {part.data}")
        answered = answered or (part.event == "updates" and "model" in part.data)
    whole = time.perf_counter() - started
    if not answered:
        raise RuntimeError("The turn ended without an answer of the model's.")
    return Turn(first_update, whole)
