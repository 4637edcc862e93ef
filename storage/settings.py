"""Settings of the ground floor, read from the environment."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


def _default_data_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/warren")
    return Path("~/.local/state/warren")


def in_full(path: Path) -> Path:
    """Return a directory's path with a leading `~` replaced by the home directory.

    Raises:
        ValueError: if it is relative. What it is relative to would differ from one command to the next.
    """
    try:
        path = path.expanduser()
    except RuntimeError:
        raise ValueError(f"there is no home directory for {path}; write it in full") from None
    if not path.is_absolute():
        raise ValueError(f"{path} is not a whole path; begin it with / or ~/")
    return path


Directory = Annotated[Path, AfterValidator(in_full)]
"""A directory of this machine, named by its whole path."""


class StorageSettings(BaseSettings):
    """Where Warren keeps what must survive a restart."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    data_dir: Directory = Field(
        default_factory=_default_data_dir, validation_alias=AliasChoices("WARREN_DATA_DIR", "data_dir")
    )
    """Secrets, the embedded Postgres and, by default, the workspaces. Must lie outside the project, since
    `langgraph dev` reloads when a Python file below the project changes."""

    database_url: SecretStr | None = None
    """A Postgres server, `postgresql://…`. Unset: an embedded one starts under the data directory."""

    database_pool_size: int = Field(default=10, ge=2, le=200)
    """Connections that one process may hold, besides three that are kept for who asks and what is theirs."""

    audit_retention_days: int = Field(default=365, ge=1, le=36_500)
    """Days after which an entry of the audit log is deleted."""


@lru_cache
def get_settings() -> StorageSettings:
    """Read the settings once for this process."""
    return StorageSettings()
