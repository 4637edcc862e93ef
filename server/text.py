"""The text in a message."""

from typing import Any


def text_of(content: Any) -> str:
    """Return the text of a message's content, which is a string or a list of typed blocks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(
        block if isinstance(block, str) else str(block.get("text", ""))
        for block in content
        if isinstance(block, str | dict)
    )
