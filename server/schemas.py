"""A graph's JSON schemas, made once.

The platform makes them anew for every `GET /assistants/{id}/schemas` and `/subgraphs`, on the event loop: a
dozen pydantic models of all kinds of messages, while everybody waits. They follow from the graph alone,
and Warren's is compiled once. Like `server.corrections`, this touches the platform's inside, and only where
its version and shape are known.
"""

import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from server.runtime import is_known


def install() -> bool:
    """Have schemas remembered. Safe to call again.

    Returns:
        whether they are; an unknown version or shape is left alone with a warning.
    """
    from langgraph_api.api import assistants  # noqa: PLC0415 - reads the environment when imported

    if isinstance(assistants._graph_schemas, _Remembered):  # noqa: SLF001 - there is no other way to it
        return True
    if not is_known(has_known_shape, assistants, otherwise="Its schemas are made anew for every request"):
        return False
    assistants._graph_schemas = _Remembered(assistants._graph_schemas)  # noqa: SLF001 - as above
    return True


def has_known_shape(assistants: Any) -> bool:
    """Tell whether what is replaced still is what it was."""
    return list(inspect.signature(assistants._graph_schemas).parameters) == ["graph"]  # noqa: SLF001 - as above


class _Remembered:
    """Schemas by what a graph was compiled from: the platform serves a new copy of the graph each time."""

    def __init__(self, make: Callable[[Any], dict[str, Any]]) -> None:
        self._make = make
        self._made: WeakKeyDictionary[Any, dict[str, dict[str, Any]]] = WeakKeyDictionary()

    def __call__(self, graph: Any) -> dict[str, Any]:
        builder = getattr(graph, "builder", None)
        if builder is None:
            return self._make(graph)
        # The title of the state's schema is the graph's name.
        by_name = self._made.setdefault(builder, {})
        if graph.name not in by_name:
            by_name[graph.name] = self._make(graph)
        return dict(by_name[graph.name])
