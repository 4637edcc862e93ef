"""What the platform takes for granted when the store is searched, and answers 500 without."""

import json


def objection_to_search(body: bytes) -> str | None:
    """Return why a search of the store is refused, None if it is not: it must say where to search."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None  # whoever parses it says what is wrong
    if isinstance(content, dict) and content.get("namespace_prefix") is None:
        return "namespace_prefix must be a list of labels."
    return None
