"""What a container is made of, and what tells one from another."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from sandbox.image import image_tag
from sandbox.instance import instance_id
from sandbox.settings import SandboxSettings
from sandbox.spec import SPEC_LABEL, ContainerSpec, container_name, container_spec
from storage.ids import SessionId

SESSION = SessionId("alice", UUID(int=1))


def spec(image: str = "image", uid: int = 200_000, **settings: Any) -> ContainerSpec:
    return container_spec(
        SandboxSettings(**settings), image, "instance", SESSION, Path("/source"), "program", uid=uid, gid=uid
    )


@pytest.mark.parametrize(
    "changed", [{"image": "other"}, {"uid": 200_001}, {"sandbox_memory_mb": 64}, {"sandbox_pids": 32}]
)
def test_a_container_made_with_other_settings_is_told_from_ours(changed: dict[str, Any]) -> None:
    assert spec().labels[SPEC_LABEL] == spec().labels[SPEC_LABEL]
    assert spec(**changed).labels[SPEC_LABEL] != spec().labels[SPEC_LABEL]


def test_two_installations_name_the_same_threads_container_differently() -> None:
    assert container_name("one", SESSION) != container_name("two", SESSION)


def test_a_data_directory_has_one_instance_for_all_processes_and_for_ever(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        seen = set(pool.map(instance_id, [tmp_path / "new"] * 8))
    assert seen == {instance_id(tmp_path / "new")}
    assert len(seen.pop()) == 10
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["instance"]
    assert instance_id(tmp_path / "new") != instance_id(tmp_path / "another")


def test_the_image_is_named_after_its_base() -> None:
    assert image_tag("debian:trixie-slim") == image_tag("debian:trixie-slim")
    assert image_tag("debian:trixie-slim") != image_tag("warren-base:trixie")


def test_a_network_cannot_be_asked_for() -> None:
    with pytest.raises(ValidationError):
        SandboxSettings.model_validate({"sandbox_network": "host"})


@pytest.mark.parametrize("network", ["none", "egress"])
def test_no_setting_gives_a_container_a_network_and_only_egress_tells_of_the_proxy(network: str) -> None:
    config = spec(sandbox_network=network).config
    assert config["NetworkDisabled"] is True
    assert config["HostConfig"]["NetworkMode"] == "none"
    told = {variable.partition("=")[0].lower() for variable in config["Env"]}
    assert ({"https_proxy", "http_proxy", "no_proxy"} <= told) is (network == "egress")


def test_the_runtime_is_the_engines_own_unless_one_is_named() -> None:
    assert "Runtime" not in spec().config["HostConfig"]
    assert spec(sandbox_runtime="runsc").config["HostConfig"]["Runtime"] == "runsc"
