"""One Unix user id per Warren user, so that an escape or a mistake never crosses tenants."""

from cachetools import LRUCache

from storage.database import get_pool

_known: LRUCache[str, int] = LRUCache(10_000)


async def uid_of(owner: str) -> int:
    """Return the uid that `owner`'s files and processes have: 200000 or above, given once and for ever."""
    if (uid := _known.get(owner)) is not None:
        return uid
    pool = await get_pool()
    async with pool.connection() as conn:
        await conn.execute("INSERT INTO sandbox_uids (owner) VALUES (%s) ON CONFLICT DO NOTHING", (owner,))
        cursor = await conn.execute("SELECT uid FROM sandbox_uids WHERE owner = %s", (owner,))
        row = await cursor.fetchone()
    if row is None:
        raise AssertionError("a row just inserted is gone")
    uid = int(row["uid"])
    _known[owner] = uid
    return uid
