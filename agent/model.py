"""The chat model that agents talk to, from the settings, and one question to it at start."""

import asyncio
import os
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

from langchain_core.exceptions import ModelAuthenticationError, ModelPermissionDeniedError
from langchain_core.language_models import BaseChatModel
from pydantic import SecretStr, ValidationError

from agent.errors import MissingModelKeyError, ModelKeyRejectedError, ModelSettingsError
from agent.rehearsal import RehearsalModel
from agent.settings import AgentSettings, get_settings

PROBE_SECONDS = 5.0
"""The longest that a silent provider may hold up a start."""

COMPATIBLE_MAX_INPUT_TOKENS = 128_000
"""The context window assumed of an OpenAI-compatible server, since LangChain has no profile for its models.
GLM-4.5 and most open models offer it; without any, summarisation would only start at 170,000 tokens."""

KEY_VARIABLES = {
    "anthropic": ("ANTHROPIC_API_KEY",),
    "google_genai": ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
    "openai": ("OPENAI_API_KEY",),
    "zhipuai": ("ZHIPUAI_API_KEY",),
}
"""Where a provider's key is looked for. Other providers' packages say themselves what they miss."""

_REJECTED = frozenset({401, 403})


def build_model(settings: AgentSettings | None = None) -> BaseChatModel:
    """Build the model that MODEL names, without any network traffic; the rehearsal model if it names none.

    Raises:
        ModelSettingsError: MODEL is malformed, its provider unknown or the provider's package not installed.
        MissingModelKeyError: the provider needs an API key that is not set.
    """
    settings = settings or get_settings()
    if settings.model is None:
        return RehearsalModel()
    provider, _, name = (part.strip() for part in settings.model.partition(":"))
    if not provider or not name:
        raise ModelSettingsError(
            f"MODEL={settings.model}: expected provider:name, for example openai:gpt-5.5."
        )
    provider = provider.lower().replace("-", "_")
    if settings.model_base_url is not None:
        return _compatible_server(settings, provider, name)
    if provider == "zhipuai":
        key = settings.zhipuai_api_key or settings.model_api_key
        return _openai_compatible(
            settings, name, settings.zhipuai_api_base, _required(key, settings.model, provider)
        )
    return _native(settings, provider, name)


async def probe_model(model: BaseChatModel) -> str | None:
    """Ask `model` one question; hang up at the first sign of an answer, or after `PROBE_SECONDS`.

    Returns:
        None if the model answers; otherwise a warning: an outage of the provider is no reason not to start.

    Raises:
        ModelKeyRejectedError: the provider answered 401 or 403.
    """
    if isinstance(model, RehearsalModel):
        return None
    try:
        answer = cast("AsyncGenerator[object]", model.astream("Reply with: ok"))
        async with asyncio.timeout(PROBE_SECONDS), aclosing(answer):
            async for _ in answer:
                return None
    except TimeoutError:
        return f"The model did not answer within {PROBE_SECONDS:g} s; runs will fail until it does."
    except Exception as error:  # noqa: BLE001 - every provider has exceptions of its own
        status = _status_of(error)
        if status in _REJECTED or isinstance(error, ModelAuthenticationError | ModelPermissionDeniedError):
            raise ModelKeyRejectedError(
                f"The model's provider rejected the API key (HTTP {status}). Is it the one for this model?"
            ) from None
        # The provider's own text may repeat a part of the key.
        reason = f"HTTP {status}" if status else type(error).__name__
        return f"The model could not be reached ({reason}); runs will fail until it can be."
    return "The model's answer was empty."


def _compatible_server(settings: AgentSettings, provider: str, name: str) -> BaseChatModel:
    """Build a client for the server at MODEL_BASE_URL."""
    if provider != "openai":
        raise ModelSettingsError(
            f"MODEL_BASE_URL goes with MODEL=openai:NAME, not with {provider}:{name}"
            + ("; the setting for zhipuai is ZHIPUAI_API_BASE." if provider == "zhipuai" else ".")
        )
    # Never none: the client would take OPENAI_API_KEY and hand it to somebody else's server.
    key = settings.model_api_key or SecretStr("no-key")
    return _openai_compatible(settings, name, settings.model_base_url or "", key)


def _openai_compatible(settings: AgentSettings, name: str, base_url: str, key: SecretStr) -> BaseChatModel:
    """Build a client that keeps to the part of OpenAI's API that others implement."""
    options: dict[str, Any] = {
        "base_url": base_url,
        "use_responses_api": False,
        "profile": {"max_input_tokens": settings.model_max_input_tokens or COMPATIBLE_MAX_INPUT_TOKENS},
    }
    if settings.model_max_output_tokens is not None:
        # ChatOpenAI renames max_tokens to max_completion_tokens, which Zhipu and others do not know.
        options["extra_body"] = {"max_tokens": settings.model_max_output_tokens}
    return _init(settings, "openai", name, key, options)


def _native(settings: AgentSettings, provider: str, name: str) -> BaseChatModel:
    """Build a client through the provider's own LangChain package."""
    key = settings.model_api_key
    if key is None and provider in KEY_VARIABLES:
        found = next(
            (value for variable in KEY_VARIABLES[provider] if (value := os.environ.get(variable))), None
        )
        key = _required(SecretStr(found) if found else None, f"{provider}:{name}", provider)
    options: dict[str, Any] = {}
    if settings.model_max_output_tokens is not None:
        options["max_tokens"] = settings.model_max_output_tokens
    model = _init(settings, provider, name, key, options)
    if settings.model_max_input_tokens is not None:
        model.profile = {**(model.profile or {}), "max_input_tokens": settings.model_max_input_tokens}
    return model


def _init(
    settings: AgentSettings, provider: str, name: str, key: SecretStr | None, options: dict[str, Any]
) -> BaseChatModel:
    if key is not None:
        options["api_key"] = key
    from langchain.chat_models import init_chat_model  # noqa: PLC0415 - the rehearsal model does without

    try:
        model: BaseChatModel = init_chat_model(
            name,
            model_provider=provider,
            timeout=settings.model_timeout_seconds,
            # The agent retries, by ModelRetryMiddleware: a client cannot repeat a stream that broke off, and
            # two layers would multiply. Google's client counts attempts and takes 0 for its default of six.
            max_retries=1 if provider == "google_genai" else 0,
            **options,
        )
    except ValidationError as error:
        # Its own text would repeat the arguments, the key among them.
        reasons = "; ".join(item["msg"] for item in error.errors(include_input=False, include_context=False))
        raise ModelSettingsError(f"MODEL={provider}:{name}: {reasons}") from None
    except Exception as error:
        # LangChain names the package to install, or the providers that there are; a provider's package says
        # what it misses, in an exception of its own. Here uv keeps the environment.
        reason = re.sub("pip install (-U |--upgrade )?", "uv add ", str(error))
        raise ModelSettingsError(f"MODEL={provider}:{name}: {reason}") from error
    return model


def _required(key: SecretStr | None, model: str, provider: str) -> SecretStr:
    if key is None or not key.get_secret_value():
        raise MissingModelKeyError(
            f"MODEL={model} needs an API key: set {' or '.join(KEY_VARIABLES[provider])} in .env."
        )
    return key


def _status_of(error: BaseException | None) -> int | None:
    """Find the HTTP status in a provider's exception or in what caused it."""
    while error is not None:
        for status in (getattr(error, "status_code", None), getattr(error, "code", None)):
            if isinstance(status, int):
                return status
        error = error.__cause__
    return None
