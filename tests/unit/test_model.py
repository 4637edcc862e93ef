"""Which model is built from which settings, and what a probe of it finds out."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from langchain_openai import ChatOpenAI
from pydantic import SecretStr, ValidationError

from agent import model as model_module
from agent.errors import MissingModelKeyError, ModelKeyRejectedError, ModelSettingsError
from agent.model import COMPATIBLE_MAX_INPUT_TOKENS, KEY_VARIABLES, build_model, probe_model
from agent.rehearsal import RehearsalModel
from agent.settings import DEFAULT_APPROVE, AgentSettings
from server.serve import PROJECT

SECRET = "sk-do-not-print-me"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from an environment in which no provider has a key and no setting is made."""
    variables = [name for names in KEY_VARIABLES.values() for name in names]
    for name in [*variables, *(name.upper() for name in AgentSettings.model_fields)]:
        monkeypatch.delenv(name, raising=False)


@dataclass
class Provider:
    """A loopback server that speaks enough of OpenAI's chat completions to be asked."""

    status: int = 200
    hangs: bool = False
    is_silent: bool = False
    requests: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.path, request.headers["Authorization"], await request.json()))
        if self.hangs:
            await asyncio.Event().wait()
        if self.status != 200:
            return web.json_response({"error": {"message": f"{SECRET} is wrong"}}, status=self.status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        delta = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "ok"}}]}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", **delta}
        events = [] if self.is_silent else [json.dumps(chunk)]
        for event in [*events, "[DONE]"]:
            await response.write(f"data: {event}\n\n".encode())
        return response


@asynccontextmanager
async def serving(provider: Provider) -> AsyncIterator[Provider]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", provider.answer)
    async with TestServer(app) as server:
        provider.url = str(server.make_url("/v1/"))
        yield provider


def compatible(provider: Provider, **settings: Any) -> AgentSettings:
    return AgentSettings(model="openai:some/model:7b", model_base_url=provider.url, **settings)


# --- settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("execute", {"execute"}),
        (" execute , write_file,", {"execute", "write_file"}),
        ("none", set()),
        ("", DEFAULT_APPROVE),
        (" , ", DEFAULT_APPROVE),
    ],
)
def test_approve_lists_tools_and_only_the_word_none_means_none(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: set[str]
) -> None:
    monkeypatch.setenv("APPROVE", value)
    assert AgentSettings().approve == expected


