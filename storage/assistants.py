"""Assistants that users have made, where the platform's runtime keeps them in memory only."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from storage.database import get_pool


@dataclass(frozen=True, slots=True)
class SavedAssistant:
    """An assistant and its versions, as JSON in the platform's own form."""

    assistant_id: UUID
    owner: str
    record: dict[str, Any]
    versions: list[dict[str, Any]]


async def replace_assistants(owner: str, assistants: list[SavedAssistant]) -> None:
    """Make these the assistants of `owner`, in one transaction."""
    pool = await get_pool()
    async with pool.connection() as conn, conn.transaction(), conn.cursor() as cursor:
        await cursor.execute("DELETE FROM assistants WHERE owner = %s", (owner,))
        await cursor.executemany(
            "INSERT INTO assistants (assistant_id, owner, record, versions) VALUES (%s, %s, %s, %s)",
            [(one.assistant_id, one.owner, Jsonb(one.record), Jsonb(one.versions)) for one in assistants],
        )


async def all_assistants() -> list[SavedAssistant]:
    """Return every user's assistants."""
    pool = await get_pool()
    async with pool.connection() as conn, conn.cursor(row_factory=class_row(SavedAssistant)) as cursor:
        await cursor.execute("SELECT assistant_id, owner, record, versions FROM assistants")
        return await cursor.fetchall()
