"""The audit log's readers: a user their own entries over HTTP, an operator all on the command line."""

import argparse
import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel

from server.refusals import refusals
from server.serve import SetupError, prepare_environment
from server.sessions import CurrentUser
from storage import audit
from storage.audit_entry import Entry, as_line
from storage.database import close_pool, release_embedded
from storage.errors import InvalidThreadIdError, StorageError
from storage.ids import parse_thread_id

router = APIRouter(prefix="/api", tags=["audit"])

_MAX_PAGE = 100
_EVENT = "[a-z_]{1,40}"


class AuditEntry(BaseModel):
    """Something that the caller, or somebody in their name, has done or tried to do."""

    id: UUID
    at: datetime
    event: str
    address: str | None
    thread_id: UUID | None
    details: dict[str, Any]


@router.get("/audit", responses=refusals(401, 422))
async def list_own_entries(
    user: CurrentUser,
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 50,
    before: Annotated[str | None, Query(description="Only entries older than the one of this id.")] = None,
    event: Annotated[str | None, Query(pattern=f"^{_EVENT}$")] = None,
) -> list[AuditEntry]:
    """List what has been recorded about the caller, the newest first; `before` is the last id of a page."""
    try:
        older_than = None if before is None else parse_thread_id(before)
    except InvalidThreadIdError:
        raise HTTPException(422, "before is the id of an entry") from None
    found = await audit.entries(user, before=older_than, limit=limit, event=event)
    return [
        AuditEntry(
            id=entry.id,
            at=entry.at,
            event=entry.event,
            address=entry.address,
            thread_id=entry.thread_id,
            details=dict(entry.details),
        )
        for entry in found
    ]


def print_audit(options: argparse.Namespace) -> int:
    """Print entries as the options of `warren audit` say, the newest last. Returns the exit code."""
    try:
        prepare_environment(options.data_dir, may_be_new=False)
        found = asyncio.run(_read(options))
    except (SetupError, StorageError, OSError) as error:
        print(f"warren: {error}", file=sys.stderr)  # noqa: T201 - the command line's output
        return 1
    finally:
        release_embedded()
    for entry in reversed(found):
        print(as_line(entry) if options.json else _line(entry))  # noqa: T201 - see above
    return 0


async def _read(options: argparse.Namespace) -> list[Entry]:
    try:
        return await audit.entries(
            options.user, event=options.event, since=options.since, limit=options.limit
        )
    finally:
        await close_pool()


def _line(entry: Entry) -> str:
    at = entry.at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    where = entry.address or (f"thread {entry.thread_id}" if entry.thread_id else "-")
    details = " ".join(f"{key}={json.dumps(value)}" for key, value in entry.details.items())
    line = f"{at}  {entry.event:<16} {entry.username or '-':<16} {where}  {details}".rstrip()
    # No escape sequence or newline of a value reaches the terminal: somebody chose a failed login's name.
    return "".join(character if " " <= character <= "~" else "?" for character in line)
