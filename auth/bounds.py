"""How large a thing one request may hold, so that no one request costs the others much.

What is noted on threads, runs and assistants stays in the platform's memory, and is copied and compared
there on the event loop; what goes into the store goes to Postgres, which refuses some text and numbers.
"""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from langgraph_sdk import Auth

HTTPException = Auth.exceptions.HTTPException

MAX_NOTED_BYTES = 16 * 1024
"""Of what is noted at once, as Postgres writes it; of what is noted on a thread altogether; of a filter."""

MAX_NOTED_DEPTH = 16
"""Objects and arrays within one another in what is noted, and in a filter."""

MAX_ITEM_BYTES = 256 * 1024
"""Of an item's value in the store."""

MAX_ITEM_DEPTH = 64
"""Objects and arrays within one another in it. Answers nest it deeper, and only 254 levels can be written."""

MAX_ASSISTANTS = 100
"""Assistants of one user."""

MAX_VERSIONS = 100
"""Versions of one assistant: each change makes one."""

MAX_ASSISTANT_BYTES = 4 * 1024 * 1024
"""Of all assistants of one user with their versions, beyond which no change is made; a description, which
no rule is shown, can be as large as a request."""

MAX_IDS = 100
"""Ids that one request may name: each costs a look at every thread or run there is."""

MAX_NAME_BYTES = 1024
"""Of an item's key, of its namespace altogether: an entry of a Postgres index takes 2704 bytes."""

MAX_ITEMS = 100
"""Items of the store in one answer, which is made as a whole: 25 MiB of the largest."""

MAX_NAMESPACES = 1000
"""Namespaces in one answer, as for the platform's other lists."""

MAX_CONDITIONS = 10
"""Comparisons in one filter of the store. Each unpacks the whole value of every item that it is made with."""

MAX_OFFSET = 2**31 - 1
MAX_NAMESPACE_DEPTH = 100

MAX_TTL_MINUTES = 10 * 365 * 24 * 60
"""Ten years. Postgres knows no date after the year 294276."""

ESCAPED_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
"""A NUL as JSON spells it, which Postgres takes in no text. The group is the backslashes before it."""

_FILTER_OPERATORS = frozenset({"$eq", "$ne", "$gt", "$gte", "$lt", "$lte"})


def check_noted(noted: object, what: str) -> None:
    """Check what a client notes on something, or searches by.

    Raises:
        HTTPException: 422 if it is too large, nests too deep, or cannot be stored.
    """
    _check_json(noted, what, MAX_NOTED_DEPTH, MAX_NOTED_BYTES)


def check_text(text: object, what: str) -> None:
    """Check a name.

    Raises:
        HTTPException: 422 if it is no text, too long, or cannot be stored.
    """
    if not isinstance(text, str):
        raise _refused(f"{what} must be text.")
    if "\0" in text:
        raise _refused(f"{what} holds a NUL character, which cannot be stored.")
    if len(_encoded(text, what)) > MAX_NAME_BYTES:
        raise _refused(f"{what} is longer than {MAX_NAME_BYTES} bytes.")


def check_ids(ids: Collection[Any] | None) -> None:
    """Check how many ids there are.

    Raises:
        HTTPException: 422 if there are too many.
    """
    if ids is not None and len(ids) > MAX_IDS:
        raise _refused(f"One request may name at most {MAX_IDS} ids.")


def check_store_request(action: str, event: Mapping[str, Any]) -> None:
    """Check whatever there is in a store request.

    Args:
        action: what is asked for, in the platform's words.
        event: with what.

    Raises:
        HTTPException: 422 for what Postgres refuses or what would cost too much.
    """
    for name in ("namespace", "suffix"):
        if (labels := event.get(name)) is not None:
            _check_labels(labels, f"The {name}")
    if (key := event.get("key")) is not None:
        check_text(key, "The key")
    _check_json(event.get("value"), "The value", MAX_ITEM_DEPTH, MAX_ITEM_BYTES)
    _check_filter(event.get("filter"))
    _check_number(event, "limit", 1, MAX_ITEMS if action == "search" else MAX_NAMESPACES)
    _check_number(event, "offset", 0, MAX_OFFSET)
    _check_number(event, "max_depth", 1, MAX_NAMESPACE_DEPTH)
    ttl = event.get("ttl")
    if ttl is not None and not 0 < ttl <= MAX_TTL_MINUTES:
        raise _refused(f"ttl must be more than 0 and at most {MAX_TTL_MINUTES} minutes.")


def _check_labels(labels: Collection[Any], what: str) -> None:
    if len(labels) > MAX_NAMESPACE_DEPTH:
        raise _refused(f"{what} has more than {MAX_NAMESPACE_DEPTH} labels.")
    for label in labels:
        check_text(label, f"A label of {what.lower()}")
    check_text(".".join(labels), what)


def _check_filter(filters: object) -> None:
    check_noted(filters, "The filter")
    conditions = list(filters.values()) if isinstance(filters, dict) else []
    for condition in conditions:
        if isinstance(condition, dict) and not condition.keys() <= _FILTER_OPERATORS:
            raise _refused(f"A filter compares with {', '.join(sorted(_FILTER_OPERATORS))}.")
    if sum(len(one) if isinstance(one, dict) else 1 for one in conditions) > MAX_CONDITIONS:
        raise _refused(f"A filter has at most {MAX_CONDITIONS} conditions.")


def _check_number(event: Mapping[str, Any], name: str, least: int, most: int) -> None:
    number = event.get(name)
    if number is not None and not least <= number <= most:
        raise _refused(f"{name} must be a whole number from {least} to {most}.")


def _check_json(value: object, what: str, max_depth: int, max_bytes: int) -> None:
    try:
        # With these separators and characters it is as long as Postgres's own text of a jsonb.
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        raise _refused(f"{what} nests too deep or holds what is no number.") from None
    if len(_encoded(text, what)) > max_bytes:
        raise _refused(f"{what} is larger than {max_bytes} bytes of JSON.")
    if "\\u0000" in text and ESCAPED_NUL.search(text):
        raise _refused(f"{what} holds a NUL character, which cannot be stored.")
    # Looking at a large flat value's every member is spared.
    if text.count("[") + text.count("{") > max_depth and _is_deeper(value, max_depth):
        raise _refused(f"{what} nests deeper than {max_depth} levels.")


def _encoded(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise _refused(f"{what} is not valid Unicode text.") from None


def _is_deeper(value: object, levels: int) -> bool:
    level = [value]
    for _ in range(levels + 1):
        containers = [one for one in level if isinstance(one, dict | list)]
        if not containers:
            return False
        level = [child for one in containers for child in (one.values() if isinstance(one, dict) else one)]
    return True


def _refused(reason: str) -> Exception:
    return HTTPException(status_code=422, detail=reason)
