"""Settings of the HTTP side, read from the environment."""

import re
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

    cors_origins: Annotated[frozenset[str] | None, NoDecode] = None
    """Origins of the pages that may ask this server from a browser, separated by commas, such as
    https://ui.example.com; `*` for any, which then cannot send cookies or other credentials of the browser's
    own. Unset: pages on this machine, and LangGraph Studio."""

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

    max_runs_per_user_at_once: int | None = Field(default=None, ge=1)
    """Runs of one user under way at once; more wait their turn. Unset: half of the server's jobs. One job is
    always left for others, if there is more than one."""

    queue_wake: bool = True
    """Wake the platform's in-memory queue when a run arrives, instead of letting it look twice a second."""

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _read_origins(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        origins = frozenset(entry.strip().rstrip("/") for entry in value.split(",") if entry.strip())
        for origin in origins - {"*"}:
            if not re.fullmatch(r"https?://[^/\s@?#]+", origin):
                raise ValueError(f"{origin!r} is no origin; one looks like https://ui.example.com")
        return origins or None

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
