"""From a request's headers to a user."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from auth import keys, standing
from auth.errors import InvalidTokenError
from auth.tokens import read_token

Headers = Mapping[bytes, bytes] | Mapping[str, str]

_BEARER = "bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request.

    Attributes:
        username: who it is.
        via: what proved it. An API key may not manage what lets people in.
        token_version: the user's when it was proved, up to one second ago.
    """

    username: str
    via: Literal["token", "api_key"]
    token_version: int


async def authenticate_headers(headers: Headers) -> str:
    """Return the username that a request's headers prove; see `identify`."""
    return (await identify(headers)).username


async def identify(headers: Headers, *, may_have_expired: bool = False) -> Caller:
    """Return who sent a request, by the access token or the API key in its headers.

    It is taken from `Authorization: Bearer`, or, when that header is absent, from `X-Api-Key`. The first
    wins, since SDKs send an ambient LANGSMITH_API_KEY as X-Api-Key by themselves. A change that another
    process made (a password, a disabled user) is noticed within one second, one of this process at once.

    Args:
        headers: lower-case names, bytes or text; engines differ.
        may_have_expired: for a request that began in time and is still being served.

    Raises:
        InvalidTokenError: if there is no credential, or it is not valid.
    """
    credential = _credential_of(headers)
    if keys.is_key(credential):
        return await _by_key(credential, may_have_expired=may_have_expired)
    return await _by_token(credential, may_have_expired=may_have_expired)


async def _by_token(text: str, *, may_have_expired: bool) -> Caller:
    token = read_token(text, may_have_expired=may_have_expired)
    user = await standing.of_user(token.username)
    if user is None or user.disabled or user.token_version != token.version:
        raise InvalidTokenError
    # The signing key may outlive the database: a token of a user of a former one must not open the
    # account of someone who registered the same name later.
    if token.issued_at < int(user.created_at.timestamp()):
        raise InvalidTokenError
    return Caller(user.username, "token", user.token_version)


async def _by_key(text: str, *, may_have_expired: bool) -> Caller:
    key = await standing.of_key(keys.hash_of(text))
    if key is None or key.key_id is None or key.disabled:
        raise InvalidTokenError
    if key.key_expires_at is not None and key.key_expires_at <= datetime.now(UTC) and not may_have_expired:
        raise InvalidTokenError
    keys.note_use(key.key_id)
    return Caller(key.username, "api_key", key.token_version)


def _credential_of(headers: Headers) -> str:
    texts = {_text(name): _text(value) for name, value in headers.items()}
    authorization = texts.get("authorization")
    if authorization is None:
        return texts.get("x-api-key", "")
    if not authorization.lower().startswith(_BEARER):
        raise InvalidTokenError
    return authorization[len(_BEARER) :].strip()


def _text(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
