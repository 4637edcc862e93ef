"""Settings of the sandboxes, read from the environment."""

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

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

    workspace_root: Path = Field(default_factory=_default_workspace_root)
    """Where the threads' directories are, as this server sees it."""

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

    sandbox_command_timeout_seconds: int = Field(default=120, ge=1, le=MAX_COMMAND_TIMEOUT_SECONDS)
    """How long a command may run when the model does not ask for a time of its own."""

    sandbox_network: Literal["none"] = "none"
    """What a sandbox reaches: nothing."""

    @property
    def workspace_root_for_docker(self) -> Path:
        """The workspace root in the paths of the Docker host."""
        return self.workspace_root_on_docker_host or self.workspace_root


@lru_cache
def get_settings() -> SandboxSettings:
    """Read the settings once for this process."""
    return SandboxSettings()
