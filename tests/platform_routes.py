"""What the installed platform has, asked of it in a process of its own, without any of Warren's settings."""

import json
import os
import subprocess
import sys
from functools import cache
from typing import NamedTuple

_LIST = """
import json
from langgraph_sdk import Auth
from langgraph_api.auth.custom import _derive_known_resource_actions
from langgraph_api.api import protected_routes, shadowable_meta_routes, unshadowable_meta_routes

found = []
for route in [*shadowable_meta_routes, *unshadowable_meta_routes, *protected_routes]:
    kinds = {"ApiWebSocketRoute": ["WEBSOCKET"], "Mount": ["MOUNT"]}
    methods = getattr(route, "methods", None) or kinds.get(type(route).__name__, ["ANY"])
    found += [(method, route.path) for method in methods if method != "HEAD"]
known = _derive_known_resource_actions(Auth())
events = [[kind, action] for kind, actions in known.items() for action in actions]
print(json.dumps({"routes": found, "events": events}))
"""

_BARE = {
    "DATABASE_URI": ":memory:",
    "REDIS_URI": "fake",
    "MIGRATIONS_PATH": "__inmem",
    "LANGGRAPH_RUNTIME_EDITION": "inmem",
    "LANGSERVE_GRAPHS": "{}",
    "LOG_LEVEL": "CRITICAL",
}


class Platform(NamedTuple):
    """Its routes, by method (or WEBSOCKET, MOUNT) and template, and what its authorization asks about."""

    routes: frozenset[tuple[str, str]]
    events: frozenset[tuple[str, str]]


@cache
def installed_platform() -> Platform:
    """Return what the installed platform has."""
    listed = subprocess.run(
        [sys.executable, "-c", _LIST],
        env={**os.environ, **_BARE},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(listed.stdout.splitlines()[-1])
    return Platform(*(frozenset((first, second) for first, second in found[kind]) for kind in found))
