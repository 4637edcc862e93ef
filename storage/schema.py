"""The tables, made in order.

LangGraph's own tables (checkpoints, store) are made by LangGraph's own `setup()`; Warren's follow from
`MIGRATIONS`. A migration that has been released is never edited: a change is a new entry at the end.
"""

import asyncio

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.store.postgres.aio import AsyncPostgresStore
from psycopg import AsyncConnection
from psycopg.rows import DictRow

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE users (
        username text PRIMARY KEY,
        password_hash text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    );

    CREATE TABLE thread_owners (
        thread_id uuid PRIMARY KEY,
        owner text NOT NULL,
        metadata jsonb NOT NULL DEFAULT '{}',
        created_at timestamptz NOT NULL DEFAULT now(),
        deleted_at timestamptz
    );
    CREATE INDEX thread_owners_live ON thread_owners (owner, created_at DESC) WHERE deleted_at IS NULL;

    CREATE SEQUENCE sandbox_uid AS integer MINVALUE 200000 START 200000;
    CREATE TABLE sandbox_uids (
        owner text PRIMARY KEY,
        uid integer NOT NULL UNIQUE DEFAULT nextval('sandbox_uid')
    );
    """,
    # A run may still be writing when its thread is deleted, perhaps in another process: the database
    # itself refuses, so that nothing is ever kept for a deleted thread.
    """
    CREATE FUNCTION refuse_deleted_thread() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (
            SELECT 1 FROM thread_owners
            WHERE thread_id = NEW.thread_id::uuid AND deleted_at IS NOT NULL
        ) THEN
            RAISE EXCEPTION 'thread % was deleted', NEW.thread_id;
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER refuse_deleted_thread BEFORE INSERT ON checkpoints
        FOR EACH ROW EXECUTE FUNCTION refuse_deleted_thread();
    CREATE TRIGGER refuse_deleted_thread BEFORE INSERT ON checkpoint_writes
        FOR EACH ROW EXECUTE FUNCTION refuse_deleted_thread();
    CREATE INDEX checkpoints_run_id ON checkpoints ((metadata ->> 'run_id'));
    """,
    """
    ALTER TABLE users
        ADD COLUMN token_version integer NOT NULL DEFAULT 0,
        ADD COLUMN disabled_at timestamptz;
    CREATE INDEX users_disabled ON users (disabled_at) WHERE disabled_at IS NOT NULL;

    CREATE TABLE api_keys (
        key_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        username text NOT NULL REFERENCES users,
        name text NOT NULL,
        key_hash bytea NOT NULL UNIQUE,
        created_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz,
        last_used_at timestamptz
    );
    CREATE INDEX api_keys_username ON api_keys (username);

    CREATE TABLE attempts (
        subject text PRIMARY KEY,
        level double precision NOT NULL,
        last_at timestamptz NOT NULL
    );
    """,
    # Users see ids; `seq` stays inside, since its gaps would tell how busy the others are.
    """
    CREATE TABLE audit_log (
        seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        id uuid NOT NULL UNIQUE,
        at timestamptz NOT NULL,
        event text NOT NULL,
        username text,
        address text,
        thread_id uuid,
        details jsonb NOT NULL
    );
    CREATE INDEX audit_log_username ON audit_log (username, seq DESC);
    """,
    """
    CREATE TABLE assistants (
        assistant_id uuid PRIMARY KEY,
        owner text NOT NULL,
        record jsonb NOT NULL,
        versions jsonb NOT NULL
    );
    CREATE INDEX assistants_owner ON assistants (owner);
    """,
    # `used_by` is the one process that has used it of late; null if several have.
    """
    CREATE TABLE sandboxes (
        instance text NOT NULL,
        thread_id uuid NOT NULL,
        owner text NOT NULL,
        running boolean NOT NULL,
        used_by uuid,
        used_at timestamptz NOT NULL,
        PRIMARY KEY (instance, thread_id)
    );
    CREATE INDEX sandboxes_running ON sandboxes (instance, owner) WHERE running;
    """,
    """
    CREATE TABLE known_addresses (
        username text NOT NULL REFERENCES users ON DELETE CASCADE,
        subject text NOT NULL,
        last_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (username, subject)
    );
    """,
    """
    CREATE INDEX audit_log_decisions ON audit_log (thread_id, (details ->> 'tool_call_id'))
    WHERE event = 'decision';
    """,
)

_LOCK_KEY = 0x57415252454E  # "WARREN"
_LOCK_POLL_SECONDS = 0.05


async def migrate(conn: AsyncConnection[DictRow]) -> None:
    """Bring the database up to date. Safe to call from any number of processes at once.

    Args:
        conn: an autocommit connection with `dict_row` rows, not shared with other work meanwhile. If this
            fails or is cancelled, close it: it keeps the others waiting for as long as it is open.
    """
    # Polled, since a session that waits inside pg_advisory_lock() holds a snapshot, and the
    # CREATE INDEX CONCURRENTLY of LangGraph's setup() would wait for that one: a deadlock.
    while not await _try_lock(conn):  # noqa: ASYNC110 - it is another process that lets go
        await asyncio.sleep(_LOCK_POLL_SECONDS)
    await AsyncPostgresSaver(conn).setup()
    await AsyncPostgresStore(conn).setup()
    await _apply_migrations(conn)
    await conn.execute("SELECT pg_advisory_unlock(%s)", (_LOCK_KEY,))


async def applied_within(conn: AsyncConnection[DictRow], seconds: float) -> bool:
    """Tell whether anything has been changed in the last `seconds` to bring the database up to date."""
    cursor = await conn.execute(
        "SELECT 1 FROM warren_migrations WHERE applied_at > now() - make_interval(secs => %s) LIMIT 1",
        (seconds,),
    )
    return await cursor.fetchone() is not None


async def _try_lock(conn: AsyncConnection[DictRow]) -> bool:
    cursor = await conn.execute("SELECT pg_try_advisory_lock(%s) AS locked", (_LOCK_KEY,))
    row = await cursor.fetchone()
    return row is not None and bool(row["locked"])


async def _apply_migrations(conn: AsyncConnection[DictRow]) -> None:
    await conn.execute(
        "CREATE TABLE IF NOT EXISTS warren_migrations"
        " (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    cursor = await conn.execute("SELECT coalesce(max(version), 0) AS version FROM warren_migrations")
    row = await cursor.fetchone()
    done = row["version"] if row else 0
    for version, statements in enumerate(MIGRATIONS[done:], start=done + 1):
        async with conn.transaction():
            # Several statements at once cannot be prepared.
            await conn.execute(statements.encode(), prepare=False)
            await conn.execute("INSERT INTO warren_migrations (version) VALUES (%s)", (version,))
