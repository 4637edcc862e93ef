"""The way out of a real sandbox: what is allowed works with the usual tools, and nothing else does."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest

from sandbox import egress_streams
from sandbox.egress import Egress
from sandbox.egress_rules import Address
from sandbox.relay import attach_by_relay
from sandbox.toolbox.frames import STREAMS, WINDOW_BYTES
from storage import audit
from storage.ids import SessionId
from tests.integration.mirror import HOST, NAME, Mirror, mirror
from tests.integration.sandboxes import Sandboxes, in_run, sandboxes

MIB = 1 << 20
PROXY = "127.0.0.1:3128"

FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read())"
DIAL = """
import socket, sys, time
def dial(target):
    s = socket.create_connection(("127.0.0.1", 3128))
    s.settimeout(30)
    s.sendall(b"CONNECT %b HTTP/1.1\\r\\n\\r\\n" % target.encode())
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        piece = s.recv(1)
        if not piece:
            break
        head += piece
    return s, int(head.split(b" ")[1])
"""


@dataclass
class Outside:
    """What there is outside of a house's sandboxes, and what it has noted."""

    mirror: Mirror
    egress: Egress
    notes: list[tuple[str, str | None, str]] = field(default_factory=list)
    lookups: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    async def record(self, event: str, username: str | None, *, details: dict[str, object], **_: Any) -> None:
        self.notes.append((event, username, str(details["target"])))

    async def look_up(self, name: str, _: int) -> Sequence[Address]:
        self.lookups.append(name)
        return [ip_address(address) for address in self.addresses]


@pytest.fixture(scope="module")
async def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("egress")


@pytest.fixture(scope="module")
async def served(directory: Path) -> AsyncIterator[Mirror]:
    async with mirror(directory) as served:
        yield served


@pytest.fixture(scope="module")
async def house(directory: Path, served: Mirror) -> AsyncIterator[Sandboxes]:
    ports = (served.https, served.echo, served.flood, served.read_nothing)
    allowed = ",".join([*(f"{NAME}:{port}={HOST}" for port in ports), "named.test"])
    async with sandboxes(
        directory / "houses", sandbox_network="egress", sandbox_egress_allow=allowed
    ) as house:
        yield house


@pytest.fixture(scope="module")
async def agent(house: Sandboxes, directory: Path) -> SessionId:
    """Give a session in whose sandbox the tests work."""
    session = house.thread("alice")
    with in_run(session):
        certificate = (directory / "certificate.pem").read_bytes()
        await house.backend.aupload_files([("/workspace/ca.pem", certificate)])
        await house.backend.awrite("/workspace/fetch.py", FETCH)
        await house.backend.awrite("/workspace/dial.py", DIAL)
    return session


@pytest.fixture
async def outside(house: Sandboxes, served: Mirror, agent: SessionId) -> Outside:
    egress = (await house.containers._here()).channels.egress
    assert egress is not None
    outside = Outside(served, egress)
    egress.record, egress.lookup = outside.record, outside.look_up
    egress._uses.clear()
    return outside


async def run(house: Sandboxes, session: SessionId, command: str) -> str:
    with in_run(session):
        result = await house.backend.aexecute(command, timeout=100)
    return f"{result.output}\n(exit code {result.exit_code})"


async def python(house: Sandboxes, session: SessionId, program: str) -> str:
    return await run(house, session, f"python3 - <<'END' 2>&1\nfrom dial import *\n{program}\nEND")


async def status(house: Sandboxes, session: SessionId, target: str) -> int:
    said = await python(house, session, f"print(dial({target!r})[1])")
    return int(said.split("\n")[0])


async def toolbox_memory(house: Sandboxes, session: SessionId) -> int:
    said = await run(house, session, "grep RssAnon /proc/1/status")
    return int(said.split()[1]) << 10


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("curl -sS --cacert ca.pem {url}/hello", "hello from outside"),
        ("pip download -q --cert ca.pem -i {url}/simple -d /tmp/got demo && ls /tmp/got", "demo-1.0-py3"),
        ("git -c http.sslCAInfo=/workspace/ca.pem ls-remote {url}/repo.git", "refs/heads/main"),
        ("SSL_CERT_FILE=ca.pem python3 fetch.py {url}/hello", "hello from outside"),
    ],
    ids=["curl", "pip", "git", "urllib"],
)
async def test_the_usual_tools_reach_an_allowed_host_without_being_told_how(
    house: Sandboxes, agent: SessionId, outside: Outside, command: str, expected: str
) -> None:
    url = f"https://{NAME}:{outside.mirror.https}"
    assert expected in await run(house, agent, command.format(url=url))
    assert set(outside.notes) == {("egress", "alice", f"{NAME}:{outside.mirror.https}")}
    assert outside.lookups == []


