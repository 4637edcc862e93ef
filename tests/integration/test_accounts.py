"""Registering and logging in over HTTP, with hostile bodies."""

import asyncio
import time
from statistics import median
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from server.accounts import Credentials
from server.child import ChildServer
from tests.conftest import PASSWORD, User, new_user


async def test_register_then_log_in(http: httpx.AsyncClient) -> None:
    credentials = {"username": "carol", "password": PASSWORD}
    registered = await http.post("/api/auth/register", json=credentials)
    assert registered.json() == {"message": "User registered", "user_id": "carol"}
    login = (await http.post("/api/auth/login", json=credentials)).json()
    assert login["token_type"] == "bearer"
    assert login["expires_in"] == 86400
    authorized = await http.get("/api/sessions", headers={"Authorization": f"Bearer {login['access_token']}"})
    assert authorized.json() == []


async def test_login_takes_an_oauth2_form_and_ignores_the_content_type(
    http: httpx.AsyncClient, alice: User
) -> None:
    form = {"username": alice.name, "password": PASSWORD, "grant_type": "password"}
    assert (await http.post("/api/auth/login", data=form)).status_code == 200
    as_curl_sends_json = await http.post(
        "/api/auth/login",
        content=f'{{"username": "{alice.name}", "password": "{PASSWORD}"}}',
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert as_curl_sends_json.status_code == 200


async def test_a_name_is_the_same_in_any_case_and_taken_once(http: httpx.AsyncClient, alice: User) -> None:
    again = await http.post("/api/auth/register", json={"username": "ALICE", "password": PASSWORD})
    assert (again.status_code, again.json()["detail"]) == (400, "Username already registered")
    assert (
        await http.post("/api/auth/login", json={"username": "Alice", "password": PASSWORD})
    ).status_code == 200


async def test_two_registrations_of_one_name_at_once_make_one_account(http: httpx.AsyncClient) -> None:
    bodies = [{"username": "twin", "password": f"{PASSWORD}{n}"} for n in range(5)]
    answers = await asyncio.gather(*(http.post("/api/auth/register", json=body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400, 400]


@pytest.mark.parametrize("name", ["system", "anonymous", "langgraph-studio-user"])
async def test_reserved_names_cannot_be_had(http: httpx.AsyncClient, name: str) -> None:
    answer = await http.post("/api/auth/register", json={"username": name, "password": PASSWORD})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"username": "", "password": PASSWORD}, "username"),
        ({"username": "a" * 33, "password": PASSWORD}, "username"),
        ({"username": "../../etc", "password": PASSWORD}, "username"),
        ({"username": "-dash", "password": PASSWORD}, "username"),
        ({"username": "a\x00b", "password": PASSWORD}, "username"),
        ({"username": "\u212aelvin", "password": PASSWORD}, "username"),  # lower() makes the Kelvin sign a k
        ({"username": ["a"], "password": PASSWORD}, "username"),
        ({"password": PASSWORD}, "username"),
        ({"username": "dave", "password": "1234567"}, "password"),
        ({"username": "dave", "password": "x" * 1025}, "password"),
        ({"username": "dave", "password": None}, "password"),
        ({"username": "dave"}, "password"),
    ],
)
async def test_bad_fields_are_named_and_not_quoted(
    http: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    answer = await http.post("/api/auth/register", json=body)
    assert answer.status_code == 422
    assert field in [part for error in answer.json()["detail"] for part in error["loc"]]
    assert PASSWORD not in answer.text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"username": "a", "password": "\\ud800\\ud800\\ud800\\ud800"}',
        b"&&&=",
    ],
)
@pytest.mark.parametrize("route", ["register", "login"])
async def test_bodies_that_are_not_json_objects_are_refused(
    http: httpx.AsyncClient, route: str, content: bytes
) -> None:
    answer = await http.post(f"/api/auth/{route}", content=content)
    assert answer.status_code in (401, 422)


async def test_bodies_over_64_kib_are_refused_however_they_come(http: httpx.AsyncClient) -> None:
    large = b'{"username": "' + b"a" * 70_000 + b'"}'

    async def in_chunks() -> Any:
        for start in range(0, len(large), 10_000):
            yield large[start : start + 10_000]

    assert (await http.post("/api/auth/login", content=large)).status_code == 413
    assert (await http.post("/api/auth/register", content=in_chunks())).status_code == 413


@pytest.mark.timeout(20)
def test_a_long_password_is_refused_before_it_is_looked_at() -> None:
    """The attack: accents without order, to normalise which takes the square of their number."""
    accents = "a" + "\u0300\u0316" * 100_000
    with pytest.raises(ValidationError):
        Credentials(username="alice", password=accents)


async def test_a_wrong_name_and_a_wrong_password_are_told_alike(http: httpx.AsyncClient, alice: User) -> None:
    wrong_password = await http.post("/api/auth/login", json={"username": alice.name, "password": "x" * 12})
    wrong_name = await http.post("/api/auth/login", json={"username": "nobody-here", "password": PASSWORD})
    no_name = await http.post("/api/auth/login", json={"username": "../..", "password": "x"})
    assert wrong_password.status_code == wrong_name.status_code == no_name.status_code == 401
    assert (
        wrong_password.json()
        == wrong_name.json()
        == no_name.json()
        == {"detail": "Incorrect username or password"}
    )


async def test_a_wrong_name_takes_as_long_as_a_wrong_password(http: httpx.AsyncClient, alice: User) -> None:
    async def seconds(username: str) -> float:
        started = time.perf_counter()
        await http.post("/api/auth/login", json={"username": username, "password": "not the password"})
        return time.perf_counter() - started

    known, unknown = [], []
    for n in range(5):
        known.append(await seconds(alice.name))
        unknown.append(await seconds(f"stranger{n}"))
    # Without the hash of a password nobody has, an unknown name would answer some hundred times faster.
    assert median(unknown) > median(known) / 2


async def test_a_password_beyond_the_limit_does_not_match_its_own_beginning(
    http: httpx.AsyncClient, server: ChildServer
) -> None:
    name = (await new_user(server)).name
    answer = await http.post("/api/auth/login", json={"username": name, "password": PASSWORD + " " * 2000})
    assert answer.status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer x.y.z"},
        {"Authorization": "Basic YWxpY2U6eA=="},
        {"Authorization": "Bearer " + "a" * 7000},
        {"X-Api-Key": "nonsense"},
        {"X-Auth-Scheme": "langsmith"},
        {"X-Auth-Scheme": "langsmith", "X-Api-Key": "lsv2_x", "X-User-Id": "alice"},
    ],
)
@pytest.mark.parametrize("path", ["/api/sessions", "/threads/search", "/assistants/search"])
async def test_without_a_valid_token_nothing_is_served(
    http: httpx.AsyncClient, path: str, headers: dict[str, str]
) -> None:
    method = "GET" if path.startswith("/api") else "POST"
    assert (await http.request(method, path, json={}, headers=headers)).status_code == 401


async def test_a_token_may_come_as_api_key_but_authorization_wins(
    http: httpx.AsyncClient, alice: User
) -> None:
    as_key = {"X-Api-Key": alice.token}
    assert (await http.get("/api/sessions", headers=as_key)).status_code == 200
    assert (await http.post("/threads/search", json={}, headers=as_key)).status_code == 200
    both = {"X-Api-Key": alice.token, "Authorization": "Bearer wrong"}
    assert (await http.get("/api/sessions", headers=both)).status_code == 401
    assert (await http.post("/threads/search", json={}, headers=both)).status_code == 401
