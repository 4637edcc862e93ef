"""The key that signs access tokens."""

import os
import secrets
from functools import lru_cache
from pathlib import Path

import auth.settings
import storage.settings
from auth.errors import WeakSecretKeyError
from storage.directories import make_passable

MIN_KEY_BYTES = 32
"""RFC 7518 §3.2: an HS256 key is at least as long as the hash's output."""

_PLACEHOLDER_WORDS = ("change", "secret", "example", "placeholder", "your-", "your_", "password", "default")
_MIN_DISTINCT_CHARACTERS = 10
_KEY_FILE = "secret-key"


@lru_cache
def signing_key() -> bytes:
    """Return the key of SECRET_KEY, or the one in the data directory, made at the first call.

    Reads or writes a small file; call it once at start, off the event loop.

    Raises:
        WeakSecretKeyError: if it, or one of the previous keys, is short or looks like one copied from an
            example.
    """
    previous_keys()
    configured = auth.settings.get_settings().secret_key
    key = configured.get_secret_value() if configured is not None else _read_or_create(_key_path())
    check_strength(key)
    return key.encode()


@lru_cache
def previous_keys() -> tuple[bytes, ...]:
    """Return the keys of SECRET_KEY_PREVIOUS, whose tokens are good until they expire.

    Raises:
        WeakSecretKeyError: as `signing_key`. Whoever guesses such a key makes tokens with it.
    """
    configured = auth.settings.get_settings().secret_key_previous
    if configured is None:
        return ()
    keys = [key.strip() for key in configured.get_secret_value().split(",") if key.strip()]
    for key in keys:
        check_strength(key, "SECRET_KEY_PREVIOUS")
    return tuple(key.encode() for key in keys)


def describe_key() -> str:
    """Say where the key comes from, having checked it if there is one, and without making one.

    Raises:
        WeakSecretKeyError: as `signing_key`.
    """
    previous_keys()
    if (configured := auth.settings.get_settings().secret_key) is not None:
        check_strength(configured.get_secret_value())
        return "from SECRET_KEY"
    path = _key_path()
    if not path.exists():
        return f"made at the first start, {path}"
    check_strength(path.read_text().strip())
    return str(path)


def check_strength(key: str, variable: str = "SECRET_KEY") -> None:
    """Refuse a key that could be guessed.

    Raises:
        WeakSecretKeyError: saying why, and never quoting the key.
    """
    advice = "Make one with: openssl rand -base64 48 - or unset SECRET_KEY to have one generated."
    if len(key.encode()) < MIN_KEY_BYTES:
        raise WeakSecretKeyError(f"{variable} is shorter than {MIN_KEY_BYTES} bytes. {advice}")
    if len(set(key)) < _MIN_DISTINCT_CHARACTERS or any(word in key.lower() for word in _PLACEHOLDER_WORDS):
        raise WeakSecretKeyError(f"{variable} looks like a placeholder. {advice}")


def _key_path() -> Path:
    return storage.settings.get_settings().data_dir / _KEY_FILE


def _read_or_create(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        pass
    make_passable(path.parent)
    # By chance and not by its pid, which a process in another container may have, too.
    temporary = path.with_name(f"{_KEY_FILE}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(48))
        file.flush()
        os.fsync(file.fileno())
    try:
        # A link, unlike a rename, never replaces a key that another process has just made.
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return path.read_text().strip()
