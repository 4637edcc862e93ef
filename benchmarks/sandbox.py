"""How fast a sandbox is: Warren's against one `docker exec` per call, same engine and image, in one run.

The baseline is deepagents' own `BaseSandbox` over docker-py, which is what packages on PyPI do; `llm-sandbox`
comes along where it has the operation at all. Rounds are interleaved, so that what else the machine does hits
all. With `--json FILE` a plot is written beside it.
"""

import asyncio
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from deepagents.backends.sandbox import BaseSandbox

from benchmarks._exec_backends import ExecSandbox, LlmSandbox
from benchmarks._figures import percentiles, publish, row, setting, verdict
from benchmarks._sandbox_operations import BIG, KIB, MIX, SMALL, execute, prepare
from benchmarks._sandbox_plot import plot
from sandbox.engine import connected
from sandbox.image import find_image
from server.child import temporary_data_dir
from storage.ids import SessionId
from tests.integration.sandboxes import Sandboxes, in_run, sandboxes

ROUNDS = 50
OURS_PER_ROUND = 10
THEIRS_PER_ROUND = 2
BIG_ROUNDS = 10
COLD_STARTS = 12
RESUMES = 20
CANCELS = 30
TOGETHER = 8
TOGETHER_SECONDS = 6.0

TARGETS = {
    "execute": 12,
    "write 1 KB": 100,
    "read 1 KB": 80,
    "read 2,000 lines": 50,
    "edit": 45,
    "ls": 100,
    "glob 1,000 files": 8,
    "grep 1,000 files": 4,
    "upload 10 MB": 1,
    "download 10 MB": 1,
}
"""How many times faster than the baseline, at the median."""

TOGETHER_TARGET = 15
COLD_TARGET = 0.95
RESUME_TARGET_MS = 25
MEMORY_TARGET_KIB = 6 << 10
CANCEL_TARGET_MS = 50

_RANKS = (50, 95, 99)
_WIDTHS = (18, 10, 8, 8, 8, 8, 8)


Seconds = dict[str, dict[str, list[float]]]


def measure() -> dict[str, Any]:
    """Measure everything and return the figures, in milliseconds unless a name says otherwise."""
    with temporary_data_dir() as root:
        return asyncio.run(_measure(root))


async def _measure(root: Path) -> dict[str, Any]:
    async with sandboxes(root) as ours:
        async with connected() as engine:
            image = await find_image(engine)
        if image is None:
            raise RuntimeError("The sandbox image is missing.")
        seconds = await _operations(ours, image)
        return {
            "benchmark": "sandbox",
            **setting("deepagents", "docker", "llm-sandbox", "aiodocker"),
            "operations": {
                name: {who: percentiles(own, _RANKS) for who, own in of_each.items()}
                for name, of_each in seconds.items()
            },
            "operations_per_second": await _together(ours, image),
            "cold_start": await _cold_starts(ours, image),
            "resume": percentiles(await _resumes(ours), _RANKS),
            "cancel": percentiles(await _cancels(ours), _RANKS),
            "toolbox_rss_anon_kib": await _toolbox_memory(ours),
        }


async def _operations(ours: Sandboxes, image: str) -> Seconds:
    """Time every operation, in turns."""
    seconds: Seconds = defaultdict(lambda: defaultdict(list))
    async with _exec_sandbox(image) as theirs, _llm_sandbox(image) as peer:
        with in_run(ours.thread("bench")):
            for backend in (ours.backend, theirs):
                await prepare(backend)
            for number in range(ROUNDS + 1):
                # The first round warms up.
                taken: Seconds = seconds if number else defaultdict(lambda: defaultdict(list))
                for name, operation in SMALL.items():
                    for _ in range(OURS_PER_ROUND):
                        taken[name]["warren"].append(await _timed(operation(ours.backend)))
                    for _ in range(THEIRS_PER_ROUND):
                        taken[name]["baseline"].append(await _timed(operation(theirs)))
                await _in_its_own_terms(peer, taken)
            for _ in range(BIG_ROUNDS):
                for name, operation in BIG.items():
                    seconds[name]["warren"].append(await _timed(operation(ours.backend)))
                    seconds[name]["baseline"].append(await _timed(operation(theirs)))
    for who, both_ways in seconds["edit"].items():
        seconds["edit"][who] = [both / 2 for both in both_ways]
    return seconds


