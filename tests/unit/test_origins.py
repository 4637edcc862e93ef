"""Which pages may ask from a browser: the guard and the platform's CORS agree on it."""

import json
import re
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from server.origins import is_welcome, with_chosen_origins
from server.serve import PROJECT
from server.settings import ServerSettings, get_settings

HTTP = json.loads((PROJECT / "langgraph.json").read_text())["http"]


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CORS_ORIGINS", raising=False)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def choose(monkeypatch: pytest.MonkeyPatch, origins: str) -> None:
    monkeypatch.setenv("CORS_ORIGINS", origins)
    get_settings.cache_clear()


@pytest.mark.parametrize(
    ("origin", "welcome"),
    [
        ("http://localhost:3000", True),
        ("https://localhost", True),
        ("http://127.0.0.1:5173", True),
        ("http://[::1]:8080", True),
        ("https://smith.langchain.com", True),
        ("https://smith.langchain.com.evil.example", False),
        ("http://smith.langchain.com", False),
        ("https://evil.example", False),
        ("http://localhost.evil.example", False),
        ("http://127.0.0.1.evil.example", False),
        ("http://evil.example:localhost", False),
        ("http://[::1", False),
        ("null", False),
        ("file://", False),
    ],
)
def test_by_default_pages_of_this_machine_and_studio_may_ask(origin: str, welcome: bool) -> None:
    assert is_welcome(origin, "localhost:2024") is welcome
    cors = HTTP["cors"]
    allowed = origin in cors["allow_origins"] or bool(re.fullmatch(cors["allow_origin_regex"], origin))
    assert allowed is welcome
    assert with_chosen_origins(HTTP) == HTTP


def test_a_page_may_ask_the_server_it_came_from() -> None:
    assert is_welcome("https://warren.example", "warren.example")
    assert not is_welcome("https://warren.example", "warren.example:8443")


def test_the_chosen_origins_stand_in_for_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, "https://ui.example.com/, https://b.example:8443")
    assert is_welcome("https://ui.example.com", "localhost")
    assert is_welcome("https://b.example:8443", "localhost")
    assert not is_welcome("https://b.example", "localhost")
    assert not is_welcome("http://localhost:3000", "localhost:2024")
    cors = with_chosen_origins(HTTP)["cors"]
    assert cors["allow_origins"] == ["https://b.example:8443", "https://ui.example.com"]
    assert "allow_origin_regex" not in cors


def test_any_origin_never_comes_with_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, "*")
    assert is_welcome("https://anyone.example", "localhost")
    assert not with_chosen_origins(HTTP)["cors"].get("allow_credentials", False)


@pytest.mark.parametrize("origins", ["ui.example.com", "https://", "https://a/b", "https://a b", "ftp://a"])
def test_what_is_no_origin_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, origins: str) -> None:
    monkeypatch.setenv("CORS_ORIGINS", origins)
    with pytest.raises(ValidationError):
        ServerSettings()
