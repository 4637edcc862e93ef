"""Hashes keep every byte of a password and tell nothing about who exists."""

import pytest

from auth.passwords import hash_password, verify_password


async def test_a_password_matches_its_own_hash_only() -> None:
    stored = await hash_password("correct horse")
    assert await verify_password("correct horse", stored)
    assert not await verify_password("correct horsf", stored)


@pytest.mark.parametrize(
    ("password", "other"), [("x" * 72 + "a", "x" * 72 + "b"), ("a\x00b-----", "a\x00c-----")]
)
async def test_bytes_after_the_72nd_or_after_a_nul_count(password: str, other: str) -> None:
    stored = await hash_password(password)
    assert await verify_password(password, stored)
    assert not await verify_password(other, stored)


async def test_without_a_stored_hash_the_answer_is_no() -> None:
    assert not await verify_password("correct horse", None)
