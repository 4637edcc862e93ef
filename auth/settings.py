"""Settings of accounts, tokens and what is a user's, read from the environment."""

import ipaddress
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class AuthSettings(BaseSettings):
    """Who may come in, for how long, and how much may be theirs."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    secret_key: SecretStr | None = None
    """Signs the access tokens, at least 32 bytes. Unset: one is generated into the data directory."""

    secret_key_previous: SecretStr | None = None
    """Keys that signed before, separated by commas. Their tokens are good until they expire; nothing new is
    signed with them. To change the key without logging anyone out, move the old one here."""

    access_token_expire_hours: float = Field(default=24, gt=0, le=24 * 365)
    """How long a login lasts, in hours."""

    registration: Literal["open", "closed"] = "open"
    """Who may register: anyone who reaches the server, or nobody (`./warren users add` always works)."""

    registrations_per_hour: int = Field(default=20, ge=1)
    """Registrations that one address may try in an hour; those that succeed count as well."""

    login_failures_per_account: int = Field(default=5, ge=1)
    """Wrong passwords for one name before the next try has to wait: 1 s, then 2, 4, … up to 15 minutes."""

    login_failures_per_address: int = Field(default=20, ge=1)
    """The same for all tries from one address, whatever the names; an IPv6 address counts as its /64."""

    max_threads_per_user: int = Field(default=1000, ge=1)
    """Threads that one user may have; deleted ones do not count. The platform's in-memory runtime looks for a
    thread among those of all users, so that each one makes everybody's requests a little slower."""

    trusted_proxies: Annotated[tuple[Network, ...], NoDecode] = ()
    """Addresses or networks of the proxies before this server, separated by commas. From them alone, a
    client's address is read from X-Forwarded-For; otherwise it is the connection's own."""

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _read_networks(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(ipaddress.ip_network(entry.strip()) for entry in value.split(",") if entry.strip())


@lru_cache
def get_settings() -> AuthSettings:
    """Read the settings once for this process."""
    return AuthSettings()
