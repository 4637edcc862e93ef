"""A request matches the route that the platform would serve, whatever its method."""

import re
from typing import Any

import pytest

from server.app import root
from server.routes import ALLOWED, PUBLIC, REFUSED_IN_STREAM, match


@pytest.mark.parametrize(("method", "path"), [one for one in ALLOWED if "{" not in one[1]])
def test_a_preflight_matches_what_its_request_will(method: str, path: str) -> None:
    for preflight in ("OPTIONS", method):
        found = match(preflight, path)
        assert found is not None
        assert (found.template, found.uuids) == (path, ())


@pytest.mark.parametrize("name", ["a\nb", "a\r\nb", "a\x1b[31m", "caf\u00e9", "\u202e", "a b", ""])
def test_a_path_cannot_forge_a_line_of_the_log(name: str) -> None:
    for path in (f"/assistants/{name}", f"/api/sessions/{name}", f"/assistants/{name}/graph"):
        assert match("GET", path) is None


def test_what_is_public_is_served() -> None:
    assert {path for _, path in ALLOWED} >= PUBLIC


def test_nobody_subscribes_to_anothers_run() -> None:
    """The platform subscribes whoever asks, and then refuses them: 2400 such made it ten times slower."""
    subscribing = {path for _, path in ALLOWED if path.startswith("/threads/{uuid}/runs/{uuid}/")}
    assert len(subscribing) == 3
    assert subscribing <= REFUSED_IN_STREAM


async def test_the_root_lists_every_route_of_warrens_own() -> None:
    listed: Any = (await root())["endpoints"]
    offers = [offer for value in listed.values() for offer in value.split("; ")]
    for method, path in ALLOWED:
        if path.startswith("/api/"):
            shown = re.sub("{[a-z]+}", "{id}", path)
            assert any(offer.endswith(f" {shown}") and method in offer for offer in offers), (method, path)
