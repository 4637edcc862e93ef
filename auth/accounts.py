"""Accounts: registering, logging in, changing a password, disabling. All their SQL is here."""

from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from auth import standing, throttle
from auth.errors import BadCredentialsError, InvalidTokenError, UnknownUserError, UsernameTakenError
from auth.passwords import hash_password, verify_password
from auth.tokens import issue_token
from storage.database import get_pool, get_urgent_pool

RESERVED_USERNAMES = frozenset({"system", "anonymous", "langgraph-studio-user", "admin", "root", "warren"})
"""Names that the platform or Warren gives a meaning of their own."""

_NEW_HASH = """
UPDATE users SET password_hash = %(new)s, token_version = token_version + 1
WHERE username = %(username)s AND (
    %(version)s::integer IS NULL OR (token_version = %(version)s AND disabled_at IS NULL)
)
RETURNING token_version
"""


@dataclass(frozen=True, slots=True)
class User:
    """An account. `disabled_at` is set while it is disabled."""

    username: str
    created_at: datetime
    disabled_at: datetime | None


async def register(username: str, password: str) -> None:
    """Create an account. `username` is in its stored form, see `storage.ids.is_username`.

    Raises:
        UsernameTakenError: if there is or ever was such a user, or the name is reserved.
        BusyError: if too many passwords are being hashed already.
    """
    if username in RESERVED_USERNAMES:
        raise UsernameTakenError
    password_hash = await hash_password(password)
    pool = await get_pool()
    async with pool.connection() as conn:
        cursor = await conn.execute(
            "INSERT INTO users (username, password_hash) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            (username, password_hash),
        )
    if cursor.rowcount != 1:
        raise UsernameTakenError


async def log_in(username: str, password: str) -> tuple[str, int]:
    """Return a token and its lifetime in seconds. An unknown user costs the time of a wrong password.

    Raises:
        BadCredentialsError: if the user or the password is wrong, or the user disabled; which is not told.
        BusyError: if too many passwords are being hashed already.
    """
    pool = await get_pool()
    async with pool.connection() as conn:
        cursor = await conn.execute(
            "SELECT password_hash, token_version, disabled_at FROM users WHERE username = %s", (username,)
        )
        row = await cursor.fetchone()
    usable = row is not None and row["disabled_at"] is None
    matches = await verify_password(password, row["password_hash"] if row and usable else None)
    if row is None or not matches:
        raise BadCredentialsError(known_user=username if row else None)
    # What is remembered may be a second older than this, and refuse the new token.
    standing.forget(username)
    # The version that was read with the hash: a password changed meanwhile ends this session, too.
    return issue_token(username, row["token_version"])


async def log_out_everywhere(username: str) -> None:
    """Make every token of the user invalid. API keys stay."""
    pool = await get_pool()
    async with pool.connection() as conn:
        await conn.execute(
            "UPDATE users SET token_version = token_version + 1 WHERE username = %s", (username,)
        )
    standing.forget(username)


async def change_password(username: str, token_version: int, current: str, new: str) -> tuple[str, int]:
    """Change a user's password, which ends their sessions and revokes their API keys.

    Args:
        username: whose password.
        token_version: of the token with which they ask; it must still be theirs when all is done.
        current: the password until now.
        new: the password from now on.

    Returns:
        a new token and its lifetime in seconds.

    Raises:
        BadCredentialsError: if `current` is wrong.
        InvalidTokenError: if the session has been ended meanwhile.
        BusyError: if too many passwords are being hashed already.
    """
    pool = await get_pool()
    async with pool.connection() as conn:
        cursor = await conn.execute("SELECT password_hash FROM users WHERE username = %s", (username,))
        row = await cursor.fetchone()
    if not await verify_password(current, row["password_hash"] if row else None):
        raise BadCredentialsError(known_user=username)
    changed_to = await _replace_password(username, new, token_version)
    if changed_to is None:
        raise InvalidTokenError
    return issue_token(username, changed_to)


async def set_password(username: str, password: str) -> None:
    """As an operator, give a user a new password, end their sessions, revoke their API keys.

    Raises:
        UnknownUserError: if there is no such user.
    """
    if await _replace_password(username, password, None) is None:
        raise UnknownUserError
    await throttle.forget_failures(username)


async def disable(username: str) -> None:
    """Refuse a user's logins, tokens and API keys. Does nothing to one who is disabled already.

    Raises:
        UnknownUserError: if there is no such user.
    """
    # The version is raised, so that enabling the user again does not bring old sessions back.
    await _update_user(
        "UPDATE users SET disabled_at = coalesce(disabled_at, now()), token_version = token_version + 1"
        " WHERE username = %s",
        username,
    )


async def enable(username: str) -> None:
    """Let a user in again: with the password they had, and the API keys.

    Raises:
        UnknownUserError: if there is no such user.
    """
    await _update_user("UPDATE users SET disabled_at = NULL WHERE username = %s", username)
    await throttle.forget_failures(username)


async def find_user(username: str) -> User | None:
    """Return a user, None if there is no such one."""
    pool = await get_pool()
    async with pool.connection() as conn, conn.cursor(row_factory=class_row(User)) as cursor:
        await cursor.execute(
            "SELECT username, created_at, disabled_at FROM users WHERE username = %s", (username,)
        )
        return await cursor.fetchone()


async def all_users() -> list[User]:
    """Return every user by name."""
    pool = await get_pool()
    async with pool.connection() as conn, conn.cursor(row_factory=class_row(User)) as cursor:
        await cursor.execute("SELECT username, created_at, disabled_at FROM users ORDER BY username")
        return await cursor.fetchall()


async def lately_disabled_users() -> frozenset[str]:
    """Return the names of those who have been disabled in the last ten minutes and still are.

    Who has been for longer has nothing under way any more.
    """
    pool = await get_urgent_pool()
    async with pool.connection() as conn:
        cursor = await conn.execute(
            "SELECT username FROM users WHERE disabled_at > now() - interval '10 minutes'"
        )
        return frozenset([row["username"] async for row in cursor])


async def _replace_password(username: str, new: str, token_version: int | None) -> int | None:
    parameters = {"username": username, "new": await hash_password(new), "version": token_version}
    pool = await get_pool()
    async with pool.connection() as conn, conn.transaction():
        changed = await (await conn.execute(_NEW_HASH, parameters)).fetchone()
        if changed is not None:
            # A statement of its own: it sees the key that was being made while the update waited.
            await conn.execute("DELETE FROM api_keys WHERE username = %s", (username,))
    standing.forget(username)
    return changed["token_version"] if changed is not None else None


async def _update_user(statement: str, username: str) -> None:
    pool = await get_pool()
    async with pool.connection() as conn:
        cursor = await conn.execute(statement.encode(), (username,))
    standing.forget(username)
    if cursor.rowcount != 1:
        raise UnknownUserError
