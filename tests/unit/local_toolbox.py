"""A toolbox in this process, and deepagents' own sandbox in a shell: the same calls can go to both."""

import json
import os
import subprocess
import sys
from pathlib import Path

from deepagents.backends.protocol import ExecuteResponse, FileDownloadResponse, FileUploadResponse
from deepagents.backends.sandbox import BaseSandbox

from sandbox.toolbox.operations import OPERATIONS

_PYTHON_DIRECTORY = Path(sys.base_prefix) / "bin"
"""Where `python3` is no wrapper script, which would take longer than what the oracle runs on it."""


class LocalTransport:
    """Calls the toolbox's functions; what a channel would bring as JSON goes through JSON."""

    async def call(
        self,
        operation: str,
        args: dict[str, object],
        data: bytes = b"",
        *,
        timeout: float,  # noqa: ARG002, ASYNC109 - nothing here takes long
    ) -> tuple[dict[str, object], bytes]:
        reply, answer = OPERATIONS[operation](json.loads(json.dumps(args)), data)
        result: dict[str, object] = json.loads(json.dumps(reply))
        return result, answer


class ShellSandbox(BaseSandbox):
    """The oracle: deepagents' own scripts, run by `sh` in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def id(self) -> str:
        return "oracle"

    def execute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:  # noqa: ARG002
        result = subprocess.run(
            ["sh", "-c", command],
            cwd=self._directory,
            env={"PATH": f"{_PYTHON_DIRECTORY}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return ExecuteResponse(result.stdout.decode("utf-8", "replace"), result.returncode)

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        """Do as the conformance tests of langchain-tests want it: relative paths are invalid."""
        answers = []
        for path, content in files:
            try:
                if not path.startswith("/"):
                    raise NotADirectoryError
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_bytes(content)
                answers.append(FileUploadResponse(path))
            except OSError as error:
                answers.append(FileUploadResponse(path, type(error).__name__))
        return answers

    def download_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        return [FileDownloadResponse(path, Path(path).read_bytes()) for path in paths]
