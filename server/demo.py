"""`./warren demo`: the main job, played with a real server, real clients, and one crash."""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import APIStatusError

from server.child import (
    ChildServer,
    adopt_clean_environment,
    containers_of,
    remove_containers,
    temporary_data_dir,
)
from server.serve import exit_on_sigterm, is_expected, prepare_environment, say, set_up

_PASSWORD = "correct horse battery staple"  # noqa: S105 - of accounts that live for a minute


class StepFailedError(Exception):
    """A step of the story did not go as told."""


def demo() -> int:
    """Play the story. Returns 0 only if every step held; whatever happens, it leaves nothing behind."""
    started = time.monotonic()
    exit_on_sigterm()
    adopt_clean_environment()
    try:
        with temporary_data_dir() as data_dir:
            prepare_environment(data_dir)
            say("Setting up what is missing ...")
            set_up()
            _play(data_dir)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)  # noqa: T201 - the command line's output
        return 1
    except Exception as error:
        if not isinstance(error, StepFailedError) and not is_expected(error):
            raise
        print(f"\nFAILED: {error}", file=sys.stderr)  # noqa: T201 - the command line's output
        return 1
    say(f"\nEvery step held, in {time.monotonic() - started:.0f} s.")
    return 0


def _play(data_dir: Path) -> None:
    server = ChildServer(data_dir)
    try:
        say("Starting a server ...")
        with server:
            asyncio.run(_Story(server).play())
    except (StepFailedError, RuntimeError, httpx.HTTPError) as error:
        raise StepFailedError(f"{error}\n\n{server.log_tail()}") from error
    finally:
        asyncio.run(remove_containers(data_dir))


