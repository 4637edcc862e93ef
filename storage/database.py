"""Connections to Postgres: two pools per event loop, on DATABASE_URL or on the embedded server."""

import asyncio
import logging
import re
import select
import threading
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from storage.embedded import EmbeddedPostgres
from storage.errors import DatabaseUnreachableError, StorageError
from storage.schema import migrate
from storage.settings import get_settings

Pool = AsyncConnectionPool[AsyncConnection[DictRow]]

URGENT_CONNECTIONS = 3
"""Kept by each process for `get_urgent_pool`. What they are used for takes a millisecond."""

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
_WAIT_SECONDS = 10.0
_CONNECT_TIMEOUT_SECONDS = 5
# What LangGraph's savers and stores expect of a connection.
# Keepalives find out within a minute that a server at the other end of a network has vanished.
_CONNECTION_OPTIONS: dict[str, Any] = {
    "autocommit": True,
    "prepare_threshold": 0,
    "row_factory": dict_row,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}


@dataclass(frozen=True, slots=True)
class _Pools:
    general: Pool
    urgent: Pool


_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pools] = WeakKeyDictionary()
_opening: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
_embedded: EmbeddedPostgres | None = None
_embedded_lock = threading.Lock()


async def get_pool() -> Pool:
    """Return this event loop's pool, opened and with the schema up to date.

    Raises:
        DatabaseUnreachableError: if the server of DATABASE_URL does not answer or refuses us.
        EmbeddedPostgresError: if the embedded server cannot be started.
    """
    return (await _get_pools()).general


async def get_urgent_pool() -> Pool:
    """Return the pool for questions that must not wait behind anybody's work.

    Who asks, what is theirs, whose access has ended: every request waits for these, and a revocation counts
    only once it has been read. Nothing may be asked here that takes longer the more a user has.

    Raises:
        DatabaseUnreachableError, EmbeddedPostgresError: as `get_pool`.
    """
    return (await _get_pools()).urgent


async def close_pool() -> None:
    """Close this event loop's pools, if it has any."""
    if pools := _pools.pop(asyncio.get_running_loop(), None):
        await pools.general.close()
        await pools.urgent.close()


async def server_version() -> str:
    """Ask Postgres for its version, and change nothing in it.

    Raises:
        DatabaseUnreachableError: as `get_pool`, or this role may not make tables.
        EmbeddedPostgresError: if the embedded server cannot be started.
    """
    async with await _connect(await asyncio.to_thread(connection_string)) as conn:
        cursor = await conn.execute(
            "SELECT current_setting('server_version') AS version,"
            " has_schema_privilege(current_schema(), 'CREATE') AS may_make_tables"
        )
        row = await cursor.fetchone()
    if row is None or not row["may_make_tables"]:
        raise _without_tables("it may create nothing in its schema")
    return str(row["version"])


def connection_string() -> str:
    """Return how to reach Postgres, starting or adopting the embedded server first if that is the one.

    Blocks while the embedded server starts; call it from a thread.

    Raises:
        EmbeddedPostgresError: if the embedded server cannot be started.
    """
    settings = get_settings()
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    global _embedded  # noqa: PLW0603 - one embedded server per process, shared by its event loops
    with _embedded_lock:
        if _embedded is None:
            _embedded = EmbeddedPostgres(settings.data_dir)
        return _embedded.acquire()


def release_embedded() -> None:
    """Stop using the embedded server; the last process to do so stops it. Blocks while it stops."""
    global _embedded  # noqa: PLW0603 - see connection_string
    with _embedded_lock:
        if _embedded is not None:
            _embedded.release()
            _embedded = None


async def keep_embedded_running() -> None:
    """Start the embedded server again when it ends while it is used, until cancelled.

    The kernel may kill it when memory runs out. With DATABASE_URL this returns at once.
    """
    while get_settings().database_url is None:
        await asyncio.sleep(_LOOK_SECONDS)
        try:
            await asyncio.to_thread(_revive_embedded)
        except StorageError as error:
            _log.error("The embedded Postgres has ended and does not start: %s", error)


