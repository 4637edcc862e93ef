"""The platform's own description of itself, cut down to what is served."""

from types import ModuleType
from typing import Any

import pytest

from server import documentation


@pytest.fixture
def described(ops: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Give a description in place of the platform's."""
    described = {
        "paths": {
            "/threads/{thread_id}": {"get": {"tags": ["Threads"]}, "put": {"tags": ["Threads"]}},
            "/runs/crons": {"post": {"tags": ["Crons"]}},
        },
        "tags": [{"name": "Threads"}, {"name": "Crons"}],
    }
    monkeypatch.setattr("langgraph_api.validation.openapi", described)
    return described


def test_only_what_is_served_stays(described: dict[str, Any]) -> None:
    for _ in range(2):
        assert documentation.install()
        assert described["paths"] == {"/threads/{thread_id}": {"get": {"tags": ["Threads"]}}}
        assert described["tags"] == [{"name": "Threads"}]


def test_an_unknown_shape_is_left_alone(described: dict[str, Any]) -> None:
    described["paths"]["/runs/crons"]["parameters"] = []
    assert not documentation.install()
    assert "/runs/crons" in described["paths"]


def test_upstream_is_what_was_read(ops: ModuleType) -> None:
    from langgraph_api.validation import openapi  # noqa: PLC0415 - reads the environment that ops has set

    assert documentation.has_known_shape(openapi)
