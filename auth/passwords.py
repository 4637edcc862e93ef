"""Hashing passwords: bcrypt over a pre-hash, off the event loop."""

import asyncio
import base64
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import bcrypt

from auth.errors import BusyError

MIN_LENGTH = 8
"""In characters; NIST SP 800-63B's floor."""
MAX_BYTES = 1024
"""In UTF-8: long enough for any passphrase, short enough to hash at no cost."""

_ROUNDS = 12
_DUMMY_HASH = b"$2b$12$j9myxr0Kcl0KPFITx7O1.uSZNtiAAhnRXZ0MSEVVdqyEnEMLNUUs2"  # of random bytes, not kept
_MAX_WAITING = 100
_waiting = 0

Result = TypeVar("Result")


async def hash_password(password: str) -> str:
    """Return a salted hash to be stored.

    Raises:
        BusyError: if too many hashes are waiting already.
    """
    hashed = await _run(bcrypt.hashpw, _prehash(password), bcrypt.gensalt(_ROUNDS))
    return hashed.decode()


async def verify_password(password: str, stored: str | None) -> bool:
    """Tell whether `password` is the one that `stored` was made from.

    Without a stored hash, as for an unknown user, it takes the same time and the answer is no.

    Raises:
        BusyError: if too many hashes are waiting already.
    """
    matches = await _run(bcrypt.checkpw, _prehash(password), stored.encode() if stored else _DUMMY_HASH)
    return matches and stored is not None


def _prehash(password: str) -> bytes:
    # bcrypt ignores what comes after 72 bytes and stops at a NUL; base64 of a digest has neither.
    return base64.b64encode(hashlib.sha256(password.encode()).digest())


async def _run(work: Callable[[bytes, bytes], Result], password: bytes, salt_or_hash: bytes) -> Result:
    global _waiting  # noqa: PLW0603 - one queue per process
    if _waiting >= _MAX_WAITING:
        raise BusyError
    _waiting += 1
    try:
        return await asyncio.get_running_loop().run_in_executor(_hashers(), work, password, salt_or_hash)
    finally:
        _waiting -= 1


@lru_cache
def _hashers() -> ThreadPoolExecutor:
    # A hash fills a core for a quarter of a second: at most one per core, in threads of its own.
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="bcrypt")
