"""The sandboxes' way out: the server connects them to the hosts that the operator allows, and to no other.

Names are looked up here, and what is connected to is the very address that has been checked: a name that
points elsewhere a moment later (DNS rebinding) leads nowhere. Names that are not allowed are not even looked
up, for a lookup is a way out as well.
"""

import asyncio
import ipaddress
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID
from weakref import WeakValueDictionary

from sandbox.egress_rules import Address, Rule, is_public, split_target
from sandbox.settings import SandboxSettings
from sandbox.toolbox.frames import CHUNK_BYTES, STREAMS
from storage import audit
from storage.audit_window import EGRESS, EGRESS_REFUSED
from storage.ids import SessionId

LOOKUP_SECONDS = 5
CONNECT_SECONDS = 5

MAX_ADDRESSES = 4
"""How many of a host's addresses are tried, one after the other, for CONNECT_SECONDS each."""

USERS_CONNECTIONS = 2 * STREAMS
ALL_CONNECTIONS = 8 * STREAMS
"""How many connections one user's sandboxes may have at once, and all sandboxes together: a quarter of the
1,024 descriptors that many systems give to a process."""

BURST = 2 * STREAMS
DIALS_PER_SECOND = 10
"""How many connections a sandbox may ask for at once, and then on the whole. Faster ones wait: what is asked
for and refused costs the server some time, too."""

DAY_SECONDS = 24 * 60 * 60

_MIB = 1 << 20
_LOOKUP_THREADS = 16
_LOOKUPS_OF_A_USER = 2
# Not the event loop's own threads: lookups that hang would hold up whatever else uses those.
_lookups = ThreadPoolExecutor(_LOOKUP_THREADS, thread_name_prefix="egress-lookup")


class RefusedError(Exception):
    """A sandbox does not get a connection. `status` is HTTP's; the message is for whoever asked."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class Record(Protocol):
    """Notes in the audit log what has been decided; see `storage.audit.record`."""

    async def __call__(
        self, event: str, username: str | None, *, thread_id: UUID | None, details: dict[str, object]
    ) -> None: ...


Lookup = Callable[[str, int], Awaitable[Sequence[Address]]]
"""Gives the addresses of a name. Raises OSError if it has none."""


async def look_up(name: str, port: int) -> list[Address]:
    """Ask the system for the addresses of a name.

    Raises:
        OSError: it has none.
    """
    found = await asyncio.get_running_loop().run_in_executor(
        _lookups, lambda: socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    )
    return [ipaddress.ip_address(str(address[0])) for *_, address in found]


@dataclass(slots=True)
class _Use:
    """What one sandbox has used."""

    day_ends: float
    moved: int = 0
    next_dial: float = 0.0


class Egress:
    """The way out of all sandboxes of one event loop.

    Args:
        rules: What may be reached.
        limit: Bytes that one sandbox may move within 24 hours, in both directions together.
        record: Notes each decision.
        lookup: Gives the addresses of names.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        limit: int,
        *,
        record: Record = audit.record,
        lookup: Lookup = look_up,
    ) -> None:
        self.rules = rules
        self.limit = limit
        self.record = record
        self.lookup = lookup
        self._open: Counter[str | SessionId] = Counter()
        self._lookups: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._uses: dict[SessionId, _Use] = {}

    def use_of(self, session: SessionId) -> _Use:
        """Return what a sandbox has used today."""
        now = asyncio.get_running_loop().time()
        use = self._uses.get(session)
        if use is None or use.day_ends <= now:
            self._uses = {key: it for key, it in self._uses.items() if it.day_ends > now}
            use = self._uses[session] = _Use(now + DAY_SECONDS)
        return use

    def turn(self, owner: str) -> asyncio.Semaphore:
        """Return what lets a few lookups of a user's through at a time: slow ones must not hold up others."""
        return self._lookups.setdefault(owner, asyncio.Semaphore(_LOOKUPS_OF_A_USER))

    @contextmanager
    def place(self, session: SessionId) -> Iterator[None]:
        """Be one of the connections.

        Raises:
            RefusedError: there are too many.
        """
        shares: dict[str | SessionId, int] = {
            session: STREAMS,
            session.owner: USERS_CONNECTIONS,
            "": ALL_CONNECTIONS,
        }
        if any(self._open[whose] >= most for whose, most in shares.items()):
            raise RefusedError(503, "too many connections at once")
        self._open.update(shares.keys())
        try:
            yield
        finally:
            self._open.subtract(shares.keys())
            self._open = +self._open


def egress_of(settings: SandboxSettings) -> Egress | None:
    """Return the way out that the settings give to sandboxes, if they do."""
    if settings.sandbox_network == "none":
        return None
    return Egress(settings.sandbox_egress_allow, settings.sandbox_egress_mb * _MIB)


class WayOut:
    """The way out of one thread's sandbox."""

    def __init__(self, egress: Egress, session: SessionId) -> None:
        self._egress = egress
        self._session = session

    def charge(self, amount: int) -> None:
        """Count bytes that have moved."""
        self._egress.use_of(self._session).moved += amount

    def check(self) -> None:
        """See whether more may move.

        Raises:
            RefusedError: it has been enough for today.
        """
        if self._egress.use_of(self._session).moved > self._egress.limit:
            raise RefusedError(
                429, f"more than {self._egress.limit // _MIB} MiB within 24 hours (SANDBOX_EGRESS_MB)"
            )

    @asynccontextmanager
    async def connection(
        self, target: bytes
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Connect to what is asked for, if that is allowed, for the length of a block.

        What is written, and not sent when the block ends, is dropped.

        Args:
            target: `host:port`, as code in the sandbox has written it.

        Raises:
            RefusedError: it is not allowed, or cannot be reached.
        """
        await self._wait_its_turn()
        with ExitStack() as stack:
            try:
                stack.enter_context(self._egress.place(self._session))
                self.check()
                host, port, addresses = await self._decide(target)
            except RefusedError as refusal:
                await self._note(EGRESS_REFUSED, target.decode(errors="replace"), reason=str(refusal))
                raise
            await self._note(EGRESS, f"{host}:{port}")
            reader, writer = await _connect(addresses, port)
            stack.callback(writer.transport.abort)
            # So that `drain` waits until all is sent.
            writer.transport.set_write_buffer_limits(high=0)
            yield reader, writer

    async def _wait_its_turn(self) -> None:
        use = self._egress.use_of(self._session)
        now = asyncio.get_running_loop().time()
        use.next_dial = max(use.next_dial, now - BURST / DIALS_PER_SECOND) + 1 / DIALS_PER_SECOND
        await asyncio.sleep(use.next_dial - now)

    async def _decide(self, target: bytes) -> tuple[str, int, Sequence[Address]]:
        try:
            host, port = split_target(target.decode())
        except ValueError:
            raise RefusedError(400, "not a host and a port") from None
        rules = [rule for rule in self._egress.rules if rule.covers(host)]
        if not rules:
            raise RefusedError(403, f"{host} is not in SANDBOX_EGRESS_ALLOW")
        rule = next((rule for rule in rules if rule.port == port), None)
        if rule is None:
            raise RefusedError(403, f"port {port} of {host} is not in SANDBOX_EGRESS_ALLOW")
        if rule.address is not None:
            return host, port, [rule.address]
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                addresses = await self._look_up(host, port)
        except (OSError, TimeoutError):
            raise RefusedError(502, f"{host} has no address") from None
        if not all(map(is_public, addresses)):
            raise RefusedError(403, f"{host} has an address that is not public")
        return host, port, addresses

    async def _look_up(self, host: str, port: int) -> Sequence[Address]:
        turn = self._egress.turn(self._session.owner)
        await turn.acquire()
        # It keeps its thread when nobody waits for it any more, and so its turn.
        lookup = asyncio.ensure_future(self._egress.lookup(host, port))
        lookup.add_done_callback(lambda _: turn.release())
        return await asyncio.shield(lookup)

    async def _note(self, event: str, target: str, **details: object) -> None:
        await self._egress.record(
            event,
            self._session.owner,
            thread_id=self._session.thread_id,
            details={"target": target, **details},
        )


async def _connect(
    addresses: Sequence[Address], port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    for address in addresses[:MAX_ADDRESSES]:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(CONNECT_SECONDS):
                # An address in place of a name, so nothing is looked up again.
                return await asyncio.open_connection(str(address), port, limit=CHUNK_BYTES)
    raise RefusedError(502, "the host cannot be reached")
