"""How long a turn takes: Warren against bare `langgraph dev` with the same graph, in one run.

Each user streams turns that need no tool, one after the other, on a thread of their own. The two servers take
turns in short rounds, so that what else the machine does hits both. "First update" is the first event after
`metadata`, "turn" the end of the stream, both from before the request.
"""

import asyncio
from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import Any

from langgraph_sdk import get_client

from benchmarks._figures import percentiles, publish, row, setting, verdict
from benchmarks._plain import plain_server
from benchmarks._servers import warren
from benchmarks._turns import Turn, registered, take_turns

JOBS = 10
TURNS_PER_ROUND = 5
ROUNDS = {1: 8, 8: 3}
"""Rounds for a number of users at a time: 40 and 120 turns a server."""

TARGETS = {1: 15, 8: 5}
"""How many times sooner than bare the first update comes, at the median."""

PACKAGES = ("langgraph-api", "langgraph-runtime-inmem", "deepagents")

_WIDTHS = (5, 8, 7, 10, 10, 10, 10)


def measure() -> dict[str, Any]:
    """Run both servers and return the figures, in milliseconds."""
    with warren(JOBS) as ours, plain_server(JOBS) as plain_url:
        turns = asyncio.run(_alternate(ours.url, plain_url))
    return {
        "benchmark": "turns",
        "jobs": JOBS,
        **setting(*PACKAGES),
        "loads": [_load(users, turns[users, "warren"], turns[users, "plain"]) for users in ROUNDS],
    }


async def _alternate(warren_url: str, plain_url: str) -> dict[tuple[int, str], list[Turn]]:
    """Give each number of users and each server its rounds; return their turns."""
    clients = {
        "plain": [get_client(url=plain_url, api_key=None) for _ in range(max(ROUNDS))],
        "warren": [await registered(warren_url) for _ in range(max(ROUNDS))],
    }
    for own in clients.values():
        await asyncio.gather(*(take_turns(client, 1) for client in own))
    turns: dict[tuple[int, str], list[Turn]] = defaultdict(list)
    for users, rounds in ROUNDS.items():
        for _ in range(rounds):
            for name, own in clients.items():
                of_each = (take_turns(client, TURNS_PER_ROUND) for client in own[:users])
                turns[users, name] += chain.from_iterable(await asyncio.gather(*of_each))
    return turns


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
        "first_update": percentiles([turn.first_update for turn in turns]),
        "turn": percentiles([turn.whole for turn in turns]),
    }


def table(figures: dict[str, Any]) -> str:
    """Lay the figures out for a terminal."""
    lines = [
        f"Turns of the rehearsal model, ms, {figures['jobs']} jobs, {figures['machine']['cpus']} CPUs",
        row(_WIDTHS, "users", "server", "turns", "first p50", "first p95", "turn p50", "turn p95"),
    ]
    for load in figures["loads"]:
        for name in ("plain", "warren"):
            own = load[name]
            lines.append(row(_WIDTHS, load["users"], name, own["turns"], *_cells(own)))
        times_sooner = [f"{times:g}x" for times in _cells(load["times_sooner"])]
        lines.append(row(_WIDTHS, "", "sooner", "", *times_sooner))
        reached = load["times_sooner"]["first_update"]["p50"]
        held = verdict(held=reached >= load["target"])
        lines.append(f"      target: first update p50 at least {load['target']}x sooner: {held}")
    return "\n".join(lines)


def _cells(figures: dict[str, Any]) -> list[float]:
    return [figures[measure][rank] for measure in ("first_update", "turn") for rank in ("p50", "p95")]


def main(json_file: Path | None = None) -> None:
    """Measure, print the table and, if asked, write the figures as JSON."""
    figures = measure()
    publish(figures, table(figures), json_file)
