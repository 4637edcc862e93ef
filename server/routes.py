"""The routes that are served. Whatever is not named here does not exist for a client.

The platform has more: raw threads and a wipe-all under `/internal`, process control under `/deploy`,
static files without authentication under `/ui`; no setting of langgraph.json removes them all. Crons are
denied by `auth.policy`, batches are of runs without threads, and a websocket is authenticated once for
as long as it lives, where the same protocol over `/stream/events` and `/commands` asks every time.
"""

import re
from itertools import chain
from typing import Final, NamedTuple
from uuid import UUID

from storage.ids import parse_thread_id

UUID_PLACE: Final = "{uuid}"
"""A UUID; the guard rewrites it in its canonical form or refuses it."""

# Printable ASCII: nothing else has a meaning here, and a newline would forge a line of the platform's log.
_SEGMENT: Final = "[!-.0-~]+"

_PLATFORM: Final = (
    ("GET", "/"),
    ("GET", "/ok"),
    ("GET", "/info"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/metrics"),
    ("POST", "/assistants"),
    ("POST", "/assistants/search"),
    ("POST", "/assistants/count"),
    ("GET", "/assistants/{name}"),
    ("PATCH", "/assistants/{name}"),
    ("DELETE", "/assistants/{name}"),
    ("POST", "/assistants/{name}/versions"),
    ("POST", "/assistants/{name}/latest"),
    ("GET", "/assistants/{name}/graph"),
    ("GET", "/assistants/{name}/schemas"),
    ("GET", "/assistants/{name}/subgraphs"),
    ("GET", "/assistants/{name}/subgraphs/{name}"),
    ("POST", "/threads"),
    ("POST", "/threads/search"),
    ("POST", "/threads/count"),
    ("POST", "/threads/prune"),
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
    ("POST", "/threads/{uuid}/stream/events"),
    ("POST", "/threads/{uuid}/commands"),
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
    ("POST", "/runs/cancel"),
    ("PUT", "/store/items"),
    ("GET", "/store/items"),
    ("DELETE", "/store/items"),
    ("POST", "/store/items/search"),
    ("POST", "/store/namespaces"),
)

_OWN: Final = (
    ("POST", "/api/auth/register"),
    ("POST", "/api/auth/login"),
    ("GET", "/api/auth/me"),
    ("POST", "/api/auth/password"),
    ("POST", "/api/auth/logout-everywhere"),
    ("GET", "/api/auth/keys"),
    ("POST", "/api/auth/keys"),
    ("DELETE", "/api/auth/keys/{uuid}"),
    ("GET", "/api/sessions"),
    ("POST", "/api/sessions"),
    ("GET", "/api/sessions/{name}"),
    ("DELETE", "/api/sessions/{name}"),
    ("POST", "/api/sessions/{name}/cancel"),
    ("POST", "/api/chat/{name}"),
    ("POST", "/api/resume/{name}"),
    ("GET", "/api/audit"),
)

ALLOWED: Final = _PLATFORM + _OWN

PUBLIC: Final = frozenset(
    {
        "/",
        "/ok",
        "/info",
        "/docs",
        "/openapi.json",
        "/metrics",
        "/api/auth/register",
        "/api/auth/login",
    }
)
"""What is answered without asking who wants to know; `/metrics` and `/docs` have conditions of their own."""

REFUSED_IN_STREAM: Final = frozenset(
    {
        "/threads/{uuid}/stream",
        "/threads/{uuid}/stream/events",
        "/threads/{uuid}/commands",
        "/threads/{uuid}/runs/{uuid}/join",
        "/threads/{uuid}/runs/{uuid}/stream",
        "/threads/{uuid}/runs/{uuid}/cancel",
    }
)
"""Where the platform answers 200 first and refuses inside the answer, or does something for whoever asks
before it refuses (`cancel?wait=true` subscribes to the run): here the guard asks whose it is."""


CHANGES_ASSISTANTS: Final = frozenset(
    {
        ("POST", "/assistants"),
        ("PATCH", "/assistants/{name}"),
        ("DELETE", "/assistants/{name}"),
        ("POST", "/assistants/{name}/latest"),
    }
)
"""Where the caller's assistants may be others afterwards."""


EDITS_STATE: Final = ("POST", "/threads/{uuid}/state")
"""Where a user writes into the state of their own thread."""


SEARCHES_STORE: Final = ("POST", "/store/items/search")
"""Where the platform takes a field for granted that its own schema does not ask for."""


class Route(NamedTuple):
    """A request's route: its template in `ALLOWED`, and where in the path there are UUIDs."""

    template: str
    uuids: tuple[slice, ...]


def _compile(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    for place in (UUID_PLACE, "{name}"):
        pattern = pattern.replace(re.escape(place), f"({_SEGMENT})" if place == UUID_PLACE else _SEGMENT)
    return re.compile(pattern)


_PATTERNS: Final = {
    method: [(template, _compile(template)) for allowed, template in ALLOWED if allowed == method]
    for method in {method for method, _ in ALLOWED}
}

# Literal paths first, as in ALLOWED.
_ALL_PATTERNS: Final = sorted(chain.from_iterable(_PATTERNS.values()), key=lambda pattern: "{" in pattern[0])


def match(method: str, path: str) -> Route | None:
    """Return the route of a request, None if there is no such route.

    A preflight (OPTIONS) matches what any method matches.
    """
    if method == "HEAD":
        method = "GET"
    patterns = _ALL_PATTERNS if method == "OPTIONS" else _PATTERNS.get(method, [])
    # Literal paths stand before those with places in ALLOWED, so "/threads/search" is not a thread.
    for template, pattern in patterns:
        if found := pattern.fullmatch(path):
            spans = (found.span(group) for group in range(1, len(found.groups()) + 1))
            return Route(template, tuple(slice(*span) for span in spans))
    return None


def canonical(route: Route, path: str) -> str:
    """Return the path with its UUIDs in their canonical form.

    Raises:
        InvalidThreadIdError: if one has no such form.
    """
    # From the right, so that earlier places stay where they are.
    for place in reversed(route.uuids):
        path = f"{path[: place.start]}{parse_thread_id(path[place])}{path[place.stop :]}"
    return path


def thread_of(route: Route, path: str) -> UUID:
    """Return the thread that a canonical path names first."""
    return UUID(path[route.uuids[0]])
