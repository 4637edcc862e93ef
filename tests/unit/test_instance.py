"""The name of an installation."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.instance import instance_id


@pytest.fixture
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_everybody_may_read_which_installation_it_is(tmp_path: Path, strict_umask: None) -> None:
    assert instance_id(tmp_path) == instance_id(tmp_path)
    assert (tmp_path / "instance").stat().st_mode & 0o777 == 0o644
