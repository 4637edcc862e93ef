"""What an API key looks like, and that a slip in copying one is seen without a look into the database."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth import keys
from auth.errors import InvalidTokenError

ALPHABET = string.ascii_letters + string.digits


def test_a_new_key_has_the_form_that_secret_scanners_know_and_is_never_made_twice() -> None:
    made = {keys._new_key() for _ in range(1000)}
    assert len(made) == 1000
    for key in made:
        assert keys.is_key(key)
        assert len(key) == len("warren_") + 36
        assert len(keys.hash_of(key)) == 32


@given(st.integers(7, 42), st.sampled_from(ALPHABET))
def test_one_wrong_character_is_noticed(place: int, character: str) -> None:
    key = keys._new_key()
    wrong = key[:place] + character + key[place + 1 :]
    if wrong != key:
        with pytest.raises(InvalidTokenError):
            keys.hash_of(wrong)


@given(st.one_of(st.text(), st.text(ALPHABET, min_size=36, max_size=36)).map("warren_".__add__))
def test_anything_else_is_refused_and_raises_nothing_else(text: str) -> None:
    with pytest.raises(InvalidTokenError):
        keys.hash_of(text)


@pytest.mark.parametrize("change", [str.upper, str.lower, lambda key: key + "\n", lambda key: key[:-1]])
def test_a_key_has_one_spelling(change: object) -> None:
    with pytest.raises(InvalidTokenError):
        keys.hash_of(change(keys._new_key()))  # type: ignore[operator]