@pytest.mark.parametrize(
    "target",
    [
        "evil.example:443",
        f"{NAME}:443",
        "named.test:80",
        f"{HOST}:443",
        "127.0.0.1:443",
        "localhost:443",
        "sandbox:443",
        "[::1]:443",
        "172.17.0.1:2375",
        "169.254.169.254:80",
        "metadata.google.internal:443",
    ],
)
async def test_any_other_host_port_or_address_is_refused(
    house: Sandboxes, agent: SessionId, outside: Outside, target: str
) -> None:
    assert await status(house, agent, target) == 403
    assert outside.notes == [("egress_refused", "alice", target)]
    assert outside.lookups == []


@pytest.mark.parametrize("address", [HOST, "169.254.169.254", "10.0.0.1", "::1"])
async def test_an_allowed_name_that_leads_to_a_private_address_is_refused(
    house: Sandboxes, agent: SessionId, outside: Outside, address: str
) -> None:
    outside.addresses = [address]
    assert await status(house, agent, "named.test:443") == 403
    assert outside.lookups == ["named.test"]


async def test_a_tool_shows_why_it_was_refused(house: Sandboxes, agent: SessionId, outside: Outside) -> None:
    said = await run(house, agent, "python3 fetch.py https://evil.example/ 2>&1")
    assert "evil.example is not in SANDBOX_EGRESS_ALLOW" in said


async def test_plain_http_is_refused_and_says_so(
    house: Sandboxes, agent: SessionId, outside: Outside
) -> None:
    said = await run(house, agent, f"curl -sS -w '%{{http_code}}' http://{NAME}:{outside.mirror.https}/hello")
    assert "https" in said
    assert "405" in said
    assert outside.notes == []


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"\x16\x03\x01" + bytes(range(256)) + b"\r\n\r\n", b"400"),
        (b"CONNECT\r\n\r\n", b"400"),
        (b"CONNECT a:443 b HTTP/1.1\r\n\r\n", b"400"),
        (b"CONNECT a:443 SMTP\r\n\r\n", b"400"),
        (b"CONNECT " + b"a" * 5000 + b":443 HTTP/1.1\r\n\r\n", b"400"),
        (b"CONNECT \xff\xfe:443 HTTP/1.1\r\n\r\n", b"400"),
        (b"CONNECT a:443 HTTP/1.1\r\nX: " + b"x" * 20_000, b"431"),
        (b"POST http://a/ HTTP/1.1\r\nContent-Length: 9\r\n\r\n", b"405"),
        (b"GET / HTTP/1.1\r\n\r\n", b"405"),
    ],
)  # fmt: skip
async def test_what_is_no_proper_request_is_refused(
    house: Sandboxes, agent: SessionId, outside: Outside, sent: bytes, answer: bytes
) -> None:
    program = (
        f"s = socket.create_connection(('127.0.0.1', 3128)); s.sendall({sent!r}); print(s.recv(12)[9:12])"
    )
    assert repr(answer) in await python(house, agent, program)


async def test_bytes_arrive_whole_and_in_order_both_ways(
    house: Sandboxes, agent: SessionId, outside: Outside
) -> None:
    program = f"""
import hashlib, os, threading
s, _ = dial("{NAME}:{outside.mirror.echo}")
sent, came, data = hashlib.sha256(), hashlib.sha256(), os.urandom(1 << 20)
def send():
    for number in range(20):
        s.sendall(data[number:]); sent.update(data[number:])
sender = threading.Thread(target=send); sender.start()
left = sum(len(data) - number for number in range(20))
while left:
    piece = s.recv(left); left -= len(piece); came.update(piece)
sender.join()
print(sent.digest() == came.digest())
"""
    assert "True" in await python(house, agent, program)


