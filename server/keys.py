"""Routes: a user's API keys."""

from datetime import datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, HTTPException, Request
from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from auth import keys
from auth.errors import InvalidTokenError, TooManyKeysError
from auth.keys import ApiKey
from server.accounts import LoggedInCaller, unauthorized
from server.bodies import body_schema, read_json
from server.refusals import refusals
from server.requests import address_of
from storage import audit

router = APIRouter(prefix="/api/auth/keys", tags=["API keys"], responses=refusals(401, 403))

_MAX_NAME_LENGTH = 100
_MAX_DAYS = 3650


def _check_printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("only printable characters")
    return name


class KeyRequest(BaseModel):
    """What the user calls the key, and how long it is good; without a number of days, until it is deleted."""

    name: Annotated[
        str,
        StringConstraints(strip_whitespace=True, min_length=1, max_length=_MAX_NAME_LENGTH),
        AfterValidator(_check_printable),
    ]
    expires_in_days: Annotated[int, Field(strict=True, ge=1, le=_MAX_DAYS)] | None = None


class KeyInfo(BaseModel):
    """What is known of a key. Times are ISO 8601; `last_used_at` is right to the minute."""

    id: UUID
    name: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


class NewKey(KeyInfo):
    """A key as it is shown once."""

    key: str


class KeyDeleted(BaseModel):
    """The key lets nobody in any more."""

    success: Literal[True] = True
    message: str


@router.post("", openapi_extra=body_schema(KeyRequest), responses=refusals(409, 422))
async def create_key(request: Request, caller: LoggedInCaller) -> NewKey:
    """Make an API key. It is shown in this answer and never again; the server keeps only a hash."""
    wanted = await read_json(request, KeyRequest)
    lifetime = timedelta(days=wanted.expires_in_days) if wanted.expires_in_days is not None else None
    try:
        key, text = await keys.create(caller.username, caller.token_version, wanted.name, lifetime)
    except TooManyKeysError as error:
        raise HTTPException(409, str(error)) from None
    except InvalidTokenError as error:
        raise unauthorized(error) from None
    await _audit("key_created", request, caller.username, key)
    return NewKey(**_info(key).model_dump(), key=text)


@router.get("")
async def list_keys(caller: LoggedInCaller) -> list[KeyInfo]:
    """List the caller's API keys, the newest first, without the keys themselves."""
    return [_info(key) for key in await keys.keys_of(caller.username)]


@router.delete("/{key_id}", responses=refusals(404, 422))
async def delete_key(request: Request, key_id: UUID, caller: LoggedInCaller) -> KeyDeleted:
    """Revoke an API key."""
    deleted = await keys.delete(caller.username, key_id)
    if deleted is None:
        raise HTTPException(404, f"There is no API key {key_id}.")
    await _audit("key_deleted", request, caller.username, deleted)
    return KeyDeleted(message="Deleted")


async def _audit(event: str, request: Request, username: str, key: ApiKey) -> None:
    details = {"key_id": str(key.key_id), "name": key.name}
    await audit.record(event, username, address=address_of(request.scope), details=details)


def _info(key: ApiKey) -> KeyInfo:
    return KeyInfo(
        id=key.key_id,
        name=key.name,
        created_at=key.created_at,
        expires_at=key.expires_at,
        last_used_at=key.last_used_at,
    )
