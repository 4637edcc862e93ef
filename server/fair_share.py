"""What each user may take of the queue, so that nobody's runs keep somebody else's waiting.

A run is whose the server has stamped into it; one that it has not stamped is nobody's, and not limited.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from server.workers import Workers

ACTIVE = ("pending", "running")

MAX_RUNS = 50
"""Runs of one user that wait or are under way."""

MAX_ENDED_RUNS_OF_A_USER = 100
MAX_ENDED_RUNS = 5_000
"""Ended runs whose rows are kept, to be joined or listed. What they did is in their thread's state."""

Run = dict[str, Any]


def share(jobs: int, wanted: int | None) -> int:
    """Return how many of `jobs` workers one user may occupy: half, or as `wanted`, but never the last."""
    return max(1, min(wanted or jobs // 2, jobs - 1))


def owner_of(run: Mapping[str, Any]) -> str | None:
    """Return whose a run is."""
    configurable = run["kwargs"].get("config", {}).get("configurable", {})
    owner: str | None = configurable.get("langgraph_auth_user_id")
    return owner


def active_runs_of(owner: str, runs: Iterable[Run]) -> int:
    """Count a user's runs that have not ended."""
    return sum(run["status"] in ACTIVE and owner_of(run) == owner for run in runs)


def startable(
    runs: Iterable[Run], workers: Workers, most_each: int, is_live: Callable[[UUID], bool], now: datetime
) -> Iterator[Run]:
    """Yield the runs to start, in their order, each counted as started when the next one is asked for.

    First come those of whoever has the fewest under way, a user's own in the order in which they were made.
    One pass over the rows, whatever waits: another, smaller one follows for what is found.

    Args:
        runs: all rows.
        workers: who is at work.
        most_each: runs of one user under way at once.
        is_live: tells whether a thread still exists. A run without one ends here: it could never start.
        now: runs made for a later time are left alone.
    """
    under_way = workers.of_owners()
    busy_threads: set[UUID] = set()
    waiting: list[Run] = []
    for run in runs:
        status = run["status"]
        if status == "running":
            busy_threads.add(run["thread_id"])
            if run["run_id"] not in workers:
                under_way[owner_of(run)] += 1
        elif status == "pending" and run["created_at"] <= now and run["run_id"] not in workers:
            waiting.append(run)
    lines: defaultdict[str | None, deque[Run]] = defaultdict(deque)
    for run in sorted(waiting, key=_made_at):
        if run["thread_id"] not in busy_threads:
            lines[owner_of(run)].append(run)
    while able := [line for owner, line in lines.items() if line and _may_start(owner, under_way, most_each)]:
        line = min(able, key=lambda line: (under_way[owner_of(line[0])], _made_at(line[0])))
        run = line.popleft()
        if run["status"] != "pending" or run["thread_id"] in busy_threads:
            continue
        if not is_live(run["thread_id"]):
            run["status"] = "error"
            continue
        yield run
        busy_threads.add(run["thread_id"])
        under_way[owner_of(run)] += 1


def _may_start(owner: str | None, under_way: Counter[str | None], most_each: int) -> bool:
    return owner is None or under_way[owner] < most_each


def _made_at(run: Run) -> datetime:
    made_at: datetime = run["created_at"]
    return made_at


def ended_too_long_ago(runs: Sequence[Run]) -> list[Run]:
    """Return the rows of ended runs that are more than are kept, of each user and in all: the oldest."""
    ended = [run for run in reversed(runs) if run["status"] not in ACTIVE]
    of_owners: Counter[str | None] = Counter()
    surplus: list[Run] = []
    kept = 0
    for run in ended:
        owner = owner_of(run)
        of_owners[owner] += 1
        if of_owners[owner] > MAX_ENDED_RUNS_OF_A_USER or kept >= MAX_ENDED_RUNS:
            surplus.append(run)
        else:
            kept += 1
    return surplus
