"""A list holds as many rows as fit into an answer, and says where the next ones are."""

import hashlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from starlette.exceptions import HTTPException

from server import listings
from server.listings import ANSWER_BYTES, fitting, size_of_json

READ_BY_US = "b120e72dbdab17ee"
UPSTREAM_CHANGED = """
What server/listings.py replaces, or what uses it, has changed upstream. Read `search_threads`, `list_runs`,
`get_pagination_headers`, `ops.Threads.search` and `ops.Runs.search` again: if an answer's size is now
bounded, delete the correction; else adapt it, then READ_BY_US here.
Now it is """
MB = "a" * 1_000_000


@pytest.fixture
def api(ops: ModuleType) -> Iterator[tuple[ModuleType, ModuleType]]:
    from langgraph_api.api import runs, threads  # noqa: PLC0415 - reads the environment that ops has set

    places = [(ops.Threads, "search"), (ops.Runs, "search"), (runs, "ApiResponse"), (threads, "ApiResponse")]
    originals = [inspect.getattr_static(place, name) for place, name in places]
    yield runs, threads
    for (place, name), original in zip(places, originals, strict=True):
        setattr(place, name, original)


def test_upstream_is_what_was_read(ops: ModuleType, api: tuple[ModuleType, ModuleType]) -> None:
    runs, threads = api
    parts = [threads.search_threads, runs.list_runs, threads.get_pagination_headers]
    parts += [ops.Threads.search, ops.Runs.search]
    digest = hashlib.sha256("".join(inspect.getsource(part) for part in parts).encode()).hexdigest()[:16]
    assert digest == READ_BY_US, UPSTREAM_CHANGED + digest


@pytest.mark.parametrize(
    "value",
    [MB, {"a": [MB]}, {MB: 1}, "\u00e9" * 500_000, [HumanMessage(MB)], {"kwargs": {"input": {"zzz": MB}}}],
    ids=["text", "within", "key", "not ascii", "message", "run"],
)
def test_a_size_is_about_that_of_the_json(value: Any) -> None:
    assert 1_000_000 <= size_of_json(value, ANSWER_BYTES) < 1_010_000


def test_many_small_values_count_as_what_they_cost() -> None:
    assert size_of_json([[]] * 1_000_000, ANSWER_BYTES) > ANSWER_BYTES
    assert size_of_json([HumanMessage("")] * 20_000, ANSWER_BYTES) > ANSWER_BYTES


def test_the_same_value_under_many_names_counts_as_often() -> None:
    row = {"extracted": dict.fromkeys("abcdefghij", MB)}
    assert len(fitting([row] * 20)) == 3


def test_rows_come_while_they_fit_and_one_in_any_case() -> None:
    assert fitting([]) == []
    assert fitting([MB], most=10) == [MB]
    assert fitting([1, 2, MB, 3], most=1000) == [1, 2]
    assert fitting([MB, 1], most=1000) == [MB]
    assert len(fitting([{"thread_id": "x" * 36}] * 1000)) == 1000


@pytest.mark.parametrize(
    "headers",
    [{"X-Pagination-Total": "70"}, {"X-Pagination-Total": "71", "X-Pagination-Next": "70"}],
    ids=["last page", "page"],
)
def test_a_shortened_page_says_where_the_next_begins(
    api: tuple[ModuleType, ModuleType], headers: dict[str, str]
) -> None:
    assert listings.install()
    answer = api[1].ApiResponse([MB] * 50, headers=headers)  # asked for at offset 20
    kept = ANSWER_BYTES // (len(MB) + 64)
    assert answer.body.count(b'"') == 2 * kept
    assert answer.headers["x-pagination-next"] == str(20 + kept)
    assert answer.headers["x-pagination-total"] == str(20 + kept + 1)


def test_one_row_comes_however_large_but_not_many_times_over(api: tuple[ModuleType, ModuleType]) -> None:
    assert listings.install()
    large = MB * 20
    for row in ({"values": large * 2}, {"extracted": {"a": large * 2}}, {"extracted": {"a": large, "b": 1}}):
        assert len(api[1].ApiResponse([row]).body) > len(large)
    with pytest.raises(HTTPException):
        api[1].ApiResponse([{"extracted": {"a": large, "b": large}}])


def test_what_is_no_list_or_fits_is_left_as_it_is(api: tuple[ModuleType, ModuleType]) -> None:
    assert listings.install()
    for content, body in (({"a": 1}, b'{"a":1}'), (3, b"3"), ([1, 2], b"[1,2]")):
        answer = api[0].ApiResponse(content, headers={"X-Pagination-Total": "2"})
        assert (answer.body, answer.headers["x-pagination-total"]) == (body, "2")


@pytest.mark.usefixtures("api")
def test_an_unknown_version_or_shape_is_left_alone(ops: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ops.Threads.search
    with monkeypatch.context() as patch:
        patch.setattr("langgraph_runtime_inmem.__version__", "0.99.0")
        assert not listings.install()
    assert ops.Threads.search is original
    assert listings.install()
    assert listings.install()
    assert ops.Threads.search is not original
