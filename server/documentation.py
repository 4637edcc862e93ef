"""What `/openapi.json` and `/docs` show of the platform: only what the guard serves.

The platform describes all that it has, whatever its settings and Warren leave of it. Like
`server.corrections`, this touches the platform's inside, and only where its version and shape are known.
"""

from typing import Any

from server.routes import match
from server.runtime import is_known


def install() -> bool:
    """Have the documents show what is served. Safe to call again; call it before they are first asked for.

    Returns:
        whether they do; an unknown version or shape is left alone with a warning.
    """
    from langgraph_api.validation import openapi  # noqa: PLC0415 - reads the environment when imported

    if not is_known(has_known_shape, openapi, otherwise="Its documentation shows routes that are not served"):
        return False
    for path, operations in list(openapi["paths"].items()):
        for method in list(operations):
            if match(method.upper(), path) is None:
                del operations[method]
        if not operations:
            del openapi["paths"][path]
    shown = {tag for each in _operations(openapi) for tag in each["tags"]}
    openapi["tags"] = [tag for tag in openapi["tags"] if tag["name"] in shown]
    return True


def has_known_shape(openapi: dict[str, Any]) -> bool:
    """Tell whether what is changed is what it was: operations by path and method, each with tags."""
    return all(isinstance(each["tags"], list) for each in _operations(openapi)) and "tags" in openapi


def _operations(openapi: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for of_path in openapi["paths"].values() for operation in of_path.values()]
