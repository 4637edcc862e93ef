"""The open channels of one event loop: one to each container that is in use."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from weakref import WeakValueDictionary

from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError

from sandbox.calls import Budget
from sandbox.channel import Channel
from sandbox.egress import Egress, WayOut
from sandbox.engine_calls import within_reason
from sandbox.errors import NotStartedError, SandboxError
from sandbox.relay import DockerStream, attach_by_relay
from storage.ids import SessionId

logger = logging.getLogger(__name__)

_TRUSTED_SECONDS = 1
"""For how long a thread that was live is held to be: reads of the registry may be that old."""


@dataclass(slots=True)
class _Open:
    channel: Channel
    checked_at: float


class Channels:
    """Opens, finds and closes channels. Whoever opens or closes one holds the thread's lock.

    Args:
        egress: The sandboxes' way out, if they have one.
    """

    def __init__(self, egress: Egress | None = None) -> None:
        self.egress = egress
        self._open: dict[SessionId, _Open] = {}
        self._budgets: WeakValueDictionary[str, Budget] = WeakValueDictionary()

    async def find(self, session: SessionId, is_live: Callable[[], Awaitable[bool]]) -> Channel | None:
        """Return the open channel of a thread, if there is one and the thread is live."""
        found = self._open.get(session)
        if found is None or found.channel.is_closed:
            return None
        now = asyncio.get_running_loop().time()
        if now - found.checked_at > _TRUSTED_SECONDS:
            if not await is_live():
                return None
            found.checked_at = now
        return found.channel

    async def open(self, session: SessionId, container: DockerContainer) -> Channel:
        """Connect to the toolbox of a running container; if that fails, once more.

        Raises:
            NotStartedError: there is no way to it.
            DockerError: the engine could not be reached.
        """
        await self.close(session)
        try:
            channel = await self._connect(session, container, await attach_by_relay(container))
        except NotStartedError:
            channel = await self._connect(session, container, await attach_by_relay(container))
        self._open[session] = _Open(channel, asyncio.get_running_loop().time())
        return channel

    async def adopt(self, session: SessionId, container: DockerContainer, stream: DockerStream) -> None:
        """Connect over the stream of a new container, if its toolbox answers there; otherwise `open` will."""
        await self.close(session)
        with suppress(NotStartedError):
            channel = await self._connect(session, container, stream)
            self._open[session] = _Open(channel, asyncio.get_running_loop().time())

    def get(self, session: SessionId) -> Channel | None:
        """Return the open channel of a thread that is known to be live."""
        found = self._open.get(session)
        return found.channel if found and not found.channel.is_closed else None

    def idle_beyond(self, kept: int) -> list[SessionId]:
        """Return whose channels are idle, but for those `kept` that were used last."""
        by_use = sorted(self._open, key=lambda session: self._open[session].checked_at, reverse=True)
        return [session for session in by_use[kept:] if self._open[session].channel.is_idle]

    async def close(self, session: SessionId) -> None:
        """Close a thread's channel. What was begun over it and still runs is ended. Safe to repeat."""
        if found := self._open.pop(session, None):
            await found.channel.close()

    async def close_all(self) -> None:
        await asyncio.gather(*(self.close(session) for session in list(self._open)))

    async def _connect(self, session: SessionId, container: DockerContainer, stream: DockerStream) -> Channel:
        way_out = WayOut(self.egress, session) if self.egress else None
        budget = self._budgets.setdefault(session.owner, Budget())
        channel = Channel(stream, lambda: _revive(container), way_out, budget)
        try:
            await channel.answers()
        except BaseException:
            await channel.close()
            raise
        return channel


async def _revive(container: DockerContainer) -> bool:
    """Have a paused container go on. False: it does not run any more."""
    try:
        async with within_reason("resume"):
            state = (await container.show())["State"]
            if state["Paused"]:
                logger.info("A container was paused while it was in use")
                with suppress(DockerError):  # another call was quicker
                    await container.unpause()
            return bool(state["Running"])
    except DockerError as error:
        return error.status != HTTPStatus.NOT_FOUND  # unreachable is not gone
    except SandboxError:
        return True
