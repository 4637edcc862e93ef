"""The attack: code in a sandbox takes the toolbox's place, and has the server connect it as it likes."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from uuid import uuid4

import psutil
import pytest

from sandbox import egress as egress_module
from sandbox import egress_streams
from sandbox.egress import Egress, RefusedError, WayOut
from sandbox.egress_rules import Address, parse_rules
from sandbox.errors import NotStartedError
from sandbox.toolbox.frames import (
    CHUNK_BYTES,
    CLOSE,
    CONNECTED,
    CREDIT,
    DIAL,
    REQUEST,
    RESULT,
    STREAM,
    STREAMS,
    TARGET_BYTES,
    WINDOW_BYTES,
    pack,
    pack_amount,
    pack_json,
    parse_amount,
)
from storage.ids import SessionId
from tests.integration.fake_toolbox import Fake, channel_to

MIB = 1 << 20
HERE = "127.0.0.2"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class World:
    """One host that may be reached, what its name is looked up as, and what has been noted."""

    port: int
    limit: int = 100 * MIB
    addresses: list[str] = field(default_factory=lambda: [HERE])
    lookups: list[str] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    connected: int = 0
    ended: int = 0

    def __post_init__(self) -> None:
        self.pinned = f"mirror.test:{self.port}".encode()
        self.egress = Egress(
            parse_rules(f"mirror.test:{self.port}={HERE},named.test:{self.port}"),
            self.limit,
            record=self._record,
            lookup=self._look_up,
        )

    def way_out(self, owner: str = "mallory") -> WayOut:
        return WayOut(self.egress, SessionId(owner, uuid4()))

    async def _record(self, event: str, *_: object, details: dict[str, object], **__: object) -> None:
        self.notes.append((event, str(details["target"])))

    async def _look_up(self, name: str, _: int) -> Sequence[Address]:
        self.lookups.append(name)
        if not self.addresses:
            raise OSError
        return [ip_address(address) for address in self.addresses]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()


async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(bytes(CHUNK_BYTES))
        await writer.drain()


async def read_nothing(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def world(serve: Serve = echo, limit: int = 100 * MIB) -> AsyncIterator[World]:
    """Serve on a private address, which the operator has named for one name and not for another."""

    async def count_and_serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.connected += 1
        try:
            await serve(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
            found.ended += 1

    tasks: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(count_and_serve(reader, writer)))

    listener = await asyncio.start_server(begin, HERE, 0, limit=CHUNK_BYTES)
    found = World(listener.sockets[0].getsockname()[1], limit)
    try:
        yield found
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def dialled(fake: Fake, number: int, target: bytes) -> tuple[int, int, bytes]:
    await fake.say(pack(DIAL, number, target))
    return await fake.hear()


async def refusal(fake: Fake, number: int, target: bytes) -> int:
    """Dial, hear that it is refused, and confirm. Returns HTTP's status."""
    kind, of, payload = await dialled(fake, number, target)
    assert (kind, of) == (CLOSE, number)
    await fake.say(pack(CLOSE, number))
    status: int = json.loads(payload)["status"]
    return status


@asynccontextmanager
async def playing(here: World, play: Callable[[Fake], Awaitable[None]]) -> AsyncIterator[None]:
    """Have a fake toolbox play to its end, on a channel with a way out."""
    outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def whole(fake: Fake) -> None:
        try:
            await play(fake)
        except BaseException as error:  # noqa: BLE001 - the test is to see it
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    async with channel_to(whole, here.way_out()), asyncio.timeout(60):
        yield
        await outcome


