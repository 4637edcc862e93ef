"""What a model is shown of an output that is too long for it, when the whole is in a file."""

from deepagents.backends.utils import TRUNCATION_MARKER_TEMPLATE

_LINES = 5
_CHARACTERS = 2000
"""Lines and characters of the beginning and of the end: what deepagents' own capture shows."""


def preview(output: str) -> tuple[str, bool]:
    """Return the beginning and the end of an output, and whether whole lines are left out between them."""
    lines = output.splitlines()
    if len(lines) <= 2 * _LINES:
        return (
            f"{output[:_CHARACTERS]}\n... [{len(output)} characters in all] ...\n{output[-_CHARACTERS:]}",
            False,
        )
    head = "\n".join(lines[:_LINES])[:_CHARACTERS]
    tail = "\n".join(lines[-_LINES:])[-_CHARACTERS:]
    marker = TRUNCATION_MARKER_TEMPLATE.format(omitted_lines=len(lines) - 2 * _LINES)
    return f"{head}\n{marker}\n{tail}", True
