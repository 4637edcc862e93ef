"""The first process of a sandbox: takes connections from the host and does what they ask for."""

from __future__ import annotations

import os
import resource
import signal
import threading

from sandbox.toolbox import kernel
from sandbox.toolbox.listener import Listener
from sandbox.toolbox.reactor import Reactor
from sandbox.toolbox.supervisors import DESCRIPTORS, ORDER_DESCRIPTOR
from sandbox.toolbox.workers import Workers

TYPE_CHECKING = False  # importing `typing` would cost memory
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.toolbox.connections import Streams

_THREAD_STACK_BYTES = 512 << 10


def main(way_out: Callable[[Reactor], Streams] | None = None) -> None:
    """Serve for ever. Signals from within the container do nothing: it is the init of its namespace.

    Args:
        way_out: Makes what gives the sandbox its connections; None: it has none.

    Raises:
        SystemExit: this is not the first process of its namespace: what ends commands would stop all others.
    """
    if os.getpid() != 1:
        raise SystemExit("The toolbox is for the first process of a sandbox only.")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps what is orphaned
    kernel.rename(b"warren-toolbox")
    kernel.seal()
    kernel.give_memory_back()
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    while os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) < ORDER_DESCRIPTOR:
        pass
    threading.stack_size(_THREAD_STACK_BYTES)
    reactor = Reactor()
    Listener(reactor, Workers(reactor), way_out(reactor) if way_out else None)
    reactor.run()
