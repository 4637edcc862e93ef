"""Noting in the audit log who was refused what."""

from starlette.types import Message, Scope, Send

from auth.addresses import client_of
from auth.credentials import identify
from auth.errors import InvalidTokenError
from auth.settings import get_settings
from storage import audit

_DENIALS = (401, 403)
_NOTED_BY_ITSELF = "/api/auth/login"


def noting_denials(send: Send, scope: Scope, template: str) -> Send:
    """Return a `send` that notes an answer of 401 or 403.

    Args:
        send: passes the answer on.
        scope: of the request.
        template: the route's; the path itself could name another's thread.
    """

    async def note_and_send(message: Message) -> None:
        is_start = message["type"] == "http.response.start"
        if is_start and message["status"] in _DENIALS and template != _NOTED_BY_ITSELF:
            address = client_of(scope, get_settings().trusted_proxies)
            await audit.record_denial(
                await _username(scope), scope["method"], template, message["status"], address
            )
        await send(message)

    return note_and_send


async def _username(scope: Scope) -> str | None:
    try:
        return (await identify(dict(scope["headers"]))).username
    except InvalidTokenError:
        return None
