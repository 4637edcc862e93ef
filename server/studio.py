"""LangGraph Studio cannot log in: if the operator says so, a browser on this machine acts as one user."""

import os
from urllib.parse import urlsplit

from starlette.types import Scope

from auth import standing
from auth.tokens import issue_token
from server.hosts import LOOPBACK_NAMES, host_name, is_loopback
from server.requests import Header, header_of, is_direct_from_loopback
from server.settings import get_settings

STUDIO_ORIGIN = "https://smith.langchain.com"
_STUDIO_SCHEME = "langsmith"


def listens_on_loopback() -> bool:
    """Tell whether the server was told to listen on loopback only (the platform notes its address)."""
    return is_loopback(urlsplit(os.environ.get("LANGGRAPH_API_URL", "")).hostname or "")


async def credentials(scope: Scope) -> Header | None:
    """Return the Authorization header that Studio's request gets, None if it is not Studio's or not let in.

    All must hold: STUDIO_USER is set and may log in, the server listens on loopback, the peer is loopback,
    no proxy stands between, Host is a loopback name, and Origin is Studio's, which a page elsewhere cannot
    claim.
    """
    username = get_settings().studio_user
    if username is None or header_of(scope, b"x-auth-scheme") != _STUDIO_SCHEME:
        return None
    let_in = (
        listens_on_loopback()
        and is_direct_from_loopback(scope)
        and host_name(header_of(scope, b"host")) in LOOPBACK_NAMES
        and header_of(scope, b"origin") == STUDIO_ORIGIN
    )
    if not let_in:
        return None
    user = await standing.of_user(username)
    if user is None or user.disabled:
        return None
    token, _ = issue_token(username, user.token_version)
    return b"authorization", f"Bearer {token}".encode()
