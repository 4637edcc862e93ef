"""Setting up: the parts are made at once, and one that fails ends the others."""

import asyncio
import time

import pytest

from server import serve
from server.serve import SetupError, set_up


def test_a_part_that_fails_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that cannot be reached is told at once, and not when an image has been built for minutes."""
    ended = []

    async def build() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("image")

    async def fail() -> None:
        await asyncio.sleep(0)
        raise SetupError("no database")

    monkeypatch.setattr(serve, "_set_up_sandboxes", build)
    monkeypatch.setattr(serve, "_set_up_postgres", fail)
    monkeypatch.setattr(serve, "_set_up_key", lambda: None)
    began = time.monotonic()
    with pytest.raises(SetupError, match="no database"):
        set_up()
    assert ended == ["image"]
    assert time.monotonic() - began < 30
