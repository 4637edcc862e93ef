"""Guessing gets slow, for one account and from one address, however it is done; logging in properly does not.

The routes run in this process, so that requests can come from any address; everything behind them, bcrypt
and Postgres included, is the real thing.
"""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable
from itertools import count
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from auth import known_addresses, throttle
from auth import settings as auth_settings
from auth.errors import ThrottledError
from server import accounts as account_routes
from storage.database import get_pool
from tests.conftest import PASSWORD

pytestmark = pytest.mark.usefixtures("database")

WRONG = "not the password"
_names = count()
_hosts = count(1)

Client = Callable[[str], httpx.AsyncClient]
Configure = Callable[..., None]


def new_name() -> str:
    return f"guessed{next(_names)}"


def new_address() -> str:
    return str(ipaddress.ip_address("198.18.0.0") + next(_hosts))


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_variables(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        auth_settings.get_settings.cache_clear()

    yield set_variables
    monkeypatch.undo()
    auth_settings.get_settings.cache_clear()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    app = FastAPI()
    app.include_router(account_routes.router)
    opened: list[httpx.AsyncClient] = []

    def from_address(address: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app, client=(address, 4711))
        opened.append(httpx.AsyncClient(transport=transport, base_url="http://warren", timeout=60))
        return opened[-1]

    yield from_address
    for one in opened:
        await one.aclose()


async def register(client: Client) -> str:
    name = new_name()
    body = {"username": name, "password": PASSWORD}
    (await client(new_address()).post("/api/auth/register", json=body)).raise_for_status()
    return name


async def log_in(http: httpx.AsyncClient, name: str, password: str = PASSWORD) -> httpx.Response:
    return await http.post("/api/auth/login", json={"username": name, "password": password})


async def remember(subject: str, failures: float, seconds_ago: float = 0) -> None:
    """Have a subject failed, the last time some seconds ago, without waiting for it."""
    pool = await get_pool()
    async with pool.connection() as conn:
        await conn.execute(
            "INSERT INTO attempts (subject, level, last_at)"
            " VALUES (%(subject)s, %(level)s, clock_timestamp() - make_interval(secs => %(ago)s))"
            " ON CONFLICT (subject) DO UPDATE SET level = excluded.level, last_at = excluded.last_at",
            {"subject": subject, "level": failures, "ago": seconds_ago},
        )


async def age(name: str, address: str, days: int) -> None:
    """Have a login from an address be some days ago."""
    pool = await get_pool()
    async with pool.connection() as conn:
        await conn.execute(
            "UPDATE known_addresses SET last_at = now() - make_interval(days => %s)"
            " WHERE username = %s AND subject = %s",
            (days, name, address),
        )


async def let_through(name: str, address: str) -> bool:
    try:
        await throttle.begin_login(name, address)
    except ThrottledError:
        return False
    return True


async def test_after_five_failures_the_next_attempt_waits() -> None:
    name, address = new_name(), new_address()
    assert [await let_through(name, address) for _ in range(6)] == [True] * 5 + [False]


async def test_the_right_password_has_to_wait_as_well_and_is_told_how_long(client: Client) -> None:
    name = await register(client)
    await remember(f"login:{name}", 12)
    refused = await log_in(client(new_address()), name)
    assert refused.status_code == 429
    assert 120 < int(refused.headers["retry-after"]) <= 128
    assert name not in refused.text


async def test_waiting_is_enough_and_success_wipes_the_accounts_failures_out(client: Client) -> None:
    name = await register(client)
    await remember(f"login:{name}", 12, seconds_ago=129)
    assert (await log_in(client(new_address()), name)).status_code == 200
    address = new_address()
    assert [await let_through(name, address) for _ in range(5)] == [True] * 5


async def test_a_further_failure_doubles_the_delay(client: Client) -> None:
    name, http = await register(client), client(new_address())
    await remember(f"login:{name}", 12, seconds_ago=129)
    assert (await log_in(http, name, WRONG)).status_code == 401
    assert 240 < int((await log_in(http, name)).headers["retry-after"]) <= 256


async def test_a_failure_is_forgiven_every_quarter_of_an_hour() -> None:
    name, address = new_name(), new_address()
    await remember(f"login:{name}", 5, seconds_ago=3 * throttle.FORGIVEN_AFTER_SECONDS)
    assert [await let_through(name, address) for _ in range(4)] == [True] * 3 + [False]


async def test_attempts_at_once_get_no_more_tries_than_attempts_one_by_one() -> None:
    name = new_name()
    seen = await asyncio.gather(*(let_through(name, new_address()) for _ in range(50)))
    assert seen.count(True) == 5


async def test_of_fifty_logins_at_once_as_many_are_judged_as_one_by_one(client: Client) -> None:
    name, http = await register(client), client(new_address())
    await remember(f"login:{name}", 12, seconds_ago=129)
    answers = await asyncio.gather(*(log_in(http, name, WRONG) for _ in range(50)))
    assert sorted(answer.status_code for answer in answers) == [401] + [429] * 49


async def test_a_name_that_nobody_has_is_slowed_down_just_the_same(client: Client) -> None:
    answers = []
    for name in (await register(client), new_name()):
        http = client(new_address())
        await remember(f"login:{name}", 12, seconds_ago=129)
        tried, refused = await log_in(http, name, WRONG), await log_in(http, name, WRONG)
        answers.append([(one.status_code, one.text, sorted(one.headers)) for one in (tried, refused)])
    assert answers[0] == answers[1]


async def test_one_address_cannot_try_one_password_on_everybody() -> None:
    address = new_address()
    seen = await asyncio.gather(*(let_through(new_name(), address) for _ in range(50)))
    assert seen.count(True) == 20


async def test_an_own_account_does_not_wash_an_address_clean(client: Client) -> None:
    own, address = await register(client), new_address()
    await remember(f"address:{address}", 27, seconds_ago=129)
    assert (await log_in(client(address), own)).status_code == 200
    assert not await let_through(new_name(), address)


async def test_a_refused_address_does_not_count_against_the_account_it_tries() -> None:
    name, abusive = new_name(), new_address()
    await remember(f"address:{abusive}", 27)
    assert [await let_through(name, abusive) for _ in range(10)] == [False] * 10
    other = new_address()
    assert [await let_through(name, other) for _ in range(5)] == [True] * 5


async def test_addresses_of_one_ipv6_network_are_one() -> None:
    seen = await asyncio.gather(*(let_through(new_name(), f"2001:db8:7:7::{n:x}") for n in range(1, 31)))
    assert seen.count(True) == 20


async def test_a_stranger_cannot_lock_the_owner_out_of_an_open_session(client: Client) -> None:
    name, http = await register(client), client(new_address())
    token = (await log_in(http, name)).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    await remember(f"login:{name}", 15)
    assert (await log_in(client(new_address()), name)).status_code == 429
    assert (await http.get("/api/auth/me", headers=headers)).status_code == 200
    change = {"current_password": PASSWORD, "new_password": f"{PASSWORD}!"}
    assert (await http.post("/api/auth/password", json=change, headers=headers)).status_code == 200


async def test_a_stranger_cannot_keep_the_owner_from_logging_in_where_they_have_before(
    client: Client,
) -> None:
    name, address = await register(client), new_address()
    assert (await log_in(client(address), name)).status_code == 200
    await remember(f"login:{name}", 15)
    assert (await log_in(client(new_address()), name)).status_code == 429
    assert (await log_in(client(address), name)).status_code == 200


async def test_one_who_shares_the_address_cannot_lock_out_who_has_logged_in_there(client: Client) -> None:
    # As everybody does behind a proxy that is not in TRUSTED_PROXIES.
    name, address = await register(client), new_address()
    assert (await log_in(client(address), name)).status_code == 200
    await remember(f"address:{address}", 30)
    assert (await log_in(client(address), new_name())).status_code == 429
    assert (await log_in(client(address), name)).status_code == 200


async def test_where_one_has_logged_in_guessing_is_as_slow_as_elsewhere(client: Client) -> None:
    name, address = await register(client), new_address()
    assert (await log_in(client(address), name)).status_code == 200
    assert [await let_through(name, address) for _ in range(6)] == [True] * 5 + [False]
    assert (await log_in(client(address), name)).status_code == 429
    # Neither does it slow down anybody else, nor is it a way round the count elsewhere.
    assert await let_through(new_name(), address)
    assert [await let_through(name, new_address()) for _ in range(6)] == [True] * 5 + [False]
    await throttle.forget_failures(name)
    assert (await log_in(client(address), name)).status_code == 200


async def test_logging_in_at_home_gives_strangers_no_new_tries(client: Client) -> None:
    name, address = await register(client), new_address()
    assert (await log_in(client(address), name)).status_code == 200
    await remember(f"login:{name}", 15)
    assert (await log_in(client(address), name)).status_code == 200
    assert not await let_through(name, new_address())


async def test_an_address_is_known_to_one_user_only_and_for_some_time(client: Client) -> None:
    name, other, address = await register(client), await register(client), new_address()
    assert (await log_in(client(address), name)).status_code == 200
    assert await known_addresses.is_known(name, address)
    assert not await known_addresses.is_known(other, address)
    await age(name, address, known_addresses.KNOWN_DAYS + 1)
    assert not await known_addresses.is_known(name, address)


async def test_of_a_users_addresses_the_latest_are_remembered(client: Client) -> None:
    name = await register(client)
    places = [new_address() for _ in range(known_addresses.MAX_PER_USER + 1)]
    for place in places:
        await known_addresses.remember(name, place)
    known = [await known_addresses.is_known(name, place) for place in places]
    assert known == [False] + [True] * known_addresses.MAX_PER_USER


async def test_a_failed_login_makes_no_address_known(client: Client) -> None:
    name, address = await register(client), new_address()
    assert (await log_in(client(address), name, WRONG)).status_code == 401
    assert not await known_addresses.is_known(name, address)


async def test_a_session_cannot_guess_its_own_password_quickly(client: Client) -> None:
    name, http = await register(client), client(new_address())
    token = (await log_in(http, name)).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    await remember(f"password:{name}", 12, seconds_ago=129)
    change = {"current_password": WRONG, "new_password": f"{PASSWORD}!"}
    answers = await asyncio.gather(
        *(http.post("/api/auth/password", json=change, headers=headers) for _ in range(12))
    )
    assert sorted(answer.status_code for answer in answers) == [403] + [429] * 11


async def test_an_attempt_that_was_not_judged_does_not_count() -> None:
    name, address = new_name(), new_address()
    for _ in range(30):
        await (await throttle.begin_login(name, address)).was_not_judged()
    assert [await let_through(name, address) for _ in range(6)] == [True] * 5 + [False]


async def test_registrations_of_one_address_are_limited_whatever_becomes_of_them(client: Client) -> None:
    address, taken = new_address(), await register(client)
    await remember(f"registration:{address}", 18)
    answers = [
        await client(address).post("/api/auth/register", json={"username": name, "password": PASSWORD})
        for name in (new_name(), taken, new_name())
    ]
    assert [answer.status_code for answer in answers] == [200, 400, 429]
    assert 0 < int(answers[-1].headers["retry-after"]) <= 180
    assert await register(client)


async def test_registrations_at_once_are_no_more_than_an_hour_allows() -> None:
    async def allowed(address: str) -> bool:
        try:
            await throttle.begin_registration(address)
        except ThrottledError:
            return False
        return True

    address = new_address()
    seen = await asyncio.gather(*(allowed(address) for _ in range(50)))
    assert seen.count(True) == 20


async def test_a_body_that_cannot_be_read_uses_no_registration_up(client: Client) -> None:
    http = client(new_address())
    for _ in range(25):
        assert (await http.post("/api/auth/register", json={"username": "x"})).status_code == 422
    body = {"username": new_name(), "password": PASSWORD}
    assert (await http.post("/api/auth/register", json=body)).status_code == 200


async def test_closed_registration_is_closed_and_logging_in_is_not(
    client: Client, configure: Configure
) -> None:
    name = await register(client)
    configure(REGISTRATION="closed")
    http = client(new_address())
    answer = await http.post("/api/auth/register", json={"username": new_name(), "password": PASSWORD})
    assert answer.status_code == 403
    # Not even whether a name is taken is told.
    assert (await http.post("/api/auth/register", json={"username": name, "password": PASSWORD})).text == (
        answer.text
    )
    assert (await log_in(http, name)).status_code == 200


async def test_behind_a_trusted_proxy_each_client_has_its_own_count(
    client: Client, configure: Configure
) -> None:
    configure(TRUSTED_PROXIES="10.0.0.0/8")
    proxy = client("10.0.0.1")

    async def guess(real: str) -> int:
        headers = {"X-Forwarded-For": f"192.0.2.1, {real}"}
        body = {"username": new_name(), "password": WRONG}
        return (await proxy.post("/api/auth/login", json=body, headers=headers)).status_code

    guesser, other = new_address(), new_address()
    await remember(f"address:{guesser}", 27)
    assert (await guess(guesser), await guess(other)) == (429, 401)


async def test_a_client_that_is_no_proxy_cannot_choose_its_address(client: Client) -> None:
    address, claimed = new_address(), new_address()
    await remember(f"address:{address}", 27)
    headers = {"X-Forwarded-For": claimed, "Forwarded": f"for={claimed}", "X-Real-IP": claimed}
    body = {"username": new_name(), "password": WRONG}
    answer = await client(address).post("/api/auth/login", json=body, headers=headers)
    assert answer.status_code == 429


async def test_what_has_worn_off_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    name, recent = new_name(), new_name()
    await remember(f"login:{name}", 3, seconds_ago=3 * throttle.FORGIVEN_AFTER_SECONDS + 1)
    await remember(f"login:{recent}", 3, seconds_ago=2 * throttle.FORGIVEN_AFTER_SECONDS)
    monkeypatch.setattr(throttle, "_next_purge", 0.0)
    await throttle.begin_login(new_name(), new_address())
    pool = await get_pool()
    async with pool.connection() as conn:
        cursor = await conn.execute(
            "SELECT subject FROM attempts WHERE subject = ANY(%s)", ([f"login:{name}", f"login:{recent}"],)
        )
        assert [row["subject"] for row in await cursor.fetchall()] == [f"login:{recent}"]


async def test_two_accounts_and_two_addresses_crosswise_do_not_deadlock() -> None:
    names, addresses = [new_name(), new_name()], [new_address(), new_address()]
    crosswise = [(names[n % 2], addresses[n // 2 % 2]) for n in range(80)]
    seen = await asyncio.gather(*(let_through(name, address) for name, address in crosswise))
    assert seen.count(True) == 2 * 5
