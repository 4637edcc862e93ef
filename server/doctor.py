"""`./warren doctor`: one line for each requirement, and the fix for what fails.

It makes the data directory if there is none, and nothing else.
"""

import asyncio
import shutil
import stat
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from server.serve import SetupError, prepare_environment, require_free_port, say

_MIN_PYTHON = (3, 11)
_MIN_FREE_GIB = 5
"""The sandbox image takes about one, building it twice that; the rest is for workspaces and the database."""
_GIB = 1024**3
_ANSWER_SECONDS = 2.0


class ProblemError(Exception):
    """A requirement is not met; the message says what to do."""


Check = Callable[[], Awaitable[str]]


def doctor(host: str, port: int, data_dir: Path | None) -> int:
    """Check every requirement. Returns 0 if all are met, else 1."""
    try:
        prepare_environment(data_dir)
    except (SetupError, OSError) as error:
        say(f"FAIL  settings: {error}")
        return 1

    async def port_is_free() -> str:
        if await _is_warren(host, port):
            return f"{host}:{port}: a Warren answers there"
        require_free_port(host, port)
        return f"{host}:{port} is free"

    checks: dict[str, Check] = {
        "python": _python,
        "directory": _directory,
        "disk": _disk,
        "workspaces": _workspaces,
        "secret": _secret,
        "docker": _docker,
        "runtime": _runtime,
        "image": _image,
        "postgres": _postgres,
        "model": _model,
        "port": port_is_free,
    }
    return asyncio.run(_run(checks))


async def _run(checks: dict[str, Check]) -> int:
    failed = 0
    for name, check in checks.items():
        try:
            found = await check()
        except Exception as error:  # noqa: BLE001 - whatever it is, the other checks go on
            failed += 1
            say(f"FAIL  {name}: {error}")
        else:
            say(f"ok    {name}: {found}")
    return 1 if failed else 0


async def _python() -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _MIN_PYTHON:
        raise ProblemError(f"Python {version} is too old; install 3.11 or newer and run ./warren again.")
    return version


async def _directory() -> str:
    from storage.settings import get_settings  # noqa: PLC0415 - it reads the environment just prepared

    directory = get_settings().data_dir
    if directory.stat().st_mode & stat.S_IWOTH:
        raise ProblemError(
            f"every user can write to {directory}, which keeps secrets; fix: chmod o-w {directory}"
        )
    return str(directory)


async def _disk() -> str:
    from storage.settings import get_settings  # noqa: PLC0415 - it reads the environment just prepared

    directory = get_settings().data_dir
    free = shutil.disk_usage(directory).free / _GIB
    if free < _MIN_FREE_GIB:
        raise ProblemError(
            f"{free:.1f} GiB free at {directory}; free {_MIN_FREE_GIB} GiB or choose another --data-dir."
        )
    return f"{free:.0f} GiB free at {directory}"


async def _workspaces() -> str:
    from sandbox.disk import is_nearly_full  # noqa: PLC0415
    from sandbox.disk_limits import RESERVE_BYTES  # noqa: PLC0415
    from sandbox.project_quota import has_quotas  # noqa: PLC0415
    from sandbox.settings import get_settings  # noqa: PLC0415

    settings = get_settings()
    root = settings.workspace_root
    directory = next(path for path in (root, *root.parents) if path.is_dir())
    if is_nearly_full(directory, RESERVE_BYTES):
        raise ProblemError(
            f"less than {RESERVE_BYTES / _GIB:.0f} GiB, or hardly an inode, is free at {directory}, so "
            "nothing would be written; free some, or set WORKSPACE_ROOT."
        )
    limits = settings.sandbox_disk_mb, settings.user_disk_mb
    each, of_user = (f"{most} MiB" if most else "any size" for most in limits)
    kept = "kept by measuring them while they are used"
    if settings.sandbox_disk_mb and has_quotas(directory):
        kept = f"each by a project quota of the file system, and all {kept}"
    else:
        kept += f", since {directory} has no project quotas" if settings.sandbox_disk_mb else ""
    return f"{each} each, {of_user} per user; {kept}"


async def _secret() -> str:
    from auth.secret import describe_key  # noqa: PLC0415

    return describe_key()


async def _docker() -> str:
    from sandbox.engine import engine_info  # noqa: PLC0415
    from sandbox.errors import DockerUnreachableError  # noqa: PLC0415
    from sandbox.install import fix_by_hand  # noqa: PLC0415

    try:
        info = await engine_info()
    except DockerUnreachableError as error:
        fix = fix_by_hand() or "./warren serve installs it if need be, and starts it."
        raise ProblemError(f"{error} {fix}") from error
    return f"{info.version} at {info.address}"


async def _runtime() -> str:
    from sandbox.runtime import check_runtime  # noqa: PLC0415

    return f"sandboxes run with {await check_runtime()}"


async def _image() -> str:
    from sandbox.engine import connected  # noqa: PLC0415
    from sandbox.image import find_image  # noqa: PLC0415
    from sandbox.settings import get_settings  # noqa: PLC0415

    async with connected() as engine:
        image = await find_image(engine)
    if image is None and (named := get_settings().sandbox_image):
        raise ProblemError(
            f"the engine has no image {named}, which SANDBOX_IMAGE names; docker pull {named}, or load it."
        )
    if image is None:
        raise ProblemError("the sandbox image is not built; ./warren serve builds it.")
    return image


async def _postgres() -> str:
    from storage.database import release_embedded, server_version  # noqa: PLC0415
    from storage.embedded import EmbeddedPostgres  # noqa: PLC0415
    from storage.settings import get_settings  # noqa: PLC0415

    settings = get_settings()
    embedded = settings.database_url is None
    if embedded and not (settings.data_dir / "postgres" / "cluster").exists():
        await asyncio.to_thread(EmbeddedPostgres(settings.data_dir).check)
        return f"embedded, made at the first start below {settings.data_dir}"
    try:
        version = await server_version()
    finally:
        await asyncio.to_thread(release_embedded)
    return f"{version}, {'embedded' if embedded else 'at DATABASE_URL'}"


async def _model() -> str:
    from agent.errors import ModelKeyRejectedError  # noqa: PLC0415
    from agent.model import build_model, probe_model  # noqa: PLC0415
    from agent.settings import get_settings  # noqa: PLC0415

    settings = get_settings()
    try:
        warning = await probe_model(build_model())
    except ModelKeyRejectedError as error:
        raise ProblemError(f"{error} Check MODEL_API_KEY, or the provider's own variable, in .env.") from None
    if warning:
        place = "MODEL_BASE_URL" if settings.model_base_url else "the provider"
        raise ProblemError(f"{warning} Check MODEL={settings.model}, and that this machine reaches {place}.")
    return settings.model or "the rehearsal model (a script); set MODEL and its key in .env for a real one"


async def _is_warren(host: str, port: int) -> bool:
    """Tell whether a Warren answers there, perhaps that of this very data directory."""
    import httpx  # noqa: PLC0415 - heavy: only once a command needs it

    try:
        async with httpx.AsyncClient(trust_env=False, timeout=_ANSWER_SECONDS) as client:
            # By a name that it goes by, whatever it listens on.
            answer = await client.get(f"http://{host}:{port}/", headers={"Host": "localhost"})
        return bool(answer.json()["name"] == "Warren")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError, KeyError):
        return False
