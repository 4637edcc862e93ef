"""Settings of the HTTP side, read from the environment."""

from functools import lru_cache

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServerSettings(BaseSettings):
    """How requests are served."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    resume_wait_seconds: float = Field(default=60, ge=0, le=3600)
    """How long POST /api/resume waits for the run to come to its next stop before it says "still running"."""

    heartbeat_seconds: float = Field(default=15, gt=0, le=300)
    """Silence after which a chat stream sends a comment, so that proxies keep the connection."""

    queue_wake: bool = True
    """Wake the platform's in-memory queue when a run arrives, instead of letting it look twice a second."""


@lru_cache
def get_settings() -> ServerSettings:
    """Read the settings once for this process."""
    return ServerSettings()
