"""The authorization matrix's rows and columns, and what is expected where they meet.

A cell's expectation follows from `auth.policy` and `server.routes`: a route's event by the words in its path,
the event's rule, and what the rule answers to someone whose things they are not.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from auth.policy import POLICY, Rule
from server.routes import ALLOWED

Statuses = frozenset[int]

OPEN = frozenset(
    {
        ("GET", "/"),
        ("GET", "/ok"),
        ("GET", "/info"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/metrics"),
        ("POST", "/api/auth/register"),
        ("POST", "/api/auth/login"),
    }
)
"""The only routes for people who have not proved who they are; written out, lest one is added in passing."""

LOGIN_ONLY_PREFIX = "/api/auth/"
FOR_KEYS_TOO = ("GET", "/api/auth/me")
"""Of what lets people in, all that an API key may ask for."""

SUBJECTS = frozenset(
    {
        "thread_id",
        "thread_ids",
        "run_id",
        "run_ids",
        "assistant_id",
        "session_id",
        "key_id",
        "namespace",
        "namespace_prefix",
        "prefix",
    }
)
"""What a request acts on. All else that may hold an id only narrows it down, and must not widen it."""

SERVED = frozenset(range(200, 500))
REFUSED = frozenset(range(400, 500)) - {401}

_REFUSALS: dict[Rule, Statuses] = {
    Rule.DENY: frozenset({404}),
    Rule.CLAIM: frozenset({403}),
    Rule.OWN_THREAD: frozenset({403}),
    Rule.OWN_THREAD_READ: frozenset({403}),
    Rule.OWN_RUN: frozenset({403}),
    # Taken, without saying whose it is.
    Rule.OWN_ASSISTANT: frozenset({404, 409}),
    Rule.SYSTEM_OR_OWN_ASSISTANT: frozenset({404}),
    Rule.OWN_NAMESPACE: frozenset({403}),
}
_REFUSALS_OF_PARTS = {
    # The thread is the caller's: there is no such run in it.
    "run_id": frozenset({404}),
    "run_ids": frozenset({404}),
    "key_id": frozenset({404}),
    "session_id": frozenset({403}),
}

_STARTS_RUNS = frozenset({"runs", "stream", "wait", "commands", "batch"})
_BY_LAST_WORD = {
    "search": "search",
    "count": "search",
    "versions": "search",
    "namespaces": "list_namespaces",
    "prune": "delete",
    "latest": "update",
    "cancel": "update",
    "state": "update",
    "history": "read",
    "checkpoint": "read",
    "events": "read",
    "copy": "read",
}
_BY_METHOD = {"GET": "read", "POST": "create", "PATCH": "update", "PUT": "put", "DELETE": "delete"}

_READING = frozenset({"read", "search", "get", "list_namespaces"})


class Standing(Enum):
    """How an identity stands to alice's things."""

    OUTSIDER = auto()
    OTHER = auto()
    OWNER = auto()


@dataclass(frozen=True)
class Identity:
    """A column: whom a request claims to be from."""

    name: str
    standing: Standing
    headers: Mapping[str, str]
    by_key: bool = False


@dataclass(frozen=True)
class Route:
    """A row: a method and a template with named places; what OpenAPI says of it, and whether it is served."""

    method: str
    template: str
    operation: Mapping[str, Any]
    served: bool

    def __str__(self) -> str:
        return f"{self.method} {self.template}"

    @property
    def key(self) -> tuple[str, str]:
        return self.method, self.template

    @property
    def is_own(self) -> bool:
        return self.template.startswith("/api/")

    @property
    def event(self) -> tuple[str, str] | None:
        """What the platform asks the policy about, None where it does not ask."""
        if self.is_own or self.key in OPEN:
            return None
        words = [word for word in self.template.split("/") if word and not word.startswith("{")]
        resource = {"runs": "threads"}.get(words[0], words[0])
        action = _BY_METHOD.get(self.method, "")
        if "crons" in words:
            resource = "crons"
        elif resource == "threads" and self.method == "POST" and words[-1] in _STARTS_RUNS:
            action = "create_run"
        elif resource == "store" and action == "read":
            action = "get"
        if self.method == "POST":
            action = action if action == "create_run" else _BY_LAST_WORD.get(words[-1], action)
        return resource, action

    @property
    def reads_only(self) -> bool:
        if self.method == "GET":
            return True
        return self.event is not None and self.event[1] in _READING and not self.template.endswith("/copy")


def all_routes(document: Mapping[str, Any], platform: frozenset[tuple[str, str]]) -> list[Route]:
    """Return every route of the server's OpenAPI, of the platform's own table, and of the guard's.

    Raises:
        AssertionError: for a served route whose places have no names.
    """
    described = {
        (method.upper(), path): operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    served = {(method, shape(template)) for method, template in ALLOWED}
    rows: dict[tuple[str, str], Route] = {}
    for method, template in [*described, *sorted(platform)]:
        key = (method, shape(template))
        operation = described.get((method, template), {})
        rows.setdefault(key, Route(method, template, operation, served=key in served))
    nameless = served - rows.keys()
    assert not nameless, f"served, but neither in OpenAPI nor in the platform's routes: {nameless}"
    return sorted(rows.values(), key=lambda route: (route.template, route.method))


def shape(template: str) -> str:
    return re.sub("{[^}]*}", "{}", template)


def expected(route: Route, identity: Identity, foreign: frozenset[str]) -> Statuses:
    """Return the statuses that are right for a request in which the places `foreign` name alice's things."""
    if route.method == "WEBSOCKET":
        return frozenset({403})
    if not route.served:
        return frozenset({404})
    if route.key in OPEN:
        return SERVED
    if identity.standing is Standing.OUTSIDER:
        return frozenset({401})
    return _expected_of_a_user(route, identity, foreign)


def _expected_of_a_user(route: Route, identity: Identity, foreign: frozenset[str]) -> Statuses:
    if identity.by_key and route.template.startswith(LOGIN_ONLY_PREFIX) and route.key != FOR_KEYS_TOO:
        return frozenset({403})
    if identity.standing is Standing.OWNER:
        return SERVED - {401, 403}
    subjects = foreign & SUBJECTS
    if not subjects:
        return SERVED - {401}
    return _refusals(route, *subjects) if subjects == foreign and len(subjects) == 1 else REFUSED


def _refusals(route: Route, subject: str) -> Statuses:
    if subject in _REFUSALS_OF_PARTS:
        return _REFUSALS_OF_PARTS[subject]
    event = route.event
    if subject == "assistant_id" and event == ("threads", "create_run"):
        if "{thread_id}" not in route.template:
            return frozenset({400, 404, 422})  # whatever is looked at first: no thread is named, either
        event = ("assistants", "read")
    assert event in POLICY, f"{route}: auth/policy.py has no rule for {event}; see Route.event"
    return _REFUSALS[POLICY[event]]
