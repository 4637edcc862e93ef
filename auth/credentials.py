"""From a request's headers to a user."""

from collections.abc import Mapping

from auth.accounts import check_token_owner
from auth.errors import InvalidTokenError
from auth.tokens import read_token

_BEARER = "bearer "


async def authenticate_headers(headers: Mapping[bytes, bytes] | Mapping[str, str]) -> str:
    """Return the username that a request's headers prove.

    A token is taken from `Authorization: Bearer`, or, when that header is absent, from `X-Api-Key`. The
    first wins, since SDKs send an ambient LANGSMITH_API_KEY as X-Api-Key by themselves.

    Args:
        headers: lower-case names, bytes or text; engines differ.

    Raises:
        InvalidTokenError: if there is no token, or it is not valid.
    """
    token = read_token(_token_from(headers))
    await check_token_owner(token)
    return token.username


def _token_from(headers: Mapping[bytes, bytes] | Mapping[str, str]) -> str:
    texts = {_text(name): _text(value) for name, value in headers.items()}
    authorization = texts.get("authorization")
    if authorization is None:
        return texts.get("x-api-key", "")
    if not authorization.lower().startswith(_BEARER):
        raise InvalidTokenError
    return authorization[len(_BEARER) :].strip()


def _text(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
