"""Sandboxes with time: admitted, paused, resumed, removed, and shared by several server processes."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiodocker.containers import DockerContainer

from sandbox import channels, engine_calls
from sandbox.capacity import Capacity
from sandbox.engine import connected, docker_address
from sandbox.errors import DockerUnreachableError
from sandbox.image import ensure_image
from sandbox.lifecycle import Lifecycle
from sandbox.listing import list_containers
from sandbox.relay import DockerStream, attach_by_relay
from sandbox.settings import SandboxSettings
from sandbox.spec import container_name
from storage.database import get_pool
from storage.ids import SessionId
from storage.sandboxes import LedgerEntry
from tests.integration.sandboxes import Sandboxes, in_run

pytestmark = pytest.mark.usefixtures("database")

LONG = timedelta(days=2).total_seconds()


class Process(Sandboxes):
    """A server process of an installation; with a `twin`, another one of the same."""

    def __init__(self, root: Path, twin: "Process | None" = None, **settings: Any) -> None:
        self.capacity = Capacity(SandboxSettings(**settings), lambda: self.instance)
        super().__init__(root, self.capacity, **settings)
        if twin is not None:
            self.instance, self.live, self.uids = twin.instance, twin.live, twin.uids
        self.lifecycle = Lifecycle(SandboxSettings(**settings), self.containers, self.capacity)

    async def state(self, session: SessionId) -> str:
        """Tell what the engine says of a sandbox's container."""
        async with connected() as engine:
            found = await list_containers(engine, self.instance, session)
        return found[0].state if found else "none"

    async def running(self) -> int:
        async with connected() as engine:
            return sum(found.runs for found in await list_containers(engine, self.instance))

    async def entry(self, session: SessionId) -> LedgerEntry | None:
        entries = await (await self.capacity.ledger()).entries()
        return next((entry for entry in entries if entry.session == session), None)

    async def engine(self, session: SessionId, act: str) -> None:
        """Do something to a container behind the server's back."""
        async with connected() as engine:
            container = engine.docker.containers.container(container_name(self.instance, session))
            await getattr(container, act)(**({"force": True} if act == "delete" else {}))


@asynccontextmanager
async def processes(root: Path, count: int = 1, **settings: Any) -> AsyncIterator[list[Process]]:
    await ensure_image(print)
    first = Process(root, **settings)
    all_of_them = [first, *(Process(root, first, **settings) for _ in range(count - 1))]
    try:
        yield all_of_them
    finally:
        first.live.clear()
        await first.lifecycle.reconcile()
        for process in all_of_them:
            await process.containers.close()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Process]:
    async with processes(tmp_path) as [process]:
        yield process


async def unused_for(session: SessionId, seconds: float) -> None:
    """Have the ledger say that a sandbox has not been used for so long."""
    async with (await get_pool()).connection() as conn:
        await conn.execute(
            "UPDATE sandboxes SET used_at = clock_timestamp() - %s WHERE thread_id = %s",
            (timedelta(seconds=seconds), session.thread_id),
        )


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def busy(house: Process, session: SessionId) -> AsyncIterator[None]:
    """Have a command run in a sandbox for the length of a block; it ends well."""
    work = asyncio.create_task(house.run(session, "touch begun; until test -e end; do sleep 0.05; done"))
    directory = house.workspaces.path(session)
    while not (directory / "begun").exists():
        assert not work.done(), work.result()
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        (directory / "end").touch()
        await work


# --- sandboxes that nobody looks after ---------------------------------------------------------------


async def test_when_a_server_stops_its_sandboxes_stand_still_and_nobody_elses(tmp_path: Path) -> None:
    """What commands left running would go on, and nobody would see what it writes."""
    async with processes(tmp_path, 2) as [stopping, other]:
        mine, theirs = stopping.thread("alice"), stopping.thread("bob")
        await stopping.run(mine, "true")
        async with busy(other, theirs):
            await stopping.lifecycle.stop()
            assert await stopping.state(mine) == "paused"
            assert await stopping.state(theirs) == "running"
        assert await other.run(mine, "echo again") == "again\n"


async def test_what_a_server_that_was_killed_has_left_running_is_kept_within_the_limits(
    tmp_path: Path,
) -> None:
    async with processes(tmp_path, 2, sandbox_disk_mb=32) as [killed, next_one]:
        session = killed.thread("mallory")
        go = killed.workspaces.path(session) / "go"
        # Not at once: what is there when a workspace is first looked at does not count as growth. Not in one
        # file: that may not be longer than the limit.
        write = "for i in $(seq 250); do head -c 1M /dev/zero > f$i; sleep 0.05; done"
        fill = f"until test -e go; do sleep 0.1; done; {write}; sleep 500"
        await killed.run(session, f"setsid sh -c '{fill}' > /dev/null 2>&1 &")
        await killed.containers.close()  # and with it all that it knew
        await unused_for(session, 60)
        await next_one.lifecycle.sweep()
        go.touch()

        async def is_ended() -> bool:
            return await next_one.state(session) == "none"

        await until(is_ended)


