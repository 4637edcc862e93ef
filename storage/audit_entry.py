"""One entry of the audit log: bounded, harmless in a log, and such that Postgres takes it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any
from uuid import UUID

MAX_TEXT = 1_000
"""Characters of one string of an entry."""

_MAX_NAME = 100
_MAX_ITEMS = 30
_MAX_DEPTH = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. `thread_id` is set where it is about a thread; `details` depend on the event."""

    id: UUID
    at: datetime
    event: str
    username: str | None
    address: str | None
    thread_id: UUID | None
    details: Mapping[str, Any]


def as_line(entry: Entry) -> str:
    """Write an entry as one line of JSON, in ASCII.

    No newline, escape sequence or direction mark of a value reaches the log or terminal that shows it.
    """
    return json.dumps(as_json(entry)).replace("\x7f", "\\u007f")


def as_json(entry: Entry) -> dict[str, Any]:
    """Return an entry as an object that JSON and jsonb take."""
    return {
        "id": str(entry.id),
        "at": entry.at.isoformat(),
        "event": entry.event,
        "username": entry.username,
        "address": entry.address,
        "thread_id": str(entry.thread_id) if entry.thread_id else None,
        "details": entry.details,
    }


def clean(entry: Entry) -> Entry:
    """Cut what is too long or too deep, and replace what Postgres does not take."""
    return Entry(
        entry.id,
        entry.at,
        _clean_text(entry.event, _MAX_NAME),
        None if entry.username is None else _clean_text(entry.username, _MAX_NAME),
        None if entry.address is None else _clean_text(entry.address, _MAX_NAME),
        entry.thread_id,
        {_clean_text(key, _MAX_NAME): _clean_value(value) for key, value in _first(entry.details.items())},
    )


def _clean_value(value: object, depth: int = 1) -> object:
    """Bound a value, and make it one that jsonb takes."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if depth < _MAX_DEPTH and isinstance(value, Mapping):
        return {
            _clean_text(key, _MAX_NAME): _clean_value(item, depth + 1) for key, item in _first(value.items())
        }
    if depth < _MAX_DEPTH and isinstance(value, list | tuple):
        return [_clean_value(item, depth + 1) for item in _first(value)]
    return _clean_text(value, MAX_TEXT)


def _clean_text(value: object, limit: int) -> str:
    # Postgres takes neither NUL nor a lone surrogate.
    text = value[:limit] if isinstance(value, str) else str(value)[:limit]
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def _first(items: Iterable[Any]) -> Iterable[Any]:
    return islice(items, _MAX_ITEMS)
