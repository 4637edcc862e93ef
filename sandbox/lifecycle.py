"""What becomes of sandboxes with time: paused when nobody uses them, removed later, and kept account of.

A workspace is never touched here: it goes with its thread.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import lru_cache

from sandbox.capacity import Capacity
from sandbox.containers import Containers, get_capacity, get_containers
from sandbox.engine import Engine, connected
from sandbox.engine_calls import asking
from sandbox.listing import list_containers
from sandbox.settings import SandboxSettings, get_settings
from storage.ids import SessionId

logger = logging.getLogger(__name__)

_SWEEP_SECONDS = 30
_RECONCILE_SECONDS = 300
_CHANNELS = 256
"""Connections to sandboxes that are kept open, most of them to paused ones, so that those resume at once.
Each takes a descriptor, of which a process often has 1024."""

_JITTER = 0.2
"""How much sooner something may be done again: two processes that started together shall not stay in step."""


class Lifecycle:
    """The passing of time for the sandboxes of one installation. Any number of processes may have one."""

    def __init__(self, settings: SandboxSettings, containers: Containers, capacity: Capacity) -> None:
        self._idle = timedelta(seconds=settings.sandbox_idle_seconds)
        self._old = timedelta(seconds=settings.sandbox_remove_seconds)
        self._containers = containers
        self._capacity = capacity

    async def run(self) -> None:
        """Do what is to be done until this is cancelled. That the engine or Postgres is away ends nothing."""
        often = min(_SWEEP_SECONDS, self._idle.total_seconds() / 2)
        async with asyncio.TaskGroup() as group:
            group.create_task(_again_and_again(self._capacity.renew, self._capacity.note_seconds))
            group.create_task(_again_and_again(self.sweep, often))
            group.create_task(_again_and_again(self.reconcile, _RECONCILE_SECONDS))

    async def sweep(self) -> None:
        """Pause the sandboxes that have been idle for long, and remove the containers of the oldest.

        Raises:
            DockerUnreachableError: the engine does not answer.
        """
        await self.prune(self._old)
        paused = await self._capacity.settle_unused(self._idle, self._containers.pause, running=True)
        if paused:
            logger.info("Paused %d idle sandboxes", paused)
        await self._containers.close_idle_channels(_CHANNELS)
        # What commands left running goes on when the process that ran them has ended.
        for session in await self._capacity.unattended():
            await self._containers.watch(session)

    async def stop(self) -> None:
        """Have the sandboxes stand still that this process looks after.

        Raises:
            DockerUnreachableError: the engine does not answer.
        """
        await self._capacity.pause_all(self._containers.pause)

    async def prune(self, unused: timedelta) -> int:
        """Remove the containers of the sandboxes that nobody has used for so long. Returns how many.

        Raises:
            DockerUnreachableError: the engine does not answer.
        """
        removed = await self._capacity.settle_unused(unused, self._containers.discard, running=False)
        if removed:
            logger.info("Removed the containers of %d sandboxes that were out of use", removed)
        return removed

    async def reconcile(self) -> int:
        """Remove containers of threads that are gone, and put the ledger right where the engine disagrees.

        Returns how many containers were removed.

        Raises:
            DockerUnreachableError: the engine does not answer.
        """
        removed = await self._containers.reconcile()
        ledger = await self._capacity.ledger()
        async with connected() as engine:
            with asking(engine):
                entries = {entry.session: entry.running for entry in await ledger.entries()}
                found = {
                    container.session: container.runs
                    for container in await list_containers(engine, ledger.instance)
                }
                for session, runs in found.items():
                    if session not in entries:
                        await ledger.adopt(session, running=runs)
                for session, runs in entries.items():
                    if found.get(session) != runs:
                        await self._correct(engine, session)
        return removed

    async def _correct(self, engine: Engine, session: SessionId) -> None:
        """Write down what is, unless the sandbox is just being made, used, paused or removed."""
        ledger = await self._capacity.ledger()
        async with ledger.hold_settled(session) as held:
            if held is None:
                return
            match await list_containers(engine, ledger.instance, session):
                case [container]:
                    await held.note_running(container.runs)
                case _:
                    await held.forget()


async def _again_and_again(work: Callable[[], Awaitable[object]], seconds: float) -> None:
    while True:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - what is away comes back
            logger.warning("Looking after the sandboxes failed and is tried again: %s", error)
        await asyncio.sleep(seconds * random.uniform(1 - _JITTER, 1))  # noqa: S311 - no secret


@lru_cache
def get_lifecycle() -> Lifecycle:
    """Return the life cycle of this installation's sandboxes, as its settings say."""
    return Lifecycle(get_settings(), get_containers(), get_capacity())