async def test_of_a_users_sandboxes_only_so_many_are_kept(tmp_path: Path) -> None:
    """The attack: a sandbox for each of a thousand threads, all paused and none of them small."""
    limits = {"sandbox_max_per_user": 1, "sandbox_max_kept_per_user": 2}
    async with processes(tmp_path, **limits) as [house]:
        bobs = house.thread("bob")
        await house.run(bobs, "echo kept > file")
        sessions = [house.thread("alice") for _ in range(4)]
        for session in sessions:
            await house.run(session, "echo kept > file")
        states = [await house.state(session) for session in sessions]
        assert states == ["none", "none", "paused", "running"]
        assert await house.state(bobs) == "running"
        assert await house.run(sessions[0], "cat file") == "kept\n"


# --- idle sandboxes ----------------------------------------------------------------------------------


async def test_an_idle_sandbox_is_paused_and_the_next_call_finds_all_as_it_was(house: Process) -> None:
    session = house.thread("alice")
    await house.run(session, "setsid sleep 500 > /dev/null 2>&1 & echo kept > /tmp/file")
    before = await house.run(session, "pgrep -x sleep")
    await house.lifecycle.sweep()
    assert await house.state(session) == "running"
    await unused_for(session, 601)
    await house.lifecycle.sweep()
    assert await house.state(session) == "paused"
    assert await house.run(session, "pgrep -x sleep; cat /tmp/file") == f"{before}kept\n"
    assert await house.state(session) == "running"
    await house.lifecycle.sweep()
    assert await house.state(session) == "running"


async def test_a_sandbox_long_out_of_use_loses_its_container_and_keeps_its_workspace(house: Process) -> None:
    paused, running = house.thread("alice"), house.thread("alice")
    for session in (paused, running):
        await house.run(session, "echo kept > file")
    await unused_for(paused, 601)
    await house.lifecycle.sweep()
    for session in (paused, running):
        await unused_for(session, LONG)
    await house.lifecycle.sweep()
    for session in (paused, running):
        assert await house.state(session) == "none"
        assert await house.entry(session) is None
        assert await house.run(session, "cat file") == "kept\n"


async def test_a_sandbox_is_not_idle_while_a_call_is_under_way(tmp_path: Path) -> None:
    async with processes(tmp_path, 2) as [house, other]:
        session = house.thread("alice")
        async with busy(house, session):
            await unused_for(session, LONG)
            await house.lifecycle.sweep()
            assert await house.state(session) == "running"
            await house.capacity.renew()
            await other.lifecycle.sweep()
            assert await house.state(session) == "running"


