"""The archive that a base image is imported from."""

import asyncio
import io
import os
import tarfile
from pathlib import Path

import pytest

from sandbox.base_image import _archive
from sandbox.errors import SandboxError


async def test_the_archive_holds_the_directorys_content(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "motd").write_text("hello")
    packed = b"".join([chunk async for chunk in _archive(tmp_path)])
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        assert archive.extractfile("./etc/motd").read() == b"hello"  # type: ignore[union-attr]


async def test_an_archive_that_is_not_read_to_its_end_is_given_up(tmp_path: Path) -> None:
    """An engine that refuses the image in the middle must not leave the start waiting for ever."""
    (tmp_path / "large").write_bytes(os.urandom(8 << 20))
    archive = _archive(tmp_path)
    assert await anext(archive)
    await asyncio.wait_for(archive.aclose(), 10)  # type: ignore[attr-defined]


async def test_a_directory_that_cannot_be_packed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SandboxError):
        [chunk async for chunk in _archive(tmp_path / "missing")]
