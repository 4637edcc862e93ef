"""Frames: what is packed is read back however it is cut, and what is none is refused before it is held."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.toolbox.frames import (
    DATA,
    PAYLOAD_BYTES,
    RESULT,
    FrameError,
    FrameReader,
    pack,
    pack_json,
    parse_json,
)


@given(
    frames=st.lists(st.tuples(st.integers(1, 8), st.integers(0, (1 << 32) - 1), st.binary(max_size=300))),
    cut=st.integers(1, 50),
)
def test_frames_are_read_back_however_they_are_cut(frames: list[tuple[int, int, bytes]], cut: int) -> None:
    wire = b"".join(pack(*frame) for frame in frames)
    reader = FrameReader()
    read = [frame for start in range(0, len(wire), cut) for frame in reader.feed(wire[start : start + cut])]
    assert read == frames


@given(st.binary(max_size=2000))
def test_any_bytes_are_frames_or_refused(garbage: bytes) -> None:
    try:
        frames = FrameReader().feed(garbage)
    except FrameError:
        return
    assert sum(len(payload) + 9 for _, _, payload in frames) <= len(garbage)


@pytest.mark.parametrize("length", [PAYLOAD_BYTES + 1, 1 << 31, (1 << 32) - 1])
def test_a_length_beyond_the_limit_is_refused_before_anything_of_it_comes(length: int) -> None:
    with pytest.raises(FrameError):
        FrameReader().feed(struct.pack(">IBI", length, DATA, 1))


@pytest.mark.parametrize("kind", [0, 14, 255])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    with pytest.raises(FrameError):
        FrameReader().feed(struct.pack(">IBI", 0, kind, 1))


def test_the_longest_frame_passes_and_a_longer_one_is_not_made() -> None:
    assert FrameReader().feed(pack(DATA, 1, bytes(PAYLOAD_BYTES)))[0][2] == bytes(PAYLOAD_BYTES)
    with pytest.raises(FrameError):
        pack(DATA, 1, bytes(PAYLOAD_BYTES + 1))


def test_half_a_surrogate_pair_survives_json() -> None:
    [(_, _, payload)] = FrameReader().feed(pack_json(RESULT, 1, {"name": "\udcff"}))
    assert parse_json(payload) == {"name": "\udcff"}


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b'{"a":' * 100_000, id="nested without end"),
        pytest.param(b'{"a":' + b"9" * 100_000 + b"}", id="a number that takes for ever to read"),
        pytest.param(json.dumps({"a": 1}).encode()[:-1], id="cut off"),
    ],
)
def test_what_is_no_json_object_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameError):
        parse_json(payload)
