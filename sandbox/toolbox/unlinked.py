"""Files that were deleted but are still open: they take space, and no look at the directories shows them."""

# pathlib would cost memory in every sandbox:
# ruff: noqa: PTH116, PTH208

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress

TYPE_CHECKING = False  # importing `typing` would cost memory
if TYPE_CHECKING:
    from typing import Any

SMALLEST_BYTES = 4096

_LONGEST_SECONDS = 1
_BLOCK_BYTES = 512  # the unit of st_blocks


def measure_unlinked(_: dict[str, Any], __: bytes = b"") -> tuple[dict[str, Any], bytes]:
    """Return as `{"bytes": n}` what deleted files of the working directory's file system still take.

    Each counts SMALLEST_BYTES at least: it has an inode, of which there are not as many as one likes either.

    A process that has made itself unreadable is not seen.
    """
    deadline = time.monotonic() + _LONGEST_SECONDS
    device = os.stat(".").st_dev
    found: dict[int, int] = {}
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        if time.monotonic() > deadline:
            break
        with suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                if time.monotonic() > deadline:
                    break
                with suppress(OSError):
                    status = os.stat(f"/proc/{pid}/fd/{descriptor}")
                    if not status.st_nlink and status.st_dev == device and stat.S_ISREG(status.st_mode):
                        found[status.st_ino] = max(status.st_blocks * _BLOCK_BYTES, SMALLEST_BYTES)
    return {"bytes": sum(found.values())}, b""
