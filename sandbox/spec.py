"""What a sandbox container is, to the last flag."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.settings import SandboxSettings
from sandbox.toolbox.proxy import ADDRESS
from storage.ids import SessionId

WORKSPACE = "/workspace"
"""Where a thread's directory is in its sandbox: the only place that is kept."""

INSTANCE_LABEL = "warren.instance"
OWNER_LABEL = "warren.owner"
THREAD_LABEL = "warren.thread"
SPEC_LABEL = "warren.spec"

_MIB = 1 << 20
_NANO = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """A container's name, the body of the request that creates it, and whom everything in it runs as."""

    name: str
    config: dict[str, Any]
    uid: int
    gid: int

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.config["Labels"]
        return labels


def container_name(instance: str, session: SessionId) -> str:
    """Name a thread's container. Another installation on the same engine gives it another name."""
    return f"warren-{instance}-{session.thread_id}"


def container_spec(  # noqa: PLR0913, PLR0917 - each is a part of the container
    settings: SandboxSettings,
    image: str,
    instance: str,
    session: SessionId,
    source: Path,
    program: str,
    *,
    uid: int,
    gid: int,
) -> ContainerSpec:
    """Describe the container of a thread.

    Args:
        settings: Its limits.
        image: What it is made of.
        instance: The installation that it belongs to.
        session: Whose it is, and for which thread.
        source: The thread's directory on the Docker host.
        program: The first process; see `sandbox.program`.
        uid: The user that everything in it runs as.
        gid: The group that everything in it runs as.
    """
    config: dict[str, Any] = {
        "Image": image,
        "Entrypoint": ["python3", "-I", "-S", "-W", "ignore", "-c", program],
        "Cmd": [],
        "User": f"{uid}:{gid}",
        "WorkingDir": WORKSPACE,
        "Env": [f"HOME={WORKSPACE}", "USER=agent", "LOGNAME=agent", *_proxy_variables(settings)],
        "OpenStdin": True,
        "StdinOnce": True,
        "Hostname": "sandbox",
        "NetworkDisabled": True,
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGKILL",
        "HostConfig": _host_config(settings, source),
    }
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    config["Labels"] = {
        INSTANCE_LABEL: instance,
        OWNER_LABEL: session.owner,
        THREAD_LABEL: str(session.thread_id),
        SPEC_LABEL: digest,
    }
    return ContainerSpec(container_name(instance, session), config, uid, gid)


def _proxy_variables(settings: SandboxSettings) -> list[str]:
    """Say where the proxy is, to those who ask for it in lower case, in capitals, or both."""
    if settings.sandbox_network == "none":
        return []
    proxy = "http://{}:{}".format(*ADDRESS)
    variables = {
        # Plain HTTP is refused there, with a reason: better than a name that cannot be looked up.
        "http_proxy": proxy,
        "https_proxy": proxy,
        "no_proxy": "localhost,127.0.0.1,::1",
    }
    return [f"{spelt}={value}" for name, value in variables.items() for spelt in (name, name.upper())]


def _host_config(settings: SandboxSettings, source: Path) -> dict[str, Any]:
    memory = settings.sandbox_memory_mb * _MIB
    # Files in memory are freed by no kill: what they fill must leave something to live on.
    tmp, shared = min(settings.sandbox_tmp_mb * _MIB, memory // 2), min(64 * _MIB, memory // 8)
    return {
        "ReadonlyRootfs": True,
        "Mounts": [
            {
                "Type": "bind",
                "Source": str(source),
                "Target": WORKSPACE,
                "BindOptions": {"Propagation": "rprivate"},
            }
        ],
        # Without "exec" Docker mounts it noexec, and builds that run what they made in /tmp fail.
        "Tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,size={tmp},mode=1777"},  # noqa: S108
        "ShmSize": shared,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true"],  # the default seccomp profile comes on top by itself
        "NetworkMode": "none",  # with egress as well: there is a proxy on loopback, and no route
        **({"Runtime": settings.sandbox_runtime} if settings.sandbox_runtime else {}),
        "IpcMode": "private",
        "PidsLimit": settings.sandbox_pids,
        # A dump is written, or handed to a program, by the host.
        "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
        "Memory": memory,
        "MemorySwap": memory,  # both together: no swap beyond
        "NanoCpus": int(settings.sandbox_cpus * _NANO),
        "LogConfig": {"Type": "none"},
        "RestartPolicy": {"Name": "no"},
    }