async def test_a_sandbox_is_not_paused_while_a_relay_is_starting_in_it(
    house: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that does both at once may hang: the half-started process is frozen, and it waits for it."""
    starting, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(container: DockerContainer) -> DockerStream:
        starting.set()
        await go_on.wait()
        return await attach_by_relay(container)

    monkeypatch.setattr(channels, "attach_by_relay", slowly)
    session = house.thread("alice")
    await house.run(session, "true")
    has_started = asyncio.create_task(starting.wait())
    while not has_started.done():
        # The channel may be in use still: its disk is measured after a command.
        await house.containers.close_idle_channels(0)
        given_up = asyncio.create_task(house.run(session, "true"))
        await asyncio.wait([given_up, has_started], return_when=asyncio.FIRST_COMPLETED)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    await unused_for(session, 601)
    await house.lifecycle.sweep()
    state = await house.state(session)
    go_on.set()
    assert state == "running"
    assert await house.run(session, "echo alive") == "alive\n"
    await unused_for(session, 601)
    await house.lifecycle.sweep()
    assert await house.state(session) == "paused"


async def test_a_thread_can_be_deleted_while_its_sandbox_is_paused(house: Process) -> None:
    session = house.thread("alice")
    await house.run(session, "touch file")
    await unused_for(session, 601)
    await house.lifecycle.sweep()
    house.live.discard(session)
    await house.containers.remove(session)
    assert await house.state(session) == "none"
    assert await house.entry(session) is None
    assert not house.workspaces.path(session).exists()


async def test_only_so_many_connections_to_idle_sandboxes_are_kept(
    house: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_TRUSTED_SECONDS", 0)  # so that each use is noted
    forgotten, at_work, used = (house.thread(name) for name in ("alice", "bob", "carol"))
    await house.run(forgotten, "setsid sleep 500 > /dev/null 2>&1 &")
    async with busy(house, at_work):
        await house.run(used, "true")
        kept = await house.containers.channel(used)
        left = await house.containers.channel(forgotten)
        await house.run(used, "true")
        await house.containers.close_idle_channels(1)
        assert left.is_closed
        assert not kept.is_closed
    assert await house.run(forgotten, "pgrep -c -x sleep") == "1\n"


# --- capacity ----------------------------------------------------------------------------------------


async def test_a_users_least_used_idle_sandbox_makes_room_for_another(tmp_path: Path) -> None:
    async with processes(tmp_path, sandbox_max_per_user=2) as [house]:
        bobs, first, second, third = (house.thread(name) for name in ("bob", "alice", "alice", "alice"))
        for session in (bobs, first, second, third):
            await house.run(session, "true")
        assert [await house.state(each) for each in (bobs, first, second, third)] == [
            "running", "paused", "running", "running",
        ]  # fmt: skip
        await house.run(first, "true")
        assert [await house.state(each) for each in (first, second, third)] == [
            "running", "paused", "running",
        ]  # fmt: skip


async def test_a_user_whose_sandboxes_are_all_at_work_is_told_so_at_once(tmp_path: Path) -> None:
    async with processes(tmp_path, sandbox_max_per_user=2) as [house]:
        first, second, third = (house.thread("alice") for _ in range(3))
        async with busy(house, first):
            async with busy(house, second):
                with in_run(third):
                    async with asyncio.timeout(30):
                        result = await house.backend.aexecute("echo ran")
                        listing = await house.backend.als("/workspace")
                assert result.exit_code == 1
                assert "At capacity" in result.output
                assert "At capacity" in (listing.error or "")
                assert await house.state(third) == "none"
                assert await house.state(first) == await house.state(second) == "running"
                await house.run(house.thread("bob"), "true")
            assert await house.run(third, "echo ran") == "ran\n"


async def test_a_full_server_pauses_other_users_sandboxes_only_if_they_are_idle(tmp_path: Path) -> None:
    async with processes(tmp_path, sandbox_max_running=2) as [house]:
        idle, at_work, hers = (house.thread(name) for name in ("bob", "carol", "alice"))
        await house.run(idle, "true")
        async with busy(house, at_work), busy(house, hers):
            assert await house.state(idle) == "paused"
            assert await house.state(at_work) == await house.state(hers) == "running"
            with in_run(idle):
                assert "At capacity" in (await house.backend.aexecute("true")).output
        assert await house.run(idle, "echo resumed") == "resumed\n"
        assert await house.running() == 2


async def test_what_a_user_has_idle_goes_before_what_others_have(tmp_path: Path) -> None:
    async with processes(tmp_path, sandbox_max_running=2) as [house]:
        bobs, hers, another = (house.thread(name) for name in ("bob", "alice", "alice"))
        for session in (bobs, hers, another):
            await house.run(session, "true")
        assert [await house.state(each) for each in (bobs, hers, another)] == ["running", "paused", "running"]


async def test_one_process_takes_anothers_sandbox_for_idle_only_after_a_while(tmp_path: Path) -> None:
    async with processes(tmp_path, 2, sandbox_max_per_user=1) as [house, other]:
        first, second = house.thread("alice"), house.thread("alice")
        await house.run(first, "true")
        with in_run(second):
            assert "At capacity" in (await other.backend.aexecute("true")).output
        await unused_for(first, 20)
        assert await other.run(second, "echo ran") == "ran\n"
        assert await house.state(first) == "paused"


async def test_a_sandbox_that_two_processes_use_is_nobodys_to_take_for_idle(tmp_path: Path) -> None:
    async with processes(tmp_path, 2, sandbox_max_per_user=1) as [house, other]:
        shared, wanted = house.thread("alice"), house.thread("alice")
        async with busy(house, shared):
            await other.run(shared, "true")
            with in_run(wanted):
                assert "At capacity" in (await other.backend.aexecute("true")).output
            assert await house.state(shared) == "running"


async def test_containers_that_vanish_do_not_use_up_the_capacity(tmp_path: Path) -> None:
    async with processes(tmp_path, sandbox_max_per_user=1) as [house]:
        for _ in range(3):
            session = house.thread("alice")
            await house.run(session, "true")
            await house.engine(session, "delete")


# --- several processes -------------------------------------------------------------------------------


async def test_processes_that_create_pause_and_remove_at_once_lose_no_call(tmp_path: Path) -> None:
    """Both sweep far more often than anybody would, and what they sweep is all but in use."""
    times = {"sandbox_idle_seconds": 1, "sandbox_remove_seconds": 2}
    async with processes(tmp_path, 2, **times) as house_and_other:
        house = house_and_other[0]
        sessions = [house.thread(name) for name in ("alice", "alice", "bob")]
        seen: set[str] = set()

        async def use(session: SessionId, chance: random.Random) -> None:
            for turn in range(1, 9):
                process = chance.choice(house_and_other)
                assert await process.run(session, "echo >> log; wc -l < log") == f"{turn}\n"
                await asyncio.sleep(chance.choice([0, 0.3, 0.9, 1.1, 2.1]))
                seen.add(await process.state(session))

        async def sweep(process: Process) -> None:
            while True:
                await process.capacity.renew()
                await process.lifecycle.sweep()
                await process.lifecycle.reconcile()
                await asyncio.sleep(0.05)

        sweeping = [asyncio.create_task(sweep(process)) for process in house_and_other]
        chances = [random.Random(seed) for seed in range(3)]  # noqa: S311 - reproducible
        await asyncio.gather(*map(use, sessions, chances))
        assert not any(task.done() for task in sweeping), [task for task in sweeping if task.done()]
        for task in sweeping:
            task.cancel()
        await asyncio.wait(sweeping)
        assert seen >= {"paused", "none"}


@pytest.mark.parametrize("act", ["pause", "discard"])
async def test_whoever_uses_a_sandbox_while_another_process_pauses_or_removes_it_waits_for_that(
    tmp_path: Path, act: str
) -> None:
    async with processes(tmp_path, 2) as [house, other]:
        session = house.thread("alice")
        await house.run(session, "echo kept > file")
        await unused_for(session, 601)
        using: asyncio.Task[str] | None = None

        async def wait_for_a_user_then_act(settled: SessionId) -> bool:
            nonlocal using
            using = asyncio.create_task(other.run(session, "cat file"))
            await until(somebody_waits_for_a_row)
            assert not using.done()
            is_there: bool = await getattr(house.containers, act)(settled)
            return is_there

        assert await house.capacity.settle_unused(timedelta(1), wait_for_a_user_then_act, running=True) == 0
        unused = timedelta(minutes=10)
        assert await house.capacity.settle_unused(unused, wait_for_a_user_then_act, running=True) == 1
        assert using
        assert await using == "kept\n"


async def somebody_waits_for_a_row() -> bool:
    query = "SELECT count(*) AS waiting FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
    async with (await get_pool()).connection() as conn:
        row = await (await conn.execute(query)).fetchone()
    return bool(row and row["waiting"])


async def test_processes_together_never_run_more_than_may_run(tmp_path: Path) -> None:
    async with processes(tmp_path, 2, sandbox_max_running=2) as both:
        sessions = [both[0].thread(f"user{number}") for number in range(6)]
        most = 0

        async def try_to_run(number: int, session: SessionId) -> bool:
            with in_run(session):
                result = await both[number % 2].backend.aexecute("sleep 0.5; echo ran")
            assert result.output == "ran\n" or "At capacity" in result.output, result
            return result.output == "ran\n"

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, await both[0].running())

        watching = asyncio.create_task(watch())
        for _ in range(3):
            ran = await asyncio.gather(*(try_to_run(*each) for each in enumerate(sessions)))
            assert 1 <= sum(ran) <= 6
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        assert most == 2


# --- the ledger and the engine -----------------------------------------------------------------------


async def test_reconciling_puts_right_what_was_done_behind_the_servers_back(house: Process) -> None:
    removed, paused, resumed, unknown = (house.thread("alice") for _ in range(4))
    for session in (removed, paused, resumed, unknown):
        await house.run(session, "true")
    await unused_for(resumed, 601)
    await house.lifecycle.sweep()
    await house.engine(resumed, "unpause")
    await house.engine(removed, "delete")
    await house.engine(paused, "pause")
    await (await house.capacity.ledger()).forget(unknown)
    for session in (removed, paused):
        await unused_for(session, 60)
    assert await house.lifecycle.reconcile() == 0
    entries = [await house.entry(session) for session in (removed, paused, resumed, unknown)]
    assert [entry and entry.running for entry in entries] == [None, False, True, True]
    for session in (removed, paused, resumed, unknown):
        assert await house.run(session, "echo alive") == "alive\n"


async def test_reconciling_leaves_alone_what_is_being_made(tmp_path: Path) -> None:
    async with processes(tmp_path, 2) as [house, other]:
        session = house.thread("alice")
        await (await house.capacity.ledger()).admit(session, 1, 1)
        await other.lifecycle.reconcile()
        entry = await house.entry(session)
        assert entry
        assert entry.running


async def test_orphans_of_this_installation_are_removed_and_no_others(tmp_path: Path) -> None:
    async with processes(tmp_path / "ours") as [ours], processes(tmp_path / "theirs") as [theirs]:
        kept, orphan, another = ours.thread("alice"), ours.thread("alice"), theirs.thread("alice")
        for process, session in ((ours, kept), (ours, orphan), (theirs, another)):
            await process.run(session, "true")
        ours.live.discard(orphan)
        assert await ours.lifecycle.reconcile() == 1
        assert await ours.state(kept) == await theirs.state(another) == "running"
        assert await ours.state(orphan) == "none"
        assert await ours.entry(orphan) is None
        await unused_for(another, LONG)
        await ours.lifecycle.sweep()
        assert await theirs.state(another) == "running"


@asynccontextmanager
async def engine_hangs_for(house: Process, session: SessionId) -> AsyncIterator[None]:
    """Have the engine answer nothing about one container, for the length of a block."""
    container = await house.containers.ensure(session)
    shims = [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"].startswith("containerd-shim")
        and container.id in (process.info["cmdline"] or ())
    ]
    assert shims
    for shim in shims:
        shim.suspend()
    try:
        yield
    finally:
        for shim in shims:
            shim.resume()


@pytest.mark.skipif(os.geteuid() != 0, reason="the engine's processes are root's")
async def test_an_engine_that_hangs_for_one_sandbox_holds_up_no_other(
    house: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_calls, "_REMOVAL_SECONDS", 1)
    monkeypatch.setattr(engine_calls, "_ANSWER_SECONDS", 1)
    old, stuck, other = house.thread("mallory"), house.thread("mallory"), house.thread("alice")
    for session in (old, stuck, other):
        await house.run(session, "true")
    async with asyncio.timeout(30), engine_hangs_for(house, stuck):
        for session in (stuck, other):
            await unused_for(session, 601)
        await house.lifecycle.sweep()
        assert await house.state(other) == "paused"
        for session in (stuck, other):
            await unused_for(session, LONG)
        await house.lifecycle.sweep()
        assert await house.state(other) == "none"
        house.live -= {old, stuck}
        assert await house.lifecycle.reconcile() == 1
        assert await house.state(old) == "none"
    await house.lifecycle.reconcile()
    assert await house.state(stuck) == "none"


async def test_a_sandbox_paused_in_error_goes_on_by_itself(house: Process) -> None:
    session = house.thread("alice")
    async with busy(house, session):
        await house.engine(session, "pause")
        await until(lambda: is_state(house, session, "running"))


async def is_state(house: Process, session: SessionId, state: str) -> bool:
    return await house.state(session) == state


class Wire:
    """A socket that leads to the engine, unless it is cut."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix://{path}"
        self._path = path
        self._engine = docker_address().removeprefix("unix://")
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def connect(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        self._path.unlink()
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine_reader, engine_writer = await asyncio.open_unix_connection(self._engine)
        self._open |= {writer, engine_writer}
        await asyncio.gather(copy(reader, engine_writer), copy(engine_reader, writer), return_exceptions=True)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


@pytest.fixture
def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    wire = Wire(tmp_path / "docker.sock")
    monkeypatch.setenv("DOCKER_HOST", wire.address)
    return wire


async def test_an_engine_that_is_away_for_a_while_ends_nothing(tmp_path: Path, wire: Wire) -> None:
    await wire.connect()
    async with processes(tmp_path / "workspaces", sandbox_idle_seconds=1) as [house]:
        session = house.thread("alice")
        await house.run(session, "true")
        running = asyncio.create_task(house.lifecycle.run())
        await wire.cut()
        await unused_for(session, 601)

        async def cannot_sweep() -> bool:
            # It is the one beside us that finds it out while it has the sandbox's entry.
            try:
                await house.lifecycle.sweep()
            except DockerUnreachableError:
                return True
            return False

        await until(cannot_sweep)
        with in_run(session):
            assert "not reachable" in (await house.backend.aexecute("true")).output
        entry = await house.entry(session)
        assert entry
        assert entry.running
        await wire.connect()
        await until(lambda: is_state(house, session, "paused"))
        assert await house.run(session, "echo alive") == "alive\n"
        assert not running.done()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
