"""The audit log: who did what, and what was refused, as a table and as JSON log lines. All its SQL is here.

Decisions are written through: `record_decisions` returns once they are in the table, or raises. All else is
queued: `record` never fails, never waits, and its repetitions are counted instead of written.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, LiteralString
from uuid import UUID, uuid4
from weakref import WeakKeyDictionary

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from storage.audit_entry import Entry, as_json, as_line, clean
from storage.audit_window import DENIED, WINDOW_SECONDS, Occurrence, Window
from storage.database import get_pool
from storage.errors import AuditUnavailableError, StorageError
from storage.settings import get_settings

DECISION = "decision"
UNDECIDED = "undecided"
"""A call of a tool that waits for decisions, and has had none: a user wrote it into their own thread."""

_MAX_QUEUE = 10_000
_BATCH = 500
_RETRY_SECONDS = 1.0
_FLUSH_SECONDS = 5.0
_WRITE_SECONDS = 10.0
_DAY_SECONDS = 24 * 60 * 60

_lines = logging.getLogger("warren.audit")
_log = logging.getLogger(__name__)

_INSERT = """
INSERT INTO audit_log (id, at, event, username, address, thread_id, details)
SELECT id, at, event, username, address, thread_id, details
FROM jsonb_to_recordset(%s) AS entry (
    id uuid, at timestamptz, event text, username text, address text, thread_id uuid, details jsonb
)
ON CONFLICT (id) DO NOTHING
RETURNING id
"""

_SELECT: LiteralString = "SELECT id, at, event, username, address, thread_id, details FROM audit_log WHERE "
_PAGE: LiteralString = " ORDER BY seq DESC LIMIT %(limit)s"
_OLDER_OF_ALL: LiteralString = "seq < (SELECT seq FROM audit_log WHERE id = %(before)s)"
_OLDER_OF_USER: LiteralString = (
    "seq < (SELECT seq FROM audit_log WHERE id = %(before)s AND username = %(username)s)"
)

# Of an edited call the one that the decision was for.
_WAS_DECIDED = """
SELECT FROM audit_log
WHERE event = 'decision' AND thread_id = %(thread_id)s AND details ->> 'tool_call_id' = %(tool_call_id)s
    AND coalesce(details ->> 'edited_tool', details ->> 'tool') = %(tool)s
    AND coalesce(details ->> 'edited_arguments_sha256', details ->> 'arguments_sha256') = %(arguments_sha256)s
LIMIT 1
"""

_PURGE = "DELETE FROM audit_log WHERE at < now() - make_interval(days => %s)"


async def record(
    event: str,
    username: str | None,
    *,
    address: str | None = None,
    thread_id: UUID | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Note that something happened. Never raises and never waits.

    Args:
        event: what, in a word or two: `login`, `login_failed`, `key_created`, `egress`, `egress_refused`.
        username: who; None for one who is not known.
        address: where from.
        thread_id: the thread that it is about.
        details: what else an auditor wants to know, and no secrets. Long strings are cut.
    """
    try:
        _this_loop().add(Occurrence(event, username, address, dict(details or {}), thread_id))
    except Exception:  # noqa: BLE001 - the act that is being noted goes on whatever happens here
        _log.exception("An audit entry could not be queued")


async def record_denial(
    username: str | None, method: str, route: str, status: int, address: str | None
) -> None:
    """Note that a request was refused. Never raises and never waits.

    Args:
        username: whose request; None for an anonymous one.
        method: of HTTP, or WEBSOCKET.
        route: the route's template, such as `/threads/{uuid}/state`, and not the path that was asked for.
        status: the answer, such as 403.
        address: where from.
    """
    details = {"method": method, "route": route, "status": status}
    await record(DENIED, username, address=address, details=details)


async def record_decisions(entries: Sequence[Entry]) -> None:
    """Write entries, all or none, before returning. An entry whose id is there already stays as it is.

    Raises:
        AuditUnavailableError: they are not written.
    """
    cleaned = [clean(entry) for entry in entries]
    try:
        async with asyncio.timeout(_WRITE_SECONDS):
            written = await _insert(cleaned)
    except (TimeoutError, psycopg.Error, StorageError) as error:
        _log.error("Decisions could not be written to the audit log", exc_info=error)
        raise AuditUnavailableError from None
    for entry in cleaned:
        if entry.id in written:
            _write_line(entry)


async def record_if_undecided(entry: Entry) -> None:
    """Write the entry of a tool call, before returning, unless a decision on that very call has been written.

    Args:
        entry: `UNDECIDED`, with a thread and the details that its decision would have.

    Raises:
        AuditUnavailableError: it is not known, or not written.
    """
    details = clean(entry).details
    names = ("tool_call_id", "tool", "arguments_sha256")
    parameters = {"thread_id": entry.thread_id, **{name: details.get(name) for name in names}}
    try:
        async with asyncio.timeout(_WRITE_SECONDS):
            pool = await get_pool()
            async with pool.connection() as conn:
                found = await conn.execute(_WAS_DECIDED, parameters)
    except (TimeoutError, psycopg.Error, StorageError) as error:
        _log.error("It is not known whether a call was decided on", exc_info=error)
        raise AuditUnavailableError from None
    if not found.rowcount:
        await record_decisions([entry])


