"""Accounts: registering, logging in, and whether a token's user is one of ours. All their SQL is here."""

from datetime import datetime

from cachetools import TTLCache

from auth.errors import BadCredentialsError, InvalidTokenError, UsernameTakenError
from auth.passwords import hash_password, verify_password
from auth.tokens import AccessToken
from storage.database import get_pool

RESERVED_USERNAMES = frozenset({"system", "anonymous", "langgraph-studio-user", "admin", "root", "warren"})
"""Names that the platform or Warren gives a meaning of their own."""

_CACHE_SECONDS = 1.0
_CACHE_SIZE = 10_000

_registered: TTLCache[str, datetime] = TTLCache(_CACHE_SIZE, _CACHE_SECONDS)


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


async def check_password(username: str, password: str) -> None:
    """Check a login. An unknown user costs the same time as a wrong password.

    Raises:
        BadCredentialsError: if the user or the password is wrong; which one is not told.
        BusyError: if too many passwords are being hashed already.
    """
    pool = await get_pool()
    async with pool.connection() as conn:
        cursor = await conn.execute("SELECT password_hash FROM users WHERE username = %s", (username,))
        row = await cursor.fetchone()
    if not await verify_password(password, row["password_hash"] if row else None):
        raise BadCredentialsError


async def check_token_owner(token: AccessToken) -> None:
    """Check that a valid token's user exists and is no younger than the token.

    The signing key may outlive the database: a token of a user of a former one must not open the account
    of someone who registered the same name later. The answer may be up to one second old.

    Raises:
        InvalidTokenError: otherwise.
    """
    registered = _registered.get(token.username)
    if registered is None:
        pool = await get_pool()
        async with pool.connection() as conn:
            cursor = await conn.execute("SELECT created_at FROM users WHERE username = %s", (token.username,))
            row = await cursor.fetchone()
        if row is None:
            raise InvalidTokenError
        registered = _registered[token.username] = row["created_at"]
    if token.issued_at < int(registered.timestamp()):
        raise InvalidTokenError
