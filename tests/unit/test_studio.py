"""Studio's header lets a browser on this machine in only where every single condition holds."""

from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from auth import secret
from auth import settings as auth_settings
from server import settings, studio
from server.lifespan import _warn_of_studio
from server.origins import STUDIO_ORIGIN


class Standing:
    token_version = 0
    disabled = False


@pytest.fixture(autouse=True)
def _studio_user(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    async def of_user(username: str) -> Standing | None:
        return Standing() if username == "alice" else None

    monkeypatch.setattr("auth.standing.of_user", of_user)
    monkeypatch.setenv("STUDIO_USER", "alice")
    monkeypatch.setenv("SECRET_KEY", "q8Vn2xTz4Rk7Lw1Jy5Hd9Gf3Bc6Mp0Sa")
    monkeypatch.setenv("LANGGRAPH_API_URL", "http://127.0.0.1:2024")
    caches = (settings.get_settings, auth_settings.get_settings, secret.signing_key)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def studio_request(client: str = "127.0.0.1", **changes: str | None) -> dict[str, Any]:
    headers: dict[str, str | None] = {
        "host": "localhost:2024",
        "origin": STUDIO_ORIGIN,
        "x-auth-scheme": "langsmith",
    } | {name.replace("_", "-"): value for name, value in changes.items()}
    raw = [(name.encode(), value.encode()) for name, value in headers.items() if value is not None]
    return {"type": "http", "client": (client, 1), "headers": raw}


async def test_a_browser_on_this_machine_is_let_in() -> None:
    header = await studio.credentials(studio_request())
    assert header is not None
    assert header[0] == b"authorization"


@pytest.mark.parametrize(
    "changed",
    [
        {"origin": "https://evil.example"},
        {"origin": "https://smith.langchain.com.evil.example"},
        {"origin": None},
        {"host": "evil.example"},
        {"host": "warren.example"},
        {"x_auth_scheme": None},
        {"x_auth_scheme": "other"},
        {"forwarded": "for=127.0.0.1"},
        {"x_forwarded_for": "127.0.0.1"},
        {"x_forwarded_proto": "https"},
        {"via": "1.1 proxy"},
        {"x_real_ip": "203.0.113.9"},
        {"cf_connecting_ip": "203.0.113.9"},
    ],
)
async def test_one_condition_missing_keeps_it_out(changed: dict[str, str | None]) -> None:
    assert await studio.credentials(studio_request(**changed)) is None


@pytest.mark.parametrize("client", ["10.0.0.7", "192.168.1.2", "203.0.113.9", "", "::ffff:10.0.0.1"])
async def test_another_machine_is_kept_out(client: str) -> None:
    assert await studio.credentials(studio_request(client=client)) is None


@pytest.mark.parametrize(
    "url", ["http://0.0.0.0:2024", "http://10.0.0.7:2024", "https://x.trycloudflare.com", ""]
)
async def test_a_server_that_listens_beyond_loopback_lets_nobody_in(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("LANGGRAPH_API_URL", url)
    assert await studio.credentials(studio_request()) is None


async def test_a_proxy_that_speaks_the_old_http_gives_itself_away() -> None:
    assert await studio.credentials({**studio_request(), "http_version": "1.0"}) is None


@pytest.mark.parametrize(("name", "value"), [("TRUSTED_PROXIES", "10.0.0.1"), ("ALLOWED_HOSTS", "w.example")])
async def test_a_server_with_a_proxy_or_a_name_lets_nobody_in(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    settings.get_settings.cache_clear()
    auth_settings.get_settings.cache_clear()
    assert await studio.credentials(studio_request()) is None


async def test_without_studio_user_nobody_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STUDIO_USER")
    settings.get_settings.cache_clear()
    assert await studio.credentials(studio_request()) is None


async def test_a_user_who_may_not_log_in_cannot_be_acted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Standing, "disabled", True)
    assert await studio.credentials(studio_request()) is None
    monkeypatch.setenv("STUDIO_USER", "nobody")
    settings.get_settings.cache_clear()
    assert await studio.credentials(studio_request()) is None


@pytest.mark.parametrize(("name", "warning"), [("nobody", "names nobody"), ("alice", "acts as that user")])
async def test_the_log_says_whom_studio_acts_as(
    name: str, warning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDIO_USER", name)
    settings.get_settings.cache_clear()
    with capture_logs() as logged:
        await _warn_of_studio()
    assert [entry["username"] for entry in logged if warning in entry["event"]] == [name]
    assert len(logged) == 1
