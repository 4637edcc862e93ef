"""What a client may say about a run, and what the server says instead.

A run's `config` reaches the graph, the sandbox and the stored thread, and clients can put anything into
it. So it is rebuilt from an allow-list, and identity is written over whatever was there. What is judged
is the merged result: the platform has folded `payload.checkpoint`, headers and context into it by now.
"""

from collections.abc import MutableMapping
from typing import Any

from langgraph_sdk import Auth

from auth.bounds import check_noted, check_text

HTTPException = Auth.exceptions.HTTPException

MAX_RECURSION_LIMIT = 10_000
"""Steps of one run; deepagents itself runs with 9,999."""

_CONFIG_KEYS = frozenset({"configurable", "metadata", "recursion_limit", "run_name", "tags"})
# From the client, only where in its own thread to start.
_CLIENT_CONFIGURABLE = frozenset({"checkpoint_id", "checkpoint_ns", "checkpoint_map"})
# Written by the platform after it has read the client's request.
_SERVER_CONFIGURABLE = frozenset(
    {
        "langgraph_auth_user",
        "langgraph_auth_user_id",
        "langgraph_auth_permissions",
        "langgraph_request_id",
        "__request_start_time_ms__",
        "__after_seconds__",
        "__event_streaming_v2",
    }
)
_RESERVED_METADATA = frozenset({"owner", "created_by", "graph_id", "assistant_id"})
_RESERVED_METADATA_PREFIXES = ("langgraph_", "__")


def secure_run(value: MutableMapping[str, Any], username: str) -> None:
    """Rewrite a create_run event's value in place, so that what is queued carries only what is allowed.

    Raises:
        HTTPException: 422 for a webhook (the server would call any address for the user), a delayed start
            (the run would outlast a logout and a key's deletion, as a cron's would), a bad recursion limit,
            or a config or metadata that are too large.
    """
    kwargs = value["kwargs"]
    if kwargs.get("webhook"):
        raise HTTPException(status_code=422, detail="Webhooks are not available; stream or join the run.")
    if value.get("after_seconds", 0) != 0:
        raise HTTPException(status_code=422, detail="Runs start at once: after_seconds is not available.")
    config = kwargs.setdefault("config", {})
    configurable = _secure_config(config, _CLIENT_CONFIGURABLE | _SERVER_CONFIGURABLE)
    configurable["langgraph_auth_user_id"] = username
    # The graph has no context schema; the platform mirrors the client's configurable into it.
    kwargs["context"] = {}
    config["metadata"] = stamped(config.get("metadata"), username)
    _replace(value["metadata"], stamped(value["metadata"], username))


def secure_assistant(event: MutableMapping[str, Any]) -> None:
    """Rewrite an assistant's config in place: it is merged into every run made with it.

    Raises:
        HTTPException: 422 for a bad recursion limit, or a name or config that are too large.
    """
    if (name := event.get("name")) is not None:
        check_text(name, "The name")
    if isinstance(config := event.get("config"), dict):
        _secure_config(config, _CLIENT_CONFIGURABLE)
        config.pop("metadata", None)
    if isinstance(context := event.get("context"), dict):
        context.clear()


def user_metadata(metadata: object) -> dict[str, Any]:
    """Return what a user may note on a thread: everything but the names that mean something to the server.

    Raises:
        HTTPException: 422 if it is too large.
    """
    if not isinstance(metadata, dict):
        return {}
    own = {
        key: entry
        for key, entry in metadata.items()
        if key not in _RESERVED_METADATA and not key.startswith(_RESERVED_METADATA_PREFIXES)
    }
    check_noted(own, "metadata")
    return own


def stamped(metadata: object, username: str) -> dict[str, Any]:
    """Return `user_metadata` with the owner written on it."""
    return {**user_metadata(metadata), "owner": username}


def stamp_in_place(value: MutableMapping[str, Any], username: str) -> dict[str, Any]:
    """Stamp an event's metadata, in the very dict that the platform goes on to store.

    Returns:
        the user's own part of it.
    """
    metadata = value.get("metadata")
    if not isinstance(metadata, dict):
        metadata = value["metadata"] = {}
    own = user_metadata(metadata)
    _replace(metadata, {**own, "owner": username})
    return own


def _secure_config(config: MutableMapping[str, Any], allowed: frozenset[str]) -> MutableMapping[str, Any]:
    _keep(config, _CONFIG_KEYS)
    _check_recursion_limit(config)
    configurable = config.get("configurable")
    if not isinstance(configurable, dict):
        configurable = config["configurable"] = {}
    _keep(configurable, allowed)
    sent = {key: config[key] for key in config.keys() - {"configurable", "metadata"}}
    check_noted(
        [sent, {key: configurable[key] for key in configurable.keys() & _CLIENT_CONFIGURABLE}], "config"
    )
    return configurable


def _check_recursion_limit(config: MutableMapping[str, Any]) -> None:
    limit = config.get("recursion_limit")
    if limit is None:
        config.pop("recursion_limit", None)
    elif isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_RECURSION_LIMIT:
        raise HTTPException(
            status_code=422, detail=f"recursion_limit must be a whole number from 1 to {MAX_RECURSION_LIMIT}."
        )


def _keep(mapping: MutableMapping[str, Any], allowed: frozenset[str]) -> None:
    for key in mapping.keys() - allowed:
        del mapping[key]


def _replace(mapping: MutableMapping[str, Any], replacement: dict[str, Any]) -> None:
    mapping.clear()
    mapping.update(replacement)
