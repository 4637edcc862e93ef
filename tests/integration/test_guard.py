"""What is not on the allow-list does not exist, however it is spelled."""

from uuid import uuid4

import httpx
import pytest
import websockets

from server.child import ChildServer
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
        ("GET", "/metrics"),
        ("GET", "/profile"),
        ("POST", "/mcp"),
        ("POST", "/a2a/agent"),
        ("POST", "/assistants"),
        ("DELETE", f"/assistants/{THREAD}"),
        ("POST", "/runs/crons"),
        ("POST", "/runs/batch"),
        ("PUT", "/store/items"),
        ("POST", "/store/items/search"),
        ("POST", "/threads/prune"),
        ("POST", f"/threads/{THREAD}/commands"),
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


async def test_browsers_may_ask_from_loopback_and_studio_only(http: httpx.AsyncClient) -> None:
    async def allowed(origin: str) -> str | None:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        return (await http.options("/threads", headers=headers)).headers.get("access-control-allow-origin")

    assert await allowed("http://localhost:3000") == "http://localhost:3000"
    assert await allowed("https://smith.langchain.com") == "https://smith.langchain.com"
    assert await allowed("https://evil.example") is None
    assert await allowed("http://localhost.evil.example") is None
