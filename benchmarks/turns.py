"""How long a turn takes: Warren against bare `langgraph dev` with the same graph, in one run.

Each user streams turns that need no tool, one after the other, on a thread of their own. The two servers take
turns in short rounds, so that what else the machine does hits both. "First update" is the first event after
`metadata`, "turn" the end of the stream, both from before the request.
"""

import argparse
import asyncio
import json
import math
import os
import platform
import secrets
import time
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient

from benchmarks._plain import plain_server
from server.child import ChildServer, temporary_data_dir

JOBS = 10
TURNS_PER_ROUND = 5
ROUNDS = {1: 8, 8: 3}
"""Rounds for a number of users at a time: 40 and 120 turns a server."""

TARGETS = {1: 15, 8: 5}
"""How many times sooner than bare the first update comes, at the median."""

INPUT: dict[str, Any] = {"messages": [{"role": "user", "content": "recall"}]}
"""A line of the rehearsal model's that calls no tool."""

DEFAULTS = {"MODEL": "", "DATABASE_URL": ""}
"""Empty means unset, whatever `.env` says: the rehearsal model, the embedded Postgres."""

PACKAGES = ("langgraph-api", "langgraph-runtime-inmem", "deepagents")

_WIDTHS = (5, 8, 7, 10, 10, 10, 10)


@dataclass(frozen=True)
class Turn:
    """Seconds from before the request to the first event after `metadata`, and to the end of the stream."""

    first_update: float
    whole: float


def measure() -> dict[str, Any]:
    """Run both servers and return the figures, in milliseconds."""
    with (
        temporary_data_dir() as data_dir,
        ChildServer(data_dir, DEFAULTS, JOBS) as warren,
        plain_server(JOBS) as plain_url,
    ):
        turns = asyncio.run(_alternate(warren.url, plain_url))
    return {
        "benchmark": "turns",
        "jobs": JOBS,
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in PACKAGES},
        "loads": [_load(users, turns[users, "warren"], turns[users, "plain"]) for users in ROUNDS],
    }


async def _alternate(warren_url: str, plain_url: str) -> dict[tuple[int, str], list[Turn]]:
    """Give each number of users and each server its rounds; return their turns."""
    clients = {
        "plain": [get_client(url=plain_url, api_key=None) for _ in range(max(ROUNDS))],
        "warren": [await _registered(warren_url) for _ in range(max(ROUNDS))],
    }
    for own in clients.values():
        await asyncio.gather(*(_round(client, turns=1) for client in own))
    turns: dict[tuple[int, str], list[Turn]] = defaultdict(list)
    for users, rounds in ROUNDS.items():
        for _ in range(rounds):
            for name, own in clients.items():
                of_all = await asyncio.gather(*(_round(client, TURNS_PER_ROUND) for client in own[:users]))
                turns[users, name] += chain.from_iterable(of_all)
    return turns


async def _registered(url: str) -> LangGraphClient:
    """Make an account and return its client."""
    account = {"username": f"bench-{secrets.token_hex(4)}", "password": secrets.token_urlsafe()}
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        (await http.post("/api/auth/register", json=account)).raise_for_status()
        login = (await http.post("/api/auth/login", json=account)).raise_for_status()
    token = login.json()["access_token"]
    return get_client(url=url, api_key=None, headers={"Authorization": f"Bearer {token}"})


async def _round(client: LangGraphClient, turns: int) -> list[Turn]:
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


def _load(users: int, ours: list[Turn], bare: list[Turn]) -> dict[str, Any]:
    figures = {"warren": _figures(ours), "plain": _figures(bare)}
    return {
        "users": users,
        **figures,
        "times_sooner": {
            measure: {
                rank: round(figures["plain"][measure][rank] / figures["warren"][measure][rank], 1)
                for rank in ("p50", "p95")
            }
            for measure in ("first_update", "turn")
        },
        "target": TARGETS[users],
    }


def _figures(turns: list[Turn]) -> dict[str, Any]:
    return {
        "turns": len(turns),
        "first_update": _percentiles([turn.first_update for turn in turns]),
        "turn": _percentiles([turn.whole for turn in turns]),
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    """Return nearest-rank percentiles in milliseconds."""
    ordered = sorted(seconds)
    return {f"p{p}": round(1000 * ordered[math.ceil(len(ordered) * p / 100) - 1], 1) for p in (50, 95)}


def table(figures: dict[str, Any]) -> str:
    """Lay the figures out for a terminal."""
    lines = [
        f"Turns of the rehearsal model, ms, {figures['jobs']} jobs, {figures['machine']['cpus']} CPUs",
        _row("users", "server", "turns", "first p50", "first p95", "turn p50", "turn p95"),
    ]
    for load in figures["loads"]:
        for name in ("plain", "warren"):
            own = load[name]
            lines.append(_row(load["users"], name, own["turns"], *_cells(own)))
        lines.append(_row("", "sooner", "", *(f"{times:g}x" for times in _cells(load["times_sooner"]))))
        reached = load["times_sooner"]["first_update"]["p50"]
        verdict = "held" if reached >= load["target"] else "MISSED"
        lines.append(f"      target: first update p50 at least {load['target']}x sooner: {verdict}")
    return "\n".join(lines)


def _cells(figures: dict[str, Any]) -> list[float]:
    return [figures[measure][rank] for measure in ("first_update", "turn") for rank in ("p50", "p95")]


def _row(*cells: object) -> str:
    return "  ".join(str(cell).rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True))


def main(json_file: Path | None = None) -> None:
    """Measure, print the table and, if asked, write the figures as JSON."""
    figures = measure()
    print(table(figures))
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    main(parser.parse_args().json)
