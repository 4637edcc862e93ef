"""Which installation this is, so that two on one engine never touch each other's containers."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from storage.directories import make_passable

_ID_BYTES = 5


def instance_id(data_dir: Path) -> str:
    """Return the name that this data directory was given when it was first used: 10 hexadecimal digits.

    It is drawn by chance, since another machine's data directory may have the same path and share the engine.
    Works on the file system.
    """
    path = data_dir / "instance"
    with suppress(FileNotFoundError):
        return path.read_text()
    make_passable(data_dir)
    draft = data_dir / f"instance.{secrets.token_hex(_ID_BYTES)}"
    draft.write_text(secrets.token_hex(_ID_BYTES))
    draft.chmod(0o644)  # whatever the umask
    try:
        # Unlike a rename this fails when another process was quicker, and then its name counts.
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    return path.read_text()
