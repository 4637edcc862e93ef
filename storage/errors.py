"""What can go wrong on the ground floor. A class's docstring is its default message."""

import inspect


class StorageError(Exception):
    """Warren's storage failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.getdoc(type(self)))


class AuditUnavailableError(StorageError):
    """The decision could not be written to the audit log, so nothing was done. Decide again later."""


class DatabaseUnreachableError(StorageError):
    """Postgres is not reachable."""


class EmbeddedPostgresError(StorageError):
    """The embedded Postgres could not be started."""


class InvalidSessionIdError(StorageError):
    """Not a session id: expected USERNAME-UUID with the UUID in its canonical 8-4-4-4-12 form."""


class InvalidThreadIdError(StorageError):
    """Not a thread id: expected a UUID in its canonical 8-4-4-4-12 form."""


class OrphanedThreadError(StorageError):
    """The thread has checkpoints but no owner."""


class StoreTooSlowError(StorageError):
    """The store took too long: there is too much to look at. Name a longer namespace or delete items."""


class TooManyThreadsError(StorageError):
    """The user has as many threads as one may; some must be deleted first."""
