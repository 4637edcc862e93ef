"""What clients put into a run never reaches the graph as identity, and only the allow-list passes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph_sdk import Auth

from auth.bounds import MAX_NOTED_BYTES
from auth.run_request import MAX_RECURSION_LIMIT, secure_run, stamped

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


def run(config: dict[str, Any] | None = None, **kwargs: Any) -> dict[str, Any]:
    return {"kwargs": {"config": config or {}, **kwargs}, "metadata": {}}


def test_forged_identity_is_overwritten_and_unknown_keys_are_dropped() -> None:
    forged = {
        "langgraph_auth_user_id": "bob",
        "user_id": "bob",
        "owner": "bob",
        "sandbox_id": "x",
        "__pregel_send": "x",
        "checkpoint_ns": "",
    }
    value = run(
        {"configurable": forged, "callbacks": ["x"], "metadata": {"owner": "bob", "langgraph_host": "x"}}
    )
    secure_run(value, "alice")
    config = value["kwargs"]["config"]
    assert config["configurable"] == {"langgraph_auth_user_id": "alice", "checkpoint_ns": ""}
    assert config["metadata"] == value["metadata"] == {"owner": "alice"}
    assert "callbacks" not in config


def test_context_is_emptied_since_the_graph_has_none() -> None:
    value = run(context={"user_id": "bob"})
    secure_run(value, "alice")
    assert value["kwargs"]["context"] == {}


@pytest.mark.parametrize("limit", [0, -1, MAX_RECURSION_LIMIT + 1, True, "10", 1.5, [1]])
def test_odd_recursion_limits_are_refused(limit: object) -> None:
    with pytest.raises(Auth.exceptions.HTTPException) as caught:
        secure_run(run({"recursion_limit": limit}), "alice")
    assert caught.value.status_code == 422


def test_a_webhook_is_refused_since_the_server_would_call_any_address() -> None:
    with pytest.raises(Auth.exceptions.HTTPException) as caught:
        secure_run(run(webhook="http://127.0.0.1/"), "alice")
    assert caught.value.status_code == 422


@pytest.mark.parametrize("seconds", [1, 3600, -1, None])
def test_a_delayed_run_is_refused_since_it_would_outlast_a_logout(seconds: int | None) -> None:
    with pytest.raises(Auth.exceptions.HTTPException) as caught:
        secure_run({**run(), "after_seconds": seconds}, "alice")
    assert caught.value.status_code == 422
    secure_run({**run(), "after_seconds": 0}, "alice")


@pytest.mark.parametrize(
    "config",
    [
        {"tags": ["x" * MAX_NOTED_BYTES]},
        {"run_name": "\0"},
        {"configurable": {"checkpoint_map": {"": "x" * MAX_NOTED_BYTES}}},
        {"metadata": {"note": "x" * MAX_NOTED_BYTES}},
    ],
)
def test_a_config_that_is_too_large_or_cannot_be_stored_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(Auth.exceptions.HTTPException) as caught:
        secure_run(run(config), "alice")
    assert caught.value.status_code == 422


@given(st.dictionaries(texts, json_values, max_size=5))
def test_whatever_the_metadata_the_owner_is_the_caller(metadata: dict[str, Any]) -> None:
    result = stamped({**metadata, "owner": "bob"}, "alice")
    assert result["owner"] == "alice"
    assert not [key for key in result if key.startswith(("langgraph_", "__"))]


@given(json_values)
def test_metadata_of_any_shape_is_survived(metadata: object) -> None:
    assert stamped(metadata, "alice")["owner"] == "alice"
