"""How many audit rows one subject may cause: the first are written one by one, the rest are counted.

Without it, a client that asks for what it may not have a thousand times a second fills the disk.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

WINDOW_SECONDS = 60.0
"""How long repetitions are counted before the sum is written."""

MAX_KINDS = 500
"""Kinds of occurrences that one window of one event tells apart; the others share one row."""

MAX_DENIALS = 10
MAX_TARGETS = 30
"""Different denials, and different hosts that sandboxes asked for, that one window tells apart for one
subject; the others share one row."""

MAX_REPEATS = 30
"""Rows of any other event that one subject may cause in a window."""

DENIED = "denied"
EGRESS = "egress"
EGRESS_REFUSED = "egress_refused"

_TOLD_APART = {
    DENIED: (MAX_DENIALS, "other routes"),
    EGRESS: (MAX_TARGETS, "other hosts"),
    EGRESS_REFUSED: (MAX_TARGETS, "other hosts"),
}
"""Events whose repetitions are counted by what they are about: how many different ones, what the rest is."""


class Occurrence(NamedTuple):
    """What has happened, without when."""

    event: str
    username: str | None
    address: str | None
    details: Mapping[str, Any]
    thread_id: UUID | None = None

    @property
    def subject(self) -> str:
        """Who is behind it: a user wherever they call from, otherwise an address."""
        return f"user {self.username}" if self.username is not None else f"address {self.address}"


Kind = tuple[object, ...]


@dataclass(slots=True)
class _Count:
    summary: Occurrence
    written: int = 0
    held_back: int = 0


@dataclass(slots=True)
class Window:
    """One window. Bounded by itself: it holds `MAX_KINDS` counts of each event, and one."""

    _counts: dict[Kind, _Count] = field(default_factory=dict)
    _kinds: Counter[str] = field(default_factory=Counter)
    _different: Counter[tuple[str, str]] = field(default_factory=Counter)

    def admit(self, occurrence: Occurrence) -> bool:
        """Tell whether this occurrence gets a row of its own; otherwise it has been counted."""
        kind, limit, summary = self._classify(occurrence)
        if kind not in self._counts:
            self._counts[kind] = _Count(summary)
            self._kinds[occurrence.event] += 1
        count = self._counts[kind]
        if count.written < limit:
            count.written += 1
            return True
        count.held_back += 1
        return False

    def summaries(self) -> list[Occurrence]:
        """Return one occurrence for each kind that was held back, `repeated` saying how often."""
        return [
            count.summary._replace(details={**count.summary.details, "repeated": count.held_back})
            for count in self._counts.values()
            if count.held_back
        ]

    def _classify(self, occurrence: Occurrence) -> tuple[Kind, int, Occurrence]:
        """Return what it counts as, how many rows that kind may have, and what a summary says."""
        event, subject = occurrence.event, occurrence.subject
        # A user may have come from many addresses.
        summary = occurrence if occurrence.username is None else occurrence._replace(address=None)
        if event in _TOLD_APART:
            kind, limit = (event, subject, occurrence.thread_id, *sorted(occurrence.details.items())), 1
        else:
            kind, limit, summary = (event, subject), MAX_REPEATS, summary._replace(details={}, thread_id=None)
        if kind in self._counts:
            return kind, limit, summary
        if self._kinds[event] >= MAX_KINDS:
            return (event,), 0, Occurrence(event, None, None, {"of": "others"})
        if event in _TOLD_APART:
            most, rest = _TOLD_APART[event]
            self._different[event, subject] += 1
            if self._different[event, subject] > most:
                return (event, subject), 0, summary._replace(details={"of": rest}, thread_id=None)
        return kind, limit, summary
