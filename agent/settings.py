"""Settings of the agent, read from the environment."""

from functools import lru_cache
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

TOOL_NAMES = frozenset(
    {"execute", "write_file", "edit_file", "delete", "read_file", "ls", "glob", "grep", "task"}
)
"""The tools that `create_deep_agent` gives an agent with a sandbox."""

DEFAULT_APPROVE = frozenset({"execute", "write_file", "edit_file", "delete"})
"""The tools that change something."""


class AgentSettings(BaseSettings):
    """Which model an agent talks to, and what it may do on its own."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    model: str | None = None
    """`provider:name`: `openai:gpt-5.5`, `anthropic:claude-sonnet-4-6`, `google_genai:gemini-3.5-flash`,
    `zhipuai:glm-4.6`, … Unset: the rehearsal model, a script that needs no key and no network."""

    model_base_url: str | None = None
    """An OpenAI-compatible server (vLLM, Ollama, LiteLLM, …), with `MODEL=openai:NAME`."""

    model_api_key: SecretStr | None = None
    """The key for `MODEL`'s provider or for the server at `MODEL_BASE_URL`. Unset: the provider's own
    variable (`OPENAI_API_KEY`, `ANTHROPIC_API_KEY`, …); a server at `MODEL_BASE_URL` is never sent those."""

    zhipuai_api_key: SecretStr | None = None
    """The key for `MODEL=zhipuai:…`."""

    zhipuai_api_base: str = "https://open.bigmodel.cn/api/paas/v4/"
    """Zhipu's OpenAI-compatible endpoint."""

    model_timeout_seconds: float = Field(default=120.0, gt=0, le=3600)
    """How long one request to the model may stay silent."""

    model_max_retries: int = Field(default=5, ge=0, le=20)
    """How often a failed request (no connection, rate limit, 5xx, a stream that breaks off) is sent again
    before the run fails, after 1, 2, 4, … seconds: five times take half a minute."""

    model_max_input_tokens: int | None = Field(default=None, ge=1_000)
    """The model's context window in tokens; older messages are summarised at 85 % of it. Unset: what
    LangChain knows about the model, and 128000 for `zhipuai:` and for a server at `MODEL_BASE_URL`."""

    model_max_output_tokens: int | None = Field(default=None, ge=1)
    """Longest answer in tokens. Unset: the provider's default."""

    approve: Annotated[frozenset[str], NoDecode] = DEFAULT_APPROVE
    """The tools whose calls wait for a person, separated by commas. `none` lets every call through unseen.
    An empty value means the default: a line left blank in .env must not open the door."""

    model_call_limit: int = Field(default=200, ge=1)
    """Model calls for one message of the user, approvals in between included. At the limit the agent ends its
    turn and says so."""

    tool_call_limit: int = Field(default=500, ge=1)
    """Tool calls for one message. Calls beyond it are not made; the model is told and can wind up."""

    @field_validator("approve", mode="before")
    @classmethod
    def _read_tool_names(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        names = frozenset(name.strip() for name in value.split(",") if name.strip())
        if names == {"none"}:
            return frozenset()
        return names or DEFAULT_APPROVE

    @field_validator("approve")
    @classmethod
    def _refuse_unknown_tools(cls, names: frozenset[str]) -> frozenset[str]:
        if unknown := names - TOOL_NAMES:
            known = ", ".join(sorted(TOOL_NAMES))
            raise ValueError(f"APPROVE names no tool: {', '.join(sorted(unknown))}. The tools are {known}.")
        return names


@lru_cache
def get_settings() -> AgentSettings:
    """Read the settings once for this process."""
    return AgentSettings()
