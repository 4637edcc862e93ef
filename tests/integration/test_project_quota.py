"""Hard limits by the file system, with a kernel and disks that have them, which this machine's may not.

The kernel is a User Mode Linux, a program like any other. It sees this machine's files; its disk is a file.
"""

import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import SandboxError
from sandbox.host import apt_install, can_install
from server.serve import PROJECT, say
from tests.integration import quota_guest
from tests.integration.quota_guest import MIB, MOST

DISK_BYTES = 320 * MIB  # less, and mkfs.xfs refuses
PACKAGES = {"linux.uml": "user-mode-linux", "mkfs.xfs": "xfsprogs", "mkfs.ext4": "e2fsprogs"}
WITH_QUOTAS = {
    "xfs": ["mkfs.xfs", "-q"],
    "ext4": ["mkfs.ext4", "-q", "-O", "project,quota", "-E", "quotatype=prjquota"],
}
WITHOUT = {"xfs": ["mkfs.xfs", "-q"], "ext4": ["mkfs.ext4", "-q"]}
OUT_OF_SPACE = {"xfs": "ENOSPC", "ext4": "EDQUOT"}


@pytest.fixture(scope="module", params=WITH_QUOTAS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def seen(kind: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    _require_programs()
    return _guest(kind, WITH_QUOTAS[kind], "prjquota", tmp_path_factory.mktemp("disk"))


@lru_cache
def _require_programs() -> None:
    if os.geteuid() != 0 or platform.machine() != "x86_64":
        pytest.skip("User Mode Linux runs on x86-64 only, and its disk is root's")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program, path=path)]
    if missing and not can_install():
        pytest.skip(f"needs {', '.join(missing)}")
    if missing:
        try:
            asyncio.run(apt_install(missing, say))
        except SandboxError as error:
            pytest.skip(f"this system has no {', '.join(missing)}: {error}")


def _guest(kind: str, make: list[str], options: str, place: Path) -> dict[str, Any]:
    """Have a new disk tried, and return what was seen."""
    disk = place / "disk"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    subprocess.run([*make, disk], check=True, env=environment)
    ended = subprocess.run(
        [
            *("linux.uml", "mem=256M", "quiet", f"ubd0={disk}", "root=/dev/root", "rootfstype=hostfs"),
            *("rootflags=/", "ro", "con=null", "con0=fd:0,fd:1", f"uml_dir={place}"),
            *(f"init={sys.executable}", f"PYTHONPATH={PROJECT}", "PYTHONDONTWRITEBYTECODE=1"),
            *("--", quota_guest.__file__, kind, options),
        ],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )
    told = [line for line in ended.stdout.splitlines() if line.startswith("SEEN ")]
    assert told, ended.stdout
    found: dict[str, Any] = json.loads(told[0].removeprefix("SEEN "))
    return found


def test_a_workspace_takes_no_more_than_it_may_not_even_for_a_moment(kind: str, seen: dict[str, Any]) -> None:
    assert seen["has_quotas"]
    assert seen["refusal"] == OUT_OF_SPACE[kind]
    assert MOST - MIB < seen["written"] <= MOST


def test_nor_in_files_that_are_deleted_and_still_open(kind: str, seen: dict[str, Any]) -> None:
    assert seen["after_deletion_still_open"] == OUT_OF_SPACE[kind]


def test_nor_more_names(kind: str, seen: dict[str, Any]) -> None:
    assert seen["refused_name"] == OUT_OF_SPACE[kind]
    assert seen["names"] <= MOST // 4096


def test_another_workspace_has_room_of_its_own(seen: dict[str, Any]) -> None:
    assert seen["are_apart"]
    assert seen["bobs"] == 4 * MIB


def test_a_command_cannot_have_another_project_pay_where_the_kernel_alone_would_let_it(
    seen: dict[str, Any],
) -> None:
    assert seen["moved_away"] == ""
    assert seen["moved_away_by_a_command"] == "ENOTSUP"


def test_the_limit_is_kept_when_the_sandbox_is_made_again_and_goes_with_the_workspace(
    seen: dict[str, Any],
) -> None:
    assert seen["is_lasting"]
    assert seen["left"] == [".trash", "alice", "bob"]
    assert seen["limits_left"] == []


def test_what_was_there_before_is_left_as_it_was(seen: dict[str, Any]) -> None:
    assert seen["older_has_none"]
    assert seen["in_an_operators_project"] == {"project": 7, "is_removed": True}


def test_without_quotas_workspaces_are_made_all_the_same(
    kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _require_programs()
    seen = _guest(kind, WITHOUT[kind], "noquota", tmp_path_factory.mktemp("disk"))
    assert not seen["has_quotas"]
    assert seen["written"] > MOST
    assert seen["left"] == [".trash", "alice", "bob"]
