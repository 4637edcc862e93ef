"""What Warren changes in the platform, it changes in releases that were read, and in no others."""

import tomllib
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from server.runtime import KNOWN_API, KNOWN_RUNTIME, is_known

UPSTREAM_CHANGED = (
    "Adapt what the other tests say has changed, and then what server/runtime.py knows. It is now "
)
UNKNOWN = "0.99.0"


@pytest.mark.parametrize(
    ("package", "known"), [("langgraph-api", KNOWN_API), ("langgraph-runtime-inmem", KNOWN_RUNTIME)]
)
def test_the_locked_releases_are_those_that_were_read(package: str, known: str) -> None:
    lock = tomllib.loads((Path(__file__).parents[2] / "uv.lock").read_text())
    (version,) = (found["version"] for found in lock["package"] if found["name"] == package)
    assert version.startswith(known), UPSTREAM_CHANGED + version


@pytest.fixture(autouse=True)
def _platform(ops: object) -> None:
    """Have the platform's settings in the environment."""


def test_known_releases_of_a_known_shape_are_known() -> None:
    with capture_logs() as logs:
        assert is_known(lambda one, other: (one, other) == (1, 2), 1, 2, otherwise="It stays slow")
    assert logs == []


@pytest.mark.parametrize("package", ["langgraph_api", "langgraph_runtime_inmem"])
@pytest.mark.parametrize("version", [UNKNOWN, "0.160.1", "0.360.1", "1.0.0"])
def test_another_release_is_not(package: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{package}.__version__", version)
    with capture_logs() as logs:
        assert not is_known(lambda: True, otherwise="It stays slow")
    (warning,) = logs
    assert "It stays slow" in warning["event"]
    assert version in warning["found"]
    assert warning["see"] == __name__


def test_the_in_memory_runtimes_release_does_not_matter_where_another_one_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LANGGRAPH_RUNTIME_EDITION", "postgres")
    monkeypatch.setattr("langgraph_runtime_inmem.__version__", UNKNOWN)
    assert is_known(lambda: True, otherwise="It stays slow")


@pytest.mark.parametrize("part", [object(), None])
def test_a_part_that_is_missing_or_different_makes_it_unknown(part: object) -> None:
    assert not is_known(lambda found: found.parameters == [], part, otherwise="It stays slow")
    assert not is_known(lambda found: found is not part, part, otherwise="It stays slow")
