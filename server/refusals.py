"""How Warren's own routes refuse a request, for their OpenAPI entries."""

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

_LATER = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


class Misfit(BaseModel):
    """A field that does not fit: where it is, why, and the kind of error."""

    loc: list[str | int]
    msg: str
    type: str


class Refusal(BaseModel):
    """Why not; of a request whose form is wrong, field by field."""

    detail: str | list[Misfit]


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that may answer with these statuses."""
    return {status: _response(HTTPStatus(status)) for status in statuses}


def _response(status: HTTPStatus) -> dict[str, Any]:
    response: dict[str, Any] = {"model": Refusal, "description": status.phrase}
    if status in _LATER:
        wait = {"description": "Seconds until the next attempt.", "schema": {"type": "integer"}}
        response["headers"] = {"Retry-After": wait}
    return response
