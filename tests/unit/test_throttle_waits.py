"""How long attempts have to wait."""

from hypothesis import given
from hypothesis import strategies as st

from auth.throttle import MAX_DELAY_SECONDS, failure_wait, registration_wait

LEVELS = st.floats(0, 1000)
SECONDS = st.floats(0, 100_000)


def test_the_first_failures_are_free_and_then_the_delay_doubles_up_to_a_quarter_of_an_hour() -> None:
    waits = [failure_wait(5, level, 0) for level in range(18)]
    assert waits == [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]


@given(LEVELS, SECONDS)
def test_waiting_as_long_as_told_is_enough(level: float, elapsed: float) -> None:
    wait = failure_wait(5, level, elapsed)
    assert 0 <= wait <= MAX_DELAY_SECONDS
    assert failure_wait(5, level, elapsed + wait) < 1e-6
    assert registration_wait(20, level, elapsed + registration_wait(20, level, elapsed)) < 1e-6


@given(LEVELS, SECONDS)
def test_a_failure_more_never_makes_it_shorter(level: float, elapsed: float) -> None:
    assert failure_wait(5, level + 1, elapsed) >= failure_wait(5, level, elapsed)


def test_registrations_are_spread_over_the_hour_once_they_are_used_up() -> None:
    assert registration_wait(20, 19, 0) == 0
    assert registration_wait(20, 20, 0) == 180
    assert registration_wait(20, 20, 180) == 0
    assert registration_wait(20, 20, 3600) == 0
