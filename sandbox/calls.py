"""Calls to a toolbox whose answers have not come, and what those may bring.

Nothing that comes can be believed: how much it is, and in how many pieces, is bounded for each call, and for
all calls of a user together.
"""

import asyncio

from sandbox.errors import OperationFailedError
from sandbox.toolbox.frames import FrameError

ANSWER_BYTES = 8 << 20
"""The most that one call may bring, unless it is for something of which more is to be expected."""

ANSWER_BYTES_OF = {"download": 64 << 20, "ls": 16 << 20}
ANSWER_FRAMES = 1 << 20
"""In how many pieces: each takes its time, so single bytes would be an attack on the event loop."""

USER_ANSWER_BYTES = 192 << 20
"""How much the answers under way to one user may hold together: three of the longest. What would be more is
refused, or else calls made at once would take the server's memory from everybody."""

REPEATABLE = frozenset({"read", "ls", "glob", "grep", "download", "upload"})
"""What may be done twice when nobody knows whether it has been done."""

READING = frozenset({"read", "ls", "glob", "grep", "download", "unlinked"})
"""What changes nothing. If it takes too long, nobody has to wait for its end."""


class Budget:
    """What the answers under way to one user may still hold, in bytes."""

    def __init__(self, left: int = USER_ANSWER_BYTES) -> None:
        self.left = left


class Call:
    """A call whose answer has not come.

    Args:
        operation: What was asked for.
        limit: The most bytes that may come. None: as is usual for the operation.
        budget: Of its user.

    Attributes:
        answer: What the toolbox says, or why there is no answer.
        body: The bytes that have come.
        has_begun: It cannot be made again.
        is_given_up: Nobody waits for it any more, and what comes is dropped.
    """

    def __init__(self, operation: str, limit: int | None, budget: Budget) -> None:
        self.operation = operation
        self.has_begun = False
        self.is_given_up = False
        self.body = bytearray()
        self.answer: asyncio.Future[dict[str, object] | Exception]
        self.answer = asyncio.get_running_loop().create_future()
        self._limit = limit or ANSWER_BYTES_OF.get(operation, ANSWER_BYTES)
        self._budget = budget
        self._received = 0
        self._frames = 0

    def count_frame(self) -> None:
        """Take note of a frame that belongs to it.

        Raises:
            FrameError: one too many.
        """
        self._frames += 1
        if self._frames > ANSWER_FRAMES:
            raise FrameError("in more pieces than an answer may have")

    def take(self, data: bytes) -> None:
        """Take a piece of the body.

        Raises:
            FrameError: it is longer than an answer may be.
        """
        self._received += len(data)
        if self._received > self._limit:
            raise FrameError("longer than an answer may be")
        if self.is_given_up:
            return
        if len(data) > self._budget.left:
            self.answer.set_result(
                OperationFailedError("Too much is being read at once: read less at a time.")
            )
            self.give_up()
            return
        self._budget.left -= len(data)
        self.body += data

    def give_up(self) -> None:
        """Drop what has come, and what still comes."""
        self.is_given_up = True
        self._budget.left += len(self.body)
        self.body.clear()

    def settle(self, outcome: dict[str, object] | Exception) -> None:
        """Give an outcome to whoever still waits. Nothing may come after that."""
        self._budget.left += len(self.body)
        if not self.is_given_up:
            self.answer.set_result(outcome)