async def play_on(here: World, play: Callable[[Fake], Awaitable[None]]) -> None:
    async with playing(here, play):
        pass


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([pack(DIAL, 1, b"%b")], id="a number in use"),
        pytest.param([pack(DIAL, 2, bytes(TARGET_BYTES + 1))], id="an endless name"),
        pytest.param([pack(DIAL, n, b"x:1") for n in range(2, STREAMS + 2)], id="more than may be"),
        pytest.param([pack(STREAM, 77, b"x")], id="data for no stream"),
        pytest.param([pack_amount(CREDIT, 77, 1)], id="credit for no stream"),
        pytest.param([pack(CLOSE, 77)], id="the end of no stream"),
        pytest.param([pack(CONNECTED, 1)], id="the host's own word"),
        pytest.param([pack(STREAM, 1)], id="no data"),
        pytest.param([pack(STREAM, 1, bytes(WINDOW_BYTES + 1))], id="more than there is room for"),
        pytest.param([pack_amount(CREDIT, 1, 1)], id="credit for what was never sent"),
        pytest.param([pack_amount(CREDIT, 1, 0xFFFFFFFF)], id="endless credit"),
        pytest.param([pack_amount(CREDIT, 1, 0)], id="no credit"),
        pytest.param([pack(CREDIT, 1, b"-1")], id="credit that is no number"),
        pytest.param([pack(CREDIT, 1)], id="credit without a number"),
        pytest.param([pack(CLOSE, 1), pack(CLOSE, 1)], id="a second end"),
        pytest.param([pack(CLOSE, 1), pack(STREAM, 1, b"x")], id="data after the end"),
    ],
)
async def test_what_belongs_to_no_stream_ends_the_channel_and_its_connections(frames: list[bytes]) -> None:
    async with world() as here:

        async def play(fake: Fake) -> None:
            assert await dialled(fake, 1, here.pinned) == (CONNECTED, 1, b"")
            for frame in frames:
                await fake.say(frame.replace(b"%b", here.pinned))
            await fake.is_left()

        await play_on(here, play)
        assert here.connected == 1
        await until(lambda: here.ended == 1)


async def test_without_egress_asking_for_a_connection_ends_the_channel() -> None:
    async def play(fake: Fake) -> None:
        await fake.say(pack(DIAL, 1, b"pypi.org:443"))
        await fake.is_left()

    async with channel_to(play) as channel:
        with pytest.raises(NotStartedError):
            await channel.call("read", {}, timeout=10)


async def test_a_stream_may_have_the_number_of_a_call() -> None:
    async with world() as here:

        async def play(fake: Fake) -> None:
            kind, number, _ = await fake.hear()
            assert kind == REQUEST
            assert await dialled(fake, number, here.pinned) == (CONNECTED, number, b"")
            await fake.say(pack(STREAM, number, b"both ways"))
            assert await fake.hear() == (STREAM, number, b"both ways")
            await fake.say(pack_json(RESULT, number, {"n": 1}))
            await fake.is_left()

        async with channel_to(play, here.way_out()) as channel:
            assert await channel.call("read", {}, timeout=30) == ({"n": 1}, b"")


async def test_a_number_is_free_again_when_both_have_closed() -> None:
    async with world() as here:

        async def play(fake: Fake) -> None:
            for _ in range(3):
                assert await dialled(fake, 1, here.pinned) == (CONNECTED, 1, b"")
                await fake.say(pack(STREAM, 1, b"last words") + pack(CLOSE, 1))
                while (await fake.hear())[0] != CLOSE:  # the echo may come before
                    pass

        await play_on(here, play)
        assert here.notes == [("egress", here.pinned.decode())] * 3


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("evil.example:443", 403),
        ("mirror.test:443", 403),
        ("127.0.0.2:443", 403),
        ("[::1]:443", 403),
        ("169.254.169.254:80", 403),
        ("mirror.test", 400),
        ("127.1:80", 400),
        ("\0:443", 400),
        ("named.test\r\n:443", 400),
        ("", 400),
    ],
)
async def test_what_is_not_allowed_is_refused_noted_and_not_even_looked_up(target: str, status: int) -> None:
    async with world() as here:

        async def play(fake: Fake) -> None:
            assert await refusal(fake, 1, target.encode()) == status

        await play_on(here, play)
        assert here.notes == [("egress_refused", target)]
        assert (here.lookups, here.connected) == ([], 0)


async def test_a_target_that_is_no_text_is_refused() -> None:
    async with world() as here:

        async def play(fake: Fake) -> None:
            assert await refusal(fake, 1, b"\xff\xfe:443") == 400

        await play_on(here, play)


