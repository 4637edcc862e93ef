"""What is too large, too deep, or refused by Postgres is refused before it costs anybody anything."""

from typing import Any

import pytest
from langgraph_sdk import Auth

from auth import bounds
from auth.bounds import check_ids, check_noted, check_store_request, check_text


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels - 1):
        value = [value]
    return value


def assert_refused(check: Any, *arguments: Any) -> None:
    with pytest.raises(Auth.exceptions.HTTPException) as caught:
        check(*arguments)
    assert caught.value.status_code == 422


@pytest.mark.parametrize(
    "noted",
    [
        {"a": "\0"},
        {"\0": 1},
        {"a": {"b": ["\\\0"]}},
        {"a": "\ud800"},
        {"a": float("inf")},
        {"a": "x" * bounds.MAX_NOTED_BYTES},
        {"a": "é" * (bounds.MAX_NOTED_BYTES // 2)},
        nested(bounds.MAX_NOTED_DEPTH + 1),
        nested(10_000),
    ],
)
def test_what_cannot_be_kept_is_not_taken_as_metadata(noted: Any) -> None:
    assert_refused(check_noted, noted, "metadata")


@pytest.mark.parametrize(
    "noted",
    [{}, {"a": "\\u0000"}, {"a": "x" * (bounds.MAX_NOTED_BYTES - 9)}, nested(bounds.MAX_NOTED_DEPTH)],
)
def test_what_can_be_kept_is_taken_up_to_the_last_byte(noted: Any) -> None:
    check_noted(noted, "metadata")


@pytest.mark.parametrize(
    "event",
    [
        {"namespace": ("a", "\0")},
        {"namespace": ("a", None)},
        {"namespace": ("x" * 600, "y" * 600)},
        {"namespace": ("a",) * 101},
        {"suffix": ("\0",)},
        {"key": "\0"},
        {"key": "x" * 1025},
        {"value": {"a": "\0"}},
        {"value": nested(65)},
        {"value": {"a": "x" * bounds.MAX_ITEM_BYTES}},
        {"filter": {"a": "\0"}},
        {"filter": {"a": {"$in": [1]}}},
        {"filter": {"a": {"b": 1}}},
        {"filter": dict.fromkeys("abcdefghijk", 1)},
        {"filter": {"a": {"$gt": 1, "$lt": 9}} | dict.fromkeys("bcdefghij", 1)},
        {"limit": -1},
        {"limit": 10**12},
        {"limit": bounds.MAX_ITEMS + 1},
        {"offset": -1},
        {"offset": 2**63},
        {"max_depth": 10**12},
        {"max_depth": -1},
        {"ttl": 1e300},
        {"ttl": -1},
        {"ttl": 0},
    ],
)
def test_a_store_request_that_postgres_would_refuse_is_refused_before(event: dict[str, Any]) -> None:
    assert_refused(check_store_request, "search", event)


def test_an_ordinary_store_request_passes() -> None:
    event = {
        "namespace": ("alice", "notes"),
        "key": "k",
        "value": {"a": [1, {"b": None}]},
        "filter": {"a": {"$gte": 2, "$lt": 9}} | dict.fromkeys("bcdefghi", 1),
        "limit": 100,
        "offset": 0,
        "max_depth": None,
        "ttl": 1.5,
    }
    check_store_request("search", event)
    check_store_request("list_namespaces", {"limit": 1000})


def test_ids_are_counted_and_names_measured() -> None:
    assert_refused(check_ids, ["x"] * 101)
    check_ids(["x"] * 100)
    check_ids(None)
    assert_refused(check_text, "x" * 1025, "name")
    assert_refused(check_text, 7, "name")
    check_text("x" * 1024, "name")
