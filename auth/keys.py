"""API keys: how machines and user interfaces come in as a user. All their SQL is here."""

import asyncio
import hashlib
import re
import secrets
import string
import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import psycopg
import structlog
from cachetools import TTLCache
from psycopg.rows import class_row

from auth import standing
from auth.errors import InvalidTokenError, TooManyKeysError
from storage.database import get_pool

PREFIX = "warren_"
"""By it people, and programs that look for leaked secrets, know what they have found."""

MAX_KEYS = 50
"""Of one user; those that have expired count until they are deleted."""

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM_LENGTH = 30  # of 62 characters: 178 bits
_CHECKSUM_LENGTH = 6  # 62 ** 6 > 2 ** 32
_FORM = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{_RANDOM_LENGTH}}})([0-9A-Za-z]{{{_CHECKSUM_LENGTH}}})")

_NOTED_SECONDS = 60.0
_NOTED_SIZE = 10_000
_noted: TTLCache[UUID, bool] = TTLCache(_NOTED_SIZE, _NOTED_SECONDS)
_notes: set[asyncio.Task[None]] = set()

_log = structlog.stdlib.get_logger(__name__)

_COLUMNS = "key_id, name, created_at, expires_at, last_used_at"

_INSERT = f"""
INSERT INTO api_keys (username, name, key_hash, expires_at)
SELECT %(username)s, %(name)s, %(key_hash)s, now() + %(lifetime)s::interval
WHERE (SELECT count(*) FROM api_keys WHERE username = %(username)s) < %(most)s
RETURNING {_COLUMNS}
"""  # noqa: S608 - constants

_LOCK_USER = """
SELECT FROM users WHERE username = %s AND token_version = %s AND disabled_at IS NULL FOR NO KEY UPDATE
"""

_NOTE_USE = """
UPDATE api_keys SET last_used_at = now()
WHERE key_id = %s AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')
"""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key; the key itself only its user has. `last_used_at` is right to the minute."""

    key_id: UUID
    name: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


def is_key(text: str) -> bool:
    """Tell whether a credential says it is an API key, rather than a token."""
    return text.startswith(PREFIX)


def hash_of(text: str) -> bytes:
    """Return what the database knows a key by. No salt: a key is random, there is nothing to guess from.

    Raises:
        InvalidTokenError: if it has not the form of a key, as after a slip in copying it.
    """
    form = _FORM.fullmatch(text)
    if form is None or _checksum(form[1]) != form[2]:
        raise InvalidTokenError
    return hashlib.sha256(text.encode()).digest()


async def create(
    username: str, token_version: int, name: str, lifetime: timedelta | None
) -> tuple[ApiKey, str]:
    """Make a key; return what is known of it, and the key itself, which is never seen again.

    Args:
        username: whose key.
        token_version: of the token with which they ask. It must be theirs still: a key made with a stolen
            token must not outlive the change of password that ended the token.
        name: what they call it.
        lifetime: None for a key that does not expire.

    Raises:
        InvalidTokenError: if the session has been ended meanwhile.
        TooManyKeysError: if they have `MAX_KEYS` already.
    """
    text = _new_key()
    parameters = {
        "username": username,
        "name": name,
        "key_hash": hash_of(text),
        "lifetime": lifetime,
        "most": MAX_KEYS,
    }
    pool = await get_pool()
    async with pool.connection() as conn, conn.transaction():
        if (await conn.execute(_LOCK_USER, (username, token_version))).rowcount != 1:
            raise InvalidTokenError
        async with conn.cursor(row_factory=class_row(ApiKey)) as cursor:
            await cursor.execute(_INSERT.encode(), parameters)
            key = await cursor.fetchone()
    if key is None:
        raise TooManyKeysError
    return key, text


async def keys_of(username: str) -> list[ApiKey]:
    """Return a user's keys, the newest first."""
    pool = await get_pool()
    async with pool.connection() as conn, conn.cursor(row_factory=class_row(ApiKey)) as cursor:
        query = f"SELECT {_COLUMNS} FROM api_keys WHERE username = %s ORDER BY created_at DESC, key_id"  # noqa: S608
        await cursor.execute(query.encode(), (username,))
        return await cursor.fetchall()


async def delete(username: str, key_id: UUID) -> ApiKey | None:
    """Revoke a user's key and return what it was; None if they have no such key."""
    pool = await get_pool()
    async with pool.connection() as conn, conn.cursor(row_factory=class_row(ApiKey)) as cursor:
        query = f"DELETE FROM api_keys WHERE username = %s AND key_id = %s RETURNING {_COLUMNS}"  # noqa: S608
        await cursor.execute(query.encode(), (username, key_id))
        deleted = await cursor.fetchone()
    standing.forget(username)
    return deleted


def note_use(key_id: UUID) -> None:
    """Write down in the background that a key is used, at most once a minute."""
    if key_id in _noted:
        return
    _noted[key_id] = True
    note = asyncio.create_task(_write_use(key_id))
    _notes.add(note)
    note.add_done_callback(_notes.discard)


async def _write_use(key_id: UUID) -> None:
    try:
        pool = await get_pool()
        async with pool.connection() as conn:
            await conn.execute(_NOTE_USE, (key_id,))
    except psycopg.Error as error:
        await _log.awarning("An API key's use was not noted", error=str(error))


def _new_key() -> str:
    body = "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_LENGTH))
    return f"{PREFIX}{body}{_checksum(body)}"


def _checksum(body: str) -> str:
    # As in GitHub's tokens: the CRC-32 in base 62.
    number = zlib.crc32(body.encode())
    digits = ""
    for _ in range(_CHECKSUM_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits
