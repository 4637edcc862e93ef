"""How many sandboxes run at once, and which of them are paused to make room for others.

The ledger in Postgres counts them for all server processes of an installation. A sandbox is idle when no call
is under way in it; what a command has left running in the background does not count.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID, uuid4

from sandbox.errors import AtCapacityError, DockerUnreachableError, SandboxError
from sandbox.settings import SandboxSettings
from sandbox.uses import Uses
from storage.ids import SessionId
from storage.sandboxes import Admission, Held, Ledger

logger = logging.getLogger(__name__)

Act = Callable[[SessionId], Awaitable[bool]]
"""Pauses or removes a sandbox's container. Tells whether there is one afterwards."""

Hold = Callable[[set[UUID]], AbstractAsyncContextManager[Held | None]]
"""Holds a sandbox of the ledger for the length of a block, none of those given; None when there is none."""

_NOTE_SECONDS = 5
_NOTES_UNTIL_SETTLED = 3
_NOTES_WHILE_IDLE = 4


class Admissions(Protocol):
    """Who says which sandboxes may run."""

    def using(self, session: SessionId) -> AbstractContextManager[None]:
        """Keep a sandbox from being paused for the length of a block."""

    def is_fresh(self, session: SessionId) -> bool:
        """Tell whether a sandbox was admitted so lately that it need not be admitted again."""

    async def admit(self, session: SessionId, pause: Act, discard: Act) -> bool:
        """Let a sandbox run, pausing others if need be, and discarding what one user has too many of.

        Tells whether it had been admitted already.

        Raises:
            AtCapacityError: no other can be paused.
        """

    async def forget(self, session: SessionId) -> None:
        """Count a sandbox no longer: its container is gone for good."""


class Capacity:
    """The admissions of one server process, by the installation's ledger.

    Args:
        settings: How many may run.
        read_instance: Names the installation; see `sandbox.instance`.
    """

    def __init__(self, settings: SandboxSettings, read_instance: Callable[[], str]) -> None:
        self._settings = settings
        self._read_instance = read_instance
        self.note_seconds = min(_NOTE_SECONDS, settings.sandbox_idle_seconds / _NOTES_WHILE_IDLE)
        """How often the use of a sandbox is noted while this process is busy with it."""
        self._uses = Uses(self.note_seconds)
        self._process = uuid4()
        self._ledger: Ledger | None = None

    def using(self, session: SessionId) -> AbstractContextManager[None]:
        return self._uses.using(session)

    def is_fresh(self, session: SessionId) -> bool:
        return self._uses.is_fresh(session)

    async def admit(self, session: SessionId, pause: Act, discard: Act) -> bool:
        """See `Admissions`. Idle sandboxes of the same owner are paused first, the least used first.

        When the server as a whole is full, other users' idle ones follow: they go on within milliseconds when
        they are used again.
        """
        ledger = await self.ledger()
        at = time.monotonic()
        if await ledger.note_use(session):
            self._uses.note(session, at)
            return True
        most, most_of_owner = self._settings.sandbox_max_running, self._settings.sandbox_max_per_user
        passed_over = {session.thread_id}
        while True:
            at = time.monotonic()
            match await ledger.admit(session, most, most_of_owner):
                case Admission.ADMITTED:
                    self._uses.note(session, at)
                    await self._discard_surplus(session.owner, discard)
                    return False
                case Admission.USER_AT_CAPACITY:
                    own, problem = True, f"all {most_of_owner} sandboxes that one user may have running"
                case Admission.SERVER_AT_CAPACITY:
                    own, problem = False, f"all {most} sandboxes that this server may have running"
            busy = self._uses.busy() | passed_over
            async with ledger.hold_idle(session.owner, own=own, busy=busy) as held:
                if held is None:
                    raise AtCapacityError(
                        f"At capacity: {problem} are at work. Try again when one of them has finished."
                    )
                passed_over.add(held.entry.thread_id)
                await self._settle(held, pause)

    async def pause_all(self, pause: Act) -> None:
        """Pause what nobody else is busy with: when this process has ended nobody looks after it."""
        ledger = await self.ledger()
        await self._settle_each(lambda busy: ledger.hold_idle("", own=False, busy=busy), pause)

    async def unattended(self) -> list[SessionId]:
        """Return the running sandboxes that no process has been busy with of late."""
        ledger = await self.ledger()
        before = datetime.now(UTC) - ledger.settled
        return [entry.session for entry in await ledger.entries() if entry.running and entry.used_at < before]

    async def forget(self, session: SessionId) -> None:
        await (await self.ledger()).forget(session)

    async def renew(self) -> None:
        """Note that the sandboxes that this process is busy with are in use, however long a call takes."""
        self._uses.drop_stale()
        if busy := self._uses.busy():
            await (await self.ledger()).renew(busy)

    async def settle_unused(self, unused: timedelta, act: Act, *, running: bool) -> int:
        """Pause or remove the sandboxes that nobody has used for `unused`.

        Args:
            unused: For how long.
            act: What is done with each.
            running: Only to those that run.

        Returns how many that were.

        Raises:
            DockerUnreachableError: the engine does not answer.
        """
        ledger = await self.ledger()
        return await self._settle_each(
            lambda busy: ledger.hold_unused(unused, running=running, busy=busy), act
        )

    async def ledger(self) -> Ledger:
        """Return the installation's ledger."""
        if self._ledger is None:
            instance = await asyncio.to_thread(self._read_instance)
            settled = timedelta(seconds=_NOTES_UNTIL_SETTLED * self.note_seconds)
            self._ledger = Ledger(instance, self._process, settled)
        return self._ledger

    async def _discard_surplus(self, owner: str, discard: Act) -> None:
        ledger = await self.ledger()
        most = self._settings.sandbox_max_kept_per_user
        await self._settle_each(lambda busy: ledger.hold_surplus(owner, most, busy=busy), discard)

    async def _settle_each(self, hold: Hold, act: Act) -> int:
        """Pause or remove one after another until none is left to hold. Returns how many that were."""
        passed_over: set[UUID] = set()
        settled = 0
        while True:
            async with hold(self._uses.busy() | passed_over) as held:
                if held is None:
                    return settled
                passed_over.add(held.entry.thread_id)
                settled += await self._settle(held, act)

    async def _settle(self, held: Held, act: Act) -> bool:
        session = held.entry.session
        if not self._uses.set_aside(session):
            return False
        try:
            is_there = await act(session)
        except DockerUnreachableError:
            raise
        except SandboxError as error:
            logger.warning("The sandbox of thread %s stays as it is: %s", session.thread_id, error)
            return False
        await (held.note_running(False) if is_there else held.forget())
        return True
