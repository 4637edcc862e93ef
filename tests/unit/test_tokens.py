"""Only a token that this server signed, for this server, that has not expired, is a token."""

import base64
import json
import time
from collections.abc import Iterator

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth import secret, settings, tokens
from auth.errors import InvalidTokenError, WeakSecretKeyError
from auth.secret import check_strength

KEY = "q8Vn2xTz4Rk7Lw1Jy5Hd9Gf3Bc6Mp0Sa"


@pytest.fixture(autouse=True, scope="module")
def _key() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("SECRET_KEY", KEY)
    settings.get_settings.cache_clear()
    secret.signing_key.cache_clear()
    yield
    patch.undo()
    settings.get_settings.cache_clear()
    secret.signing_key.cache_clear()


def claims(**changes: object) -> dict[str, object]:
    now = int(time.time())
    return {"sub": "alice", "iat": now, "exp": now + 60, "iss": "warren", "aud": "warren"} | changes


def signed(key: str = KEY, algorithm: str = "HS256", **changes: object) -> str:
    return jwt.encode(claims(**changes), key, algorithm=algorithm)


def test_an_issued_token_names_its_user() -> None:
    token, lifetime = tokens.issue_token("alice")
    assert tokens.read_token(token).username == "alice"
    assert lifetime == 24 * 3600


@pytest.mark.parametrize("missing", ["sub", "iat", "exp", "iss", "aud"])
def test_every_claim_is_required(missing: str) -> None:
    payload = claims()
    del payload[missing]
    with pytest.raises(InvalidTokenError):
        tokens.read_token(jwt.encode(payload, KEY, algorithm="HS256"))


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": 1},
        {"iat": 4_102_444_800},
        {"iss": "someone"},
        {"aud": "someone"},
        {"aud": ["warren", "other"]},
        {"sub": "../root"},
        {"sub": "Alice"},
        {"sub": 7},
        {"sub": None},
        {"iat": "soon"},
    ],
)
def test_forged_or_expired_claims_are_refused(changes: dict[str, object]) -> None:
    try:
        token = signed(**changes)
    except TypeError:  # pyjwt itself will not write it: write it by hand
        token = by_hand({"alg": "HS256", "typ": "JWT"}, claims(**changes))
    with pytest.raises(InvalidTokenError):
        tokens.read_token(token)


def by_hand(header: dict[str, object], payload: dict[str, object], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(payload).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def test_a_token_of_a_foreign_key_is_refused() -> None:
    with pytest.raises(InvalidTokenError):
        tokens.read_token(signed(key=KEY[::-1]))


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "HS384", "RS256", ""])
def test_the_algorithm_is_not_the_tokens_to_choose(algorithm: str) -> None:
    with pytest.raises(InvalidTokenError):
        tokens.read_token(by_hand({"alg": algorithm, "typ": "JWT"}, claims()))


def test_a_sound_signature_of_another_hash_is_refused() -> None:
    with pytest.raises(InvalidTokenError):
        tokens.read_token(signed(key=KEY * 2, algorithm="HS512"))


@given(st.one_of(st.text(), st.binary().map(lambda raw: raw.decode("latin-1"))))
def test_arbitrary_text_is_refused_and_raises_nothing_else(text: str) -> None:
    with pytest.raises(InvalidTokenError):
        tokens.read_token(text)


@pytest.mark.parametrize(
    "key",
    ["", "brief", "x" * 64, "change-me-change-me-change-me-change-me", "my-secret-key-0123456789-abcdefghij"],
)
def test_a_weak_key_is_refused_without_being_quoted(key: str) -> None:
    with pytest.raises(WeakSecretKeyError) as caught:
        check_strength(key)
    assert not key or key not in str(caught.value)


def test_a_random_key_is_strong() -> None:
    check_strength(KEY)
