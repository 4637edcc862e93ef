"""The people of the authorization matrix, what they have, and how they are recognised."""

import json
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import jwt

from auth import accounts
from auth.secret import signing_key
from server.child import ChildServer
from server.demo import decide, say_to
from server.studio import STUDIO_ORIGIN
from tests.conftest import PASSWORD, User, new_user
from tests.integration.matrix_fields import Things
from tests.integration.matrix_requests import Plan
from tests.integration.matrix_routes import Identity, Standing

MARKER = f"marker{secrets.token_hex(8)}"
"""In whatever alice and the disabled user have; never in a request of the sweep."""

_ENDLESS = "count 9999 every 999"
_LONG = "count 100 every 100"
_NOTICED_SECONDS = 10.0
_OF_A_RUN = frozenset({"run_id", "run_ids", "checkpoint", "checkpoint_id", "before", "config", "params"})


@dataclass
class Person:
    """A user, how they come in, and what they have."""

    user: User
    key: str
    things: Things

    def renewed(self, **ids: str) -> Things:
        return replace(self.things, **ids)


async def a_person(http: httpx.AsyncClient, server: ChildServer, note: str) -> Person:
    """Register somebody, and give them one of everything, with `note` in it."""
    user = await new_user(server, f"m{secrets.token_hex(4)}")
    item = f"item-{secrets.token_hex(8)}"
    await user.client.store.put_item([user.name, item], item, {"note": note})
    made = await http.post("/api/auth/keys", json={"name": note}, headers=user.headers)
    thread_id = await _thread(user, note)
    run_id, checkpoint_id = await _ended_run(user, thread_id, note)
    things = Things(
        user=user.name,
        password=PASSWORD,
        thread_id=thread_id,
        run_id=run_id,
        checkpoint_id=checkpoint_id,
        assistant_id=await _assistant(user, note),
        key_id=made.raise_for_status().json()["id"],
        item=item,
    )
    return Person(user, made.json()["key"], things)


async def give_work(person: Person) -> None:
    """Have a person's agent write a file, with their approval, and leave a run of theirs under way."""
    client, thread_id = person.user.client, person.things.thread_id
    await say_to(client, thread_id, f"write {MARKER}.txt: {MARKER}")
    await decide(client, thread_id, {"type": "approve"})
    # The latest run is the one whose loss would show: nothing is built on it.
    run_id = (await client.runs.list(thread_id, limit=1))[0]["run_id"]
    state: Any = await client.threads.get_state(thread_id)
    person.things = person.renewed(run_id=run_id, checkpoint_id=state["checkpoint"]["checkpoint_id"])
    counting = await _thread(person.user, MARKER)
    said: dict[str, Any] = {"messages": [{"role": "user", "content": _ENDLESS}]}
    async for part in client.runs.stream(counting, "agent", input=said, stream_mode="messages-tuple"):
        if part.event == "messages":
            break  # from now on nothing is written until it ends


async def fresh_things(http: httpx.AsyncClient, person: Person, plan: Plan) -> Things:
    """Return a person's things, those of them new that a request might change or destroy."""
    user, names, template = person.user, plan.names, plan.route.template
    ids = {"thread_id": await _thread(user, "fresh")}
    if template.endswith("/cancel"):
        ids["run_id"] = await _started_run(user, ids["thread_id"])
    elif names & _OF_A_RUN:
        ids["run_id"], ids["checkpoint_id"] = await _ended_run(user, ids["thread_id"], "fresh")
    if template.startswith("/assistants/{"):
        ids["assistant_id"] = await _assistant(user, "fresh")
    if "key_id" in names:
        made = await http.post("/api/auth/keys", json={"name": "fresh"}, headers=user.headers)
        ids["key_id"] = made.raise_for_status().json()["id"]
    return person.renewed(**ids)


