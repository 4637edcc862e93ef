"""Noting in the audit log who was refused what, and who has edited an agent's state."""

from uuid import UUID

import psycopg
from starlette.types import Message, Scope, Send

from auth.credentials import identify
from auth.errors import InvalidTokenError
from server.requests import address_of
from storage import audit
from storage.errors import StorageError

_DENIALS = (401, 403)
_SUCCESS = range(200, 300)
_NOTED_BY_ITSELF = "/api/auth/login"

UNNOTED_KEY = "warren.unnoted"
"""In the scope of a request of the server's own, whose refusal is no news. No client can set it."""


def noting_denials(send: Send, scope: Scope, template: str) -> Send:
    """Return a `send` that notes an answer of 401 or 403.

    Args:
        send: passes the answer on.
        scope: of the request.
        template: the route's; the path itself could name another's thread.
    """

    async def note_and_send(message: Message) -> None:
        is_start = message["type"] == "http.response.start"
        is_denial = is_start and message["status"] in _DENIALS
        if is_denial and template != _NOTED_BY_ITSELF and UNNOTED_KEY not in scope:
            await audit.record_denial(
                await _username(scope), scope["method"], template, message["status"], address_of(scope)
            )
        await send(message)

    return note_and_send


def noting_edits(send: Send, scope: Scope, username: str, thread_id: UUID) -> Send:
    """Return a `send` that notes that a thread's state was edited, if the answer says so.

    Whoever edits a state can have a tool called that nobody was asked about: no decision tells of it.
    """

    async def note_and_send(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] in _SUCCESS:
            await audit.record("state_edited", username, address=address_of(scope), thread_id=thread_id)
        await send(message)

    return note_and_send


async def _username(scope: Scope) -> str | None:
    try:
        return (await identify(dict(scope["headers"]))).username
    except (InvalidTokenError, psycopg.OperationalError, StorageError):
        return None  # the answer does not wait for the database to be back
