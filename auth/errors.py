"""What can go wrong with accounts and tokens. A class's docstring is its default message."""

import inspect


class AuthError(Exception):
    """Authentication failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.getdoc(type(self)))


class UsernameTakenError(AuthError):
    """Username already registered"""  # noqa: D400, D415 - the wire format has no full stop


class BadCredentialsError(AuthError):
    """Incorrect username or password"""  # noqa: D400, D415 - the wire format has no full stop


class InvalidTokenError(AuthError):
    """Not authenticated"""  # noqa: D400, D415 - the wire format has no full stop


class BusyError(AuthError):
    """Too many logins at once; try again in a moment."""


class WeakSecretKeyError(AuthError):
    """SECRET_KEY is too weak."""
