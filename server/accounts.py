"""Routes: registering, logging in, changing a password, and ending one's sessions."""

import unicodedata
from collections.abc import Awaitable
from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, ValidationError, WithJsonSchema

from auth import accounts, throttle
from auth.credentials import Caller, identify
from auth.errors import (
    BadCredentialsError,
    BusyError,
    InvalidTokenError,
    RegistrationClosedError,
    ThrottledError,
    UsernameTakenError,
)
from auth.passwords import MAX_BYTES, MIN_LENGTH
from auth.settings import get_settings
from server.bodies import FOR_STRANGERS, as_request_error, body_schema, read_json
from server.refusals import refusals
from server.requests import address_of
from storage import audit
from storage.ids import USERNAME_PATTERN, is_username

router = APIRouter(prefix="/api/auth", tags=["accounts"])

_RETRY_AFTER_SECONDS = "2"
_PASSWORD_RULE = f"at least {MIN_LENGTH} characters and at most {MAX_BYTES} bytes"
_BEARER: Literal["bearer"] = "bearer"


def _lowered(value: object) -> object:
    return value.lower() if isinstance(value, str) and value.isascii() else value


def _check_username(value: str) -> str:
    if not is_username(value):
        raise ValueError("1 to 32 characters of a-z 0-9 _ -, the first and the last a letter or digit")
    return value


def _check_password(value: str) -> str:
    # First the length: to normalise a text of combining accents takes the square of that.
    if len(value) > MAX_BYTES:
        raise ValueError(_PASSWORD_RULE)
    # One password, however its accents were typed (NIST SP 800-63B).
    normalised = unicodedata.normalize("NFKC", value)
    try:
        size = len(normalised.encode())
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode text") from None
    if len(normalised) < MIN_LENGTH or size > MAX_BYTES:
        raise ValueError(_PASSWORD_RULE)
    return normalised


Username = Annotated[
    str,
    BeforeValidator(_lowered),
    AfterValidator(_check_username),
    WithJsonSchema({"type": "string", "pattern": f"^{USERNAME_PATTERN}$"}),
]
Password = Annotated[
    str,
    AfterValidator(_check_password),
    WithJsonSchema({"type": "string", "minLength": MIN_LENGTH, "maxLength": MAX_BYTES}),
]


class Credentials(BaseModel):
    """A name and a password."""

    username: Username
    password: Password


class LoginRequest(BaseModel):
    """What is tried at a login: whatever does not fit an account is simply wrong."""

    username: str
    password: str


class PasswordChange(BaseModel):
    """The password until now, and the one from now on."""

    current_password: Password
    new_password: Password


class Registered(BaseModel):
    """The account's id is its name."""

    message: str
    user_id: str


class LoggedIn(BaseModel):
    """An OAuth2 bearer token and its lifetime in seconds."""

    access_token: str
    token_type: Literal["bearer"]
    expires_in: int


class Me(BaseModel):
    """The caller's account, and what has proved it."""

    username: str
    created_at: datetime
    via: Literal["token", "api_key"]


class LoggedOut(BaseModel):
    """Every token is invalid, the one that asked included."""

    success: Literal[True] = True
    message: str


async def current_caller(request: Request) -> Caller:
    """Return who sent the request, and what proved it.

    Raises:
        HTTPException: 401 without a valid token or API key.
    """
    try:
        return await identify(dict(request.headers))
    except InvalidTokenError as error:
        raise unauthorized(error) from None


async def logged_in_caller(caller: Annotated[Caller, Depends(current_caller)]) -> Caller:
    """Return who sent the request, provided that they logged in.

    Raises:
        HTTPException: 401 without a valid credential, 403 with an API key: it must not manage what lets
            people in, or one that has leaked could make itself permanent.
    """
    if caller.via != "token":
        raise HTTPException(403, "An API key cannot do this; log in with your password.")
    return caller


CurrentCaller = Annotated[Caller, Depends(current_caller)]
LoggedInCaller = Annotated[Caller, Depends(logged_in_caller)]