@pytest.mark.parametrize(
    "addresses",
    [
        pytest.param(["127.0.0.2"], id="the server's own machine"),
        pytest.param(["169.254.169.254"], id="cloud metadata"),
        pytest.param(["93.184.215.14", "10.0.0.1"], id="a private one among public ones"),
        pytest.param(["::ffff:127.0.0.2"], id="as IPv6"),
        pytest.param(["64:ff9b::a9fe:a9fe"], id="through NAT64"),
        pytest.param(["2002:7f00:2::1"], id="through 6to4"),
    ],
)
async def test_an_allowed_name_that_leads_to_a_private_address_is_refused(addresses: list[str]) -> None:
    async with world() as here:
        here.addresses = addresses
        target = f"named.test:{here.port}"

        async def play(fake: Fake) -> None:
            assert await refusal(fake, 1, target.encode()) == 403

        await play_on(here, play)
        assert here.notes == [("egress_refused", target)]
        assert (here.lookups, here.connected) == (["named.test"], 0)


async def test_rebinding_leads_nowhere_for_the_address_checked_is_the_one_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The attack: a name has a public address when it is checked and another one right after."""
    checked = []

    def is_public(address: Address) -> bool:
        checked.append(str(address))
        here.addresses = ["127.0.0.99"]  # what any further lookup would find, and nothing listens there
        return True

    monkeypatch.setattr(egress_module, "is_public", is_public)
    async with world() as here:

        async def play(fake: Fake) -> None:
            assert await dialled(fake, 1, f"named.test:{here.port}".encode()) == (CONNECTED, 1, b"")

        await play_on(here, play)
        assert (checked, here.lookups, here.connected) == ([HERE], ["named.test"], 1)


async def test_what_cannot_be_reached_is_said_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_module, "LOOKUP_SECONDS", 0.05)

    async def never(name: str, port: int) -> Sequence[Address]:
        await asyncio.Event().wait()
        return []

    async with world() as here:
        here.addresses = []
        named = f"named.test:{here.port}".encode()

        async def play(fake: Fake) -> None:
            assert await refusal(fake, 1, named) == 502
            here.egress.lookup = never
            assert await refusal(fake, 1, named) == 502
            nobody_there = parse_rules(f"mirror.test:{here.port}=127.0.0.98")
            here.egress.rules = nobody_there
            assert await refusal(fake, 1, here.pinned) == 502

        await play_on(here, play)


async def test_a_users_and_all_sandboxes_connections_are_counted_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(egress_module, "USERS_CONNECTIONS", 2)
    monkeypatch.setattr(egress_module, "ALL_CONNECTIONS", 3)
    async with world() as here:
        async with here.way_out().connection(here.pinned), here.way_out().connection(here.pinned):
            with pytest.raises(RefusedError) as users:
                await here.way_out().connection(here.pinned).__aenter__()
            async with here.way_out("bob").connection(here.pinned):
                with pytest.raises(RefusedError) as alls:
                    await here.way_out("carol").connection(here.pinned).__aenter__()
        assert (users.value.status, alls.value.status) == (503, 503)
        async with here.way_out("carol").connection(here.pinned):
            pass
        assert not here.egress._open


async def test_who_dials_in_a_loop_is_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_module, "BURST", 2)
    async with world() as here:

        async def play(fake: Fake) -> None:
            for number in range(8):
                assert await refusal(fake, number, b"evil.example:443") == 403

        began = time.monotonic()
        await play_on(here, play)
        assert time.monotonic() - began > 5 / egress_module.DIALS_PER_SECOND


async def test_what_has_moved_enough_today_moves_no_more() -> None:
    async with world(flood, limit=1 * MIB) as here:

        async def play(fake: Fake) -> None:
            assert await dialled(fake, 1, here.pinned) == (CONNECTED, 1, b"")
            came = 0
            kind, _, payload = await fake.hear()
            while kind == STREAM:
                came += len(payload)
                await fake.say(pack_amount(CREDIT, 1, len(payload)))
                kind, _, payload = await fake.hear()
            assert kind == CLOSE
            assert came <= 1 * MIB + 2 * CHUNK_BYTES
            await fake.say(pack(CLOSE, 1))
            assert await refusal(fake, 2, here.pinned) == 429

        await play_on(here, play)


async def test_single_bytes_are_charged_for_the_time_they_take() -> None:
    async with world(echo, limit=1 * MIB) as here:

        async def play(fake: Fake) -> None:
            assert await dialled(fake, 1, here.pinned) == (CONNECTED, 1, b"")
            frames = MIB // egress_streams.FRAME_COST
            await fake.say(pack(STREAM, 1, b"x") * frames)
            while (await fake.hear())[0] != CLOSE:
                pass

        await play_on(here, play)


async def test_a_connection_on_which_nothing_moves_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_streams, "IDLE_SECONDS", 0.1)
    async with world() as here:

        async def play(fake: Fake) -> None:
            assert await dialled(fake, 1, here.pinned) == (CONNECTED, 1, b"")
            assert await fake.hear() == (CLOSE, 1, b"{}")
            await until(lambda: here.ended == 1)

        await play_on(here, play)


async def test_a_sandbox_that_takes_nothing_makes_the_server_hold_little() -> None:
    """The attack: ask hosts for much, and read none of it."""
    process = psutil.Process()
    async with world(flood) as here:

        async def play(fake: Fake) -> None:
            for number in range(STREAMS):
                await fake.say(pack(DIAL, number, here.pinned))
            await until(lambda: here.connected == STREAMS)
            moved = 0
            use = next(iter(here.egress._uses.values()))
            while use.moved > moved:  # until everything stands still
                moved = use.moved
                await asyncio.sleep(0.5)
            assert moved <= STREAMS * (WINDOW_BYTES + 1024)

        before = process.memory_info().rss
        await play_on(here, play)
        assert process.memory_info().rss - before < 48 * MIB


async def test_a_host_that_takes_nothing_makes_the_server_hold_little() -> None:
    """The attack: send much to a host that reads none of it."""
    process = psutil.Process()
    async with world(read_nothing) as here:
        credited = 0

        async def play(fake: Fake) -> None:
            nonlocal credited
            assert await dialled(fake, 1, here.pinned) == (CONNECTED, 1, b"")
            room, deadline = WINDOW_BYTES, time.monotonic() + 30
            while time.monotonic() < deadline:
                await fake.say(pack(STREAM, 1, bytes(min(room, CHUNK_BYTES))))
                room -= min(room, CHUNK_BYTES)
                if not room:
                    try:
                        async with asyncio.timeout(1):
                            kind, _, payload = await fake.hear()
                    except TimeoutError:
                        return  # the kernel's buffers are full, and the window is
                    assert kind == CREDIT
                    room = parse_amount(payload)
                    credited += room
            pytest.fail("it took everything")

        before = process.memory_info().rss
        await play_on(here, play)
        assert process.memory_info().rss - before < 16 * MIB
        assert credited < 32 * MIB


async def test_a_lost_channel_ends_its_connections_and_frees_their_places() -> None:
    async with world() as here:

        async def play(fake: Fake) -> None:
            for number in range(3):
                assert (await dialled(fake, number, here.pinned))[0] == CONNECTED

        await play_on(here, play)
        await until(lambda: here.ended == 3)
        assert not here.egress._open


async def test_ones_own_slow_lookups_hold_up_nobody_elses() -> None:
    """The attack: names whose servers never answer. Each keeps its thread, even if nobody waits any more."""
    looking: list[str] = []
    never = asyncio.Event()

    async def look_up(name: str, _: int) -> Sequence[Address]:
        looking.append(name)
        if name.endswith("slow.test"):
            await never.wait()
        raise OSError

    async with world() as here:
        here.egress.rules = parse_rules("*.slow.test,named.test")
        here.egress.lookup = look_up
        mallory = here.way_out()

        async def dial(way_out: WayOut, target: bytes) -> int:
            with pytest.raises(RefusedError) as refusal:
                async with way_out.connection(target):
                    pass
            return refusal.value.status

        slow = [asyncio.create_task(dial(mallory, f"{n}.slow.test:443".encode())) for n in range(10)]
        await asyncio.sleep(0.1)
        assert len(looking) == 2
        assert await dial(here.way_out("alice"), b"named.test:443") == 502
        assert looking[-1] == "named.test"
        assert await asyncio.gather(*slow) == [502] * 10
        assert len(looking) == 3
        never.set()
