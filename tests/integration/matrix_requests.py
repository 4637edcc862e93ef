"""How the authorization matrix builds its requests: from OpenAPI, with ids in every place that takes one."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple
from uuid import UUID

from tests.integration.matrix_fields import (
    ALWAYS,
    IN_QUERY,
    NAMED,
    PLAIN,
    PLAIN_IN_PATH,
    READ_TOO,
    SECRETS,
    UNDECLARED_BODIES,
    Schema,
    Things,
    UnknownFieldError,
)
from tests.integration.matrix_routes import SUBJECTS, Route

Chosen = tuple[tuple[str, Any], ...]


class Request(NamedTuple):
    """What goes over the wire."""

    path: str
    query: dict[str, Any]
    body: Any


@dataclass(frozen=True)
class Plan:
    """One request still without ids.

    Attributes:
        route: the row.
        fields: names of the optional fields, in query and body, that it has.
        values: what stands in plain fields.
        foreign: the fields that name alice's things; all others name the caller's own.
        upper: ids are spelled in upper case.
        is_variation: it differs from another one in a plain field only.
    """

    route: Route
    fields: frozenset[str]
    values: Chosen = ()
    foreign: frozenset[str] = frozenset()
    upper: bool = False
    is_variation: bool = False

    @property
    def needs_own(self) -> bool:
        """Whether the caller's own things are named at all."""
        return bool(self.names & NAMED.keys() - self.foreign - PLAIN_IN_PATH.keys())

    @property
    def names(self) -> frozenset[str]:
        """Every field by its name, those in the path included."""
        return self.fields | frozenset(_path_names(self.route))

    def request(self, own: Things, named: Things) -> Request:
        """Return the request in which `foreign` names `named`'s things, and all else `own`'s."""

        def value(name: str, table: Mapping[str, Callable[[Things], Any]] = NAMED) -> Any:
            things = named if name in self.foreign else own
            found = (table.get(name) or NAMED[name])(things)
            return found.upper() if self.upper and isinstance(found, str) and _is_uuid(found) else found

        plain = dict(self.values)
        in_path = {
            name: PLAIN_IN_PATH[name] if name in PLAIN_IN_PATH else value(name)
            for name in _path_names(self.route)
        }
        body = _body(self.route)
        asked = {
            name: value(name, IN_QUERY) if name in NAMED else plain[name]
            for name in self.fields & _query(self.route).keys()
        }
        assembled = {
            name: own.password if name in SECRETS else value(name) if name in NAMED else plain[name]
            for name in self.fields & body.keys()
        }
        return Request(
            self.route.template.format(**in_path),
            asked,
            assembled if body else None,
        )


def plans(route: Route) -> Iterator[Plan]:
    """Yield the requests to be made of a route: all own, each id foreign by itself, all of them foreign."""
    unknown = [name for name in _path_names(route) if name not in NAMED and name not in PLAIN_IN_PATH]
    if unknown:
        raise UnknownFieldError(unknown[0])
    for form in _forms(route):
        yield from _plans(route, form)


class _Form(NamedTuple):
    """One way to fill a route in: the fields that it needs, and all that it takes."""

    needed: frozenset[str]
    fields: Mapping[str, Schema]


def _plans(route: Route, form: _Form) -> Iterator[Plan]:
    path = frozenset(_path_names(route)) & NAMED.keys() - PLAIN_IN_PATH.keys()
    named = frozenset(form.fields.keys() & NAMED.keys())
    every = frozenset(path | named)
    values = {name: _values(name, form.fields[name]) for name in form.fields.keys() - named - SECRETS}

    def plan(*extra: str, foreign: frozenset[str] = frozenset(), chosen: Chosen = ()) -> Plan:
        names = form.needed.union(extra, (name for name, _ in chosen))
        first = {name: values[name][0] for name in names if name in values}
        return Plan(route, names, tuple({**first, **dict(chosen)}.items()), foreign & (names | path))

    for name in sorted(every):
        yield plan(*({name} & named), foreign=frozenset({name}))
    yield replace(plan(*named, foreign=every), upper=True)
    choices = ([(name, value) for value in values[name]] for name in form.needed & values.keys())
    for chosen in product(*choices):
        yield plan(chosen=chosen)
        yield plan(*named, foreign=named, chosen=chosen)
        yield plan(*named, foreign=every, chosen=chosen)
    # Who is refused for the path alone, or everywhere, is refused whatever else is asked for.
    for name in sorted(values.keys() - form.needed) if route.served else ():
        for value in values[name]:
            varied = plan(*(named & SUBJECTS), foreign=every, chosen=((name, value),))
            yield replace(varied, is_variation=True)


def _forms(route: Route) -> list[_Form]:
    schema, fields = _body_schema(route), {**_query(route), **_body(route)}
    needed = {one["name"] for one in _parameters(route, "query") if one.get("required")}
    needed |= set(schema.get("required", ())) | (ALWAYS & fields.keys())
    alternatives = [frozenset(one["required"]) for one in schema.get("oneOf", ()) if "required" in one]
    exclusive = frozenset().union(*alternatives)
    return [
        _Form(
            frozenset(needed | alternative),
            {name: field for name, field in fields.items() if name not in exclusive - alternative},
        )
        for alternative in alternatives or [frozenset[str]()]
    ]


def _values(name: str, schema: Schema) -> tuple[Any, ...]:
    """Return what is worth trying in a field that holds no id."""
    types = schema.get("type", "")
    if "boolean" in types:
        return (True, False)
    if "integer" in types or "number" in types:
        return (1,)
    if "enum" in schema:
        return tuple(schema["enum"])
    if "array" in types and "enum" in schema.get("items", {}):
        return (list(schema["items"]["enum"]),)
    if name not in PLAIN:
        raise UnknownFieldError(name)
    return PLAIN[name]


def _path_names(route: Route) -> list[str]:
    return [part[1:-1] for part in route.template.split("/") if part.startswith("{")]


def _parameters(route: Route, place: str) -> list[Schema]:
    return [one for one in route.operation.get("parameters", ()) if one["in"] == place]


def _query(route: Route) -> dict[str, Schema]:
    return {one["name"]: one["schema"] for one in _parameters(route, "query")}


def _body(route: Route) -> dict[str, Schema]:
    properties = dict(_body_schema(route).get("properties", {}))
    for declared, undeclared in READ_TOO.items():
        if declared in properties:
            properties.setdefault(undeclared, {"type": "string"})
    return properties


def _body_schema(route: Route) -> dict[str, Any]:
    content = route.operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema") or UNDECLARED_BODIES.get(route.template, {})
    return dict(schema.get("items", {}) if schema.get("type") == "array" else schema)


def resolved(schema: Any, components: Mapping[str, Any], depth: int = 4) -> Any:
    """Return an OpenAPI document's part with its references replaced and its unions of objects merged."""
    if isinstance(schema, list):
        return [resolved(one, components, depth) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        target = components.get(schema["$ref"].rsplit("/", 1)[-1], {})
        return resolved(target, components, depth - 1) if depth else {}
    found = {key: resolved(one, components, depth) for key, one in schema.items()}
    for part in found.pop("allOf", ()):
        found = {**part, **found, "properties": {**part.get("properties", {}), **found.get("properties", {})}}
    if "type" not in found and "enum" not in found:
        kinds = [one for one in found.get("anyOf", ()) if one.get("type") != "null"]
        found = {**found, **kinds[0]} if len(kinds) == 1 else found
    return found


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
