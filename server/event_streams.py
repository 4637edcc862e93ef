"""What `POST /threads/{id}/stream/events` holds of a run for its client: little, and only if unsent.

The platform takes every event from the queue that `server.subscribers` bounds, parses it, and puts it into a
list of its own that has no bound; and it keeps the latest 10,000 to play them again to a websocket, which are
not served here. One such stream of a large thread held 700 MB.

Like `server.corrections`, this touches the platform's inside, and only where its version and shape are known.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from server.listings import size_of_json
from server.runtime import is_in_memory, is_known

UNSENT_BYTES = 4 << 20
"""What may lie ready for one client before the next event is taken; a single event may be larger."""

LOOK_SECONDS = 0.02
"""Time between two looks whether it has been sent: the platform's own, when it looks for more."""

Event = dict[str, Any]
Sink = Callable[[Event], Awaitable[None]]


def install() -> bool:
    """Put the bound in place. Safe to call again.

    Returns:
        whether it is; an unknown version or shape is left alone with a warning, another runtime silently.
    """
    if not is_in_memory():
        return False
    from langgraph_api.api import event_streaming  # noqa: PLC0415 - reads the environment when imported
    from langgraph_api.event_streaming import session  # noqa: PLC0415 - as above

    make = event_streaming._make_manager  # noqa: SLF001 - there is no other way to it
    if getattr(make, "__module__", None) == __name__:
        return True
    if not is_known(has_known_shape, event_streaming, session, otherwise="Event streams are not bounded"):
        return False

    def make_manager(thread_id: str, send_event: Sink | None = None, **options: Any) -> Any:
        return make(thread_id, send_event and patient(send_event), **options)

    event_streaming._make_manager = make_manager  # noqa: SLF001 - as above
    session.LSD_PROTOCOL_V2_BUFFER_SIZE = 1
    return True


def has_known_shape(event_streaming: Any, session: Any) -> bool:
    """Tell whether what is replaced still is what it was."""
    parameters = inspect.signature(event_streaming._make_manager).parameters  # noqa: SLF001 - as above
    return list(parameters) == ["thread_id", "send_event", "headers"] and isinstance(
        session.LSD_PROTOCOL_V2_BUFFER_SIZE, int
    )


def patient(sink: Sink) -> Sink:
    """Return a `sink` that takes an event only after most of those before it have been sent.

    Args:
        sink: the platform's; it puts events into a list, `pending_events`, that is emptied by sending.
    """
    pending: list[Event] | None = inspect.getclosurevars(sink).nonlocals.get("pending_events")
    if pending is None:  # a websocket's sends at once
        return sink
    unsent = 0

    async def take(event: Event) -> None:
        nonlocal unsent
        while pending and unsent > UNSENT_BYTES:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(LOOK_SECONDS)
        if not pending:
            unsent = 0
        unsent += size_of_json(event, UNSENT_BYTES)
        await sink(event)

    return take
