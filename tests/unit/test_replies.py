"""What a hostile toolbox may answer to a file operation: the result is an error, or a proper one."""

import re
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.errors import NoAnswerError
from sandbox.file_operations import DOWNLOAD_LIMIT_BYTES, FileOperations
from sandbox.toolbox.search import ANSWER_BYTES, GREP_MATCHES


class HostileTransport:
    """Answers everything with the same."""

    def __init__(self, reply: dict[str, object], data: bytes) -> None:
        self.answer = reply, data
        self.calls = 0

    async def call(self, *_: object, **__: object) -> tuple[dict[str, object], bytes]:
        self.calls += 1
        return self.answer


KEYS = """
error errors kind truncated total_lines start_line end_line next_offset lines files count unreadable done
"""
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 3)
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["text", "binary", "empty", "no_lines", "offset_exceeds_length", "\ud800", 10**400]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=1),
    max_leaves=3,
)
REPLIES = st.dictionaries(st.sampled_from(KEYS.split()), VALUES, max_size=8)
DATA = st.binary(max_size=8) | st.sampled_from(
    [b"fa\0", b"d..\0", b"f\0", b"a\0", b"/a\0", b"../a\0", b"a\x001:b\n", b"a\x00x:b\n", b"x\xff"]
)


@settings(max_examples=200, database=None, deadline=None, derandomize=True)
@given(REPLIES, DATA)
async def test_any_answer_gives_a_result_that_can_be_sent_to_a_model(
    reply: dict[str, object], data: bytes
) -> None:
    ours = FileOperations(HostileTransport(reply, data))
    for result in (
        await ours.als("/d"),
        await ours.aread("/f"),
        await ours.aread("/f.png", 1, 1),
        await ours.awrite("/f", "x"),
        await ours.aedit("/f", "a", "b"),
        await ours.adelete("/f"),
        await ours.aglob("*"),
        await ours.agrep("x", max_count=1),
        *await ours.aupload_files([("/f", b"x")]),
        *await ours.adownload_files(["/f", "/g"]),
    ):
        str(asdict(result)).encode()


@pytest.mark.parametrize(
    ("reply", "data"),
    [
        ({}, b""),
        ({"kind": "text", "truncated": False}, b"x"),
        ({"kind": "text", "truncated": False, "start_line": 2, "end_line": 2}, b"x"),
        ({"kind": "text", "truncated": False, "start_line": 1, "end_line": 0}, b"x"),
        ({"kind": "text", "truncated": False, "start_line": 1, "end_line": 2, "total_lines": 1}, b"x"),
        ({"kind": "text", "truncated": False, "start_line": 1, "end_line": 2, "next_offset": 7}, b"x"),
        ({"kind": "text", "truncated": False, "start_line": True, "end_line": 1}, b"x"),
        ({"kind": "text", "truncated": 0, "start_line": 1, "end_line": 1}, b"x"),
        ({"kind": "text", "truncated": False, "start_line": 1, "end_line": 1}, b"x" * 600_000),
        ({"kind": "binary"}, b"x" * 600_000),
    ],
)
async def test_a_malformed_window_is_an_error(reply: dict[str, object], data: bytes) -> None:
    result = await FileOperations(HostileTransport(reply, data)).aread("/f")
    assert result.error
    assert result.file_data is None


@pytest.mark.timeout(10)
async def test_more_matches_than_there_may_be_are_refused_without_reading_them_all() -> None:
    """The attack: millions of tiny matches, to hold up the server's event loop."""
    one = b"a\x001:\n"
    for data in (one * (GREP_MATCHES + 1), one * (ANSWER_BYTES // len(one) + 1)):
        result = await FileOperations(HostileTransport({"truncated": False}, data)).agrep("x")
        assert result.error
    reply: dict[str, object] = {"truncated": False, "unreadable": 0}
    assert (await FileOperations(HostileTransport(reply, b"a\0" * (20 << 20))).aglob("*")).error
    assert (await FileOperations(HostileTransport({}, b"fa\0" * (15 << 20))).als("/")).error


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"a" * ANSWER_BYTES, id="no end of a path"),
        pytest.param(b"a\0" * (ANSWER_BYTES // 2), id="paths only"),
        pytest.param(b"a\0" + b"1" * (ANSWER_BYTES - 2), id="a number without end"),
        pytest.param(b"a\x001:" + b"x" * (ANSWER_BYTES - 4), id="a line without end"),
        pytest.param(b"a\x001:\n" + b"a" * (ANSWER_BYTES - 5), id="an end of something else"),
    ],
)
async def test_a_long_answer_without_sense_takes_no_longer_than_another(data: bytes) -> None:
    """The attack: an answer that a search for matches would begin to read anew at every byte, for hours."""
    assert (await FileOperations(HostileTransport({"truncated": False}, data)).agrep("x")).error


@settings(max_examples=300, database=None, deadline=None, derandomize=True)
@given(st.text("a0:\0\n\xb2", max_size=12).map(lambda text: text.encode("latin-1")))
async def test_matches_are_a_path_a_number_and_a_line(data: bytes) -> None:
    proper = re.fullmatch(rb"([^\0]+\0[0-9]{1,18}:[^\n]*\n)*", data)
    result = await FileOperations(HostileTransport({"truncated": False}, data)).agrep("x")
    assert bool(result.error) == (proper is None)
    assert proper is None or len(result.matches or []) == len(re.findall(rb"[^\0]+\0[0-9]+:[^\n]*\n", data))


async def test_downloads_are_what_was_asked_for_and_no_more() -> None:
    for reply, data in (
        ({"files": [1]}, b"xx"),
        ({"files": [3]}, b"xx"),
        ({"files": [-1]}, b""),
        ({"files": [1, 1]}, b"xx"),
        ({"files": [DOWNLOAD_LIMIT_BYTES + 1]}, bytes(DOWNLOAD_LIMIT_BYTES + 1)),
    ):
        [answer] = await FileOperations(HostileTransport(reply, data)).adownload_files(["/f"])
        assert answer.error
        assert answer.content is None


async def test_a_deletion_that_never_ends_is_given_up() -> None:
    transport = HostileTransport({"done": False}, b"")
    assert (await FileOperations(transport).adelete("/f")).error
    assert transport.calls < 100


async def test_no_answer_at_all_is_for_the_caller() -> None:
    class Silent(HostileTransport):
        async def call(self, *_: object, **__: object) -> tuple[dict[str, object], bytes]:
            raise NoAnswerError

    with pytest.raises(NoAnswerError):
        await FileOperations(Silent({}, b"")).aread("/f")
