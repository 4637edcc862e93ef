"""What can go wrong with a sandbox. A class's docstring is its default message."""

import inspect


class SandboxError(Exception):
    """The sandbox failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.getdoc(type(self)))


class DockerUnreachableError(SandboxError):
    """Docker is not reachable.

    Unreachable is not gone: containers and workspaces may well exist, so nothing is deleted,
    recreated or forgotten on account of this error.
    """

    def __init__(self, address: str, detail: str = "") -> None:
        self.address = address
        self.detail = detail
        super().__init__(f"Docker is not reachable at {address}" + (f": {detail}" if detail else "."))


class ImageError(SandboxError):
    """The sandbox image could not be built."""


class UnknownRuntimeError(SandboxError):
    """The engine has no OCI runtime of the name that SANDBOX_RUNTIME says."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(
            f"Docker has no runtime {name}, which SANDBOX_RUNTIME names; it has {', '.join(known)}. "
            "Runtimes are added in the engine's daemon.json."
        )


class NoIdentityError(SandboxError):
    """There is no sandbox for this run: it has no authenticated user, or no thread."""


class ThreadGoneError(SandboxError):
    """There is no sandbox for this thread: it was deleted, never existed, or is another user's."""


class SandboxLostError(SandboxError):
    """The sandbox stopped while it was in use. Files in /workspace are kept; try again."""


class NotStartedError(SandboxError):
    """The sandbox cannot run anything. What was asked for has not begun, so it can be tried again."""


class OperationFailedError(SandboxError):
    """The sandbox could not do what it was asked for; the message is its own word."""


class NoAnswerError(SandboxError):
    """The sandbox did not answer in time. What was asked for may have been done or not."""


class DiskFullError(SandboxError):
    """There is no room for what was to be written."""


class AtCapacityError(SandboxError):
    """As many sandboxes as may run are at work."""
