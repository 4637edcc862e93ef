"""A graph's schemas are made once, and are what the platform would have made."""

import hashlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from deepagents.backends import LocalShellBackend

from agent.build import build_graph
from agent.rehearsal import RehearsalModel
from server import schemas

# The platform's own use of what is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

READ_BY_US = "04013a10895b3a63"
UPSTREAM_CHANGED = """
What server/schemas.py replaces has changed upstream. Read `_graph_schemas` and who calls it in
langgraph_api/api/assistants.py again: if schemas are now remembered, or made off the event loop, delete that
module; if they now follow from more than the graph, have it remember by that, too; then adapt READ_BY_US.
Now it is """


@pytest.fixture
def assistants(ops: ModuleType) -> Iterator[ModuleType]:
    from langgraph_api.api import assistants  # noqa: PLC0415 - reads the environment that ops has set

    original = assistants._graph_schemas
    yield assistants
    assistants._graph_schemas = original


@pytest.fixture
def graph() -> Any:
    return build_graph(RehearsalModel(), LocalShellBackend(virtual_mode=True))


def copy_of(compiled: Any, **update: Any) -> Any:
    """Copy a graph as the platform does for each request."""
    return compiled.copy(update={"checkpointer": None, "store": None, **update})


def test_upstream_is_what_was_read(assistants: ModuleType) -> None:
    parts = (assistants._graph_schemas, assistants._state_jsonschema, assistants._get_configurable_jsonschema)
    text = "".join(inspect.getsource(part) for part in parts)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert digest == READ_BY_US, UPSTREAM_CHANGED + digest


def test_schemas_are_made_once_for_a_graph_and_its_name(assistants: ModuleType, graph: Any) -> None:
    original = assistants._graph_schemas
    made = []

    def counted(graph: Any) -> Any:
        made.append(graph.name)
        return original(graph)

    assistants._graph_schemas = counted
    assert schemas.install()
    expected = original(copy_of(graph, name="agent"))
    for _ in range(3):
        assert assistants._graph_schemas(copy_of(graph, name="agent")) == expected
    other = assistants._graph_schemas(copy_of(graph, name="other"))
    assert other["state_schema"]["title"] != expected["state_schema"]["title"]
    assert made == ["agent", "other"]


def test_what_is_done_to_an_answer_is_not_remembered(assistants: ModuleType, graph: Any) -> None:
    assert schemas.install()
    assistants._graph_schemas(graph).clear()
    assert assistants._graph_schemas(graph)["input_schema"]


def test_a_graph_of_another_kind_is_left_to_the_platform(
    assistants: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assistants, "_graph_schemas", lambda graph: {"of": graph})
    assert schemas.install()
    assert [assistants._graph_schemas(kind) for kind in (1, 2)] == [{"of": 1}, {"of": 2}]


def test_installing_twice_changes_nothing_more(assistants: ModuleType) -> None:
    assert schemas.install()
    once = assistants._graph_schemas
    assert schemas.install()
    assert assistants._graph_schemas is once


def test_an_unknown_version_or_shape_is_left_alone(
    assistants: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = assistants._graph_schemas
    with monkeypatch.context() as patch:
        patch.setattr("langgraph_api.__version__", "0.99.0")
        assert not schemas.install()
    assert assistants._graph_schemas is original
    monkeypatch.setattr(assistants, "_graph_schemas", lambda *_: {})
    assert not schemas.install()
