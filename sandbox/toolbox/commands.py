"""Shell commands, from the toolbox's side: their output, their limits and their end."""

from __future__ import annotations

import os

from sandbox.toolbox.frames import CHUNK_BYTES
from sandbox.toolbox.processes import Ending, now_in_ticks
from sandbox.toolbox.reactor import READABLE, Reactor, Timer
from sandbox.toolbox.supervisors import NOT_STARTED, VERDICT, Supervisors

TYPE_CHECKING = False  # importing `typing` would cost memory
if TYPE_CHECKING:
    from collections.abc import Callable

EXITED = "exited"
TIMED_OUT = "timeout"
TOO_MUCH_OUTPUT = "output"
CANCELLED = "cancelled"
LOST = "lost"
UNSTARTABLE = "unstartable"
"""How a command ended: by itself, at one of its limits, on request, because its supervisor was killed, or not
at all, since there was no room for another process."""

_DRAIN_SECONDS = 0.05
_DROP_PAUSE_SECONDS = 0.01
_STEP_SECONDS = 0.001
_ENDING_STEPS = 5000


class Command:
    """A running command.

    Args:
        reactor: Watches it.
        supervisors: Where its supervisor comes from.
        text: What the shell is to run.
        limits: `seconds` it may take, bytes of output to `keep`, bytes of output to be killed at (`flood`),
            `files`, the descriptors that each of its processes may have, and `file_bytes`, how long a file
            may be for them to write to it.
        on_output: Called with output as it comes, `keep` bytes at most.
        on_end: Called once when nothing of it runs any more, or when it has ended by itself.

    Raises:
        OSError: there is no room for another process.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - each is a part of a command
        self,
        reactor: Reactor,
        supervisors: Supervisors,
        text: bytes,
        limits: dict[str, int],
        on_output: Callable[[bytes], None],
        on_end: Callable[[dict[str, object]], None],
    ) -> None:
        self._reactor = reactor
        self._supervisors = supervisors
        self._keep = limits["keep"]
        self._flood = limits["flood"]
        self._on_output = on_output
        self._on_end = on_end
        self._written = 0
        self._status: int | None = None
        self._ended: str | None = None
        self._is_paused = False
        self._ending: Ending | None = None
        self._began = now_in_ticks()
        self._supervisor = supervisors.start(text, limits["files"], limits["file_bytes"])
        self._process = self._supervisor.find()
        self._output = self._supervisor.output
        self._timer: Timer = reactor.later(limits["seconds"], lambda: self.end(TIMED_OUT))
        reactor.watch(self._output, READABLE, self._read)
        reactor.watch(self._supervisor.verdict, READABLE, self._exited)

    def end(self, reason: str) -> None:
        """Stop and kill everything that the command started. `on_end` tells when it is done."""
        if self._ended is not None:
            return
        self._ended = reason
        self._timer.cancel()
        self._reactor.forget(self._supervisor.verdict)
        own = {self._supervisor.pid}
        self._ending = Ending(self._process, self._began, lambda: self._supervisors.pids - own)
        self._step(_ENDING_STEPS)

    def pause(self) -> None:
        """Take no more output for now. What the command then writes waits in its pipe, and so does it."""
        if self._ended is None and self._written < self._keep and self._output != -1:
            self._is_paused = True
            self._reactor.forget(self._output)

    def resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._reactor.watch(self._output, READABLE, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._output, CHUNK_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._close_output()
            if self._status is not None:
                self._finish()
            return
        room = max(0, self._keep - self._written)
        self._written += len(data)
        if room:
            self._on_output(data[:room])
        if self._written > self._flood:
            self.end(TOO_MUCH_OUTPUT)

    def _exited(self) -> None:
        """Hear what the supervisor has to say, if it is not gone."""
        try:
            verdict = os.read(self._supervisor.verdict, VERDICT.size)
        except BlockingIOError:
            return
        self._reactor.forget(self._supervisor.verdict)
        if len(verdict) < VERDICT.size:
            self.end(LOST)
            return
        (self._status,) = VERDICT.unpack(verdict)
        self._ended = EXITED if self._status < NOT_STARTED else UNSTARTABLE
        self.resume()
        self._timer.cancel()
        if self._output == -1:
            self._finish()
        else:
            self._timer = self._reactor.later(_DRAIN_SECONDS, self._finish)

    def _step(self, left: int) -> None:
        try:
            is_done = self._ending is None or self._ending.step()
        except OSError:  # there may be room again in a moment: what is being ended takes some
            is_done = False
        if is_done:
            self._finish()
        elif left:
            self._reactor.later(_STEP_SECONDS, lambda: self._step(left - 1))
        else:
            self._finish(survived=True)

    def _finish(self, *, survived: bool = False) -> None:
        self._timer.cancel()
        self._is_paused = False
        self._supervisors.discard(self._supervisor)
        on_end, self._on_end = self._on_end, _nothing
        self._empty()
        on_end(
            {
                "ended": self._ended,
                "status": self._status,
                "written": self._written,
                "survived": survived,
            }
        )

    def _empty(self) -> None:
        """Take what is in the pipe. What still writes to it shall go on, so the rest is read and dropped."""
        while self._output != -1:
            try:
                data = os.read(self._output, CHUNK_BYTES)
            except BlockingIOError:
                break
            if not data:
                self._close_output()
                return
            room = max(0, self._keep - self._written)
            self._written += len(data)
            if room:
                self._on_output(data[:room])
            if self._written > self._flood:
                break
        if self._output != -1:
            self._on_output = _nothing
            self._reactor.watch(self._output, READABLE, self._drop)

    def _drop(self) -> None:
        try:
            data = os.read(self._output, CHUNK_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._close_output()
        elif len(data) == CHUNK_BYTES:
            # Something writes as fast as it can, and shall not have this program's whole time.
            self._reactor.forget(self._output)
            self._reactor.later(
                _DROP_PAUSE_SECONDS, lambda: self._reactor.watch(self._output, READABLE, self._drop)
            )

    def _close_output(self) -> None:
        if self._output != -1:
            self._reactor.forget(self._output)
            os.close(self._output)
            self._output = -1


def _nothing(_: object) -> None:
    pass
