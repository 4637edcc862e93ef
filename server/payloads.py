"""What a JSON body must not hold, whatever it is for: refused before the platform looks at it."""

import json
import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import parse_qsl

from auth.bounds import ESCAPED_NUL

_UNSERVED: Final = {
    "webhook": "The platform looks up its host before anybody is asked whether it may.",
    "feedback_keys": "They would have the server call a service of LangChain's.",
}
MAX_VALUES: Final = 20_000
"""Lists, objects and their members in one body. A megabyte of empty lists would keep the server busy for
seconds and take 26 times its size in memory; a conversation of a thousand messages has a third of this."""

MAX_DEPTH: Final = 100
"""Lists and objects within one another. Answers nest them deeper, and 254 levels cannot be written."""

MAX_GOTO: Final = 4
MAX_TOOL_CALLS: Final = 100
"""Nodes that one command may go to, and calls of one message. Each becomes a task of the next step, which the
server takes a millisecond to prepare, all at once."""

_AMOUNTS: Final = frozenset({"limit", "offset"})
_AMOUNT_DIGITS: Final = 9
_CHECKPOINT_KEYS: Final = frozenset({"thread_id", "checkpoint_id", "checkpoint_ns", "checkpoint_map"})
_TOO_DEEP: Final = f"The body has more than {MAX_DEPTH} lists and objects within one another."
_ESCAPED_NUL: Final = re.compile(ESCAPED_NUL.pattern.encode())
_WORDS: Final = (
    b"webhook",
    b"feedback_keys",
    b"goto",
    b"tool_call",
    b"checkpoint",
    b"langsmith_tracer",
    b"messages",
    b"\\u",  # in which any word may be written
)
"""A body without any of these is not parsed here, unless it may be too deep."""


def objection(body: bytes) -> str | None:
    """Return why a request with this body is refused, None if it is not.

    A NUL character cannot be stored in Postgres, and too many values, levels or tasks stall the server. What
    is not served, or of a kind that the platform fails on, is refused at the top of the body and of its
    `params`, where the platform looks for it.
    """
    if _count_values(body) > MAX_VALUES:
        return f"The body has more than {MAX_VALUES} values; send less at a time."
    if not any(word in body for word in _WORDS) and body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return None
    if b"\\u0000" in body and _ESCAPED_NUL.search(body):
        return "A NUL character (\\u0000) cannot be stored."
    try:
        content = json.loads(body)
    except RecursionError:
        return _TOO_DEEP
    except ValueError:
        return None  # whoever parses it says what is wrong
    return next(_problems(content), None)


def query_objection(query: bytes) -> str | None:
    """Return why a request with this query string, which the platform would fail on, is refused; or None."""
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if "\0" in value:
            return f"{name} holds a NUL character."
        if name in _AMOUNTS and not (value.isascii() and value.isdigit() and len(value) <= _AMOUNT_DIGITS):
            return f"{name} must be a whole number."
    return None


def store_search_objection(body: bytes) -> str | None:
    """Return why a search of the store, which must say where to search, is refused; None if it is not."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None  # whoever parses it says what is wrong
    if isinstance(content, dict) and content.get("namespace_prefix") is None:
        return "namespace_prefix must be a list of labels."
    return None


def _problems(content: Any) -> Iterator[str]:
    if _is_too_deep(content):
        yield _TOO_DEEP
    for part in _tops(content):
        for key, reason in _UNSERVED.items():
            if part.get(key):
                yield f"{key} is not served. {reason}"
        yield from _of_wrong_kind(part)
        yield from _fanned_out(part)


def _of_wrong_kind(part: dict[str, Any]) -> Iterator[str]:
    checkpoint = _object(part, "checkpoint")
    if not checkpoint.keys() <= _CHECKPOINT_KEYS:
        yield f"A checkpoint has {', '.join(sorted(_CHECKPOINT_KEYS))}, and nothing else."
    if not all(isinstance(place.get("checkpoint_id"), str | None) for place in (part, checkpoint)):
        yield "checkpoint_id must be text."
    if not isinstance(part.get("langsmith_tracer"), dict | None):
        yield "langsmith_tracer must be an object."
    for name in ("input", "values"):
        if isinstance(_object(part, name).get("messages"), int | float):
            yield f"The messages of {name} must be a list."


def _fanned_out(part: dict[str, Any]) -> Iterator[str]:
    goto = _object(part, "command").get("goto")
    if isinstance(goto, list) and len(goto) > MAX_GOTO:
        yield f"A command goes to {MAX_GOTO} nodes at most."
    if any(_has_too_many_calls(part.get(name)) for name in ("input", "command", "values", "supersteps")):
        yield f"A message has {MAX_TOOL_CALLS} tool calls at most."


def _object(part: dict[str, Any], name: str) -> dict[str, Any]:
    value = part.get(name)
    return value if isinstance(value, dict) else {}


def _is_too_deep(content: Any) -> bool:
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [inner for value in level for inner in _within(value)]
    return bool(level)


def _has_too_many_calls(content: Any) -> bool:
    pending = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            calls = (value.get("tool_calls"), value.get("tool_call_chunks"))
            if any(isinstance(some, list) and len(some) > MAX_TOOL_CALLS for some in calls):
                return True
        pending += _within(value)
    return False


def _within(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [one for one in inner if isinstance(one, dict | list)]


def _count_values(body: bytes) -> int:
    """Return how many values a JSON body has, roughly, in a fraction of the time of parsing it."""
    if _count_marks(body) <= MAX_VALUES:
        return 0
    # Escapes are only in strings, and every other piece between quotes is one.
    outside = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    return _count_marks(b"".join(outside))


def _count_marks(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _tops(content: Any) -> list[dict[str, Any]]:
    params = content.get("params") if isinstance(content, dict) else None
    return [part for part in (content, params) if isinstance(part, dict)]
