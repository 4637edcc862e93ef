"""What can go wrong with accounts and tokens. A class's docstring is its default message."""

import inspect


class AuthError(Exception):
    """Authentication failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.getdoc(type(self)))


class UsernameTakenError(AuthError):
    """Username already registered"""  # noqa: D400, D415 - the wire format has no full stop


class RegistrationClosedError(AuthError):
    """Registration is closed; ask whoever runs this server for an account."""


class BadCredentialsError(AuthError):
    """Incorrect username or password"""  # noqa: D400, D415 - the wire format has no full stop

    def __init__(self, *, known_user: str | None = None) -> None:
        super().__init__()
        self.known_user = known_user
        """Whose account was tried, None if there is none; for the audit log, never for the caller."""


class InvalidTokenError(AuthError):
    """Not authenticated"""  # noqa: D400, D415 - the wire format has no full stop


class BusyError(AuthError):
    """Too many logins at once; try again in a moment."""


class ThrottledError(AuthError):
    """Too many attempts; try again later.

    `retry_after` says when, in whole seconds.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__("Too many attempts; try again later.")
        self.retry_after = retry_after


class TooManyKeysError(AuthError):
    """There are as many API keys as one user may have; delete one first."""


class UnknownUserError(AuthError):
    """There is no such user."""


class WeakSecretKeyError(AuthError):
    """SECRET_KEY is too weak."""
