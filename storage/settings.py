"""Settings of the ground floor, read from the environment."""

import os
from functools import lru_cache
from pathlib import Path

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


def _default_data_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/warren")
    return Path.home() / ".local" / "state" / "warren"


class StorageSettings(BaseSettings):
    """Where Warren keeps what must survive a restart."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    data_dir: Path = Field(
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
