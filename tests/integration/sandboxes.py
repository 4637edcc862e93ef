"""Real sandboxes for tests: an installation of their own on the real engine, without registry or server."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from langchain_core.runnables.config import var_child_runnable_config

from sandbox.backend import SandboxBackend
from sandbox.containers import Containers
from sandbox.image import ensure_image
from sandbox.install import ensure_engine
from sandbox.settings import SandboxSettings
from sandbox.workspace import Workspaces
from storage.ids import SessionId


@contextmanager
def in_run(session: SessionId | None, **forged: Any) -> Iterator[None]:
    """Be within a run of a session, with whatever else a client put into its `configurable`."""
    stamped = (
        {"langgraph_auth_user_id": session.owner, "thread_id": str(session.thread_id)} if session else {}
    )
    token = var_child_runnable_config.set({"configurable": {**forged, **stamped}})
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)


class Sandboxes:
    """An installation: its backend, its containers, and the threads that it holds to be live."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.instance = uuid4().hex[:10]
        self.workspaces = Workspaces(root, root)
        self.uids: dict[str, int] = {}
        self.live: set[SessionId] = set()
        self.containers = Containers(
            SandboxSettings(**settings), lambda: self.instance, self.workspaces, self._uid_of, self._is_live
        )
        self.backend = SandboxBackend(self.containers)

    def thread(self, owner: str) -> SessionId:
        session = SessionId(owner, uuid4())
        self.live.add(session)
        return session

    async def run(self, session: SessionId, command: str) -> str:
        """Run a command as the agent of a session and return its output; it must end well."""
        with in_run(session):
            result = await self.backend.aexecute(command)
        assert result.exit_code == 0, result.output
        return result.output

    async def _uid_of(self, owner: str) -> int:
        return self.uids.setdefault(owner, 300_000 + len(self.uids))

    async def _is_live(self, session: SessionId) -> bool:
        return session in self.live


@asynccontextmanager
async def sandboxes(root: Path, **settings: Any) -> AsyncIterator[Sandboxes]:
    await ensure_engine(print)
    await ensure_image(print)
    installation = Sandboxes(root, **settings)
    try:
        yield installation
    finally:
        installation.live.clear()
        await installation.containers.reconcile()
        await installation.containers.close()