async def _in_its_own_terms(peer: LlmSandbox, seconds: Seconds) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "kib.txt"
        file.write_text(KIB)
        for name, work in {
            "execute": lambda: peer.execute("echo hi"),
            "write 1 KB": lambda: peer.copy_in(str(file), "/sandbox/kib.txt"),
            "read 1 KB": lambda: peer.copy_out("/sandbox/kib.txt", f"{file}.out"),
        }.items():
            seconds[name]["llm-sandbox"].append(await _timed(asyncio.to_thread(work)))


async def _together(ours: Sandboxes, image: str) -> dict[str, float]:
    """Have sandboxes work at once on a mix of small operations; return operations per second of them all."""
    async with AsyncExitStack() as stack:
        theirs = [await stack.enter_async_context(_exec_sandbox(image)) for _ in range(TOGETHER)]
        await asyncio.gather(*(prepare(backend) for backend in theirs))
        sessions = [ours.thread("bench") for _ in range(TOGETHER)]

        async def of_session(session: SessionId, *, measured: bool) -> int:
            with in_run(session):
                if measured:
                    return await _work(ours.backend)
                await prepare(ours.backend)
                return 0

        await asyncio.gather(*(of_session(session, measured=False) for session in sessions))
        own = await asyncio.gather(*(of_session(session, measured=True) for session in sessions))
        others = await asyncio.gather(*(_work(backend) for backend in theirs))
    return {
        "warren": round(sum(own) / TOGETHER_SECONDS, 1),
        "baseline": round(sum(others) / TOGETHER_SECONDS, 1),
    }


async def _work(backend: BaseSandbox) -> int:
    done = 0
    until = time.perf_counter() + TOGETHER_SECONDS
    while time.perf_counter() < until:
        for operation in MIX:
            await operation(backend)
        done += len(MIX)
    return done


async def _cold_starts(ours: Sandboxes, image: str) -> dict[str, dict[str, float]]:
    """From no container to a command's output."""
    seconds: dict[str, list[float]] = {"warren": [], "baseline": []}
    for _ in range(COLD_STARTS):
        with in_run(session := ours.thread("bench")):
            seconds["warren"].append(await _timed(execute(ours.backend)))
        await ours.containers.remove(session)
        started = time.perf_counter()
        async with _exec_sandbox(image) as theirs:
            await execute(theirs)
            seconds["baseline"].append(time.perf_counter() - started)
    return {who: percentiles(own, _RANKS) for who, own in seconds.items()}


async def _resumes(ours: Sandboxes) -> list[float]:
    """From a paused container to a file's content."""
    session = ours.thread("bench")
    seconds = []
    with in_run(session):
        await prepare(ours.backend)
        for _ in range(RESUMES):
            await ours.pause(session)
            seconds.append(await _timed(SMALL["read 1 KB"](ours.backend)))
    return seconds


async def _cancels(ours: Sandboxes) -> list[float]:
    """From a cancelled call to the end of the last process that it had started."""
    session = ours.thread("bench")
    seconds = []
    command = "sleep 1000 & (setsid sleep 1000 &) ; touch /workspace/begun; sleep 1000"
    for _ in range(CANCELS):
        with in_run(session):
            running = asyncio.create_task(ours.backend.aexecute(command))
        while "begun" not in await ours.run(session, "ls /workspace"):
            pass
        started = time.perf_counter()
        running.cancel()
        await asyncio.wait([running])
        seconds.append(time.perf_counter() - started)
        left = await ours.run(session, "rm begun; pgrep -c sleep || true")
        if left != "0\n":
            raise RuntimeError(f"A cancelled command left {left.strip()} processes.")
    return seconds


