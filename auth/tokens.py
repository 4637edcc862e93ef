"""Access tokens: signed, short-lived, and naming a user."""

import time
from dataclasses import dataclass

import jwt

from auth.errors import InvalidTokenError
from auth.secret import signing_key
from auth.settings import get_settings
from storage.ids import is_username

_ALGORITHM = "HS256"
_ISSUER = _AUDIENCE = "warren"
_REQUIRED_CLAIMS = ["sub", "iat", "exp", "iss", "aud"]
_MAX_TOKEN_LENGTH = 4096


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What a valid token says: whose it is, and when it was issued (seconds since 1970)."""

    username: str
    issued_at: int


def issue_token(username: str) -> tuple[str, int]:
    """Return a new token for `username` and its lifetime in seconds."""
    lifetime = int(get_settings().access_token_expire_hours * 3600)
    now = int(time.time())
    claims = {"sub": username, "iat": now, "exp": now + lifetime, "iss": _ISSUER, "aud": _AUDIENCE}
    return jwt.encode(claims, signing_key(), algorithm=_ALGORITHM), lifetime


def read_token(token: str) -> AccessToken:
    """Verify a token and return what it says.

    Raises:
        InvalidTokenError: whatever is wrong with it; the reason is not told.
    """
    if len(token) > _MAX_TOKEN_LENGTH:
        raise InvalidTokenError
    try:
        claims = jwt.decode(
            token,
            signing_key(),
            algorithms=[_ALGORITHM],
            issuer=_ISSUER,
            audience=_AUDIENCE,
            options={"require": _REQUIRED_CLAIMS, "strict_aud": True},
        )
        username, issued_at = claims["sub"], int(claims["iat"])
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
        raise InvalidTokenError from None
    if not isinstance(username, str) or not is_username(username):
        raise InvalidTokenError
    return AccessToken(username, issued_at)
