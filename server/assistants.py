"""Keeping users' assistants across a restart.

The in-memory runtime forgets them. After each change the rows of the one user who made it are saved, before
the change is answered; at the start all are given back. Other runtimes keep them themselves.
"""

import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from starlette.types import Message, Send

from server.runtime import is_in_memory
from storage.assistants import SavedAssistant, all_assistants, replace_assistants

_SUCCESS = range(200, 300)
_TIMES = ("created_at", "updated_at")


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
            await _save(await owner())
        await send(message)

    return save_and_send


async def _save(owner: str) -> None:
    if not is_in_memory():
        return
    from langgraph_runtime_inmem.database import GLOBAL_STORE  # noqa: PLC0415 - only this runtime has it

    rows = [
        row for row in GLOBAL_STORE["assistants"] if row["metadata"].get("owner") == owner and _is_users(row)
    ]
    versions = GLOBAL_STORE["assistant_versions"]
    await replace_assistants(
        owner,
        [
            SavedAssistant(
                row["assistant_id"],
                owner,
                _to_json(row),
                [_to_json(one) for one in versions if one["assistant_id"] == row["assistant_id"]],
            )
            for row in rows
        ],
    )


def _is_users(row: dict[str, Any]) -> bool:
    return bool(row["metadata"].get("created_by") != "system")


def _to_json(row: dict[str, Any]) -> dict[str, Any]:
    as_json: dict[str, Any] = json.loads(json.dumps(row, default=str))
    return as_json


def _from_json(row: dict[str, Any]) -> dict[str, Any]:
    times = {name: datetime.fromisoformat(row[name]) for name in _TIMES if name in row}
    return {**row, **times, "assistant_id": UUID(row["assistant_id"])}
