"""What Warren's sandbox is measured against: containers driven by one `docker exec` per call."""

import io
import tarfile
import threading
from pathlib import PurePosixPath
from typing import Any
from uuid import uuid4

import docker
from deepagents.backends.protocol import (
    ExecuteResponse,
    FileDownloadResponse,
    FileUploadResponse,
)
from deepagents.backends.sandbox import BaseSandbox

_MEMORY = "1g"
_CPUS = 1_000_000_000
_PIDS = 256


class ExecSandbox(BaseSandbox):
    """deepagents' `BaseSandbox` over docker-py's `exec_run`, as its partners' packages do it.

    The container has the limits of Warren's, a writable root so that archives can be put into it, and the
    same image. docker-py's client belongs to one thread at a time: each has its own.
    """

    def __init__(self, image: str) -> None:
        self._clients = threading.local()
        self.name = f"warren-bench-{uuid4().hex[:12]}"
        client = self._client()
        client.containers.run(
            image,
            ["sleep", "infinity"],
            name=self.name,
            detach=True,
            network_mode="none",
            mem_limit=_MEMORY,
            nano_cpus=_CPUS,
            pids_limit=_PIDS,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            working_dir="/workspace",
            user="0:0",
        )

    @property
    def id(self) -> str:
        return self.name

    def execute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        del timeout  # exec_run knows none
        code, output = self._container().exec_run(["sh", "-c", command])
        return ExecuteResponse(output.decode(errors="replace"), code)

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        container = self._container()
        for path, content in files:
            target = PurePosixPath(path)
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as archive:
                member = tarfile.TarInfo(target.name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            container.put_archive(str(target.parent), packed.getvalue())
        return [FileUploadResponse(path) for path, _ in files]

    def download_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        container = self._container()
        downloaded = []
        for path in paths:
            chunks, _ = container.get_archive(path)
            with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
                member = archive.extractfile(archive.next() or path)
                downloaded.append(FileDownloadResponse(path, member.read() if member else None))
        return downloaded

    def remove(self) -> None:
        self._container().remove(force=True)

    def _client(self) -> Any:
        if not hasattr(self._clients, "client"):
            self._clients.client = docker.from_env()
        return self._clients.client

    def _container(self) -> Any:
        # Without asking the engine for what is known: an attribute access, no request.
        client = self._client()
        return client.containers.prepare_model({"Id": self.name})


class LlmSandbox:
    """A session of llm-sandbox on the same image, in its own terms: a command, a file in, a file out."""

    def __init__(self, image: str) -> None:
        from llm_sandbox import SandboxSession  # noqa: PLC0415 - slow to load, and only some want it

        self._session = SandboxSession(
            lang="python",
            image=image,
            skip_environment_setup=True,
            runtime_configs={
                "command": "sleep infinity",
                "mem_limit": _MEMORY,
                "nano_cpus": _CPUS,
                "network_mode": "none",
            },
        )

    def open(self) -> None:
        self._session.open()

    def close(self) -> None:
        self._session.close()

    def execute(self, command: str) -> str:
        output: str = self._session.execute_command(command).stdout
        return output

    def copy_in(self, source: str, target: str) -> None:
        self._session.copy_to_runtime(source, target)

    def copy_out(self, source: str, target: str) -> None:
        self._session.copy_from_runtime(source, target)
