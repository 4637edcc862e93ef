"""What a process remembers of the sandboxes that it uses."""

import time
from uuid import uuid4

from sandbox.uses import Uses
from storage.ids import SessionId

ALICE = SessionId("alice", uuid4())


def test_a_sandbox_is_busy_until_its_last_call_has_ended() -> None:
    uses = Uses(5)
    with uses.using(ALICE):
        with uses.using(ALICE):
            pass
        assert uses.busy() == {ALICE.thread_id}
    assert uses.busy() == set()


def test_what_this_process_is_busy_with_is_not_set_aside() -> None:
    uses = Uses(5)
    uses.note(ALICE, time.monotonic())
    with uses.using(ALICE):
        assert uses.is_fresh(ALICE)
        assert not uses.set_aside(ALICE)
    assert uses.set_aside(ALICE)
    assert not uses.is_fresh(ALICE)


def test_a_note_is_fresh_for_only_so_long() -> None:
    uses = Uses(5)
    assert not uses.is_fresh(ALICE)
    uses.note(ALICE, time.monotonic() - 4)
    uses.drop_stale()
    assert uses.is_fresh(ALICE)
    uses.note(ALICE, time.monotonic() - 6)
    assert not uses.is_fresh(ALICE)
