"""Who may connect to the toolbox, and how: its own streams, and later those of relays."""

from __future__ import annotations

import array
import os
import socket
import stat
import struct

from sandbox.toolbox.connections import Connection
from sandbox.toolbox.processes import find
from sandbox.toolbox.reactor import READABLE, Reactor, Timer
from sandbox.toolbox.supervisors import Supervisors
from sandbox.toolbox.workers import Workers

TYPE_CHECKING = False  # importing `typing` would cost memory
if TYPE_CHECKING:
    from sandbox.toolbox.connections import Streams

ADDRESS = b"\0warren-toolbox"
"""An abstract socket: no file that code in the sandbox could replace."""

RELAY_UID = 65533
"""Whom relays run as, and nothing else: code in the sandbox could stop one of its own user, or take its
place. At first a relay is still the engine's own program; if that is stopped, the engine waits for ever."""

_CONNECTIONS = 64
_HANDSHAKE_SECONDS = 5
_CREDENTIALS = struct.Struct("3i")
_TWO_DESCRIPTORS = 2 * array.array("i").itemsize


class Listener:
    """Waits for relays. A relay hands over its standard input and output, and is then out of the way.

    The first connection is the toolbox's own input and output, if they are pipes to the engine.
    """

    def __init__(
        self, reactor: Reactor, workers: Workers, streams: Streams | None = None, address: bytes = ADDRESS
    ) -> None:
        self._reactor = reactor
        self._workers = workers
        self._streams = streams
        self._supervisors = Supervisors(reactor)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(address)
        self._socket.listen(_CONNECTIONS)
        self._socket.setblocking(False)
        reactor.watch(self._socket.fileno(), READABLE, self._accept)
        if all(stat.S_ISFIFO(os.fstat(descriptor).st_mode) for descriptor in (0, 1)):
            self._connect(None, *_take_standard_streams())

    def _connect(self, relay: socket.socket | None, incoming: int, outgoing: int) -> None:
        Connection(self._reactor, self._workers, self._supervisors, self._streams, relay, incoming, outgoing)

    def _accept(self) -> None:
        relay, _ = self._socket.accept()
        if not _is_from_outside(relay):
            relay.close()
            return
        relay.setblocking(False)
        timer = self._reactor.later(_HANDSHAKE_SECONDS, lambda: self._refuse(relay))
        self._reactor.watch(relay.fileno(), READABLE, lambda: self._receive(relay, timer))

    def _receive(self, relay: socket.socket, timer: Timer) -> None:
        timer.cancel()
        self._reactor.forget(relay.fileno())
        descriptors = array.array("i")
        try:
            _, ancillary, _, _ = relay.recvmsg(1, socket.CMSG_SPACE(_TWO_DESCRIPTORS))
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
            incoming, outgoing = descriptors
            self._connect(relay, incoming, outgoing)
        except (OSError, ValueError):
            for descriptor in descriptors:
                self._reactor.forget(descriptor)
                os.close(descriptor)
            self._refuse(relay)

    def _refuse(self, relay: socket.socket) -> None:
        self._reactor.forget(relay.fileno())
        relay.close()


def _take_standard_streams() -> tuple[int, int]:
    incoming, outgoing = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    os.close(null)
    return incoming, outgoing


def _is_from_outside(relay: socket.socket) -> bool:
    """Tell a process that the engine has put into the sandbox from one that was started in it.

    Only the former has no parent here, for orphans fall to the first process, and runs as another user.
    """
    pid, uid, _ = _CREDENTIALS.unpack(
        relay.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    process = find(pid)
    return uid == RELAY_UID and process is not None and process.parent == 0
