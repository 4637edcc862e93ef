"""Where users have logged in from. All SQL of it is here."""

from storage.database import get_pool

KNOWN_DAYS = 90
"""How long a login makes an address known."""

MAX_PER_USER = 20
"""Addresses remembered for one user, the latest used."""

_IS_KNOWN = """
SELECT FROM known_addresses
WHERE username = %s AND subject = %s AND last_at > now() - make_interval(days => %s)
"""

_REMEMBER = """
INSERT INTO known_addresses (username, subject) VALUES (%s, %s)
ON CONFLICT (username, subject) DO UPDATE SET last_at = now()
"""

_KEEP_LATEST = """
DELETE FROM known_addresses WHERE username = %(username)s AND (
    last_at < now() - make_interval(days => %(days)s)
    OR subject NOT IN (
        SELECT subject FROM known_addresses WHERE username = %(username)s
        ORDER BY last_at DESC LIMIT %(most)s
    )
)
"""


async def is_known(username: str, subject: str) -> bool:
    """Tell whether a user has logged in of late from an address, given as `auth.addresses.subject_of` it."""
    pool = await get_pool()
    async with pool.connection() as conn:
        cursor = await conn.execute(_IS_KNOWN, (username, subject, KNOWN_DAYS))
        return cursor.rowcount > 0


async def remember(username: str, subject: str) -> None:
    """Note that a user has logged in from an address."""
    pool = await get_pool()
    async with pool.connection() as conn:
        await conn.execute(_REMEMBER, (username, subject))
        await conn.execute(_KEEP_LATEST, {"username": username, "days": KNOWN_DAYS, "most": MAX_PER_USER})
