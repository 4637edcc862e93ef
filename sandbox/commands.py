"""Shell commands in a sandbox, as a model asks for them."""

import logging

from deepagents.backends.protocol import ExecuteResponse

from sandbox.channel import Channel
from sandbox.errors import NotStartedError, SandboxError
from sandbox.settings import MAX_COMMAND_TIMEOUT_SECONDS, get_settings
from sandbox.toolbox.commands import CANCELLED, EXITED, LOST, TIMED_OUT, TOO_MUCH_OUTPUT, UNSTARTABLE

logger = logging.getLogger(__name__)

OUTPUT_BYTES = 512 << 10
"""How much of a command's output is kept."""

OUTPUT_LIMIT_BYTES = 64 << 20
"""A command that writes more than this is ended."""

COMMAND_LIMIT_BYTES = 1 << 20
"""The longest command."""

LARGEST_FILE_BYTES = (1 << 40) - 1
"""The largest file that a command may write, whatever else is allowed."""

REFUSED = 126
"""Exit code of a command that was never run, as a shell has it for what cannot be executed."""

TIMED_OUT_CODE = 124
"""Exit code of a command that took too long, as `timeout` of the GNU coreutils has it."""

KILLED = 137
"""Exit code of a command that was killed: 128 + SIGKILL, as a shell has it."""

_GRACE_SECONDS = 15
_SIGNALS = 64
_LAST_CODE = 255


async def run_command(
    channel: Channel, command: str, seconds: int | None, keep: int = OUTPUT_BYTES, *, largest_file: int
) -> ExecuteResponse:
    """Run a shell command in /workspace and return its output, standard error included, and its exit code.

    Bytes that are not UTF-8 come as U+FFFD. A command that takes too long or writes too much is ended with
    everything that it started; its output until then is returned, and why it was ended. So is one that is
    cancelled, before this returns.

    Args:
        channel: To a sandbox.
        command: What `sh` is to run, up to COMMAND_LIMIT_BYTES.
        seconds: How long it may take. None: as the settings say. 0: as long as is possible at all.
        keep: Bytes of output that are returned; more of it sets `truncated`.
        largest_file: Bytes that a file may have to be written to.

    Raises:
        NotStartedError: the sandbox cannot run anything.
        SandboxLostError: the sandbox went away while the command ran.
        NoAnswerError: the sandbox fell silent.
        SandboxError: what it answered makes no sense.
    """
    try:
        text = command.encode()
    except UnicodeEncodeError:
        return _refused("the command is not valid Unicode.")
    if b"\0" in text:
        return _refused("the command contains a NUL character, which no program can be given.")
    if len(text) > COMMAND_LIMIT_BYTES:
        return _refused(
            f"the command is longer than {COMMAND_LIMIT_BYTES >> 10} KiB; write it to a file and run that."
        )
    limit = _within_bounds(seconds)
    answer, output = await channel.call(
        "exec",
        {
            "seconds": limit,
            "keep": keep,
            "flood": OUTPUT_LIMIT_BYTES,
            "files": get_settings().sandbox_open_files,
            "file_bytes": min(largest_file, LARGEST_FILE_BYTES),
        },
        text,
        timeout=limit + _GRACE_SECONDS,
        limit=keep,
    )
    return _response(answer, output.decode(errors="replace"), limit, truncated=_is_truncated(answer, output))


def _response(answer: dict[str, object], output: str, limit: int, *, truncated: bool) -> ExecuteResponse:
    if answer.get("survived") is True:
        logger.warning("A command was ended, but not all that it had started could be killed")
    match answer.get("ended"), answer.get("status"):
        case str(ended), int(code) if ended == EXITED and -_SIGNALS <= code <= _LAST_CODE:
            return ExecuteResponse(output, code if code >= 0 else 128 - code, truncated)
        case str(ended), _ if ended == TIMED_OUT:
            note = f"\n[Timed out after {limit} s; all that the command had started was ended]"
            return ExecuteResponse(output + note, TIMED_OUT_CODE, truncated)
        case str(ended), _ if ended == TOO_MUCH_OUTPUT:
            note = (
                f"\n[Ended because it wrote more than {OUTPUT_LIMIT_BYTES >> 20} MiB; "
                "redirect output to a file]"
            )
            return ExecuteResponse(output + note, KILLED, truncated=True)
        case str(ended), _ if ended in {LOST, CANCELLED}:
            return ExecuteResponse(output + "\n[The command was killed]", KILLED, truncated)
        case str(ended), _ if ended == UNSTARTABLE:
            raise NotStartedError
    raise SandboxError("The sandbox gave no proper answer.")


def _is_truncated(answer: dict[str, object], output: bytes) -> bool:
    written = answer.get("written")
    return isinstance(written, int) and written > len(output)


def _refused(problem: str) -> ExecuteResponse:
    return ExecuteResponse(output=f"Error: {problem}", exit_code=REFUSED)


def _within_bounds(seconds: int | None) -> int:
    if seconds is None:
        return get_settings().sandbox_command_timeout_seconds
    if seconds <= 0:
        return MAX_COMMAND_TIMEOUT_SECONDS
    return min(seconds, MAX_COMMAND_TIMEOUT_SECONDS)
