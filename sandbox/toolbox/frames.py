"""What goes over the channel: frames of a length, a kind, a request's id and a payload. For both sides.

A request is REQUEST, whose payload is JSON `{"operation": str, "args": {...}, "size": n, "confirm": bool}`,
then n bytes in DATA frames. With `confirm` BEGUN tells that it is now being done. The answer is any number of
DATA frames and then RESULT (a JSON object) or FAILURE (JSON `{"message": str}`): exactly one of the two for
every request, also for one that was cancelled. PING is answered by PONG.

With egress the toolbox may ask as well, for connections, with numbers of its own: DIAL, whose payload is
`host:port`, is answered by CONNECTED, or by CLOSE with JSON `{"status": n, "message": str}`. Then STREAM
frames go either way, WINDOW_BYTES at most until a CREDIT says how many of them have been passed on. CLOSE is
the end: each side sends one, and nothing after it; when both have, the number is free.
"""

from __future__ import annotations

import json
import struct

REQUEST, DATA, RESULT, FAILURE, CANCEL, PING, PONG, BEGUN = range(1, 9)
DIAL, CONNECTED, STREAM, CREDIT, CLOSE = range(9, 14)

CHUNK_BYTES = 1 << 16
"""How much of a large body goes into one frame: small answers wait for one such frame, never for a body."""

PAYLOAD_BYTES = 1 << 20
"""The largest payload of a frame. A longer one is an attack or a mistake, and ends the connection."""

STREAMS = 32
"""How many streams one sandbox may have. npm opens 15 connections at once, pip and git a few."""

WINDOW_BYTES = 2 * CHUNK_BYTES
"""How much of a stream may be on its way, each way: what a slow side makes either of them hold."""

TARGET_BYTES = 300
"""The longest `host:port`: the name of a host has 253 characters at most."""

_HEADER = struct.Struct(">IBI")
_AMOUNT = struct.Struct(">I")


class FrameError(Exception):
    """What came in is not a sequence of frames."""


def pack(kind: int, request: int, payload: bytes = b"") -> bytes:
    """Make one frame.

    Raises:
        FrameError: the payload is too long for a frame.
    """
    if len(payload) > PAYLOAD_BYTES:
        raise FrameError("too long for a frame")
    return _HEADER.pack(len(payload), kind, request) + payload


def pack_json(kind: int, request: int, value: dict[str, object]) -> bytes:
    """Make one frame of a JSON object. It is ASCII, so half a surrogate pair passes.

    Raises:
        FrameError: it is too long for a frame.
    """
    return pack(kind, request, json.dumps(value).encode("ascii"))


def pack_amount(kind: int, number: int, amount: int) -> bytes:
    """Make one frame of a number of bytes."""
    return pack(kind, number, _AMOUNT.pack(amount))


def parse_amount(payload: bytes) -> int:
    """Read a number of bytes: one at least.

    Raises:
        FrameError: it is none.
    """
    amount: int = _AMOUNT.unpack(payload)[0] if len(payload) == _AMOUNT.size else 0
    if not amount:
        raise FrameError("not an amount")
    return amount


def parse_json(payload: bytes) -> dict[str, object]:
    """Read a JSON object that anybody may have written.

    Raises:
        FrameError: it is none.
    """
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise FrameError("not JSON") from error
    if not isinstance(value, dict):
        raise FrameError("not a JSON object")
    return value


class FrameReader:
    """Makes frames of bytes as they come. It holds less than one frame and what was fed last."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, received: bytes) -> list[tuple[int, int, bytes]]:
        """Take some bytes and return the frames that are complete: kind, request id, payload.

        Raises:
            FrameError: a frame is too long or of no known kind. The reader is of no use after that.
        """
        buffer = self._buffer
        buffer += received
        frames = []
        position = 0
        while len(buffer) - position >= _HEADER.size:
            length, kind, request = _HEADER.unpack_from(buffer, position)
            if length > PAYLOAD_BYTES or not REQUEST <= kind <= CLOSE:
                raise FrameError("not a frame")
            start = position + _HEADER.size
            if len(buffer) - start < length:
                break
            position = start + length
            frames.append((kind, request, bytes(buffer[start:position])))
        del buffer[:position]
        return frames
