"""`./warren serve`: set up what is missing, then run the platform's dev server in this process."""

import asyncio
import errno
import os
import signal
import socket
import sys
import time
from importlib import import_module
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


class SetupError(Exception):
    """Something Warren needs is missing; the message says what to do."""


def say(line: str) -> None:
    """Print one line of progress."""
    print(line, flush=True)  # noqa: T201 - the command line's output


def serve(host: str, port: int, data_dir: Path | None, jobs: int) -> int:
    """Set up and serve until Ctrl-C or SIGTERM. Returns the exit code."""
    exit_on_sigterm()
    try:
        require_free_port(host, port)
        prepare_environment(data_dir)
        set_up()
        from server.platform import run_platform  # noqa: PLC0415 - heavy: after all that could fail early

        run_platform(host, port, jobs)
    except KeyboardInterrupt:
        pass
    except SystemExit:
        from server.startup import has_told  # noqa: PLC0415 - it imports this module

        if not has_told():
            raise
        return 1
    except Exception as error:
        if not is_expected(error):
            raise
        print(f"warren: {error}", file=sys.stderr)  # noqa: T201 - the command line's output
        return 1
    finally:
        from storage.database import release_embedded  # noqa: PLC0415 - see set_up

        release_embedded()
    return 0


def prepare_environment(data_dir: Path | None, *, may_be_new: bool = True) -> None:
    """Read `.env` into the environment, which wins over the file, check it, and make the data directory.

    Args:
        data_dir: stands in for WARREN_DATA_DIR.
        may_be_new: False where there must have been a server before. Nothing is made then.

    Raises:
        SetupError: if a setting cannot be used, or a directory cannot be used or lies inside the project.
    """
    from dotenv import load_dotenv  # noqa: PLC0415

    try:
        load_dotenv(PROJECT / ".env")
    except UnicodeDecodeError:
        raise SetupError(f"{PROJECT / '.env'} is not UTF-8 text; save it as UTF-8.") from None
    if data_dir is not None:
        os.environ["WARREN_DATA_DIR"] = str(data_dir.absolute())
    _check_settings()
    from sandbox.settings import get_settings as get_sandbox_settings  # noqa: PLC0415 - they read the
    from storage.settings import get_settings  # noqa: PLC0415 - environment just prepared

    settings = get_settings()
    directories = {
        "data directory": settings.data_dir,
        "workspace root": get_sandbox_settings().workspace_root,
    }
    try:
        for what, directory in directories.items():
            if directory.resolve().is_relative_to(PROJECT):
                raise SetupError(f"The {what} {directory} lies inside the project; choose one outside.")
        if may_be_new:
            _make_directory(settings.data_dir)
        elif settings.database_url is None and not (settings.data_dir / "postgres" / "cluster").exists():
            raise SetupError(
                f"There is no Warren in {settings.data_dir}. Name its data directory with --data-dir or "
                "WARREN_DATA_DIR, or make one with ./warren serve."
            )
    except OSError as error:
        raise SetupError(
            f"The data directory {settings.data_dir} cannot be used: {error.strerror}. Make it a directory "
            "of the user who runs Warren, or choose another with --data-dir or WARREN_DATA_DIR."
        ) from None


def _make_directory(directory: Path) -> None:
    from storage.directories import make_passable  # noqa: PLC0415 - only once a command needs it

    if not directory.exists():
        make_passable(directory)
        say(f"Made the data directory {directory}")
    elif not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    elif not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _check_settings() -> None:
    from pydantic import ValidationError  # noqa: PLC0415 - heavy: only once a command needs it

    problems: list[str] = []
    for package in ("storage", "auth", "sandbox", "agent", "server"):
        try:
            import_module(f"{package}.settings").get_settings()
        except ValidationError as error:
            problems += [f"{'.'.join(map(str, one['loc'])).upper()}: {one['msg']}" for one in error.errors()]
    if problems:
        # The sandboxes' settings need those of the storage, and repeat what is wrong with them.
        raise SetupError("\n".join(["Some settings cannot be used.", *dict.fromkeys(problems)]))


def require_free_port(host: str, port: int) -> None:
    """Check that nothing listens there, since the platform would quietly move to another port.

    Raises:
        SetupError: if the port is taken or the address is not ours.
    """
    if ":" in host:
        raise SetupError(f"Cannot listen on {host}: the platform takes IPv4 addresses only; try 127.0.0.1.")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SetupError(
                f"Cannot listen on {host}:{port}: {error.strerror}. Choose another with --port or --host."
            ) from None


def exit_on_sigterm() -> None:
    """Have SIGTERM end this process as Ctrl-C does, so that what it has started is stopped first."""

    # uvicorn raises the signal again once it has shut down; by default that would end the process
    # before Postgres is stopped.
    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)  # asyncio cancels its tasks then, and they clean up

    # A script's background job ignores SIGINT; uvicorn would take it all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, interrupt)


def is_expected(error: Exception) -> bool:
    """Tell whether an error's message says all that its reader needs, and a traceback nothing more."""
    from agent.errors import AgentError  # noqa: PLC0415
    from auth.errors import AuthError  # noqa: PLC0415
    from sandbox.errors import SandboxError  # noqa: PLC0415
    from storage.errors import StorageError  # noqa: PLC0415

    return isinstance(error, AgentError | AuthError | SandboxError | SetupError | StorageError | OSError)


def set_up() -> None:
    """Make everything that a server needs: secret, Postgres and schema, Docker engine, sandbox image.

    The parts do not depend on each other, so they are made at once; what is there already costs little.
    """
    from agent.model import build_model  # noqa: PLC0415 - heavy: only once a command needs it

    async def parts() -> None:
        in_threads = (asyncio.to_thread(_set_up_key), asyncio.to_thread(build_model))
        tasks = [
            asyncio.ensure_future(part) for part in (_set_up_postgres(), _set_up_sandboxes(), *in_threads)
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            # How they take it does not matter: a task group would raise that, and not what came first.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    asyncio.run(parts())


def _set_up_key() -> None:
    from auth.secret import describe_key, signing_key  # noqa: PLC0415 - heavy: only once a command needs it

    before = describe_key()
    signing_key()
    if (after := describe_key()) != before:
        say(f"Made the key that signs tokens, {after}")


async def _set_up_postgres() -> None:
    from storage.database import close_pool, get_pool  # noqa: PLC0415 - heavy: only once a command needs it
    from storage.schema import applied_within  # noqa: PLC0415
    from storage.settings import get_settings  # noqa: PLC0415

    settings = get_settings()
    directory = settings.data_dir / "postgres"
    if settings.database_url is None and not (directory / "cluster").exists():
        say(f"Making the embedded Postgres in {directory}")
    started = time.monotonic()

    try:
        pool = await get_pool()
        async with pool.connection() as conn:
            if await applied_within(conn, time.monotonic() - started):
                say("Made the tables of this version in Postgres")
    finally:
        await close_pool()


async def _set_up_sandboxes() -> None:
    from sandbox.image import ensure_image  # noqa: PLC0415 - heavy: only once a command needs it
    from sandbox.install import ensure_engine  # noqa: PLC0415
    from sandbox.runtime import check_runtime  # noqa: PLC0415

    await ensure_engine(say)
    await check_runtime()
    await ensure_image(say)