def _revive_embedded() -> None:
    with _embedded_lock:
        if _embedded is not None and not _embedded.is_there():
            _log.warning("The embedded Postgres has ended; it is started again")
            _embedded.acquire()


async def _get_pools() -> _Pools:
    loop = asyncio.get_running_loop()
    if pools := _pools.get(loop):
        return pools
    async with _opening.setdefault(loop, asyncio.Lock()):
        if loop not in _pools:
            _pools[loop] = await _open_pools()
        return _pools[loop]


async def _open_pools() -> _Pools:
    conninfo = await asyncio.to_thread(connection_string)
    async with await _connect(conninfo) as conn:
        try:
            await migrate(conn)
        except psycopg.errors.InsufficientPrivilege as error:
            raise _without_tables(f"{error.diag.message_primary}") from None
    return _Pools(
        general=await _open_pool(conninfo, 2, get_settings().database_pool_size),
        urgent=await _open_pool(conninfo, 1, URGENT_CONNECTIONS),
    )


async def _connect(conninfo: str) -> AsyncConnection[DictRow]:
    try:
        return await AsyncConnection.connect(
            conninfo, connect_timeout=_CONNECT_TIMEOUT_SECONDS, **_CONNECTION_OPTIONS
        )
    except psycopg.Error as error:
        raise _unreachable(conninfo, error) from None  # the cause could quote the password


async def _open_pool(conninfo: str, least: int, most: int) -> Pool:
    pool: Pool = AsyncConnectionPool(
        conninfo,
        min_size=least,
        max_size=most,
        kwargs=_CONNECTION_OPTIONS,
        timeout=_WAIT_SECONDS,
        # Given up then, and tried anew for the next who asks: by default the pauses double for five minutes.
        reconnect_timeout=_WAIT_SECONDS,
        check=_check,
        open=False,
    )
    await pool.open()
    return pool


async def _check(conn: AsyncConnection[DictRow]) -> None:
    """Have a connection that died with a Postgres restart replaced before anyone is handed it.

    An idle connection has nothing to say. Only one that can be read has ended, or brings news: asking it
    costs a round trip, which asking every connection at every use would.
    """
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    if poll.poll(0):
        await AsyncConnectionPool.check_connection(conn)


def _without_tables(reason: str) -> DatabaseUnreachableError:
    return DatabaseUnreachableError(
        f"Postgres does not let this role make Warren's tables: {reason}.\n"
        "Give it the right (GRANT CREATE ON SCHEMA public TO the role), or a database of its own."
    )


def _unreachable(conninfo: str, error: psycopg.Error) -> DatabaseUnreachableError:
    parts = _parts(conninfo)
    if parts is None:
        return DatabaseUnreachableError(
            "DATABASE_URL is not a Postgres connection string (postgresql://user:password@host:5432/name). "
            "Special characters of its password must be percent-encoded: %2F for /, %23 for #, %40 for @, "
            "%3F for ?, %25 for %."
        )
    place = f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"
    return DatabaseUnreachableError(
        f"Postgres at {place} is not usable as {parts.get('user', 'the current user')}: "
        f"{str(error).strip()}\nCheck DATABASE_URL, or unset it to use the embedded server."
    )


def _parts(conninfo: str) -> dict[str, Any] | None:
    """Take a connection string apart; None if a piece of its password could be in any other part of it."""
    _, is_url, rest = conninfo.partition("://")
    authority = re.split("[/?]", rest, maxsplit=1)[0]
    # libpq ends the password at the first @, and the host at the first slash.
    if is_url and (rest.count("@") > 1 or rest.count("@") > authority.count("@")):
        return None
    try:
        parts = conninfo_to_dict(conninfo)
    except psycopg.Error:
        return None
    has_port = re.fullmatch("[0-9,]*", str(parts.get("port", "")))
    return parts if has_port else None