async def test_what_comes_with_the_request_is_not_lost(
    house: Sandboxes, agent: SessionId, outside: Outside
) -> None:
    program = f"""
s = socket.create_connection(("127.0.0.1", 3128))
s.sendall(b"CONNECT {NAME}:{outside.mirror.echo} HTTP/1.1\\r\\n\\r\\nearly")
got = b""
while not got.endswith(b"early"):
    got += s.recv(100)
print(got)
"""
    assert "200" in await python(house, agent, program)


async def test_the_end_of_one_side_is_the_end_of_the_other(
    house: Sandboxes, agent: SessionId, outside: Outside
) -> None:
    program = f"""
s, _ = dial("{NAME}:{outside.mirror.https}")
s.sendall(b"this is not TLS" * 10)
while s.recv(1000): pass
print("ended")
"""
    assert "ended" in await python(house, agent, program)
    await python(house, agent, f"s, _ = dial('{NAME}:{outside.mirror.echo}'); s.close()")
    await until_none_is_open(outside)


async def until_none_is_open(outside: Outside) -> None:
    async with asyncio.timeout(30):
        while outside.mirror.echoing or outside.egress._open:
            await asyncio.sleep(0.02)


async def test_a_sandbox_has_so_many_connections_at_once_and_others_when_they_are_closed(
    house: Sandboxes, agent: SessionId, outside: Outside
) -> None:
    expected = [200] * STREAMS + [503] * 3
    program = f"""
def dial_all():
    dialled = [dial("{NAME}:{outside.mirror.echo}") for _ in range({STREAMS} + 3)]
    for s, _ in dialled: s.close()
    return sorted(status for _, status in dialled)

print(dial_all())
while dial_all() != {expected}: time.sleep(0.1)  # what was closed is so a moment later
print("and again")
"""
    said = await python(house, agent, program)
    assert said.startswith(f"{expected}\nand again")
    await until_none_is_open(outside)


async def test_a_flood_of_half_requests_does_not_keep_the_proxy_busy(
    house: Sandboxes, agent: SessionId, outside: Outside
) -> None:
    program = f"""
held = []
for _ in range(500):
    try:
        s = socket.create_connection(("127.0.0.1", 3128)); s.send(b"CONN"); held.append(s)
    except OSError:
        pass
print(len(held) > 400)
held.clear()
while dial("{NAME}:{outside.mirror.echo}")[1] != 200: time.sleep(0.1)  # what was closed is so a moment later
print("goes on")
"""
    assert "True\ngoes on" in await python(house, agent, program)


async def test_a_host_that_sends_without_end_fills_nobodys_memory(
    house: Sandboxes, agent: SessionId, outside: Outside
) -> None:
    """The attack: ask for much and read none of it."""
    process, before = psutil.Process(), await toolbox_memory(house, agent)
    rss = process.memory_info().rss
    program = f"""
held = [dial("{NAME}:{outside.mirror.flood}") for _ in range({STREAMS})]
print([status for _, status in held].count(200))
time.sleep(3)
print(open("/proc/1/status").read().partition("RssAnon:")[2].split()[0])
"""
    said = (await python(house, agent, program)).split()
    assert int(said[0]) == STREAMS
    assert (int(said[1]) << 10) - before < STREAMS * WINDOW_BYTES + 4 * MIB
    assert process.memory_info().rss - rss < 64 * MIB
    await until_none_is_open(outside)
    assert "hi" in await run(house, agent, "echo hi")


