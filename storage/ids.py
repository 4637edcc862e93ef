"""The two names of a conversation: the platform's thread id and Warren's public session id.

A thread id is a UUID. A session id is `{username}-{uuid}`, so that it names its owner. Usernames may
contain hyphens, hence a session id is always read from the right: its last 36 characters are the UUID.
"""

import re
from typing import NamedTuple
from uuid import UUID

from storage.errors import InvalidSessionIdError, InvalidThreadIdError

UUID_LENGTH = 36
_CANONICAL_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

USERNAME_PATTERN = r"[a-z0-9](?:[a-z0-9_-]{0,30}[a-z0-9])?"
"""1 to 32 of `a-z 0-9 _ -`, the first and the last alphanumeric: safe as a path component and in a label."""
_USERNAME = re.compile(USERNAME_PATTERN)


class SessionId(NamedTuple):
    """Owner and thread that a session id names."""

    owner: str
    thread_id: UUID

    def __str__(self) -> str:
        return f"{self.owner}-{self.thread_id}"


def is_username(text: str) -> bool:
    """Tell whether `text` is a username in its stored, lower-case form."""
    return _USERNAME.fullmatch(text) is not None


def parse_thread_id(text: str) -> UUID:
    """Read a thread id in its canonical form, upper-case ASCII letters included.

    `uuid.UUID` alone also takes braces, moved hyphens, `urn:uuid:` and full-width digits, which would
    give one thread many names.

    Raises:
        InvalidThreadIdError: for any other spelling.
    """
    lowered = text.lower() if text.isascii() else text
    if _CANONICAL_UUID.fullmatch(lowered) is None:
        raise InvalidThreadIdError
    return UUID(lowered)


def parse_session_id(text: str) -> SessionId:
    """Read `{username}-{uuid}` from the right.

    Raises:
        InvalidSessionIdError: when the name or the UUID is not in its one canonical form.
    """
    owner, hyphen, uuid_text = (
        text[: -UUID_LENGTH - 1],
        text[-UUID_LENGTH - 1 : -UUID_LENGTH],
        text[-UUID_LENGTH:],
    )
    if hyphen != "-" or not is_username(owner):
        raise InvalidSessionIdError
    try:
        return SessionId(owner, parse_thread_id(uuid_text))
    except InvalidThreadIdError:
        raise InvalidSessionIdError from None
