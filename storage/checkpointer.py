"""The checkpointer that langgraph.json names.

The platform loads this file as a module of its own, so that it holds nothing that others share.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from storage.database import close_pool, get_pool, release_embedded
from storage.saver import WarrenSaver


@asynccontextmanager
async def checkpointer() -> AsyncIterator[WarrenSaver]:
    """Yield the saver for the running event loop; the platform enters this once per loop."""
    try:
        yield WarrenSaver(await get_pool())
    finally:
        # The platform leaves this last of all that uses the database.
        await close_pool()
        await asyncio.to_thread(release_embedded)
