"""Real sandboxes for tests: an installation of their own on the real engine, without registry or server."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

from langchain_core.runnables.config import var_child_runnable_config

from sandbox.backend import SandboxBackend
from sandbox.capacity import Act, Admissions
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


class Unlimited:
    """Lets everything run, for as long as it likes: there is no database to count in."""

    def __init__(self) -> None:
        self.paused: set[SessionId] = set()

    def using(self, _: SessionId) -> AbstractContextManager[None]:
        return nullcontext()

    def is_fresh(self, session: SessionId) -> bool:
        return session not in self.paused

    async def admit(self, session: SessionId, _: Act, __: Act) -> bool:
        was_running = session not in self.paused
        self.paused.discard(session)
        return was_running

    async def forget(self, _: SessionId) -> None: ...


class Sandboxes:
    """An installation: its backend, its containers, and the threads that it holds to be live."""

    def __init__(self, root: Path, admissions: Admissions | None = None, **settings: Any) -> None:
        self.instance = uuid4().hex[:10]
        self.workspaces = Workspaces(root, root)
        self.uids: dict[str, int] = {}
        self.live: set[SessionId] = set()
        self._unlimited = Unlimited()
        self.containers = Containers(
            SandboxSettings(**settings),
            lambda: self.instance,
            self.workspaces,
            self._uid_of,
            self._is_live,
            admissions or self._unlimited,
        )
        self.backend = SandboxBackend(self.containers)

    def thread(self, owner: str) -> SessionId:
        session = SessionId(owner, uuid4())
        self.live.add(session)
        return session

    async def pause(self, session: SessionId) -> None:
        """Pause a sandbox as a server does when it is idle. Only without admissions of one's own."""
        await self.containers.pause(session)
        self._unlimited.paused.add(session)

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
