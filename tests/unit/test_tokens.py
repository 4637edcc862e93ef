"""Only a token that this server signed, for this server, that has not expired, is a token."""

import base64
import json
import string
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth import secret, settings, tokens
from auth.credentials import identify
from auth.errors import InvalidTokenError, WeakSecretKeyError
from auth.secret import check_strength

KEY = "q8Vn2xTz4Rk7Lw1Jy5Hd9Gf3Bc6Mp0Sa"
OLD, OLDER = "W3eR5tY7uI9oP1aS2dF4gH6jK8lZ0xCv", "m1N2b3V4c5X6z7L8k9J0hGfDsApOiUyT"

TEXTS = st.text(string.printable, max_size=5)


def forget_keys() -> None:
    settings.get_settings.cache_clear()
    secret.signing_key.cache_clear()
    secret.previous_keys.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def _keys() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("SECRET_KEY", KEY)
    patch.setenv("SECRET_KEY_PREVIOUS", f"{OLD}, {OLDER},")
    forget_keys()
    yield
    patch.undo()
    forget_keys()


def claims(**changes: object) -> dict[str, object]:
    now = int(time.time())
    return {
        "sub": "alice",
        "ver": 0,
        "iat": now,
        "exp": now + 60,
        "iss": "warren",
        "aud": "warren",
    } | changes


def signed(key: str = KEY, algorithm: str = "HS256", **changes: object) -> str:
    return jwt.encode(claims(**changes), key, algorithm=algorithm)


def test_an_issued_token_names_its_user_and_version() -> None:
    token, lifetime = tokens.issue_token("alice", 7)
    read = tokens.read_token(token)
    assert (read.username, read.version) == ("alice", 7)
    assert lifetime == 24 * 3600


@pytest.mark.parametrize("missing", ["sub", "ver", "iat", "exp", "iss", "aud"])
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
        {"ver": "0"},
        {"ver": 0.0},
        {"ver": True},
        {"ver": None},
        {"ver": [0]},
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


@pytest.mark.parametrize("key", [OLD, OLDER])
def test_a_previous_key_still_verifies_until_its_tokens_expire(key: str) -> None:
    assert tokens.read_token(signed(key=key, sub="bob")).username == "bob"
    with pytest.raises(InvalidTokenError):
        tokens.read_token(signed(key=key, exp=1))


def test_a_previous_key_never_signs() -> None:
    token, _ = tokens.issue_token("alice", 0)
    assert jwt.decode(token, KEY, algorithms=["HS256"], audience="warren")["sub"] == "alice"


def test_a_previous_key_that_could_be_guessed_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_keys()
    monkeypatch.setenv("SECRET_KEY_PREVIOUS", f"{OLD},brief")
    try:
        with pytest.raises(WeakSecretKeyError):
            secret.signing_key()
        with pytest.raises(WeakSecretKeyError):
            secret.describe_key()
    finally:
        monkeypatch.undo()
        forget_keys()


def test_only_expiry_is_forgiven_to_a_request_that_began_in_time() -> None:
    assert tokens.read_token(signed(exp=1), may_have_expired=True).username == "alice"
    for bad in (signed(exp=1, iss="someone"), signed(key=KEY[::-1]), signed(exp=1, ver=None)):
        with pytest.raises(InvalidTokenError):
            tokens.read_token(bad, may_have_expired=True)


@given(
    st.dictionaries(
        st.sampled_from(["sub", "ver", "iat", "exp", "iss", "aud", "nbf", "jti"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
            max_leaves=5,
        ),
    )
)
def test_signed_claims_of_any_shape_are_read_or_refused_and_raise_nothing_else(
    changes: dict[str, object],
) -> None:
    # Whoever had the key for a moment must not find a way to make the server answer 500.
    try:
        token = jwt.encode(claims() | changes, KEY, algorithm="HS256")
    except (TypeError, ValueError, UnicodeEncodeError):
        return
    try:
        read = tokens.read_token(token)
    except InvalidTokenError:
        return
    assert read.username == (claims() | changes)["sub"]


@given(st.one_of(st.text(), st.binary().map(lambda raw: raw.decode("latin-1"))))
def test_arbitrary_text_is_refused_and_raises_nothing_else(text: str) -> None:
    with pytest.raises(InvalidTokenError):
        tokens.read_token(text)


@given(st.data())
def test_a_token_that_was_tampered_with_is_refused_or_says_the_same(data: st.DataObject) -> None:
    token = signed()
    start = data.draw(st.integers(0, len(token)), label="start")
    end = data.draw(st.integers(start, min(start + 3, len(token))), label="end")
    put_in = data.draw(
        st.text(string.ascii_letters + string.digits + "-_.=+/\0 ", max_size=3), label="put in"
    )
    changed = token[:start] + put_in + token[end:]
    try:
        read = tokens.read_token(changed)
    except InvalidTokenError:
        return
    # Base64 has spare bits at its end, so that one signature may be spelled in more than one way.
    assert read == tokens.read_token(token)
    assert changed.rpartition(".")[0] == token.rpartition(".")[0]


@given(st.permutations(range(3)), st.sampled_from(["alice", "bob"]), st.sampled_from(["alice", "bob"]))
def test_parts_of_two_tokens_do_not_make_a_third(order: list[int], one: str, other: str) -> None:
    first, second = signed(sub=one).split("."), signed(sub=other, ver=1).split(".")
    mixed = [first[0], second[1], first[2]]
    with pytest.raises(InvalidTokenError):
        tokens.read_token(".".join(mixed[place] for place in order))


@given(
    st.binary(max_size=200) | st.text(max_size=50).map(str.encode),
    st.sampled_from([b"Bearer ", b"bearer ", b"BEARER", b"Basic ", b""]),
    st.sampled_from([b"authorization", b"x-api-key"]),
)
async def test_arbitrary_bytes_in_a_header_are_no_credential_and_raise_nothing_else(
    raw: bytes, scheme: bytes, name: bytes
) -> None:
    with pytest.raises(InvalidTokenError):
        await identify({name: scheme + raw})


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


def test_servers_that_start_at_once_make_one_key(tmp_path: Path) -> None:
    """Threads have one pid, as have servers in containers that share a data directory."""
    with ThreadPoolExecutor(16) as servers:
        keys = list(servers.map(secret._read_or_create, [tmp_path / "secret_key"] * 64))
    assert len(set(keys)) == 1
    check_strength(keys[0])
    assert [(path.name, path.stat().st_mode & 0o777) for path in tmp_path.iterdir()] == [
        ("secret_key", 0o600)
    ]
