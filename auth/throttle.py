"""Slowing down who guesses: attempts are counted in Postgres, across processes, before they are judged.

A failure counts for the account and for the address. Beyond a few free ones, each makes the next attempt
wait twice as long; one is forgiven every quarter of an hour. An attempt that comes too early is refused
without being judged or counted. Counting comes first, under a row lock, so that attempts made at once
get no more tries than attempts made one by one. All SQL of it is here.

From where a user has logged in before, their logins count for that user there and for nothing else: failures
of strangers, who can make them anywhere for any name, are not in the user's way.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from auth import known_addresses
from auth.addresses import subject_of
from auth.errors import ThrottledError
from auth.settings import get_settings
from storage.database import get_pool

MAX_DELAY_SECONDS = 900.0
"""The longest that one failure makes the next attempt wait: 96 guesses a day."""

FORGIVEN_AFTER_SECONDS = 900.0
"""The time in which one failure is forgotten. Not shorter than the longest delay, which would wear off."""

_MAX_DOUBLINGS = 10  # 2 ** 10 s is beyond the longest delay
_HOUR_SECONDS = 3600.0
_PURGE_SECONDS = 60.0
_AT = "@"  # in no name
_next_purge = 0.0

# The conflicting "update" changes nothing: it locks the row, so that it is read after who came before.
_HOLD = """
INSERT INTO attempts AS held (subject, level, last_at)
SELECT subject, 0, clock_timestamp() FROM unnest(%s::text[]) AS subject
ON CONFLICT (subject) DO UPDATE SET subject = held.subject
RETURNING subject, level, extract(epoch FROM clock_timestamp() - last_at)::float8 AS elapsed
"""

_COUNT = """
UPDATE attempts SET level = counted.level, last_at = clock_timestamp()
FROM unnest(%s::text[], %s::float8[]) AS counted (subject, level)
WHERE attempts.subject = counted.subject
"""

_TAKE_BACK = "UPDATE attempts SET level = greatest(level - 1, 0) WHERE subject = ANY(%s)"

_FORGET = "DELETE FROM attempts WHERE subject = ANY(%s)"

_FORGET_USER = "DELETE FROM attempts WHERE subject = ANY(%s) OR starts_with(subject, %s)"

_PURGE = "DELETE FROM attempts WHERE last_at + level * make_interval(secs => %s) < now()"


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that was let through, counted as if it had failed.

    Attributes:
        account: what it counts for and success wipes out, None if it can be nobody's account.
        address: what it counts for and success takes back just once; None if it is not counted so.
        login: the user and the address that success makes known to each other, if it does.
    """

    account: str | None
    address: str | None
    login: tuple[str, str] | None = None

    async def succeeded(self) -> None:
        """Forget the account's failures, but of the address's only this one."""
        if self.address is not None:
            await _execute(_TAKE_BACK, [self.address])
        if self.account is not None:
            await _execute(_FORGET, [self.account])
        if self.login is not None:
            await known_addresses.remember(*self.login)

    async def was_not_judged(self) -> None:
        """Take the attempt back, since nothing was learnt from it."""
        await _execute(_TAKE_BACK, [subject for subject in (self.address, self.account) if subject])


@dataclass(frozen=True, slots=True)
class _Limit:
    """How an amount of attempts, the `level`, makes the next one wait, and how it wears off.

    Attributes:
        wait: from the level and the seconds since the last attempt to the seconds still to wait.
        per_second: how much of the level wears off.
        most: where the level stops growing.
    """

    wait: Callable[[float, float], float]
    per_second: float
    most: float

    def after_one_more(self, level: float, elapsed: float) -> float:
        return min(max(level - elapsed * self.per_second, 0.0) + 1, self.most)


async def begin_login(username: str | None, address: str) -> Attempt:
    """Count a login. `username` is None for a name that nobody can have; unknown names count like known.

    Raises:
        ThrottledError: if it comes too early; it must not be judged then.
    """
    if username is None:
        return await _begin(None, address)
    place = subject_of(address)
    if not await known_addresses.is_known(username, place):
        return await _begin(_login_subject(username), address, (username, place))
    own = f"{_login_subject(username)}{_AT}{place}"
    await _take({own: _failures(get_settings().login_failures_per_account)})
    return Attempt(own, None, (username, place))


