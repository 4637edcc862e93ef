"""The routes that are served. Whatever is not named here does not exist for a client.

The platform has more: raw threads and a wipe-all under `/internal`, process control under `/deploy`,
static files without authentication under `/ui`. No setting of langgraph.json removes them all.
"""

import re
from typing import Final

UUID_PLACE: Final = "{uuid}"
"""A UUID; the guard rewrites it in its canonical form or refuses it."""

_SEGMENT: Final = "[^/]+"

_PLATFORM: Final = (
    ("GET", "/"),
    ("GET", "/ok"),
    ("GET", "/info"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("POST", "/assistants/search"),
    ("POST", "/assistants/count"),
    ("GET", "/assistants/{name}"),
    ("GET", "/assistants/{name}/graph"),
    ("GET", "/assistants/{name}/schemas"),
    ("GET", "/assistants/{name}/subgraphs"),
    ("GET", "/assistants/{name}/subgraphs/{name}"),
    ("POST", "/threads"),
    ("POST", "/threads/search"),
    ("POST", "/threads/count"),
    ("GET", "/threads/{uuid}"),
    ("PATCH", "/threads/{uuid}"),
    ("DELETE", "/threads/{uuid}"),
    ("GET", "/threads/{uuid}/state"),
    ("POST", "/threads/{uuid}/state"),
    ("GET", "/threads/{uuid}/state/{uuid}"),
    ("POST", "/threads/{uuid}/state/checkpoint"),
    ("GET", "/threads/{uuid}/history"),
    ("POST", "/threads/{uuid}/history"),
    ("POST", "/threads/{uuid}/copy"),
    ("GET", "/threads/{uuid}/stream"),
    ("GET", "/threads/{uuid}/runs"),
    ("POST", "/threads/{uuid}/runs"),
    ("POST", "/threads/{uuid}/runs/stream"),
    ("POST", "/threads/{uuid}/runs/wait"),
    ("GET", "/threads/{uuid}/runs/{uuid}"),
    ("DELETE", "/threads/{uuid}/runs/{uuid}"),
    ("GET", "/threads/{uuid}/runs/{uuid}/join"),
    ("GET", "/threads/{uuid}/runs/{uuid}/stream"),
    ("POST", "/threads/{uuid}/runs/{uuid}/cancel"),
    # Runs without a thread are refused by the authorization handler, which says what to do instead.
    ("POST", "/runs"),
    ("POST", "/runs/stream"),
    ("POST", "/runs/wait"),
)

_OWN: Final = (
    ("POST", "/api/auth/register"),
    ("POST", "/api/auth/login"),
    ("GET", "/api/sessions"),
    ("POST", "/api/sessions"),
    ("GET", "/api/sessions/{name}"),
    ("DELETE", "/api/sessions/{name}"),
    ("POST", "/api/sessions/{name}/cancel"),
    ("POST", "/api/chat/{name}"),
    ("POST", "/api/resume/{name}"),
)

ALLOWED: Final = _PLATFORM + _OWN


def _compile(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    for place in (UUID_PLACE, "{name}"):
        pattern = pattern.replace(re.escape(place), f"({_SEGMENT})" if place == UUID_PLACE else _SEGMENT)
    return re.compile(pattern)


_BY_METHOD: Final = {
    method: [_compile(template) for allowed, template in ALLOWED if allowed == method]
    for method in {method for method, _ in ALLOWED}
}


def match(method: str, path: str) -> re.Match[str] | None:
    """Return the match of an allowed route, its groups the places of UUIDs; None if there is no such route.

    A preflight (OPTIONS) matches what any method matches.
    """
    if method == "HEAD":
        method = "GET"
    patterns = (
        [pattern for patterns in _BY_METHOD.values() for pattern in patterns]
        if method == "OPTIONS"
        else _BY_METHOD.get(method, [])
    )
    # Literal paths stand before those with places in ALLOWED, so "/threads/search" is not a thread.
    return next((found for pattern in patterns if (found := pattern.fullmatch(path))), None)
