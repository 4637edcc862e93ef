"""Every route x everybody x ids in path, query and body: nobody gets at alice's things, and she does.

The cases are generated, see `matrix_requests`, and what is expected of each follows from the policy, see
`matrix_routes`. When a route or a field is new, the failure says where to write it down.
"""

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import httpx
import pytest

from server.child import ChildServer
from server.routes import REFUSED_IN_STREAM
from tests.integration.matrix_fields import Things
from tests.integration.matrix_requests import plans, resolved
from tests.integration.matrix_routes import Route, Standing, all_routes, expected, shape
from tests.integration.matrix_sweep import AT_ONCE, Answer, Sweeper, cases_of, of
from tests.integration.matrix_world import MARKER, a_person, give_work, identities, listed, snapshot
from tests.platform_routes import installed_platform

pytestmark = pytest.mark.timeout(600)  # the sweep, on a machine that has other things to do

SHOWN = 15
"""Failures that a message names."""

REFUSED_TO_ALL = {
    "POST /runs": "a run needs a thread",
    "POST /api/auth/register": "the name is taken, by its own user",
    "POST /api/resume/{session_id}": "nothing is pending in a thread that has just been made",
}
"""Where even the owner's well-formed requests get no 2xx, and why."""


class Sweep(NamedTuple):
    """All answers, and what alice had before and after the others' part of it."""

    routes: list[Route]
    answers: list[Answer]
    alice: Things
    before: dict[str, Any]
    after: dict[str, Any]
    bobs_in_the_end: str


@pytest.fixture(scope="module")
async def client(server: ChildServer) -> AsyncIterator[httpx.AsyncClient]:
    # Connections are given up well before the server does, which could do so in the middle of a request.
    limits = httpx.Limits(max_connections=2 * AT_ONCE, keepalive_expiry=1)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
        yield client


@pytest.fixture(scope="module")
async def routes(client: httpx.AsyncClient) -> list[Route]:
    document = (await client.get("/openapi.json")).raise_for_status().json()
    components = document["components"]["schemas"]
    return all_routes({"paths": resolved(document["paths"], components)}, installed_platform().routes)


@pytest.fixture(scope="module")
async def sweep(client: httpx.AsyncClient, server: ChildServer, routes: list[Route], database: None) -> Sweep:
    alice, bob = await a_person(client, server, MARKER), await a_person(client, server, "bob's")
    await give_work(alice)
    everybody = await identities(client, server, alice, bob)
    sweeper = Sweeper(client, server, alice, bob)
    cases = [case for identity in everybody for case in cases_of(identity, routes)]
    before = await snapshot(client, server, alice)
    answers = await sweeper.all(of(cases, Standing.OUTSIDER))
    # Reading comes before writing: later bob's own things hold the ids that he has put into them.
    answers += await sweeper.all(of(cases, Standing.OTHER, reading=True))
    answers += await sweeper.all(of(cases, Standing.OTHER, reading=False))
    after = await snapshot(client, server, alice)
    bobs = await listed(bob)
    answers += await sweeper.all(of(cases, Standing.OWNER, reading=True))
    answers += await sweeper.all(of(cases, Standing.OWNER, reading=False))
    return Sweep(routes, answers, alice.things, before, after, bobs)


def is_refused_inside(answer: Answer) -> bool:
    """Tell whether the platform had said 200 before it looked for the run."""
    streams = {shape(template) for template in REFUSED_IN_STREAM}
    refused = '"404: Run not found"' in answer.text
    return answer.status == 200 and refused and shape(answer.case.plan.route.template) in streams


def first(answers: list[Answer], wrong: Callable[[Answer], bool]) -> str:
    """Return the wrong ones, as a message; empty if all are right."""
    found = [str(answer) for answer in answers if wrong(answer)]
    return "\n".join([f"{len(found)} wrong:", *found[:SHOWN]]) if found else ""


