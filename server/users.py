"""`./warren users`: an operator's way to accounts, whether a server runs on the database meanwhile or not."""

import argparse
import asyncio
import getpass
import sys
from collections.abc import Awaitable, Callable

from pydantic import ValidationError

from auth import accounts
from auth.errors import AuthError
from server.accounts import Credentials
from server.serve import SetupError, prepare_environment, say
from storage import audit
from storage.database import close_pool, release_embedded
from storage.errors import StorageError

_BY_OPERATOR = {"by": "operator"}
# Stands in where a model wants a password and none is asked for.
_NO_PASSWORD = "none is needed here"  # noqa: S105

Act = Callable[[], Awaitable[None]]


def users(options: argparse.Namespace) -> int:
    """Carry out a sub-command. Returns the exit code."""
    try:
        act = _act(options)
        # Where registration is closed the first user may come before the first start.
        prepare_environment(options.data_dir, may_be_new=options.users_command == "add")
        asyncio.run(_with_database(act))
    except (AuthError, SetupError, StorageError, OSError, EOFError) as error:
        print(f"warren: {error}", file=sys.stderr)  # noqa: T201 - the command line's output
        return 1
    finally:
        release_embedded()
    return 0


def _act(options: argparse.Namespace) -> Act:
    if options.users_command == "list":
        return _list
    wants_password = options.users_command in ("add", "passwd")
    password = _read_password(from_stdin=options.password_stdin) if wants_password else _NO_PASSWORD
    credentials = _checked(options.name, password)
    return {
        "add": lambda: _add(credentials),
        "passwd": lambda: _set_password(credentials),
        "disable": lambda: _disable(credentials.username),
        "enable": lambda: _enable(credentials.username),
    }[options.users_command]


async def _add(credentials: Credentials) -> None:
    await accounts.register(credentials.username, credentials.password)
    await audit.record("register", credentials.username, details=_BY_OPERATOR)
    say(f"Added {credentials.username}.")


async def _set_password(credentials: Credentials) -> None:
    await accounts.set_password(credentials.username, credentials.password)
    await audit.record("password_changed", credentials.username, details=_BY_OPERATOR)
    say(f"Set the password of {credentials.username}; their sessions and API keys have ended.")


async def _disable(username: str) -> None:
    await accounts.disable(username)
    await audit.record("user_disabled", username, details=_BY_OPERATOR)
    say(f"Disabled {username}.")


async def _enable(username: str) -> None:
    await accounts.enable(username)
    await audit.record("user_enabled", username, details=_BY_OPERATOR)
    say(f"Enabled {username}.")


async def _list() -> None:
    for user in await accounts.all_users():
        state = f"disabled {user.disabled_at:%Y-%m-%d}" if user.disabled_at else "enabled"
        say(f"{user.username:<32}  registered {user.created_at:%Y-%m-%d}  {state}")


async def _with_database(act: Act) -> None:
    try:
        await act()
        await audit.flush()
    finally:
        await close_pool()


def _read_password(*, from_stdin: bool) -> str:
    # Never from the arguments, which every user of the machine can see.
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise SetupError("There is no terminal to ask for the password; use --password-stdin.")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise SetupError("The passwords differ.")
    return password


def _checked(name: str, password: str) -> Credentials:
    try:
        return Credentials(username=name, password=password)
    except ValidationError as error:
        problems = [f"{one['loc'][0]}: {one['msg'].removeprefix('Value error, ')}" for one in error.errors()]
        raise SetupError("\n".join(problems)) from None
