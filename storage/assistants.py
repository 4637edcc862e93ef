"""Assistants that users have made, where the platform's runtime keeps them in memory only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from storage.database import get_pool

_USAGE = """
SELECT assistant_id, jsonb_array_length(versions) AS versions,
    octet_length(record::text) + octet_length(versions::text) AS size
FROM assistants WHERE owner = %s
"""


# Of the metadata what is the user's own.
_MERGED_METADATA = """
SELECT octet_length(((record -> 'metadata') - '{owner,created_by}'::text[] || %s)::text) AS size
FROM assistants WHERE owner = %s AND assistant_id = %s
"""


@dataclass(frozen=True, slots=True)
class SavedAssistant:
    """An assistant and its versions, as JSON in the platform's own form."""

    assistant_id: UUID
    owner: str
    record: dict[str, Any]
    versions: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class AssistantJson:
    """A `SavedAssistant` as text: writing JSON takes time, and the caller knows where to spend it."""

    assistant_id: UUID
    record: str
    versions: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What a user's assistants take: how many there are, versions by id, and bytes altogether."""

    count: int
    versions: dict[UUID, int]
    size: int


async def replace_assistants(owner: str, assistants: Sequence[AssistantJson]) -> None:
    """Make these the assistants of `owner`, in one transaction."""
    pool = await get_pool()
    async with pool.connection() as conn, conn.transaction(), conn.cursor() as cursor:
        await cursor.execute("DELETE FROM assistants WHERE owner = %s", (owner,))
        await cursor.executemany(
            "INSERT INTO assistants (assistant_id, owner, record, versions)"
            " VALUES (%s, %s, %s::jsonb, %s::jsonb)",
            [(one.assistant_id, owner, one.record, one.versions) for one in assistants],
        )


async def usage(owner: str) -> Usage:
    """Return what has been saved of a user's assistants."""
    pool = await get_pool()
    async with pool.connection() as conn:
        cursor = await conn.execute(_USAGE, (owner,))
        rows = await cursor.fetchall()
    versions = {row["assistant_id"]: row["versions"] for row in rows}
    return Usage(len(rows), versions, sum(row["size"] for row in rows))


async def merged_metadata_size(owner: str, assistant_id: UUID, added: Mapping[str, Any]) -> int:
    """Return how many bytes of JSON an assistant's metadata would be with more keys; 0 for an unknown one."""
    pool = await get_pool()
    async with pool.connection() as conn:
        cursor = await conn.execute(_MERGED_METADATA, (Jsonb(dict(added)), owner, assistant_id))
        row = await cursor.fetchone()
    return int(row["size"]) if row else 0


async def all_assistants() -> list[SavedAssistant]:
    """Return every user's assistants."""
    pool = await get_pool()
    async with pool.connection() as conn, conn.cursor(row_factory=class_row(SavedAssistant)) as cursor:
        await cursor.execute("SELECT assistant_id, owner, record, versions FROM assistants")
        return await cursor.fetchall()
