"""Access tokens: signed, short-lived, and naming a user."""

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jwt

from auth.errors import InvalidTokenError
from auth.secret import previous_keys, signing_key
from auth.settings import get_settings
from storage.ids import is_username

_ALGORITHM = "HS256"
_ISSUER = _AUDIENCE = "warren"
_REQUIRED_CLAIMS = ["sub", "ver", "iat", "exp", "iss", "aud"]
_MAX_TOKEN_LENGTH = 4096
_REMEMBERED = 4096
"""Tokens whose signature is not verified again: it took half of what authentication costs a request."""


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What a valid token says.

    Attributes:
        username: whose it is.
        issued_at: when it was issued, in seconds since 1970.
        expires_at: from when on it is not good any more, likewise.
        version: the user's `token_version` then; it is good while that is still the same.
    """

    username: str
    issued_at: int
    expires_at: int
    version: int


def issue_token(username: str, version: int) -> tuple[str, int]:
    """Return a new token for `username` at `token_version` `version`, and its lifetime in seconds."""
    lifetime = int(get_settings().access_token_expire_hours * 3600)
    now = int(time.time())
    claims = {
        "sub": username,
        "ver": version,
        "iat": now,
        "exp": now + lifetime,
        "iss": _ISSUER,
        "aud": _AUDIENCE,
    }
    return jwt.encode(claims, signing_key(), algorithm=_ALGORITHM), lifetime


def read_token(token: str, *, may_have_expired: bool = False) -> AccessToken:
    """Verify a token and return what it says.

    Args:
        token: what the client sent.
        may_have_expired: for a request that began while the token was valid.

    Raises:
        InvalidTokenError: whatever is wrong with it; the reason is not told.
    """
    if len(token) > _MAX_TOKEN_LENGTH:
        raise InvalidTokenError
    verified = _verify(token)
    if verified.expires_at <= time.time() and not may_have_expired:
        raise InvalidTokenError
    return verified


@lru_cache(_REMEMBERED)
def _verify(token: str) -> AccessToken:
    """Return what a token says, expired or not. Only what was found good is remembered."""
    try:
        claims = _verified_claims(token)
        username, version = claims["sub"], claims["ver"]
        issued_at, expires_at = int(claims["iat"]), int(claims["exp"])
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
        raise InvalidTokenError from None
    if not isinstance(username, str) or not is_username(username) or type(version) is not int:
        raise InvalidTokenError
    return AccessToken(username, issued_at, expires_at, version)


def _verified_claims(token: str) -> dict[str, Any]:
    try:
        return _decode(token, signing_key())
    except jwt.InvalidSignatureError:
        for key in previous_keys():
            try:
                return _decode(token, key)
            except jwt.InvalidSignatureError:
                continue
        raise


def _decode(token: str, key: bytes) -> dict[str, Any]:
    return jwt.decode(
        token,
        key,
        algorithms=[_ALGORITHM],
        issuer=_ISSUER,
        audience=_AUDIENCE,
        options={"require": _REQUIRED_CLAIMS, "strict_aud": True, "verify_exp": False},
    )
