"""Settings of the sandboxes, read from the environment."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sandbox.egress_rules import Rule, parse_rules
from storage.settings import Directory
from storage.settings import get_settings as get_storage_settings

MAX_COMMAND_TIMEOUT_SECONDS = 3600
"""What deepagents lets a model ask for at most (`max_execute_timeout`)."""


def _default_workspace_root() -> Path:
    return get_storage_settings().data_dir / "workspaces"


class SandboxSettings(BaseSettings):
    """What a sandbox is made of and how much it may use. DOCKER_HOST says where the engine is, as always."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    sandbox_base_image: str = "debian:trixie-slim"
    """What the sandbox image is built from: a Debian or a derivative of it. When it is neither present nor
    can be pulled, a base is made with debootstrap, on Debian and Ubuntu as root."""

    sandbox_image: str | None = None
    """Use this image as it is and build none. It needs `sh` and python3 with its whole standard library."""

    workspace_root: Directory = Field(default_factory=_default_workspace_root)
    """Where the threads' directories are, as this server sees it. Outside the project, as the data directory:
    `langgraph dev` would reload at each Python file that an agent writes."""

    workspace_root_on_docker_host: Path | None = None
    """The same directory as the Docker host sees it, when that is another path: a server that runs in a
    container itself."""

    sandbox_memory_mb: int = Field(default=1024, ge=64)
    """Memory of a sandbox in MiB, its /tmp included. There is no swap beyond it."""

    sandbox_cpus: float = Field(default=1.0, gt=0)
    """Processors that a sandbox may keep busy."""

    sandbox_pids: int = Field(default=256, ge=16)
    """Processes and threads that may exist in a sandbox at once."""

    sandbox_open_files: int = Field(default=4096, ge=64)
    """Descriptors that each process of a command may have open."""

    sandbox_tmp_mb: int = Field(default=256, ge=1)
    """Size of a sandbox's /tmp in MiB, up to half of its memory. It is in memory and gone when the container
    is."""

    sandbox_disk_mb: int = Field(default=2048, ge=0, le=1 << 20)
    """MiB of the disk that a workspace may take. What fills it is ended, and nothing more is written until
    something has been deleted. 0: no limit."""

    user_disk_mb: int = Field(default=10_240, ge=0)
    """MiB of the disk that all workspaces of one user may take together. 0: no limit."""

    sandbox_command_timeout_seconds: int = Field(default=120, ge=1, le=MAX_COMMAND_TIMEOUT_SECONDS)
    """How long a command may run when the model does not ask for a time of its own."""

    sandbox_idle_seconds: int = Field(default=600, ge=1)
    """When a sandbox is paused in which no call is under way and none has been for so long. What its commands
    left running stands still until it is used again."""

    sandbox_remove_seconds: int = Field(default=86_400, ge=1)
    """When the container of a sandbox is removed that has not been used for so long. The workspace stays."""

    sandbox_max_running: int = Field(default=32, ge=1)
    """Sandboxes that may run at once on this server, paused ones not counted; all processes of one data
    directory together. Idle ones are paused to make room."""

    sandbox_max_per_user: int = Field(default=8, ge=1)
    """Sandboxes of one user that may run at once. Their idle ones are paused to make room."""

    sandbox_max_kept_per_user: int = Field(default=24, ge=1)
    """Containers of one user, those that run included, that are kept for their next use. Of more, the paused
    ones that were used least are removed; the workspaces stay."""

    sandbox_network: Literal["none", "egress"] = "none"
    """What a sandbox reaches: nothing, or the hosts of SANDBOX_EGRESS_ALLOW through a proxy."""

    sandbox_egress_allow: Annotated[tuple[Rule, ...], NoDecode] = ()
    """Hosts that sandboxes may reach with `egress`, separated by commas: `pypi.org` (on port 443),
    `*.example.org` (all below it), `git.example.org:8443`. Their addresses must be public, except those that
    are named here: `mirror.example.org=10.0.0.5` is found there without a lookup, and `10.0.0.6:8443`."""

    sandbox_egress_mb: int = Field(default=10_240, ge=1)
    """MiB that one sandbox may move within 24 hours, in both directions together; counted by each server
    process for itself."""

    sandbox_runtime: str | None = None
    """The engine's OCI runtime that sandboxes run with, such as `runsc`. Unset: the engine's default."""

    @field_validator("sandbox_egress_allow", mode="before")
    @classmethod
    def _read_rules(cls, value: object) -> object:
        return parse_rules(value) if isinstance(value, str) else value

    @field_validator("workspace_root_on_docker_host")
    @classmethod
    def _refuse_relative(cls, path: Path | None) -> Path | None:
        # No ~ either: it would be this machine's home directory, not the Docker host's.
        if path is not None and not path.is_absolute():
            raise ValueError(f"{path} is not a whole path; begin it with /")
        return path

    @property
    def workspace_root_for_docker(self) -> Path:
        """The workspace root in the paths of the Docker host."""
        return self.workspace_root_on_docker_host or self.workspace_root


@lru_cache
def get_settings() -> SandboxSettings:
    """Read the settings once for this process."""
    return SandboxSettings()
