"""The corrected runtime: nobody's row goes for somebody else's, and reading a conversation stays short."""

import asyncio
import hashlib
import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import pytest
from starlette.exceptions import HTTPException
from structlog.testing import capture_logs

from server import corrections

READ_BY_US = "d2583bbf6cba32cd"
UPSTREAM_CHANGED = """
What server/corrections.py replaces has changed upstream. Read `ops.Threads.delete` and `patch`,
`_adapter._CustomCheckpointerAdapter` and `CustomAuthBackend.authenticate` again: if the rows are now found
again after what is awaited, aget_delta_channel_history is forwarded, or nothing is logged for every request,
delete that correction; else adapt it, then KNOWN_RUNTIME or KNOWN_API there and READ_BY_US here.
Now it is """


@pytest.fixture
def adapter(ops: ModuleType) -> type:
    from langgraph_api._checkpointer import _adapter  # noqa: PLC0415 - reads the environment that ops has set

    return _adapter._CustomCheckpointerAdapter


@pytest.fixture
def custom(ops: ModuleType) -> ModuleType:
    from langgraph_api.auth import custom  # noqa: PLC0415 - as above

    return custom


@pytest.fixture
def original(ops: ModuleType, adapter: type, custom: ModuleType) -> Iterator[dict[str, Any]]:
    kept = {name: inspect.getattr_static(ops.Threads, name) for name in ("delete", "patch")}
    logger = custom.logger
    yield kept
    custom.logger = logger
    for name, method in kept.items():
        setattr(ops.Threads, name, method)
    if "aget_delta_channel_history" in vars(adapter):
        del adapter.aget_delta_channel_history


@pytest.fixture
def conn(ops: ModuleType, original: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a connection whose authorization and checkpoints are slow, as a database and Docker are."""

    async def slow(*_: Any, **__: Any) -> None:
        await asyncio.sleep(0.01)

    monkeypatch.setattr(ops, "_delete_checkpoints_for_thread", slow)
    monkeypatch.setattr(ops.Threads, "handle_event", slow)
    connection = ops.InMemConnectionProto()
    connection.store["threads"] = []
    return connection


def add(conn: Any, count: int) -> list[UUID]:
    ids = [uuid4() for _ in range(count)]
    conn.store["threads"] += [{"thread_id": one, "metadata": {}} for one in ids]
    return ids


def left(conn: Any) -> list[UUID]:
    return [row["thread_id"] for row in conn.store["threads"]]


async def drain(rows: Any) -> list[Any]:
    return [row async for row in await rows]


def test_upstream_is_what_was_read(original: dict[str, Any], adapter: type, custom: ModuleType) -> None:
    parts = [original["delete"], original["patch"], adapter, custom.CustomAuthBackend.authenticate]
    text = "".join(inspect.getsource(part) for part in parts)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert digest == READ_BY_US, UPSTREAM_CHANGED + digest


async def test_uncorrected_deleting_two_threads_at_once_takes_a_third(ops: ModuleType, conn: Any) -> None:
    """Why the correction exists; when this fails, it is no longer needed."""
    first, second, third = add(conn, 3)
    await asyncio.gather(drain(ops.Threads.delete(conn, first)), drain(ops.Threads.delete(conn, second)))
    assert left(conn) != [third]


async def test_deleting_many_at_once_takes_those_and_no_other(ops: ModuleType, conn: Any) -> None:
    assert corrections.install()
    ids = add(conn, 20)
    deleted = await asyncio.gather(*(drain(ops.Threads.delete(conn, one)) for one in ids[::2]))
    assert deleted == [[one] for one in ids[::2]]
    assert left(conn) == ids[1::2]


async def test_patching_while_others_delete_changes_the_right_row(ops: ModuleType, conn: Any) -> None:
    assert corrections.install()
    ids = add(conn, 4)
    patching = drain(ops.Threads.patch(conn, ids[2], metadata={"note": "x"}))
    await asyncio.gather(patching, *(drain(ops.Threads.delete(conn, one)) for one in ids[:2]))
    assert [(row["thread_id"], row["metadata"]) for row in conn.store["threads"]] == [
        (ids[2], {"note": "x"}),
        (ids[3], {}),
    ]


async def test_a_thread_that_is_not_there_is_404_and_unchanged(ops: ModuleType, conn: Any) -> None:
    assert corrections.install()
    ids = add(conn, 1)
    with pytest.raises(HTTPException) as caught:
        await ops.Threads.delete(conn, uuid4())
    assert caught.value.status_code == 404
    assert await drain(ops.Threads.patch(conn, uuid4(), metadata={"note": "x"})) == []
    assert left(conn) == ids


async def test_another_owners_row_is_neither_deleted_nor_patched(
    ops: ModuleType, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert corrections.install()

    async def only_bobs(*_: Any) -> dict[str, str]:
        return {"owner": "bob"}

    monkeypatch.setattr(ops.Threads, "handle_event", only_bobs)
    ids = add(conn, 1)
    conn.store["threads"][0]["metadata"] = {"owner": "alice"}
    with pytest.raises(HTTPException):
        await ops.Threads.delete(conn, ids[0])
    assert await drain(ops.Threads.patch(conn, ids[0], metadata={"owner": "bob"})) == []
    assert conn.store["threads"][0]["metadata"] == {"owner": "alice"}


async def test_a_conversation_is_read_as_its_saver_reads_it(
    adapter: Callable[..., Any], ops: ModuleType, conn: Any
) -> None:
    assert corrections.install()

    class Saver:
        async def aget_delta_channel_history(self, *, config: Any, channels: Any) -> Any:
            return {"asked": (config, channels)}

    wrapped = object.__new__(adapter)
    wrapped._inner = Saver()
    assert await wrapped.aget_delta_channel_history(config=1, channels=["m"]) == {"asked": (1, ["m"])}


async def test_authentication_logs_what_is_wrong_and_nothing_else(
    custom: ModuleType, original: dict[str, Any]
) -> None:
    assert corrections.install()
    with capture_logs() as logs:
        await custom.logger.ainfo("Resolved authentication handler")
        await custom.logger.aerror("Error authenticating request")
    assert [log["log_level"] for log in logs] == ["error"]


def test_installing_twice_changes_nothing_more(ops: ModuleType, original: dict[str, Any]) -> None:
    assert corrections.install()
    once = ops.Threads.delete
    assert corrections.install()
    assert ops.Threads.delete == once


def test_an_unknown_version_or_shape_is_left_alone(
    ops: ModuleType, original: dict[str, Any], adapter: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert corrections.has_known_shape(ops.Threads, adapter)
    monkeypatch.setattr("langgraph_runtime_inmem.__version__", "0.99.0")
    assert not corrections.install()
    assert inspect.getattr_static(ops.Threads, "delete") is original["delete"]
