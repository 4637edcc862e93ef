"""Write files. Standard input: the length of a JSON list of [path, size], a newline, the list, the contents.

Prints a JSON list: for each file null, or what went wrong: an errno's name, or its text if it has none.
"""

# pathlib would double the time it takes to start, and standard output is the answer:
# ruff: noqa: PTH103, PTH120, PTH123, T201

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from typing import BinaryIO

CHUNK = 1 << 16


def write(path: str, size: int, source: BinaryIO) -> str | None:
    """Write one file and always take `size` bytes off `source`."""
    left = size
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        # Without O_NONBLOCK a named pipe that nobody reads would hold this up for ever.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        with open(descriptor, "wb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return "EINVAL"
            file.truncate()
            while left:
                chunk = source.read(min(left, CHUNK))
                if not chunk:
                    return "the data ended early"
                left -= len(chunk)
                file.write(chunk)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0) or str(error)
    except ValueError:  # a NUL, or half a surrogate pair, in the path
        return "EINVAL"
    finally:
        while left and (chunk := source.read(min(left, CHUNK))):
            left -= len(chunk)
    return None


def main() -> None:
    source = sys.stdin.buffer
    files = json.loads(source.read(int(source.readline())))
    print(json.dumps([write(path, size, source) for path, size in files]))


if __name__ == "__main__":
    main()
