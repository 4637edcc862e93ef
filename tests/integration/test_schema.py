"""Warren's own routes answer as their OpenAPI says, whether a request fits it or not, and never with 5xx."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.child import ChildServer
from server.routes import ALLOWED
from tests.conftest import User, new_user
from tests.integration.matrix_routes import shape

OWN_PREFIX = "/api/"
OWN = [(method, shape(template)) for method, template in ALLOWED if template.startswith(OWN_PREFIX)]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
ENDS_SESSIONS = frozenset({"/api/auth/password", "/api/auth/logout-everywhere"})
TIMEOUT_SECONDS = 60

Operations = dict[tuple[str, str], schemathesis.APIOperation]

limited = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def operations(server: ChildServer) -> Operations:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json").include(
        path_regex=f"^{OWN_PREFIX}"
    )
    found = [result.ok() for result in document.get_all_operations()]
    return {(one.method.upper(), shape(one.path)): one for one in found}


@pytest.fixture(scope="module")
async def leaver(server: ChildServer) -> User:
    """Somebody whose sessions may end."""
    return await new_user(server)


def test_every_own_route_is_described(operations: Operations) -> None:
    assert operations.keys() == set(OWN)


@pytest.mark.parametrize("route", OWN, ids=" ".join)
def test_answers_are_as_described(
    operations: Operations, server: ChildServer, alice: User, leaver: User, route: tuple[str, str]
) -> None:
    operation = operations[route]
    user = leaver if operation.path in ENDS_SESSIONS else alice

    def real_or_not(case: schemathesis.Case, real: bool) -> schemathesis.Case:
        if real and "session_id" in case.path_parameters:
            made = httpx.post(f"{server.url}/api/sessions", headers=user.headers, timeout=TIMEOUT_SECONDS)
            case.path_parameters["session_id"] = made.raise_for_status().json()["thread_id"]
        return case

    @limited
    @given(st.one_of(operation.as_strategy(generation_mode=mode) for mode in GenerationMode), st.booleans())
    def answers(case: schemathesis.Case, real: bool) -> None:
        real_or_not(case, real).call_and_validate(
            base_url=server.url, headers=user.headers, checks=CHECKS, timeout=TIMEOUT_SECONDS
        )

    answers()