async def entries(
    username: str | None = None,
    *,
    before: UUID | None = None,
    limit: int = 50,
    event: str | None = None,
    since: datetime | None = None,
) -> list[Entry]:
    """Return entries, the newest first.

    Args:
        username: whose; None for everybody's.
        before: only those older than the entry of this id; none if it is unknown or not among `username`'s.
        limit: how many at most.
        event: only those of this event.
        since: only those from then on.
    """
    conditions: list[LiteralString] = ["true"]
    if username is not None:
        conditions.append("username = %(username)s")
    if event is not None:
        conditions.append("event = %(event)s")
    if since is not None:
        conditions.append("at >= %(since)s")
    if before is not None:
        conditions.append(_OLDER_OF_ALL if username is None else _OLDER_OF_USER)
    query = _SELECT + " AND ".join(conditions) + _PAGE
    parameters = {
        "username": username,
        "event": event,
        "since": since,
        "before": before,
        "limit": limit,
    }
    pool = await get_pool()
    async with pool.connection() as conn, conn.cursor(row_factory=class_row(Entry)) as cursor:
        await cursor.execute(query, parameters)
        return await cursor.fetchall()


async def flush() -> None:
    """Write what is still queued in this event loop, repetitions included. Gives up after five seconds."""
    await _this_loop().flush()


async def purge() -> None:
    """Delete the entries older than AUDIT_RETENTION_DAYS."""
    pool = await get_pool()
    async with pool.connection() as conn:
        await conn.execute(_PURGE, (get_settings().audit_retention_days,))


async def purge_daily() -> None:
    """Purge now and once a day, until cancelled."""
    while True:
        try:
            await purge()
        except (psycopg.Error, StorageError):
            _log.exception("Old audit entries could not be deleted")
        await asyncio.sleep(_DAY_SECONDS)


@dataclass(slots=True)
class _Queue:
    """One event loop's entries on their way to the table."""

    rows: deque[Entry] = field(default_factory=deque)
    lost: int = 0
    window: Window = field(default_factory=Window)
    window_end: asyncio.TimerHandle | None = None
    writing: asyncio.Task[None] | None = None

    def add(self, occurrence: Occurrence) -> None:
        if self.window_end is None:
            self.window_end = asyncio.get_running_loop().call_later(WINDOW_SECONDS, self.end_window)
        if self.window.admit(occurrence):
            self._append(occurrence)

    def end_window(self) -> None:
        if self.window_end is not None:
            self.window_end.cancel()
        ended, self.window, self.window_end = self.window, Window(), None
        for summary in ended.summaries():
            self._append(summary)

    async def flush(self) -> None:
        self.end_window()
        if (writing := self._write_on()) is None:
            return
        _, unfinished = await asyncio.wait({writing}, timeout=_FLUSH_SECONDS)
        if unfinished:
            writing.cancel()
            await asyncio.wait({writing})
            _log.error("%d audit entries were not written; they are in the log", len(self.rows))

    def _append(self, occurrence: Occurrence) -> None:
        event, username, address, details, thread_id = occurrence
        entry = clean(Entry(uuid4(), datetime.now(UTC), event, username, address, thread_id, details))
        _write_line(entry)
        if len(self.rows) >= _MAX_QUEUE:
            self.lost += 1
            return
        self.rows.append(entry)
        self._write_on()

    def _write_on(self) -> asyncio.Task[None] | None:
        if self.rows and (self.writing is None or self.writing.done()):
            self.writing = asyncio.create_task(self._write())
        return self.writing

    async def _write(self) -> None:
        while self.rows:
            batch = list(islice(self.rows, _BATCH))
            try:
                await _insert(batch)
            except (psycopg.OperationalError, StorageError):
                # Postgres is away; what is queued waits for it.
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            except Exception:  # noqa: BLE001 - one bad batch must not hold up those behind it
                _log.exception("%d audit entries are only in the log", len(batch))
            for _ in batch:
                self.rows.popleft()
            if self.lost:
                lost, self.lost = self.lost, 0
                self._append(Occurrence("audit_lost", None, None, {"entries": lost}))


_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, _Queue] = WeakKeyDictionary()


def _this_loop() -> _Queue:
    loop = asyncio.get_running_loop()
    if loop not in _queues:
        _queues[loop] = _Queue()
    return _queues[loop]


async def _insert(rows: Iterable[Entry]) -> set[UUID]:
    pool = await get_pool()
    async with pool.connection() as conn:
        cursor = await conn.execute(_INSERT, (Jsonb([as_json(entry) for entry in rows]),))
        return {row["id"] for row in await cursor.fetchall()}


def _write_line(entry: Entry) -> None:
    _lines.info("%s", as_line(entry))
