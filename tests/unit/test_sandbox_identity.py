"""Whose run it is: only what the server stamped counts."""

from typing import Any
from uuid import UUID

import pytest
from langchain_core.runnables.config import RunnableConfig, set_config_context

from sandbox.errors import NoIdentityError
from sandbox.identity import current_identity
from storage.ids import SessionId

THREAD = "0190f5c2-7f6e-7c3a-9d2b-3a1f6a3b2c1d"


def identity_of(configurable: dict[str, Any], metadata: dict[str, Any] | None = None) -> SessionId:
    config = RunnableConfig(configurable=configurable, metadata=metadata or {})
    with set_config_context(config) as context:
        return context.run(current_identity)


def test_owner_and_thread_are_what_the_server_stamped() -> None:
    stamped = {"langgraph_auth_user_id": "alice-b", "thread_id": THREAD.upper()}
    assert identity_of(stamped) == SessionId("alice-b", UUID(THREAD))
    assert str(identity_of(stamped)) == f"alice-b-{THREAD}"


@pytest.mark.parametrize(
    "configurable",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"thread_id": THREAD}, id="no user"),
        pytest.param({"langgraph_auth_user_id": "alice"}, id="no thread"),
        pytest.param({"user_id": "alice", "owner": "alice", "thread_id": THREAD}, id="user forged"),
        pytest.param(
            {"langgraph_auth_user": {"identity": "alice"}, "thread_id": THREAD}, id="user object forged"
        ),
        pytest.param({"langgraph_auth_user_id": "alice", "sandbox_id": THREAD}, id="thread forged"),
        pytest.param({"langgraph_auth_user_id": "../bob", "thread_id": THREAD}, id="path in the name"),
        pytest.param({"langgraph_auth_user_id": "Alice", "thread_id": THREAD}, id="not the stored form"),
        pytest.param({"langgraph_auth_user_id": ["alice"], "thread_id": THREAD}, id="not a name"),
        pytest.param({"langgraph_auth_user_id": "alice", "thread_id": f"{{{THREAD}}}"}, id="braces"),
        pytest.param({"langgraph_auth_user_id": "alice", "thread_id": "../" + THREAD}, id="path in the id"),
        pytest.param({"langgraph_auth_user_id": "alice", "thread_id": 7}, id="not an id"),
    ],
)
def test_anything_else_has_no_identity(configurable: dict[str, Any]) -> None:
    metadata = {"owner": "alice", "langgraph_auth_user_id": "alice", "thread_id": THREAD}
    with pytest.raises(NoIdentityError):
        identity_of(configurable, metadata=metadata)


def test_outside_a_run_there_is_no_identity() -> None:
    with pytest.raises(NoIdentityError):
        current_identity()
