"""Supervisors: each is the parent of one shell, and everything falls to it that the shell leaves behind."""

# pathlib would cost memory in every sandbox:
# ruff: noqa: PTH101

from __future__ import annotations

import os
import resource
import signal
import struct

from sandbox.toolbox import kernel, seccomp
from sandbox.toolbox.processes import Process, find
from sandbox.toolbox.reactor import Reactor

TYPE_CHECKING = False  # importing `typing` would cost memory
if TYPE_CHECKING:
    Order = tuple[bytes, int, int]  # what the shell is given, descriptors, and bytes of a file

DESCRIPTORS = 1024
"""How many descriptors the toolbox itself may have."""

VERDICT_DESCRIPTOR = 3
ORDER_DESCRIPTOR = 4
"""Where a supervisor says how its shell ended, and where it is told what to run. In the toolbox nothing has
these numbers, nor those of the standard streams, so that a supervisor can give them to its pipes."""

ARGUMENT_BYTES = 128 << 10
"""The longest argument that Linux passes to a program, its final NUL included (MAX_ARG_STRLEN)."""

VERDICT = struct.Struct("=i")
"""What a shell exited with, minus the signal that ended it, or NOT_STARTED and the number of an error."""

NOT_STARTED = 1 << 16

_SHELL = "/bin/sh"
_SHELL_OOM_SCORE = b"900"
_OWN_OOM_SCORE = b"500"
_ORDER = struct.Struct("=IIQ")
_ORDER_BYTES = 32 << 10  # half of what usually fits into a pipe that nobody reads


class Supervisor:
    """A supervisor, seen from the toolbox.

    Args:
        order: What it is to run. Without, it waits for `give`.

    Raises:
        OSError: there is no room for another process.
    """

    def __init__(self, order: Order | None = None) -> None:
        pipes: list[int] = []
        try:
            for _ in range(3):
                pipes += os.pipe()
            self.output, output, self.verdict, verdict, order_end, self._order = pipes
            self.pid = os.fork()
        except OSError:
            for descriptor in pipes:
                os.close(descriptor)
            raise
        if self.pid == 0:
            _supervise(order, output, verdict, order_end)
        for descriptor in (output, verdict, order_end):
            os.close(descriptor)
        os.set_blocking(self.output, False)
        os.set_blocking(self.verdict, False)
        os.set_blocking(self._order, False)

    def give(self, order: Order) -> bool:
        """Tell it what to run.

        False: it is gone, for it can be killed from within the sandbox, or its pipe is too small: Linux makes
        small ones for a user who has many. Forget it, and it ends.
        """
        text, files, file_bytes = order
        message = _ORDER.pack(len(text), files, file_bytes) + text
        try:
            return os.write(self._order, message) == len(message)
        except OSError:
            return False

    def find(self) -> Process | None:
        return find(self.pid)

    def close(self) -> None:
        """Forget it. Its output stays open."""
        os.close(self._order)
        os.close(self.verdict)


class Supervisors:
    """All supervisors. One is always made in advance: making it is a third of what a short command takes."""

    def __init__(self, reactor: Reactor) -> None:
        self.pids: set[int] = set()
        self._reactor = reactor
        self._spare: Supervisor | None = None
        reactor.later(0, self._prepare)

    def start(self, text: bytes, files: int, file_bytes: int) -> Supervisor:
        """Have a supervisor run something.

        Args:
            text: What the shell is given.
            files: How many descriptors each process of it may have.
            file_bytes: How long a file may be for them to write to it.

        Raises:
            OSError: there is no room for another process.
        """
        if self._spare is not None and len(text) < _ORDER_BYTES:
            spare, self._spare = self._spare, None
            self._reactor.later(0, self._prepare)
            if spare.give((text, files, file_bytes)):
                return spare
            os.close(spare.output)
            self.discard(spare)
        supervisor = Supervisor((text, files, file_bytes))
        self.pids.add(supervisor.pid)
        return supervisor

    def discard(self, supervisor: Supervisor) -> None:
        """Forget a supervisor that is gone, or shall go."""
        self.pids.discard(supervisor.pid)
        supervisor.close()

    def _prepare(self) -> None:
        if self._spare is None:
            try:
                self._spare = Supervisor()
            except OSError:  # if there still is no room then, the next command will tell
                return
            self.pids.add(self._spare.pid)


def _supervise(order: Order | None, output: int, verdict: int, order_end: int) -> None:
    """Be the supervisor: start the shell, wait for it, and say how it ended. Does not return."""
    status = NOT_STARTED
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        kernel.adopt_orphans()
        _arrange_descriptors(output, verdict, order_end)
        _set_oom_score(_SHELL_OOM_SCORE)
        seccomp.forbid_evading_limits()
        text, files, file_bytes = order or _receive_order()
        _limit(resource.RLIMIT_NOFILE, files)
        _limit(resource.RLIMIT_FSIZE, file_bytes)
        shell = _start_shell(text)
        _set_oom_score(_OWN_OOM_SCORE)
        status = _wait_for(shell)
    except OSError as error:
        status = NOT_STARTED + (error.errno or 0)
    finally:
        try:
            os.write(VERDICT_DESCRIPTOR, VERDICT.pack(status))
        finally:
            os._exit(0)


def _arrange_descriptors(output: int, verdict: int, order: int) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(verdict, VERDICT_DESCRIPTOR, inheritable=False)
    os.dup2(order, ORDER_DESCRIPTOR, inheritable=False)
    os.closerange(ORDER_DESCRIPTOR + 1, DESCRIPTORS)


def _set_oom_score(score: bytes) -> None:
    """Say how soon the kernel shall kill when memory runs out: the hog first, the toolbox last."""
    with kernel.own_files_accessible():
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(descriptor, score)
        os.close(descriptor)


def _receive_order() -> Order:
    received = b""
    while len(received) < _ORDER.size or len(received) < _ORDER.size + _ORDER.unpack_from(received)[0]:
        piece = os.read(ORDER_DESCRIPTOR, _ORDER_BYTES)
        if not piece:  # not needed any more
            os._exit(0)
        received += piece
    _, files, file_bytes = _ORDER.unpack_from(received)
    return received[_ORDER.size :], files, file_bytes


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def _start_shell(text: bytes) -> int:
    if not os.access(".", os.R_OK | os.W_OK | os.X_OK):
        os.chmod(".", 0o700)  # its owner has locked himself out of the workspace
    if len(text) < ARGUMENT_BYTES:
        argument = text
    else:
        descriptor = os.memfd_create("command", 0)
        left = memoryview(text)
        while left:
            left = left[os.write(descriptor, left) :]
        argument = b". /proc/self/fd/%d" % descriptor
    return os.posix_spawn(
        _SHELL,
        [b"sh", b"-c", argument],
        os.environ,
        setsid=True,
        setsigmask=(),
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT],
    )


def _wait_for(shell: int) -> int:
    """Wait for the shell's end, and take whatever else ends here off the list of processes meanwhile."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    while True:
        pid, status = os.wait()
        if pid == shell:
            return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