async def begin_password_check(username: str, address: str) -> Attempt:
    """Count a session's try at its own password, apart from logins: strangers' failures are not in its way.

    Raises:
        ThrottledError: as `begin_login`.
    """
    return await _begin(_password_subject(username), address)


async def begin_registration(address: str) -> Attempt:
    """Count a registration, whatever becomes of it.

    Raises:
        ThrottledError: if the address has had as many as an hour allows.
    """
    subject = f"registration:{subject_of(address)}"
    per_hour = get_settings().registrations_per_hour
    await _take({subject: _registrations(per_hour)})
    return Attempt(None, subject)


async def forget_failures(username: str) -> None:
    """Let a user try again at once, as an operator does who has just helped them."""
    login = _login_subject(username)
    pool = await get_pool()
    async with pool.connection() as conn:
        await conn.execute(_FORGET_USER, ([login, _password_subject(username)], f"{login}{_AT}"))


def failure_wait(free: int, level: float, elapsed: float) -> float:
    """Return how many seconds are left to wait after `level` failures, the last `elapsed` seconds ago."""
    failures = math.ceil(level)
    if failures < free:
        return 0.0
    delay = min(2.0 ** min(failures - free, _MAX_DOUBLINGS), MAX_DELAY_SECONDS)
    return max(delay - elapsed, 0.0)


def registration_wait(per_hour: int, level: float, elapsed: float) -> float:
    """Return how many seconds are left until one more keeps within `per_hour`."""
    left = max(level - elapsed * per_hour / _HOUR_SECONDS, 0.0)
    return max(left + 1 - per_hour, 0.0) * _HOUR_SECONDS / per_hour


async def _begin(account: str | None, address: str, login: tuple[str, str] | None = None) -> Attempt:
    settings = get_settings()
    by_address = f"address:{subject_of(address)}"
    limits = {by_address: _failures(settings.login_failures_per_address)}
    if account is not None:
        limits[account] = _failures(settings.login_failures_per_account)
    await _take(limits)
    return Attempt(account, by_address, login)


def _login_subject(username: str) -> str:
    return f"login:{username}"


def _password_subject(username: str) -> str:
    return f"password:{username}"


def _failures(free: int) -> _Limit:
    return _Limit(
        wait=lambda level, elapsed: failure_wait(free, level, elapsed),
        per_second=1 / FORGIVEN_AFTER_SECONDS,
        most=free + _MAX_DOUBLINGS,
    )


def _registrations(per_hour: int) -> _Limit:
    return _Limit(
        wait=lambda level, elapsed: registration_wait(per_hour, level, elapsed),
        per_second=per_hour / _HOUR_SECONDS,
        most=per_hour,
    )


async def _take(limits: Mapping[str, _Limit]) -> None:
    # Everyone locks rows in the same order.
    subjects = sorted(limits)
    pool = await get_pool()
    async with pool.connection() as conn:
        # All or none: an address that has to wait does not count against the account it tries.
        async with conn.transaction():
            cursor = await conn.execute(_HOLD, (subjects,))
            held = {
                row["subject"]: (row["level"], max(row["elapsed"], 0.0)) for row in await cursor.fetchall()
            }
            wait = max(limits[subject].wait(*held[subject]) for subject in subjects)
            if wait > 0:
                raise ThrottledError(math.ceil(wait))
            levels = [limits[subject].after_one_more(*held[subject]) for subject in subjects]
            await conn.execute(_COUNT, (subjects, levels))
        if _is_time_to_purge():
            await conn.execute(_PURGE, (FORGIVEN_AFTER_SECONDS,))


def _is_time_to_purge() -> bool:
    global _next_purge  # noqa: PLW0603 - of this process
    if time.monotonic() < _next_purge:
        return False
    _next_purge = time.monotonic() + _PURGE_SECONDS
    return True


async def _execute(statement: str, subjects: list[str]) -> None:
    pool = await get_pool()
    async with pool.connection() as conn:
        await conn.execute(statement.encode(), (subjects,))
