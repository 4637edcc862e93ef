"""Whose pages a browser may let ask this server: CORS for their reading, and a check of our own for the rest.

CORS keeps a foreign page from reading answers and from sending what needs a preflight. A plain form or text
goes out all the same, and a login or a registration needs no more.
"""

from typing import Any, Final
from urllib.parse import urlsplit

from server.hosts import LOOPBACK_NAMES
from server.settings import get_settings

STUDIO_ORIGIN: Final = "https://smith.langchain.com"


def is_welcome(origin: str, host: str) -> bool:
    """Tell whether a page of `origin` may ask; `host` is the request's own Host header.

    Without CORS_ORIGINS these are pages on this machine and Studio, as langgraph.json says. A page that this
    very server, or a proxy before it, has delivered under the same name may always.
    """
    try:
        parts = urlsplit(origin)
        name = parts.hostname
    except ValueError:
        return False
    if parts.netloc == host:
        return True
    if (chosen := get_settings().cors_origins) is not None:
        return bool(chosen & {origin, "*"})
    return origin == STUDIO_ORIGIN or name in LOOPBACK_NAMES


def with_chosen_origins(http: dict[str, Any]) -> dict[str, Any]:
    """Return langgraph.json's `http` with the origins of CORS_ORIGINS, if it is set."""
    if (chosen := get_settings().cors_origins) is None:
        return http
    cors = {name: value for name, value in http["cors"].items() if name != "allow_origin_regex"}
    return {**http, "cors": {**cors, "allow_origins": sorted(chosen)}}