def test_every_route_and_field_is_known(routes: list[Route]) -> None:
    for route in routes:
        assert list(plans(route)), route  # or it says what is missing


def test_every_answer_is_what_the_policy_says(sweep: Sweep) -> None:
    def wrong(answer: Answer) -> bool:
        identity, plan = answer.case
        right = expected(plan.route, identity, plan.foreign)
        return answer.status not in right and not (404 in right and is_refused_inside(answer))

    assert not (message := first(sweep.answers, wrong)), message


def test_no_answer_to_anybody_else_shows_anything_of_alices(sweep: Sweep) -> None:
    def wrong(answer: Answer) -> bool:
        identity, plan = answer.case
        if identity.standing is Standing.OWNER:
            return False
        # What somebody has sent may come back, but not among what a search has found.
        found = answer.status < 300 and plan.route.event is not None and plan.route.event[1] == "search"
        sent = "" if found else json.dumps(answer.request).lower()
        secrets = [MARKER, *(an_id for an_id in sweep.alice.ids() if an_id not in sent)]
        return any(secret in answer.text.lower() for secret in secrets)

    assert not (message := first(sweep.answers, wrong)), message
    assert MARKER not in sweep.bobs_in_the_end


def test_nothing_breaks_the_server(sweep: Sweep) -> None:
    assert not (message := first(sweep.answers, lambda answer: answer.status >= 500)), message


def test_what_alice_has_is_as_it_was(sweep: Sweep) -> None:
    assert MARKER in json.dumps(sweep.before, default=str)
    assert sweep.after == sweep.before


def test_alice_herself_gets_in_everywhere_with_the_very_same_requests(sweep: Sweep) -> None:
    """The control: what others are refused is refused for who they are, not for a slip in the request."""
    served = {
        str(answer.case.plan.route)
        for answer in sweep.answers
        if answer.case.identity.name == "owner" and answer.status < 300
    }
    wanted = {str(route) for route in sweep.routes if route.served} - REFUSED_TO_ALL.keys()
    assert wanted - served == set()
    assert served.isdisjoint(REFUSED_TO_ALL)


def test_alice_sees_her_markers_where_others_must_not(sweep: Sweep) -> None:
    """The control of the marker: it is where the others were looking."""
    shown = {
        str(answer.case.plan.route)
        for answer in sweep.answers
        if answer.case.identity.standing is Standing.OWNER and MARKER in answer.text
    }
    assert shown >= {
        "POST /threads/search",
        "GET /threads/{thread_id}/state",
        "GET /threads/{thread_id}/runs/{run_id}/join",
        "POST /assistants/search",
        "GET /assistants/{assistant_id}",
        "GET /store/items",
        "POST /store/items/search",
        "GET /api/auth/keys",
        "GET /api/audit",
        "GET /api/sessions/{session_id}",
    }


def test_the_matrix_is_shown(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    """In the log of every run, whatever its outcome."""
    columns = list(dict.fromkeys(answer.case.identity.name for answer in sweep.answers))
    cells: dict[tuple[str, str], set[int]] = defaultdict(set)
    for answer in sweep.answers:
        cells[str(answer.case.plan.route), answer.case.identity.name].add(answer.status)
    texts = {place: "/".join(map(str, sorted(statuses))) for place, statuses in cells.items()}
    rows = list(dict.fromkeys(row for row, _ in texts))
    widths = {
        column: max(len(column), *(len(texts.get((row, column), "")) for row in rows)) for column in columns
    }
    first_width = max(map(len, rows))
    with capsys.disabled():
        print(f"\nAuthorization matrix: {len(sweep.answers)} cases, {len(rows)} routes")  # noqa: T201
        print(" " * first_width, *(f"{column:{widths[column]}}" for column in columns))  # noqa: T201
        for row in rows:
            print(  # noqa: T201
                f"{row:{first_width}}",
                *(f"{texts.get((row, column), ''):{widths[column]}}" for column in columns),
            )
    assert set(rows) == {str(route) for route in sweep.routes}