@router.post(
    "/register",
    openapi_extra=body_schema(Credentials) | FOR_STRANGERS,
    responses=refusals(400, 403, 422, 429, 503),
)
async def register(request: Request) -> Registered:
    """Create an account."""
    if get_settings().registration == "closed":
        raise HTTPException(403, str(RegistrationClosedError()))
    credentials = await read_json(request, Credentials)
    address = address_of(request.scope)
    attempt = await _throttled(throttle.begin_registration(address))
    try:
        await accounts.register(credentials.username, credentials.password)
    except UsernameTakenError as error:
        raise HTTPException(400, str(error)) from None
    except BusyError as error:
        await attempt.was_not_judged()
        raise _busy(error) from None
    await audit.record("register", credentials.username, address=address)
    return Registered(message="User registered", user_id=credentials.username)


@router.post(
    "/login",
    openapi_extra=body_schema(LoginRequest) | FOR_STRANGERS,
    responses=refusals(401, 422, 429, 503),
)
async def login(request: Request) -> LoggedIn:
    """Exchange a name and a password, as JSON or as an OAuth2 form, for a token.

    After some failures the next attempts have to wait: 429, and Retry-After says how many seconds.
    """
    username, password = _registrable(await _read_login(request))
    address = address_of(request.scope)
    attempt = await _throttled(throttle.begin_login(username or None, address))
    try:
        token, lifetime = await accounts.log_in(username, password)
    except BadCredentialsError as error:
        await audit.record("login_failed", error.known_user, address=address)
        raise HTTPException(401, str(error), headers={"WWW-Authenticate": "Bearer"}) from None
    except BusyError as error:
        await attempt.was_not_judged()
        raise _busy(error) from None
    await attempt.succeeded()
    await audit.record("login", username, address=address)
    return LoggedIn(access_token=token, token_type=_BEARER, expires_in=lifetime)


@router.get("/me", responses=refusals(401))
async def me(caller: CurrentCaller) -> Me:
    """Say who the caller is."""
    user = await accounts.find_user(caller.username)
    if user is None:
        raise unauthorized(InvalidTokenError())
    return Me(username=user.username, created_at=user.created_at, via=caller.via)


@router.post(
    "/password",
    openapi_extra=body_schema(PasswordChange),
    responses=refusals(401, 403, 422, 429, 503),
)
async def change_password(request: Request, caller: LoggedInCaller) -> LoggedIn:
    """Change the password. It ends all other sessions, revokes all API keys, and answers with a new token."""
    change = await read_json(request, PasswordChange)
    address = address_of(request.scope)
    attempt = await _throttled(throttle.begin_password_check(caller.username, address))
    try:
        token, lifetime = await accounts.change_password(
            caller.username, caller.token_version, change.current_password, change.new_password
        )
    except BadCredentialsError:
        await audit.record("password_change_failed", caller.username, address=address)
        raise HTTPException(403, "The current password is wrong.") from None
    except InvalidTokenError as error:
        await attempt.was_not_judged()
        raise unauthorized(error) from None
    except BusyError as error:
        await attempt.was_not_judged()
        raise _busy(error) from None
    await attempt.succeeded()
    await audit.record("password_changed", caller.username, address=address)
    return LoggedIn(access_token=token, token_type=_BEARER, expires_in=lifetime)


@router.post("/logout-everywhere", responses=refusals(401, 403))
async def log_out_everywhere(request: Request, caller: LoggedInCaller) -> LoggedOut:
    """End every session of the caller, this one included. API keys stay; delete those one by one."""
    await accounts.log_out_everywhere(caller.username)
    await audit.record("logout_everywhere", caller.username, address=address_of(request.scope))
    return LoggedOut(message="All sessions have been ended.")


def unauthorized(error: InvalidTokenError) -> HTTPException:
    """Return the answer to a request without a valid credential."""
    return HTTPException(401, str(error), headers={"WWW-Authenticate": "Bearer"})


async def _throttled(beginning: Awaitable[throttle.Attempt]) -> throttle.Attempt:
    try:
        return await beginning
    except ThrottledError as error:
        raise HTTPException(429, str(error), headers={"Retry-After": str(error.retry_after)}) from None


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
