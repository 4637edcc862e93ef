"""Hard limits on workspaces, where the file system keeps project quotas: XFS or ext4 with `prjquota`.

A project is a number that a directory hands on to all that is made in it. The kernel counts what each project
takes, and refuses what would be more. But owners of files may change their project: commands are kept from
that by `sandbox.toolbox.seccomp`, which not all code in a sandbox has to obey. So this comes on top of
measuring, from which nothing hides, and does not take its place.
"""

import ctypes
import errno
import fcntl
import logging
import os
import secrets
import struct
from contextlib import suppress
from pathlib import Path

from sandbox.directories import DIRECTORY

logger = logging.getLogger(__name__)

# The newer form of quotactl, which takes a descriptor in place of a device's path. The number is the same on
# every processor: asm-generic/unistd.h, Linux 5.14.
_QUOTACTL_FD = 443

# From linux/quota.h and linux/dqblk_xfs.h, whose commands ext4 understands as well.
_OF_PROJECTS = 2
_GET_QUOTA, _SET_LIMITS, _GET_STATE = (((ord("X") << 8) + number) << 8 | _OF_PROJECTS for number in (3, 4, 5))
_PROJECTS_ENFORCED = 1 << 5
_STATE = struct.Struct("=2xH252x")  # of fs_quota_stat its flags, and more room than the rest needs
_QUOTA = struct.Struct("=bbHI6Q56x")  # fs_disk_quota
_VERSION, _PROJECT_QUOTA = 1, 2
_HARD_LIMITS = 1 << 1 | 1 << 3  # of names, and of blocks
_BLOCK_BYTES = 512

# From linux/fs.h: struct fsxattr, and the calls that read and write it.
_ATTRIBUTES = struct.Struct("=5I8x")
_GET_ATTRIBUTES, _SET_ATTRIBUTES = 0x801C581F, 0x401C5820
_PROJECT = 3  # which of its fields
_HANDED_ON = 0x200

_OURS = range(1 << 30, 1 << 31)
"""Projects of Warren's own. Docker and administrators count from 1; that a number is drawn from so many also
keeps hostile code from finding somebody else's."""

_DRAWS = 8

_CANNOT = frozenset({errno.EPERM, errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.ESRCH, errno.EINVAL})
"""How a file system without projects answers, a kernel without quotas, or either to who is not root."""

_libc = ctypes.CDLL(None, use_errno=True)


def has_quotas(directory: Path) -> bool:
    """Tell whether the file system of a directory keeps project quotas, and this process may set them."""
    try:
        descriptor = os.open(directory, DIRECTORY)
    except OSError:
        return False
    try:
        _read_quota(descriptor, _OURS[0])
        return _is_enforced(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def limit(directory: int, most: int, most_names: int, *, is_new: bool) -> bool:
    """Limit what a workspace takes on the disk with all that is in it.

    One that was made before there were quotas stays without: what is in it belongs to no project. So does
    one in a directory that an administrator has put into a project.

    Args:
        directory: a descriptor that it is open on.
        most: bytes.
        most_names: files and directories.
        is_new: this process has just made it, so that there is nothing in it and no other process to ask.

    Returns:
        whether the limit is in force. If not, for whatever reason, the workspace can be used all the same.
    """
    try:
        if not _is_enforced(directory):
            return False
        project = project_of(directory) or (is_new and _put_into_project(directory))
        if not project:
            return False
        _write_limits(directory, project, most, most_names)
    except OSError as error:
        if error.errno not in _CANNOT:
            logger.warning("A workspace has no project quota: %s", error)
        return False
    return True


def project_of(directory: int) -> int | None:
    """Return the project of Warren's that a directory is in, given a descriptor; None if it is in none."""
    with suppress(OSError):
        project = _read_attributes(directory)[_PROJECT]
        return project if project in _OURS else None
    return None


def release(somewhere: int, project: int) -> None:
    """Forget the limits of a project.

    Args:
        somewhere: a descriptor that is open on anything in the file system.
        project: one whose workspace is gone. If hostile code has had that take somebody else's number, that
            one is measured only, until its sandbox is made again.
    """
    with suppress(OSError):
        _write_limits(somewhere, project, 0, 0)


def _put_into_project(directory: int) -> int | None:
    attributes = _read_attributes(directory)
    if attributes[_PROJECT]:
        return None
    for _ in range(_DRAWS):
        project = secrets.choice(_OURS)
        if not any(_read_quota(directory, project)):
            attributes[0] |= _HANDED_ON
            attributes[_PROJECT] = project
            fcntl.ioctl(directory, _SET_ATTRIBUTES, _ATTRIBUTES.pack(*attributes))
            return project
    return None


def _read_attributes(directory: int) -> list[int]:
    return list(_ATTRIBUTES.unpack(fcntl.ioctl(directory, _GET_ATTRIBUTES, bytes(_ATTRIBUTES.size))))


def _is_enforced(descriptor: int) -> bool:
    state = ctypes.create_string_buffer(_STATE.size)
    _quotactl(descriptor, _GET_STATE, 0, state)
    (flags,) = _STATE.unpack(state.raw)
    return bool(flags & _PROJECTS_ENFORCED)


def _read_quota(descriptor: int, project: int) -> tuple[int, int]:
    """Return how many blocks and names a project has."""
    quota = ctypes.create_string_buffer(_QUOTA.size)
    try:
        _quotactl(descriptor, _GET_QUOTA, project, quota)
    except FileNotFoundError:
        return 0, 0
    *_, blocks, names = _QUOTA.unpack(quota.raw)
    return blocks, names


def _write_limits(descriptor: int, project: int, most: int, most_names: int) -> None:
    """Set a project's limits, of bytes and names; 0 is none."""
    limits = most // _BLOCK_BYTES, 0, most_names, 0
    quota = _QUOTA.pack(_VERSION, _PROJECT_QUOTA, _HARD_LIMITS, project, *limits, 0, 0)
    _quotactl(descriptor, _SET_LIMITS, project, ctypes.create_string_buffer(quota, _QUOTA.size))


def _quotactl(descriptor: int, command: int, project: int, argument: "ctypes.Array[ctypes.c_char]") -> None:
    if _libc.syscall(_QUOTACTL_FD, descriptor, command, project, argument) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