@pytest.mark.parametrize("value", ["exec", "execute,none", "EXECUTE", "execute;delete", "*"])
def test_approve_refuses_what_is_no_tool(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("APPROVE", value)
    with pytest.raises(ValidationError, match="write_file"):
        AgentSettings()


def test_keys_do_not_show_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_API_KEY", SECRET)
    monkeypatch.setenv("ZHIPUAI_API_KEY", SECRET)
    assert SECRET not in repr(AgentSettings())


# --- building ----------------------------------------------------------------------------------------


def test_without_model_it_is_the_rehearsal_model() -> None:
    assert isinstance(build_model(AgentSettings()), RehearsalModel)


def test_the_rehearsal_model_loads_no_provider() -> None:
    code = (
        "import sys, agent.build, agent.model; agent.model.build_model()\n"
        "print([m for m in ('openai', 'anthropic', 'google.genai', 'langchain_openai') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={}, cwd=PROJECT
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("provider", sorted(KEY_VARIABLES))
def test_a_missing_key_names_the_variable_to_set(provider: str) -> None:
    with pytest.raises(MissingModelKeyError, match=KEY_VARIABLES[provider][0]):
        build_model(AgentSettings(model=f"{provider}:some-model"))


@pytest.mark.parametrize("provider", sorted(KEY_VARIABLES))
def test_an_empty_key_is_a_missing_key(monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    for name in KEY_VARIABLES[provider]:
        monkeypatch.setenv(name, "")
    with pytest.raises(MissingModelKeyError):
        build_model(AgentSettings(model=f"{provider}:some-model"))


@pytest.mark.parametrize(
    ("model", "class_name"),
    [
        ("openai:gpt-5.5", "ChatOpenAI"),
        ("anthropic:claude-sonnet-4-6", "ChatAnthropic"),
        ("google_genai:gemini-3.5-flash", "ChatGoogleGenerativeAI"),
        ("Google-GenAI: gemini-3.5-flash", "ChatGoogleGenerativeAI"),
    ],
)
def test_a_known_provider_has_timeout_and_window_and_leaves_retries_to_the_agent(
    monkeypatch: pytest.MonkeyPatch, model: str, class_name: str
) -> None:
    for names in KEY_VARIABLES.values():
        monkeypatch.setenv(names[-1], SECRET)
    built: Any = build_model(
        AgentSettings(
            model=model,
            model_timeout_seconds=7,
            model_max_input_tokens=5000,
            model_max_output_tokens=9,
        )
    )
    assert type(built).__name__ == class_name
    timeout = next(
        getattr(built, n)
        for n in ("request_timeout", "default_request_timeout", "timeout")
        if hasattr(built, n)
    )
    assert timeout == 7
    # Google's client counts attempts.
    assert built.max_retries == (1 if class_name == "ChatGoogleGenerativeAI" else 0)
    assert built.profile["max_input_tokens"] == 5000
    assert built.profile["tool_calling"]
    assert SECRET not in repr(built)


def test_model_api_key_serves_any_provider() -> None:
    built = build_model(AgentSettings(model="openai:gpt-5.5", model_api_key=SecretStr(SECRET)))
    assert isinstance(built, ChatOpenAI)
    assert built.openai_api_key == SecretStr(SECRET)


@pytest.mark.parametrize("model", ["gpt-5.5", "openai:", ":gpt-5.5", ":", " : ", "nobody:x", "\x00:\x00"])
def test_a_malformed_or_unknown_model_is_refused(model: str) -> None:
    with pytest.raises(ModelSettingsError):
        build_model(AgentSettings(model=model))


def test_a_provider_without_its_package_names_the_package() -> None:
    with pytest.raises(ModelSettingsError, match="langchain-mistralai"):
        build_model(AgentSettings(model="mistralai:mistral-large-latest"))


@pytest.mark.parametrize("model", ["anthropic:claude-sonnet-4-6", "zhipuai:glm-4.6"])
def test_model_base_url_goes_with_openai_only(model: str) -> None:
    with pytest.raises(ModelSettingsError, match="MODEL_BASE_URL"):
        build_model(AgentSettings(model=model, model_base_url="http://127.0.0.1:1/v1"))


# --- OpenAI-compatible servers -----------------------------------------------------------------------


async def test_a_compatible_server_gets_chat_completions_with_max_tokens() -> None:
    async with serving(Provider()) as provider:
        model = build_model(compatible(provider, model_max_output_tokens=77))
        assert await probe_model(model) is None
    [(path, _, body)] = provider.requests
    assert path == "/v1/chat/completions"
    assert body["model"] == "some/model:7b"
    assert body["max_tokens"] == 77
    assert "max_completion_tokens" not in body


async def test_a_compatible_server_is_not_sent_the_key_of_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    async with serving(Provider()) as provider:
        await probe_model(build_model(compatible(provider)))
        await probe_model(build_model(compatible(provider, model_api_key=SecretStr("its-own"))))
    without, own = (authorization for _, authorization, _ in provider.requests)
    assert SECRET not in without
    assert own == "Bearer its-own"


async def test_zhipuai_is_a_compatible_server_with_its_own_key_and_address() -> None:
    async with serving(Provider()) as provider:
        settings = AgentSettings(
            model="zhipuai:glm-4.6", zhipuai_api_key=SecretStr("zhipu"), zhipuai_api_base=provider.url
        )
        assert await probe_model(build_model(settings)) is None
    [(path, authorization, body)] = provider.requests
    assert (path, authorization, body["model"]) == ("/v1/chat/completions", "Bearer zhipu", "glm-4.6")


@pytest.mark.parametrize(("setting", "expected"), [(None, COMPATIBLE_MAX_INPUT_TOKENS), (32_000, 32_000)])
def test_a_compatible_server_has_an_explicit_window(setting: int | None, expected: int) -> None:
    settings = AgentSettings(
        model="zhipuai:glm-4.6", zhipuai_api_key=SecretStr(SECRET), model_max_input_tokens=setting
    )
    assert build_model(settings).profile == {"max_input_tokens": expected}


def test_a_package_that_is_missing_is_added_to_the_project() -> None:
    with pytest.raises(ModelSettingsError, match="`uv add langchain-groq`"):
        build_model(AgentSettings(model="groq:x", model_api_key=SecretStr(SECRET)))


# --- probe -------------------------------------------------------------------------------------------


async def test_the_rehearsal_model_needs_no_probe() -> None:
    assert await probe_model(RehearsalModel()) is None


@pytest.mark.parametrize("status", [401, 403])
async def test_a_rejected_key_stops_the_start_and_is_not_printed(status: int) -> None:
    async with serving(Provider(status=status)) as provider:
        with pytest.raises(ModelKeyRejectedError, match=str(status)) as caught:
            await probe_model(build_model(compatible(provider)))
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_an_outage_is_a_warning_that_names_the_status(status: int) -> None:
    async with serving(Provider(status=status)) as provider:
        warning = await probe_model(build_model(compatible(provider)))
    assert warning is not None
    assert str(status) in warning
    assert SECRET not in warning


async def test_a_silent_server_is_given_up_after_the_probes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "PROBE_SECONDS", 0.3)
    async with serving(Provider(hangs=True)) as provider:
        warning = await asyncio.wait_for(probe_model(build_model(compatible(provider))), timeout=5)
        assert len(provider.requests) == 1
    assert warning is not None


def no_one_listens(provider: Provider) -> AgentSettings:
    provider.url = "http://127.0.0.1:1/v1"
    return compatible(provider)


def nothing_is_said(provider: Provider) -> AgentSettings:
    provider.is_silent = True
    return compatible(provider)


@pytest.mark.parametrize("trouble", [no_one_listens, nothing_is_said])
async def test_other_trouble_is_a_warning(trouble: Callable[[Provider], AgentSettings]) -> None:
    async with serving(Provider()) as provider:
        assert await probe_model(build_model(trouble(provider)))
