"""The OCI runtime that sandboxes run with."""

from sandbox.engine import connected
from sandbox.errors import UnknownRuntimeError
from sandbox.settings import get_settings


async def check_runtime() -> str:
    """Return the name of the runtime that SANDBOX_RUNTIME or the engine's own configuration says.

    Raises:
        DockerUnreachableError: no engine answers.
        UnknownRuntimeError: the engine has none of that name.
    """
    async with connected() as engine:
        info = await engine.docker.system.info()
    name: str = get_settings().sandbox_runtime or info["DefaultRuntime"]
    if name not in info["Runtimes"]:
        raise UnknownRuntimeError(name, sorted(info["Runtimes"]))
    return name
