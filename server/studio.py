"""LangGraph Studio cannot log in: if the operator says so, a browser on this machine acts as one user."""

import os
from urllib.parse import urlsplit

from starlette.types import Scope

from auth import standing
from auth.settings import get_settings as get_auth_settings
from auth.tokens import issue_token
from server.hosts import LOOPBACK_NAMES, host_name, is_loopback
from server.origins import STUDIO_ORIGIN
from server.requests import Header, header_of, is_direct_from_loopback
from server.settings import get_settings

_STUDIO_SCHEME = "langsmith"


def is_local_only() -> bool:
    """Tell whether this server is for this machine alone: what it listens on, and who it says it may be.

    The platform notes its address in the environment.
    """
    listens_on = urlsplit(os.environ.get("LANGGRAPH_API_URL", "")).hostname or ""
    has_proxies = bool(get_auth_settings().trusted_proxies)
    return is_loopback(listens_on) and not has_proxies and get_settings().allowed_hosts <= LOOPBACK_NAMES


async def credentials(scope: Scope) -> Header | None:
    """Return the Authorization header that Studio's request gets, None if it is not Studio's or not let in.

    All must hold: STUDIO_USER is set and may log in, the server is for this machine alone, the peer is
    loopback, nothing hints at a proxy in between, Host is a loopback name, and Origin is Studio's, which a
    page elsewhere cannot claim.
    """
    username = get_settings().studio_user
    if username is None or header_of(scope, b"x-auth-scheme") != _STUDIO_SCHEME:
        return None
    let_in = (
        is_local_only()
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