async def test_a_host_that_reads_nothing_fills_nobodys_memory_and_is_left_after_a_while(
    house: Sandboxes, agent: SessionId, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: send without end to a host that does not read."""
    monkeypatch.setattr(egress_streams, "IDLE_SECONDS", 5)
    process, before = psutil.Process(), await toolbox_memory(house, agent)
    rss = process.memory_info().rss
    program = f"""
s, _ = dial("{NAME}:{outside.mirror.read_nothing}")
s.settimeout(2)
sent = 0
try:
    while sent < 200 << 20:
        sent += s.send(bytes(1 << 16))
except OSError:
    print("stuck")
print(open("/proc/1/status").read().partition("RssAnon:")[2].split()[0])
"""
    said = (await python(house, agent, program)).split()
    assert said[0] == "stuck"
    assert (int(said[1]) << 10) - before < 4 * MIB
    assert process.memory_info().rss - rss < 32 * MIB
    await until_none_is_open(outside)


async def test_a_lost_channel_ends_its_connections_and_the_next_one_makes_others(
    house: Sandboxes, agent: SessionId, outside: Outside
) -> None:
    program = f"""
import pathlib
s, status = dial("{NAME}:{outside.mirror.echo}")
pathlib.Path("dialled").write_text(str(status))
ended = not s.recv(1)
try:
    alone = dial("{NAME}:{outside.mirror.echo}")[1]
except Exception as error:
    alone = repr(error)
pathlib.Path("ended").write_text(f"{{ended}} {{alone}}")
"""
    with in_run(agent):
        await house.backend.awrite("/workspace/background.py", "from dial import *\n" + program)
    await run(house, agent, "rm -f dialled ended; setsid python3 background.py > /dev/null 2>&1 & "
                            "until [ -s dialled ]; do sleep 0.05; done; true")  # fmt: skip
    assert outside.mirror.echoing == 1
    await (await house.containers._here()).channels.close(agent)
    await until_none_is_open(outside)
    # Whatever the server asks for next opens a channel; until then there is nobody to connect the sandbox.
    ended = house.workspaces.path(agent) / "ended"
    async with asyncio.timeout(30):
        while not ended.exists() or not ended.read_text():
            await asyncio.sleep(0.05)
    assert ended.read_text() == "True 502"
    assert await status(house, agent, f"{NAME}:{outside.mirror.echo}") == 200


async def test_with_several_servers_any_of_them_connects_the_sandbox(
    house: Sandboxes, agent: SessionId, outside: Outside
) -> None:
    channels = (await house.containers._here()).channels
    container = await house.containers.ensure(agent)
    other = await channels._connect(agent, container, await attach_by_relay(container))
    assert await status(house, agent, f"{NAME}:{outside.mirror.echo}") == 200
    await other.close()
    assert await status(house, agent, f"{NAME}:{outside.mirror.echo}") == 200


async def test_a_sandbox_without_egress_has_no_proxy_and_no_route(directory: Path) -> None:
    async with sandboxes(directory / "closed") as closed:
        session = closed.thread("alice")
        assert "proxy" not in (await run(closed, session, "env")).lower()
        assert "(exit code 7)" in await run(closed, session, f"curl -sS -x http://{PROXY} https://pypi.org")
        assert "(exit code 6)" in await run(closed, session, "curl -sS https://pypi.org")
        assert "(exit code 7)" in await run(closed, session, "curl -sS https://1.1.1.1")


async def test_a_sandbox_with_egress_has_no_route_but_the_proxy(
    house: Sandboxes, agent: SessionId, outside: Outside
) -> None:
    container = await (await house.containers.ensure(agent)).show()
    assert container["HostConfig"]["NetworkMode"] == "none"
    assert (await run(house, agent, "ls /sys/class/net")).split()[0] == "lo"
    assert (await run(house, agent, "wc -l < /proc/net/route")).split()[0] == "1"  # its heading
    assert "(exit code 7)" in await run(house, agent, f"curl -sS --noproxy '*' https://{HOST}")


async def test_the_toolbox_stays_small_with_a_proxy_in_it(
    house: Sandboxes, agent: SessionId, outside: Outside
) -> None:
    fresh = house.thread("alice")
    assert await toolbox_memory(house, fresh) <= 6 * MIB


@pytest.mark.usefixtures("database")
async def test_connections_are_in_the_audit_log(house: Sandboxes, agent: SessionId, outside: Outside) -> None:
    outside.egress.record = audit.record
    owner = house.thread("dialling")
    with in_run(owner):
        await house.backend.awrite("/workspace/dial.py", DIAL)
    allowed = f"{NAME}:{outside.mirror.echo}"
    for target in (allowed, "evil.example:443", "evil.example:443"):
        await status(house, owner, target)
    await audit.flush()
    entries = await audit.entries("dialling")
    assert [(it.event, it.details["target"], it.details.get("repeated")) for it in reversed(entries)] == [
        ("egress", allowed, None),
        ("egress_refused", "evil.example:443", None),
        ("egress_refused", "evil.example:443", 1),
    ]
    assert {it.thread_id for it in entries} == {owner.thread_id}
