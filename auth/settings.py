"""Settings of accounts and tokens, read from the environment."""

from functools import lru_cache

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class AuthSettings(BaseSettings):
    """Who may come in, and for how long."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    secret_key: SecretStr | None = None
    """Signs the access tokens, at least 32 bytes. Unset: one is generated into the data directory."""

    access_token_expire_hours: float = Field(default=24, gt=0, le=24 * 365)
    """How long a login lasts, in hours."""


@lru_cache
def get_settings() -> AuthSettings:
    """Read the settings once for this process."""
    return AuthSettings()
