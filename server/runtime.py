"""Which of the platform's runtimes this is, and whether its inside is what has been read.

Where the platform cannot be left as it is, Warren changes its inside from outside: `server.queue`,
`corrections`, `replays`, `subscribers`, `event_streams`, `listings`, `schemas` and `documentation` do. Tests
compare what they rely on with the locked releases; a server that meets others leaves them alone.
"""

import os
from collections.abc import Callable
from typing import Any

import structlog

KNOWN_API = "0.16."
KNOWN_RUNTIME = "0.36."
"""Releases of langgraph-api and langgraph-runtime-inmem that have been read."""

_log = structlog.stdlib.get_logger(__name__)


def is_in_memory() -> bool:
    """Tell whether thread rows, runs and assistants live in this process only, as under `langgraph dev`."""
    return os.environ.get("LANGGRAPH_RUNTIME_EDITION", "inmem") == "inmem"


def is_known(has_known_shape: Callable[..., bool], *parts: Any, otherwise: str) -> bool:
    """Tell whether the platform is of known releases, and `parts` of it are what they were; warn if not.

    Args:
        has_known_shape: takes the parts, and tells. That one is missing may raise.
        parts: what is to be replaced, or where it is.
        otherwise: what stays as it is, for the operator.
    """
    import langgraph_api  # noqa: PLC0415 - reads the server's environment when imported

    releases = [(langgraph_api.__version__, KNOWN_API)]
    if is_in_memory():
        import langgraph_runtime_inmem  # noqa: PLC0415 - only this runtime has it

        releases.append((langgraph_runtime_inmem.__version__, KNOWN_RUNTIME))
    try:
        if all(found.startswith(known) for found, known in releases) and has_known_shape(*parts):
            return True
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    _log.warning(
        f"The platform is not known. {otherwise}",
        found=[found for found, _ in releases],
        known=[f"{known}*" for _, known in releases],
        see=has_known_shape.__module__,
    )
    return False