async def _toolbox_memory(ours: Sandboxes) -> int:
    """Return the anonymous memory of an idle sandbox's first process, in KiB."""
    session = ours.thread("bench")
    await ours.run(session, "true")
    found = re.search(r"RssAnon:\s+(\d+) kB", await ours.run(session, "cat /proc/1/status"))
    if found is None:
        raise RuntimeError("The kernel does not tell RssAnon.")
    return int(found[1])


@asynccontextmanager
async def _exec_sandbox(image: str) -> AsyncIterator[ExecSandbox]:
    sandbox = await asyncio.to_thread(ExecSandbox, image)
    try:
        yield sandbox
    finally:
        await asyncio.to_thread(sandbox.remove)


@asynccontextmanager
async def _llm_sandbox(image: str) -> AsyncIterator[LlmSandbox]:
    peer = LlmSandbox(image)
    await asyncio.to_thread(peer.open)
    try:
        yield peer
    finally:
        await asyncio.to_thread(peer.close)


async def _timed(work: Awaitable[Any]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


def table(figures: dict[str, Any]) -> str:
    """Lay the figures out for a terminal."""
    lines = [
        f"Sandbox operations, ms, {figures['machine']['cpus']} CPUs",
        row(_WIDTHS, "operation", "", "p50", "p95", "p99", "faster", "target"),
    ]
    for name, of_each in figures["operations"].items():
        baseline = of_each["baseline"]["p50"]
        for who, own in of_each.items():
            faster = f"{baseline / own['p50']:.1f}x" if who != "baseline" else ""
            target = f"{TARGETS[name]}x" if who == "warren" else ""
            lines.append(row(_WIDTHS, name, who, *(f"{ms:.2f}" for ms in own.values()), faster, target))
    lines += [f"{title}: {figure} ({verdict(held=held)})" for title, figure, held in _verdicts(figures)]
    return "\n".join(lines)


def _verdicts(figures: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Return every target: what it is about, what was reached, and whether that is enough."""
    verdicts = []
    for name, target in TARGETS.items():
        own, baseline = (figures["operations"][name][who]["p50"] for who in ("warren", "baseline"))
        verdicts.append((name, f"{baseline / own:.1f}x, target {target}x", baseline >= target * own))
    per_second = figures["operations_per_second"]
    own, others = per_second["warren"], per_second["baseline"]
    more = own / others
    cold = {who: figures["cold_start"][who]["p50"] for who in ("warren", "baseline")}
    longer = cold["warren"] / cold["baseline"]
    resume, cancel = figures["resume"]["p50"], figures["cancel"]["p50"]
    memory = figures["toolbox_rss_anon_kib"]
    return [
        *verdicts,
        (
            f"operations a second of {TOGETHER} sandboxes",
            f"{own:.0f} to {others:.0f}, {more:.1f}x, target {TOGETHER_TARGET}x",
            more >= TOGETHER_TARGET,
        ),
        (
            "cold start to first output",
            f"{cold['warren']:.0f} to {cold['baseline']:.0f} ms, {longer:.2f}x, target {COLD_TARGET}x",
            longer <= COLD_TARGET,
        ),
        ("resume from pause", f"{resume:.1f} ms, target {RESUME_TARGET_MS} ms", resume <= RESUME_TARGET_MS),
        (
            "cancel to last process gone",
            f"{cancel:.1f} ms, target {CANCEL_TARGET_MS} ms",
            cancel <= CANCEL_TARGET_MS,
        ),
        (
            "idle toolbox's anonymous memory",
            f"{memory} KiB, target {MEMORY_TARGET_KIB} KiB",
            memory <= MEMORY_TARGET_KIB,
        ),
    ]


def main(json_file: Path | None = None) -> None:
    """Measure, print the table and, if asked, write the figures as JSON and a plot beside it."""
    figures = measure()
    publish(figures, table(figures), json_file)
    if json_file:
        plot(figures["operations"], json_file.with_suffix(".png"))
