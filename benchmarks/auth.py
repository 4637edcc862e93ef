"""What authentication and authorization cost: Warren against itself without them, in one run.

One user asks for a thread, then streams turns that need no tool; the two servers take turns in short
rounds. A run's start is the time to its first update: the first event after `metadata`.
"""

import asyncio
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient

from benchmarks._figures import percentiles, publish, row, setting, verdict
from benchmarks._servers import copy_of_warren
from benchmarks._turns import registered, take_turns

JOBS = 10
ROUNDS = 20
GETS_PER_ROUND = 100
TURNS_PER_ROUND = 5

GET_TARGET = 1.15
"""The most that `GET /threads/{id}` may take at the median, in times of the time without."""

START_TARGET_MS = 2.0
"""How much later a run may start at the median."""

_WIDTHS = (16, 9, 9, 9, 9)


def measure() -> dict[str, Any]:
    """Run both servers and return the figures, in milliseconds."""
    with copy_of_warren(JOBS, with_auth=True) as whole, copy_of_warren(JOBS, with_auth=False) as without:
        gets, starts = asyncio.run(_alternate(whole.url, without.url))
    figures = {name: {"get": percentiles(gets[name]), "start": percentiles(starts[name])} for name in gets}
    return {
        "benchmark": "auth",
        **setting("langgraph-api", "langgraph-runtime-inmem"),
        "gets": ROUNDS * GETS_PER_ROUND,
        "turns": ROUNDS * TURNS_PER_ROUND,
        **figures,
        "get_ratio": round(figures["warren"]["get"]["p50"] / figures["without"]["get"]["p50"], 3),
        "start_added_ms": round(figures["warren"]["start"]["p50"] - figures["without"]["start"]["p50"], 2),
    }


async def _alternate(warren_url: str, without_url: str) -> tuple[dict[str, list[float]], ...]:
    clients = {"warren": await registered(warren_url), "without": get_client(url=without_url, api_key=None)}
    threads = {name: (await client.threads.create())["thread_id"] for name, client in clients.items()}
    gets: dict[str, list[float]] = defaultdict(list)
    starts: dict[str, list[float]] = defaultdict(list)
    for warm_up in (True, *([False] * ROUNDS)):
        for name, client in clients.items():
            got = [await _get(client, threads[name]) for _ in range(GETS_PER_ROUND)]
            turns = await take_turns(client, TURNS_PER_ROUND)
            if not warm_up:
                gets[name] += got
                starts[name] += [turn.first_update for turn in turns]
    return gets, starts


async def _get(client: LangGraphClient, thread_id: str) -> float:
    started = time.perf_counter()
    await client.threads.get(thread_id)
    return time.perf_counter() - started


def table(figures: dict[str, Any]) -> str:
    """Lay the figures out for a terminal."""
    get_held = verdict(held=figures["get_ratio"] <= GET_TARGET)
    added = figures["start_added_ms"]
    start_held = verdict(held=added <= START_TARGET_MS)
    return "\n".join(
        [
            f"Cost of authentication and authorization, ms, {figures['machine']['cpus']} CPUs",
            row(_WIDTHS, "server", "get p50", "get p95", "start p50", "start p95"),
            *(
                row(_WIDTHS, title, *figures[name]["get"].values(), *figures[name]["start"].values())
                for name, title in (("without", "without"), ("warren", "with"))
            ),
            f"GET /threads/{{id}} takes {figures['get_ratio']:g}x (target {GET_TARGET:g}x): {get_held}",
            f"a run starts {added:g} ms later (target {START_TARGET_MS:g} ms): {start_held}",
        ]
    )


def main(json_file: Path | None = None) -> None:
    """Measure, print the table and, if asked, write the figures as JSON."""
    figures = measure()
    publish(figures, table(figures), json_file)
