"""Reading request bodies: as JSON whatever the Content-Type says, since curl -d says "form"."""

from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


async def read_json(request: Request, model: type[Model]) -> Model:
    """Return the body as a `model`.

    Raises:
        RequestValidationError: answered as 422, naming the field.
    """
    try:
        return model.model_validate_json(await request.body() or b"{}")
    except ValidationError as error:
        raise as_request_error(error) from None


def as_request_error(error: ValidationError) -> RequestValidationError:
    """Turn a model's error into the one FastAPI answers; what was sent (a password, say) is left out."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return RequestValidationError([{**detail, "loc": ("body", *detail["loc"])} for detail in details])


FOR_STRANGERS: dict[str, Any] = {"security": []}
"""The OpenAPI entry of a route that needs no credential."""


def body_schema(*models: type[BaseModel]) -> dict[str, Any]:
    """Describe a body that is read by hand, for the route's OpenAPI entry."""
    schemas = [
        _inlined(schema, schema.get("$defs", {})) for schema in (one.model_json_schema() for one in models)
    ]
    schema = schemas[0] if len(schemas) == 1 else {"oneOf": schemas}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inlined(part: Any, definitions: dict[str, Any]) -> Any:
    """Put definitions where they are referred to: within a larger document they would not be found."""
    if isinstance(part, list):
        return [_inlined(one, definitions) for one in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _inlined(definitions[part["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(one, definitions) for key, one in part.items() if key != "$defs"}
