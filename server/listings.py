"""Lists of threads and runs: how much of them one answer holds.

An answer is made as a whole, on the event loop, and is held until its client has read it. The platform bounds
neither how many runs one lists, nor how many threads a search names, nor what a row takes: a search for
twenty large threads that asks for their messages under ten names makes 1.5 GB of a request of one kilobyte.
Whoever asks for more than an answer holds gets fewer rows, and the rest with `offset`. A row comes however
large it is, but not several times over.

Like `server.corrections`, this touches the platform's inside, and only where its version and shape are known.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate, takewhile
from typing import Any

from starlette.exceptions import HTTPException

from auth.bounds import MAX_IDS
from server.runtime import is_in_memory, is_known

ANSWER_BYTES = 32 << 20
"""Of all rows of an answer but its first, about, and as many as a thread's history has at a time. What JSON
writes as an escape takes up to six times as much."""

MAX_RUNS_LISTED = 100
"""Runs in one answer. Of each user as many ended ones are kept: see `server.fair_share`."""

_VALUE_BYTES = 64
_OBJECT_BYTES = 2048
"""What each value, and each that is not plain JSON, counts besides its text: writing it takes as long as
writing about so much text, measured with messages."""

_NEXT, _TOTAL = "X-Pagination-Next", "X-Pagination-Total"


def install() -> bool:
    """Put the bounds in place. Safe to call again.

    Returns:
        whether they are; an unknown version or shape is left alone with a warning, another runtime silently.
    """
    if not is_in_memory():
        return False
    from langgraph_api.api import runs, threads  # noqa: PLC0415 - reads the environment when imported
    from langgraph_runtime_inmem import ops  # noqa: PLC0415 - only this runtime has it

    if isinstance(threads.ApiResponse, partial):
        return True
    if not is_known(has_known_shape, ops, runs, threads, otherwise="Lists are not bounded"):
        return False
    ops.Threads.search = staticmethod(partial(_search_threads, ops.Threads.search))
    ops.Runs.search = staticmethod(partial(_search_runs, ops.Runs.search))
    for module in (runs, threads):
        module.ApiResponse = partial(_respond, module.ApiResponse)
    return True


def has_known_shape(ops: Any, runs: Any, threads: Any) -> bool:
    """Tell whether what is replaced still is what it was."""
    threads_search, runs_search = (
        inspect.signature(one.search).parameters for one in (ops.Threads, ops.Runs)
    )
    named = threads_search["ids"], runs_search["limit"]
    return all(one.kind is inspect.Parameter.KEYWORD_ONLY for one in named) and all(
        list(inspect.signature(module.ApiResponse).parameters)[::2] == ["content", "headers", "background"]
        for module in (runs, threads)
    )


def fitting(rows: list[Any], most: int = ANSWER_BYTES) -> list[Any]:
    """Return as many of the first rows as fit into an answer of `most` bytes, one at least."""
    sizes = accumulate(size_of_json(row, most) for row in rows)
    count = sum(1 for _ in takewhile(lambda size: size <= most, sizes))
    return rows[: max(count, 1)]


def size_of_json(value: Any, most: int) -> int:
    """Return about how many bytes of JSON a value makes; no more is looked at than `most` of them take."""
    size, left = 0, [value]
    while left and size <= most:
        one = left.pop()
        size += _VALUE_BYTES
        if isinstance(one, str):
            size += len(one) if one.isascii() else len(one.encode(errors="surrogatepass"))
        elif isinstance(one, bytes):
            size += len(one)
        elif isinstance(one, dict):
            left += one.keys()
            left += one.values()
        elif isinstance(one, list | tuple | set | frozenset):
            left += one
        elif (parts := getattr(one, "__dict__", None)) is not None:
            size += _OBJECT_BYTES
            left.append(parts)
    return size


def _respond(
    respond: Callable[..., Any], content: Any, headers: Mapping[str, str] | None = None, **options: Any
) -> Any:
    if isinstance(content, list):
        kept = fitting(content)
        if len(kept) == 1:
            _check_extracted(kept[0])
        if headers and len(kept) < len(content):
            headers = {**headers, **_to_go_on(headers, len(content), len(kept))}
        content = kept
    return respond(content, headers=headers, **options)


def _check_extracted(row: Any) -> None:
    """Refuse one row that is too large for having been asked for what is large under several names."""
    names = row.get("extracted") if isinstance(row, dict) else None
    if names and len(names) > 1 and size_of_json(row, ANSWER_BYTES) > ANSWER_BYTES:
        raise HTTPException(422, "A thread is too large to extract so much of it at once; name fewer paths.")


def _to_go_on(headers: Mapping[str, str], found: int, kept: int) -> dict[str, str]:
    """Return the platform's headers of a page that is followed by another, for a shorter one."""
    end = int(headers[_NEXT] if _NEXT in headers else headers[_TOTAL])
    following = end - found + kept
    return {_NEXT: str(following), _TOTAL: str(following + 1)}


async def _search_threads(original: Callable[..., Any], *args: Any, ids: Any = None, **options: Any) -> Any:
    if ids is not None and len(ids) > MAX_IDS:
        raise HTTPException(422, f"One request may name at most {MAX_IDS} ids.")
    return await original(*args, ids=ids, **options)


async def _search_runs(original: Callable[..., Any], *args: Any, limit: int = 10, **options: Any) -> Any:
    return await original(*args, limit=min(limit, MAX_RUNS_LISTED), **options)