async def identities(
    http: httpx.AsyncClient, server: ChildServer, alice: Person, bob: Person
) -> list[Identity]:
    """Return the matrix's columns. Alice logs in anew here, and her former token is the revoked one."""
    revoked = alice.user.headers
    (await http.post("/api/auth/logout-everywhere", headers=revoked)).raise_for_status()
    credentials = {"username": alice.user.name, "password": PASSWORD}
    token = (await http.post("/api/auth/login", json=credentials)).raise_for_status().json()["access_token"]
    alice.user = User(server, alice.user.name, token)
    disabled = await a_person(http, server, MARKER)
    await accounts.disable(disabled.user.name)
    await _until_refused(http, disabled.user.headers)
    return [
        Identity("anonymous", Standing.OUTSIDER, {}),
        Identity("revoked", Standing.OUTSIDER, revoked),
        Identity("expired", Standing.OUTSIDER, {"Authorization": f"Bearer {_expired(token)}"}),
        Identity("disabled", Standing.OUTSIDER, disabled.user.headers),
        Identity("studio", Standing.OUTSIDER, {"X-Auth-Scheme": "langsmith", "Origin": STUDIO_ORIGIN}),
        Identity("other", Standing.OTHER, bob.user.headers),
        Identity("other's key", Standing.OTHER, {"X-Api-Key": bob.key}, by_key=True),
        Identity("owner", Standing.OWNER, alice.user.headers),
        Identity("owner's key", Standing.OWNER, {"X-Api-Key": alice.key}, by_key=True),
    ]


async def snapshot(http: httpx.AsyncClient, server: ChildServer, person: Person) -> dict[str, Any]:
    """Return all that a person has, as they see it themselves, and the files in their workspaces."""
    client, headers = person.user.client, person.user.headers
    found: dict[str, Any] = {}
    for thread in await client.threads.search(limit=1000):
        thread_id = thread["thread_id"]
        session = await http.get(f"/api/sessions/{person.user.name}-{thread_id}", headers=headers)
        found[thread_id] = (
            thread,
            await client.threads.get_state(thread_id),
            await client.threads.get_history(thread_id, limit=100),
            await client.runs.list(thread_id, limit=100),
            session.json(),
        )
    for assistant in await client.assistants.search(limit=1000):
        assistant_id = assistant["assistant_id"]
        found[assistant_id] = (assistant, await client.assistants.get_versions(assistant_id))
    keys = (await http.get("/api/auth/keys", headers=headers)).raise_for_status().json()
    found["keys"] = [{**key, "last_used_at": None} for key in keys]
    found["items"] = await client.store.search_items([person.user.name], limit=100)
    found["namespaces"] = await client.store.list_namespaces([person.user.name])
    found["me"] = (await http.get("/api/auth/me", headers=headers)).raise_for_status().json()
    found["files"] = _files(server.data_dir / "workspaces" / person.user.name)
    return found


async def listed(person: Person) -> str:
    """Return the texts of a person's threads, their values included, and of their assistants."""
    client = person.user.client
    found = (await client.threads.search(limit=1000), await client.assistants.search(limit=1000))
    return json.dumps(found)


def _files(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


async def _thread(user: User, note: str) -> str:
    return (await user.client.threads.create(metadata={"note": note}))["thread_id"]


async def _started_run(user: User, thread_id: str) -> str:
    said: dict[str, Any] = {"messages": [{"role": "user", "content": _LONG}]}
    return (await user.client.runs.create(thread_id, "agent", input=said))["run_id"]


async def _ended_run(user: User, thread_id: str, note: str) -> tuple[str, str]:
    said: dict[str, Any] = {"messages": [{"role": "user", "content": note}]}
    run = await user.client.runs.create(thread_id, "agent", input=said, interrupt_before="*")
    await user.client.runs.join(thread_id, run["run_id"])
    state: Any = await user.client.threads.get_state(thread_id)
    return run["run_id"], state["checkpoint"]["checkpoint_id"]


async def _assistant(user: User, note: str) -> str:
    assistant = await user.client.assistants.create(
        "agent", assistant_id=str(uuid4()), name=note, metadata={"note": note}
    )
    return assistant["assistant_id"]


def _expired(token: str) -> str:
    claims = jwt.decode(token, options={"verify_signature": False})
    return jwt.encode({**claims, "exp": int(time.time()) - 1}, signing_key(), algorithm="HS256")


async def _until_refused(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    deadline = time.monotonic() + _NOTICED_SECONDS
    while (await http.get("/api/auth/me", headers=headers)).status_code != 401:
        assert time.monotonic() < deadline
