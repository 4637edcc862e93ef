"""`./warren sandboxes`: what runs for whom, whether a server runs on the data directory meanwhile or not."""

import argparse
import asyncio
import sys
from datetime import UTC, datetime, timedelta

from aiodocker.exceptions import DockerError

from sandbox.containers import get_capacity, get_containers
from sandbox.engine import Engine, connected
from sandbox.engine_calls import asking
from sandbox.errors import SandboxError
from sandbox.lifecycle import get_lifecycle
from sandbox.listing import ListedContainer, list_containers, memory_of
from sandbox.settings import get_settings
from server.serve import SetupError, prepare_environment, say
from storage.database import close_pool, release_embedded
from storage.errors import StorageError

_MIB = 1 << 20
_ASKED_AT_ONCE = 8


def sandboxes(options: argparse.Namespace) -> int:
    """List or prune, as the options of `warren sandboxes` say. Returns the exit code."""
    try:
        prepare_environment(options.data_dir, may_be_new=False)
        asyncio.run(_act(options))
    except (SandboxError, SetupError, StorageError, OSError) as error:
        print(f"warren: {error}", file=sys.stderr)  # noqa: T201 - the command line's output
        return 1
    finally:
        release_embedded()
    return 0


async def _act(options: argparse.Namespace) -> None:
    try:
        if options.sandboxes_command == "prune":
            await _prune(options.unused, everything=options.all)
        else:
            await _list()
    finally:
        await get_containers().close()
        await close_pool()


async def _list() -> None:
    ledger = await get_capacity().ledger()
    used_at = {entry.session: entry.used_at for entry in await ledger.entries()}
    async with connected() as engine:
        with asking(engine):
            found = await list_containers(engine, ledger.instance)
            limit = asyncio.Semaphore(_ASKED_AT_ONCE)
            memory = await asyncio.gather(*(_memory(engine, container, limit) for container in found))
    lines = [
        (container.session, container.state, amount, used_at.get(container.session))
        for container, amount in zip(found, memory, strict=True)
    ]
    say(f"{'USER':<32}  {'THREAD':<36}  {'STATE':<8}  {'MEMORY':>8}  LAST USED")
    for session, state, amount, at in sorted(lines, key=lambda line: line[0]):
        when = f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}" if at else "-"
        say(f"{session.owner:<32}  {session.thread_id}  {state:<8}  {amount:>8}  {when}")


async def _memory(engine: Engine, container: ListedContainer, limit: asyncio.Semaphore) -> str:
    async with limit:
        try:
            return f"{await memory_of(engine, container.id) / _MIB:.0f} MiB"
        except DockerError:  # it has been removed meanwhile
            return "-"


async def _prune(unused_since: datetime | None, *, everything: bool) -> None:
    lifecycle = get_lifecycle()
    removed = await lifecycle.reconcile()
    if everything:
        removed += await get_containers().discard_all()
    else:
        unused = timedelta(seconds=get_settings().sandbox_idle_seconds)
        if unused_since is not None:
            unused = datetime.now(UTC) - unused_since
        removed += await lifecycle.prune(unused)
    say(f"Removed {removed} {'container' if removed == 1 else 'containers'}; the workspaces are kept.")
