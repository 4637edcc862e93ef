"""Read files. Standard input: the length of a JSON list of paths on a line, then the list.

The argument is how many bytes may be read in all. Prints for each file a line of JSON, {"size": n} and then
its n bytes, or {"error": an errno's name}.
"""

# pathlib would double the time it takes to start, and standard output is the answer:
# ruff: noqa: PTH123

from __future__ import annotations

import errno
import json
import os
import stat
import sys


def read(path: str, limit: int) -> bytes:
    """Return up to `limit` bytes of a regular file; EFBIG when there are more."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, "")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, "")
    return content


def main() -> None:
    left = int(sys.argv[1])
    source, out = sys.stdin.buffer, sys.stdout.buffer
    for path in json.loads(source.read(int(source.readline()))):
        content = b""
        head: dict[str, int | str]
        try:
            content = read(path, left)
            head = {"size": len(content)}
        except OSError as error:
            head = {"error": errno.errorcode.get(error.errno or 0) or str(error)}
        except ValueError:  # a NUL, or half a surrogate pair, in the path
            head = {"error": "EINVAL"}
        left -= len(content)
        out.write(json.dumps(head).encode() + b"\n" + content)


if __name__ == "__main__":
    main()
