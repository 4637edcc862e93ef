"""How soon a server is ready: `./warren serve` against bare `langgraph dev --no-reload`, in one run.

Each starts several times on what an earlier start has set up, in turns. Ready is when `/ok` is answered.
"""

import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks._figures import publish, row, setting, verdict
from benchmarks._plain import plain_server
from server.child import ChildServer, temporary_data_dir
from server.serve import PROJECT

STARTS = 7

TARGET_SECONDS = 1.5
"""How much later than bare Warren may be ready, at the median."""

_WIDTHS = (8, 8, 8, 8)


def measure() -> dict[str, Any]:
    """Start both and return the figures, in seconds."""
    seconds: dict[str, list[float]] = {"plain": [], "warren": []}
    with temporary_data_dir() as data_dir:
        command = [str(PROJECT / "warren")]
        ChildServer(data_dir, command=command).__enter__().stop()
        for _ in range(STARTS):
            started = time.perf_counter()
            with plain_server(jobs=10):
                seconds["plain"].append(time.perf_counter() - started)
            started = time.perf_counter()
            with ChildServer(data_dir, command=command):
                seconds["warren"].append(time.perf_counter() - started)
    figures = {
        name: {
            "median": round(statistics.median(own), 2),
            "least": round(min(own), 2),
            "most": round(max(own), 2),
        }
        for name, own in seconds.items()
    }
    return {
        "benchmark": "start",
        **setting("langgraph-api", "langgraph-cli"),
        "starts": STARTS,
        **figures,
        "later": round(figures["warren"]["median"] - figures["plain"]["median"], 2),
    }


def table(figures: dict[str, Any]) -> str:
    """Lay the figures out for a terminal."""
    held = verdict(held=figures["later"] <= TARGET_SECONDS)
    return "\n".join(
        [
            f"Seconds until ready, {figures['starts']} starts each, {figures['machine']['cpus']} CPUs",
            row(_WIDTHS, "server", "median", "least", "most"),
            *(row(_WIDTHS, name, *figures[name].values()) for name in ("plain", "warren")),
            f"ready {figures['later']:g} s later (target {TARGET_SECONDS:g} s): {held}",
        ]
    )


def main(json_file: Path | None = None) -> None:
    """Measure, print the table and, if asked, write the figures as JSON."""
    figures = measure()
    publish(figures, table(figures), json_file)
