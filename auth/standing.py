"""Whether the user or the API key that a request names is still good: one lookup, remembered for a second."""

from collections.abc import Hashable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from cachetools import TTLCache
from psycopg.rows import class_row

from storage.database import get_urgent_pool

_CACHE_SECONDS = 1.0
_CACHE_SIZE = 10_000

_OF_USER = """
SELECT
    username, created_at, token_version, disabled_at,
    NULL::uuid AS key_id, NULL::timestamptz AS key_expires_at
FROM users WHERE username = %s
"""

_OF_KEY = """
SELECT username, users.created_at, token_version, disabled_at, key_id, expires_at AS key_expires_at
FROM api_keys JOIN users USING (username) WHERE key_hash = %s
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """What decides about a credential. The two of the key are None for a user's own."""

    username: str
    created_at: datetime
    token_version: int
    disabled_at: datetime | None
    key_id: UUID | None
    key_expires_at: datetime | None

    @property
    def disabled(self) -> bool:
        return self.disabled_at is not None


_recent: TTLCache[Hashable, Standing] = TTLCache(_CACHE_SIZE, _CACHE_SECONDS)
_changes = 0


async def of_user(username: str) -> Standing | None:
    """Return a user's standing, up to one second old; None if there is no such user."""
    return _recent.get(username) or await _look_up(username, _OF_USER)


async def of_key(key_hash: bytes) -> Standing | None:
    """Return the standing of a key and its user, up to one second old; None if there is no such key."""
    return _recent.get(key_hash) or await _look_up(key_hash, _OF_KEY)


def forget(username: str) -> None:
    """Have a change of this user or of their keys count at once in this process."""
    global _changes  # noqa: PLW0603 - of this process
    _changes += 1
    for name in [name for name, standing in _recent.items() if standing.username == username]:
        _recent.pop(name, None)


async def _look_up(name: str | bytes, query: str) -> Standing | None:
    changes = _changes
    pool = await get_urgent_pool()
    async with pool.connection() as conn, conn.cursor(row_factory=class_row(Standing)) as cursor:
        await cursor.execute(query.encode(), (name,))
        standing = await cursor.fetchone()
    # What was read before a change must not be remembered after it.
    if standing is not None and changes == _changes:
        _recent[name] = standing
    return standing
