"""`.env.example` and the settings are one list, with one set of defaults."""

import os
import pwd
import re
import tomllib
from pathlib import Path
from typing import NoReturn

import pytest
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from agent.settings import AgentSettings
from auth.settings import AuthSettings
from sandbox.engine import docker_address
from sandbox.settings import SandboxSettings
from server import __version__
from server.settings import ServerSettings
from storage.settings import StorageSettings

PROJECT = Path(__file__).parent.parent.parent
ALL = [AgentSettings, AuthSettings, SandboxSettings, ServerSettings, StorageSettings]


def variables(settings: type[BaseSettings]) -> dict[str, str]:
    aliases = {"data_dir": "WARREN_DATA_DIR"}
    return {name: aliases.get(name, name.upper()) for name in settings.model_fields}


def examples() -> dict[str, str]:
    text = (PROJECT / ".env.example").read_text()
    return dict(re.findall(r"^# ([A-Z_]+)=(.*)$", text, re.MULTILINE))


def test_every_setting_is_in_the_example_and_nothing_else_is() -> None:
    assert set(examples()) == {name for settings in ALL for name in variables(settings).values()}


@pytest.mark.parametrize("settings", ALL)
def test_the_examples_values_are_the_defaults(
    settings: type[BaseSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = examples()
    for name in variables(settings).values():
        monkeypatch.delenv(name, raising=False)
    without = settings()
    for name, variable in variables(settings).items():
        if variable == "WARREN_DATA_DIR" or not shown[variable]:
            continue  # the user's own directory, or no default to show
        monkeypatch.setenv(variable, shown[variable])
        assert getattr(settings(), name) == getattr(without, name), variable


@pytest.mark.parametrize("settings", ALL)
def test_every_setting_says_in_the_source_what_it_is_for(settings: type[BaseSettings]) -> None:
    source = (PROJECT / f"{settings.__module__.replace('.', '/')}.py").read_text()
    for name in settings.model_fields:
        assert re.search(rf'^    {name}:.*?^    """\w', source, re.MULTILINE | re.DOTALL), name


def test_the_package_has_one_version() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert project["project"]["version"] == __version__


@pytest.mark.parametrize("variable", ["WARREN_DATA_DIR", "WORKSPACE_ROOT", "WORKSPACE_ROOT_ON_DOCKER_HOST"])
@pytest.mark.parametrize("path", ["relative", "./here", "~nobody-of-that-name/x"])
def test_a_directory_is_named_by_its_whole_path(
    variable: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, path)
    with pytest.raises(ValidationError, match=re.escape(path)):
        (StorageSettings if variable == "WARREN_DATA_DIR" else SandboxSettings)()


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {"HOME": "/home/x", "WARREN_DATA_DIR": "~/d", "WORKSPACE_ROOT": "~/w"}.items():
        monkeypatch.setenv(variable, value)
    assert StorageSettings().data_dir == Path("/home/x/d")
    assert SandboxSettings().workspace_root == Path("/home/x/w")


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a user whom this machine does not know, as a container's often is."""
    for variable in ("HOME", "WARREN_DATA_DIR", "DOCKER_HOST"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)

    def unknown(_: int) -> NoReturn:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_directory_the_data_directory_has_to_be_named() -> None:
    with pytest.raises(ValidationError, match="no home directory"):
        StorageSettings()
    assert StorageSettings(data_dir=Path("/srv/warren")).data_dir == Path("/srv/warren")


@pytest.mark.usefixtures("homeless")
def test_without_a_home_directory_an_engine_is_looked_for_elsewhere() -> None:
    assert docker_address().startswith("unix:///")
