"""Nothing the platform has is left undecided: every event has a rule, every route is served or not.

When a test here fails after an upgrade, the platform has grown. Decide what the new thing may do for whom,
then write it down: an event in auth/policy.py, a served route in server/routes.py (and its answers in
tests/integration/test_matrix.py), a route that is not served in NOT_SERVED below, with the reason.
"""

import re

import pytest

from auth.policy import POLICY, Rule
from auth.rules import _RULES
from server.routes import ALLOWED
from tests.platform_routes import installed_platform

NOT_SERVED = {
    # Crons are denied, see auth.policy.
    ("POST", "/runs/crons"),
    ("POST", "/runs/crons/search"),
    ("POST", "/runs/crons/count"),
    ("GET", "/runs/crons/{}"),
    ("PATCH", "/runs/crons/{}"),
    ("DELETE", "/runs/crons/{}"),
    ("POST", "/threads/{}/runs/crons"),
    # Runs without threads, many at once.
    ("POST", "/runs/batch"),
    # Only the built-in checkpointer has figures; with ours it answers 501.
    ("GET", "/threads/{}/storage"),
    # A websocket is authenticated once for as long as it lives.
    ("WEBSOCKET", "/threads/{}/stream/events"),
    # Development tools of the platform: they show any thread, wipe everything, start processes.
    ("GET", "/internal/debug/thread/{}"),
    ("POST", "/internal/truncate"),
    ("POST", "/deploy"),
    ("GET", "/deploy"),
    ("GET", "/deploy/{}/stream"),
    # Switched off in langgraph.json, as are the agent protocols below.
    ("POST", "/ui/{}"),
    ("MOUNT", "/ui"),
}
SWITCHED_OFF = ("/a2a/", "/mcp", "/.well-known/")

Routes = set[tuple[str, str]]


@pytest.fixture(scope="module")
def routes() -> Routes:
    return {(method, re.sub("{[^}]*}", "{}", path)) for method, path in installed_platform().routes}


def served() -> Routes:
    return {
        (method, template.replace("{uuid}", "{}").replace("{name}", "{}")) for method, template in ALLOWED
    }


def test_every_route_of_the_platform_is_served_on_purpose_or_not_at_all(routes: Routes) -> None:
    switched_off = {route for route in routes if route[1].startswith(SWITCHED_OFF)}
    undecided = routes - served() - NOT_SERVED - switched_off
    assert not undecided, f"new routes, see the top of this file: {sorted(undecided)}"
    assert not (NOT_SERVED | switched_off) & served()
    gone = NOT_SERVED - routes
    assert not gone, f"the platform no longer has these, forget them: {sorted(gone)}"


def test_what_is_served_exists(routes: Routes) -> None:
    missing = {route for route in served() - routes if not route[1].startswith("/api/")}
    assert not missing


def test_every_event_of_the_platform_has_a_rule() -> None:
    assert installed_platform().events == set(POLICY), "see the top of this file"


def test_every_rule_is_carried_out() -> None:
    assert set(_RULES) == set(Rule)
