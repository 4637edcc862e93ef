"""Settings of the HTTP side, read from the environment."""

from functools import lru_cache
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.hosts import LOOPBACK_NAMES


class ServerSettings(BaseSettings):
    """How requests are served."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    allowed_hosts: Annotated[frozenset[str], NoDecode] = LOOPBACK_NAMES
    """Names that a request's Host header may have, separated by commas: those under which clients reach this
    server. `*.example.com` stands for all names below, `*` for any."""

    max_body_kib: int = Field(default=1024, ge=64, le=64 * 1024)
    """Largest request body in KiB."""

    docs: bool = True
    """Serve /docs and /openapi.json."""

    metrics_token: SecretStr | None = None
    """Who may read /metrics: who sends this as bearer token. Unset: only this machine itself, directly."""

    studio_user: str | None = None
    """Let LangGraph Studio in a browser on this machine act as this user. It never does for a server that
    listens on more than loopback or stands behind a proxy."""

    resume_wait_seconds: float = Field(default=60, ge=0, le=3600)
    """How long POST /api/resume waits for the run to come to its next stop before it says "still running"."""

    heartbeat_seconds: float = Field(default=15, gt=0, le=300)
    """Silence after which a chat stream sends a comment, so that proxies keep the connection."""

    queue_wake: bool = True
    """Wake the platform's in-memory queue when a run arrives, instead of letting it look twice a second."""

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return frozenset(name.strip().lower() for name in value.split(",") if name.strip()) or LOOPBACK_NAMES


@lru_cache
def get_settings() -> ServerSettings:
    """Read the settings once for this process."""
    return ServerSettings()
