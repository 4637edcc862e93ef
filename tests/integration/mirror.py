"""A package mirror of an operator's own, on a private address: HTTPS, an echo, and two that overdo it."""

import asyncio
import io
import ssl
import subprocess
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

HOST = "127.0.0.2"
NAME = "mirror.test"

_CHUNK = 1 << 16
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def _wheel() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr("demo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
        wheel.writestr("demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("demo-1.0.dist-info/RECORD", "")
    return file.getvalue()


FILES = {
    "/hello": b"hello from outside\n",
    "/simple/demo/": b'<a href="/demo-1.0-py3-none-any.whl">demo-1.0-py3-none-any.whl</a>',
    "/demo-1.0-py3-none-any.whl": _wheel(),
    "/repo.git/info/refs": b"%b\trefs/heads/main\n" % (b"1" * 40),
    "/repo.git/HEAD": b"ref: refs/heads/main\n",
}


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Make a certificate for NAME and its key."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    subject = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}", "-days", "2"]
    kind = ["-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subprocess.run(
        ["openssl", "req", *kind, *subject, "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    return certificate, key


async def _serve_files(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode().partition("?")[0]
    body = FILES.get(path)
    status = "200 OK" if body is not None else "404 Not Found"
    kind = "text/html" if path.endswith("/") else "application/octet-stream"
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body or b'')}\r\n"
    writer.write(f"{head}Connection: close\r\n\r\n".encode() + (body or b""))
    await writer.drain()


async def _flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(bytes(_CHUNK))
        await writer.drain()


async def _read_nothing(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


class Mirror:
    """What is served, each on a port of its own, and how many connections the echo has."""

    def __init__(self) -> None:
        self.echoing = 0
        self.https = self.echo = self.flood = self.read_nothing = 0


@asynccontextmanager
async def mirror(directory: Path) -> AsyncIterator[Mirror]:
    certificate, key = await asyncio.to_thread(make_certificate, directory)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    found = Mirror()
    listeners: list[asyncio.Server] = []
    tasks: set[asyncio.Task[None]] = set()

    async def listen(serve: Serve, context: ssl.SSLContext | None = None) -> int:
        async def serve_safely(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                with suppress(OSError, asyncio.IncompleteReadError):
                    await serve(reader, writer)
            finally:
                writer.close()

        def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.add(asyncio.create_task(serve_safely(reader, writer)))

        listener = await asyncio.start_server(begin, HOST, 0, ssl=context, limit=_CHUNK)
        listeners.append(listener)
        port: int = listener.sockets[0].getsockname()[1]
        return port

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.echoing += 1
        try:
            while data := await reader.read(_CHUNK):
                writer.write(data)
                await writer.drain()
        finally:
            found.echoing -= 1

    found.https = await listen(_serve_files, tls)
    found.echo = await listen(echo)
    found.flood = await listen(_flood)
    found.read_nothing = await listen(_read_nothing)
    try:
        yield found
    finally:
        for listener in listeners:
            listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
