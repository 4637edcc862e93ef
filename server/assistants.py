"""Keeping users' assistants across a restart.

The in-memory runtime forgets them. After each change the rows of the one user who made it are saved, before
the change is answered; at the start all are given back. Other runtimes keep them themselves.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any
from uuid import UUID
from weakref import WeakValueDictionary

from starlette.types import Message, Send

from auth.bounds import ESCAPED_NUL
from server.runtime import is_in_memory
from storage.assistants import AssistantJson, all_assistants, replace_assistants

_SUCCESS = range(200, 300)
_TIMES = ("created_at", "updated_at")

_saving: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
"""By owner: of two changes made at once, what is saved last must be what was read last."""


async def load_assistants() -> None:
    """Give the platform the assistants it has lost. Those it has pickled are older than the database."""
    if not is_in_memory():
        return
    from langgraph_runtime_inmem.database import GLOBAL_STORE  # noqa: PLC0415 - only this runtime has it

    saved = await all_assistants()
    for kind, rows in (
        ("assistants", [one.record for one in saved]),
        ("assistant_versions", [version for one in saved for version in one.versions]),
    ):
        kept = [row for row in GLOBAL_STORE[kind] if not _is_users(row)]
        GLOBAL_STORE[kind] = [*kept, *map(_from_json, rows)]


def saving_assistants(send: Send, owner: Callable[[], Awaitable[str]]) -> Send:
    """Return a `send` that saves the caller's assistants before it passes on that a change was made.

    Args:
        send: passes the answer on.
        owner: awaited for the caller's name.
    """

    async def save_and_send(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] in _SUCCESS:
            username = await owner()
            async with _saving.setdefault(username, asyncio.Lock()):
                await _save(username)
        await send(message)

    return save_and_send


async def _save(owner: str) -> None:
    if not is_in_memory():
        return
    from langgraph_runtime_inmem.database import GLOBAL_STORE  # noqa: PLC0415 - only this runtime has it

    # Copies: the platform changes its rows in place while they are written.
    rows = [
        dict(row)
        for row in GLOBAL_STORE["assistants"]
        if row["metadata"].get("owner") == owner and _is_users(row)
    ]
    versions: dict[UUID, list[dict[str, Any]]] = {row["assistant_id"]: [] for row in rows}
    for version in GLOBAL_STORE["assistant_versions"]:
        if (of_one := versions.get(version["assistant_id"])) is not None:
            of_one.append(dict(version))
    # Not on the event loop, where others would wait for it.
    texts = await asyncio.to_thread(
        lambda: [
            AssistantJson(row["assistant_id"], _to_json(row), _to_json(versions[row["assistant_id"]]))
            for row in rows
        ]
    )
    await replace_assistants(owner, texts)


def _is_users(row: dict[str, Any]) -> bool:
    return bool(row["metadata"].get("created_by") != "system")


def _to_json(value: object) -> str:
    # No rule is shown a description, and Postgres would refuse it with a NUL.
    return ESCAPED_NUL.sub(r"\1\\ufffd", json.dumps(value, default=str))


def _from_json(row: dict[str, Any]) -> dict[str, Any]:
    times = {name: datetime.fromisoformat(row[name]) for name in _TIMES if name in row}
    return {**row, **times, "assistant_id": UUID(row["assistant_id"])}
