"""Whatever metadata, operators and identities a client sends, the rules see the caller and nobody else."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph_sdk import Auth

from auth import rules
from auth.policy import POLICY, Rule
from storage.assistants import Usage
from storage.threads import ThreadRecord

THREAD = uuid4()
OWNS = {"owner": "alice"}
OWNS_OR_SYSTEMS = {"$or": [{"created_by": "system"}, {"owner": "alice"}]}

ALLOWED_CONFIGURABLE = {
    "checkpoint_id",
    "checkpoint_ns",
    "checkpoint_map",
    "langgraph_auth_user",
    "langgraph_auth_user_id",
    "langgraph_auth_permissions",
    "langgraph_request_id",
    "__request_start_time_ms__",
    "__after_seconds__",
    "__event_streaming_v2",
}
"""Written out: what is added in auth/run_request.py is to be added here by someone who thinks about it."""

# Postgres cannot store NUL: it is refused, see auth/bounds.py.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
keys = st.one_of(
    st.sampled_from(
        [
            "owner",
            "created_by",
            "graph_id",
            "assistant_id",
            "thread_id",
            "user_id",
            "sandbox_id",
            "langgraph_auth_user_id",
            "langgraph_auth_user",
            "__pregel_send",
            "checkpoint_id",
            "$or",
            "$and",
            "$eq",
            "$contains",
            "$not",
        ]
    ),
    texts,
)
names = st.sampled_from(["alice", "bob", "system", "", "ALICE"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | names | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(keys, values, max_size=5)
configs = st.fixed_dictionaries(
    {},
    optional={
        "configurable": objects | values,
        "metadata": objects | values,
        "tags": st.just(["x"]),
        "callbacks": values,
        "run_id": values,
        "recursion_limit": st.just(25),
    },
)


@pytest.fixture(autouse=True, scope="module")
def _registry() -> Iterator[None]:
    """Alice owns the one thread there is. The registry itself is tested where Postgres is."""
    patch = pytest.MonkeyPatch()

    async def record(thread_id: UUID, *_: object) -> ThreadRecord:
        return ThreadRecord(thread_id, "alice", None)

    async def merged(_thread_id: UUID, metadata: dict[str, Any], _max_bytes: int) -> bool:
        assert not metadata.keys() & {"owner", "created_by", "graph_id", "assistant_id"}
        return True

    async def usage(_owner: str) -> Usage:
        return Usage(0, {}, 0)

    async def merged_size(*_: object) -> int:
        return 0

    for name in ("find", "find_for_reading", "claim"):
        patch.setattr(f"storage.threads.{name}", record)
    patch.setattr("storage.threads.merge_metadata", merged)
    patch.setattr("storage.assistants.usage", usage)
    patch.setattr("storage.assistants.merged_metadata_size", merged_size)
    yield
    patch.undo()


async def judge(resource: str, action: str, event: dict[str, Any]) -> Any:
    return await rules.apply(POLICY[resource, action], action, "alice", event)


def assert_is_alices(metadata: dict[str, Any]) -> None:
    assert metadata["owner"] == "alice"
    assert not metadata.keys() & {"created_by", "graph_id", "assistant_id"}
    assert not [key for key in metadata if key.startswith(("langgraph_", "__"))]


@given(objects | st.none(), st.sampled_from([("threads", "create"), ("threads", "update")]))
async def test_a_threads_metadata_always_names_the_caller(
    metadata: dict[str, Any] | None, event: tuple[str, str]
) -> None:
    value = {"thread_id": THREAD, "metadata": metadata}
    assert await judge(*event, value) == OWNS
    if metadata is not None:
        # In the very dict that the platform goes on to store.
        assert value["metadata"] is metadata
        assert_is_alices(metadata)
    elif event[1] == "create":
        assert value["metadata"] == OWNS


@given(objects | st.none(), st.sampled_from(["create", "update"]), configs, objects)
async def test_an_assistants_metadata_and_config_carry_nobody_elses_identity(
    metadata: dict[str, Any] | None, action: str, config: dict[str, Any], context: dict[str, Any]
) -> None:
    value = {"assistant_id": uuid4(), "metadata": metadata, "config": config, "context": context}
    assert await judge("assistants", action, value) == OWNS
    if value["metadata"] is not None:
        assert_is_alices(value["metadata"])
    assert action != "create" or value["metadata"] is not None
    assert config["configurable"].keys() <= {"checkpoint_id", "checkpoint_ns", "checkpoint_map"}
    assert config.keys() <= {"configurable", "tags", "recursion_limit"}
    assert context == {}


@given(objects, configs, objects, st.sampled_from([None, "create", "reject"]))
async def test_a_run_carries_the_caller_whatever_was_sent_with_it(
    metadata: dict[str, Any], config: dict[str, Any], context: dict[str, Any], if_not_exists: str | None
) -> None:
    value = {
        "thread_id": THREAD,
        "metadata": metadata,
        "if_not_exists": if_not_exists,
        "kwargs": {"config": config, "context": context},
    }
    assert await judge("threads", "create_run", value) == OWNS
    assert value["metadata"] is metadata
    assert_is_alices(metadata)
    assert_is_alices(config["metadata"])
    assert config["configurable"]["langgraph_auth_user_id"] == "alice"
    assert config["configurable"].keys() <= ALLOWED_CONFIGURABLE
    assert config.keys() <= {"configurable", "metadata", "recursion_limit", "tags"}
    assert value["kwargs"]["context"] == {}


@given(objects | st.none(), objects | st.none(), st.sampled_from(["threads", "assistants"]))
async def test_a_search_never_widens_the_filter(
    metadata: dict[str, Any] | None, searched: dict[str, Any] | None, resource: str
) -> None:
    expected = OWNS if resource == "threads" else OWNS_OR_SYSTEMS
    event = {"metadata": metadata, "values": searched, "filter": metadata, "owner": "bob"}
    assert await judge(resource, "search", event) == expected


@pytest.mark.parametrize("event", [event for event, rule in POLICY.items() if rule is Rule.OWN_ASSISTANT])
@given(objects)
async def test_changing_an_assistant_is_filtered_by_its_owner(
    event: tuple[str, str], metadata: dict[str, Any]
) -> None:
    assert await judge(*event, {"assistant_id": uuid4(), "metadata": metadata}) == OWNS


@given(objects, st.sampled_from(["create", "update"]))
async def test_what_others_write_is_never_found_by_the_callers_filter(
    ops: ModuleType, metadata: dict[str, Any], action: str
) -> None:
    """By the platform's own comparison: nobody can put an assistant before alice, or before everybody."""
    await rules.apply(
        Rule.OWN_ASSISTANT, action, "bob", {"assistant_id": uuid4(), "metadata": metadata, "config": {}}
    )
    assert not ops._check_filter_match(metadata, OWNS)
    assert not ops._check_filter_match(metadata, OWNS_OR_SYSTEMS)
    assert ops._check_filter_match(metadata, {"owner": "bob"})


labels = st.lists(names | texts, max_size=4).map(tuple)


@given(
    labels | st.none(),
    st.sampled_from([action for (resource, action) in POLICY if resource == "store"]),
    objects | st.none(),
)
async def test_only_namespaces_that_begin_with_the_callers_name_are_the_callers(
    namespace: tuple[Any, ...] | None, action: str, stored: dict[str, Any] | None
) -> None:
    event = {"namespace": namespace, "key": "bob", "value": stored, "filter": None, "suffix": ("bob",)}
    verdict, status = None, 200
    try:
        verdict = await judge("store", action, event)
    except Auth.exceptions.HTTPException as refusal:
        status = refusal.status_code
    if not namespace or namespace[0] != "alice":
        assert status == 403
    else:
        # What Postgres would not take is refused even there.
        assert (verdict, status) in (({}, 200), (None, 422))
        assert event["namespace"] == namespace


@pytest.mark.parametrize("event", [event for event, rule in POLICY.items() if rule is Rule.DENY])
@given(objects)
async def test_what_is_denied_is_denied_whatever_is_sent(
    event: tuple[str, str], value: dict[str, Any]
) -> None:
    assert await judge(*event, value) is False
