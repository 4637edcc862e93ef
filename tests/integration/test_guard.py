"""What is not on the allow-list does not exist, however it is spelled."""

from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import pytest
import websockets

from server.child import ChildServer
from server.routes import PUBLIC, match
from tests.conftest import User

THREAD = str(uuid4())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/internal/truncate"),
        ("GET", f"/internal/debug/thread/{THREAD}"),
        ("GET", "/deploy"),
        ("POST", "/deploy"),
        ("GET", "/ui/agent"),
        ("GET", "/ui"),
        ("GET", "/profile"),
        ("POST", "/mcp"),
        ("POST", "/a2a/agent"),
        ("POST", "/runs/crons"),
        ("POST", "/runs/crons/search"),
        ("POST", f"/threads/{THREAD}/runs/crons"),
        ("POST", "/runs/batch"),
        ("POST", "//internal/truncate"),
        ("POST", "/threads/../internal/truncate"),
        ("POST", "/threads/%2e%2e/internal/truncate"),
        ("POST", "/%69nternal/truncate"),
        ("POST", "/internal%2Ftruncate"),
        ("POST", "/noauth/threads/search"),
        ("GET", "/ui/../threads/search"),
        ("TRACE", "/"),
        ("GET", "/threads/search"),
    ],
)
async def test_the_platforms_open_doors_are_shut(
    http: httpx.AsyncClient, alice: User, method: str, path: str
) -> None:
    # httpx would tidy the path up: the raw target goes on the wire as it stands here.
    request = http.build_request(method, "/", headers=alice.headers)
    request.url = request.url.copy_with(raw_path=path.encode())
    answer = await http.send(request)
    assert answer.status_code in (404, 422)


async def test_no_websocket_is_accepted(server: ChildServer, alice: User) -> None:
    url = f"{server.url.replace('http', 'ws')}/threads/{THREAD}/stream/events"
    with pytest.raises(websockets.InvalidStatus):
        async with websockets.connect(url, additional_headers=alice.headers):
            pass


async def test_an_upper_case_id_is_the_same_thread(http: httpx.AsyncClient, alice: User) -> None:
    thread_id = await alice.thread()
    answer = await http.get(f"/threads/{thread_id.upper()}", headers=alice.headers)
    assert answer.json()["thread_id"] == thread_id


@pytest.mark.parametrize(
    "spell", [lambda t: t.replace("-", ""), lambda t: f"{{{t}}}", lambda t: f"urn:uuid:{t}"]
)
@pytest.mark.parametrize("place", ["/threads/{}", "/threads/{}/state", "/threads/{}/runs"])
async def test_an_odd_id_is_refused(http: httpx.AsyncClient, alice: User, spell: object, place: str) -> None:
    thread_id = await alice.thread()
    answer = await http.get(place.format(spell(thread_id)), headers=alice.headers)  # type: ignore[operator]
    assert answer.status_code == 422


@pytest.mark.parametrize("path", ["/", "/ok", "/docs", "/openapi.json", "/info"])
async def test_what_needs_no_account_is_served_without(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 200


async def test_the_documentation_shows_what_is_served_and_what_a_credential_is(
    http: httpx.AsyncClient,
) -> None:
    document = (await http.get("/openapi.json")).json()
    operations = {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert [key for key in operations if match(*key) is None] == []
    assert {("POST", "/threads"), ("GET", "/store/items"), ("POST", "/api/auth/keys")} <= operations.keys()
    assert "Crons" not in [tag["name"] for tag in document["tags"]]
    assert document["security"] == [{"token": []}, {"key": []}]
    assert document["components"]["securitySchemes"].keys() == {"token", "key"}
    for_strangers = {path for (_, path), operation in operations.items() if operation.get("security") == []}
    assert for_strangers == PUBLIC - {"/openapi.json", "/metrics"}


async def test_browsers_may_ask_from_loopback_and_studio_only(http: httpx.AsyncClient) -> None:
    async def allowed(origin: str) -> str | None:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        return (await http.options("/threads", headers=headers)).headers.get("access-control-allow-origin")

    assert await allowed("http://localhost:3000") == "http://localhost:3000"
    assert await allowed("https://smith.langchain.com") == "https://smith.langchain.com"
    assert await allowed("https://evil.example") is None
    assert await allowed("http://localhost.evil.example") is None


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::2]"]
)
async def test_a_page_of_a_foreign_name_that_resolves_to_loopback_is_refused(
    http: httpx.AsyncClient, alice: User, host: str
) -> None:
    answer = await http.post("/threads/search", json={}, headers={**alice.headers, "Host": host})
    assert answer.status_code in (400, 421)
    assert (await http.get("/ok", headers={"Host": host or "x"})).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:2024", "localhost."])
async def test_loopback_goes_by_all_its_names(http: httpx.AsyncClient, alice: User, host: str) -> None:
    answer = await http.post("/threads/search", json={}, headers={**alice.headers, "Host": host})
    assert answer.status_code == 200


async def test_bodies_over_the_limit_are_refused_however_they_come(
    http: httpx.AsyncClient, alice: User
) -> None:
    large = b'{"metadata": {"a": "' + b"a" * (1024 * 1024) + b'"}}'

    async def in_chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(large), 100_000):
            yield large[start : start + 100_000]

    assert (await http.post("/threads", content=large, headers=alice.headers)).status_code == 413
    assert (await http.post("/threads", content=in_chunks(), headers=alice.headers)).status_code == 413


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Forwarded-Host"])
async def test_metrics_are_for_this_machine_and_not_for_whom_it_forwards(
    http: httpx.AsyncClient, header: str
) -> None:
    assert (await http.get("/metrics")).status_code == 200
    assert (await http.get("/metrics", headers={header: "127.0.0.1"})).status_code == 404


async def test_own_answers_forbid_sniffing_framing_and_caching(http: httpx.AsyncClient, alice: User) -> None:
    answer = await http.get("/api/sessions", headers=alice.headers)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("origin", ["https://smith.langchain.com", "http://localhost:3000", None])
async def test_studios_header_opens_nothing_unless_the_operator_says_so(
    http: httpx.AsyncClient, origin: str | None
) -> None:
    headers = {"X-Auth-Scheme": "langsmith"} | ({"Origin": origin} if origin else {})
    assert (await http.post("/threads/search", json={}, headers=headers)).status_code == 401


async def test_a_foreign_page_can_neither_register_nor_guess_passwords(http: httpx.AsyncClient) -> None:
    """A plain form or text needs no preflight, and counts against the visitor's own address."""
    for route in ("register", "login"):
        answer = await http.post(
            f"/api/auth/{route}",
            content='{"username": "x", "password": "y"}',
            headers={"Origin": "https://evil.example", "Content-Type": "text/plain"},
        )
        assert answer.status_code == 403
