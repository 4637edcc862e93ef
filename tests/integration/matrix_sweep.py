"""The sending of the authorization matrix's requests, and what came back."""

import asyncio
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import httpx
import websockets

from server.child import ChildServer
from tests.conftest import new_user
from tests.integration.matrix_fields import NOBODYS, Things
from tests.integration.matrix_requests import Plan, Request, plans
from tests.integration.matrix_routes import Identity, Route, Standing, expected
from tests.integration.matrix_world import Person, fresh_things

AT_ONCE = 16
BROKEN_OFF = 599
"""Stands for no answer at all."""

_STREAM_SECONDS = 1.0
"""How much of a stream without an end is read."""

_ENDS_SESSIONS = frozenset({"/api/auth/password", "/api/auth/logout-everywhere"})
"""Asked by a user made for it: nobody else's credential would be good afterwards."""

_TURNS = ("all else", "cancels one run", "cancels all runs")


class Case(NamedTuple):
    """One request: whose, and what for."""

    identity: Identity
    plan: Plan


@dataclass(frozen=True)
class Answer:
    """What came back, headers included."""

    case: Case
    request: Request
    status: int
    text: str

    def __str__(self) -> str:
        route, sent = self.case.plan.route, json.dumps(self.request)
        foreign = ", ".join(sorted(self.case.plan.foreign)) or "nothing"
        return (
            f"{self.case.identity.name}: {route} naming {foreign} of alice's -> {self.status},"
            f" expected {sorted(expected(route, self.case.identity, self.case.plan.foreign))[:4]}"
            f"\n    sent {sent}\n    got {self.text[-300:]}"
        )


def cases_of(identity: Identity, routes: Iterable[Route]) -> list[Case]:
    """Return an identity's cases. Those that would send the same are one."""
    alices = NOBODYS if identity.standing is Standing.OWNER else Things(*"abcdefgh")
    found: dict[tuple[tuple[str, str], str], Case] = {}
    for route in routes:
        for plan in plans(route):
            if plan.is_variation and (identity.by_key or identity.standing is Standing.OUTSIDER):
                continue  # refused before it is read, or the same again for a token
            found.setdefault((route.key, json.dumps(plan.request(NOBODYS, alices))), Case(identity, plan))
    return list(found.values())


def _turn(case: Case) -> str:
    template = case.plan.route.template
    return _TURNS[template.endswith("/cancel") + (template == "/runs/cancel")]


def of(cases: list[Case], standing: Standing, *, reading: bool | None = None) -> list[Case]:
    return [
        case
        for case in cases
        if case.identity.standing is standing and reading in (None, case.plan.route.reads_only)
    ]


class Sweeper:
    """Sends the cases' requests, some at once."""

    def __init__(self, client: httpx.AsyncClient, server: ChildServer, alice: Person, bob: Person) -> None:
        self._client = client
        self._server = server
        self._alice = alice
        self._bob = bob
        self._places = asyncio.Semaphore(AT_ONCE)

    async def all(self, cases: list[Case]) -> list[Answer]:
        answers: list[Answer] = []
        # What takes long runs comes after what waits for others to end, and what ends all of them last.
        for turn in _TURNS:
            batch = [case for case in cases if _turn(case) == turn]
            answers += await asyncio.gather(*(self._one(case) for case in batch))
        return answers

    async def _one(self, case: Case) -> Answer:
        async with self._places:
            identity, plan = case
            headers, own = identity.headers, NOBODYS
            if identity.standing is not Standing.OUTSIDER:
                caller = self._bob if identity.standing is Standing.OTHER else self._alice
                own = caller.things
                named_own = plan.needs_own or identity.standing is Standing.OWNER
                if plan.route.served and not plan.route.reads_only and named_own:
                    own = await fresh_things(self._client, caller, plan)
            if plan.route.template in _ENDS_SESSIONS and identity.standing is not Standing.OUTSIDER:
                headers = headers if identity.by_key else (await new_user(self._server)).headers
            named = own if identity.standing is Standing.OWNER else self._alice.things
            request = plan.request(own, named)
            if plan.route.method == "WEBSOCKET":
                return Answer(case, request, *await self._connect(request, dict(headers)))
            return Answer(case, request, *await self._send(plan.route, request, dict(headers)))

    async def _send(self, route: Route, request: Request, headers: dict[str, str]) -> tuple[int, str]:
        sending = self._client.stream(
            "GET" if route.method == "MOUNT" else route.method,
            request.path,
            params=request.query,
            json=request.body,
            headers=headers,
        )
        try:
            async with sending as response:
                return response.status_code, f"{response.headers}{await _text(response)}"
        except httpx.TransportError as error:
            return BROKEN_OFF, f"{error!r}: {self._server.log_tail()}"

    async def _connect(self, request: Request, headers: dict[str, str]) -> tuple[int, str]:
        url = f"{self._server.url.replace('http', 'ws', 1)}{request.path}"
        try:
            async with websockets.connect(url, additional_headers=headers):
                return 101, ""
        except websockets.InvalidStatus as refusal:
            return refusal.response.status_code, str(refusal.response.headers)


async def _text(response: httpx.Response) -> str:
    text = ""
    is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
    with suppress(TimeoutError):
        async with asyncio.timeout(_STREAM_SECONDS if is_stream else None):
            async for chunk in response.aiter_text():
                text += chunk
    return text
