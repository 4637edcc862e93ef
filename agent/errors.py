"""What can go wrong in the agent package. A class's docstring is its default message."""

import inspect


class AgentError(Exception):
    """Warren's agent could not be set up."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.getdoc(type(self)))


class ModelSettingsError(AgentError):
    """MODEL is not usable: expected provider:name, for example openai:gpt-5.5."""


class MissingModelKeyError(AgentError):
    """The model's provider wants an API key and none is set."""


class ModelKeyRejectedError(AgentError):
    """The model's provider rejected the API key."""


class DecisionsUnseenError(AgentError):
    """The installed langchain handles decisions unseen by the audit log, so nothing was done."""
