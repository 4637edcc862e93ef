"""Saying in one line why a server cannot start, where a traceback would tell its operator nothing more."""

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import Message, Send

from server.serve import is_expected

_told: list[Exception] = []


@contextmanager
def telling_in_one_line() -> Iterator[None]:
    """Note an expected error of the block, which goes on its way."""
    try:
        yield
    except Exception as error:
        if is_expected(error):
            _told.append(error)
        raise


def has_told() -> bool:
    """Tell whether the log has the one line that says why this server could not start."""
    return bool(_told)


def without_traceback(send: Send) -> Send:
    """Return the `send` of an ASGI lifespan that reports a noted error by its message alone."""

    async def send_briefly(message: Message) -> None:
        if message["type"] == "lifespan.startup.failed" and _told:
            message = {**message, "message": f"Warren cannot start. {_told[-1]}"}
        await send(message)

    return send_briefly
