"""Session ids are read from the right, and every thread has exactly one name."""

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import InvalidSessionIdError, InvalidThreadIdError
from storage.ids import USERNAME_PATTERN, SessionId, is_username, parse_session_id, parse_thread_id

THREAD = "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"
usernames = st.from_regex(USERNAME_PATTERN, fullmatch=True)


@given(usernames, st.uuids())
def test_a_session_id_reads_back_as_what_it_was_made_of(owner: str, thread_id: UUID) -> None:
    assert parse_session_id(str(SessionId(owner, thread_id))) == (owner, thread_id)


@given(st.text(max_size=90))
def test_whatever_parses_is_spelled_in_the_one_canonical_way(text: str) -> None:
    try:
        session = parse_session_id(text)
    except InvalidSessionIdError:
        return
    assert str(session) == text.lower()
    assert is_username(session.owner)


spoilt_characters = st.sampled_from("-_/.{}\x00\n \uff10") | st.characters()


@given(usernames, st.uuids(), st.integers(0, 70), spoilt_characters, st.booleans())
def test_a_damaged_session_id_is_refused_or_still_spelled_in_the_one_way(
    owner: str, thread_id: UUID, place: int, character: str, replaces: bool
) -> None:
    intact = str(SessionId(owner, thread_id))
    damaged = intact[:place] + character + intact[place + replaces :]
    try:
        session = parse_session_id(damaged)
    except InvalidSessionIdError:
        return
    assert str(session) == damaged.lower()
    assert is_username(session.owner)


@given(usernames, usernames, st.uuids(), st.uuids())
def test_no_two_sessions_share_an_id_and_none_reads_as_somebody_elses(
    one: str, other: str, thread_id: UUID, other_id: UUID
) -> None:
    longer = f"{one}-{other}"[:32].rstrip("-_")
    sessions = {SessionId(name, uuid) for name in (one, other, longer) for uuid in (thread_id, other_id)}
    assert len({str(session) for session in sessions}) == len(sessions)
    assert {parse_session_id(str(session)) for session in sessions} == sessions


@given(st.uuids().map(str), st.integers(0, 40), spoilt_characters, st.booleans())
def test_a_damaged_thread_id_is_refused_or_names_the_thread_that_it_spells(
    intact: str, place: int, character: str, replaces: bool
) -> None:
    damaged = intact[:place] + character + intact[place + replaces :]
    try:
        assert str(parse_thread_id(damaged)) == damaged.lower()
    except InvalidThreadIdError:
        assert len(damaged) != 36 or damaged.lower() != intact


def test_a_hyphenated_name_is_not_the_shorter_name_it_starts_with() -> None:
    assert parse_session_id(f"alice-b-{THREAD}").owner == "alice-b"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        THREAD,
        f"-{THREAD}",
        f"alice{THREAD}",
        f"alice--{THREAD}",
        f"Alice-{THREAD}",
        f"../alice-{THREAD}",
        f"alice/-{THREAD}",
        f"alice-{THREAD}\n",
        f"alice-{THREAD}\x00",
        f"alice-{{{THREAD}}}",
        f"alice-urn:uuid:{THREAD}",
        f"alice-{THREAD.replace('-', '')}",
        f"{'a' * 33}-{THREAD}",
    ],
)
def test_what_is_not_a_session_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidSessionIdError):
        parse_session_id(text)


@pytest.mark.parametrize(
    "text",
    [
        THREAD.replace("-", ""),
        f"{{{THREAD}}}",
        f"urn:uuid:{THREAD}",
        "0190a1b2c3d4-7e5f-8a9b-0c1d2e3f4a5b-",
        THREAD.replace("0", "\uff10"),  # full-width zero: a digit to int()
        THREAD.replace("a", "\u0430"),  # Cyrillic a
        f" {THREAD}",
        f"{THREAD}\n",
    ],
)
def test_spellings_that_uuid_would_accept_or_that_look_alike_are_refused(text: str) -> None:
    with pytest.raises(InvalidThreadIdError):
        parse_thread_id(text)


def test_upper_case_names_the_same_thread() -> None:
    thread_id = uuid4()
    assert parse_thread_id(str(thread_id).upper()) == thread_id


@pytest.mark.parametrize("name", ["a", "a-b", "a_b", "0", "a" * 32, "alice-b"])
def test_usernames(name: str) -> None:
    assert is_username(name)


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "_a", "a.b", "A", "a" * 33, "a b", "a/b", "..", "ä", "a\n", "a\x00b"]
)
def test_names_that_would_be_unsafe_or_ambiguous_are_no_usernames(name: str) -> None:
    assert not is_username(name)
