"""Shell commands in a sandbox, as a model asks for them."""

from aiodocker.containers import DockerContainer
from deepagents.backends.protocol import ExecuteResponse

from sandbox.execution import OUTPUT_LIMIT_BYTES, OutputLimitError, TimeLimitError, run
from sandbox.settings import MAX_COMMAND_TIMEOUT_SECONDS, get_settings

OUTPUT_BYTES = 512 << 10
"""How much of a command's output is kept."""

COMMAND_LIMIT_BYTES = 1 << 20
"""The longest command. Linux takes some 2 MiB of arguments: a quarter of the usual stack of 8 MiB."""

REFUSED = 126
"""Exit code of a command that was never run, as a shell has it for what cannot be executed."""

TIMED_OUT = 124
"""Exit code of a command that took too long, as `timeout` of the GNU coreutils has it."""

KILLED = 137
"""Exit code of a command that was killed for its output: 128 + SIGKILL, as a shell has it."""

# Linux takes 128 KiB per argument (MAX_ARG_STRLEN), so the command comes in pieces. They are put together,
# and their traces removed, before it is read. It has one pipe for standard output and error, hence they come
# in true order.
_SHELL = (
    "exec 2>&1; for warren_piece; do warren_command=$warren_command$warren_piece; done; set --; "
    'eval "unset warren_piece warren_command; $warren_command"'
)
_PIECE_CHARACTERS = 30_000  # of at most four bytes each


async def run_command(
    container: DockerContainer,
    command: str,
    seconds: int | None,
    keep: int,
) -> ExecuteResponse:
    """Run a shell command in /workspace and return its output, standard error included, and its exit code.

    Bytes that are not UTF-8 come as U+FFFD. A command that takes too long or writes too much is ended with
    everything that it started; its output until then is returned, and why it was ended.

    Args:
        container: A running sandbox.
        command: What `sh` is to run, up to COMMAND_LIMIT_BYTES.
        seconds: How long it may take. None: as the settings say. 0: as long as is possible at all.
        keep: Bytes of output that are returned; more of it sets `truncated`.

    Raises:
        NotStartedError: the container cannot run anything; it is in need of a restart.
        SandboxLostError: the container went away while the command ran.
        DockerError: the engine could not be reached.
    """
    if problem := _problem_of(command):
        return ExecuteResponse(output=f"Error: {problem}", exit_code=REFUSED)
    limit = _within_bounds(seconds)
    pieces = [
        command[start : start + _PIECE_CHARACTERS] for start in range(0, len(command), _PIECE_CHARACTERS)
    ]
    try:
        exit_code, output = await run(
            container, ["sh", "-c", _SHELL, "sh", *pieces], seconds=limit, keep=keep
        )
    except TimeLimitError as error:
        note = f"\n[Timed out after {limit} s; all that the command had started was ended]"
        return ExecuteResponse(error.output.text() + note, TIMED_OUT, truncated=error.output.truncated)
    except OutputLimitError as error:
        note = (
            f"\n[Ended because it wrote more than {OUTPUT_LIMIT_BYTES >> 20} MiB; redirect output to a file]"
        )
        return ExecuteResponse(error.output.text() + note, KILLED, truncated=True)
    return ExecuteResponse(output.text(), exit_code, truncated=output.truncated)


def _problem_of(command: str) -> str | None:
    if "\0" in command:
        return "the command contains a NUL character, which no program can be given."
    try:
        size = len(command.encode())
    except UnicodeEncodeError:
        return "the command is not valid Unicode."
    if size > COMMAND_LIMIT_BYTES:
        return f"the command is longer than {COMMAND_LIMIT_BYTES >> 10} KiB; write it to a file and run that."
    return None


def _within_bounds(seconds: int | None) -> int:
    if seconds is None:
        return get_settings().sandbox_command_timeout_seconds
    if seconds <= 0:
        return MAX_COMMAND_TIMEOUT_SECONDS
    return min(seconds, MAX_COMMAND_TIMEOUT_SECONDS)
