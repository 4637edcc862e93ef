"""Which containers of an installation there are, as the engine says."""

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sandbox.engine import Engine
from sandbox.spec import INSTANCE_LABEL, OWNER_LABEL, THREAD_LABEL
from storage.ids import SessionId


@dataclass(frozen=True, slots=True)
class ListedContainer:
    """A container of a thread. `state` is the engine's word: running, paused, created, exited, ..."""

    id: str
    session: SessionId
    state: str

    @property
    def runs(self) -> bool:
        return self.state == "running"


async def list_containers(
    engine: Engine, instance: str, session: SessionId | None = None
) -> list[ListedContainer]:
    """Return the containers of an installation, and never another's; or that of one thread.

    Raises:
        DockerError: the engine refused, or could not be reached.
    """
    labels = [f"{INSTANCE_LABEL}={instance}"]
    if session is not None:
        labels.append(f"{THREAD_LABEL}={session.thread_id}")
    found = await engine.docker.containers.list(all=True, filters=json.dumps({"label": labels}))
    return [
        ListedContainer(
            container.id,
            SessionId(container["Labels"][OWNER_LABEL], UUID(container["Labels"][THREAD_LABEL])),
            container["State"],
        )
        for container in found
    ]


async def memory_of(engine: Engine, container_id: str) -> int:
    """Return the bytes of memory that a container uses; as `docker stats` has it, without cached files.

    Raises:
        DockerError: the engine refused, or could not be reached.
    """
    # By default the engine waits a second, for a second look at the processors.
    stats = await engine.get(f"containers/{container_id}/stats", {"stream": "0", "one-shot": "1"})
    memory: dict[str, Any] = stats.get("memory_stats") or {}
    details: dict[str, int] = memory.get("stats") or {}
    cached = details.get("total_inactive_file", details.get("inactive_file", 0))  # cgroup version 1, or 2
    return max(0, int(memory.get("usage", 0)) - cached)