class _Story:
    def __init__(self, server: ChildServer) -> None:
        self._server = server
        self._number = 0

    async def play(self) -> None:
        alice, bob = await self._log_in("alice"), await self._log_in("bob")
        self._held("alice and bob have registered and logged in")
        thread_id, workspace = await self._alice_works(alice)
        await self._alice_decides_otherwise(alice, thread_id, workspace)
        await self._bob_is_kept_out(bob, thread_id)
        await self._bob_has_his_own(bob)
        await self._server_crashes(alice, thread_id, workspace)
        await self._alice_deletes(alice, thread_id, workspace)

    async def _alice_works(self, alice: LangGraphClient) -> tuple[str, Path]:
        thread_id = (await alice.threads.create())["thread_id"]
        workspace = self._server.data_dir / "workspaces" / "alice" / f"alice-{thread_id}"
        events = await say_to(alice, thread_id, 'write hello.py: print("hi")')
        self._check("an interrupt is in the stream", has_interrupt(events))
        self._check("nothing was written before the approval", not (workspace / "hello.py").exists())
        self._held('alice asked for hello.py; the agent waits for her approval of "write_file"')
        await decide(alice, thread_id, {"type": "approve"})
        self._check("hello.py is in her workspace", (workspace / "hello.py").read_text() == 'print("hi")')
        self._held("she approved; hello.py is in her workspace directory")
        await say_to(alice, thread_id, "run python3 hello.py")
        events = await decide(alice, thread_id, {"type": "approve"})
        self._check("the output is in the stream", any("hi" in text for text in tool_results(events)))
        self._held('she approved "python3 hello.py"; its output, hi, is in the stream')
        return thread_id, workspace

    async def _alice_decides_otherwise(self, alice: LangGraphClient, thread_id: str, workspace: Path) -> None:
        await say_to(alice, thread_id, "run touch rejected.txt")
        await decide(alice, thread_id, {"type": "reject", "message": "not now"})
        self._check("a rejected command has not run", not (workspace / "rejected.txt").exists())
        await say_to(alice, thread_id, "run touch original.txt")
        edited = {"name": "execute", "args": {"command": "touch edited.txt"}}
        await decide(alice, thread_id, {"type": "edit", "edited_action": edited})
        self._check("the edited command ran", (workspace / "edited.txt").exists())
        self._check("the original did not", not (workspace / "original.txt").exists())
        self._held("a rejected command did not run; an edited one ran as edited")

    async def _bob_is_kept_out(self, bob: LangGraphClient, thread_id: str) -> None:
        attempts = {
            "get": bob.threads.get(thread_id),
            "state": bob.threads.get_state(thread_id),
            "history": bob.threads.get_history(thread_id),
            "run": bob.runs.create(thread_id, "agent", input={"messages": []}),
            "stream": say_to(bob, thread_id, "recall"),
            "delete": bob.threads.delete(thread_id),
        }
        for name, attempt in attempts.items():
            self._check(f"bob's {name} on alice's thread answers 403", await status_of(attempt) == 403)  # noqa: PLR2004
        self._check("bob finds no threads", await bob.threads.search() == [])
        self._held(f"bob got 403 on alice's thread for {', '.join(attempts)}; his search finds nothing")

    async def _bob_has_his_own(self, bob: LangGraphClient) -> None:
        thread_id = (await bob.threads.create())["thread_id"]
        await say_to(bob, thread_id, "run touch bobs.txt; ls -la /workspace /proc/1/root")
        seen = "".join(tool_results(await decide(bob, thread_id, {"type": "approve"})))
        self._check("bob's agent sees his own file", "bobs.txt" in seen)
        self._check("and none of alice's", "hello.py" not in seen and "alice" not in seen)
        await bob.threads.delete(thread_id)
        self._held("bob's own agent sees his files and none of alice's")

    async def _server_crashes(self, alice: LangGraphClient, thread_id: str, workspace: Path) -> None:
        await say_to(alice, thread_id, "run echo after the crash > survived.txt")
        self._server.kill()
        self._check("the command waits", not (workspace / "survived.txt").exists())
        await asyncio.to_thread(self._server.start)
        self._held("the server was killed with SIGKILL and started again")
        await decide(alice, thread_id, {"type": "approve"})
        self._check("the pending approval still counts", (workspace / "survived.txt").exists())
        self._check("hello.py is still there", (workspace / "hello.py").exists())
        await say_to(alice, thread_id, "recall")
        answer = await last_answer(alice, thread_id)
        self._check(
            "alice's words are remembered", "write hello.py" in answer and "after the crash" in answer
        )
        self._held("her approval from before the kill still counted; the agent recalls what she said")

    async def _alice_deletes(self, alice: LangGraphClient, thread_id: str, workspace: Path) -> None:
        await alice.threads.delete(thread_id)
        self._check("the workspace is gone", not await asyncio.to_thread(workspace.exists))
        self._check("the container is gone", not await containers_of(self._server.data_dir, thread_id))
        self._check("the thread answers 404", await status_of(alice.threads.get(thread_id)) == 404)  # noqa: PLR2004
        again = await status_of(alice.threads.create(thread_id=thread_id))
        self._check("its id cannot be claimed again", again is not None)
        self._held("she deleted the thread: container, workspace and id are gone for good")

    async def _log_in(self, username: str) -> LangGraphClient:
        async with httpx.AsyncClient(base_url=self._server.url, timeout=30, trust_env=False) as http:
            credentials = {"username": username, "password": _PASSWORD}
            (await http.post("/api/auth/register", json=credentials)).raise_for_status()
            login = (await http.post("/api/auth/login", json=credentials)).raise_for_status()
        token = login.json()["access_token"]
        return get_client(url=self._server.url, headers={"Authorization": f"Bearer {token}"})

    def _held(self, line: str) -> None:
        self._number += 1
        say(f"  {self._number:2}. {line}")

    def _check(self, what: str, held: bool) -> None:
        if not held:
            raise StepFailedError(f"this should hold: {what}")


async def say_to(client: LangGraphClient, thread_id: str, message: str) -> list[Any]:
    """Run one message and return the stream's parts."""
    said: dict[str, Any] = {"messages": [{"role": "user", "content": message}]}
    parts = client.runs.stream(thread_id, "agent", input=said, stream_mode=["messages-tuple", "updates"])
    return [part async for part in parts]


async def decide(client: LangGraphClient, thread_id: str, *decisions: dict[str, Any]) -> list[Any]:
    """Resume the interrupted run with decisions and return the stream's parts."""
    parts = client.runs.stream(
        thread_id,
        "agent",
        command={"resume": {"decisions": list(decisions)}},
        stream_mode=["messages-tuple", "updates"],
    )
    return [part async for part in parts]


async def last_answer(client: LangGraphClient, thread_id: str) -> str:
    """Return the text of the thread's last message."""
    state: Any = await client.threads.get_state(thread_id)
    return str(state["values"]["messages"][-1]["content"])


def has_interrupt(parts: list[Any]) -> bool:
    """Tell whether a stream ended by waiting for a decision."""
    return any(part.event == "updates" and "__interrupt__" in part.data for part in parts)


def tool_results(parts: list[Any]) -> list[str]:
    """Return what tools answered in a stream."""
    return [
        str(part.data[0]["content"])
        for part in parts
        if part.event == "messages" and part.data[0]["type"] == "tool"
    ]


async def status_of(attempt: Any) -> int | None:
    """Return the status with which an attempt was refused, None if it was served."""
    try:
        await attempt
    except APIStatusError as error:
        return error.response.status_code
    return None
