"""Routes: registering and logging in."""

import unicodedata
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import APIRouter, HTTPException, Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, ValidationError

from auth import accounts
from auth.errors import BadCredentialsError, BusyError, UsernameTakenError
from auth.passwords import MAX_BYTES, MIN_LENGTH
from auth.tokens import issue_token
from server.bodies import as_request_error, body_schema, read_json
from storage.ids import is_username

router = APIRouter(prefix="/api/auth", tags=["accounts"])

_RETRY_AFTER_SECONDS = "2"


def _lowered(value: object) -> object:
    return value.lower() if isinstance(value, str) and value.isascii() else value


def _check_username(value: str) -> str:
    if not is_username(value):
        raise ValueError("1 to 32 characters of a-z 0-9 _ -, the first and the last a letter or digit")
    return value


def _check_password(value: str) -> str:
    # One password, however its accents were typed (NIST SP 800-63B).
    normalised = unicodedata.normalize("NFKC", value)
    try:
        size = len(normalised.encode())
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode text") from None
    if len(normalised) < MIN_LENGTH or size > MAX_BYTES:
        raise ValueError(f"at least {MIN_LENGTH} characters and at most {MAX_BYTES} bytes")
    return normalised


class Credentials(BaseModel):
    """A name and a password."""

    username: Annotated[str, BeforeValidator(_lowered), AfterValidator(_check_username)]
    password: Annotated[str, AfterValidator(_check_password)]


class LoginRequest(BaseModel):
    """What is tried at a login: whatever does not fit an account is simply wrong."""

    username: str
    password: str


class Registered(BaseModel):
    """The account's id is its name."""

    message: str
    user_id: str


class LoggedIn(BaseModel):
    """An OAuth2 bearer token and its lifetime in seconds."""

    access_token: str
    token_type: str
    expires_in: int


@router.post("/register", openapi_extra=body_schema(Credentials))
async def register(request: Request) -> Registered:
    """Create an account."""
    credentials = await read_json(request, Credentials)
    try:
        await accounts.register(credentials.username, credentials.password)
    except UsernameTakenError as error:
        raise HTTPException(400, str(error)) from None
    except BusyError as error:
        raise _busy(error) from None
    return Registered(message="User registered", user_id=credentials.username)


@router.post("/login", openapi_extra=body_schema(LoginRequest))
async def login(request: Request) -> LoggedIn:
    """Exchange a name and a password, as JSON or as an OAuth2 form, for a token."""
    attempt = await _read_login(request)
    try:
        username, password = _registrable(attempt)
        await accounts.check_password(username, password)
    except BadCredentialsError as error:
        raise HTTPException(401, str(error), headers={"WWW-Authenticate": "Bearer"}) from None
    except BusyError as error:
        raise _busy(error) from None
    token, lifetime = issue_token(username)
    return LoggedIn(access_token=token, token_type="bearer", expires_in=lifetime)  # noqa: S106 - not a secret


def _registrable(attempt: LoginRequest) -> tuple[str, str]:
    # A name or password that nobody can have costs the same time as a wrong one.
    try:
        credentials = Credentials(username=attempt.username, password=attempt.password)
    except ValidationError:
        return "", ""
    return credentials.username, credentials.password


async def _read_login(request: Request) -> LoginRequest:
    body = await request.body()
    try:
        return LoginRequest.model_validate_json(body or b"{}")
    except ValidationError as error:
        form = dict(parse_qsl(body.decode(errors="replace")))
        if "username" not in form or "password" not in form:
            raise as_request_error(error) from None
        return LoginRequest(username=form["username"], password=form["password"])


def _busy(error: BusyError) -> HTTPException:
    return HTTPException(503, str(error), headers={"Retry-After": _RETRY_AFTER_SECONDS})
